"""Checks that a mutant of ``maths/bellman.py`` showed to be missing."""

from __future__ import annotations

import math

import pytest
import torch

from upslope.maths import bellman
from upslope.maths.bellman import Mdp

F64 = torch.float64
INF = math.inf


def corridor(cells: int, dtype: torch.dtype = F64) -> Mdp:
    """Cells 0 .. ``cells`` - 1 with one move each, to the right at a cost of 1; then the end."""
    transition = torch.zeros(cells + 1, 1, cells + 1, dtype=dtype)
    transition[range(cells), 0, range(1, cells + 1)] = 1.0
    return Mdp(transition, -torch.ones(cells + 1, 1, dtype=dtype), torch.arange(cells + 1) == cells)


@pytest.mark.parametrize("discount", [-0.1, 1.5, math.nan])
def test_a_discount_outside_0_to_1_is_refused_everywhere(discount: float) -> None:
    mdp, policy = corridor(2), torch.ones(3, 1, dtype=F64)
    for ask in (
        lambda: bellman.action_values(mdp, torch.zeros(3, dtype=F64), discount),
        lambda: bellman.optimal_values(mdp, discount),
        lambda: bellman.policy_values(mdp, policy, discount),
        lambda: bellman.policy_iteration(mdp, discount),
        lambda: bellman.occupancy(mdp, policy, torch.tensor([1.0, 0, 0], dtype=F64), discount),
    ):
        with pytest.raises(ValueError, match="discount is"):
            ask()


def test_answers_have_the_dtype_of_the_world() -> None:
    mdp = corridor(2, torch.float32)
    assert bellman.action_values(mdp, torch.zeros(3, dtype=F64), 0.5).dtype == torch.float32
    for dtype in (torch.float32, F64):
        assert bellman.greedy_policy(torch.zeros(2, 2, dtype=dtype)).dtype == dtype


def test_with_discount_0_a_move_to_a_hopeless_state_is_worth_its_reward() -> None:
    values = torch.tensor([0.0, -INF, 0.0], dtype=F64)
    assert bellman.action_values(corridor(2), values, 0.0).flatten().tolist() == [-1.0, -1.0, 0.0]
    assert bellman.action_values(corridor(2), values, 0.5).flatten().tolist() == [-INF, -1.0, 0.0]


@pytest.mark.parametrize("best", [0.0, 1000.0, -1000.0])
def test_ties_are_relative_to_the_best_value_from_1_on(best: float) -> None:
    """Within 1e-6 max(1, |best|)."""
    reach = 1e-6 * max(1.0, abs(best))
    row = torch.tensor([[best, best - 0.9 * reach, best - 1.5 * reach]], dtype=F64)
    assert bellman.greedy_policy(row).tolist() == [[0.5, 0.5, 0.0]]


def test_without_tolerance_the_best_action_is_still_chosen() -> None:
    assert bellman.greedy_policy(torch.tensor([[1.0, 2.0]], dtype=F64), tolerance=0.0).tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("cells", [1, 2, 9])
def test_values_spread_one_cell_a_sweep_through_a_corridor(cells: int) -> None:
    """``cells`` sweeps fill it, one more finds nothing to change; the start stands first."""
    sweeps = bellman.value_iteration_sweeps(corridor(cells), 1.0)
    assert len(sweeps) == 1 + cells + 1
    assert sweeps[-1].tolist() == [*(-float(left) for left in range(cells, 0, -1)), 0.0]


def test_value_iteration_stops_at_8_rounding_units_and_not_only_where_nothing_moves() -> None:
    """V = 1 + V / 2, by sweeps 2 - 2^(1 - k): the change 2^-k is at most 8 units of V (8 eps V) from k = 49 on."""
    transition = torch.ones(1, 1, 1, dtype=F64)
    mdp = Mdp(transition, torch.ones(1, 1, dtype=F64), torch.tensor([False]))
    sweeps = bellman.value_iteration_sweeps(mdp, 0.5)
    assert (float(sweeps[-1] - sweeps[-2]), float(sweeps[-2] - sweeps[-3])) == (2.0**-49, 2.0**-48)
