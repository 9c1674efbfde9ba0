"""Pictures of values: action values as triangles, the error of a value network, value iteration sweep by sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from upslope.views import grid_map as maps
from upslope.views.grid_canvas import (
    INK,
    LARGEST,
    LINE,
    MARGIN,
    SOFT,
    TITLE,
    UNKNOWN,
    WIDTH,
    Point,
    color_of,
    decimals_of,
    fitted,
    foot,
    ink_on,
    number_text,
    place,
    scale_of,
    sheet,
    wrapped,
    write,
)
from upslope.views.grid_map import Cell, Grid

LENS = 2.0  # inches
BEST = 1e-6  # relative tolerance of a tie, as in maths.bellman.greedy_policy
MOST_SWEEPS = 8


# -------------------------------------------------------------------------------------------------------- action values
def action_values_figure(
    world: Grid, action_values: Float[Tensor, "states actions"], title: str = "Action values Q(s, a)"
) -> Figure:
    """Each free cell in four triangles, one for each move, with ``Q(s, a)`` in points; the best moves are outlined.

    Moves that do not exist are hatched; -inf of a move that exists is ``-∞``. One cell is drawn larger beside the map,
    where there is room, to show how to read it. Raises ``InputError`` where the shape does not fit the world.
    """
    maps.fit_world(world, "action values", action_values, len(world.index), len(world.ACTIONS))
    table = action_values.detach().cpu().tolist()
    cell = maps.cell_inches(world, 1)
    width, height = cell * world.columns, cell * world.rows
    lens = width + LENS + 0.2 <= WIDTH - 2 * MARGIN + 1e-9 and height >= LENS + 1.4
    moves = {place: _moves(world, place, table) for place in world.index if place not in world.terminals}
    known = [value for found in moves.values() for value in found.values()]
    scale = scale_of([*known, *world.terminals.values()])
    found = fitted(known, 0.37 * cell, 0.16 * cell, largest=13)
    words = [
        "Q(s, a): expected points from this cell when this move is made first",
        "outlined: the best moves",
        "hatched: there is no such move",
    ]
    notes = maps.mark_notes(world, cell)
    notes += [] if lens else words
    notes += [maps.NEVER_ENDS] if -math.inf in known else []
    notes += [] if found else [maps.NO_NUMBERS]
    bar = 0.0 if found else maps.BAR
    figure = sheet(TITLE + 0.1 + height + bar + foot(notes), title, notes)
    axes = place(figure, MARGIN, TITLE + 0.1, width, height)
    colors = [UNKNOWN] * len(world.index)
    for at, points in world.terminals.items():
        colors[world.index[at]] = color_of(points, scale)
    maps.draw_cells(axes, world, colors)
    _draw_triangles(axes, world, moves, scale, cell)
    if found:
        texts = iter(found[0])
        for at, values in moves.items():
            for action, value in values.items():
                ink = ink_on(color_of(value, scale))
                axes.text(*_label(at, world.ACTIONS[action]), next(texts), fontsize=found[1], **_style(ink, "number"))
    else:
        maps.color_bar(axes, scale, cell, world.rows)
    maps.draw_marks(axes, world, colors, cell, halo=True)
    maps.draw_terminals(axes, world, colors, cell)
    if lens:
        _draw_lens(figure, world, moves, scale, 2 * MARGIN + width, words)
    return figure


def _moves(world: Grid, cell: Cell, table: list[list[float]]) -> dict[int, float]:
    """Value of each move that exists in ``cell``."""
    return {
        action: table[world.index[cell]][action] for action in range(len(world.ACTIONS)) if world.exists(cell, action)
    }


def _best(values: dict[int, float]) -> set[int]:
    top = max((value for value in values.values() if math.isfinite(value)), default=math.inf)
    return {action for action, value in values.items() if top < math.inf and value >= top - BEST * max(1.0, abs(top))}


def _triangle(cell: Cell, name: str, inset: float = 0.0) -> list[Point]:
    """Corners of the triangle of a move; ``inset`` pulls its sides inwards."""
    down, right = maps.STEPS[name]
    x, y = cell[1] + 0.5, cell[0] + 0.5
    near, far, half = 2**0.5 * inset, 0.5 - inset, 0.5 - inset * (1 + 2**0.5)
    local = [(near, 0.0), (far, half), (far, -half)]
    return [(x + out * right - aside * down, y + out * down + aside * right) for out, aside in local]


def _label(cell: Cell, name: str) -> Point:
    """Where the number of a move stands."""
    down, right = maps.STEPS[name]
    out = 0.285 if right else 0.335
    return cell[1] + 0.5 + out * right, cell[0] + 0.5 + out * down


def _style(ink: str, name: str) -> dict[str, Any]:
    return {"ha": "center", "va": "center_baseline", "color": ink, "gid": name}


def _draw_triangles(
    axes: Axes, world: Grid, moves: Mapping[Cell, dict[int, float]], scale: Normalize, inches: float
) -> None:
    """The triangles of some cells, hatched where there is no move, outlined where there is none better."""
    names = world.ACTIONS
    there = [_triangle(cell, names[action]) for cell, values in moves.items() for action in values]
    missing = [_triangle(cell, names[action]) for cell in moves for action in range(4) if action not in moves[cell]]
    best = [_triangle(cell, names[action], 0.022) for cell, values in moves.items() for action in _best(values)]
    shades = [color_of(value, scale) for values in moves.values() for value in values.values()]
    hatch: dict[str, Any] = {"facecolors": UNKNOWN, "edgecolors": "#b4b7bb", "linewidths": 0.6, "hatch": "////"}
    line: dict[str, Any] = {"facecolors": "none", "edgecolors": INK, "linewidths": min(1.8, 2 * inches), "zorder": 3}
    for collection in (
        PolyCollection(there, facecolors=shades, edgecolors=LINE, linewidths=0.6, gid="moves"),
        PolyCollection(missing, gid="missing", **hatch),
        PolyCollection([maps.square(cell) for cell in moves], facecolors="none", edgecolors=SOFT, linewidths=0.9),
        PolyCollection(best, gid="best", **line),
    ):
        axes.add_collection(collection, autolim=False)


def _draw_lens(
    figure: Figure,
    world: Grid,
    moves: dict[Cell, dict[int, float]],
    scale: Normalize,
    left: float,
    words: Sequence[str],
) -> None:
    """One cell of the map, larger, with the names of its moves and how to read it."""

    def told(cell: Cell) -> tuple[bool, float]:
        known = [value for value in moves[cell].values() if math.isfinite(value)]
        return len(known) == 3, max(known, default=0.0) - min(known, default=0.0)

    cell = max(moves, key=told)
    row, column = cell
    write(figure, left, TITLE + 0.08, "one cell, enlarged:", 10, SOFT)
    write(figure, left, TITLE + 0.28, f"row {row + 1}, column {column + 1}", 10, SOFT)
    axes = place(figure, left, TITLE + 0.58, LENS, LENS)
    axes.set(xlim=(column, column + 1), ylim=(row + 1, row), aspect="equal")
    axes.axis("off")
    _draw_triangles(axes, world, {cell: moves[cell]}, scale, LENS)
    decimals = decimals_of(value for values in moves.values() for value in values.values())
    for action, name in enumerate(world.ACTIONS):
        x, y = _label(cell, name)
        value = moves[cell].get(action)
        ink = SOFT if value is None else ink_on(color_of(value, scale))
        if value is not None:
            axes.text(x, y + 0.035, number_text(value, decimals), fontsize=LARGEST * 0.85, **_style(ink, "lens"))
            axes.text(x, y - 0.07, name, fontsize=9, **_style(ink, "lens"))
    top = TITLE + 0.58 + LENS + 0.18
    for note in words:
        for line in wrapped([note[0].upper() + note[1:] + "."], LENS + 0.15):
            write(figure, left, top, line, 9, SOFT, name="words")
            top += 0.19
        top += 0.08


# ---------------------------------------------------------------------------------------------------------------- error
def error_figure(
    world: Grid,
    predicted: Float[Tensor, " states"],
    exact: Float[Tensor, " states"],
    title: str = "Error of the value network",
) -> Figure:
    """What a value network says, and its error against the exact ``V^pi`` of the policy, in points.

    The title ends in the root mean square and the largest absolute value of ``predicted - exact`` over the states that
    do not end, infinite where ``exact`` is. Raises ``InputError`` where the shapes do not fit the world.
    """
    numbers = maps.shown_values(world, predicted)
    maps.fit_world(world, "exact values", exact, len(world.index))
    errors = [float(error) for error in (predicted.detach().cpu() - exact.detach().cpu())]
    for at in world.terminals:
        errors[world.index[at]] = 0.0
    free = [errors[state] for at, state in world.index.items() if at not in world.terminals]
    rmse = math.sqrt(sum(error * error for error in free) / len(free))
    worst = max(map(abs, free))
    across = maps.pair_across(world)
    cell = maps.cell_inches(world, across)
    written = (maps.can_write(world, numbers, cell), maps.can_write(world, errors, cell, sign=True))
    notes = ["blue: the network says too much, orange: too little"]
    notes += [] if all(map(math.isfinite, errors)) else ["∞: the policy may never end from here: its value is -∞"]
    notes += [] if all(written) else [maps.NO_NUMBERS]
    captions = ("what the network says, in points", r"its error, $V_\mathrm{network} - V^{\,\pi}$, in points")
    full = f"{title}: rmse {number_text(rmse, 3)}, worst {number_text(worst, 3)} points"
    figure, pair = maps.panels(world, captions, across, full, notes, bar=not all(written))
    for axes, shown, sign in zip(pair, (numbers, errors), (False, True), strict=True):
        scale = scale_of(shown)
        colors = [color_of(number, scale) for number in shown]
        maps.draw_cells(axes, world, colors)
        if not maps.draw_numbers(axes, world, shown, colors, cell, sign):
            maps.color_bar(axes, scale, cell, world.rows)
        maps.draw_terminals(axes, world, colors, cell)
    return figure


# --------------------------------------------------------------------------------------------------------------- sweeps
def chosen_sweeps(last: int, most: int = MOST_SWEEPS) -> list[int]:
    """At most ``most`` of the sweeps 0 to ``last``, the first two and the last among them, ever farther apart."""
    if last < most:
        return list(range(last + 1))
    return sorted({0, *(round(last ** (step / (most - 2))) for step in range(most - 1))})


def sweeps_figure(
    world: Grid, sweeps: Float[Tensor, "sweeps states"], title: str = "Value iteration, sweep by sweep"
) -> Figure:
    """Value iteration as small maps: up to 8 of the ``sweeps`` of ``maths.bellman.value_iteration_sweeps``.

    Each says which sweep it is and how many values changed in it; changed values are bold. The title ends in the number
    of sweeps. Raises ``InputError`` where the shape does not fit the world.
    """
    maps.fit_world(world, "sweeps", sweeps, len(sweeps), len(world.index))
    rows = [maps.shown_values(world, sweep) for sweep in sweeps]
    last = len(rows) - 1
    chosen = chosen_sweeps(last)
    across = min(4, len(chosen)) if world.columns <= 1.8 * world.rows else 2 if world.columns <= 5 * world.rows else 1
    cell = maps.cell_inches(world, across)
    scale = scale_of(number for row in rows for number in row)
    changed = [[a != b for a, b in zip(row, rows[max(sweep - 1, 0)], strict=True)] for sweep, row in enumerate(rows)]
    captions = [
        "start" if sweep == 0 else f"sweep {sweep}: {sum(changed[sweep]) or 'none'} changed" for sweep in chosen
    ]
    written = all(maps.can_write(world, rows[sweep], cell) for sweep in chosen)
    notes = ["each sweep: a cell becomes the best of its moves: reward plus the (discounted) value of where it leads"]
    notes += ["bold: changed in this sweep"] if written else [maps.NO_NUMBERS]
    notes += ["-∞: no end is known from here yet"] if any(number == -math.inf for number in rows[0]) else []
    notes += [f"{len(chosen)} of {last + 1} shown"] if len(chosen) <= last else []
    full = f"{title}: {last} sweep{'' if last == 1 else 's'}"
    figure, grid = maps.panels(world, captions, across, full, notes, bar=not written)
    for axes, sweep in zip(grid, chosen, strict=True):
        colors = [color_of(number, scale) for number in rows[sweep]]
        maps.draw_cells(axes, world, colors)
        texts = maps.draw_numbers(axes, world, rows[sweep], colors, cell) if written else []
        free = [state for at, state in world.index.items() if at not in world.terminals]
        for text, state in zip(texts, free, strict=bool(texts)):
            text.set_fontweight("bold" if changed[sweep][state] else "normal")
        maps.draw_terminals(axes, world, colors, cell)
    if not written:
        maps.color_bar(grid[-1], scale, cell, world.rows)
    return figure
