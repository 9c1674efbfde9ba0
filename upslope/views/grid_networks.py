"""The two networks of the grid, drawn for one state with what really flows through them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from upslope.errors import InputError
from upslope.views import grid_map as maps
from upslope.views.grid_canvas import (
    BLANK,
    BLUE,
    INK,
    LINE,
    MARGIN,
    SOFT,
    TITLE,
    UNKNOWN,
    WIDTH,
    color_of,
    foot,
    ink_on,
    number_text,
    place,
    scale_of,
    sheet,
)
from upslope.views.grid_map import Cell, Grid

MOST_UNITS = 16
SIDE, GAP = 2.2, 0.45  # inches: the map at the left, and between it and the networks
DEEP, HEAD = 2.35, 0.78  # inches: a column of units, and the words above it
SPACE = 0.25  # inches between the networks
OUTPUT = 1.75  # inches for what comes out


@dataclass(frozen=True, slots=True)
class Layer:
    """A column of units: a name, how many the layer has, and which are shown with their activations."""

    name: str
    size: int
    shown: tuple[int, ...]
    activations: tuple[float, ...]


def network_figure(
    world: Grid,
    cell: tuple[int, int],
    inputs: Float[Tensor, " features"],
    hidden_layers_value: Sequence[Tensor],
    value: float | Float[Tensor, ""],
    hidden_layers_policy: Sequence[Tensor],
    probabilities: Float[Tensor, " actions"],
    title: str = "One state through both networks",
) -> Figure:
    """The value network and the policy network for the state ``cell``.

    ``inputs`` [features] is what both are given for it; ``hidden_layers_*`` are the activations [units] of their hidden
    layers, first to last; ``value`` in points and ``probabilities`` [actions] come out. Units are coloured by their
    activation on one scale, centred on 0. Of a layer of more than 16 units, 16 evenly spaced ones are shown, of the
    inputs also the largest; the layer says so. Raises ``InputError`` where ``cell`` is no state or a shape is wrong.
    """
    state = world.index.get(cell)
    if state is None or cell in world.terminals:
        raise InputError("cell", f"{cell} is no free cell of the map", "give (row, column), counted from 0")
    maps.fit_world(world, "probabilities", probabilities, len(world.ACTIONS))
    given = _layer("input", inputs, keep_largest=True)
    value_layers = [given, *_hidden(hidden_layers_value)]
    policy_layers = [given, *_hidden(hidden_layers_policy)]
    everything = [*value_layers, *policy_layers]
    top = max(1.0, *(abs(number) for layer in everything for number in layer.activations if math.isfinite(number)))
    scale = Normalize(-top, top)
    notes = ["circles: units, coloured by their activation", "lines: fainter where the unit they come from is near 0"]
    height = TITLE + 2 * (HEAD + DEEP) + SPACE + 0.1 + foot(notes)
    figure = sheet(height, title, notes)
    _draw_state(figure, world, cell, inputs, scale)
    left = MARGIN + SIDE + GAP
    width = WIDTH - left - MARGIN
    for number, (name, layers) in enumerate((("value network", value_layers), ("policy network", policy_layers))):
        depth = HEAD + DEEP
        axes = place(figure, left, TITLE + number * (depth + SPACE), width, depth)
        axes.set(xlim=(0, width), ylim=(depth, 0))
        axes.axis("off")
        axes.text(0, 0.06, name, fontsize=11, weight="bold", color=INK, va="top", gid="network")
        ends = _ends(world, policy=number == 1)
        _draw_layers(axes, layers, scale, width - OUTPUT, ends)
        if number == 0:
            _draw_value(axes, world, float(value), width - OUTPUT)
        else:
            _draw_probabilities(axes, world, cell, probabilities.detach().cpu().tolist(), width - OUTPUT)
    return figure


def _hidden(layers: Sequence[Tensor]) -> list[Layer]:
    return [_layer(f"hidden {number}", layer) for number, layer in enumerate(layers, 1)]


def _layer(name: str, activations: Tensor, keep_largest: bool = False) -> Layer:
    if activations.ndim != 1 or len(activations) == 0:
        raise InputError(
            f"{name} of a network", f"has shape {tuple(activations.shape)}", "pass the numbers of one state [units]"
        )
    numbers = [float(number) for number in activations.detach().cpu()]
    return Layer(name, len(numbers), (shown := _thinned(numbers, keep_largest)), tuple(numbers[at] for at in shown))


def _thinned(numbers: list[float], keep_largest: bool) -> tuple[int, ...]:
    """All units, or 16 evenly spaced ones; the largest takes its nearest one's place where it must be among them."""
    if len(numbers) <= MOST_UNITS:
        return tuple(range(len(numbers)))
    shown = [round(step * (len(numbers) - 1) / (MOST_UNITS - 1)) for step in range(MOST_UNITS)]
    if keep_largest:
        largest = max(range(len(numbers)), key=lambda at: abs(numbers[at]))
        shown[min(range(MOST_UNITS), key=lambda place: abs(shown[place] - largest))] = largest
    return tuple(shown)


