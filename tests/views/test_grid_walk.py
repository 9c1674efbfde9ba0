"""A walk on the map and its table: the numbers of the record, the ways really gone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.views import grid_records as eyes
from upslope.errors import InputError
from upslope.views import grid_canvas as canvas
from upslope.views.grid_walk import MOST_ROWS, walk_figure
from upslope.worlds.gridworld import parse

WORLD = parse(eyes.SMALL)
PATH = (((1, 0), "up", (0, 0)), ((0, 0), "right", (0, 1)), ((0, 1), "left", (0, 0)),
        ((0, 0), "right", (0, 1)), ((0, 1), "right", (0, 2)))  # fmt: skip


def column(figure: Figure, name: str) -> list[str]:
    return [text.get_text() for text in eyes.named(figure, f"table {name}")]


def test_the_table_holds_the_numbers_of_the_record() -> None:
    figure = walk_figure(WORLD, eyes.walk_of(WORLD, *PATH))
    assert column(figure, "step") == ["step", "1", "2", "3", "4", "5"]
    assert column(figure, "cell") == ["cell", "2, 1", "1, 1", "1, 2", "1, 1", "1, 2"]
    assert column(figure, "move") == ["move", "↑", "→", "←", "→", "→"]
    assert column(figure, "reward") == ["reward", "-1", "-1", "-1", "-1", "+4"]
    assert column(figure, "predicted") == ["predicted", "-1.00", "-0.75", "-0.50", "-0.25", "0.00"]
    assert column(figure, "return") == ["return", "0.00", "1.00", "2.00", "3.00", "4.00"]
    assert column(figure, "gain") == ["gain", "+1.00", "+1.75", "+2.50", "+3.25", "+4.00"]
    assert column(figure, "ratio") == ["ratio", "1.00", "1.10", "1.20", "1.30", "1.40"]
    assert column(figure, "clip") == ["clip", "", "", "", "clipped", ""]
    assert figure.axes[0].get_title(loc="left") == "5 moves, ending at +5"


def test_the_path_is_numbered_where_it_was_gone_and_repeated_ways_share_a_label() -> None:
    axes = walk_figure(WORLD, eyes.walk_of(WORLD, *PATH)).axes[0]
    labels = {text.get_text(): text.get_position() for text in eyes.named(axes, "step")}
    assert set(labels) == {"1", "2,4", "3", "5"}
    between = {"1": (0.5, 1.0), "2,4": (1.0, 0.5), "3": (1.0, 0.5), "5": (1.8, 0.5)}  # x, y of the crossings
    for words, (x, y) in between.items():
        assert np.hypot(labels[words][0] - x, labels[words][1] - y) < 0.25
    assert labels["2,4"][1] > 0.5 > labels["3"][1]  # there on one side, back on the other
    (path,) = eyes.named(axes, "path")
    tips = [tuple(arrow.vertices[3] - arrow.vertices[[0, 6]].mean(axis=0)) for arrow in path.get_paths()]
    directions = [(round(float(x)), round(float(y))) for x, y in tips]
    assert directions == [(0, -1), (1, 0), (-1, 0), (1, 0)]
    for arrow, words in zip(path.get_paths(), ("1", "2,4", "3", "5"), strict=True):
        tail, tip, label = arrow.vertices[[0, 6]].mean(axis=0), arrow.vertices[3], np.array(labels[words])
        along = (label - tail) @ (tip - tail) / ((tip - tail) @ (tip - tail))
        assert 0.2 < along < 0.8 and np.abs(tail + along * (tip - tail) - label).max() < 1e-9  # on its own arrow


def test_a_move_that_slips_or_stays_says_so_and_is_drawn_as_it_went() -> None:
    world = parse(eyes.SMALL, slip=0.3, blocked="bump")
    walk = eyes.walk_of(world, ((0, 0), "left", (0, 0)), ((0, 0), "right", (1, 0)), ((1, 0), "down", (2, 0)))
    figure = walk_figure(world, walk)
    assert column(figure, "move") == ["move", "← stays", "→ slips ↓", "↓"]
    (path,) = eyes.named(figure.axes[0], "path")
    lengths = [np.abs(arrow.vertices[3] - arrow.vertices[[0, 6]].mean(axis=0)).max() for arrow in path.get_paths()]
    assert lengths[0] < 0.5 < min(lengths[1:])
    assert figure.axes[0].get_title(loc="left") == "3 moves, ending at -1"


def test_a_learner_without_critic_has_no_such_columns_and_a_note_says_so() -> None:
    figure = walk_figure(WORLD, eyes.walk_of(WORLD, *PATH, critic=False))
    for name in ("predicted", "gain", "ratio", "clip"):
        assert column(figure, name) == []
    assert column(figure, "return")[1:] == ["0.00", "1.00", "2.00", "3.00", "4.00"]
    assert "no critic" in eyes.notes_of(figure)


def test_losses_are_orange_and_gains_blue_beside_their_signs() -> None:
    walk = eyes.walk_of(WORLD, *PATH)
    figure = walk_figure(WORLD, (replace(walk[0], gain=-2.0), *walk[1:]))
    colors = [text.get_color() for text in eyes.named(figure, "table gain")[1:]]
    assert column(figure, "gain")[1] == "-2.00" and colors == [canvas.ORANGE] + [canvas.BLUE] * 4


def test_a_long_walk_shows_its_beginning_and_its_end() -> None:
    there_and_back = (((0, 0), "right", (0, 1)), ((0, 1), "left", (0, 0))) * 20
    figure = walk_figure(WORLD, eyes.walk_of(WORLD, *there_and_back, ((0, 0), "down", (1, 0))))
    steps = column(figure, "step")
    assert len(steps) == MOST_ROWS + 1 and steps[1] == "1" and steps[-1] == "41" and "…" in steps
    assert figure.axes[0].get_title(loc="left") == "41 moves, cut off in row 2, column 1"
    eyes.assert_readable(figure)


@pytest.mark.parametrize("size", eyes.SIZES)
def test_walks_on_maps_of_all_sizes_are_readable(size: str) -> None:
    world = eyes.SIZES[size]
    ((row, end),) = [cell for cell in world.terminals if cell[0] == 0]
    path = [((row, place), "right", (row, place + 1)) for place in range(end)]
    figure = walk_figure(world, eyes.walk_of(world, *path))
    eyes.assert_readable(figure)
    assert bool(eyes.named(figure.axes[0], "step")) == (size != "30x30")
    assert ("not numbered" in eyes.notes_of(figure)) == (size == "30x30")
    assert len(eyes.named(figure.axes[0], "path")[0].get_paths()) == end


def test_equal_walks_give_equal_bytes() -> None:
    walk = eyes.walk_of(WORLD, *PATH)
    assert canvas.png_bytes(walk_figure(WORLD, walk)) == canvas.png_bytes(walk_figure(WORLD, walk))


def test_no_walk_and_a_walk_of_another_world_are_input_errors() -> None:
    walk = eyes.walk_of(WORLD, *PATH)
    for wrong in ((), (replace(walk[0], state=99),)):
        with pytest.raises(InputError, match="walk"):
            walk_figure(WORLD, wrong)
