"""The grid in a terminal: values and arrows in colour, readable without colour too."""

from __future__ import annotations

import math

from jaxtyping import Float
from matplotlib.colors import Normalize
from rich.style import Style
from rich.text import Text
from torch import Tensor

from upslope.views.grid_canvas import color_of, decimals_of, ink_on, number_text, points_text, scale_of
from upslope.views.grid_map import NEVER_ENDS, Grid, fit_world, mark_notes, marks_of, shown_values

ARROWS = {"up": "↑", "right": "→", "down": "↓", "left": "←"}
ORDER = ("left", "up", "right", "down")
TIE = 0.95  # actions with at least this share of the largest probability are shown


def grid_text(
    world: Grid,
    values: Float[Tensor, " states"],
    policy: Float[Tensor, "states actions"],
    color: bool = True,
) -> Text:
    """The grid for a terminal: in each cell its value above the arrows of its likeliest actions (ties together).

    Walls are filled, terminals show their points; ``S`` and ``~3`` before the arrows mark starts and costs, as on the
    map; -inf is ``-∞``. A last line explains the marks that occur. Without ``color`` the text has no style; ``str`` of
    it is plain. Raises ``InputError`` where the shapes do not fit the world.
    """
    numbers = shown_values(world, values)
    fit_world(world, "policy", policy, len(world.index), len(world.ACTIONS))
    chances = policy.detach().cpu().tolist()
    scale = scale_of(numbers)
    free = {cell: state for cell, state in world.index.items() if cell not in world.terminals}
    decimals = decimals_of(numbers[state] for state in free.values())
    above = {cell: number_text(numbers[state], decimals) for cell, state in free.items()}
    above.update({cell: points_text(points) for cell, points in world.terminals.items()})
    below = {cell: arrows(world, chances[state]) for cell, state in free.items()}
    marks = marks_of(world)
    for cell, mark in marks.items():
        below[cell] = f"{mark} {below[cell]}".rstrip()
    width = max(len(ORDER), *map(len, above.values()), *map(len, below.values())) + 2

    def line(left: str, middle: str, right: str) -> str:
        return left + middle.join(["─" * width] * world.columns) + right

    text = Text(no_wrap=True)
    for row in range(world.rows):
        text.append(line("┌", "┬", "┐") if row == 0 else line("├", "┼", "┤")).append("\n")
        for part in (above, below):
            for column in range(world.columns):
                state = world.index.get((row, column))
                text.append("│")
                if state is None:
                    text.append("▒" * width, Style(color="grey50") if color else None)
                    continue
                style = _style(numbers[state], scale, (row, column) in world.terminals) if color else None
                text.append(part.get((row, column), "").center(width), style)
            text.append("│\n")
    text.append(line("└", "┴", "┘"))
    notes = [*mark_notes(world), *([NEVER_ENDS] if -math.inf in numbers else [])]
    return text.append("\n" + "   ".join(notes), Style(dim=True) if color else None) if notes else text


def arrows(world: Grid, chances: list[float]) -> str:
    """The arrows of the likeliest actions, in the order ← ↑ → ↓."""
    by_name = dict(zip(world.ACTIONS, chances, strict=True))
    most = max((chance for chance in chances if math.isfinite(chance)), default=0.0)
    return "".join(ARROWS[name] for name in ORDER if most > 0 and by_name[name] >= TIE * most)


def _style(value: float, scale: Normalize, terminal: bool) -> Style:
    background = color_of(value, scale)
    red, green, blue = (round(255 * part) for part in background)
    return Style(color=ink_on(background), bgcolor=f"rgb({red},{green},{blue})", bold=terminal)
