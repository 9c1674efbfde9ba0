"""Reward functions of users: checked without being run, then run in a child process under a deadline.

A reward function has TRL's signature, ``f(prompts, completions, **columns) -> list[float | None]``: columns of the rows
come as lists; ``completion_ids``, ``log_extra`` and ``log_metric`` come where the function takes them; it may be async;
``None`` means that it does not apply. A failure is an error with the row and the user's own line, never a reward of 0.
"""

from __future__ import annotations

import datetime
import decimal
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from upslope.errors import InputError, MachineError, RewardError
from upslope.worlds.reward_process import Child, Lost, start_file, start_function
from upslope.worlds.reward_source import RewardSource, check_source

if TYPE_CHECKING:
    from upslope.types import Prompt

__all__ = [
    "Call",
    "Failure",
    "Group",
    "RewardProcess",
    "RewardSource",
    "Score",
    "call_of",
    "check_source",
    "score_groups",
]
RESERVED = ("prompts", "completions", "completion_ids", "log_extra", "log_metric")


# --------------------------------------------------------------------------------------------------------- what comes
@dataclass(frozen=True, slots=True)
class Score:
    """The reward of one completion (``None``: the function does not apply to it), by name, and what it logged for this
    row."""

    value: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a call gave no scores. ``row`` is the index of the completion that did it, where that is known."""

    kind: Literal["load", "hung", "crashed", "raised", "values", "none apply"]
    text: str
    fix: str
    row: int | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """All completions of one prompt, as text and, where known, as token ids."""

    prompt: Prompt
    completions: tuple[str, ...]
    completion_ids: tuple[tuple[int, ...], ...] | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of one call, one entry a completion."""

    prompts: Sequence[Any]
    completions: Sequence[Any]
    completion_ids: Sequence[Sequence[int]] | None
    columns: Mapping[str, Sequence[Any]]
    row_ids: Sequence[str]

    def only(self, row: int) -> Call:
        """The call for one of its completions."""
        ids = None if self.completion_ids is None else [self.completion_ids[row]]
        columns = {name: [values[row]] for name, values in self.columns.items()}
        return Call([self.prompts[row]], [self.completions[row]], ids, columns, [self.row_ids[row]])


def call_of(groups: Sequence[Group]) -> Call:
    """One call for the completions of all groups, in order.

    A plain prompt and its completion are strings; of a conversation both are lists of messages, the completion one
    assistant message. A column that some rows lack is ``None`` there. Row ids are ``prompt id # sample``.
    """
    prompts: list[Any] = []
    completions: list[Any] = []
    names = list(dict.fromkeys(name for group in groups for name in group.prompt.columns))
    columns: dict[str, list[Any]] = {name: [] for name in names}
    row_ids: list[str] = []
    for group in groups:
        content = group.prompt.content
        messages = [dict(item) for item in content if isinstance(item, Mapping)]
        for sample, text in enumerate(group.completions):
            prompts.append(messages or content)
            completions.append([{"role": "assistant", "content": text}] if messages else text)
            row_ids.append(f"{group.prompt.id}#{sample}")
            for name in names:
                columns[name].append(group.prompt.columns.get(name))
    ids = [row for group in groups for row in group.completion_ids or ()]
    return Call(prompts, completions, ids if len(ids) == len(completions) else None, columns, row_ids)


