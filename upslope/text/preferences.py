"""Preference rows: two answers to one prompt, a better and a worse one.

    {"prompt": "...", "chosen": "...", "rejected": "..."}              plain, or the prompt as a conversation
    {"prompt": [...], "chosen": [answer], "rejected": [answer]}        conversational: one assistant message each
    {"chosen": [..., answer], "rejected": [..., answer]}               the prompt is what both conversations begin with
    {"chosen": "Q ... A", "rejected": "Q ... B"}                       the prompt is what both texts begin with

A column ``margin`` may say by how much. Rows whose two answers are equal teach nothing: they are left out and counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from upslope.errors import InputError
from upslope.text.row_checks import check_columns, completion_of, conversation, found_words, prompt_of, usual_name
from upslope.text.rows import each_row, first_rows

if TYPE_CHECKING:
    from upslope.types import Content, Pair

OWN = ("prompt", "input", "chosen", "rejected", "margin")
Parts = tuple["Content", str, str, float, bool]


def peek_pairs(source: str, columns: Mapping[str, str] | None = None, skip_bad: bool = False) -> None:
    """Raise what reading the preferences of ``source`` would raise about its place, columns and first rows; see
    ``rows.peek``."""
    rows, where = first_rows(source, columns)
    if rows:
        ask = _columns(rows, where)
        if not skip_bad:
            each_row(rows, where, lambda row: _parts(row, ask))


def to_pairs(
    rows: Sequence[Mapping[str, Any]], where: str, left_out: list[int] | None = None
) -> tuple[list[Pair], int]:
    """Preferences, and how many rows were left out because their answers are equal. ``Pair.id`` is the row's number.

    Columns other than the preference's own go to ``Pair.columns``. ``left_out``: see ``rows.each_row``.

    Raises:
        InputError: no chosen and rejected, a bad row (by number), or all rows have two equal answers.
    """
    from upslope.types import Pair

    asked = _columns(rows, where)
    parts = each_row(rows, where, lambda row: _parts(row, asked), left_out)
    pairs, equal = [], 0
    for number, (row, part) in enumerate(zip(rows, parts, strict=True), start=1):
        if part is None:
            continue
        prompt, chosen, rejected, margin, joined = part
        if chosen == rejected:
            equal += 1
            continue
        columns = {name: value for name, value in row.items() if name not in OWN}
        pairs.append(Pair(str(number), prompt, chosen, rejected, margin, columns, joined))
    if not pairs:
        raise InputError(where, f"in all {equal} rows chosen and rejected are equal: nothing is preferred",
                         "give rows with a better and a worse answer")  # fmt: skip
    return pairs, equal


def _columns(rows: Sequence[Mapping[str, Any]], where: str) -> str | None:
    """The column of the prompt, if there is one; raises where the columns are not those of preferences."""
    there = list(dict.fromkeys(name for row in rows for name in row))
    missing = [name for name in ("chosen", "rejected") if name not in there]
    other = next(
        (names for names in (("messages",), ("prompt", "completion"), ("input", "output")) if set(names) <= set(there)),
        None,
    )
    if len(missing) == 2 and other is not None:
        problem = f"preferences need the columns chosen and rejected; found {' and '.join(other)}, rows for upslope sft"
        raise InputError(where, problem, "give pairs of a better and a worse answer, or run upslope sft")
    check_columns(rows, where, missing)
    asked = next((name for name in ("prompt", "input") if name in there), None)
    mapped = usual_name("prompt", there) if asked is None else None
    if mapped is not None and any(isinstance(row.get("chosen"), str) for row in rows):
        problem = f"column 'prompt' not in {where}. Columns: {', '.join(there)}"
        raise InputError(where, problem, f"map it: data.columns.prompt: {mapped}")
    return asked


def _parts(row: Mapping[str, Any], asked: str | None) -> Parts:
    """Prompt, both answers, margin, and whether the prompt was cut off a plain text."""
    given = None if asked is None else row.get(asked)
    sides = {name: row.get(name) for name in ("chosen", "rejected")}
    margin = _margin(row.get("margin")) if "margin" in row else 0.0
    lists = [isinstance(side, list | tuple) for side in sides.values()]
    if any(lists) and not all(lists):
        raise ValueError("one of chosen and rejected is text and the other a list of messages, expected the same kind")
    if all(lists) and (given is None or any(len(side or ()) > 1 for side in sides.values())):
        prompt, chosen, rejected = _conversations(sides["chosen"], sides["rejected"], given)
        return prompt, chosen, rejected, margin, False
    if asked is None:
        return *_shared_text(sides["chosen"], sides["rejected"]), margin, True
    prompt = prompt_of(row, asked)
    return prompt, completion_of(row, "chosen"), completion_of(row, "rejected"), margin, False


def _conversations(chosen: Any, rejected: Any, given: Any) -> tuple[Content, str, str]:
    """Two conversations that differ in their last answer. ``given`` is the row's own prompt: it must be in them."""
    better = conversation(chosen, "chosen", last="assistant")
    worse = conversation(rejected, "rejected", last="assistant")
    same = next((place for place, (a, b) in enumerate(zip(better, worse, strict=False)) if a != b), len(better) - 1)
    for name, talk in (("chosen", better), ("rejected", worse)):
        if len(talk) != same + 1:
            raise ValueError(
                f"{name} has {len(talk) - same} messages behind what both begin with ({same} messages), "
                "expected one: the last answer"
            )
    if not same:
        raise ValueError("chosen and rejected begin with different messages, expected the same prompt")
    prompt = better[:same]
    if given is not None:
        asked = [dict(message) for message in given] if isinstance(given, list | tuple) else given
        known = [dict(message) for message in prompt]
        if asked != known and not any(message["role"] == "user" and message["content"] == asked for message in prompt):
            raise ValueError("prompt is not what chosen and rejected begin with, expected the same conversation")
    return prompt, str(better[-1]["content"]), str(worse[-1]["content"])


def _shared_text(chosen: Any, rejected: Any) -> tuple[str, str, str]:
    """Two texts, cut before the white space that ends what both begin with."""
    better, worse = completion_of({"chosen": chosen}, "chosen"), completion_of({"rejected": rejected}, "rejected")
    end = next((n for n, (a, b) in enumerate(zip(better, worse, strict=False)) if a != b), min(len(better), len(worse)))
    if better == worse:
        return better, better, worse  # it will be counted and left out
    while end > 0:
        end = max((place for place in range(end) if better[place].isspace()), default=0)
        start = len(better[:end].rstrip())
        if start and better[start:].strip() and worse[start:].strip():
            return better[:start], better[start:], worse[start:]
    raise ValueError("chosen and rejected have no beginning in common, expected one prompt: give it as column prompt")


def _margin(value: Any) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"margin is {found_words(value)}, expected a number")
    return number
