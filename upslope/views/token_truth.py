"""Walks of the text gridworld: the advantage that was estimated for each move above the exact one, and the path."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upslope.errors import InputError
from upslope.views.numbers import finite, short
from upslope.views.page import Section, missing
from upslope.views.run_files import read_facts, require_run
from upslope.views.safe_text import clean_html
from upslope.views.tokens import TokenRow, read_token_rows, step_picker
from upslope.worlds.task import load_task
from upslope.worlds.text_walks import MOVES

TASK = "text-grid"
EPISODES = 6
"""Walks shown of a step; equal ones once."""
SIDE = 40.0
"""Of a cell, in the drawing's own units."""
LANE = 0.2
"""A path keeps to its right, in cells, so that there and back do not cover each other."""
NUMBERED = 10
"""Moves are numbered on maps of at most so many columns."""
CERTAIN = 0.01
"""Points; a true advantage smaller than this has no sign worth a count."""
ARROWS = dict(zip(MOVES, "↑→↓←", strict=True))
WAYS = {"U": (-1, 0), "R": (0, 1), "D": (1, 0), "L": (0, -1)}  # row, column

NONE = (
    "No row of rollouts/ has exact advantages: a run writes them where the walks after a prompt are few enough to be "
    "enumerated."
)
KINDS = {
    "ppo": (
        "PPO estimates each move's advantage from the rewards that followed (less a KL penalty, where there is one) "
        "and the critic's values: GAE, here in points, before whitening. It errs where the critic errs, and it knows "
        "this walk only. Under it: the walk's expected score before each move, as the critic saw it and as it was."
    ),
    "grpo": (
        "GRPO has one number for a walk: its score beside those of the other walks from this start. Each of its moves "
        "gets that number, the good ones and the bad ones. Over many walks this is right on average: what it adds to "
        "the exact advantage does not depend on the move."
    ),
}
EXACT = (
    "The true advantage of move a after the moves h is A(h, a) = Q(h, a) − V(h) of the policy that walked, computed "
    "over every walk that it could have made from here: by how many points the move changes the expected score."
)


@dataclass(frozen=True, slots=True)
class Walk:
    """A row with exact numbers: its tokens up to the walk's end, and the cells (row, column) that it came through."""

    row: TokenRow
    tokens: int
    cells: tuple[tuple[int, int], ...]

    def estimate(self, token: int) -> float | None:
        name = "estimates" if "estimates" in self.row.columns else "advantages"
        return self.row.number(name, token)

    def truth(self, token: int) -> float | None:
        return self.row.number("true_advantages", token)

    def word(self, token: int) -> str:
        return self.row.pieces[token].strip()


def has_truth(run: Path) -> bool:
    """Whether the run is one on the text gridworld."""
    data = (read_facts(run) or {}).get("data")
    return isinstance(data, dict) and data.get("task") == TASK


def truth_section(run: Path, title: str = "Estimated and true advantage") -> Section:
    """For some walks of six steps of a text-grid run: their path, and at each move the estimated advantage above A^pi.

    Raises ``InputError`` where ``run`` is not a run folder.
    """
    facts = read_facts(require_run(run)) or {}
    found = {
        step: walks
        for step, rows in read_token_rows(run).items()
        if (walks := [walk for row in rows if (walk := _walk(row)) is not None])
    }
    if not found:
        return Section(title, missing(NONE))
    data: Any = facts.get("data")
    options = data.get("options") if isinstance(data, dict) else None
    try:
        task: Any = load_task(TASK, options if isinstance(options, dict) else {})
        found = {step: [_placed(walk, task) for walk in walks] for step, walks in found.items()}
        note, world = "", task.grid
    except InputError as error:
        note, world = missing(f"The map cannot be drawn: {error}"), None
    chosen = {step: _different(walks) for step, walks in found.items()}
    every = [number for walks in chosen.values() for walk in walks for number in _both(walk)]
    end = max((abs(number) for number in every), default=0.0) or 1.0
    key = f"map-{zlib.crc32(repr((facts.get('id'), every)).encode()):08x}"
    blocks = "".join(
        f'<div data-step="{step}"><h3>Step {step}</h3>{_agreement(found[step])}'
        f'<div class="walks">{"".join(_episode(walk, world, key, end) for walk in walks)}</div></div>'
        for step, walks in chosen.items()
    )
    how = KINDS.get(str(facts.get("recipe")), "The estimate is what the recipe used.")
    legend = (
        f'<div class="scale-line"><span>{_points(-end)}</span><i class="scale signed"></i>'
        f"<span>{_points(end)} points</span></div>"
    )
    drawn = "" if world is None else _map(world, key)
    return Section(
        title,
        f'<div class="truths"><p>{how}</p><p>{EXACT}</p>{note}{legend}{drawn}{step_picker(found)}{blocks}</div>',
    )


