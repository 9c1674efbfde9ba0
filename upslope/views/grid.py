"""Pictures of a gridworld: values and policy as an image, and as text for the terminal.

Values are coloured on one diverging scale centred on 0 (orange below, blue above), which colour-blind readers can tell
apart. Actions that tie are all drawn, so an optimal policy shows every optimal way.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.style import Style
from rich.text import Text
from torch import Tensor

from upslope.errors import InputError

COLORS = LinearSegmentedColormap.from_list(
    "upslope", ["#b35806", "#f1a340", "#fee0b6", "#fbfbf9", "#c6dcf0", "#5ea3d3", "#08519c"]
)
WALL, INK, PAPER, LINE = "#8d9096", "#1c1d1f", "#ffffff", "#d5d7da"
STEPS = {"up": (-1, 0), "right": (0, 1), "down": (1, 0), "left": (0, -1)}  # row, column
ARROWS = {"up": "↑", "right": "→", "down": "↓", "left": "←"}
TEXT_ORDER = ("left", "up", "right", "down")
LEAST_DRAWN = 0.02  # probability below which no arrow is drawn
TIE = 0.95  # in text, actions with at least this share of the largest probability are shown
WIDTH_INCHES, DPI = 8.8, 125  # 1100 pixels
MARGIN, TITLE, CAPTION, MAX_CELL, MAX_HEIGHT = 0.2, 0.42, 0.36, 1.0, 12.0  # inches


@runtime_checkable
class Grid(Protocol):
    """What the pictures need of a gridworld (``upslope.worlds.gridworld.Gridworld`` has it)."""

    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def index(self) -> Mapping[tuple[int, int], int]: ...
    @property
    def walls(self) -> AbstractSet[tuple[int, int]]: ...
    @property
    def terminals(self) -> Mapping[tuple[int, int], float]: ...
    @property
    def ACTIONS(self) -> Sequence[str]: ...


def _check(world: Grid, values: Tensor, policy: Tensor) -> None:
    states, actions = len(world.index), len(world.ACTIONS)
    if tuple(values.shape) != (states,) or tuple(policy.shape) != (states, actions):
        raise InputError(
            "grid picture",
            f"values {tuple(values.shape)} and policy {tuple(policy.shape)} do not fit {states} states "
            f"and {actions} actions",
            f"pass values [{states}] and policy [{states}, {actions}]",
        )


def _points(points: float) -> str:
    """A terminal's points with their sign: ``+5``, ``-1``, ``+0.5``."""
    return f"{points:+.0f}" if float(points).is_integer() else f"{points:+g}"


def _number(value: float, decimals: int) -> str:
    if not math.isfinite(value):
        return "?"
    text = f"{value:.{decimals}f}"
    return text.lstrip("-") if float(text) == 0 else text  # no "-0.0"


def _decimals(values: list[float]) -> int:
    """0 where every value is whole, else 2 for small values and 1 for large ones."""
    known = [value for value in values if math.isfinite(value)]
    if all(abs(value - round(value)) < 1e-6 for value in known):
        return 0
    return 2 if max(abs(value) for value in known) < 100 else 1


def _scale(values: list[float]) -> Normalize:
    """Symmetric about 0, so that white is always 0."""
    top = max((abs(value) for value in values if math.isfinite(value)), default=0.0) or 1.0
    return Normalize(-top, top)


def _color(value: float, scale: Normalize) -> tuple[float, float, float]:
    if not math.isfinite(value):
        return (0.92, 0.92, 0.92)
    red, green, blue, _ = COLORS(float(scale(value)))
    return (red, green, blue)


