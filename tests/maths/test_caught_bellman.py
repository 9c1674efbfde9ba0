"""Checks that a mutant of ``maths/bellman.py`` showed to be missing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from upslope.maths import bellman
from upslope.maths.mdp import AnyMdp, Mdp, SparseMdp

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


def walk(successors: list[list[int]], rewards: list[list[float]], ends: list[int], dtype: torch.dtype = F64) -> Mdp:
    """Action a of state s leads to ``successors[s][a]`` for certain; -1: the action does not exist."""
    found = torch.tensor(successors)
    chances = torch.nn.functional.one_hot(found.clamp(min=0), len(found)).to(dtype)
    terminal = torch.zeros(len(found), dtype=torch.bool)
    terminal[ends] = True
    return Mdp(chances, torch.tensor(rewards, dtype=dtype), terminal, found >= 0)


CORRIDOR = walk([[1], [2], [3], [0]], [[-1.0], [-2.0], [-4.0], [0.0]], [3])


def test_visits_spread_forwards_only() -> None:
    """A corridor of one way: what lies behind the start is not visited, what lies before it is."""
    one = torch.ones(4, 1, dtype=F64)
    start = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=F64)
    assert bellman.occupancy(CORRIDOR, one, start, 1.0).tolist() == [0.0, 1.0, 1.0, 1.0]
    assert bellman.occupancy(CORRIDOR, one, start.float(), 0.5).tolist() == [0.0, 1.0, 0.5, 0.25]


def test_one_action_is_enough_for_policy_iteration() -> None:
    values, policy, evaluations = bellman.policy_iteration(CORRIDOR, 1.0)
    assert values.tolist() == [-7.0, -6.0, -4.0, 0.0] and policy.tolist() == [[1.0], [1.0], [1.0], [0.0]]
    assert evaluations == 1


def test_evaluations_are_counted_and_limited() -> None:
    """State 0 may end at once for -9 or go round for -3: the first policy takes the nearer end, the second is best."""
    mdp = walk([[2, 1], [2, -1], [-1, -1]], [[-9.0, -1.0], [-2.0, 0.0], [0.0, 0.0]], [2])
    values, policy, evaluations = bellman.policy_iteration(mdp, 1.0)
    assert values.tolist() == [-3.0, -2.0, 0.0] and policy[0].tolist() == [0.0, 1.0] and evaluations == 2
    assert bellman.policy_iteration(mdp, 1.0, max_evaluations=2)[2] == 2
    with pytest.raises(ValueError, match="did not settle in 1 evaluations"):
        bellman.policy_iteration(mdp, 1.0, max_evaluations=1)


def test_policy_iteration_beside_a_trap() -> None:
    """State 3 never ends. Under discount 1 it is worth -inf before and after an improvement elsewhere."""
    mdp = walk([[2, 1], [2, 3], [-1, -1], [-1, 3]], [[-9.0, -1.0], [-2.0, 0.0], [0.0, 0.0], [0.0, -1.0]], [2])
    values, policy, _ = bellman.policy_iteration(mdp, 1.0)
    assert values.tolist() == [-3.0, -2.0, 0.0, -INF] and policy[3].tolist() == [0.0, 0.0]
    discounted, policy, _ = bellman.policy_iteration(mdp, 0.5)
    assert discounted.tolist() == [-1.5, -1.0, 0.0, -2.0] and policy[3].tolist() == [0.0, 1.0]


def test_policy_iteration_starts_from_actions_that_exist() -> None:
    """No end can be reached, and the first state is one: each state's own first action is the start."""
    mdp = walk([[-1, -1, -1], [-1, -1, 1], [-1, 2, 1]], [[0.0] * 3, [0.0, 0.0, -1.0], [0.0, -3.0, -1.0]], [0])
    values, policy, _ = bellman.policy_iteration(mdp, 0.5)
    assert values.tolist() == [0.0, -2.0, -2.0] and policy[1:].argmax(1).tolist() == [2, 2]


