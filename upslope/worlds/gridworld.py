"""A gridworld written as text: the standing oracle, solved exactly by ``maths.bellman``.

A map is rows of tokens separated by white space: ``#`` a wall, ``.`` a free cell, ``S`` a free cell where episodes
start (without any ``S``, every free cell is a start), and a number such as ``+5`` or ``-1``: a terminal cell worth that
many points. A move goes up, right, down or left and costs ``step_cost``; moves into walls and over the border do not
exist.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from upslope.errors import InputError
from upslope.maths.bellman import Mdp

Cell: TypeAlias = tuple[int, int]
"""``(row, column)``, counted from 0 at the top left."""

ACTIONS = ("up", "right", "down", "left")
"""Names of the actions 0 to 3."""

_STEPS: tuple[Cell, ...] = ((-1, 0), (0, 1), (1, 0), (0, -1))
_POINTS = re.compile(r"[+-]?\d+(\.\d+)?")

SIX_BY_SIX = """
 .   .   .   .   .  +5
 .   #   #   .   #   .
 .   .   .  -1   .   .
 .   #   .   #   #   .
+4   .   .   .   .   .
 .   #   .   #   .   .
"""
"""The built-in 6x6 map: 25 free cells, ends worth +5, +4 and -1."""


@dataclass(frozen=True, slots=True, eq=False)
class Gridworld:
    """A parsed map.

    ``cells[s]`` is the cell of state ``s``, row by row: free cells and terminals; ``index`` is its inverse.
    ``terminals`` maps terminal cells to their points; ``starts`` are the cells where episodes begin.
    """

    rows: int
    columns: int
    cells: tuple[Cell, ...]
    index: Mapping[Cell, int]
    walls: frozenset[Cell]
    terminals: Mapping[Cell, float]
    starts: tuple[Cell, ...]
    step_cost: float

    ACTIONS: ClassVar[tuple[str, ...]] = ACTIONS

    def neighbour(self, cell: Cell, action: int) -> Cell | None:
        """Where a move leads; None if it does not exist (a wall, the border, or ``cell`` is terminal)."""
        there = (cell[0] + _STEPS[action][0], cell[1] + _STEPS[action][1])
        return there if there in self.index and cell not in self.terminals else None

    def mdp(self) -> Mdp:
        """The grid as arrays, in float64: reward ``-step_cost``, plus its points on entering a terminal (value 0).

        States are ``cells``, actions ``ACTIONS``; moves that do not exist are not available.
        """
        states, actions = len(self.cells), len(ACTIONS)
        transition = torch.zeros(states, actions, states, dtype=torch.float64)
        reward = torch.zeros(states, actions, dtype=torch.float64)
        available = torch.zeros(states, actions, dtype=torch.bool)
        for state, cell in enumerate(self.cells):
            for action in range(actions):
                there = self.neighbour(cell, action)
                if there is not None:
                    transition[state, action, self.index[there]] = 1.0
                    reward[state, action] = self.terminals.get(there, 0.0) - self.step_cost
                    available[state, action] = True
        terminal = torch.tensor([cell in self.terminals for cell in self.cells])
        return Mdp(transition, reward, terminal, available)

    def display_values(self, values: Float[Tensor, " states"]) -> Float[Tensor, " states"]:
        """``values`` with each terminal showing its points instead of 0.

        In this view, and with optimal values under discount 1, every free cell equals its best neighbour minus
        ``step_cost``.
        """
        shown = values.clone()
        for cell, points in self.terminals.items():
            shown[self.index[cell]] = points
        return shown


def parse(text: str, step_cost: float = 1.0) -> Gridworld:
    """Read a map (see the top of this file). Blank lines are skipped.

    Raises InputError, naming row and column counted from 1: an unknown token, rows of unequal length, no terminal, no
    free cell, a free cell that no move leaves, or a ``step_cost`` that is negative or not finite.
    """
    if not (math.isfinite(step_cost) and step_cost >= 0):
        raise InputError("step_cost", f"found {step_cost}, expected a number that is not negative", "use 1.0")
    grid = [line.split() for line in text.splitlines() if line.strip()]
    for row, tokens in enumerate(grid):
        if len(tokens) != len(grid[0]):
            raise InputError(
                f"map row {row + 1}",
                f"found {len(tokens)} tokens, expected {len(grid[0])} as in row 1",
                "write one token a cell, separated by spaces, and rows of equal length",
            )
    tokens_at = {(row, column): token for row, tokens in enumerate(grid) for column, token in enumerate(tokens)}
    for (row, column), token in tokens_at.items():
        if token not in ("#", ".", "S") and not _POINTS.fullmatch(token):
            raise InputError(
                f"map row {row + 1}, column {column + 1}",
                f"found {token!r}, expected '#', '.', 'S' or points such as +5",
                "replace that token",
            )
    cells = tuple(cell for cell, token in tokens_at.items() if token != "#")
    terminals = {cell: float(token) for cell, token in tokens_at.items() if _POINTS.fullmatch(token)}
    free = tuple(cell for cell in cells if cell not in terminals)
    if not free:
        raise InputError("map", "found no free cell, expected at least one", "write '.' where one may walk")
    if not terminals:
        raise InputError("map", "found no terminal cell, expected at least one", "write points such as +5 in a cell")
    world = Gridworld(
        rows=len(grid),
        columns=len(grid[0]),
        cells=cells,
        index={cell: state for state, cell in enumerate(cells)},
        walls=frozenset(cell for cell, token in tokens_at.items() if token == "#"),
        terminals=terminals,
        starts=tuple(cell for cell in free if tokens_at[cell] == "S") or free,
        step_cost=float(step_cost),
    )
    for row, column in free:
        if all(world.neighbour((row, column), action) is None for action in range(len(ACTIONS))):
            raise InputError(
                f"map row {row + 1}, column {column + 1}",
                "found a free cell between walls that no move leaves",
                "open a cell beside it, or make it a wall",
            )
    return world
