"""Losses against published vectors, hand numbers, corners of the clip and gradients by definition."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from upslope.maths import losses, weighting

F64 = torch.float64


def row(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=F64)


def slope(ratio: float, advantage: float, low: float | None, high: float | None) -> tuple[float, float, bool]:
    """Loss, d(-loss) / d ratio and the clipped flag at one ratio."""
    logprob = torch.tensor([[math.log(ratio)]], dtype=F64, requires_grad=True)
    loss, clipped = losses.clipped_surrogate(logprob, torch.zeros_like(logprob), row(advantage), low, high)
    (gradient,) = torch.autograd.grad(loss.sum(), logprob)
    return loss.item(), -gradient.item() / ratio, bool(clipped)


@pytest.mark.parametrize(
    ("sign", "published", "by_hand"),
    [
        (1.0, -0.171175, -(0.3 + 0.2 + 0.1 * math.exp(-2)) / 3),  # printed with a rounding of 3e-6
        (-1.0, 0.193333, (0.3 + 0.2 + 0.1 * 0.8) / 3),
    ],
)
def test_clipped_surrogate_equals_the_vectors_of_rlax(sign: float, published: float, by_hand: float) -> None:
    logits = torch.tensor([[1.0, 1, 1], [2, 0, 0], [-1, -2, -3]], dtype=F64)
    old = torch.tensor([[1.0, 1, 1], [2, 0, 0], [-3, -2, -1]], dtype=F64)
    actions = torch.tensor([[0], [1], [2]])
    advantages = sign * torch.tensor([[0.3], [0.2], [0.1]], dtype=F64)
    new, before = (x.log_softmax(-1).gather(1, actions) for x in (logits, old))
    loss, _ = losses.clipped_surrogate(new, before, advantages, 0.2, 0.2)
    assert loss.mean().item() == pytest.approx(published, abs=4e-6)
    assert loss.mean().item() == pytest.approx(by_hand, abs=1e-14)


def test_the_worked_example_of_the_video_gives_minus_0_1764() -> None:
    ratios, gains = row(1.72, 0.84, 1.21, 1.43, 0.82), row(0.8, -0.5, 0.3, 0.6, -0.9)
    loss, clipped = losses.clipped_surrogate(ratios.log(), torch.zeros_like(ratios), gains, 0.2, 0.2)
    assert loss.mean().item() == pytest.approx(-0.1764, abs=1e-12)
    assert clipped.tolist() == [[True, False, True, True, False]]


@pytest.mark.parametrize(
    ("ratio", "advantage", "gradient", "clipped"),
    [
        (1.1, 2.0, 2.0, False),
        (1.3, 2.0, 0.0, True),  # a good action made likely enough
        (0.5, 2.0, 2.0, False),  # a good action made unlikely keeps its gradient
        (1.3, -2.0, -2.0, False),
        (2.0, -2.0, -2.0, False),  # a bad action made likely keeps its gradient
        (0.7, -2.0, 0.0, True),
        (0.9, -2.0, -2.0, False),
        (1.0, 2.0, 2.0, False),
        (5.0, 0.0, 0.0, False),
    ],
)
def test_corners_of_the_clip(ratio: float, advantage: float, gradient: float, clipped: bool) -> None:
    loss, found, flag = slope(ratio, advantage, 0.2, 0.2)
    assert (found, flag) == (pytest.approx(gradient, abs=1e-12), clipped)
    inside = min(max(ratio, 0.8), 1.2)
    assert loss == pytest.approx(-min(ratio * advantage, inside * advantage), abs=1e-12)


@settings(max_examples=80, deadline=None)
@given(ratio=st.floats(0.01, 50), advantage=st.floats(-5, 5), low=st.floats(0.01, 0.9), high=st.floats(0.01, 3))
def test_clipped_surrogate_is_the_minimum_of_the_paper(ratio: float, advantage: float, low: float, high: float) -> None:
    loss, _, _ = slope(ratio, advantage, low, high)
    inside = min(max(ratio, 1 - low), 1 + high)
    assert loss == pytest.approx(-min(ratio * advantage, inside * advantage), rel=1e-9, abs=1e-12)


def test_each_clip_can_be_switched_off_alone() -> None:
    assert slope(4000.0, 1.0, None, None)[1:] == (pytest.approx(1.0), False)
    assert slope(4000.0, 1.0, 0.2, None)[1:] == (pytest.approx(1.0), False)
    assert slope(4000.0, 1.0, None, 0.2)[1:] == (0.0, True)
    assert slope(0.001, -1.0, None, 0.2)[1:] == (pytest.approx(-1.0), False)
    assert slope(1.25, 1.0, 0.2, 0.28)[2] is False and slope(1.29, 1.0, 0.2, 0.28)[2] is True


def test_at_ratio_1_the_gradient_is_the_policy_gradient() -> None:
    torch.manual_seed(0)
    logprobs = torch.randn(3, 4, dtype=F64).requires_grad_()
    advantages = torch.randn(3, 4, dtype=F64)
    loss, clipped = losses.clipped_surrogate(logprobs, logprobs.detach(), advantages, 0.2, 0.2)
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    assert torch.equal(gradient, -advantages) and torch.equal(loss.detach(), -advantages) and not clipped.any()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("clips", [(0.2, 0.2), (None, None)])
@pytest.mark.parametrize(
    ("new", "old"), [(0.0, -1e4), (-1e4, 0.0), (-math.inf, 0.0), (0.0, -math.inf), (-math.inf, -math.inf)]
)
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_zero_weight_times_an_extreme_ratio_is_zero(
    dtype: torch.dtype, clips: tuple[float | None, float | None], new: float, old: float, advantage: float
) -> None:
    logprobs = torch.tensor([[new, -1.0]], dtype=dtype, requires_grad=True)
    before, gains = torch.tensor([[old, -1.0]], dtype=dtype), torch.tensor([[advantage, 1.0]], dtype=dtype)
    mask = torch.tensor([[False, True]])
    for loss, _ in (
        losses.clipped_surrogate(logprobs, before, gains, *clips),
        losses.clipped_surrogate_sequence(logprobs, before, gains, mask, *clips),
        losses.clipped_surrogate_sequence(logprobs, before, gains, ~mask, *clips),
    ):
        (gradient,) = torch.autograd.grad((loss * mask).sum(), logprobs)
        assert torch.isfinite(loss).all() and torch.isfinite(gradient).all() and gradient[0, 0] == 0


def test_a_nan_is_never_hidden() -> None:
    loss, _ = losses.clipped_surrogate(row(math.nan, 0.0), row(0.0, 0.0), row(1.0, 1.0), 0.2, 0.2)
    assert loss.isnan().tolist() == [[True, False]]


def test_no_gradient_reaches_the_targets() -> None:
    x = [torch.full((1, 2), number, dtype=F64, requires_grad=True) for number in (0.1, 0.2, 1.0)]
    mask = torch.ones(1, 2, dtype=torch.bool)
    total = (
        losses.clipped_surrogate(x[0], x[1], x[2], 0.2, 0.2)[0]
        + losses.clipped_surrogate_sequence(x[0], x[1], x[2], mask, 0.2, 0.2)[0]
        + losses.clipped_value(x[0], x[1], x[2], 0.2)
    )
    total.sum().backward()
    assert x[0].grad is not None and (x[0].grad != 0).all() and x[1].grad is None and x[2].grad is None


# ------------------------------------------------------------------------------------------------------ sequence ratios
def gspo_objective(logprobs: Tensor, old: Tensor, gains: Tensor, mask: Tensor, low: float, high: float) -> Tensor:
    """Eq. 5 of arXiv 2507.18071, a loop over sequences."""
    terms = []
    for i in range(len(gains)):
        s = ((logprobs[i][mask[i]] - old[i][mask[i]]).sum() / mask[i].sum()).exp()
        terms.append(torch.minimum(s * gains[i], s.clamp(1 - low, 1 + high) * gains[i]))
    return torch.stack(terms).mean()


def test_sequence_loss_has_the_value_and_gradient_of_the_gspo_objective() -> None:
    torch.manual_seed(3)
    logprobs = (-torch.rand(6, 5, dtype=F64)).requires_grad_()
    old = logprobs.detach() + 0.3 * torch.randn(6, 5, dtype=F64)
    gains, mask = torch.randn(6, dtype=F64), torch.rand(6, 5) > 0.3
    mask[:, 0] = True
    loss, clipped = losses.clipped_surrogate_sequence(logprobs, old, gains[:, None].expand(6, 5), mask, 0.05, 0.08)
    mine = (loss * weighting.sequence_mean(mask, F64)).sum()
    theirs = -gspo_objective(logprobs, old, gains, mask, 0.05, 0.08)
    torch.testing.assert_close(mine, theirs, atol=1e-14, rtol=0)
    (gradient,) = torch.autograd.grad(mine, logprobs)
    (expected,) = torch.autograd.grad(theirs, logprobs)
    torch.testing.assert_close(gradient, expected, atol=1e-14, rtol=0)
    whole = clipped.any(1)
    assert 0 < whole.sum() < 6 and torch.equal(clipped, mask & whole[:, None])
    assert (gradient[mask & ~whole[:, None]] != 0).all() and (gradient[~mask] == 0).all()


def test_sequence_ratio_is_the_geometric_mean_of_token_ratios() -> None:
    mask = torch.tensor([[True, False, True], [False, False, False]])
    logprobs = torch.tensor([[math.log(4), math.nan, math.log(9)], [math.nan] * 3], dtype=F64)
    ratio = losses.sequence_ratio(logprobs, torch.zeros(2, 3, dtype=F64), mask)
    torch.testing.assert_close(ratio, torch.tensor([6.0, 1.0], dtype=F64), atol=1e-12, rtol=0)


def test_masked_garbage_never_enters_the_sequence_loss() -> None:
    mask = torch.tensor([[True, True, False]])
    clean = [torch.tensor([[-0.5, -0.7, 0.0]], dtype=F64), row(-0.6, -0.6, 0.0), row(1.0, 1.0, 0.0)]
    dirty = [x.masked_fill(~mask, math.nan).requires_grad_() for x in clean]
    expected, _ = losses.clipped_surrogate_sequence(clean[0], clean[1], clean[2], mask, 0.2, 0.2)
    loss, clipped = losses.clipped_surrogate_sequence(dirty[0], dirty[1], dirty[2], mask, 0.2, 0.2)
    assert torch.equal(loss.detach(), expected) and loss[0, 2] == 0 and not clipped[0, 2]
    (gradient,) = torch.autograd.grad(loss.sum(), dirty[0])
    assert torch.isfinite(gradient).all() and gradient[0, 2] == 0


# ------------------------------------------------------------------------------------------------------ value and pairs
@pytest.mark.parametrize(
    ("value", "old", "target", "expected"),
    [
        (1.0, 0.0, 3.0, (0.2 - 3.0) ** 2),  # went the right way too fast: the clipped error is the larger
        (1.0, 0.0, -3.0, (1.0 + 3.0) ** 2),  # went the wrong way: the plain error is the larger
        (0.1, 0.0, 3.0, (0.1 - 3.0) ** 2),  # inside the clip: both are the same
    ],
)
def test_clipped_value_takes_the_larger_error(value: float, old: float, target: float, expected: float) -> None:
    assert losses.clipped_value(row(value), row(old), row(target), 0.2).item() == pytest.approx(expected)
    assert losses.clipped_value(row(value), row(old), row(target), None).item() == pytest.approx((value - target) ** 2)


@pytest.mark.parametrize(("value", "target", "moves"), [(1.0, 3.0, False), (1.0, -3.0, True), (0.1, 3.0, True)])
def test_clipped_value_has_no_gradient_where_the_clip_acts(value: float, target: float, moves: bool) -> None:
    v = row(value).requires_grad_()
    (gradient,) = torch.autograd.grad(losses.clipped_value(v, row(0.0), row(target), 0.2).sum(), v)
    assert gradient.item() == pytest.approx(2 * (value - target) if moves else 0.0)


def test_bradley_terry_by_hand_and_under_a_shift_of_all_scores() -> None:
    chosen, rejected = torch.tensor([1.0, 0.0, -2.0], dtype=F64), torch.tensor([0.0, 0.0, 1.0], dtype=F64)
    loss = losses.bradley_terry(chosen, rejected)
    expected = [-math.log(1 / (1 + math.exp(-d))) for d in (1.0, 0.0, -3.0)]
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=F64), atol=1e-12, rtol=0)
    torch.testing.assert_close(losses.bradley_terry(chosen + 7, rejected + 7), loss, atol=1e-12, rtol=0)
    margin = losses.bradley_terry(chosen, rejected, margin=1.0)
    assert margin[0].item() == pytest.approx(math.log(2))  # a lead of 1 only just meets a margin of 1


def test_bradley_terry_stays_finite_for_extreme_scores() -> None:
    loss = losses.bradley_terry(torch.tensor([-1e4, 1e4]), torch.tensor([1e4, -1e4]))
    assert loss.tolist() == [2e4, 0.0]


def test_dpo_by_hand() -> None:
    loss = losses.dpo(torch.tensor([0.5], dtype=F64), torch.tensor([-1.5], dtype=F64), beta=0.1)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.2)))


def test_nll_is_minus_the_log_probability() -> None:
    assert losses.nll(row(-0.5, 0.0)).tolist() == [[0.5, 0.0]]


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: losses.nll(x),
        lambda x: losses.clipped_surrogate(x, x, x, 0.2, 0.2)[0],
        lambda x: losses.clipped_surrogate_sequence(x, x, x, torch.ones_like(x, dtype=torch.bool), 0.2, 0.2)[0],
        lambda x: losses.clipped_value(x, x, x, 0.2),
        lambda x: losses.bradley_terry(x[:, 0], x[:, 0]),
        lambda x: losses.dpo(x[:, 0], x[:, 0], 0.1),
    ],
)
def test_losses_promote_half_precision_and_keep_double(loss: Callable[[Tensor], Tensor]) -> None:
    assert loss(torch.zeros(2, 3, dtype=torch.bfloat16)).dtype == torch.float32
    assert loss(torch.zeros(2, 3, dtype=F64)).dtype == F64
