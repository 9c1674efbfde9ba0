"""Maps of a gridworld on a sheet: cells, numbers in them, marks, terminals, arrows, and panels of several maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Protocol, TypeAlias, runtime_checkable

from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from matplotlib.patheffects import Normal, Stroke
from matplotlib.text import Text
from torch import Tensor

from upslope.errors import InputError
from upslope.views.grid_canvas import (
    COLORS,
    INK,
    LARGEST,
    LEAST,
    LINE,
    MARGIN,
    PAPER,
    SOFT,
    TITLE,
    WALL,
    WIDTH,
    Color,
    Point,
    fitted,
    foot,
    ink_on,
    place,
    points_text,
    sheet,
    text_width,
)

Cell: TypeAlias = tuple[int, int]

STEPS = {"up": (-1, 0), "right": (0, 1), "down": (1, 0), "left": (0, -1)}  # row, column
CAPTION, BAR = 0.36, 0.45  # inches, above a map and under it
MAX_CELL, MAX_HEIGHT = 1.0, 9.0  # inches, of a cell and of a map
LEAST_ARROWS = 0.1  # inches, of a cell with arrows
MOST_LABELS = 12  # terminals that are labelled where their cells are too small
LEAST_DRAWN = 0.02  # probability below which no arrow is drawn
HALO = [Stroke(linewidth=2, foreground=PAPER), Normal()]
NEVER_ENDS = "-∞: from here it may never end"
NO_NUMBERS = "numbers left out: the cells are too small to read them"
NO_ARROWS = "arrows left out: the cells are too small to see them"


@runtime_checkable
class Grid(Protocol):
    """What the pictures need of a gridworld (``upslope.worlds.gridworld.Gridworld`` has it)."""

    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def index(self) -> Mapping[Cell, int]: ...
    @property
    def walls(self) -> AbstractSet[Cell]: ...
    @property
    def terminals(self) -> Mapping[Cell, float]: ...
    @property
    def costs(self) -> Mapping[Cell, float]: ...
    @property
    def starts(self) -> Sequence[Cell]: ...
    @property
    def starts_given(self) -> bool: ...
    @property
    def ACTIONS(self) -> Sequence[str]: ...
    def exists(self, cell: Cell, action: int) -> bool: ...


def fit_world(world: Grid, what: str, found: Tensor, *shape: int) -> None:
    """Raises InputError where ``found`` is not of ``shape``."""
    if tuple(found.shape) != shape:
        raise InputError(
            "grid picture",
            f"{what} {tuple(found.shape)} does not fit a map of {len(world.index)} states and "
            f"{len(world.ACTIONS)} actions",
            f"pass {what} [{', '.join(map(str, shape))}]",
        )


def shown_values(world: Grid, values: Tensor) -> list[float]:
    """``values`` as numbers, with each terminal showing its points whatever it was given."""
    fit_world(world, "values", values, len(world.index))
    numbers = [float(value) for value in values.detach().cpu()]
    for cell, points in world.terminals.items():
        numbers[world.index[cell]] = float(points)
    return numbers


def cell_inches(world: Grid, across: int) -> float:
    """Side of a cell where ``across`` maps stand side by side."""
    width = (WIDTH - (across + 1) * MARGIN) / across
    return min(width / world.columns, MAX_CELL, MAX_HEIGHT / world.rows)


def pair_across(world: Grid) -> int:
    """2 maps side by side, or 1 where a wide map is legible only at full width."""
    return 1 if world.columns > 1.8 * world.rows and cell_inches(world, 2) < MAX_CELL else 2


def panels(
    world: Grid, captions: Sequence[str], across: int, title: str, notes: Sequence[str], bar: bool = False
) -> tuple[Figure, list[Axes]]:
    """A sheet with one map for each caption, ``across`` of them in a row. ``bar`` leaves room for colour bars."""
    cell, down = cell_inches(world, across), -(-len(captions) // across)
    slot = (WIDTH - (across + 1) * MARGIN) / across + MARGIN
    depth = CAPTION + cell * world.rows + (BAR if bar else 0)
    figure = sheet(TITLE + depth * down + foot(notes), title, notes)
    axes = []
    for number, caption in enumerate(captions):
        row, column = divmod(number, across)
        top = TITLE + CAPTION + row * depth
        axes.append(place(figure, MARGIN + column * slot, top, cell * world.columns, cell * world.rows))
        axes[-1].set_title(caption, loc="left", fontsize=10, color=SOFT, pad=6)
    return figure, axes


def color_bar(axes: Axes, scale: Normalize, cell: float, rows: int, label: str = "points") -> None:
    """A colour bar under the map in ``axes``, for numbers that are not written."""
    bar = axes.inset_axes((0, -0.2 / (cell * rows), 1, 0.1 / (cell * rows)))
    bar.imshow([[step / 63 for step in range(64)]], cmap=COLORS, aspect="auto", extent=(0, 1, 0, 1), vmin=0, vmax=1)
    top = float(scale.vmax)  # type: ignore[arg-type]
    bar.set_xticks([0, 0.5, 1], [f"{-top:.3g}", f"0 {label}", f"+{top:.3g}"], fontsize=9, color=SOFT)
    for mark, side in ((0, "left"), (2, "right")):
        bar.get_xticklabels()[mark].set_horizontalalignment(side)  # type: ignore[arg-type]
    bar.set_yticks([])
    bar.tick_params(length=0, pad=2)
    for spine in bar.spines.values():
        spine.set(edgecolor=LINE, linewidth=0.8)


# ----------------------------------------------------------------------------------------------------------------- maps
def square(cell: Cell, inset: float = 0.0) -> list[Point]:
    """Corners of a cell in the axes of a map: x right, y down."""
    (row, column), far = cell, 1 - inset
    near = inset
    return [
        (column + near, row + near),
        (column + far, row + near),
        (column + far, row + far),
        (column + near, row + far),
    ]


def draw_cells(axes: Axes, world: Grid, colors: Sequence[Color]) -> PolyCollection:
    """The map: each state's cell in its colour, walls grey. Returns the cells, first those of the states in order."""
    axes.set(xlim=(0, world.columns), ylim=(world.rows, 0), aspect="equal", anchor="NW")
    axes.axis("off")
    walls = sorted(world.walls)
    cells = PolyCollection(
        [square(cell) for cell in (*world.index, *walls)],
        facecolors=[*(colors[state] for state in world.index.values()), *(WALL for _ in walls)],
        edgecolors=LINE,
        linewidths=0.8,
        gid="cells",
    )
    axes.add_collection(cells, autolim=False)
    border = Rectangle((0, 0), world.columns, world.rows, fill=False, edgecolor=INK, linewidth=1.4, clip_on=False)
    border.set_zorder(4)
    axes.add_patch(border)
    return cells


