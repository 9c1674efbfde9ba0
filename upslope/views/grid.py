"""Values and policy of a gridworld, side by side: what the grid is worth, and where to go."""

from __future__ import annotations

import math

from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from upslope.views import grid_map as maps
from upslope.views.grid_canvas import color_of, faint, scale_of
from upslope.views.grid_map import Grid


def grid_figure(
    world: Grid,
    values: Float[Tensor, " states"],
    policy: Float[Tensor, "states actions"],
    title: str = "Values and policy",
) -> Figure:
    """A figure of two panels: values with their numbers, and the policy with arrows.

    ``values[s]`` in points; terminal cells show their points whatever ``values`` says there; -inf is shown as ``-∞``.
    ``policy[s, a]`` probabilities in the order of ``world.ACTIONS``. An arrow's length grows with the probability of
    its action, and ties have several arrows. Starts and cells with a cost of their own are marked. Raises
    ``InputError`` where the shapes do not fit the world.
    """
    numbers = maps.shown_values(world, values)
    maps.fit_world(world, "policy", policy, len(world.index), len(world.ACTIONS))
    scale, across = scale_of(numbers), maps.pair_across(world)
    cell = maps.cell_inches(world, across)
    colors = [color_of(number, scale) for number in numbers]
    written = maps.can_write(world, numbers, cell)
    notes = maps.mark_notes(world, cell)
    notes += [maps.NEVER_ENDS] if any(number == -math.inf for number in numbers) else []
    notes += [] if written else [maps.NO_NUMBERS]
    notes += [] if cell >= maps.LEAST_ARROWS else [maps.NO_ARROWS]
    captions = ("value: expected points from here", "policy: the longer the arrow, the likelier")
    figure, (left, right) = maps.panels(world, captions, across, title, notes, bar=not written)
    maps.draw_cells(left, world, colors)
    maps.draw_numbers(left, world, numbers, colors, cell)
    pale = [faint(color) for color in colors]
    for cell_at in world.terminals:
        pale[world.index[cell_at]] = colors[world.index[cell_at]]
    maps.draw_cells(right, world, pale)
    maps.draw_policy(right, world, policy, cell)
    for axes, shades in ((left, colors), (right, pale)):
        maps.draw_marks(axes, world, shades, cell)
        maps.draw_terminals(axes, world, shades, cell)
    if not written:
        maps.color_bar(left, scale, cell, world.rows)
    return figure
