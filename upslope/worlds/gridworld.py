"""A gridworld written as text: the standing oracle, solved exactly by ``maths.bellman``.

A map is rows of tokens separated by white space:

    #      a wall
    .      a free cell; ``S`` one where episodes start (without any ``S``, every free cell is a start)
    ~3     a free cell in which each move made costs 3 instead of the step cost; ``S~3`` the same as a start
    +5     a terminal cell worth that many points; an episode ends on arrival

A move goes up, right, down or left and costs what its departing cell costs. With probability ``slip`` it goes to one of
the two sides instead, each equally likely. What is a move into a wall or over the border? ``blocked="mask"``: it does
not exist (a slip into a wall stays). ``blocked="bump"``: it exists, stays and costs. A cell walled in on all four sides
keeps its four moves in either case, and they stay.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from upslope.errors import InputError
from upslope.maths.bellman import Mdp, SparseMdp

Cell: TypeAlias = tuple[int, int]
"""``(row, column)``, counted from 0 at the top left."""
Blocked: TypeAlias = Literal["mask", "bump"]

ACTIONS = ("up", "right", "down", "left")
"""Names of the actions 0 to 3, clockwise: the sides of action ``a`` are ``a - 1`` and ``a + 1`` modulo 4."""

_STEPS: tuple[Cell, ...] = ((-1, 0), (0, 1), (1, 0), (0, -1))
_POINTS = re.compile(r"[+-]?\d+(\.\d+)?", re.ASCII)
_FREE = re.compile(r"\.|S|S?~(?P<cost>\d+(\.\d+)?)", re.ASCII)

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
    ``terminals`` maps terminal cells to their points, ``costs`` the cells with a cost of their own to it; ``starts``
    are the cells where episodes begin, ``starts_given`` says whether the map names them.
    """

    rows: int
    columns: int
    cells: tuple[Cell, ...]
    index: Mapping[Cell, int]
    walls: frozenset[Cell]
    terminals: Mapping[Cell, float]
    costs: Mapping[Cell, float]
    starts: tuple[Cell, ...]
    starts_given: bool
    step_cost: float
    slip: float
    blocked: Blocked

    ACTIONS: ClassVar[tuple[str, ...]] = ACTIONS

    @property
    def text(self) -> str:
        """The map as ``parse`` reads it, its columns aligned."""
        tokens = [[self._token((row, column)) for column in range(self.columns)] for row in range(self.rows)]
        width = max(len(token) for line in tokens for token in line)
        return "\n".join(" ".join(token.rjust(width) for token in line) for line in tokens)

    def _token(self, cell: Cell) -> str:
        if cell in self.walls:
            return "#"
        if cell in self.terminals:
            return plain_number(self.terminals[cell], "+")
        start = "S" if self.starts_given and cell in self.starts else ""
        return f"{start}~{plain_number(self.costs[cell])}" if cell in self.costs else start or "."

    def cost(self, cell: Cell) -> float:
        """What a move made from ``cell`` costs."""
        return self.costs.get(cell, self.step_cost)

    def neighbour(self, cell: Cell, action: int) -> Cell | None:
        """The cell beside ``cell``; None if a wall or the border is there, or ``cell`` is terminal."""
        there = (cell[0] + _STEPS[action][0], cell[1] + _STEPS[action][1])
        return there if there in self.index and cell not in self.terminals else None

    def exists(self, cell: Cell, action: int) -> bool:
        """Whether the move may be chosen: see ``blocked`` at the top of this file."""
        if cell in self.terminals:
            return False
        if self.blocked == "bump" or self.neighbour(cell, action) is not None:
            return True
        return all(self.neighbour(cell, other) is None for other in range(len(ACTIONS)))

    def outcomes(self, cell: Cell, action: int) -> tuple[tuple[float, Cell], ...]:
        """``(probability, next cell)`` of a move: where it is aimed, then its two sides if the world is slippery.

        A blocked direction stays. Probabilities sum to 1; a cell may occur more than once. ``()`` in terminal cells.
        """
        if cell in self.terminals:
            return ()
        aims = [(1.0 - self.slip, action)]
        if self.slip > 0:
            aims += [(self.slip / 2, (action - 1) % 4), (self.slip / 2, (action + 1) % 4)]
        return tuple((chance, self.neighbour(cell, aim) or cell) for chance, aim in aims)

    def sparse_mdp(self) -> SparseMdp:
        """The grid as successor lists, in float64: 1 a move, 3 if slippery. For worlds of any size.

        The reward is expected: ``-cost(cell)``, plus the points of the terminal cells it may enter (their value is 0).
        """
        width = 3 if self.slip > 0 else 1
        successor, probability, reward, available = [], [], [], []
        for cell in self.cells:
            for action in range(len(ACTIONS)):
                outcomes = self.outcomes(cell, action) if self.exists(cell, action) else ()
                available.append(bool(outcomes))
                successor.append([self.index[there] for _, there in outcomes] or [0] * width)
                probability.append([chance for chance, _ in outcomes] or [0.0] * width)
                points = sum(chance * self.terminals.get(there, 0.0) for chance, there in outcomes)
                reward.append(points - self.cost(cell) if outcomes else 0.0)
        shape = (len(self.cells), len(ACTIONS))
        return SparseMdp(
            torch.tensor(successor).view(*shape, width),
            torch.tensor(probability, dtype=torch.float64).view(*shape, width),
            torch.tensor(reward, dtype=torch.float64).view(shape),
            torch.tensor([cell in self.terminals for cell in self.cells]),
            torch.tensor(available).view(shape),
        )

    def mdp(self) -> Mdp:
        """The grid as dense arrays, in float64. States are ``cells``, actions ``ACTIONS``. See ``sparse_mdp``."""
        return self.sparse_mdp().dense()

    def start_distribution(self) -> Float[Tensor, " states"]:
        """Uniform over ``starts``, in float64."""
        start = torch.zeros(len(self.cells), dtype=torch.float64)
        start[[self.index[cell] for cell in self.starts]] = 1.0 / len(self.starts)
        return start

    def display_values(self, values: Float[Tensor, " states"]) -> Float[Tensor, " states"]:
        """``values`` with each terminal showing its points instead of 0.

        In this view, and with optimal values under discount 1 and no slip, every free cell equals its best neighbour
        minus what a move from it costs.
        """
        shown = values.clone()
        for cell, points in self.terminals.items():
            shown[self.index[cell]] = points
        return shown


