"""Checks that a mutant of ``maths/losses.py`` showed to be missing."""

from __future__ import annotations

import torch

from upslope.maths import losses

F64 = torch.float64


def test_the_ratio_of_a_sequence_of_one_token_is_that_token_s() -> None:
    new, old = torch.tensor([[0.5, 9.0], [0.5, 0.7]], dtype=F64), torch.zeros(2, 2, dtype=F64)
    mask = torch.tensor([[True, False], [True, True]])
    torch.testing.assert_close(losses.sequence_ratio(new, old, mask), torch.tensor([0.5, 0.6], dtype=F64).exp())


def test_no_gradient_reaches_the_old_log_probabilities_of_a_sequence_ratio() -> None:
    new, old = torch.zeros(1, 2, dtype=F64, requires_grad=True), torch.ones(1, 2, dtype=F64, requires_grad=True)
    losses.sequence_ratio(new, old, torch.ones(1, 2, dtype=torch.bool)).sum().backward()
    assert old.grad is None and new.grad is not None and bool((new.grad > 0).all())


def test_the_clip_does_not_act_at_its_very_edge() -> None:
    """A > 0 and r > 1 + clip_high, A < 0 and r < 1 - clip_low: strictly. With clips of 0 the edge is r = 1, exactly."""
    new = torch.zeros(1, 2, dtype=F64, requires_grad=True)
    loss, clipped = losses.clipped_surrogate(new, torch.zeros(1, 2, dtype=F64), torch.tensor([[2.0, -2.0]]), 0.0, 0.0)
    loss.sum().backward()
    assert not clipped.any() and new.grad is not None and new.grad.tolist() == [[-2.0, 2.0]]


def test_the_clipped_value_loss_on_both_sides_of_old_values_that_are_not_0() -> None:
    values, old, goals = torch.meshgrid(*[torch.linspace(-2.0, 2.0, 9, dtype=F64)] * 3, indexing="ij")
    found = losses.clipped_value(values.flatten(1), old.flatten(1), goals.flatten(1), 0.3).flatten().tolist()
    for loss, value, before, goal in zip(found, *(x.flatten().tolist() for x in (values, old, goals)), strict=True):
        near = min(max(value, before - 0.3), before + 0.3)
        assert abs(loss - max((value - goal) ** 2, (near - goal) ** 2)) < 1e-12


def test_half_precision_log_ratios_are_promoted_before_they_are_scaled() -> None:
    chosen, rejected = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(losses.dpo(chosen, rejected, 0.1), losses.dpo(chosen.float(), rejected.float(), 0.1))