# -------------------------------------------------------------------------------------------------------------- reading
def _walk(row: TokenRow) -> Walk | None:
    """The walk, if exact advantages stand at its beginning."""
    exact = row.columns.get("true_advantages", ())
    tokens = next((place for place, value in enumerate(exact) if value is None), len(exact))
    return Walk(row, tokens, ()) if tokens else None


def _placed(walk: Walk, task: Any) -> Walk:
    """The walk with its cells, by the task's rules; without them where it does not fit the map."""
    start = tuple(int(part) for part in str(walk.row.row.get("prompt_id")).split("-") if part.isdecimal())
    state = task.grid.index.get(start)
    if state is None:
        return walk
    places, found = list(task.grid.index), [start]
    for token in range(walk.tokens):
        word = walk.word(token)
        following = task.rules.following[state]
        there = following[MOVES.index(word)] if word in MOVES and following else None
        if there is None:
            break  # a token that is no legal move ended the walk
        state = there
        found.append(places[state])
    return Walk(walk.row, walk.tokens, tuple(found))  # type: ignore[arg-type]


def _different(walks: Sequence[Walk]) -> list[Walk]:
    """The first of every different walk, at most ``EPISODES``."""
    found = {(str(walk.row.row.get("prompt")), walk.row.pieces): walk for walk in reversed(walks)}
    return list(reversed(found.values()))[:EPISODES]


def _both(walk: Walk) -> list[float]:
    found = [number for token in range(walk.tokens) for number in (walk.estimate(token), walk.truth(token))]
    return [number for number in found if number is not None]


def _agreement(walks: Sequence[Walk]) -> str:
    """A sentence on how often the estimates of all solved walks of a step had the right sign."""
    pairs = [(walk.estimate(token), walk.truth(token)) for walk in walks for token in range(walk.tokens)]
    known = [(ours, exact) for ours, exact in pairs if ours is not None and exact is not None]
    clear = [(ours, exact) for ours, exact in known if abs(exact) >= CERTAIN]
    count = f"{len(walks)} walk{'' if len(walks) == 1 else 's'} solved"
    if not clear:
        return f'<p class="note">{count}; at no move did the choice matter.</p>'
    right = sum(ours * exact > 0 for ours, exact in clear)
    apart = sum(abs(ours - exact) for ours, exact in known) / len(known)
    return (
        f'<p class="note">{count}. At {len(clear)} of {len(known)} moves the choice mattered; the estimate had the '
        f"right sign at {right} of them. Mean distance from the truth: {short(apart)} points.</p>"
    )


# -------------------------------------------------------------------------------------------------------------- a walk
def _episode(walk: Walk, world: Any, key: str, end: float) -> str:
    score = finite(walk.row.row, "reward")
    expected = walk.row.number("true_values", 0)
    moves = f"{walk.tokens} move{'' if walk.tokens == 1 else 's'}"
    told = f"{moves}, score <b>{_points(score).removesuffix('.00')}</b>"
    if expected is not None:
        told += f"; expected from this start: {_points(expected)}"
    drawn = "" if world is None or not walk.cells else _path(walk, world, key, end)
    return f'<figure class="walk">{drawn}<div><figcaption>{told}</figcaption>{_table(walk, end)}</div></figure>'