def _ink(color: tuple[float, float, float]) -> str:
    """Dark or white text, whichever reads better on ``color`` (relative luminance, WCAG 2)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in color]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return INK if (luminance + 0.05) / 0.06 > 1.05 / (luminance + 0.05) else "#ffffff"


# ---------------------------------------------------------------------------------------------------------------- image
def grid_figure(
    world: Grid,
    values: Float[Tensor, " states"],
    policy: Float[Tensor, "states actions"],
    title: str = "Values and policy",
) -> Figure:
    """A figure of two panels: values with their numbers, and the policy with arrows.

    ``values[s]`` in points, with V(terminal) = its points; ``policy[s, a]`` probabilities in the order of
    ``world.ACTIONS``. An arrow's length grows with the probability of its action. Raises ``InputError`` where the
    shapes do not fit the world.
    """
    _check(world, values, policy)
    numbers = [float(value) for value in values.detach().cpu()]
    chances = policy.detach().cpu().tolist()
    stacked = world.columns > 1.8 * world.rows  # a wide grid is legible only at full width
    width = WIDTH_INCHES - 2 * MARGIN if stacked else (WIDTH_INCHES - 3 * MARGIN) / 2
    cell = min(width / world.columns, MAX_CELL, MAX_HEIGHT / world.rows)
    depth = cell * world.rows + CAPTION
    height = TITLE + depth * (2 if stacked else 1) + MARGIN / 2
    figure = Figure(figsize=(WIDTH_INCHES, height), dpi=DPI, facecolor=PAPER)
    FigureCanvasAgg(figure)
    figure.text(MARGIN / WIDTH_INCHES, 1 - 0.14 / height, title, va="top", fontsize=14, weight="bold", color=INK)
    scale, size = _scale(numbers), min(max(72 * cell * 0.25, 4.5), 17)
    for panel, name in enumerate(("value: expected points from here", "policy: the longer the arrow, the likelier")):
        left = MARGIN + (0 if stacked else panel * (width + MARGIN))
        top = TITLE + CAPTION + (panel * depth if stacked else 0)
        bounds = (left, height - top - cell * world.rows, cell * world.columns, cell * world.rows)
        unit = (WIDTH_INCHES, height, WIDTH_INCHES, height)
        x, y, wide, high = (length / whole for length, whole in zip(bounds, unit, strict=True))
        axes = figure.add_axes((x, y, wide, high))
        _cells(axes, world, numbers, scale, faint=panel == 1)
        axes.set_title(name, loc="left", fontsize=10, color="#55585e", pad=6)
        if panel == 0:
            _write_values(axes, world, numbers, scale, size)
        else:
            _draw_policy(axes, world, chances, size)
        _write_terminals(axes, world, numbers, scale, size)
    return figure


def _cells(axes: Axes, world: Grid, values: list[float], scale: Normalize, faint: bool) -> None:
    axes.set(xlim=(0, world.columns), ylim=(world.rows, 0), aspect="equal", anchor="NW")
    axes.axis("off")
    for row in range(world.rows):
        for column in range(world.columns):
            state = world.index.get((row, column))
            if state is None:
                color: tuple[float, float, float] | str = WALL
            else:
                color = _color(values[state], scale)
                if faint and (row, column) not in world.terminals:
                    color = tuple(1 - 0.3 * (1 - part) for part in color)  # type: ignore[assignment]
            axes.add_patch(Rectangle((column, row), 1, 1, facecolor=color, edgecolor=LINE, linewidth=0.8))
    axes.add_patch(
        Rectangle((0, 0), world.columns, world.rows, fill=False, edgecolor=INK, linewidth=1.4, clip_on=False)
    )


def _write_values(axes: Axes, world: Grid, values: list[float], scale: Normalize, size: float) -> None:
    decimals = _decimals(values)
    longest = max(len(_number(value, decimals)) for value in values)
    size = min(size, size * 4.5 / max(longest, 1))
    for (row, column), state in world.index.items():
        if (row, column) not in world.terminals:
            ink = _ink(_color(values[state], scale))
            text = _number(values[state], decimals)
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=size, color=ink)


def _draw_policy(axes: Axes, world: Grid, policy: list[list[float]], size: float) -> None:
    for (row, column), state in world.index.items():
        if (row, column) in world.terminals:
            continue
        x, y = column + 0.5, row + 0.5
        for chance, action in sorted(zip(policy[state], world.ACTIONS, strict=True)):  # the likeliest on top
            if not chance >= LEAST_DRAWN:  # also NaN
                continue
            down, right = STEPS[action]
            reach = 0.19 + 0.25 * min(chance, 1.0)
            head = size * (0.5 + 0.5 * min(2 * chance, 1.0))
            axes.annotate(
                "",
                xy=(x + right * reach, y + down * reach),
                xytext=(x, y),
                arrowprops={
                    "arrowstyle": f"-|>,head_length={head * 0.034:.3f},head_width={head * 0.018:.3f}",
                    "color": INK,
                    "linewidth": max(head * 0.15, 0.8),
                    "alpha": 0.35 + 0.65 * min(chance * 2, 1.0),
                    "shrinkA": 0,
                    "shrinkB": 0,
                    "mutation_scale": 10,
                },
            )
        axes.plot([x], [y], "o", color=INK, markersize=max(size * 0.16, 1.2))


def _write_terminals(axes: Axes, world: Grid, values: list[float], scale: Normalize, size: float) -> None:
    for (row, column), points in world.terminals.items():
        ink = _ink(_color(values[world.index[row, column]], scale))
        axes.text(
            column + 0.5, row + 0.5, _points(points), ha="center", va="center", fontsize=size, weight="bold", color=ink
        )
        axes.add_patch(
            Rectangle((column + 0.07, row + 0.07), 0.86, 0.86, fill=False, edgecolor=ink, linewidth=1.2, alpha=0.8)
        )


def grid_png(
    world: Grid,
    values: Float[Tensor, " states"],
    policy: Float[Tensor, "states actions"],
    title: str = "Values and policy",
) -> bytes:
    """The figure of ``grid_figure`` as a PNG, 1100 pixels wide. Equal inputs give equal bytes."""
    buffer = io.BytesIO()
    grid_figure(world, values, policy, title).savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def draw_grid(
    world: Grid,
    values: Float[Tensor, " states"],
    policy: Float[Tensor, "states actions"],
    path: Path | str,
    title: str = "Values and policy",
) -> Path:
    """Writes ``grid_png`` to ``path`` and returns it. Raises ``InputError`` where the folder does not exist."""
    target = Path(path)
    if not target.parent.is_dir():
        raise InputError(str(target), "its folder does not exist", f"create {target.parent} or give another path")
    target.write_bytes(grid_png(world, values, policy, title))
    return target


def grid_data_uri(
    world: Grid,
    values: Float[Tensor, " states"],
    policy: Float[Tensor, "states actions"],
    title: str = "Values and policy",
) -> str:
    """The picture as ``data:image/png;base64,...`` for a page that may load nothing."""
    return "data:image/png;base64," + base64.b64encode(grid_png(world, values, policy, title)).decode("ascii")


# ----------------------------------------------------------------------------------------------------------------- text
def grid_text(
    world: Grid,
    values: Float[Tensor, " states"],
    policy: Float[Tensor, "states actions"],
    color: bool = True,
) -> Text:
    """The grid for a terminal: in each cell its value above the arrows of its likeliest actions (ties together).

    Walls are filled, terminals show their points. Without ``color`` the text has no style; ``str`` of it is plain.
    """
    _check(world, values, policy)
    numbers = [float(value) for value in values.detach().cpu()]
    chances = policy.detach().cpu().tolist()
    decimals, scale = _decimals(numbers), _scale(numbers)
    written = {cell: _number(numbers[state], decimals) for cell, state in world.index.items()}
    written.update({cell: _points(points) for cell, points in world.terminals.items()})
    width = max(max(map(len, written.values())), len(TEXT_ORDER)) + 2

    def line(left: str, middle: str, right: str) -> str:
        return left + middle.join(["─" * width] * world.columns) + right

    text = Text(no_wrap=True)
    for row in range(world.rows):
        text.append(line("┌", "┬", "┐") if row == 0 else line("├", "┼", "┤")).append("\n")
        for part in ("value", "arrows"):
            for column in range(world.columns):
                cell = (row, column)
                state = world.index.get(cell)
                text.append("│")
                if state is None:
                    text.append("▒" * width, Style(color="grey50") if color else None)
                    continue
                terminal = cell in world.terminals
                if part == "value":
                    content = written[cell]
                else:
                    content = "" if terminal else _arrows(world, chances[state])
                text.append(content.center(width), _style(numbers[state], scale, terminal) if color else None)
            text.append("│\n")
    return text.append(line("└", "┴", "┘"))


def _arrows(world: Grid, chances: list[float]) -> str:
    """The arrows of the likeliest actions, in the order ← ↑ → ↓."""
    by_name = dict(zip(world.ACTIONS, chances, strict=True))
    most = max((chance for chance in chances if math.isfinite(chance)), default=0.0)
    return "".join(ARROWS[name] for name in TEXT_ORDER if most > 0 and by_name[name] >= TIE * most)


def _style(value: float, scale: Normalize, terminal: bool) -> Style:
    background = _color(value, scale)
    red, green, blue = (round(255 * part) for part in background)
    return Style(color=_ink(background), bgcolor=f"rgb({red},{green},{blue})", bold=terminal)
