"""Checks that a mutant of ``recipes/grid_lab.py`` showed to be missing."""

from __future__ import annotations

import pytest
import torch

from upslope.recipes import grid_lab
from upslope.recipes.grid_lab import CriticTargets, Targets

F64 = torch.float64
MASK = torch.tensor([[True, True], [True, False]])


def test_gains_are_divided_by_their_root_mean_square_over_what_counts() -> None:
    gain = torch.tensor([[3.0, -4.0], [0.0, 100.0]], dtype=F64)
    size = (25 / 3) ** 0.5
    torch.testing.assert_close(grid_lab.scaled(gain, MASK)[MASK], torch.tensor([3.0, -4.0, 0.0], dtype=F64) / size)
    assert not grid_lab.scaled(torch.zeros(2, 2, dtype=F64), MASK).any()  # no gain at all is not divided by 0


def test_a_later_step_compares_with_the_recorded_probabilities_and_the_first_with_its_own() -> None:
    """float32 networks on float64 walks: the loss is in the networks' type."""
    logprobs = torch.tensor([[[0.2, 0.8]], [[0.5, 0.5]]]).log()
    action = torch.tensor([[1], [0]])
    old = torch.tensor([[0.5], [0.4]], dtype=F64).log()
    found = Targets(
        torch.ones(2, 1, dtype=torch.bool), torch.zeros(2, 1, dtype=torch.long), action, old,
        torch.tensor([[1.0], [-2.0]], dtype=F64),
    )  # fmt: skip
    first = grid_lab.policy_loss(logprobs, found, None, 0.0, first=True)
    later = grid_lab.policy_loss(logprobs, found, None, 0.0, first=False)
    assert first.dtype == later.dtype == torch.float32
    assert first.flatten().tolist() == [-1.0, 2.0]
    assert later.flatten().tolist() == pytest.approx([-1.6, 2.5])
    clipped = grid_lab.policy_loss(logprobs, found, 0.2, 0.0, first=False)
    assert clipped.flatten().tolist() == pytest.approx([-1.2, 2.5])


def test_the_critic_s_loss_is_the_squared_error_in_its_own_type() -> None:
    found = CriticTargets(
        torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, dtype=F64),
        torch.tensor([[3.0]], dtype=F64),
    )  # fmt: skip
    loss = grid_lab.value_loss(torch.tensor([[1.0]]), found)
    assert loss.dtype == torch.float32 and loss.tolist() == [[4.0]]
