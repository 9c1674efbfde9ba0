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
from typing import TYPE_CHECKING, Any, TypeVar

from upslope.errors import InputError
from upslope.text.row_checks import check_columns, column_of, completion_of, conversation, prompt_of
from upslope.text.row_sources import READERS, Row, kind_of, read_folder, read_hub

if TYPE_CHECKING:
    from upslope.types import Content, Example, Prompt

_PEEKED = 8
T = TypeVar("T")


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


FORMS = {"prompt", "completion", "input", "output", "messages", "chosen", "rejected", "margin"}


def rename(rows: Sequence[Row], columns: Mapping[str, str], where: str) -> list[Row]:
    """The rows with each of their columns ``columns[ours]`` called ``ours``; it takes the place of one of that name.

    A column keeps its own name beside ours, so that a reward finds what it asks for; but for names that say what a row
    is (``FORMS``).
    """
    if not columns:
        return list(rows)
    there = list(dict.fromkeys(name for row in rows for name in row))
    for ours, theirs in columns.items():
        if theirs not in there:
            near = difflib.get_close_matches(theirs, there, n=1)
            problem = f"column {theirs!r} not in {where}. Columns: {', '.join(there)}"
            fix = f"did you mean data.columns.{ours}: {near[0]}?" if near else "map to a column that is there"
            raise InputError(f"data.columns.{ours}", problem, fix)
    taken = set(columns.values()) & FORMS
    return [
        {
            **{name: value for name, value in row.items() if name not in taken},
            **{o: row.get(t) for o, t in columns.items()},
        }
        for row in rows
    ]


def peek(
    source: str, columns: Mapping[str, str] | None = None, need: Sequence[str] = ("prompt",), skip_bad: bool = False
) -> None:  # fmt: skip
    """Raise what reading ``source`` would raise about its place, its columns and its first rows, in little time.

    ``need`` are the columns that the recipe asks for; ``input`` or ``messages`` stand for ``prompt``, ``output`` or
    ``messages`` for ``completion``. The first rows are checked in full for ``("prompt",)``, prompts of RL, and
    ``("prompt", "completion")``, examples, unless bad rows are to be skipped. Of a hub dataset only the form of its
    name is seen, of a folder that it is a saved dataset: the rest needs its library.
    """
    rows, where = first_rows(source, columns)
    if not rows:
        return
    check_columns(rows, where, need)
    if tuple(need) == ("prompt",) and not skip_bad:
        _prompts(rows, where)
    elif tuple(need) == ("prompt", "completion") and not skip_bad:
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


def to_prompts(rows: Sequence[Mapping[str, Any]], where: str, left_out: list[int] | None = None) -> list[Prompt]:
    """Prompts for RL: ``prompt``, ``input`` or ``messages`` is the prompt, every other column goes to the reward
    function.

    ``Prompt.id`` is the row's number, from 1. A conversation must end with the user's turn. ``left_out``: see
    ``each_row``.

    Raises:
        InputError: a missing column (with the mapping that may mend it), or a bad row, by number.
    """
    from upslope.types import Prompt

    own, contents = _prompts(rows, where, left_out)
    return [
        Prompt(str(number), content, {name: value for name, value in row.items() if name != own})
        for number, (row, content) in enumerate(zip(rows, contents, strict=True), start=1)
        if content is not None
    ]


def to_examples(rows: Sequence[Mapping[str, Any]], where: str, left_out: list[int] | None = None) -> list[Example]:
    """Supervised rows: ``prompt`` and ``completion``, ``input`` and ``output``, or ``messages``. ``Example.id`` is the
    row's number, from 1.

    Raises:
        InputError: as ``to_prompts``; for ``messages`` a conversation without an answer at its end too.
    """
    from upslope.types import Example

    parts = enumerate(_examples(rows, where, left_out), start=1)
    return [Example(str(number), *part) for number, part in parts if part is not None]


def _prompts(
    rows: Sequence[Mapping[str, Any]], where: str, left_out: list[int] | None = None
) -> tuple[str, Sequence[Content | None]]:
    check_columns(rows, where, ("prompt",))
    name = column_of(rows, "prompt") or "prompt"
    return name, each_row(rows, where, lambda row: prompt_of(row, name), left_out)


def _examples(
    rows: Sequence[Mapping[str, Any]], where: str, left_out: list[int] | None = None
) -> Sequence[tuple[Content, str | None] | None]:
    check_columns(rows, where, ("prompt", "completion"))
    prompt, completion = column_of(rows, "prompt") or "prompt", column_of(rows, "completion") or "completion"
    if "messages" in (prompt, completion):
        talk = lambda row: conversation(row.get("messages"), "messages", last="assistant")  # noqa: E731
        return each_row(rows, where, lambda row: (talk(row), None), left_out)
    return each_row(rows, where, lambda row: (prompt_of(row, prompt), completion_of(row, completion)), left_out)


def each_row(
    rows: Sequence[Mapping[str, Any]], where: str, convert: Callable[[Mapping[str, Any]], T],
    left_out: list[int] | None = None,
) -> list[T | None]:  # fmt: skip
    """``convert`` of each row. Bad ones become None and their numbers go to ``left_out``, if it is given.

    Raises:
        InputError: a bad row without ``left_out``, or none that is good; the first is described, the others counted.
    """
    converted: list[T | None] = []
    bad: list[int] = []
    first = None
    for number, row in enumerate(rows, start=1):
        try:
            converted.append(convert(row))
        except ValueError as error:
            converted.append(None)
            bad.append(number)
            first = first or error
    if left_out is not None and len(bad) < len(rows):
        left_out += bad
    elif first is not None:
        more = f" ({len(bad)} bad rows: {listed(bad)})" if len(bad) > 1 else ""
        other = "" if len(bad) == len(rows) else ", or set data.on_bad_row: skip"
        raise InputError(f"{where} row {bad[0]}", f"{first}{more}", f"correct or remove the row{other}")
    return converted


def listed(numbers: Sequence[int]) -> str:
    """The first eight of them."""
    return ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
