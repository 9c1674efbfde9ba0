"""Returns and GAE against published vectors, a compacted scalar recursion, and identities."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from upslope.maths import returns

F64 = torch.float64
REWARDS = [0.0, 0.0, 1.0, 0.0, -0.5]
VALUES = [1.0, 4.0, -3.0, -2.0, -1.0]


def row(numbers: list[float]) -> Tensor:
    return torch.tensor([numbers], dtype=F64)


def everywhere(x: Tensor) -> Tensor:
    return torch.ones_like(x, dtype=torch.bool)


def slow_gae(
    rewards: list[float], values: list[float], bootstrap: float, discounts: list[float], trace: float
) -> list[float]:
    """A_t = sum_l (prod of discount * trace) delta_{t+l}: the sum of eq. 16, not its recursion."""
    after = [*values, bootstrap][1:]
    deltas = [r + d * n - v for r, d, n, v in zip(rewards, discounts, after, values, strict=True)]
    return [
        sum(math.prod(d * trace for d in discounts[t:k]) * deltas[k] for k in range(t, len(deltas)))
        for t in range(len(deltas))
    ]


@pytest.mark.parametrize(
    ("trace", "expected"),
    [
        (1.0, [-1.45119, -4.45575, 2.53965, 0.5249, -0.49]),
        (0.7, [-0.67698, -5.24817, 2.48461, 0.67043, -0.49]),
    ],
)
def test_gae_equals_the_vectors_of_rlax(trace: float, expected: list[float]) -> None:
    result = returns.gae(
        row(REWARDS), row(VALUES), torch.tensor([-1.0], dtype=F64), everywhere(row(VALUES)), 0.99, trace
    )
    torch.testing.assert_close(result, row(expected), atol=1e-5, rtol=0)


def test_gae_with_trace_0_is_the_td_error_written_out() -> None:
    after = [*VALUES[1:], -1.0]
    expected = [r + 0.99 * n - v for r, n, v in zip(REWARDS, after, VALUES, strict=True)]
    bootstrap = torch.tensor([-1.0], dtype=F64)
    result = returns.gae(row(REWARDS), row(VALUES), bootstrap, everywhere(row(VALUES)), 0.99, 0.0)
    torch.testing.assert_close(result, row(expected), atol=1e-14, rtol=0)
    errors = returns.td_errors(row(REWARDS), row(VALUES), bootstrap, everywhere(row(VALUES)), 0.99)
    torch.testing.assert_close(errors, row(expected), atol=1e-14, rtol=0)


def test_gae_with_trace_1_is_the_return_minus_the_value() -> None:
    rewards, values = row(REWARDS), row(VALUES)
    result = returns.gae(rewards, values, torch.zeros(1, dtype=F64), everywhere(values), 0.9, 1.0)
    torch.testing.assert_close(result, returns.discounted(rewards, 0.9) - values, atol=1e-14, rtol=0)


def test_gae_without_values_or_discount_is_the_reward_to_go() -> None:
    rewards = row(REWARDS)
    zeros = torch.zeros_like(rewards)
    result = returns.gae(rewards, zeros, torch.zeros(1, dtype=F64), everywhere(rewards), 1.0, 1.0)
    torch.testing.assert_close(result, row([0.5, 0.5, 0.5, -0.5, -0.5]), atol=0, rtol=0)


def test_discounted_of_a_hand_example() -> None:
    torch.testing.assert_close(returns.discounted(row([1.0, 2.0, 4.0]), 0.5), row([3.0, 4.0, 4.0]), atol=0, rtol=0)


def test_truncation_bootstraps_and_termination_does_not() -> None:
    ones, zeros = torch.ones(1, 3, dtype=F64), torch.zeros(1, 3, dtype=F64)
    ended = returns.gae(ones, zeros, torch.tensor([0.0], dtype=F64), everywhere(ones), 0.5, 1.0)
    cut = returns.gae(ones, zeros, torch.tensor([2.0], dtype=F64), everywhere(ones), 0.5, 1.0)
    torch.testing.assert_close(ended, row([1.75, 1.5, 1.0]), atol=0, rtol=0)
    torch.testing.assert_close(cut, row([2.0, 2.0, 2.0]), atol=0, rtol=0)  # 1 / (1 - 0.5), as if it never ended


@pytest.mark.parametrize("constant", [0.0, 1.0])
@pytest.mark.parametrize("trace", [1.0, 0.9])
@pytest.mark.parametrize("discount", [1.0, 0.99])
@pytest.mark.parametrize("episodes", [1, 3])
def test_episodes_inside_a_row_are_cut_by_a_discount_of_0(
    constant: float, trace: float, discount: float, episodes: int
) -> None:
    """As test_gae of stable-baselines3: a constant critic, one reward at the last of 64 steps of an episode."""
    steps = 64
    single = slow_gae([0.0] * (steps - 1) + [1.0], [constant] * steps, 0.0, [discount] * (steps - 1) + [0.0], trace)
    rewards = row(([0.0] * (steps - 1) + [1.0]) * episodes)
    discounts = row(([discount] * (steps - 1) + [0.0]) * episodes)
    values = torch.full_like(rewards, constant)
    garbage = torch.tensor([123.0], dtype=F64)  # the row ends with an episode, so it must not count
    result = returns.gae(rewards, values, garbage, everywhere(rewards), discounts, trace)
    torch.testing.assert_close(result, row(single * episodes), atol=1e-12, rtol=0)
    totals = returns.discounted(rewards, discounts)
    torch.testing.assert_close(totals[0, 0], torch.tensor(discount ** (steps - 1), dtype=F64), atol=1e-12, rtol=0)


numbers = st.floats(-3, 3, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.tuples(numbers, numbers, st.floats(0, 1), st.booleans()), min_size=1, max_size=9),
    bootstrap=numbers,
    trace=st.floats(0, 1),
    garbage=st.sampled_from([math.nan, math.inf, 1e30, 7.0]),
)
def test_masked_positions_are_transparent_whatever_stands_there(
    steps: list[tuple[float, float, float, bool]], bootstrap: float, trace: float, garbage: float
) -> None:
    kept = [step for step in steps if step[3]]
    mask = torch.tensor([[step[3] for step in steps]])
    columns = [row([step[i] if step[3] else garbage for step in steps]) for i in range(3)]
    rewards, values, discounts = columns
    rewards.requires_grad_()
    values.requires_grad_()
    result = returns.gae(rewards, values, torch.tensor([bootstrap], dtype=F64), mask, discounts, trace)
    totals = returns.discounted(rewards, discounts, mask)
    expected = slow_gae([s[0] for s in kept], [s[1] for s in kept], bootstrap, [s[2] for s in kept], trace)
    expected_totals = slow_gae([s[0] for s in kept], [0.0] * len(kept), 0.0, [s[2] for s in kept], 1.0)
    torch.testing.assert_close(result[mask], torch.tensor(expected, dtype=F64), atol=1e-10, rtol=0)
    torch.testing.assert_close(totals[mask], torch.tensor(expected_totals, dtype=F64), atol=1e-10, rtol=0)
    assert (result[~mask] == 0).all() and (totals[~mask] == 0).all()
    (result.sum() + totals.sum()).backward()
    for gradient in (rewards.grad, values.grad):
        assert gradient is not None and torch.isfinite(gradient).all() and (gradient[~mask] == 0).all()


def test_rows_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    rewards, values = torch.randn(4, 6, dtype=F64), torch.randn(4, 6, dtype=F64)
    bootstrap, mask = torch.randn(4, dtype=F64), torch.rand(4, 6) > 0.3
    together = returns.gae(rewards, values, bootstrap, mask, 0.9, 0.8)
    for i in range(4):
        alone = returns.gae(rewards[i : i + 1], values[i : i + 1], bootstrap[i : i + 1], mask[i : i + 1], 0.9, 0.8)
        assert torch.equal(alone[0], together[i])


def test_half_precision_is_promoted_and_double_stays_double() -> None:
    ones = torch.ones(1, 2)
    for given_type, expected in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (F64, F64)):
        x = ones.to(given_type)
        assert returns.gae(x, x, x[:, 0], everywhere(x), 0.9, 0.9).dtype == expected
        assert returns.discounted(x, 0.9).dtype == expected


def test_an_empty_time_axis_gives_an_empty_result() -> None:
    x = torch.zeros(2, 0)
    assert returns.gae(x, x, torch.zeros(2), everywhere(x), 0.9, 0.9).shape == (2, 0)
    assert returns.discounted(x, 0.9).shape == (2, 0)


@pytest.mark.parametrize(("discount", "trace"), [(1.5, 0.9), (-0.1, 0.9), (0.9, 1.1), (math.nan, 0.5)])
def test_a_discount_or_trace_outside_0_and_1_is_refused(discount: float, trace: float) -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        returns.gae(x, x, torch.zeros(1), everywhere(x), discount, trace)