def plain_number(number: float, sign: str = "") -> str:
    """All digits that tell the number from its neighbours, without an exponent."""
    return format(Decimal(repr(number)), f"{sign}f").removesuffix(".0")


def parse(text: str, step_cost: float = 1.0, slip: float = 0.0, blocked: Blocked = "mask") -> Gridworld:
    """Read a map (see the top of this file). Blank lines are skipped.

    Raises InputError, naming row and column counted from 1: an unknown token, rows of unequal length, no terminal, no
    free cell, a ``step_cost`` that is negative or not finite, a ``slip`` outside [0, 1], an unknown ``blocked``.
    """
    if not (math.isfinite(step_cost) and step_cost >= 0):
        raise InputError("step_cost", f"found {step_cost}, expected a number that is not negative", "use 1.0")
    if not 0.0 <= slip <= 1.0:
        raise InputError("slip", f"found {slip}, expected a probability between 0 and 1", "use 0.1")
    if blocked not in ("mask", "bump"):
        raise InputError("blocked", f"found {blocked!r}, expected 'mask' or 'bump'", "use 'mask'")
    grid = [line.split() for line in text.splitlines() if line.strip()]
    for row, tokens in enumerate(grid):
        if len(tokens) != len(grid[0]):
            raise InputError(
                f"map row {row + 1}",
                f"found {len(tokens)} tokens, expected {len(grid[0])} as in row 1",
                "write one token a cell, separated by spaces, and rows of equal length",
            )
    tokens_at = {(row, column): token for row, tokens in enumerate(grid) for column, token in enumerate(tokens)}
    terminals, costs, free = {}, {}, []
    for (row, column), token in tokens_at.items():
        found = _FREE.fullmatch(token)
        if _POINTS.fullmatch(token) and math.isfinite(float(token)):
            terminals[row, column] = float(token)
        elif found and math.isfinite(float(found["cost"] or 0)):
            free.append((row, column))
            if found["cost"] is not None:
                costs[row, column] = float(found["cost"])
        elif token != "#":
            raise InputError(
                f"map row {row + 1}, column {column + 1}",
                f"found {token!r}, expected '#', '.', 'S', a cost such as ~3 or S~3, or points such as +5",
                "replace that token",
            )
    if not free:
        raise InputError("map", "found no free cell, expected at least one", "write '.' where one may walk")
    if not terminals:
        raise InputError("map", "found no terminal cell, expected at least one", "write points such as +5 in a cell")
    cells = tuple(cell for cell, token in tokens_at.items() if token != "#")
    starts = tuple(cell for cell in free if tokens_at[cell].startswith("S"))
    return Gridworld(
        rows=len(grid),
        columns=len(grid[0]),
        cells=cells,
        index={cell: state for state, cell in enumerate(cells)},
        walls=frozenset(cell for cell, token in tokens_at.items() if token == "#"),
        terminals=terminals,
        costs=costs,
        starts=starts or tuple(free),
        starts_given=bool(starts),
        step_cost=float(step_cost),
        slip=float(slip),
        blocked=blocked,
    )


def read(path: Path | str, step_cost: float = 1.0, slip: float = 0.0, blocked: Blocked = "mask") -> Gridworld:
    """Parse the map in a text file. Raises InputError that names the file; see ``parse``."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror or str(error)
        raise InputError(str(path), f"the map cannot be read: {what}", "give the path of a text file") from error
    try:
        return parse(text, step_cost, slip, blocked)
    except InputError as error:
        raise InputError(f"{path}, {error.where}", error.problem, error.fix) from error
