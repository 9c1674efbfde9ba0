"""Action values as triangles, the error map, value iteration as a strip: every number shown is the one given."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.views import grid_records as eyes
from upslope.errors import InputError
from upslope.maths import bellman
from upslope.views import grid_canvas as canvas
from upslope.views.grid_map import STEPS
from upslope.views.grid_values import action_values_figure, chosen_sweeps, error_figure, sweeps_figure
from upslope.worlds.gridworld import Gridworld, parse

Move = tuple[tuple[int, int], str]


def action_values(world: Gridworld, discount: float = 1.0) -> Tensor:
    mdp = world.mdp()
    return bellman.action_values(mdp, bellman.optimal_values(mdp, discount), discount)


def move_at(x: float, y: float) -> Move:
    """The cell of a point, and the move whose triangle it lies in."""
    cell = (math.floor(y), math.floor(x))
    right, down = x - cell[1] - 0.5, y - cell[0] - 0.5
    if abs(right) > abs(down):
        return cell, "right" if right > 0 else "left"
    return cell, "down" if down > 0 else "up"


def moves(world: Gridworld) -> dict[Move, bool]:
    """Every arrow of every free cell: does it exist?"""
    free = [cell for cell in world.cells if cell not in world.terminals]
    return {(cell, name): world.exists(cell, action) for cell in free for action, name in enumerate(world.ACTIONS)}


# -------------------------------------------------------------------------------------------------------- action values
@pytest.mark.parametrize("text", [eyes.SMALL, eyes.MARKED, eyes.LOST])
def test_each_triangle_writes_and_colours_the_value_of_its_move_and_missing_moves_are_hatched(text: str) -> None:
    world = parse(text)
    table = action_values(world)
    axes = action_values_figure(world, table).axes[0]
    given_values = {
        (cell, name): float(table[world.index[cell], world.ACTIONS.index(name)])
        for (cell, name), exists in moves(world).items()
        if exists
    }
    decimals = canvas.decimals_of(given_values.values())
    written = {move_at(*label.get_position()): label.get_text() for label in eyes.named(axes, "number")}
    assert written == {move: canvas.number_text(value, decimals) for move, value in given_values.items()}
    (triangles,) = eyes.named(axes, "moves")
    scale = canvas.scale_of([*given_values.values(), *world.terminals.values()])
    assert len(eyes.middles(triangles)) == len(given_values)
    for middle, color in zip(eyes.middles(triangles), triangles.get_facecolor(), strict=True):
        assert tuple(color[:3]) == pytest.approx(canvas.color_of(given_values[move_at(*middle)], scale))
    (missing,) = eyes.named(axes, "missing")
    assert {move_at(*middle) for middle in eyes.middles(missing)} == {
        m for m, exists in moves(world).items() if not exists
    }
    assert missing.get_hatch() and not triangles.get_hatch()


def test_the_best_moves_are_outlined_ties_together() -> None:
    world = eyes.SIZES["6x6"]
    table = action_values(world)
    (outlines,) = eyes.named(action_values_figure(world, table).axes[0], "best")
    greedy = bellman.greedy_policy(table) > 0
    expected = {(cell, name) for cell, name in moves(world) if greedy[world.index[cell], world.ACTIONS.index(name)]}
    found = [move_at(*middle) for middle in eyes.middles(outlines)]
    assert set(found) == expected and len(found) == len(expected)
    assert len([move for move in found if move[0] == (0, 0)]) == 2  # the tie at the top left


def test_only_moves_within_a_millionth_of_the_best_are_ties() -> None:
    world = parse(". . +1\n. . .\n")
    table = torch.zeros(6, 4, dtype=torch.float64)
    table[world.index[1, 1]] = torch.tensor([2.0, 2.0 - 1e-6, 1.9, 1.9999], dtype=torch.float64)
    (outlines,) = eyes.named(action_values_figure(world, table).axes[0], "best")
    found = [name for cell, name in (move_at(*middle) for middle in eyes.middles(outlines)) if cell == (1, 1)]
    assert sorted(found) == ["right", "up"]


def test_moves_that_never_end_are_marked_and_none_of_them_is_best() -> None:
    world = parse(". +1\n# #\n. .\n")
    axes, *_ = (figure := action_values_figure(world, action_values(world))).axes
    below = [label.get_text() for label in eyes.named(axes, "number") if label.get_position()[1] > 2]
    assert below == ["-∞", "-∞"] and "-∞: from here it may never end" in eyes.notes_of(figure)
    assert {move_at(*middle) for middle in eyes.middles(eyes.named(axes, "best")[0])} == {((0, 0), "right")}


def test_bumping_worlds_have_all_four_moves() -> None:
    world = parse(eyes.SMALL, blocked="bump")
    axes = action_values_figure(world, action_values(world)).axes[0]
    assert len(eyes.named(axes, "number")) == 4 * 6 and eyes.middles(eyes.named(axes, "missing")[0]) == []


def test_one_cell_is_enlarged_with_its_own_numbers() -> None:
    world = eyes.SIZES["6x6"]
    table = action_values(world)
    figure = action_values_figure(world, table)
    _, lens = figure.axes
    (column, _), (_, row) = lens.get_xlim(), lens.get_ylim()
    words = {move_at(*text.get_position()): text.get_text() for text in eyes.named(lens, "lens")[::2]}
    for (cell, name), text in words.items():
        assert cell == (row, column) and text == f"{float(table[world.index[cell], world.ACTIONS.index(name)]):.0f}"
    assert len(words) == sum(world.exists((int(row), int(column)), action) for action in range(4)) == 3
    assert any(f"row {int(row) + 1}, column {int(column) + 1}" == text.get_text() for text in figure.texts)


@pytest.mark.parametrize("size", eyes.SIZES)
def test_action_values_of_all_sizes_are_readable(size: str) -> None:
    world = eyes.SIZES[size]
    figure = action_values_figure(world, action_values(world))
    eyes.assert_readable(figure)
    assert ("numbers left out" in eyes.notes_of(figure)) == (size == "30x30")
    assert bool(eyes.named(figure.axes[0], "number")) == (size != "30x30")


def test_action_values_of_a_wrong_shape_are_an_input_error() -> None:
    with pytest.raises(InputError, match=r"action values \(8, 3\) does not fit"):
        action_values_figure(parse(eyes.SMALL), torch.zeros(8, 3))


# ---------------------------------------------------------------------------------------------------------------- error
def test_the_error_map_shows_what_the_network_says_and_its_error_and_sums_it_up() -> None:
    world = parse(eyes.SMALL)
    exact = bellman.policy_values(world.mdp(), eyes.soft_policy(world, 1.0), 1.0)
    error = torch.tensor([0.5, -0.25, 9.0, 0.0, 1.0, 9.0, -1.0, 0.25], dtype=torch.float64)  # 9: terminals, not counted
    figure = error_figure(world, exact + error, exact, "PPO's critic")
    said, wrong = figure.axes
    assert eyes.numbers_of(wrong) == {
        (0, 0): "+0.50", (0, 1): "-0.25", (1, 0): "0.00", (1, 2): "+1.00", (2, 1): "-1.00", (2, 2): "+0.25",
    }  # fmt: skip
    assert eyes.numbers_of(said)[0, 0] == f"{float(exact[0]) + 0.5:.2f}"
    rmse = math.sqrt((0.25 + 0.0625 + 0 + 1 + 1 + 0.0625) / 6)
    assert eyes.title_of(figure) == f"PPO's critic: rmse {rmse:.3f}, worst 1.000 points"
    colors = eyes.cell_colors(wrong)
    assert min(colors[world.index[1, 0]]) > 0.97  # no error is white
    assert tuple(colors[world.index[1, 2]][:3]) == canvas.color_of(1.0, canvas.scale_of([1.0]))  # the most, so darkest
    assert colors[world.index[1, 2]][2] > colors[world.index[1, 2]][0]  # too much is blue
    assert colors[world.index[2, 1]][0] > colors[world.index[2, 1]][2]  # too little is orange


def test_the_error_is_infinite_where_the_policy_never_ends() -> None:
    world = parse(eyes.LOST)
    exact = bellman.policy_values(world.mdp(), eyes.soft_policy(world, 1.0), 1.0)
    figure = error_figure(world, torch.zeros_like(exact), exact)
    assert eyes.numbers_of(figure.axes[1])[2, 0] == "∞" and "rmse ∞, worst ∞" in eyes.title_of(figure)
    assert "its value is -∞" in eyes.notes_of(figure)


@pytest.mark.parametrize("size", eyes.SIZES)
def test_error_maps_of_all_sizes_are_readable(size: str) -> None:
    world = eyes.SIZES[size]
    exact = bellman.policy_values(world.mdp(), eyes.soft_policy(world, 1.0), 1.0)
    wave = torch.sin(torch.arange(len(exact), dtype=torch.float64))
    figure = error_figure(world, exact + wave, exact)
    eyes.assert_readable(figure)
    bars = [bar for axes in figure.axes for bar in axes.child_axes]
    assert len(bars) == (2 if size == "30x30" else 0)
    if bars:  # the ends of the error's colours
        assert [tick.get_text() for tick in bars[1].get_xticklabels()] == ["-1", "0 points", "+1"]


# --------------------------------------------------------------------------------------------------------------- sweeps
def test_the_strip_shows_every_sweep_says_what_changed_and_how_many_there_were() -> None:
    world = parse(eyes.SMALL)
    sweeps = bellman.value_iteration_sweeps(world.mdp(), 1.0)
    figure = sweeps_figure(world, sweeps)
    assert len(figure.axes) == len(sweeps) <= 8
    assert eyes.title_of(figure) == f"Value iteration, sweep by sweep: {len(sweeps) - 1} sweeps"
    for number, (axes, sweep) in enumerate(zip(figure.axes, sweeps, strict=True)):
        free = [cell for cell in world.cells if cell not in world.terminals]
        expected = {cell: canvas.number_text(float(sweep[world.index[cell]]), 0) for cell in free}
        assert eyes.numbers_of(axes) == expected
        before = sweeps[max(number - 1, 0)]
        changed = {cell for cell in free if sweep[world.index[cell]] != before[world.index[cell]]}
        bold = [text for text in eyes.named(axes, "number") if text.get_fontweight() == "bold"]
        assert {(int(text.get_position()[1]), int(text.get_position()[0])) for text in bold} == changed
        said = axes.get_title(loc="left")
        assert said == ("start" if number == 0 else f"sweep {number}: {len(changed) or 'none'} changed")
    assert eyes.numbers_of(figure.axes[0])[0, 0] == "-∞" and "-∞: no end is known from here yet" in eyes.notes_of(
        figure
    )


def test_a_long_iteration_is_thinned_and_says_so() -> None:
    world = parse(eyes.SMALL, slip=0.2)
    sweeps = bellman.value_iteration_sweeps(world.mdp(), 0.99)
    figure = sweeps_figure(world, sweeps)
    last = len(sweeps) - 1
    assert last > 8 and len(figure.axes) in (6, 7, 8)
    assert figure.axes[-1].get_title(loc="left").startswith(f"sweep {last}:")
    assert f"{len(figure.axes)} of {last + 1} shown" in eyes.notes_of(figure)
    assert eyes.numbers_of(figure.axes[-1])[0, 1] == f"{float(sweeps[-1][world.index[0, 1]]):.2f}"


@given(st.integers(0, 5000))
def test_chosen_sweeps_begin_with_the_first_two_end_with_the_last_and_are_at_most_eight(last: int) -> None:
    chosen = chosen_sweeps(last)
    assert chosen == sorted(set(chosen)) and len(chosen) <= 8
    assert chosen[0] == 0 and chosen[-1] == last and (last == 0 or chosen[1] == 1)
    assert len(chosen) >= min(last + 1, 6)


@pytest.mark.parametrize("size", eyes.SIZES)
def test_strips_of_all_sizes_are_readable(size: str) -> None:
    world = eyes.SIZES[size]
    figure = sweeps_figure(world, bellman.value_iteration_sweeps(world.mdp(), 1.0))
    eyes.assert_readable(figure)


@pytest.mark.parametrize("picture", ["actions", "error", "sweeps"])
def test_equal_numbers_give_equal_bytes(picture: str) -> None:
    world = parse(eyes.SMALL)
    mdp = world.mdp()
    values = bellman.optimal_values(mdp, 1.0)

    def drawn() -> bytes:
        if picture == "actions":
            return canvas.png_bytes(action_values_figure(world, bellman.action_values(mdp, values, 1.0)))
        if picture == "error":
            return canvas.png_bytes(error_figure(world, values + 0.5, values))
        return canvas.png_bytes(sweeps_figure(world, bellman.value_iteration_sweeps(mdp, 1.0)))

    assert drawn() == drawn()


def test_triangles_point_the_way_of_their_moves() -> None:
    """The eyes of this file and the steps of the pictures agree: up is a smaller row."""
    assert {name: move_at(1.5 + 0.3 * right, 2.5 + 0.3 * down) for name, (down, right) in STEPS.items()} == {
        name: ((2, 1), name) for name in STEPS
    }
