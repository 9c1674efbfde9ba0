"""Maps: a few with names (the folder ``worlds/`` holds them as files too), and as many as you like by seed."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterator, Sequence

from upslope.errors import InputError
from upslope.seeds import derive
from upslope.worlds.gridworld import SIX_BY_SIX, Cell, plain_number

_CLIFF = """
.    .    .    .    .    .    .    .    .    .    .    .
.    .    .    .    .    .    .    .    .    .    .    .
.    .    .    .    .    .    .    .    .    .    .    .
S -100 -100 -100 -100 -100 -100 -100 -100 -100 -100  +20
"""
_ROOMS = """
 .   .   .   .   .   #   .   .   .   . +10
 .   .   .   .   .   #   .   .   .   .   .
 .   .   .   .   .   .   .   .   .   .   .
 .   .   .   .   .   #   .   .   .   .   .
 .   .   .   .   .   #   .   .   .   .   .
 #   .   #   #   #   #   .   .   .   .   .
 .   .   .   .   .   #   #   #   .   #   #
 .   .   .   .   .   #   .   .   .   .   .
 .   .   .   .   .   #   .   .   .   .   .
 .   .   .   .   .   .   .   .   .   .   .
+3   .   .   .   .   #   .   .   .  -1   .
"""
_MUD = """
  .   .   .   .   .   .   .   .
  .   #  ~2  ~2  ~2  ~2   #   .
  .  ~2  ~4  ~4  ~4  ~4  ~2   .
  S  ~2  ~4  ~6  ~6  ~4  ~2 +20
  .  ~2  ~4  ~4  ~4  ~4  ~2   .
  .   #  ~2  ~2  ~2  ~2   #   .
  .   .   .   .   .   .   .   .
"""
_MAZE = """
  S   .   .   #   .   .   .   .   .   .   .   .   .   #   .
  #   #   .   #   #   #   #   #   .   #   #   #   .   #   .
  .   #   .   .   .   .   .   #   .   #   .   #   .   #   .
  .   #   #   #   #   #   .   #   .   #   .   #   .   #   .
  .   .   .   .   .   .   .   #   .   #   .   #   .   #   .
  #   #   .   #   #   #   .   #   .   #   .   #   .   #   .
  .   .   .   #   .   .   .   #   .   #   .   .   .   .   .
  .   #   .   #   .   #   #   #   .   #   #   #   #   #   .
  .   #   .   #   .   .   .   .   .   .   .   #   .   #   .
  .   #   .   #   #   #   .   #   .   #   .   #   .   #   .
  .   #   .   #   .   .   .   #   .   #   .   #   .   .   .
  .   #   .   #   .   #   #   #   .   #   .   #   .   #   #
  .   #   .   #   .   #   .   .   .   #   .   #   .   #   .
  .   #   #   #   .   #   #   #   #   #   .   #   .   #   .
  .   .   .   .   .   .   .   .   .   .   .   .   .   . +40
