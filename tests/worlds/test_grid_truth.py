"""Measured distance from the exact solution: hand numbers, ends that are never reached, ties, critics."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from upslope.errors import InputError
from upslope.maths import bellman
from upslope.worlds import grid_truth
from upslope.worlds.grid_truth import solve, solve_mdp
from upslope.worlds.gridworld import SIX_BY_SIX, Gridworld, parse

LINE = parse("S . . +3")
"""States 0, 1, 2 and the end 3: V* = 0, 1, 2. In state 0 only a move to the right exists."""
UP, RIGHT, DOWN, LEFT = range(4)


def line_policy(back: float, back_from_two: float = 0.0) -> Tensor:
    """Right, but left with probability ``back`` in state 1 and ``back_from_two`` in state 2."""
    policy = torch.zeros(4, 4, dtype=torch.float64)
    policy[0, RIGHT] = 1.0
    policy[1, RIGHT], policy[1, LEFT] = 1.0 - back, back
    policy[2, RIGHT], policy[2, LEFT] = 1.0 - back_from_two, back_from_two
    return policy


def test_hand_numbers_on_a_line() -> None:
    """V(1) = -1 + .75 * 2 + .25 * (-1 + V(1)), so V(1) = 1/3 and V(0) = -2/3, beside V* = 1 and 0."""
    exact = solve(LINE, 1.0)
    assert exact.optimal_values.tolist() == [0.0, 1.0, 2.0, 0.0] and exact.optimal_return == 0.0
    found = exact.measure(line_policy(0.25), torch.tensor([-2 / 3, 1 / 3 + 0.3, 2.0 - 0.4, 99.0], dtype=torch.float64))
    assert found.expected_return == pytest.approx(-2 / 3, abs=1e-12)
    assert found.gap == pytest.approx(2 / 3, abs=1e-12) and found.value_gap == pytest.approx(2 / 3, abs=1e-12)
    assert found.optimal_share == 1.0  # its likeliest moves are the best ones
    assert found.critic_rmse == pytest.approx(math.sqrt((0.09 + 0.16) / 3), abs=1e-12)
    assert found.critic_worst == pytest.approx(0.4, abs=1e-12)


def test_the_best_policy_has_no_gap_and_no_critic_no_error() -> None:
    found = solve(LINE, 1.0).measure(line_policy(0.0))
    assert (found.gap, found.value_gap, found.optimal_share) == (0.0, 0.0, 1.0)
    assert found.critic_rmse is None and found.critic_worst is None


def test_a_policy_that_may_never_end_has_an_infinite_gap() -> None:
    exact = solve(LINE, 1.0)
    found = exact.measure(line_policy(1.0), torch.zeros(4, dtype=torch.float64))
    assert found.expected_return == -math.inf and found.gap == math.inf and found.value_gap == math.inf
    assert found.optimal_share == 0.0 and found.critic_rmse == math.inf and found.critic_worst == math.inf
    below_one = solve(LINE, 0.5).measure(line_policy(1.0))
    assert below_one.expected_return == pytest.approx(-2.0) and math.isfinite(below_one.value_gap)


def test_the_greedy_policy_is_judged_apart_from_the_one_that_acts() -> None:
    """Left is likelier in state 1: greedily that circles, though the policy itself does end."""
    found = solve(LINE, 1.0).measure(line_policy(0.6))
    assert found.optimal_share == 0.0 and math.isfinite(found.gap)


def test_optimal_share_counts_starts_by_their_exact_value_not_by_the_move() -> None:
    """Seven states of a ring: from the middle both ways are best, so a greedy policy of either is optimal."""
    world = parse(". . .\n. # .\n. +5 .")
    exact = solve(world, 1.0)
    ways = bellman.greedy_policy(exact.optimal_actions)
    top = world.index[0, 1]
    assert ways[top].tolist() == [0.0, 0.5, 0.0, 0.5]
    for move in (RIGHT, LEFT):
        policy = ways.clone()
        policy[top] = torch.nn.functional.one_hot(torch.tensor(move), 4)
        assert exact.measure(policy).optimal_share == 1.0
    assert exact.measure(ways).optimal_share == 1.0
    wrong = ways.clone()
    wrong[world.index[0, 0]] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    measured = exact.measure(wrong)
    assert measured.optimal_share == pytest.approx(6 / 7)  # the way round from the corner; the others are as they were
    assert measured.value_gap == pytest.approx(4.0)  # x = -1 + V(top), V(top) = -1 + x / 2 + 2 / 2: x = -2, not 2


def test_target_replaces_the_policy_s_values() -> None:
    exact = solve(LINE, 1.0)
    found = exact.measure(line_policy(0.25), exact.optimal_values, target=exact.optimal_values)
    assert found.critic_rmse == 0.0 and found.value_gap == pytest.approx(2 / 3)


def test_a_start_that_cannot_reach_an_end_is_refused_by_its_cell() -> None:
    world = parse(". # .\n# # +1")
    with pytest.raises(InputError, match=r"map, row 1, column 1: found a start from which no end can be reached"):
        solve(world, 1.0)
    assert solve(world, 0.9).optimal_values[0] == pytest.approx(-10.0)
    walled = parse(". # S\n# # +1")
    found = solve(walled, 1.0)  # nobody starts there
    assert found.optimal_return == 0.0
    policy = torch.full((3, 4), 0.25, dtype=torch.float64)
    policy[walled.index[0, 2]] = torch.tensor([0.0, 0.0, 1.0, 0.0])
    assert found.measure(policy).value_gap == 0.0  # -inf against -inf is left out


@pytest.mark.parametrize("world", [parse(SIX_BY_SIX), parse(SIX_BY_SIX, slip=0.2, blocked="bump")], ids=["six", "slip"])
@pytest.mark.parametrize("discount", [0.9, 1.0])
def test_sparse_and_dense_measure_the_same(world: Gridworld, discount: float) -> None:
    generator = torch.Generator().manual_seed(0)
    mdp = world.mdp()
    scores = torch.randn(len(world.cells), 4, dtype=torch.float64, generator=generator)
    policy = scores.masked_fill(~mdp.available, -30.0).softmax(1) * mdp.available
    policy = policy / policy.sum(1, keepdim=True).clamp(min=1e-9)
    values = torch.randn(len(world.cells), dtype=torch.float64, generator=generator)
    one, other = (
        solve_mdp(kind, world.start_distribution(), discount).measure(policy, values)
        for kind in (mdp, world.sparse_mdp())
    )
    for name in ("optimal_return", "expected_return", "value_gap", "optimal_share", "critic_rmse", "critic_worst"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-9), name


def test_solve_goes_sparse_for_large_worlds() -> None:
    world = parse("\n".join([". " * 26] * 25 + ["+1 " * 26]))
    assert len(world.cells) > grid_truth.DENSE_STATES
    exact = solve(world, 1.0)
    assert isinstance(exact.mdp, bellman.SparseMdp) and isinstance(solve(LINE, 1.0).mdp, bellman.Mdp)
    assert exact.optimal_values[0] == 1 - 25