# -------------------------------------------------------------------------------------------------------- the process
class RewardProcess:
    """A reward function in a child process, restarted when it hangs or dies. Use it in a ``with`` block.

    ``source`` is ``path/to/file.py:function``, loaded from that path only, or a Python function; a function is run in a
    forked copy of this process, so it needs no pickling. A call that takes more than ``timeout`` seconds is killed with
    everything that it started and tried once more in a fresh process. What the function prints goes to ``log``. Columns
    travel as JSON.
    """

    def __init__(
        self,
        source: str | Callable[..., Any],
        timeout: float = 30.0,
        name: str | None = None,
        *,
        start_timeout: float = 120.0,
        log: Path | None = None,
    ) -> None:
        if os.name != "posix":
            raise MachineError(
                "reward", "a separate process with a deadline needs Linux or macOS", "run on one of these"
            )
        self.timeout, self.start_timeout, self.log = timeout, start_timeout, log
        if isinstance(source, str):
            found = check_source(source)
            self.name, self.where = name or found.function, f"{found.shown}:{found.function}"
            self._start = lambda: start_file(str(found.path), found.function, found.search, log)
        else:
            own = getattr(source, "__name__", type(source).__name__)
            self.name, self.where = name or own, own
            self._start = lambda: start_function(source, log)
        self._child: Child | None = None
        self._metrics: dict[str, list[float]] = {}

    def __enter__(self) -> RewardProcess:
        failure = self._ready()
        if failure is not None:
            raise self.error(failure, ())
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child and everything that it started."""
        child, self._child = self._child, None
        if child is not None:
            child.close()

    def take_metrics(self) -> dict[str, float]:
        """What the function gave to ``log_metric`` since this was last asked: the mean of each name."""
        taken = {name: sum(values) / len(values) for name, values in self._metrics.items()}
        self._metrics = {}
        return taken

    def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None,
        columns: Mapping[str, Sequence[Any]],
        row_ids: Sequence[str],
    ) -> list[Score]:
        """One score a completion.

        Raises:
            RewardError: the function raised, hung or crashed twice, gave something that is not a finite number for each
                completion, or applies to none of them. It names the function, the row where known, and the user's line.
        """
        call = Call(prompts, completions, completion_ids, columns, row_ids)
        result = self.attempt(call)
        if isinstance(result, Failure) and result.kind in ("hung", "crashed"):
            result = self.attempt(call)
            if isinstance(result, Failure):
                result = replace(result, text=f"{result.text}, tried twice")
        if isinstance(result, list) and result and all(score.value is None for score in result):
            result = _none_apply()
        if isinstance(result, Failure):
            raise self.error(self._located(result, call), row_ids)
        return result

    def attempt(self, call: Call) -> list[Score] | Failure:
        """Call the function once, in a fresh process if the last one was lost. All ``None`` is not yet a failure
        here."""
        request = _request(call)
        if not call.completions:
            return []
        failure = self._ready()
        if failure is not None or self._child is None:
            return failure or Failure("load", "the process did not start", "see the log")
        started = time.monotonic()
        try:
            reply = self._child.exchange(request, self.timeout)
        except BaseException:  # Ctrl-C: an answer that nobody waits for must not be taken for the next one's
            self.close()
            raise
        if isinstance(reply, Lost):
            self.close()
            if reply.exit is None:
                text = f"no answer within {self.timeout:g} s{_at(reply.frame)}"
                return Failure("hung", text, "make it answer in time, or raise reward.timeout")
            said = reply.output and f"; it last said: {reply.output}"
            text = f"its process ended ({reply.exit}) after {time.monotonic() - started:.1f} s{_at(reply.frame)}{said}"
            return Failure("crashed", text, "keep the function from ending its process")
        if "failed" in reply:
            return _failure(reply)
        for name, values in reply["metrics"].items():
            self._metrics.setdefault(name, []).extend(values)
        return [
            Score(
                value,
                {} if value is None else {self.name: value},
                {column: row[i] for column, row in reply["extra"].items()},
            )
            for i, value in enumerate(reply["values"])
        ]

    def error(self, failure: Failure, row_ids: Sequence[str]) -> RewardError:
        """The failure as an error that names the rows."""
        rows = row_ids if failure.row is None else [row_ids[failure.row]]
        named = ", ".join(rows[:4]) + (f" and {len(rows) - 4} more" if len(rows) > 4 else "")
        text = f"{failure.text} (row{'s' if len(rows) > 1 else ''} {named})" if rows else failure.text
        return RewardError(f"reward {self.where}", text, failure.fix)

    def _ready(self) -> Failure | None:
        if self._child is not None:
            return None
        self._child = self._start()
        reply = self._child.exchange(b"", self.start_timeout)
        if isinstance(reply, Lost):
            self.close()
            text = (
                f"did not load within {self.start_timeout:g} s"
                if reply.exit is None
                else f"ended while loading ({reply.exit})"
            )
            return Failure(
                "load", text + _at(reply.frame) + (reply.output and f"; it last said: {reply.output}"), "see its file"
            )
        if "failed" in reply:
            self.close()
            failure = _failure(reply)
            return Failure("load", f"cannot be loaded: {failure.text}", failure.fix)
        return None

    def _located(self, failure: Failure, call: Call) -> Failure:
        """The failure with its row: an exception says nothing of rows, so they are called one by one until one
        raises."""
        if failure.kind != "raised" or failure.row is not None:
            return failure
        until = time.monotonic() + self.timeout
        kept = {name: list(values) for name, values in self._metrics.items()}
        found: int | None = None
        for row in range(len(call.completions)):
            if time.monotonic() > until:
                break
            result = self.attempt(call.only(row))
            if isinstance(result, Failure):
                found = row if result.kind == "raised" else None
                failure = result if found is not None else failure
                break
        self._metrics = kept
        return replace(failure, row=found)


def score_groups(
    process: RewardProcess, groups: Sequence[Group], on_error: Literal["stop", "drop_group"]
) -> tuple[list[list[Score] | None], list[tuple[int, str]]]:
    """Score every completion of every group: one call for all, and only if that fails one call a group, to find the
    culprit.

    A group that fails both times stops with its error (``stop``) or is left out (``drop_group``): its scores are
    ``None`` and ``(index, reason)`` is in the second list. The call a group is the second try, in a fresh process after
    a hang.

    Raises:
        RewardError: with ``stop``; and always where the function cannot be loaded.
    """
    whole = process.attempt(call_of(groups))
    dropped: list[tuple[int, str]] = []
    if isinstance(whole, list):
        if whole and all(score.value is None for score in whole):
            if on_error == "stop":
                raise process.error(_none_apply(), call_of(groups).row_ids)
            reason = str(process.error(_none_apply(), ()))
            return [None for _ in groups], [(index, reason) for index in range(len(groups))]
        scores = iter(whole)
        return [[next(scores) for _ in group.completions] for group in groups], dropped
    result: list[list[Score] | None] = []
    for index, group in enumerate(groups):
        call = call_of([group])
        alone = process.attempt(call)
        if isinstance(alone, Failure):
            error = process.error(process._located(alone, call), call.row_ids)
            if on_error == "stop" or alone.kind == "load":
                raise error
            dropped.append((index, str(error)))
            result.append(None)
        else:
            result.append(alone)
    return result, dropped


def _none_apply() -> Failure:
    text = "returned None for every completion, so nothing is rewarded"
    return Failure("none apply", text, "return a number for the rows that it applies to")


def _failure(reply: Mapping[str, Any]) -> Failure:
    text = "".join(letter if letter.isprintable() else " " for letter in reply["text"])[:500]
    if reply["failed"] == "values":
        return Failure("values", text, "return one finite number, or None, for each completion", reply.get("row"))
    frame = reply.get("frame")
    return Failure(
        "raised", text + _at(frame and tuple(frame)), "correct the function; run it on that row alone to see it"
    )


def _at(frame: tuple[str, int, str] | None) -> str:
    return "" if frame is None else f", at {Path(frame[0]).name}:{frame[1]} in {frame[2]}"


def _request(call: Call) -> bytes:
    for name in call.columns:
        if name in RESERVED:
            raise InputError(
                f"column {name!r}", "is the name of an argument of every reward function", "rename the column"
            )
    content = {
        "prompts": call.prompts,
        "completions": call.completions,
        "completion_ids": call.completion_ids,
        "columns": dict(call.columns),
    }
    return json.dumps(content, default=_plain).encode() + b"\n"


def _plain(value: Any) -> Any:
    """JSON for what data files hold beside JSON: arrays and numpy numbers, dates, decimals, mappings."""
    if callable(getattr(value, "tolist", None)):
        return value.tolist()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise InputError(
        "reward", f"a column holds {type(value).__name__}, which is not JSON", "turn it into text or numbers"
    )
