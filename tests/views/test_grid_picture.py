"""The picture of values and policy, looked at through its artists and pixels, and what all pictures share."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from tests.views import grid_records as eyes
from upslope.errors import InputError
from upslope.maths import bellman
from upslope.views import grid_canvas as canvas
from upslope.views.grid import grid_figure
from upslope.views.grid_map import LEAST_DRAWN
from upslope.worlds.gridworld import Gridworld, parse


def world_and_policy() -> tuple[Gridworld, Tensor, Tensor]:
    """The small map with its optimal values (cost 1, no discount), and a policy with ties at the top left."""
    world = parse(eyes.SMALL)
    shown = {(0, 0): 3.0, (0, 1): 4.0, (0, 2): 5.0, (1, 0): 2.0, (1, 2): 4.0, (2, 0): -1.0, (2, 1): 2.0, (2, 2): 3.0}
    moves = {(0, 0): "right down", (0, 1): "right", (1, 0): "up", (1, 2): "up", (2, 1): "right", (2, 2): "up"}
    values = torch.tensor([shown[cell] for cell in world.cells], dtype=torch.float64)
    policy = torch.zeros(len(world.cells), 4, dtype=torch.float64)
    for cell, names in moves.items():
        for name in names.split():
            policy[world.index[cell], world.ACTIONS.index(name)] = 1 / len(names.split())
    return world, values, policy


def solved(world: Gridworld) -> tuple[Tensor, Tensor]:
    mdp = world.mdp()
    values = bellman.optimal_values(mdp, 1.0)
    return values, bellman.greedy_policy(bellman.action_values(mdp, values, 1.0))


# --------------------------------------------------------------------------------------------------------------- values
def test_the_left_panel_writes_each_value_and_both_panels_the_points_of_terminals() -> None:
    left, right = grid_figure(*world_and_policy()).axes
    assert eyes.numbers_of(left) == {
        (0, 0): "3", (0, 1): "4", (1, 0): "2", (1, 2): "4", (2, 1): "2", (2, 2): "3",
    }  # fmt: skip
    for axes in (left, right):
        assert eyes.numbers_of(axes, "terminal") == {(0, 2): "+5", (2, 0): "-1"}
    assert eyes.named(right, "number") == []


def test_terminals_show_their_points_whatever_the_values_say_there() -> None:
    world, values, policy = world_and_policy()
    plain = canvas.png_bytes(grid_figure(world, values, policy))
    values[[world.index[cell] for cell in world.terminals]] = 77.0
    assert canvas.png_bytes(grid_figure(world, values, policy)) == plain


def test_cells_are_coloured_by_value_and_walls_are_grey() -> None:
    world, values, policy = world_and_policy()
    colors = eyes.cell_colors(grid_figure(world, values, policy).axes[0])
    scale = canvas.scale_of(values.tolist())
    for state, value in enumerate(values.tolist()):
        assert tuple(colors[state][:3]) == pytest.approx(canvas.color_of(value, scale))
    assert len(colors) == len(world.cells) + 1 and max(colors[-1][:3]) - min(colors[-1][:3]) < 0.05  # the wall
    assert colors[world.index[0, 2]][2] > colors[world.index[0, 2]][0]  # +5 is blue
    assert colors[world.index[2, 0]][0] > colors[world.index[2, 0]][2]  # -1 is orange


def test_the_scale_is_white_at_zero_and_the_same_on_both_sides() -> None:
    scale = canvas.scale_of([-1.0, 4.0])
    assert min(canvas.color_of(0.0, scale)) > 0.97
    assert (scale.vmin, scale.vmax) == (-4.0, 4.0)
    assert canvas.color_of(9.0, scale) == canvas.color_of(4.0, scale)


def test_a_state_that_never_ends_is_marked_and_explained_and_an_unknown_one_is_not_taken_for_it() -> None:
    world = parse(eyes.LOST)
    values, policy = solved(world)
    figure = grid_figure(world, values, policy)
    assert eyes.numbers_of(figure.axes[0])[2, 0] == "-∞" and eyes.numbers_of(figure.axes[0])[2, 2] == "-∞"
    assert "-∞: from here it may never end" in eyes.notes_of(figure)
    values[world.index[2, 0]] = math.nan
    values[world.index[2, 2]] = -7.0
    figure = grid_figure(world, values, policy)
    assert eyes.numbers_of(figure.axes[0])[2, 0] == "?" and "∞" not in eyes.notes_of(figure)


def test_starts_and_costs_are_marked_in_their_cells_and_explained() -> None:
    world = parse(eyes.MARKED)
    figure = grid_figure(world, *solved(world))
    for axes in figure.axes:
        written = sorted(
            (int(text.get_position()[1]), int(text.get_position()[0]), text.get_text())
            for text in eyes.named(axes, "mark")
        )
        assert written == [(0, 0, "S"), (0, 2, "~3"), (1, 2, "~3"), (2, 0, "S"), (2, 0, "~4")]
    notes = eyes.notes_of(figure)
    assert "S: episodes start here" in notes and "~3: a move from here costs 3" in notes and "~4" in notes


def test_a_map_without_named_starts_or_costs_has_no_marks_and_no_notes() -> None:
    figure = grid_figure(*world_and_policy())
    assert eyes.named(figure, "mark") == [] and eyes.notes_of(figure) == ""


# --------------------------------------------------------------------------------------------------------------- policy
def arrows(figure: Figure) -> dict[tuple[int, int], list[tuple[float, float]]]:
    """The tips (right, down) of the arrows from the middle of each cell of the right panel."""
    found: dict[tuple[int, int], list[tuple[float, float]]] = {}
    (collection,) = eyes.named(figure.axes[1], "arrows")
    for path in collection.get_paths():
        tail, tip = path.vertices[[0, 6]].mean(axis=0), path.vertices[3]
        found.setdefault((int(tail[1]), int(tail[0])), []).append((tip[0] - tail[0], tip[1] - tail[1]))
    return found


def test_arrows_point_along_the_policy_ties_have_several_and_terminals_none() -> None:
    found = arrows(grid_figure(*world_and_policy()))
    directions = {
        cell: sorted((int(x > 0.01) - int(x < -0.01), int(y > 0.01) - int(y < -0.01)) for x, y in ends)
        for cell, ends in found.items()
    }
    assert directions == {
        (0, 0): [(0, 1), (1, 0)], (0, 1): [(1, 0)], (1, 0): [(0, -1)],
        (1, 2): [(0, -1)], (2, 1): [(1, 0)], (2, 2): [(0, -1)],
    }  # fmt: skip


def test_an_arrow_is_longer_and_darker_where_its_action_is_likelier() -> None:
    world, values, policy = world_and_policy()
    policy[0] = torch.tensor([0.0, 0.7, 0.29, LEAST_DRAWN / 2], dtype=torch.float64)
    figure = grid_figure(world, values, policy)
    (right, down) = sorted((abs(x) + abs(y) for x, y in arrows(figure)[0, 0]), reverse=True)
    assert down == pytest.approx(0.19 + 0.25 * 0.29) and right == pytest.approx(0.19 + 0.25 * 0.7)
    strengths = eyes.named(figure.axes[1], "arrows")[0].get_facecolor()[:2, 3]  # of the first cell, likeliest last
    assert strengths[0] < strengths[1] == 1.0


def test_probabilities_that_are_no_numbers_have_no_arrow() -> None:
    world, values, policy = world_and_policy()
    policy[1] = math.nan
    assert (0, 1) not in arrows(grid_figure(world, values, policy))


# --------------------------------------------------------------------------------------------------------------- layout
@pytest.mark.parametrize("size", eyes.SIZES)
def test_maps_of_all_sizes_are_readable(size: str) -> None:
    world = eyes.SIZES[size]
    figure = grid_figure(world, *solved(world))
    eyes.assert_readable(figure)
    assert figure.get_size_inches()[0] * figure.dpi == pytest.approx(1100)
    free = len(world.cells) - len(world.terminals)
    written = len(eyes.named(figure.axes[0], "number"))
    assert written == (0 if size == "30x30" else free)
    assert ("numbers left out" in eyes.notes_of(figure)) == (size == "30x30")
    assert len(eyes.named(figure.axes[0], "terminal")) == len(world.terminals)


def test_marks_become_triangles_where_cells_are_too_small_for_letters() -> None:
    row = "S ~2 " + ". " * 40 + "+1\n"
    world = parse(row + ". " * 43 + "\n" + (". " * 43 + "\n") * 20)
    figure = grid_figure(world, *solved(world))
    assert len(eyes.named(figure.axes[0], "mark")) == 2
    assert not any(hasattr(mark, "get_text") for mark in eyes.named(figure.axes[0], "mark"))
    assert "◤: episodes start here" in eyes.notes_of(figure) and "◣: a move from here has a cost" in eyes.notes_of(
        figure
    )


def test_arrows_are_left_out_and_said_to_be_where_cells_are_too_small() -> None:
    world = eyes.sized(50, 50)
    figure = grid_figure(world, torch.zeros(len(world.cells)), torch.zeros(len(world.cells), 4))
    assert eyes.named(figure, "arrows") == [] and "arrows left out" in eyes.notes_of(figure)


def test_a_wide_grid_puts_its_panels_under_each_other() -> None:
    wide = parse(". . . . . . +1\n")
    above, below = grid_figure(wide, torch.zeros(7), torch.zeros(7, 4)).axes
    assert above.get_position().y0 > below.get_position().y1
    assert above.get_position().x0 == below.get_position().x0


def test_a_long_title_is_made_smaller_not_cut() -> None:
    figure = grid_figure(*world_and_policy(), title="What PPO has learned after very many updates " * 3)
    eyes.assert_readable(figure)


def test_shapes_that_do_not_fit_are_an_input_error() -> None:
    world, values, policy = world_and_policy()
    with pytest.raises(InputError, match=r"values \(7,\) does not fit a map of 8 states"):
        grid_figure(world, values[:-1], policy[:-1])
    with pytest.raises(InputError, match=r"policy \(8, 3\) does not fit .* pass policy \[8, 4\]"):
        grid_figure(world, values, policy[:, :3])


# -------------------------------------------------------------------------------------------------------------- numbers
def test_numbers_are_written_with_the_decimals_they_need() -> None:
    assert [canvas.decimals_of(values) for values in ([1.0, -2.0], [0.5], [0.25], [1 / 3], [200.123], [])] == [
        0, 1, 2, 2, 1, 0,
    ]  # fmt: skip
    assert canvas.number_text(-0.004, 2) == "0.00" and canvas.number_text(0.0, 0, sign=True) == "0"
    assert canvas.number_text(0.5, 1, sign=True) == "+0.5" and canvas.number_text(-0.5, 1, sign=True) == "-0.5"
    assert [canvas.number_text(x, 2) for x in (math.inf, -math.inf, math.nan)] == ["∞", "-∞", "?"]


@given(st.lists(st.floats(-500, 500), min_size=1, max_size=8), st.floats(0.05, 1.5))
def test_a_fitted_number_fits_its_box_and_is_the_value_rounded(values: list[float], width: float) -> None:
    found = canvas.fitted(values, width, 0.3)
    if found is None:
        assert canvas.LEAST * max(canvas.text_width(f"{value:.0f}") for value in values) > 0
        return
    texts, size = found
    assert canvas.LEAST <= size <= canvas.LARGEST
    for text, value in zip(texts, values, strict=True):
        decimals = len(text.partition(".")[2])
        assert canvas.text_width(text) * size <= 72 * width + 1e-9
        assert abs(float(text) - value) <= 0.5 * 10.0**-decimals + 1e-9


def test_no_number_is_written_that_would_be_too_small_to_read() -> None:
    assert canvas.fitted([1.25, -3.0], 0.1, 0.3) is None
    assert canvas.fitted([1.25, -3.0], 1.0, 0.01) is None


def test_the_width_of_a_text_is_what_the_renderer_makes_of_it() -> None:
    figure = Figure(dpi=72)
    for text, bold in (("-20.75 points", False), ("Values and policy", True), ("+4∞", False)):
        artist = figure.text(0, 0, text, fontsize=100, weight="bold" if bold else "normal")
        drawn = artist.get_window_extent(canvas.FigureCanvasAgg(figure).get_renderer()).width
        assert 100 * canvas.text_width(text, bold) == pytest.approx(drawn, rel=0.04)


def test_notes_are_broken_between_notes_first() -> None:
    assert canvas.wrapped(["one", "two"], 5.0) == ["one  ·  two"]
    assert canvas.wrapped(["one note", "another note"], 1.2) == ["one note", "another note"]
    lines = canvas.wrapped(["a long note of many words that fills more than a line"], 1.5)
    assert len(lines) > 1 and " ".join(lines) == "a long note of many words that fills more than a line"


# ---------------------------------------------------------------------------------------------------------------- files
def test_the_file_is_a_png_of_readme_width(tmp_path: Path) -> None:
    path = canvas.save(grid_figure(*world_and_policy(), title="Optimal"), tmp_path / "grid.png")
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width == 1100 and image.height > 300


def test_equal_grids_give_equal_bytes_and_other_values_others() -> None:
    world, values, policy = world_and_policy()
    plain = canvas.png_bytes(grid_figure(world, values, policy))
    assert canvas.png_bytes(grid_figure(world, values, policy)) == plain
    assert canvas.png_bytes(grid_figure(world, values + 1, policy)) != plain


def test_the_data_address_and_the_file_hold_the_same_png(tmp_path: Path) -> None:
    figure = grid_figure(*world_and_policy())
    head, data = canvas.data_uri(figure).split(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data) == canvas.save(figure, tmp_path / "grid.png").read_bytes()
    assert Image.open(io.BytesIO(base64.b64decode(data))).width == 1100


def test_a_missing_folder_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        canvas.save(grid_figure(*world_and_policy()), tmp_path / "no" / "grid.png")