def _table(walk: Walk, end: float) -> str:
    places = range(walk.tokens)
    heads = "".join(
        f'<th scope="col">{place + 1}<b>{ARROWS.get(walk.word(place)) or clean_html(walk.word(place), 12)}</b></th>'
        for place in places
    )
    estimates = [walk.estimate(place) for place in places]
    same = len(set(estimates)) == 1 and walk.tokens > 1
    row = (
        _colored(estimates[0], end, f' colspan="{walk.tokens}"')
        if same
        else "".join(_colored(value, end) for value in estimates)
    )
    body = f'<tr><th scope="row">estimated</th>{row}</tr>'
    body += f'<tr><th scope="row">true A</th>{"".join(_colored(walk.truth(place), end) for place in places)}</tr>'
    for name, label in (("values", "critic"), ("true_values", "true V")):
        if "values" in walk.row.columns and name in walk.row.columns:
            cells = "".join(f"<td>{_points(walk.row.number(name, place))}</td>" for place in places)
            body += f'<tr class="soft"><th scope="row">{label}</th>{cells}</tr>'
    return (
        '<div class="truth-scroll"><table class="truth"><thead><tr><th scope="col">move</th>'
        f"{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _colored(value: float | None, end: float, more: str = "") -> str:
    if value is None:
        return f"<td{more}>-</td>"
    return f'<td class="v" style="--v:{min(max(value / end, -1.0), 1.0):.2g}"{more}>{_points(value)}</td>'


def _points(value: float | None) -> str:
    """Points with their sign and two decimals."""
    if value is None:
        return "-"
    return "0" if abs(value) < 0.005 else f"{value:+.2f}".replace("-", "−")


# -------------------------------------------------------------------------------------------------------------- the map
def _map(world: Any, key: str) -> str:
    """The map once, for every walk to stand on."""
    top = max((abs(points) for points in world.terminals.values()), default=0.0) or 1.0
    parts = []
    for row in range(world.rows):
        for column in range(world.columns):
            cell = (row, column)
            kind = "wall" if cell in world.walls else "free"
            style = ""
            if cell in world.terminals:
                kind, style = "end", f' style="--v:{world.terminals[cell] / top:.2g}"'
            x, y = SIDE * column, SIDE * row
            box = f'x="{x:g}" y="{y:g}" width="{SIDE:g}" height="{SIDE:g}"'
            parts.append(f'<rect class="mc" {box}/>')
            if kind == "wall":
                parts.append(f'<rect class="mw" {box}/>')
            elif kind == "end":
                parts += [f'<rect class="m{side}"{style} {box}/>' for side in ("u", "d")]
                parts.append(
                    f'<text class="mt" x="{x + SIDE / 2:g}" y="{y + SIDE / 2:g}">'
                    f"{world.terminals[cell]:+g}</text>".replace(">-", ">−")
                )
    wide, high = SIDE * world.columns, SIDE * world.rows
    frame = f'<rect class="mf" x="0" y="0" width="{wide:g}" height="{high:g}"/>'
    return (
        f'<svg class="defs" aria-hidden="true" width="0" height="0"><symbol id="{key}" viewBox="0 0 {wide:g} {high:g}">'
        f"{''.join(parts)}{frame}</symbol></svg>"
    )


def _path(walk: Walk, world: Any, key: str, end: float) -> str:
    """The map with the walk on it: an arrow a move, numbered, the number coloured by the true advantage."""
    wide, high = SIDE * world.columns, SIDE * world.rows
    ways: dict[tuple[tuple[int, int], tuple[int, int], bool], list[int]] = {}
    for move, (here, there) in enumerate(zip(walk.cells, walk.cells[1:], strict=False)):
        way = WAYS[walk.word(move)]
        ways.setdefault((here, way, here != there), []).append(move)
    lines, badges = [], []
    for ((row, column), (down, right), moved), numbers in ways.items():
        enters = (row + down, column + right) in world.terminals
        x = SIDE * (column + 0.5 - LANE * down)
        y = SIDE * (row + 0.5 + LANE * right)
        length = SIDE * (0.68 if enters else 0.9 if moved else 0.4)
        lines.append(_arrow(x, y, right, down, length))
        if world.columns > NUMBERED:
            continue
        at = length * 0.32
        value = walk.truth(numbers[0]) if len(numbers) == 1 else None
        style = f' style="--v:{min(max((value or 0.0) / end, -1.0), 1.0):.2g}"'
        text = ",".join(str(number + 1) for number in numbers[:2]) + ("…" if len(numbers) > 2 else "")
        spot = f'cx="{x + at * right:g}" cy="{y + at * down:g}" r="{7.5 if len(numbers) == 1 else 9.5:g}"'
        badges += [f'<circle class="b{side}"{style} {spot}/>' for side in ("p", "u", "d")]
        small = "" if len(numbers) == 1 else " bs"
        badges.append(f'<text class="bt{small}" x="{x + at * right:g}" y="{y + at * down:g}">{text}</text>')
    (row, column) = walk.cells[0]
    dot = f'<circle class="first" cx="{SIDE * (column + 0.5):g}" cy="{SIDE * (row + 0.5):g}" r="4.5"/>'
    words = " ".join(walk.word(token) for token in range(walk.tokens))
    label = clean_html(f"the walk {words} from row {row + 1}, column {column + 1}", 200)
    return (
        f'<svg class="walk-map" viewBox="-1 -1 {wide + 2:g} {high + 2:g}" role="img" aria-label="{label}">'
        f'<use href="#{key}" width="{wide:g}" height="{high:g}"/>{dot}{"".join(lines)}{"".join(badges)}</svg>'
    )


def _arrow(x: float, y: float, right: int, down: int, length: float) -> str:
    outline = [
        (0, -1.1),
        (length - 7, -1.1),
        (length - 7, -4),
        (length, 0),
        (length - 7, 4),
        (length - 7, 1.1),
        (0, 1.1),
    ]
    points = " ".join(
        f"{x + along * right - aside * down:.1f},{y + along * down + aside * right:.1f}" for along, aside in outline
    )
    return f'<polygon class="way" points="{points}"/>'
