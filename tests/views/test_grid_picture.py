"""The picture of a grid, looked at through its pixels and artists, and the grid as text."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
import torch
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation
from PIL import Image
from rich.console import Console
from torch import Tensor

from upslope.errors import InputError
from upslope.views.grid import _color, _scale, draw_grid, grid_data_uri, grid_figure, grid_png, grid_text
from upslope.worlds.gridworld import Gridworld, parse

MAP = ". . +5\n. # .\n-1 . .\n"


def world_and_policy() -> tuple[Gridworld, Tensor, Tensor]:
    """The map with its optimal values (cost 1, no discount), and a policy with ties at the top left."""
    world = parse(MAP)
    shown = {(0, 0): 3.0, (0, 1): 4.0, (0, 2): 5.0, (1, 0): 2.0, (1, 2): 4.0, (2, 0): -1.0, (2, 1): 2.0, (2, 2): 3.0}
    moves = {(0, 0): "right down", (0, 1): "right", (1, 0): "up", (1, 2): "up", (2, 1): "right", (2, 2): "up"}
    values = torch.tensor([shown[cell] for cell in world.cells], dtype=torch.float64)
    policy = torch.zeros(len(world.cells), 4, dtype=torch.float64)
    for cell, names in moves.items():
        for name in names.split():
            policy[world.index[cell], world.ACTIONS.index(name)] = 1 / len(names.split())
    return world, values, policy


def test_the_file_is_a_png_of_readme_width(tmp_path: Path) -> None:
    path = draw_grid(*world_and_policy(), tmp_path / "grid.png", title="Optimal")
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width == 1100 and image.height > 300


def test_equal_grids_give_equal_bytes() -> None:
    assert grid_png(*world_and_policy()) == grid_png(*world_and_policy())


def test_the_left_panel_writes_each_value_and_the_points_of_terminals() -> None:
    left, right = grid_figure(*world_and_policy()).axes
    written = {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in left.texts}
    assert written == {
        (0, 0): "3", (0, 1): "4", (0, 2): "+5", (1, 0): "2", (1, 2): "4", (2, 0): "-1", (2, 1): "2", (2, 2): "3",
    }  # fmt: skip
    assert sorted(text.get_text() for text in right.texts if text.get_text()) == ["+5", "-1"]


def arrows(figure: object) -> dict[tuple[int, int], list[tuple[float, float]]]:
    """The arrows (right, down) in each cell of the right panel."""
    found: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for artist in figure.axes[1].texts:  # type: ignore[attr-defined]
        if isinstance(artist, Annotation):
            (x, y), (x0, y0) = artist.xy, artist.xyann
            found.setdefault((int(y0), int(x0)), []).append((round(x - x0, 6), round(y - y0, 6)))
    return found


def test_arrows_point_along_the_policy_ties_have_several_and_terminals_none() -> None:
    found = arrows(grid_figure(*world_and_policy()))
    directions = {
        cell: sorted((int(x > 0) - int(x < 0), int(y > 0) - int(y < 0)) for x, y in ends)
        for cell, ends in found.items()
    }
    assert directions == {
        (0, 0): [(0, 1), (1, 0)], (0, 1): [(1, 0)], (1, 0): [(0, -1)],
        (1, 2): [(0, -1)], (2, 1): [(1, 0)], (2, 2): [(0, -1)],
    }  # fmt: skip


def test_an_arrow_is_longer_where_its_action_is_likelier() -> None:
    world, values, policy = world_and_policy()
    policy[0] = torch.tensor([0.0, 0.7, 0.29, 0.01], dtype=torch.float64)
    lengths = sorted(abs(x) + abs(y) for x, y in arrows(grid_figure(world, values, policy))[0, 0])
    assert len(lengths) == 2  # 0.01 and 0 are not drawn
    assert lengths[0] == pytest.approx(0.19 + 0.25 * 0.29) and lengths[1] == pytest.approx(0.19 + 0.25 * 0.7)


def test_cells_are_coloured_by_value_and_walls_are_grey() -> None:
    left = grid_figure(*world_and_policy()).axes[0]
    colors = {
        (int(patch.get_y()), int(patch.get_x())): patch.get_facecolor()
        for patch in left.patches
        if isinstance(patch, Rectangle) and patch.get_fill() and patch.get_width() == 1
    }
    red, green, blue, _ = colors[1, 1]
    assert max(red, green, blue) - min(red, green, blue) < 0.05  # the wall
    assert colors[0, 2][2] > colors[0, 2][0]  # +5 is blue
    assert colors[2, 0][0] > colors[2, 0][2]  # -1 is orange


def test_the_scale_is_white_at_zero_and_the_same_on_both_sides() -> None:
    scale = _scale([-1.0, 4.0])
    assert min(_color(0.0, scale)) > 0.97
    assert (scale.vmin, scale.vmax) == (-4.0, 4.0)


def test_a_wide_grid_puts_its_panels_under_each_other() -> None:
    wide = parse(". . . . . . +1\n")
    above, below = grid_figure(wide, torch.zeros(7), torch.zeros(7, 4)).axes
    assert above.get_position().y0 > below.get_position().y1
    assert above.get_position().x0 == below.get_position().x0


def test_values_that_are_not_finite_are_drawn_as_unknown() -> None:
    world, values, policy = world_and_policy()
    values[0], policy[1] = float("nan"), float("nan")
    left = grid_figure(world, values, policy).axes[0]
    assert [text.get_text() for text in left.texts if text.get_position() == (0.5, 0.5)] == ["?"]
    grid_text(world, values, policy)


def test_the_data_address_holds_the_png() -> None:
    world, values, policy = world_and_policy()
    head, data = grid_data_uri(world, values, policy).split(",")
    assert head == "data:image/png;base64" and base64.b64decode(data) == grid_png(world, values, policy)


def test_shapes_that_do_not_fit_are_an_input_error() -> None:
    world, values, policy = world_and_policy()
    with pytest.raises(InputError, match="do not fit 8 states"):
        grid_png(world, values[:-1], policy[:-1])


def test_a_missing_folder_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        draw_grid(*world_and_policy(), tmp_path / "no" / "grid.png")


PLAIN = """\
┌──────┬──────┬──────┐
│  3   │  4   │  +5  │
│  →↓  │  →   │      │
├──────┼──────┼──────┤
│  2   │▒▒▒▒▒▒│  4   │
│  ↑   │▒▒▒▒▒▒│  ↑   │
├──────┼──────┼──────┤
│  -1  │  2   │  3   │
│      │  →   │  ↑   │
└──────┴──────┴──────┘"""


def test_plain_text_of_the_grid() -> None:
    text = grid_text(*world_and_policy(), color=False)
    assert str(text) == PLAIN
    assert not text.spans


def test_coloured_text_has_the_same_characters_and_backgrounds_by_value() -> None:
    world, values, policy = world_and_policy()
    text = grid_text(world, values, policy, color=True)
    assert str(text) == PLAIN
    file = io.StringIO()
    Console(file=file, force_terminal=True, color_system="truecolor", width=80, _environ={}).print(text)
    red, green, blue = (round(255 * part) for part in _color(4.0, _scale(values.tolist())))
    assert f"48;2;{red};{green};{blue}" in file.getvalue()


def test_text_shows_near_ties_together_in_a_fixed_order() -> None:
    world, values, policy = world_and_policy()
    policy[0] = torch.tensor([0.26, 0.25, 0.25, 0.24], dtype=torch.float64)  # up, right, down, left
    policy[1] = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64)
    row = str(grid_text(world, values, policy, color=False)).splitlines()[2]
    assert row == "│ ↑→↓  │  ↑   │      │"
