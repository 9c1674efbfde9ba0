"""Reward functions for common cases, by name in a recipe. Each function here takes options and makes the reward.

A completion is text, or a conversation whose last message counts. Wherever a row's ``answer`` (or the column that takes
its place) is null, a reward does not apply to it and gives ``None``. A column may hold a list: any of its entries
counts. Needs only the standard library; ``math`` and ``json-schema`` need a package each.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path
from typing import Any

Reward = Callable[..., list[float | None]]

_SIGN = r"(?:(?<![\w)\]}])[-+\u2212][$\u20ac\u00a3]?)?"
_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_PLAIN = rf"(?:{_WHOLE}(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+)(?:[eE][-+]?[0-9]{{1,3}}(?![0-9]))?"
_NUMBER = re.compile(
    rf"(?P<sign>{_SIGN})(?:"
    r"(?P<mixed>[0-9]+) (?P<over>[0-9]+)/(?P<under>[0-9]+)"
    r"|\\[dt]?frac\{(?P<above>[0-9]+)\}\{(?P<below>[0-9]+)\}"
    rf"|(?P<upper>{_PLAIN}) ?/ ?(?P<lower>{_PLAIN})"
    rf"|(?P<plain>{_PLAIN}))(?P<percent> ?\\?%)?"
)
_LONGEST = 400
"""Digits of a number at most: nobody means more, and comparing millions of them takes for ever."""


# ------------------------------------------------------------------------------------------------------------- answers
def exact(
    answer: str = "answer", ignore_case: bool = False, tag: str | None = None, after: str | None = None
) -> Reward:  # fmt: skip
    """1 where the completion is the answer's text, white space around both left out; else 0.

    Args:
        answer: the column with the right text.
        ignore_case: compare without regard to upper and lower case.
        tag: compare only what stands in the last ``<tag>...</tag>``; 0 where there is none.
        after: compare only what follows the last ``</after>``, such as ``think``; 0 where there is none.
    """

    def fold(text: Any) -> str:
        stripped = str(text).strip()
        return stripped.casefold() if ignore_case else stripped

    def reward(completions: list[Any], **columns: Any) -> list[float | None]:
        def one(text: str, right: list[Any]) -> float:
            found = answer_in(text, tag, after)
            return float(found is not None and fold(found) in map(fold, right))

        return _each(completions, columns, answer, one)

    return reward


def numeric(
    answer: str = "answer", tolerance: float = 0.0, relative: float = 0.0, tag: str | None = None,
    after: str | None = None,
) -> Reward:  # fmt: skip
    r"""1 where the last number of the completion is the answer's last number; else 0.

    Numbers are read as people write them: ``1,234.50``, ``-3``, ``.5``, ``3/4``, ``1 1/2``, ``\frac{3}{4}``, ``2e3``,
    ``45%``, with or without a currency or unit around them. They are compared exactly (as fractions), or within a
    tolerance: |found - right| <= max(tolerance, relative |right|). ``45%`` is 0.45; where only one of the two has the
    sign, 45 counts too.

    Args:
        answer: the column with the right number, or with a text that ends in it (``... #### 72``).
        tolerance: how far the number may be from the answer.
        relative: the same, as a share of the answer.
        tag: read only what stands in the last ``<tag>...</tag>``; 0 where there is none.
        after: read only what follows the last ``</after>``, such as ``think``; 0 where there is none.

    Raises:
        ValueError: an answer holds no number, or a tolerance is negative.
    """
    if tolerance < 0 or relative < 0:
        raise ValueError(f"tolerance and relative must not be negative, found {tolerance} and {relative}")

    def same(found: tuple[Fraction, bool], right: tuple[Fraction, bool]) -> bool:
        room = max(Fraction(tolerance), Fraction(relative) * abs(right[0]))
        if found[1] != right[1]:  # one of the two has a % sign: as written, or in hundredths
            return any(
                abs(found[0] * scale - right[0]) <= room for scale in (1, Fraction(100) ** (1 if found[1] else -1))
            )
        return abs(found[0] - right[0]) <= room

    def reward(completions: list[Any], **columns: Any) -> list[float | None]:
        def one(text: str, right: list[Any]) -> float:
            wanted = [last_number(str(item)) for item in right]
            if None in wanted:
                raise ValueError(f"the answer {right[wanted.index(None)]!r} holds no number")
            found = last_number(answer_in(text, tag, after) or "")
            return float(found is not None and any(same(found, item) for item in wanted if item is not None))

        return _each(completions, columns, answer, one)

    return reward


def math_verify(answer: str = "answer", tag: str | None = None, after: str | None = None) -> Reward:
    r"""1 where the completion's final expression equals the answer mathematically, by the math-verify package; else 0.

    It reads LaTeX (``\boxed{...}``, ``$...$``) and plain expressions, and compares them with sympy: ``1/2`` is
    ``\frac{1}{2}``, ``(x+1)^2`` is ``x^2+2x+1``. Because that evaluates what the model wrote, it runs in the sandbox.
    An answer that cannot be read gives ``None``.

    Args:
        answer: the column with the right expression; LaTeX stands between dollars or in ``\boxed{}``.
        tag: read only what stands in the last ``<tag>...</tag>``; 0 where there is none.
        after: read only what follows the last ``</after>``, such as ``think``; 0 where there is none.
    """
    package = importlib.import_module("math_verify")
    package.verify(package.parse("$1$"), package.parse("1"))  # loads what it loads late

    def reward(completions: list[Any], **columns: Any) -> list[float | None]:
        def one(text: str, right: list[Any]) -> float | None:
            wanted = [parsed for parsed in (package.parse(str(item)) for item in right) if parsed]
            found = answer_in(text, tag, after)
            if not wanted:
                return None
            return float(found is not None and any(package.verify(item, package.parse(found)) for item in wanted))

        return _each(completions, columns, answer, one)

    return reward


# ----------------------------------------------------------------------------------------------------------------- form
def format_tags(tags: Sequence[str] = ("think", "answer"), strict: bool = True, opened: bool = False) -> Reward:
    """Whether a completion has the form ``<think>...</think> <answer>...</answer>``.

    Strict: 1 where it consists of just these blocks in this order, each once and with something in it, and white space;
    else 0. Soft: the share of opening and closing tags that occur exactly once, so that a model finds the way step by
    step.

    Args:
        tags: names of the blocks, in order.
        strict: all or nothing.
        opened: the prompt ends with the first opening tag, so completions begin inside that block.

    Raises:
        ValueError: no tags, or one that is not a name.
    """
    names = list(tags)
    if not names or not all(re.fullmatch(r"[A-Za-z][\w-]*", name) for name in names):
        raise ValueError(f"tags must be names such as think and answer, found {names}")
    marks = [mark for name in names for mark in (f"<{name}>", f"</{name}>")]

    def score(text: str) -> float:
        text = marks[0] + text if opened else text
        once = [text.count(mark) == 1 for mark in marks]
        if not strict:
            return sum(once) / len(marks)
        if not all(once):
            return 0.0
        rest, filled = text, True
        for start, end in zip(marks[::2], marks[1::2], strict=True):
            before, _, rest = rest.partition(start)
            content, found, rest = rest.partition(end)
            filled = filled and bool(found) and not before.strip() and bool(content.strip())
        return float(filled and not rest.strip())

    return lambda completions, **columns: [score(_text(item)) for item in completions]


def regex(
    pattern: str, answer: str | None = None, full: bool = False, ignore_case: bool = False
) -> Reward:  # fmt: skip
    """1 where the regular expression is found in the completion; else 0.

    A pattern that takes for ever on some text is ended by ``reward.timeout``.

    Args:
        pattern: in Python's syntax; ``.`` matches line ends too, ``^`` and ``$`` the ends of lines.
        answer: if given, the pattern's first group must also be the text of this column (white space aside).
        full: the pattern must match the whole completion, white space around it left out.
        ignore_case: upper and lower case are the same.

    Raises:
        ValueError: not a regular expression, or ``answer`` without a group in it.
    """
    try:
        found = re.compile(pattern, re.DOTALL | re.MULTILINE | (re.IGNORECASE if ignore_case else 0))
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    if answer is not None and not found.groups:
        raise ValueError(f"{pattern!r} has no group to compare with the column {answer}")

    def search(text: str) -> re.Match[str] | None:
        return found.fullmatch(text.strip()) if full else found.search(text)

    if answer is None:
        return lambda completions, **columns: [float(search(_text(item)) is not None) for item in completions]
    column = answer

    def reward(completions: list[Any], **columns: Any) -> list[float | None]:
        def one(text: str, right: list[Any]) -> float:
            match = search(text)
            said = None if match is None else match[1]
            return float(said is not None and said.strip() in [str(item).strip() for item in right])

        return _each(completions, columns, column, one)

    return reward


def json_schema(
    schema: dict[str, Any] | str | None = None, column: str | None = None, tag: str | None = None, fence: bool = True,
    after: str | None = None,
) -> Reward:  # fmt: skip
    """1 where the completion is JSON that fits the schema, by the jsonschema package; else 0.

    Args:
        schema: the schema, or the path of a file that holds it.
        column: instead, the column that holds each row's own schema.
        tag: read only what stands in the last ``<tag>...</tag>``; 0 where there is none.
        after: read only what follows the last ``</after>``, such as ``think``; 0 where there is none.
        fence: take what stands in a fenced block, if the completion is one.

    Raises:
        ValueError: neither or both of schema and column, or what is no schema.
    """
    if (schema is None) == (column is None):
        raise ValueError("give schema or column, one of them")
    package = importlib.import_module("jsonschema")

    def validator(given: Any) -> Any:
        if isinstance(given, str):
            given = json.loads(given)
        kind = package.validators.validator_for(given)
        try:
            kind.check_schema(given)
        except package.SchemaError as error:
            raise ValueError(f"not a JSON schema: {error.message}") from None
        return kind(given)

    def fits(check: Any, text: str) -> float:
        found = answer_in(text, tag, after)
        match = re.fullmatch(r"\s*```[a-zA-Z]*\n(.*?)\n?```\s*", found or "", re.DOTALL) if fence else None
        try:
            value = json.loads(match[1] if match else found or "", parse_constant=_no_constant)
            return float(check.is_valid(value))
        except (ValueError, RecursionError):
            return 0.0

    if column is None:
        only = validator(Path(schema).expanduser().read_text("utf-8") if isinstance(schema, str) else schema)
        return lambda completions, **columns: [fits(only, _text(item)) for item in completions]
    name = column

    def reward(completions: list[Any], **columns: Any) -> list[float | None]:
        return _each(completions, columns, name, lambda text, given: max(fits(validator(one), text) for one in given))

    return reward


# --------------------------------------------------------------------------------------------------------------- length
def length(target: int | None = None, limit: int | None = None, unit: str = "tokens") -> Reward:
    """How long a completion is: near a target, or within a limit.

    With ``target`` n: max(0, 1 - |length - n| / n). With ``limit`` n: 1 where length <= n, else 0.

    Args:
        target: the length wanted.
        limit: instead, the longest allowed.
        unit: tokens (the end token among them), characters or words.

    Raises:
        ValueError: neither or both of target and limit, one below 1, or another unit.
    """
    goal = target if target is not None else limit
    if goal is None or (target is not None and limit is not None):
        raise ValueError("give target or limit, one of them")
    if goal < 1 or unit not in _UNITS:
        raise ValueError(f"found {goal} {unit}, expected a number from 1 on of {', '.join(_UNITS)}")

    def score(size: int) -> float:
        return float(size <= goal) if target is None else max(0.0, 1 - abs(size - goal) / goal)

    def reward(
        completions: list[Any], completion_ids: list[list[int]] | None = None, **columns: Any
    ) -> list[float | None]:
        return [score(size) for size in _sizes(completions, completion_ids, unit)]

    return reward


def overlong(limit: int, buffer: int, unit: str = "tokens") -> Reward:
    """The soft penalty for long completions of DAPO (arXiv:2503.14476, equation 13); add it to another reward.

    0 up to ``limit - buffer``, then falling in a line to -1 at ``limit``, and -1 beyond.

    Args:
        limit: the longest length; ``sampling.max_new_tokens`` or less, for no completion is longer.
        buffer: over how many units it falls.
        unit: tokens (the end token among them), characters or words.

    Raises:
        ValueError: limit or buffer below 1, a buffer above the limit, or another unit.
    """
    if not 1 <= buffer <= limit or unit not in _UNITS:
        raise ValueError(f"found limit {limit}, buffer {buffer}, unit {unit}: expected 1 <= buffer <= limit")
    free = limit - buffer

    def score(size: int) -> float:
        return 0.0 if size <= free else max(-1.0, (free - size) / buffer)

    def reward(
        completions: list[Any], completion_ids: list[list[int]] | None = None, **columns: Any
    ) -> list[float | None]:
        return [score(size) for size in _sizes(completions, completion_ids, unit)]

    return reward


# ---------------------------------------------------------------------------------------------------------------- parts
_UNITS = ("tokens", "characters", "words")


def _sizes(completions: list[Any], completion_ids: list[list[int]] | None, unit: str) -> Iterator[int]:
    if unit == "tokens":
        if completion_ids is None:
            raise ValueError("the completions come without token ids: count characters or words instead")
        return map(len, completion_ids)
    return (len(_text(item)) if unit == "characters" else len(_text(item).split()) for item in completions)


def _each(
    completions: list[Any], columns: Mapping[str, Any], name: str, score: Callable[[str, list[Any]], float | None]
) -> list[float | None]:
    """``score(text, right answers)`` of each completion; ``None`` where its row has none."""
    if name not in columns:
        others = ", ".join(sorted(key for key, value in columns.items() if isinstance(value, list))) or "none"
        raise KeyError(f"the rows have no column {name!r} (columns: {others}); name yours by the option answer")
    scores: list[float | None] = []
    for completion, right in zip(completions, columns[name], strict=True):
        answers = right if isinstance(right, list) else [right]
        scores.append(score(_text(completion), answers) if right is not None and answers else None)
    return scores


def answer_in(text: str, tag: str | None, after: str | None) -> str | None:
    """What follows the last ``</after>`` and stands there in the last ``<tag>...</tag>``; ``None`` where one of them is
    not there. Thinking that the length limit cut has no end, and so no answer."""
    if after is not None:
        _, closed, text = text.rpartition(f"</{after}>")
        if not closed:
            return None
    return inside(text, tag)


def inside(text: str, tag: str | None) -> str | None:
    """What stands in the last ``<tag>...</tag>``, or ``None``; without a tag the whole text."""
    if tag is None:
        return text
    before, closed, _ = text.rpartition(f"</{tag}>")
    _, opened, content = before.rpartition(f"<{tag}>")
    return content if closed and opened else None


def last_number(text: str) -> tuple[Fraction, bool] | None:
    """The last number in a text, as a fraction, and whether a % sign follows it; ``None`` where there is none."""
    found = None
    for match in _NUMBER.finditer(text):
        if len(match[0]) <= _LONGEST:
            found = _value(match) or found
    return found


def _value(match: re.Match[str]) -> tuple[Fraction, bool] | None:
    part = match.groupdict()
    try:
        if part["mixed"]:
            number = int(part["mixed"]) + Fraction(int(part["over"]), int(part["under"]))
        elif part["above"]:
            number = Fraction(int(part["above"]), int(part["below"]))
        elif part["upper"]:
            number = _decimal(part["upper"]) / _decimal(part["lower"])
        else:
            number = _decimal(part["plain"])
    except (ZeroDivisionError, InvalidOperation):
        return None
    number = -number if part["sign"][:1] in ("-", "\u2212") else number
    return (number / 100, True) if part["percent"] else (number, False)


def _decimal(text: str) -> Fraction:
    return Fraction(Decimal(text.replace(",", "")))


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _text(completion: Any) -> str:
    """A completion's text; of a conversation the last message's."""
    if isinstance(completion, str):
        return completion
    content = completion[-1]["content"] if completion else ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content or ())
