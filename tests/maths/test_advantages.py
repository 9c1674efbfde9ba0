"""Group baselines and whitening against loops, published vectors and exact zeros."""

from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope.maths import advantages

F64 = torch.float64
BLOG = torch.tensor([[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]], dtype=F64)
reward_groups = st.integers(2, 6).flatmap(
    lambda size: st.lists(
        st.lists(st.integers(-20, 20).map(lambda n: n / 4), min_size=size, max_size=size), min_size=1, max_size=4
    )
)


@settings(max_examples=60, deadline=None)
@given(
    groups=reward_groups, baseline=st.sampled_from(["mean", "leave_one_out"]), scale=st.sampled_from(["none", "std"])
)
def test_group_relative_equals_a_plain_loop(groups: list[list[float]], baseline: str, scale: str) -> None:
    expected = []
    for group in groups:
        spread = statistics.pstdev(group) if scale == "std" else 1.0
        for i, reward in enumerate(group):
            others = group[:i] + group[i + 1 :] if baseline == "leave_one_out" else group
            expected.append(0.0 if max(group) == min(group) else (reward - statistics.fmean(others)) / spread)
    result = advantages.group_relative(torch.tensor(groups, dtype=F64), baseline=baseline, scale=scale)
    torch.testing.assert_close(result.flatten(), torch.tensor(expected, dtype=F64), atol=1e-12, rtol=0)


def test_group_relative_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    assert advantages.group_relative(rewards).tolist() == [[0.5, -0.5, -0.5, 0.5]]
    assert advantages.group_relative(rewards, scale="std").tolist() == [[1.0, -1.0, -1.0, 1.0]]
    torch.testing.assert_close(
        advantages.group_relative(rewards, baseline="leave_one_out"), torch.tensor([[2.0, -2.0, -2.0, 2.0]]) / 3
    )


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("scale", ["none", "std"])
def test_eight_rewards_of_a_tenth_give_exact_zeros(dtype: torch.dtype, baseline: str, scale: str) -> None:
    rewards = torch.tensor([[0.1] * 8, [0.0] * 7 + [1.0]], dtype=dtype)
    result = advantages.group_relative(rewards, baseline=baseline, scale=scale)
    assert torch.equal(result[0], torch.zeros(8, dtype=result.dtype))
    assert (result[1] != 0).all()


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_std_scale_survives_tiny_and_huge_rewards_in_float32(size: float) -> None:
    result = advantages.group_relative(torch.tensor([[0.0, size]]), scale="std")
    torch.testing.assert_close(result, torch.tensor([[-1.0, 1.0]]))


def test_a_group_of_one_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        advantages.group_relative(torch.zeros(3, 1))


@pytest.mark.parametrize("wrong", [{"baseline": "median"}, {"scale": "max"}])
def test_an_unknown_baseline_or_scale_is_named(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong.values()))):
        advantages.group_relative(torch.zeros(1, 2), **wrong)


def test_a_missing_reward_does_not_become_a_number() -> None:
    result = advantages.group_relative(torch.tensor([[1.0, torch.nan, 0.0], [1.0, 0.0, 0.5]]), scale="std")
    assert torch.isnan(result[0]).all() and torch.isfinite(result[1]).all()


def test_whiten_without_shift_equals_the_vectors_of_the_rlhf_blog() -> None:
    result = advantages.whiten(BLOG, torch.ones_like(BLOG, dtype=torch.bool), shift_mean=False)
    torch.testing.assert_close(result[0], torch.tensor([0.0508, 0.4381, 0.8254], dtype=F64), atol=5e-5, rtol=0)


def test_whiten_has_mean_0_and_population_variance_1_over_the_mask() -> None:
    torch.manual_seed(0)
    x, mask = torch.randn(5, 7, dtype=F64) * 3 + 2, torch.rand(5, 7) > 0.4
    result = advantages.whiten(x, mask)
    kept = result[mask].tolist()
    assert statistics.fmean(kept) == pytest.approx(0, abs=1e-12)
    assert statistics.pvariance(kept) == pytest.approx(1, abs=1e-8)
    expected = (x[mask] - x[mask].mean()) / x[mask].var(correction=0).add(1e-8).sqrt()
    torch.testing.assert_close(result[mask], expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(
        advantages.whiten(x, mask, shift_mean=False)[mask], expected + x[mask].mean(), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whiten_ignores_what_is_masked_and_puts_0_there(shift_mean: bool) -> None:
    mask = torch.tensor([[True, False, True], [False, False, True]])
    clean = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 6.0]])
    dirty = clean.masked_fill(~mask, torch.nan).requires_grad_()
    result = advantages.whiten(dirty, mask, shift_mean=shift_mean)
    assert torch.equal(result.detach(), advantages.whiten(clean, mask, shift_mean=shift_mean))
    assert (result[~mask] == 0).all() and (result[mask] != 0).all()
    result.square().sum().backward()
    assert dirty.grad is not None and torch.isfinite(dirty.grad).all()


def test_whiten_of_a_constant_is_exactly_0_and_of_nothing_is_0() -> None:
    x = torch.full((2, 4), 0.1)
    assert torch.equal(advantages.whiten(x, torch.ones(2, 4, dtype=torch.bool)), torch.zeros(2, 4))
    assert torch.equal(advantages.whiten(x, torch.zeros(2, 4, dtype=torch.bool)), torch.zeros(2, 4))


def test_whiten_divides_by_the_variance_plus_the_named_eps() -> None:
    x = torch.tensor([[1.0, -1.0]], dtype=F64)
    result = advantages.whiten(x, torch.ones(1, 2, dtype=torch.bool), eps=3.0)
    torch.testing.assert_close(result, x / 2, atol=1e-15, rtol=0)