def _draw_state(figure: Figure, world: Grid, cell: Cell, inputs: Tensor, scale: Normalize) -> None:
    """The map with the state marked, what goes in, and the colour scale."""
    inches = min(SIDE / world.columns, 0.5, 3.4 / world.rows)
    top = TITLE + HEAD
    axes = place(figure, MARGIN, top, inches * world.columns, inches * world.rows)
    axes.set_title(f"the state: row {cell[0] + 1}, column {cell[1] + 1}", loc="left", fontsize=10, color=SOFT, pad=6)
    paper = [BLANK] * len(world.index)
    values = scale_of(world.terminals.values())
    for at, points in world.terminals.items():
        paper[world.index[at]] = color_of(points, values)
    maps.draw_cells(axes, world, paper)
    maps.draw_terminals(axes, world, paper, inches)
    marked = [maps.disc(cell[1] + 0.5, cell[0] + 0.5, max(0.32, 0.06 / inches))]
    axes.add_collection(PolyCollection(marked, facecolors=INK, edgecolors="none", gid="state", zorder=4))
    known = [float(number) for number in inputs.detach().cpu()]
    one_hot = sorted(known)[-1] == 1.0 and all(number == 0.0 for number in sorted(known)[:-1])
    kind = f"one-hot: {len(known)} numbers,\none for each state" if one_hot else f"{len(known)} numbers"
    if len(known) <= 4:
        kind = ", ".join(number_text(number, 2) for number in known)
    end = top + inches * world.rows + 0.15
    width, height = figure.get_size_inches()
    figure.text(MARGIN / width, 1 - end / height, f"goes in as {kind}", va="top", fontsize=10, color=INK, gid="input")
    bar = place(figure, MARGIN + 0.08, end + 0.85, SIDE * 0.85, 0.1)
    bar.set_title("activation", loc="left", fontsize=9, color=SOFT, pad=4)
    shades = [[color_of(scale.vmax * (step / 31.5 - 1), scale) for step in range(64)]]  # type: ignore[operator]
    bar.imshow(shades, aspect="auto", extent=(-1, 1, 0, 1))
    ends = [f"{scale.vmin:.3g}", "0", f"+{scale.vmax:.3g}"]
    bar.set_xticks([-1, 0, 1], ends, fontsize=9, color=SOFT)
    bar.set_yticks([])
    bar.tick_params(length=0, pad=2)
    for spine in bar.spines.values():
        spine.set(edgecolor=LINE, linewidth=0.8)


def _ends(world: Grid, policy: bool) -> list[float]:
    """Heights at which what comes out stands, in inches under the network's name."""
    count = len(world.ACTIONS) if policy else 1
    return [HEAD + DEEP / 2 + (number - (count - 1) / 2) * 0.5 for number in range(count)]


