"""The text gridworld against breadth-first search, hand maps, and the rule "cell value = best neighbour - 1"."""

from __future__ import annotations

import math
import random
from collections import deque

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from upslope.errors import InputError
from upslope.maths import bellman
from upslope.worlds import gridworld
from upslope.worlds.gridworld import Cell, Gridworld

SMALL = """
 .  .  +5
 .  #  -1
 S  .   .
"""


def distances(world: Gridworld, target: Cell) -> dict[Cell, int]:
    """Moves from every free cell to ``target`` by breadth-first search, through no other terminal cell and no wall."""
    found, queue = {target: 0}, deque([target])
    while queue:
        row, column = queue.popleft()
        for there in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            inside = 0 <= there[0] < world.rows and 0 <= there[1] < world.columns
            if inside and there not in world.walls and there not in world.terminals and there not in found:
                found[there] = found[(row, column)] + 1
                queue.append(there)
    return found


def best_by_search(world: Gridworld) -> dict[Cell, float]:
    reach = {target: distances(world, target) for target in world.terminals}
    return {
        cell: max(
            (
                points - world.step_cost * reach[target][cell]
                for target, points in world.terminals.items()
                if cell in reach[target]
            ),
            default=-math.inf,
        )
        for cell in world.cells
        if cell not in world.terminals
    }


def random_map(seed: int) -> str:
    draw = random.Random(seed)
    rows, columns = draw.randint(1, 6), draw.randint(2, 6)
    tokens = [draw.choices([".", "#", "+5", "-1", "+2.5"], [12, 4, 1, 1, 1])[0] for _ in range(rows * columns)]
    tokens[draw.randrange(len(tokens))] = "+5"
    return "\n".join(" ".join(tokens[r * columns : (r + 1) * columns]) for r in range(rows))


def parsed_or_skipped(text: str) -> Gridworld:
    try:
        return gridworld.parse(text)
    except InputError:  # no free cell, or one that no move leaves
        assume(False)
        raise


def check_against_search(world: Gridworld) -> None:
    values = bellman.optimal_values(world.mdp(), 1.0)
    for cell, expected in best_by_search(world).items():
        assert values[world.index[cell]].item() == expected
    for cell in world.terminals:
        assert values[world.index[cell]].item() == 0


def check_the_rule(world: Gridworld) -> None:
    shown = world.display_values(bellman.optimal_values(world.mdp(), 1.0))
    for cell in world.cells:
        if cell in world.terminals:
            assert shown[world.index[cell]].item() == world.terminals[cell]
            continue
        row, column = cell
        around = ((row - 1, column), (row, column + 1), (row + 1, column), (row, column - 1))
        best = max(shown[world.index[there]].item() for there in around if there in world.index)
        assert shown[world.index[cell]].item() == best - 1


def test_optimal_values_of_the_built_in_map_equal_points_minus_distance() -> None:
    check_against_search(gridworld.parse(gridworld.SIX_BY_SIX))


def test_every_free_cell_of_the_built_in_map_is_its_best_neighbour_minus_1() -> None:
    check_the_rule(gridworld.parse(gridworld.SIX_BY_SIX))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 100_000))
def test_any_map_equals_breadth_first_search_and_obeys_the_rule(seed: int) -> None:
    world = parsed_or_skipped(random_map(seed))
    check_against_search(world)
    check_the_rule(world)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 100_000))
def test_the_greedy_policy_shows_every_best_move_and_earns_the_optimal_value(seed: int) -> None:
    world = parsed_or_skipped(random_map(seed))
    mdp = world.mdp()
    values = bellman.optimal_values(mdp, 1.0)
    policy = bellman.greedy_policy(bellman.action_values(mdp, values, 1.0))
    torch.testing.assert_close(bellman.policy_values(mdp, policy, 1.0), values, atol=1e-10, rtol=0)
    best = best_by_search(world)
    for cell, value in best.items():
        moves = [world.neighbour(cell, action) for action in range(4)]
        good = [there is not None and best.get(there, world.terminals.get(there)) == value + 1 for there in moves]
        good = good if value > -math.inf else [False] * 4
        share = 1 / max(sum(good), 1)
        assert policy[world.index[cell]].tolist() == pytest.approx([share if g else 0.0 for g in good])


def test_the_built_in_map_has_ties_and_a_region_for_each_good_end_and_avoids_the_bad_one() -> None:
    world = gridworld.parse(gridworld.SIX_BY_SIX)
    assert (world.rows, world.columns, len(world.cells)) == (6, 6, 28)
    assert sorted(world.terminals.values()) == [-1, 4, 5] and len(world.starts) == 25
    mdp = world.mdp()
    worth = bellman.action_values(mdp, bellman.optimal_values(mdp, 1.0), 1.0)
    policy = bellman.greedy_policy(worth)
    assert torch.isfinite(worth[~mdp.terminal].amax(1)).all()
    tied = [cell for cell in world.starts if (policy[world.index[cell]] > 0).sum() > 1]
    assert (0, 0) in tied  # the corner between +5 and +4
    state_of = {points: world.index[cell] for cell, points in world.terminals.items()}
    moves = torch.einsum("sa,sat->st", policy, mdp.transition)
    beside_bad = [s for s in range(len(world.cells)) if (mdp.transition[s, :, state_of[-1]] > 0).any()]
    assert len(beside_bad) >= 2 and (moves[:, state_of[-1]] == 0).all()
    for points, least in ((5, 8), (4, 8)):  # cells from which an optimal walk ends there for certain
        ending = [
            bellman.occupancy(mdp, policy, torch.eye(28, dtype=torch.float64)[world.index[cell]], 1.0)[state_of[points]]
            for cell in world.starts
        ]
        assert sum(bool(share > 1 - 1e-9) for share in ending) >= least


