"""Maps with names and maps by seed: each can be solved, from every free cell, as an independent search says."""

from __future__ import annotations

import math
import time
from collections import deque
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope.errors import InputError
from upslope.maths import bellman
from upslope.worlds import grid_maps, gridworld
from upslope.worlds.gridworld import Cell, Gridworld

FOLDER = Path(__file__).resolve().parents[2] / "worlds"


def beside(cell: Cell) -> list[Cell]:
    row, column = cell
    return [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]


def reached(world: Gridworld, start: Cell) -> set[Cell]:
    """Cells that one can walk to from ``start``, ends included, through no end."""
    found, queue = {start}, deque([start])
    while queue:
        cell = queue.popleft()
        if cell in world.terminals:
            continue
        for there in beside(cell):
            if there in world.index and there not in found:
                found.add(there)
                queue.append(there)
    return found


def distances(world: Gridworld, end: Cell) -> dict[Cell, int]:
    found, queue = {end: 0}, deque([end])
    while queue:
        cell = queue.popleft()
        for there in beside(cell):
            if there in world.index and there not in world.terminals and there not in found:
                found[there] = found[cell] + 1
                queue.append(there)
    return found


def check_structure(world: Gridworld) -> None:
    """From one free cell every cell can be walked to, so from any; no two ends touch; the best end is +5."""
    assert reached(world, world.starts[0]) == set(world.cells)
    for cell in world.terminals:
        near = {(cell[0] + down, cell[1] + right) for down in (-1, 0, 1) for right in (-1, 0, 1)} - {cell}
        assert not near & set(world.terminals)
    assert max(world.terminals.values()) == 5 and list(world.terminals.values()).count(5.0) == 1


# -------------------------------------------------------------------------------------------------------------- by seed
@pytest.mark.parametrize("side", range(6, 13))
def test_twenty_maps_of_a_size_can_be_solved_and_differ(side: int) -> None:
    texts = {grid_maps.generate(side, side, seed) for seed in range(20)}
    assert len(texts) == 20
    shapes = set()
    for text in texts:
        world = gridworld.parse(text)
        assert (world.rows, world.columns) == (side, side)
        check_structure(world)
        assert sorted(world.terminals.values())[0] == -1 and sum(p > 0 for p in world.terminals.values()) >= 2
        assert 0.05 * side**2 <= len(world.walls) <= round(0.2 * side**2)
        values = bellman.optimal_values(world.sparse_mdp(), 1.0)
        J = world.start_distribution() @ values
        assert math.isfinite(J) and J > -10
        ends = {end: distances(world, end) for end in world.terminals}
        for cell in world.starts:
            expected = max(points - ends[end][cell] for end, points in world.terminals.items() if cell in ends[end])
            assert values[world.index[cell]].item() == expected
        shapes.add((round(J.item(), 9), len(world.walls)))
    assert len(shapes) >= 15  # different problems, not one map turned round


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(3, 25),
    columns=st.integers(3, 25),
    seed=st.integers(0, 10**9),
    walls=st.sampled_from([0.0, 0.2, 0.4, 0.6]),
)
def test_any_size_and_share_of_walls_leaves_every_cell_a_way(rows: int, columns: int, seed: int, walls: float) -> None:
    world = gridworld.parse(grid_maps.generate(rows, columns, seed, walls))
    assert (world.rows, world.columns) == (rows, columns)
    assert len(world.walls) <= round(walls * rows * columns)
    check_structure(world)


def test_the_same_arguments_give_the_same_map_and_others_another() -> None:
    assert grid_maps.generate(9, 11, 4) == grid_maps.generate(9, 11, 4)
    others = [grid_maps.generate(9, 11, 5), grid_maps.generate(9, 11, 4, walls=0.3), grid_maps.generate(11, 9, 4)]
    assert len({grid_maps.generate(9, 11, 4), *others}) == 4
    # A pinned map: runs that name a size and a seed must stay the same.
    assert grid_maps.generate(3, 4, 0) == "+5  .  .  .\n #  .  #  .\n-1  .  . +4"


def test_points_that_are_given_are_all_placed() -> None:
    world = gridworld.parse(grid_maps.generate(8, 8, 0, terminals=[10, 2.5, -3, -3, 0.00001]))
    assert sorted(world.terminals.values()) == [-3, -3, 0.00001, 2.5, 10]
    assert reached(world, world.starts[0]) == set(world.cells)


def test_maps_have_rooms_as_well_as_pillars() -> None:
    """Some line of the map holds a wall at least 4 cells long; some wall stands alone."""
    for seed in range(5):
        world = gridworld.parse(grid_maps.generate(20, 20, seed))
        rows = ["".join("#" if (r, c) in world.walls else "." for c in range(20)) for r in range(20)]
        columns = ["".join(line[c] for line in rows) for c in range(20)]
        assert any("####" in line for line in rows + columns)
        assert any(not world.walls & set(beside(cell)) for cell in world.walls)