def draw_terminals(axes: Axes, world: Grid, colors: Sequence[Color], cell: float) -> None:
    """Points of the terminal cells, framed. On a map of small cells a few of them stand out over their neighbours."""
    for (row, column), points in world.terminals.items():
        ink = ink_on(colors[world.index[row, column]])
        text = points_text(points)
        size = min(LARGEST, 72 * cell * 0.32, 72 * cell * 0.8 / text_width(text, bold=True))
        style: dict[str, Any] = {"fontsize": size, "color": ink}
        if size < LEAST:
            style = {"fontsize": 7.5, "color": INK, "path_effects": HALO}
        if size >= LEAST or len(world.terminals) <= MOST_LABELS:
            middle: dict[str, Any] = {"ha": "center", "va": "center_baseline", "weight": "bold", "zorder": 5}
            axes.text(column + 0.5, row + 0.5, text, gid="terminal", **middle, **style)
        frame: dict[str, Any] = {"fill": False, "edgecolor": ink, "linewidth": min(1.2, 3 * cell), "alpha": 0.8}
        axes.add_patch(Rectangle((column + 0.07, row + 0.07), 0.86, 0.86, **frame))


def marks_of(world: Grid) -> dict[Cell, str]:
    """What is marked on the map, as it is written there: ``S``, ``~3``, ``S~3``."""
    starts = set(world.starts) if world.starts_given else set()
    both = {cell: ("S" if cell in starts else "") + f"~{cost:g}" for cell, cost in world.costs.items()}
    return {**dict.fromkeys(sorted(starts), "S"), **both}


def draw_marks(axes: Axes, world: Grid, colors: Sequence[Color], cell: float, halo: bool = False) -> None:
    """``S`` in the upper left corner of starts, if the map names them, and costs of cells in the lower one.

    Triangles where cells are too small for letters; see ``mark_notes``. ``halo`` for cells of several colours.
    """
    for (row, column), mark in marks_of(world).items():
        ink = ink_on(colors[world.index[row, column]])
        start, cost = mark.startswith("S"), mark.removeprefix("S")
        if _letters(cell):
            style: dict[str, Any] = {"ha": "left", "weight": "bold", "color": ink, "gid": "mark", "zorder": 5}
            style |= {"fontsize": min(72 * cell * 0.18, 9), "path_effects": HALO if halo else []}
            if start:
                axes.text(column + 0.06, row + 0.06, "S", va="top", **style)
            if cost:
                axes.text(column + 0.06, row + 0.93, cost, va="baseline", **style)
            continue
        for there, near, far in ((start, 0.03, 0.4), (bool(cost), 0.97, 0.6)):
            if there:
                corners = [(column + 0.03, row + near), (column + 0.4, row + near), (column + 0.03, row + far)]
                axes.add_patch(Polygon(corners, closed=True, facecolor=ink, edgecolor="none", gid="mark"))


