"""A rendered row in the terminal: what the model is given, what is trained on, and the token that ends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.table import Table
from rich.text import Text

from upslope.views.safe_text import clean

Kind = Literal["prompt", "trained", "stop"]
STYLES: dict[str, str] = {"prompt": "", "trained": "bold green", "stop": "bold magenta", "sampled": "cyan"}
HEAD, TAIL = 1200, 600
"""Cells shown of a long stretch: so much of its beginning and of its end."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of tokens of one kind, as text."""

    kind: Kind
    text: str
    tokens: int


def segments(
    pieces: Sequence[str], token_ids: Sequence[int], trainable: Sequence[bool], stop_ids: Sequence[int]
) -> list[Segment]:
    """The row as stretches: ``prompt`` is not trained on, ``trained`` is, ``stop`` is an end token that is trained on.

    ``pieces`` is the text of each token. The stretches' texts joined are the row's text, their tokens its length.
    """
    found: list[Segment] = []
    for piece, token, wanted in zip(pieces, token_ids, trainable, strict=True):
        kind: Kind = "prompt" if not wanted else "stop" if token in stop_ids else "trained"
        if found and found[-1].kind == kind:
            last = found.pop()
            found.append(Segment(kind, last.text + piece, last.tokens + 1))
        else:
            found.append(Segment(kind, piece, 1))
    return found


def shown(text: str, style: str = "") -> Text:
    """``text`` on as many lines as it has, each line end written out as ``\\n``; a long one without its middle."""
    lines = text.split("\n")
    out = Text()
    for number, line in enumerate(lines):
        last = number == len(lines) - 1
        out.append(clean(line, HEAD + TAIL) if line else "", style=style)
        if not last:
            out.append("\\n", style="dim")
            out.append("\n" if number < len(lines) - 2 or lines[-1] else "")
    return out


def abridged(text: str) -> str:
    """``text`` with the middle of it counted and left out, where it is long."""
    if len(text) <= HEAD + TAIL:
        return text
    return f"{text[:HEAD]} [... {len(text) - HEAD - TAIL:,} characters ...] {text[-TAIL:]}"


def row_table(row: Sequence[Segment], label: Callable[[Segment], str], after: Sequence[tuple[str, Text]] = ()) -> Table:
    """A row's stretches below each other, each with its label; ``after`` are further labelled lines.

    The labels say what the colours say, for terminals and eyes that do not show them.
    """
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for segment in row:
        table.add_row(label(segment), shown(abridged(segment.text), STYLES[segment.kind]))
    for name, text in after:
        table.add_row(name, text)
    return table