@pytest.mark.parametrize(("rise", "settles"), [(0.0, True), (0.4, True), (0.7, False)])
def test_a_gain_within_rounding_ends_policy_iteration(
    rise: float, settles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values that were solved with an error may promise a gain that the next solution does not show: the sum of what
    all states gained decides, in rounding units."""
    mdp = walk([[2, 1], [2, -1], [-1, -1]], [[-9.0, -1.0], [-2.0, 0.0], [0.0, 0.0]], [2])
    first = torch.tensor([-9.0, -2.0, 0.0], dtype=F64)
    asked: list[Tensor] = []

    def solved(mdp: AnyMdp, policy: Tensor, discount: float) -> Tensor:
        asked.append(policy)
        return first if len(asked) == 1 else first + rise * bellman._rounding(first)

    monkeypatch.setattr(bellman, "policy_values", solved)
    if settles:
        values, policy, evaluations = bellman.policy_iteration(mdp, 1.0)
        assert torch.equal(values, first) and torch.equal(policy, asked[0]) and evaluations == 2 == len(asked)
    else:  # 1.4 units in all, though 0.7 on average: the second policy is taken
        assert torch.equal(bellman.policy_iteration(mdp, 1.0)[1], asked[1])


def test_an_action_with_many_outcomes_is_unsafe_if_one_of_them_is_a_trap() -> None:
    outcomes = 300
    successor = torch.full((outcomes + 2, 1, outcomes + 1), outcomes + 1)
    successor[0, 0] = torch.arange(1, outcomes + 2)
    probability = torch.zeros(successor.shape, dtype=F64)
    probability[0] = 1 / (outcomes + 1)
    probability[outcomes + 1, 0, 0] = 1.0
    terminal = torch.ones(outcomes + 2, dtype=torch.bool)
    terminal[[0, outcomes + 1]] = False
    mdp = SparseMdp(successor, probability, -torch.ones(outcomes + 2, 1, dtype=F64), terminal)
    assert bellman.optimal_values(mdp, 1.0)[[0, 1, outcomes + 1]].tolist() == [-INF, 0.0, -INF]
    values, policy, _ = bellman.policy_iteration(mdp, 1.0)
    assert values[0] == -INF and policy[0].tolist() == [0.0]


def test_a_circle_that_pays_is_found_after_one_sweep_a_state() -> None:
    mdp = walk([[1, 2], [0, 2], [-1, -1]], [[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]], [2])
    with pytest.raises(ValueError, match="did not converge in 4 sweeps"):
        bellman.optimal_values(mdp, 1.0)


@pytest.mark.parametrize(("row", "discount"), [([0.999, 0.0], 0.9), ([0.5, 0.0], 1.0), ([0.501, 0.5], 1.0)])
def test_rows_that_do_not_sum_to_1_are_refused(row: list[float], discount: float) -> None:
    mdp = walk([[1, 1], [-1, -1]], [[0.0, 0.0], [0.0, 0.0]], [1])
    with pytest.raises(ValueError, match="policy rows of states 0 are not distributions"):
        bellman.policy_values(mdp, torch.tensor([row, [0.0, 0.0]], dtype=F64), discount)


def test_only_the_rows_that_are_wrong_are_named() -> None:
    mdp = walk([[2, -1], [2, 2], [-1, -1]], [[0.0, 0.0]] * 3, [2])
    with pytest.raises(ValueError, match="policy rows of states 0 are not"):
        bellman.policy_values(mdp, torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.0, 0.0]], dtype=F64), 0.9)


@pytest.mark.parametrize(("values", "size"), [([-1000.0, -INF, 3.0], 1000.0), ([0.0, 0.5, 0.1], 1.0)])
def test_a_rounding_unit_belongs_to_the_largest_value(values: list[float], size: float) -> None:
    assert bellman._rounding(torch.tensor(values, dtype=F64)) == 64 * torch.finfo(F64).eps * size
