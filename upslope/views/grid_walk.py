"""A walk on the map, and beside it what was predicted at each step, what came of it, and the gain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from upslope.errors import InputError
from upslope.types import GridMove
from upslope.views import grid_map as maps
from upslope.views.grid_canvas import (
    BLANK,
    BLUE,
    INK,
    LEAST,
    LINE,
    MARGIN,
    ORANGE,
    PAPER,
    SOFT,
    TITLE,
    WIDTH,
    color_of,
    decimals_of,
    foot,
    number_text,
    place,
    points_text,
    scale_of,
    sheet,
    text_width,
)
from upslope.views.grid_map import Cell, Grid

ARROWS = {"up": "↑", "right": "→", "down": "↓", "left": "←"}
SIDE, ROW = 3.5, 0.235  # inches: a map beside the table, and a row of the table
MOST_ROWS, FIRST_ROWS = 22, 13  # of the table, and how many of them from the walk's beginning
LANE = 0.2  # a path keeps to its right, in cells, so that there and back do not cover each other


def walk_figure(world: Grid, walk: Sequence[GridMove], title: str = "A walk, step by step") -> Figure:
    """``walk`` drawn on the map, its moves numbered from 1, and a table of them.

    Columns: the cell (row, column, counted from 1), the move chosen there, its reward, the value predicted, the return
    (the discounted points that followed), the gain the update used, and the ratio after the update. What the learner
    does not have is left out, and a note says so. Of long walks the table shows the beginning and the end.
    Raises ``InputError`` where the walk is empty or does not fit the world.
    """
    cells = {state: cell for cell, state in world.index.items()}
    if not walk or any(move.state not in cells or move.next_state not in cells for move in walk):
        raise InputError("walk", "is empty or has states that the map has not", "pass a walk recorded on this map")
    beside = world.columns <= 9 and world.columns <= 1.8 * world.rows
    room = SIDE if beside else WIDTH - 2 * MARGIN
    cell = min(room / world.columns, 0.7, (5.5 if beside else 6.0) / world.rows)
    rows = _rows(world, cells, walk)
    size = 72 * cell * 0.24
    notes = ["cell: row, column", "return: the points that really followed, from this move on"]
    if any(move.value is not None for move in walk):
        notes += ["gain above 0: better than predicted; the value goes up, the move becomes likelier"]
    else:
        notes += ["this learner has no critic: it predicts no value"]
    notes += [] if size >= LEAST else ["steps are not numbered on the map: its cells are too small"]
    map_high, table_high = maps.CAPTION + cell * world.rows, maps.CAPTION + ROW * (len(rows) - 1) + 0.06
    high = max(map_high, table_high) if beside else map_high + 0.1 + table_high
    figure = sheet(TITLE + high + 0.1 + foot(notes), title, notes)
    axes = place(figure, MARGIN, TITLE + maps.CAPTION, cell * world.columns, cell * world.rows)
    axes.set_title(_ending(world, cells, walk), loc="left", fontsize=10, color=SOFT, pad=6)
    paper = [BLANK] * len(world.index)
    scale = scale_of(world.terminals.values())
    for at, points in world.terminals.items():
        paper[world.index[at]] = color_of(points, scale)
    maps.draw_cells(axes, world, paper)
    maps.draw_marks(axes, world, paper, cell)
    maps.draw_terminals(axes, world, paper, cell)
    _draw_path(axes, world, cells, walk, size)
    left = MARGIN + SIDE + 0.3 if beside else MARGIN
    top = TITLE if beside else TITLE + map_high + 0.1
    _draw_table(figure, rows, left, top, WIDTH - MARGIN - left)
    return figure


def _ending(world: Grid, cells: dict[int, Cell], walk: Sequence[GridMove]) -> str:
    end = cells[walk[-1].next_state]
    moves = f"{len(walk)} move{'' if len(walk) == 1 else 's'}"
    if end in world.terminals:
        return f"{moves}, ending at {points_text(world.terminals[end])}"
    return f"{moves}, cut off in row {end[0] + 1}, column {end[1] + 1}"


# ---------------------------------------------------------------------------------------------------------------- table
def _rows(world: Grid, cells: dict[int, Cell], walk: Sequence[GridMove]) -> list[list[str]]:
    """The table's cells, its head first; columns of which the walk has nothing are left out."""
    columns: dict[str, list[str]] = {"step": [str(step) for step in range(1, len(walk) + 1)]}
    columns["cell"] = [f"{cells[move.state][0] + 1}, {cells[move.state][1] + 1}" for move in walk]
    columns["move"] = [_move(world, cells, move) for move in walk]
    decimals = decimals_of(move.reward for move in walk)
    columns["reward"] = [number_text(move.reward, decimals, sign=True) for move in walk]
    columns["predicted"] = ["" if move.value is None else number_text(move.value, 2) for move in walk]
    columns["return"] = [number_text(move.outcome, 2) for move in walk]
    columns["gain"] = ["" if move.gain is None else number_text(move.gain, 2, sign=True) for move in walk]
    columns["ratio"] = ["" if move.ratio is None else number_text(move.ratio, 2) for move in walk]
    columns["clip"] = ["clipped" if move.clipped else "" for move in walk]
    kept = {name: column for name, column in columns.items() if any(column)}
    rows = [list(row) for row in zip(*kept.values(), strict=True)]
    if len(rows) > MOST_ROWS:
        last = MOST_ROWS - FIRST_ROWS - 1
        rows = [*rows[:FIRST_ROWS], ["…"] * len(kept), *rows[-last:]]
    return [list(kept), *rows]