"""

NAMED = {"six-by-six": SIX_BY_SIX, "cliff": _CLIFF, "rooms": _ROOMS, "mud": _MUD, "maze": _MAZE}
"""Map text by name. Cliff: the short way runs along ends of -100, the safe way above them (give it a slip). Rooms: four
rooms with narrow doors. Mud: cells that cost more, and a dry way round them. Maze: one way in, dead ends."""

_LEAST, _MOST = 3, 200  # sides of a generated map
_MOST_WALLS = 0.6
_ROOM = 5  # sides below this are not divided further
_CELLS_PER_GOAL, _CELLS_PER_TRAP = 120, 50
_CANDIDATES = 8


def named(name: str) -> str:
    """The text of a map in ``NAMED``. Raises InputError for another name."""
    if name not in NAMED:
        raise InputError("map name", f"found {name!r}, expected one of {', '.join(NAMED)}", "use one of these names")
    return NAMED[name].strip("\n")


def generate(rows: int, columns: int, seed: int, walls: float = 0.2, terminals: Sequence[float] | None = None) -> str:
    """A map of rooms, corridors and pillars, the same for the same arguments.

    ``walls`` is the share of cells that are walls, rounded, before some are taken out so that from every free cell one
    can walk to every terminal cell without passing through another. ``terminals`` lists the points of the terminal
    cells; by default one +5, one +4 and one -1, and in larger maps more of them (one of +4 or +3 every 120 cells, one
    of -1 every 50), as many as fit: no two stand side by side or corner to corner, and good ones keep their distance.

    Sides from 3 to 200. Raises InputError for sides, a share or points that cannot be had.
    """
    for where, side in (("rows", rows), ("columns", columns)):
        if not _LEAST <= side <= _MOST:
            raise InputError(where, f"found {side}, expected {_LEAST} to {_MOST}", f"use {max(_LEAST, 6)}")
    if not 0.0 <= walls <= _MOST_WALLS:
        raise InputError("walls", f"found {walls}, expected a share between 0 and {_MOST_WALLS}", "use 0.2")
    draw = random.Random(derive(seed, "map", rows, columns))
    wanted = _points(rows * columns, draw) if terminals is None else [float(points) for points in terminals]
    ends = _place(rows, columns, wanted, draw, must=terminals is not None)
    blocked = _walls(rows, columns, ends, round(walls * rows * columns), draw)
    _open(rows, columns, ends, blocked, draw)
    tokens = {**dict.fromkeys(blocked, "#"), **{cell: plain_number(points, "+") for cell, points in ends.items()}}
    width = max(len(token) for token in ["##", *tokens.values()])
    return "\n".join(
        " ".join(tokens.get((row, column), ".").rjust(width) for column in range(columns)) for row in range(rows)
    )


def _points(cells: int, draw: random.Random) -> list[float]:
    """Points by default, the good ones first."""
    goals = max(2, round(cells / _CELLS_PER_GOAL))
    traps = max(1, round(cells / _CELLS_PER_TRAP))
    return [5.0, 4.0, *(draw.choice([4.0, 3.0]) for _ in range(goals - 2)), *[-1.0] * traps]


def _around(cell: Cell, rows: int, columns: int, diagonal: bool = False) -> Iterator[Cell]:
    row, column = cell
    steps = [(-1, 0), (0, 1), (1, 0), (0, -1)] + ([(-1, -1), (-1, 1), (1, 1), (1, -1)] if diagonal else [])
    for down, right in steps:
        if 0 <= row + down < rows and 0 <= column + right < columns:
            yield row + down, column + right


def _place(rows: int, columns: int, wanted: Sequence[float], draw: random.Random, must: bool) -> dict[Cell, float]:
    """Where each of the points ends up. No two cells touch, so that the ends alone never part the map.

    Good ones take, of a few random cells, the one farthest from the good ones before it.
    """
    if not wanted or not all(math.isfinite(points) for points in wanted):
        found = "none" if not wanted else "points that are not finite"
        raise InputError("terminals", f"found {found}, expected at least one number", "give points such as [5, -1]")
    order = [(row, column) for row in range(rows) for column in range(columns)]
    draw.shuffle(order)
    ends: dict[Cell, float] = {}
    closed: set[Cell] = set()
    for points in wanted:
        good = [cell for cell, earlier in ends.items() if earlier > 0]
        candidates: list[Cell] = []
        while order and len(candidates) < (_CANDIDATES if points > 0 and good else 1):
            if (cell := order.pop()) not in closed:
                candidates.append(cell)
        if not candidates:
            if must:
                problem = f"found {len(wanted)} for {rows} x {columns} cells, of which {len(ends)} fit without touching"
                raise InputError("terminals", problem, "give fewer of them, or a larger map")
            break
        best = max(candidates, key=lambda cell: min((abs(cell[0] - r) + abs(cell[1] - c) for r, c in good), default=0))
        order = [cell for cell in candidates if cell != best] + order if len(candidates) > 1 else order
        ends[best] = points
        closed |= {best, *_around(best, rows, columns, diagonal=True)}
    return ends


def _walls(rows: int, columns: int, ends: dict[Cell, float], budget: int, draw: random.Random) -> set[Cell]:
    """Up to ``budget`` walls: lines that divide the largest room, each with a door, then single cells."""
    blocked: set[Cell] = set()
    lines = budget * draw.uniform(0.4, 0.9)
    rooms = [(0, 0, rows, columns)]  # top, left, height, width
    while rooms and len(blocked) < lines:
        rooms.sort(key=lambda room: room[2] * room[3])
        top, left, height, width = rooms.pop()
        across = height > width or (height == width and draw.random() < 0.5)  # the longer side is divided
        length, span = (height, width) if across else (width, height)
        if length < _ROOM or span + len(blocked) > budget + 1:
            continue
        at = draw.randrange(2, length - 2)
        doors = set(draw.sample(range(span), 1 + (span > 2 * _ROOM)))
        line = [(top + at, left + i) if across else (top + i, left + at) for i in range(span) if i not in doors]
        blocked |= {cell for cell in line if cell not in ends}
        if across:
            rooms += [(top, left, at, width), (top + at + 1, left, height - at - 1, width)]
        else:
            rooms += [(top, left, height, at), (top, left + at + 1, height, width - at - 1)]
    cells = [(row, column) for row in range(rows) for column in range(columns)]
    free = [cell for cell in cells if cell not in ends and cell not in blocked]
    blocked |= set(draw.sample(free, max(0, min(budget - len(blocked), len(free) - 1))))
    return blocked


def _open(rows: int, columns: int, ends: dict[Cell, float], blocked: set[Cell], draw: random.Random) -> None:
    """Take out walls until every free cell and every end can be walked to from beside the first end.

    One search over the cells that are no ends, in order of the walls to break; then each part that is cut off is joined
    by the fewest walls.
    """
    for end in ends:
        beside = list(_around(end, rows, columns))
        if all(cell in blocked for cell in beside):
            blocked.discard(draw.choice(beside))
    first = next(iter(ends))
    root = draw.choice([cell for cell in _around(first, rows, columns) if cell not in blocked])
    before: dict[Cell, Cell] = {root: root}
    broken, queue, order = {root: 0}, deque([root]), []
    done: set[Cell] = set()
    while queue:
        cell = queue.popleft()
        if cell in done:
            continue
        done.add(cell)
        order.append(cell)
        for there in _around(cell, rows, columns):
            if there in ends:
                continue
            cost = broken[cell] + (there in blocked)
            if cost < broken.get(there, rows * columns):
                broken[there], before[there] = cost, cell
                (queue.append if there in blocked else queue.appendleft)(there)
    joined = {root}
    for cell in order:  # the nearest first
        if cell in blocked or cell in joined:
            continue
        way = cell
        while way not in joined:
            joined.add(way)
            blocked.discard(way)
            way = before[way]