def _draw_layers(axes: Axes, layers: Sequence[Layer], scale: Normalize, width: float, ends: Sequence[float]) -> None:
    """Columns of units from 0 to ``width`` inches, joined by lines, the last to ``ends``."""
    top = float(scale.vmax)  # type: ignore[arg-type]
    across = [0.35 + number * (width - 0.35) / len(layers) for number in range(len(layers))]
    heights = [[_height(number, len(layer.shown)) for number in range(len(layer.shown))] for layer in layers]
    radius = min(0.062, 0.4 * DEEP / max(len(layer.shown) for layer in layers))
    lines, shades = [], []
    for number, layer in enumerate(layers):
        last = number == len(layers) - 1
        x = width + 0.02 if last else across[number + 1] - radius
        for y, activation in zip(heights[number], layer.activations, strict=True):
            for end in ends if last else heights[number + 1]:
                lines.append([(across[number] + radius, y), (x, end)])
                shades.append((0.33, 0.35, 0.38, 0.03 + 0.25 * min(abs(activation) / top, 1.0)))
    axes.add_collection(LineCollection(lines, colors=shades, linewidths=0.6, zorder=1, gid="lines"), autolim=False)
    for number, layer in enumerate(layers):
        x = across[number]
        colors = [color_of(activation, scale) for activation in layer.activations]
        circles = [maps.disc(x, y, radius) for y in heights[number]]
        units = PolyCollection(circles, facecolors=colors, edgecolors=SOFT, linewidths=0.7, zorder=2, gid="units")
        axes.add_collection(units, autolim=False)
        thinned = len(layer.shown) < layer.size
        count = f"{len(layer.shown)} of {layer.size} units" if thinned else f"{layer.size} unit{'s' * (layer.size > 1)}"
        if layer.name == "input":
            count = count.replace("unit", "number")
        axes.text(x, HEAD - 0.2, layer.name, fontsize=9.5, color=INK, ha="center", va="bottom", gid="layer")
        axes.text(x, HEAD - 0.05, count, fontsize=8, color=SOFT, ha="center", va="bottom", gid="layer")


def _height(number: int, count: int) -> float:
    step = min(DEEP / MOST_UNITS, DEEP / count)
    return HEAD + DEEP / 2 + (number - (count - 1) / 2) * step


def _draw_value(axes: Axes, world: Grid, value: float, left: float) -> None:
    color = color_of(value, scale_of([*world.terminals.values(), value]))
    circle = [maps.disc(left + 0.4, HEAD + DEEP / 2, 0.38)]
    axes.add_collection(PolyCollection(circle, facecolors=[color], edgecolors=INK, linewidths=1.2), autolim=False)
    text = number_text(value, 2)
    size = 14 if len(text) < 6 else 11
    middle = {"ha": "center", "va": "center_baseline"}
    axes.text(left + 0.4, HEAD + DEEP / 2, text, fontsize=size, color=ink_on(color), gid="value", **middle)  # type: ignore[arg-type]
    words = "value: the points\nit expects from here"
    axes.text(left + 0.02, HEAD + DEEP / 2 + 0.48, words, fontsize=9.5, color=INK, va="top")


def _draw_probabilities(axes: Axes, world: Grid, cell: Cell, chances: list[float], left: float) -> None:
    bar, reach = left + 0.55, 0.7
    for action, (name, y, chance) in enumerate(zip(world.ACTIONS, _ends(world, policy=True), chances, strict=True)):
        axes.text(left + 0.06, y, name, fontsize=10, color=INK, va="center_baseline")
        if not world.exists(cell, action):
            axes.text(bar, y, "no such move", fontsize=9.5, color=SOFT, va="center_baseline", gid="probability")
            continue
        for share, shade in ((1.0, UNKNOWN), (chance, BLUE)):
            axes.add_patch(Rectangle((bar, y - 0.09), reach * share, 0.18, facecolor=shade, edgecolor="none"))
        text = number_text(chance, 2)
        axes.text(bar + reach + 0.08, y, text, fontsize=10.5, color=INK, va="center_baseline", gid="probability")
    axes.text(left + 0.06, HEAD + 0.12, "probability of each move", fontsize=9.5, color=INK, va="top")