def _move(world: Grid, cells: dict[int, Cell], move: GridMove) -> str:
    """The move chosen, and what came of it where the world slipped or a wall stopped it."""
    name = world.ACTIONS[move.action]
    here, there = cells[move.state], cells[move.next_state]
    step = (there[0] - here[0], there[1] - here[1])
    if step == maps.STEPS[name]:
        return ARROWS[name]
    if step == (0, 0):
        return f"{ARROWS[name]} stays"
    real = next((other for other, way in maps.STEPS.items() if way == step), None)
    return f"{ARROWS[name]} slips {ARROWS[real] if real else ''}".rstrip()


def _draw_table(figure: Figure, rows: list[list[str]], left: float, top: float, room: float) -> None:
    """Columns as wide as they need to be, numbers on the right; the sign of a gain also by its colour."""
    names, size = rows[0], 9.5
    aligned_left = {"move", "clip"}
    widths = [0.03 + max(text_width(row[at]) for row in rows) * size / 72 for at in range(len(names))]
    space = (room - sum(widths)) / (len(names) - 1)
    if space < 0.09:
        size *= (room - 0.09 * (len(names) - 1)) / sum(widths)
        widths = [width * (room - 0.09 * (len(names) - 1)) / sum(widths) for width in widths]
    space = min((room - sum(widths)) / (len(names) - 1), 0.35)
    axes = place(figure, left, top, room, maps.CAPTION + ROW * (len(rows) - 1) + 0.06)
    axes.set(xlim=(0, room), ylim=(maps.CAPTION + ROW * (len(rows) - 1) + 0.06, 0))
    axes.axis("off")
    for at, name in enumerate(names):
        start = sum(widths[:at]) + space * at
        x = start if name in aligned_left else start + widths[at]
        for number, row in enumerate(rows):
            color = SOFT if number == 0 or name in ("step", "clip") else INK
            if name == "gain" and number:
                color = BLUE if row[at].startswith("+") else ORANGE if row[at].startswith("-") else INK
            style: dict[str, Any] = {"ha": "left" if name in aligned_left else "right", "va": "center_baseline"}
            y = maps.CAPTION + ROW * (number - 0.5)
            axes.text(x, y, row[at], fontsize=size, color=color, gid=f"table {name}", **style)
    for number in range(1, len(rows) + 1):
        y = maps.CAPTION + ROW * (number - 1)
        axes.plot(
            [0, sum(widths) + space * (len(names) - 1)], [y, y], color=SOFT if number == 1 else LINE, linewidth=0.7
        )


# ----------------------------------------------------------------------------------------------------------------- path
def _draw_path(axes: Axes, world: Grid, cells: dict[int, Cell], walk: Sequence[GridMove], size: float) -> None:
    """An arrow for each way gone, with the numbers of the steps that went it."""
    steps: dict[tuple[Cell, str, bool], list[int]] = {}
    for number, move in enumerate(walk, 1):
        here, there = cells[move.state], cells[move.next_state]
        way = (there[0] - here[0], there[1] - here[1])
        names = [name for name, step in maps.STEPS.items() if step == way]
        steps.setdefault((here, names[0] if names else world.ACTIONS[move.action], bool(names)), []).append(number)
    outlines, edges = [], []
    for (row, column), name, moved in steps:
        down, right = maps.STEPS[name]
        x, y = column + 0.5 - LANE * down, row + 0.5 + LANE * right
        ends = (row + down, column + right) in world.terminals
        outlines.append(maps.arrow(x, y, right, down, 0.76 if ends else 0.93 if moved else 0.42, 1.3 if ends else 0.9))
        edges.append(PAPER if ends else BLUE)
    arrows = PolyCollection(outlines, facecolors=BLUE, edgecolors=edges, linewidths=0.6, zorder=5, gid="path")
    axes.add_collection(arrows, autolim=False)
    first = cells[walk[0].state]
    start = PolyCollection([maps.disc(first[1] + 0.5, first[0] + 0.5, 0.09)], facecolors=INK, zorder=5, gid="first")
    axes.add_collection(start, autolim=False)
    if size < LEAST:
        return
    for ((row, column), name, moved), numbers in steps.items():
        down, right = maps.STEPS[name]
        ends = (row + down, column + right) in world.terminals
        along = 0.3 if ends else 0.5 if moved else 0.12
        x, y = column + 0.5 + along * right - LANE * down, row + 0.5 + along * down + LANE * right
        text = ",".join(map(str, numbers))
        text = text if len(text) <= (5 if right else 3) else f"{numbers[0]}…"
        points = min(size, 8 if right or len(text) < 3 else 7)
        box = {"boxstyle": "round,pad=0.1", "facecolor": PAPER, "edgecolor": BLUE, "linewidth": 0.8}
        style: dict[str, Any] = {"ha": "center", "va": "center", "bbox": box, "zorder": 6, "gid": "step"}
        axes.text(x, y, text, fontsize=points, color=INK, **style)
