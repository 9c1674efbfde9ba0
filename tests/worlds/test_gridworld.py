"""The text gridworld against breadth-first search, Dijkstra, hand maps, and "cell value = best neighbour - 1"."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from upslope.errors import InputError
from upslope.maths import bellman
from upslope.maths.bellman import Mdp, SparseMdp
from upslope.worlds import gridworld
from upslope.worlds.gridworld import Blocked, Cell, Gridworld

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


def parsed_or_skipped(text: str, slip: float = 0.0, blocked: Blocked = "mask") -> Gridworld:
    try:
        return gridworld.parse(text, slip=slip, blocked=blocked)
    except InputError:  # no free cell
        assume(False)
        raise


def uniform(mdp: Mdp | SparseMdp) -> Tensor:
    available = mdp.available.to(torch.float64)
    return available / available.sum(1, keepdim=True).clamp(min=1)


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
        best = max((shown[world.index[there]].item() for there in around if there in world.index), default=-math.inf)
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


@pytest.mark.parametrize("blocked", ["mask", "bump"])
def test_a_walled_in_cell_keeps_its_four_moves_and_they_stay(blocked: Blocked) -> None:
    world = gridworld.parse(". +5 #\n# # ~3", blocked=blocked)
    mdp, shut = world.mdp(), world.index[(1, 2)]
    assert mdp.available[shut].all() and (mdp.transition[shut, :, shut] == 1).all()
    assert (mdp.reward[shut] == -3).all()
    assert bellman.optimal_values(mdp, 1.0).tolist() == [4, 0, -math.inf]
    assert bellman.optimal_values(mdp, 0.9)[shut].item() == pytest.approx(-3 / (1 - 0.9), abs=1e-9)
    assert torch.isneginf(bellman.policy_values(mdp, uniform(mdp), 1.0)[shut])


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
        (". ~ +5", "map row 1, column 2", "'~'"),
        (". ~-1 +5", "map row 1, column 2", "'~-1'"),
        (". ~3S +5", "map row 1, column 2", "'~3S'"),
        (". S~1e3 +5", "map row 1, column 2", "'S~1e3'"),
        (f". +{'9' * 400}", "map row 1, column 2", "'+999"),
        (f"~{'9' * 400} +5", "map row 1, column 1", "'~999"),
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


@pytest.mark.parametrize("slip", [-0.1, 1.1, math.nan])
def test_a_slip_that_is_no_probability_is_refused(slip: float) -> None:
    with pytest.raises(InputError, match="slip"):
        gridworld.parse(". +5", slip=slip)


def test_an_unknown_blocked_is_refused() -> None:
    with pytest.raises(InputError, match="found 'wall', expected 'mask' or 'bump'"):
        getattr(gridworld.parse, "__wrapped__", gridworld.parse)(". +5", blocked="wall")  # type: ignore[arg-type]


def test_read_parses_a_file_and_names_it_in_errors(tmp_path: Path) -> None:
    good, bad, binary = tmp_path / "good.txt", tmp_path / "bad.txt", tmp_path / "binary.txt"
    good.write_text(SMALL)
    world = gridworld.read(good, step_cost=2.0, slip=0.25, blocked="bump")
    assert world.text == gridworld.parse(SMALL).text
    assert (world.step_cost, world.slip, world.blocked) == (2.0, 0.25, "bump")
    assert gridworld.read(str(good)).step_cost == 1.0
    bad.write_text(". x +5")
    binary.write_bytes(b"\xff\xfe\x00.")
    for path, said in (
        (bad, f"{bad}, map row 1, column 2: found 'x'"),
        (binary, f"{binary}: the map cannot be read: not UTF-8 text"),
        (tmp_path / "none.txt", "none.txt: the map cannot be read: No such file"),
        (tmp_path, "the map cannot be read: Is a directory"),
    ):
        with pytest.raises(InputError) as caught:
            gridworld.read(path)
        assert said in str(caught.value)


# ----------------------------------------------------------------------------------------------------- slip by hand
AIMA = """
 .  .  .  +1
 .  #  .  -1
 .  .  .   .