def test_large_maps_are_quick_and_leave_no_cell_far_from_an_end() -> None:
    began = time.process_time()
    text = grid_maps.generate(100, 100, 0)
    assert time.process_time() - began < 2  # 0.1 seconds
    world = gridworld.parse(text)
    assert len(world.cells) > 7900
    check_structure(world)
    values = bellman.optimal_values(world.sparse_mdp(), 1.0)
    assert values.min() > -40 and (values <= 4).all()
    assert len(grid_maps.generate(200, 200, 0).split()) == 40_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"rows": 2}, "rows: found 2, expected 3 to 200"),
        ({"columns": 201}, "columns: found 201"),
        ({"walls": 0.7}, "walls: found 0.7"),
        ({"walls": math.nan}, "walls: found nan"),
        ({"terminals": []}, "terminals: found none"),
        ({"terminals": [1, math.inf]}, "terminals: found points that are not finite"),
        ({"terminals": [1] * 10}, "terminals: found 10 for 5 x 5 cells, of which"),
    ],
)
def test_what_cannot_be_had_is_refused(arguments: dict, said: str) -> None:
    with pytest.raises(InputError) as caught:
        grid_maps.generate(**{"rows": 5, "columns": 5, "seed": 0, **arguments})
    assert said in str(caught.value)


# -------------------------------------------------------------------------------------------------------------- by name
def test_the_folder_holds_the_named_maps() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(grid_maps.NAMED) - {"six-by-six"}
    for path in FOLDER.glob("*.txt"):
        assert path.read_text("utf-8") == grid_maps.named(path.stem) + "\n"
        assert gridworld.read(path).text == gridworld.parse(grid_maps.named(path.stem)).text


@pytest.mark.parametrize("name", sorted(grid_maps.NAMED))
@pytest.mark.parametrize("slip", [0.0, 0.1])
def test_every_named_map_can_be_solved_from_every_cell(name: str, slip: float) -> None:
    world = gridworld.parse(grid_maps.named(name), slip=slip)
    values = bellman.optimal_values(world.mdp(), 1.0)
    assert values.isfinite().all()


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(InputError, match="found 'swamp', expected one of six-by-six, cliff, rooms, mud, maze"):
        grid_maps.named("swamp")


def steps_of(world: Gridworld) -> list[Cell]:
    """The walk of the first best move of each cell, from the start, when no move slips."""
    mdp = world.mdp()
    moves = bellman.action_values(mdp, bellman.optimal_values(mdp, 1.0), 1.0).argmax(1)
    walk = [world.starts[0]]
    while walk[-1] not in world.terminals:
        walk.append(world.neighbour(walk[-1], int(moves[world.index[walk[-1]]])) or walk[-1])
    return walk


def test_the_cliff_is_walked_along_and_with_a_slip_avoided() -> None:
    """13 moves along the edge, as in the textbook's -13, to +20; with a slip the best policy climbs to the top row."""
    sure = gridworld.parse(grid_maps.named("cliff"))
    values = bellman.optimal_values(sure.mdp(), 1.0)
    assert values[sure.index[sure.starts[0]]].item() == 20 - 13
    walk = steps_of(sure)
    assert len(walk) == 14 and sum(cell[0] == 2 for cell in walk) == 12
    slippery = gridworld.parse(grid_maps.named("cliff"), slip=0.1)
    mdp = slippery.mdp()
    worth = bellman.action_values(mdp, bellman.optimal_values(mdp, 1.0), 1.0)
    visits = bellman.occupancy(mdp, bellman.greedy_policy(worth), slippery.start_distribution(), 1.0)
    by_row = [sum(visits[slippery.index[(row, column)]].item() for column in range(1, 11)) for row in range(3)]
    assert by_row[0] + by_row[1] > 10 * by_row[2]


def test_the_mud_is_walked_round() -> None:
    world = gridworld.parse(grid_maps.named("mud"))
    walk = steps_of(world)
    assert not set(walk) & set(world.costs) and len(walk) - 1 > 7  # the straight way has 7 moves
    unpriced = gridworld.parse("\n".join(" ".join("." if t[0] == "~" else t for t in line.split())
                                         for line in grid_maps.named("mud").splitlines()))  # fmt: skip
    assert len(steps_of(unpriced)) - 1 == 7


def test_each_room_has_its_best_end() -> None:
    world = gridworld.parse(grid_maps.named("rooms"))
    mdp = world.mdp()
    policy = bellman.greedy_policy(bellman.action_values(mdp, bellman.optimal_values(mdp, 1.0), 1.0))
    visits = bellman.occupancy(mdp, policy, world.start_distribution(), 1.0)
    ends = {points: visits[world.index[cell]].item() for cell, points in world.terminals.items()}
    assert ends[10] > 0.4 and ends[3] > 0.2 and ends[-1] < 0.05  # only its corner is lost


def test_the_maze_has_one_start_and_dead_ends() -> None:
    world = gridworld.parse(grid_maps.named("maze"))
    assert world.starts == ((0, 0),) and len(steps_of(world)) > 30
    dead = [cell for cell in world.cells if sum(there in world.index for there in beside(cell)) == 1]
    assert len(dead) >= 5
