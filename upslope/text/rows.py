"""Dataset rows: read from files, folders and the hub, then checked and turned into prompts and examples.

Rows are recognised by their columns: ``prompt`` (and ``completion``), ``input`` (and ``output``), or ``messages``; each
plain text or a list of ``{"role", "content"}``. Any other names by a mapping, ours to theirs. Nothing is converted in
silence.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upslope.errors import InputError
from upslope.text.row_checks import check_columns, column_of, completion_of, conversation, prompt_of
from upslope.text.row_sources import READERS, Row, kind_of, read_folder, read_hub

if TYPE_CHECKING:
    from upslope.types import Content, Example, Prompt

_PEEKED = 8


@dataclass(frozen=True, slots=True)
class Table:
    """Rows as read, with their columns renamed. ``where`` names the source in messages; ``revision`` is the hub's, or
    ``""``.

    ``content_hash`` is a SHA-256 of the rows in order: it changes when a resumed run would meet other data.
    """

    where: str
    rows: list[Row]
    content_hash: str
    revision: str = ""

    def __len__(self) -> int:
        return len(self.rows)


def read_rows(source: str, split: str = "train", columns: Mapping[str, str] | None = None) -> Table:
    """Read all rows of a ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file, of a folder that ``datasets`` saved, or
    of a hub dataset ``org/name[:config][@revision]``. ``split`` is for the last two. ``columns`` maps our names to
    theirs.

    Raises:
        InputError: nothing there, no rows, a line that is not what it should be, a column of ``columns`` that is not
            there.
    """
    kind, where = kind_of(source)
    revision = ""
    if kind == "hub":
        rows, revision = read_hub(source, split)
    elif kind == "folder":
        rows = read_folder(Path(source).expanduser(), split)
    else:
        rows = list(READERS[kind](Path(source).expanduser()))
    if not rows:
        raise InputError(where, "0 rows, nothing to train on", "give a source with rows")
    rows = rename(rows, columns or {}, where)
    return Table(where, rows, content_hash(rows), revision)


def content_hash(rows: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 (hex) of the rows in order, each as JSON with sorted keys."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def rename(rows: Sequence[Row], columns: Mapping[str, str], where: str) -> list[Row]:
    """The rows with each of their columns ``columns[ours]`` called ``ours``; it takes the place of one of that name."""
    if not columns:
        return list(rows)
    there = list(dict.fromkeys(name for row in rows for name in row))
    for ours, theirs in columns.items():
        if theirs not in there:
            near = difflib.get_close_matches(theirs, there, n=1)
            problem = f"column {theirs!r} not in {where}. Columns: {', '.join(there)}"
            fix = f"did you mean data.columns.{ours}: {near[0]}?" if near else "map to a column that is there"
            raise InputError(f"data.columns.{ours}", problem, fix)
    taken = set(columns.values())
    return [
        {
            **{name: value for name, value in row.items() if name not in taken},
            **{o: row.get(t) for o, t in columns.items()},
        }
        for row in rows
    ]


def peek(source: str, columns: Mapping[str, str] | None = None, need: Sequence[str] = ("prompt",)) -> None:
    """Raise what reading ``source`` would raise about its place, its columns and its first rows, in little time.

    ``need`` are the columns that the recipe asks for; ``input`` or ``messages`` stand for ``prompt``, ``output`` or
    ``messages`` for ``completion``. The first rows are checked in full for ``("prompt",)``, prompts of RL, and
    ``("prompt", "completion")``, examples. Of a hub dataset only the form of its name is seen, of a folder that it is a
    saved dataset: the rest needs its library.
    """
    rows, where = first_rows(source, columns)
    if not rows:
        return
    check_columns(rows, where, need)
    if tuple(need) == ("prompt",):
        _prompts(rows, where)
    elif tuple(need) == ("prompt", "completion"):
        _examples(rows, where)


def first_rows(source: str, columns: Mapping[str, str] | None = None) -> tuple[list[Row], str]:
    """The first rows of a file with their columns renamed, and the source's name in messages; of a hub dataset or a
    folder no rows, for reading them needs their library."""
    kind, where = kind_of(source)
    if kind in ("hub", "folder"):
        return [], where
    rows = list(itertools.islice(READERS[kind](Path(source).expanduser()), _PEEKED))
    if not rows:
        raise InputError(where, "0 rows, nothing to train on", "give a source with rows")
    return rename(rows, columns or {}, where), where


def to_prompts(rows: Sequence[Mapping[str, Any]], where: str) -> list[Prompt]:
    """Prompts for RL: ``prompt``, ``input`` or ``messages`` is the prompt, every other column goes to the reward
    function.

    ``Prompt.id`` is the row's number, from 1. A conversation must end with the user's turn.

    Raises:
        InputError: a missing column (with the mapping that may mend it), or a bad row, by number.
    """
    from upslope.types import Prompt

    own, contents = _prompts(rows, where)
    return [
        Prompt(str(number), content, {name: value for name, value in row.items() if name != own})
        for number, (row, content) in enumerate(zip(rows, contents, strict=True), start=1)
    ]


def to_examples(rows: Sequence[Mapping[str, Any]], where: str) -> list[Example]:
    """Supervised rows: ``prompt`` and ``completion``, ``input`` and ``output``, or ``messages``. ``Example.id`` is the
    row's number, from 1.

    Raises:
        InputError: as ``to_prompts``; for ``messages`` a conversation without an answer at its end too.
    """
    from upslope.types import Example

    parts = _examples(rows, where)
    return [Example(str(number), prompt, completion) for number, (prompt, completion) in enumerate(parts, start=1)]


def _prompts(rows: Sequence[Mapping[str, Any]], where: str) -> tuple[str, list[Content]]:
    check_columns(rows, where, ("prompt",))
    name = column_of(rows, "prompt") or "prompt"
    return name, each_row(rows, where, lambda row: prompt_of(row, name))


def _examples(rows: Sequence[Mapping[str, Any]], where: str) -> list[tuple[Content, str | None]]:
    check_columns(rows, where, ("prompt", "completion"))
    prompt, completion = column_of(rows, "prompt") or "prompt", column_of(rows, "completion") or "completion"
    if "messages" in (prompt, completion):
        talk = lambda row: conversation(row.get("messages"), "messages", last="assistant")  # noqa: E731
        return each_row(rows, where, lambda row: (talk(row), None))
    return each_row(rows, where, lambda row: (prompt_of(row, prompt), completion_of(row, completion)))


def each_row(rows: Sequence[Mapping[str, Any]], where: str, convert: Callable[[Mapping[str, Any]], Any]) -> list[Any]:
    """``convert`` of each row; the first bad row is described and the other ones are counted."""
    converted, bad, first = [], [], None
    for number, row in enumerate(rows, start=1):
        try:
            converted.append(convert(row))
        except ValueError as error:
            bad.append(number)
            first = first or error
    if first is not None:
        listed = ", ".join(map(str, bad[:8])) + (", ..." if len(bad) > 8 else "")
        more = f" ({len(bad)} bad rows: {listed})" if len(bad) > 1 else ""
        raise InputError(f"{where} row {bad[0]}", f"{first}{more}", "correct or remove the row")
    return converted