def test_a_small_map_by_hand() -> None:
    world = gridworld.parse(SMALL)
    assert (world.rows, world.columns) == (3, 3)
    assert world.cells == ((0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2))
    assert all(world.cells[state] == cell for cell, state in world.index.items()) and len(world.index) == 8
    assert world.walls == {(1, 1)} and world.terminals == {(0, 2): 5.0, (1, 2): -1.0} and world.starts == ((2, 0),)
    assert gridworld.ACTIONS == world.ACTIONS == ("up", "right", "down", "left")
    values = bellman.optimal_values(world.mdp(), 1.0)
    assert values.tolist() == [3, 4, 0, 2, 0, 1, 0, -1]
    assert world.display_values(values).tolist() == [3, 4, 5, 2, -1, 1, 0, -1]
    assert values[world.index[(0, 2)]] == 0  # the values given were not changed


def test_moves_and_rewards_of_a_small_map_by_hand() -> None:
    world = gridworld.parse(SMALL, step_cost=0.5)
    mdp, at = world.mdp(), world.index
    up, right, down, left = range(4)
    assert mdp.available[at[(0, 1)]].tolist() == [False, True, False, True]  # the border above, a wall below
    assert mdp.available[at[(2, 2)]].tolist() == [True, False, False, True]
    assert not mdp.available[at[(0, 2)]].any() and mdp.terminal[at[(0, 2)]] and int(mdp.terminal.sum()) == 2
    assert mdp.transition[at[(0, 1)], right, at[(0, 2)]] == 1 and mdp.reward[at[(0, 1)], right] == 4.5
    assert mdp.transition[at[(2, 2)], up, at[(1, 2)]] == 1 and mdp.reward[at[(2, 2)], up] == -1.5
    assert mdp.transition[at[(0, 0)], down, at[(1, 0)]] == 1 and mdp.reward[at[(0, 0)], down] == -0.5
    assert mdp.transition[at[(2, 1)], left, at[(2, 0)]] == 1
    assert world.neighbour((2, 1), left) == (2, 0) and world.neighbour((0, 0), right) == (0, 1)
    assert world.neighbour((2, 1), up) is None and world.neighbour((2, 1), down) is None  # a wall, the border
    assert all(world.neighbour((0, 2), action) is None for action in range(4))  # an episode ends there
    assert mdp.transition.dtype == mdp.reward.dtype == torch.float64


def test_ties_give_several_arrows() -> None:
    world = gridworld.parse("+1 . +1")
    mdp = world.mdp()
    policy = bellman.greedy_policy(bellman.action_values(mdp, bellman.optimal_values(mdp, 1.0), 1.0))
    assert policy[1].tolist() == [0, 0.5, 0, 0.5]


def test_a_terminal_cell_is_not_walked_through() -> None:
    world = gridworld.parse("+5 -1 . .")
    assert bellman.optimal_values(world.mdp(), 1.0).tolist() == [0, 0, -2, -3]


def test_free_moves_make_every_cell_worth_the_best_points() -> None:
    world = gridworld.parse(SMALL, step_cost=0.0)
    shown = world.display_values(bellman.optimal_values(world.mdp(), 1.0))
    assert [shown[world.index[cell]].item() for cell in world.cells if cell not in world.terminals] == [5] * 6


def test_a_room_without_a_way_out_is_worth_minus_infinity() -> None:
    world = gridworld.parse(". +5 # . .")
    assert bellman.optimal_values(world.mdp(), 1.0).tolist() == [4, 0, -math.inf, -math.inf]


def test_without_an_s_every_free_cell_is_a_start() -> None:
    assert gridworld.parse(". . -1.5").starts == ((0, 0), (0, 1))
    assert gridworld.parse(". S S 2").starts == ((0, 1), (0, 2))


@pytest.mark.parametrize(
    ("text", "where", "found"),
    [
        (". . +5\n. ? .", "map row 2, column 2", "'?'"),
        (". +five", "map row 1, column 2", "'+five'"),
        (". nan", "map row 1, column 2", "'nan'"),
        (". . +5\n\n. .", "map row 2", "found 2 tokens, expected 3"),
        (". .\n. S", "map", "no terminal"),
        ("+5 #\n# -1", "map", "no free cell"),
        ("", "map", "no free cell"),
        (". +5 #\n# # .", "map row 2, column 3", "no move leaves"),
    ],
)
def test_bad_maps_are_named_with_a_fix(text: str, where: str, found: str) -> None:
    with pytest.raises(InputError) as caught:
        gridworld.parse(text)
    assert caught.value.where == where and found in caught.value.problem and caught.value.fix


@pytest.mark.parametrize("step_cost", [-1.0, math.inf, math.nan])
def test_a_step_cost_that_makes_no_sense_is_refused(step_cost: float) -> None:
    with pytest.raises(InputError, match="step_cost"):
        gridworld.parse(". +5", step_cost=step_cost)