def _letters(cell: float) -> bool:
    """Are cells large enough for letters in their corners?"""
    return 72 * cell * 0.18 >= 0.75 * LEAST


def mark_notes(world: Grid, cell: float = MAX_CELL) -> list[str]:
    """Notes on the marks that ``draw_marks`` makes."""
    letters, costs = _letters(cell), sorted(set(world.costs.values()))
    notes = [("S" if letters else "◤") + ": episodes start here"] if world.starts_given else []
    if costs and not letters:
        return [*notes, "◣: a move from here has a cost of its own"]
    notes += [f"~{cost:g}: a move from here costs {cost:g}" for cost in costs[:3]]
    return notes + (["other costs likewise"] if len(costs) > 3 else [])


def can_write(world: Grid, values: Sequence[float], cell: float, sign: bool = False) -> bool:
    """Would ``draw_numbers`` find cells of ``cell`` inches large enough?"""
    return _fitted(world, values, cell, sign) is not None


def draw_numbers(
    axes: Axes, world: Grid, values: Sequence[float], colors: Sequence[Color], cell: float, sign: bool = False
) -> list[Text]:
    """Each number in the middle of its cell, terminals apart; none where they would be too small to read."""
    found = _fitted(world, values, cell, sign)
    if found is None:
        return []
    texts, size = found
    written = []
    for (row, column), text in zip(_free(world), texts, strict=True):
        ink = ink_on(colors[world.index[row, column]])
        middle: dict[str, Any] = {
            "ha": "center",
            "va": "center_baseline",
            "fontsize": size,
            "color": ink,
            "gid": "number",
        }
        written.append(axes.text(column + 0.5, row + 0.5, text, **middle))
    return written


def _fitted(world: Grid, values: Sequence[float], cell: float, sign: bool) -> tuple[list[str], float] | None:
    return fitted([values[world.index[place]] for place in _free(world)], 0.86 * cell, 0.3 * cell, sign)


def _free(world: Grid) -> list[Cell]:
    return [cell for cell in world.index if cell not in world.terminals]


def disc(x: float, y: float, radius: float) -> list[Point]:
    """Corners of a disc. Unlike a marker it is not moved to whole pixels."""
    turns = [2 * math.pi * step / 48 for step in range(48)]
    return [(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns]


def arrow(x: float, y: float, right: float, down: float, length: float, weight: float) -> list[Point]:
    """Corners of an arrow from (x, y) in direction (right, down), all in cells. ``weight`` (1) thickens it."""
    shaft, head, back = 0.026 * weight, 0.085 * weight, min(0.16 * weight, 0.8 * length)
    outline = [
        (0, -shaft),
        (length - back, -shaft),
        (length - back, -head),
        (length, 0),
        (length - back, head),
        (length - back, shaft),
        (0, shaft),
    ]
    return [(x + along * right - aside * down, y + along * down + aside * right) for along, aside in outline]


def arrows_of(world: Grid, policy: list[list[float]]) -> tuple[list[list[Point]], list[tuple[float, ...]]]:
    """Outlines and colours of a policy's arrows: the longer, thicker and darker, the likelier. NaN has none."""
    outlines: list[list[Point]] = []
    colors: list[tuple[float, ...]] = []
    for (row, column), state in world.index.items():
        if (row, column) in world.terminals:
            continue
        for chance, action in sorted(zip(policy[state], world.ACTIONS, strict=True)):  # the likeliest on top
            if not chance >= LEAST_DRAWN:
                continue
            down, right = STEPS[action]
            strength = min(2 * chance, 1.0)
            outlines.append(arrow(column + 0.5, row + 0.5, right, down, 0.19 + 0.25 * chance, 0.5 + 0.5 * strength))
            colors.append((0.11, 0.115, 0.12, 0.35 + 0.65 * strength))
    return outlines, colors


def draw_policy(axes: Axes, world: Grid, policy: Tensor, cell: float) -> PolyCollection | None:
    """Arrows of ``policy`` [states, actions] and a dot in each cell; None where cells are too small for arrows."""
    if cell < LEAST_ARROWS:
        return None
    outlines, colors = arrows_of(world, policy.detach().cpu().tolist())
    arrows = PolyCollection(outlines, facecolors=colors, edgecolors="none", linewidths=0, gid="arrows", zorder=3)
    axes.add_collection(arrows, autolim=False)
    dots = [disc(column + 0.5, row + 0.5, 0.035) for row, column in _free(world)]
    axes.add_collection(PolyCollection(dots, facecolors=INK, edgecolors="none", zorder=4), autolim=False)
    return arrows