"""


def test_a_slippery_move_by_hand() -> None:
    """In 1 x 2 cells the only move hits with 0.8 and else stays: V = -1 + 0.8 * 5 + 0.2 V, so V = 3.75."""
    world = gridworld.parse(". +5", slip=0.2)
    mdp = world.mdp()
    assert mdp.available[0].tolist() == [False, True, False, False]
    assert mdp.transition[0, 1].tolist() == pytest.approx([0.2, 0.8]) and mdp.reward[0, 1].item() == pytest.approx(3)
    assert bellman.optimal_values(mdp, 1.0).tolist() == pytest.approx([3.75, 0])


def test_the_sides_of_a_slippery_move_are_at_right_angles() -> None:
    world = gridworld.parse(SMALL, slip=0.5)
    at, mdp = world.index, world.mdp()
    up, right = 0, 1
    assert world.outcomes((2, 1), right) == ((0.5, (2, 2)), (0.25, (2, 1)), (0.25, (2, 1)))  # a wall, the border
    assert world.outcomes((2, 2), up) == ((0.5, (1, 2)), (0.25, (2, 1)), (0.25, (2, 2)))  # left, and the border right
    assert mdp.transition[at[(2, 2)], up].tolist() == [0, 0, 0, 0, 0.5, 0, 0.25, 0.25]
    assert mdp.reward[at[(2, 2)], up] == -1 - 0.5
    assert world.outcomes((0, 1), right)[0] == (0.5, (0, 2)) and mdp.reward[at[(0, 1)], right] == -1 + 0.5 * 5
    assert world.outcomes((0, 2), right) == ()


@pytest.mark.parametrize("blocked", ["mask", "bump"])
def test_the_4x3_world_of_russell_and_norvig_as_a_map(blocked: Blocked) -> None:
    """Artificial Intelligence: A Modern Approach, figure 17.3 (their R(s) is -0.04 in every cell but the two ends).

    They collect R(s) in each state stood in, the last one too, and so U(end) = its points. We charge the move out of a
    cell and pay the points on entering: the same sum, so that points are their +1 and -1 and step_cost their 0.04.
    """
    world = gridworld.parse(AIMA, step_cost=0.04, slip=0.2, blocked=blocked)
    shown = world.display_values(bellman.optimal_values(world.sparse_mdp(), 1.0))
    printed = [0.812, 0.868, 0.918, 1, 0.762, 0.660, -1, 0.705, 0.655, 0.611, 0.388]
    assert shown.tolist() == pytest.approx(printed, abs=5.1e-4)


def test_a_slippery_edge_is_kept_away_from() -> None:
    text = ". . . . .\n. . . . .\nS -50 -50 -50 +5"
    ways = []
    for slip in (0.0, 0.3):
        world = gridworld.parse(text, slip=slip)
        mdp = world.mdp()
        worth = bellman.action_values(mdp, bellman.optimal_values(mdp, 1.0), 1.0)
        visits = bellman.occupancy(mdp, bellman.greedy_policy(worth), world.start_distribution(), 1.0)
        ways.append([visits[world.index[(row, 2)]].item() for row in (0, 1)])
    assert ways[0] == [0, 1]  # along the edge
    assert ways[1][0] > 1 and ways[1][1] < 0.5  # one row away from it


# --------------------------------------------------------------------------------------------------- costs, walls, text
def with_costs(seed: int) -> str:
    """A random map with costs in quarters, so that sums are exact."""
    draw = random.Random(seed)
    rows = [line.split() for line in random_map(seed).splitlines()]
    for line in rows:
        for i, token in enumerate(line):
            if token == ".":
                cost = draw.choice([0, 0.25, 1, 2.75, 8])
                line[i] = draw.choice([".", ".", "S", f"~{cost:g}", f"S~{cost:g}"])
    return "\n".join(" ".join(line) for line in rows)


def best_by_dijkstra(world: Gridworld) -> dict[Cell, float]:
    """max over ends of points minus the cheapest way there, which pays for each cell that it leaves."""
    queue = [(-points, cell) for cell, points in world.terminals.items()]
    heapq.heapify(queue)
    found: dict[Cell, float] = {}
    while queue:
        loss, (row, column) = heapq.heappop(queue)
        if (row, column) in found:
            continue
        found[row, column] = -loss
        for there in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            inside = 0 <= there[0] < world.rows and 0 <= there[1] < world.columns
            if inside and there not in world.walls and there not in world.terminals:
                heapq.heappush(queue, (loss + world.costs.get(there, world.step_cost), there))
    return {cell: found.get(cell, -math.inf) for cell in world.cells if cell not in world.terminals}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 100_000), blocked=st.sampled_from(["mask", "bump"]))
def test_any_map_with_costs_equals_dijkstra(seed: int, blocked: Blocked) -> None:
    world = parsed_or_skipped(with_costs(seed), blocked=blocked)
    for mdp in (world.mdp(), world.sparse_mdp()):
        values = bellman.optimal_values(mdp, 1.0)
        for cell, expected in best_by_dijkstra(world).items():
            assert values[world.index[cell]].item() == expected


def test_a_cell_with_a_cost_by_hand() -> None:
    world = gridworld.parse("S~3 . ~0.5 +5\n  .  .  .   .", step_cost=2.0)
    mdp = world.mdp()
    assert world.costs == {(0, 0): 3.0, (0, 2): 0.5} and world.starts == ((0, 0),)
    assert mdp.reward[0][mdp.available[0]].tolist() == [-3, -3] and mdp.reward[2, 1] == 4.5
    assert bellman.optimal_values(mdp, 1.0)[:3].tolist() == [-0.5, 2.5, 4.5]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 100_000))
def test_bumping_changes_no_optimal_value_where_moves_are_sure(seed: int) -> None:
    mask, bump = (parsed_or_skipped(with_costs(seed), blocked=blocked).mdp() for blocked in ("mask", "bump"))  # type: ignore[arg-type]
    assert torch.equal(bellman.optimal_values(mask, 1.0), bellman.optimal_values(bump, 1.0))
    assert (bump.available == ~bump.terminal.unsqueeze(1)).all()


def test_bumping_costs_a_policy_that_does_not_look() -> None:
    """From one cell beside the end: masked, the only move ends. Bumping, 3 of 4 moves stay: V = 5 - 1 / (1/4)."""
    mask, bump = (gridworld.parse(". +5", blocked=blocked).mdp() for blocked in ("mask", "bump"))  # type: ignore[arg-type]
    assert bellman.policy_values(mask, uniform(mask), 1.0).tolist() == [4, 0]
    assert bellman.policy_values(bump, uniform(bump), 1.0).tolist() == pytest.approx([1, 0])


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 100_000),
    slip=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    blocked=st.sampled_from(["mask", "bump"]),
    discount=st.sampled_from([0.9, 1.0]),
)
def test_a_grid_solves_alike_as_lists_and_as_arrays(seed: int, slip: float, blocked: Blocked, discount: float) -> None:
    world = parsed_or_skipped(with_costs(seed), slip, blocked)
    sparse, dense = world.sparse_mdp(), world.mdp()
    best = bellman.optimal_values(dense, discount)
    torch.testing.assert_close(bellman.optimal_values(sparse, discount), best, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(bellman.policy_iteration(sparse, discount)[0], best, atol=1e-8, rtol=1e-8)
    values = bellman.policy_values(dense, uniform(dense), discount)
    torch.testing.assert_close(bellman.policy_values(sparse, uniform(sparse), discount), values, atol=1e-8, rtol=1e-9)
    if discount == 1.0:
        reachable = best_by_dijkstra(world)
        assert all((value > -math.inf) or torch.isneginf(best[world.index[c]]) for c, value in reachable.items())


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 100_000), scale=st.sampled_from([1.0, 1e-7, 0.1, 1e9, 12345.678]))
def test_text_is_read_back_as_the_same_world(seed: int, scale: float) -> None:
    draw = random.Random(seed)
    tokens = with_costs(seed).replace("+2.5", gridworld.plain_number(scale * draw.random(), "+"))
    world = parsed_or_skipped(tokens)
    again = gridworld.parse(world.text)
    for field in ("rows", "columns", "cells", "index", "walls", "terminals", "costs", "starts", "starts_given"):
        assert getattr(again, field) == getattr(world, field), field
    assert again.text == world.text
    assert len({len(line) for line in world.text.splitlines()}) == 1  # columns aligned


def test_text_by_hand() -> None:
    assert gridworld.parse("S~2.50 # .\n-1.0 +10 ~03").text == "S~2.5     #     .\n   -1   +10    ~3"
    assert gridworld.parse(". 5").text == " . +5" and gridworld.parse(". -0.00000012").text.endswith(" -0.00000012")
