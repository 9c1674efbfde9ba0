"""One reward function in its process: what it is called with, what it answers, and everything that can go wrong.

A reward function has TRL's signature, ``f(prompts, completions, **columns) -> list[float | None]``: columns of the rows
come as lists; ``completion_ids``, ``trainer_state``, ``log_extra`` and ``log_metric`` come where the function takes
them; it may be async; ``None`` means that it does not apply. A failure is an error with the row and the user's own
line, never a reward of 0.
"""

from __future__ import annotations

import datetime
import decimal
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from upslope.errors import InputError, MachineError, RewardError
from upslope.worlds.isolation import Limits
from upslope.worlds.reward_process import Child, Lost, exchange, start_file, start_function
from upslope.worlds.reward_source import check_source

if TYPE_CHECKING:
    from upslope.types import Prompt

RESERVED = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
NO_MEMORY = ("MemoryError", "not enough memory", "Cannot allocate memory")


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

    kind: Literal["load", "hung", "crashed", "raised", "values", "network", "none apply"]
    text: str
    fix: str
    row: int | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """All completions of one prompt, as text and, where known, as token ids. ``messages`` are those of each completion
    where it is a conversation with tools, whose last message is its text."""

    prompt: Prompt
    completions: tuple[str, ...]
    completion_ids: tuple[tuple[int, ...], ...] | None = None
    messages: tuple[tuple[Mapping[str, Any], ...], ...] | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of one call, one entry a completion; ``state`` is what ``trainer_state`` says."""

    prompts: Sequence[Any]
    completions: Sequence[Any]
    completion_ids: Sequence[Sequence[int]] | None
    columns: Mapping[str, Sequence[Any]]
    row_ids: Sequence[str]
    state: Mapping[str, int] = field(default_factory=dict)

    def only(self, row: int) -> Call:
        """The call for one of its completions."""
        ids = None if self.completion_ids is None else [self.completion_ids[row]]
        columns = {name: [values[row]] for name, values in self.columns.items()}
        return Call([self.prompts[row]], [self.completions[row]], ids, columns, [self.row_ids[row]], self.state)


def call_of(groups: Sequence[Group], state: Mapping[str, int] | None = None) -> Call:
    """One call for the completions of all groups, in order.

    A plain prompt and its completion are strings; of a conversation both are lists of messages, the completion one
    assistant message, or all that was said where tools are called. A column that some rows lack is ``None`` there. Row
    ids are ``prompt id # sample``.
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
            said = [{"role": "assistant", "content": text}]
            if group.messages is not None:
                said = [dict(message) for message in group.messages[sample]]
            completions.append(said if messages else text)
            row_ids.append(f"{group.prompt.id}#{sample}")
            for name in names:
                columns[name].append(group.prompt.columns.get(name))
    ids = [row for group in groups for row in group.completion_ids or ()]
    known = ids if len(ids) == len(completions) else None
    return Call(prompts, completions, known, columns, row_ids, dict(state or {}))


# -------------------------------------------------------------------------------------------------------- the process
class RewardProcess:
    """A reward function in a child process, restarted when it hangs or dies. Use it in a ``with`` block.

    ``source`` is ``path/to/file.py:function``, loaded from that path only, or a Python function; a function is run in a
    forked copy of this process, so it needs no pickling. With ``options`` the function in the file makes the reward
    function. A call that takes more than ``timeout`` seconds is killed with everything that it started and tried once
    more in a fresh process. What the function prints goes to ``log``. Columns travel as JSON.
    """

    def __init__(
        self,
        source: str | Callable[..., Any],
        timeout: float = 30.0,
        name: str | None = None,
        *,
        start_timeout: float = 120.0,
        log: Path | None = None,
        limits: Limits | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if os.name != "posix":
            raise MachineError(
                "reward", "a separate process with a deadline needs Linux or macOS", "run on one of these"
            )
        self.timeout, self.start_timeout, self.log = timeout, start_timeout, log
        self.limits = held = limits or Limits()
        self.fix = "correct the function; run it on that row alone to see it"
        if options is not None:
            self.fix = "correct that row, or the options of this built-in reward"
        if isinstance(source, str):
            found = check_source(source)
            self.name = name or found.function
            self.where = f"{found.shown}:{found.function}" if options is None else self.name
            self._start = lambda: start_file(str(found.path), found.function, found.search, log, held, options)
        else:
            self.name = self.where = function_name(source)
            self.name = name or self.name
            if held.sandbox:
                problem = "is a function of this process, whose memory the sandbox would hold too"
                raise InputError(
                    f"reward {self.where}", problem, "put it into a file and give path/to/file.py:function"
                )
            self._start = lambda: start_function(source, log, held)
        self._child: Child | None = None
        self._loaded = False
        self._metrics: dict[str, list[float]] = {}

    def __enter__(self) -> RewardProcess:
        failure = self.ready()
        if failure is not None:
            raise self.error(failure, ())
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child and everything that it started."""
        child, self._child, self._loaded = self._child, None, False
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
            result = none_apply()
        if isinstance(result, Failure):
            raise self.error(self.located(result, call), row_ids)
        return result

    def attempt(self, call: Call) -> list[Score] | Failure:
        """Call the function once, in a fresh process if the last one was lost. All ``None`` is not yet a failure
        here."""
        return attempt_all([self], call)[0]

    def read(self, reply: dict[str, Any] | Lost, count: int, seconds: float) -> list[Score] | Failure:
        """The scores in a reply to a call of ``count`` completions, which took ``seconds``; or why there are none."""
        if isinstance(reply, Lost):
            self.close()
            if reply.exit is None:
                text = f"no answer within {self.timeout:g} s{_at(reply.frame)}"
                return Failure("hung", text, "make it answer in time, or raise reward.timeout")
            said = reply.output and f"; it last said: {reply.output}"
            text = f"its process ended ({reply.exit}) after {seconds:.1f} s{_at(reply.frame)}{said}"
            return Failure("crashed", text, "keep the function from ending its process")
        if "failed" in reply:
            return _failure(reply, self.limits, self.fix)
        if reply.get("network"):
            return Failure("network", "asked for the network, which it may not use", NETWORK_FIX)
        if not _whole(reply, count):
            return Failure("crashed", "its process sent a reply that is none", "keep it from writing into our pipe")
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
        text = f"{failure.text} ({name_rows(rows)})" if rows else failure.text
        return RewardError(f"reward {self.where}", text, failure.fix)

    def launch(self) -> Child:
        """The child; a fresh one, which then loads its file, if there is none."""
        if self._child is None:
            self._child = self._start()
        return self._child

    def ready(self) -> Failure | None:
        """Wait until the function is loaded; why it cannot be.

        Raises:
            MachineError: it needs the sandbox, and this machine has none.
        """
        if self._loaded:
            return None
        reply = self.launch().exchange(b"", self.start_timeout)
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
        if reply.get("failed") == "refused":
            self.close()
            problem = f"runs what the model wrote, so it needs the sandbox, and there is none here: {reply['text']}"
            raise MachineError(
                f"reward {self.where}", problem, "score it on Linux 5.13 or newer with seccomp and Landlock"
            )
        if "failed" in reply:
            self.close()
            failure = _failure(reply, self.limits, self.fix)
            return Failure("load", f"cannot be loaded: {failure.text}", failure.fix)
        self._loaded = True
        return None

    def located(self, failure: Failure, call: Call) -> Failure:
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


def attempt_all(processes: Sequence[RewardProcess], call: Call) -> list[list[Score] | Failure]:
    """The same call to several functions at the same time; their processes must have one timeout."""
    request = _request(call)
    if not call.completions:
        return [[] for _ in processes]
    for process in processes:
        process.launch()
    failures = [process.ready() for process in processes]
    able = [process for process, failure in zip(processes, failures, strict=True) if failure is None]
    started = time.monotonic()
    try:
        replies = iter(exchange([(process.launch(), request) for process in able], processes[0].timeout))
    except BaseException:  # Ctrl-C: an answer that nobody waits for must not be taken for the next one's
        for process in processes:
            process.close()
        raise
    seconds = time.monotonic() - started
    return [
        process.read(next(replies), len(call.completions), seconds) if failure is None else failure
        for process, failure in zip(processes, failures, strict=True)
    ]


def function_name(function: Callable[..., Any]) -> str:
    """What a function is called in logs: its name, that of a partial's function, or an object's class."""
    inner = getattr(function, "func", function)
    return str(getattr(function, "__name__", None) or getattr(inner, "__name__", None) or type(function).__name__)


def name_rows(row_ids: Sequence[str]) -> str:
    """``row 7#0``, or ``rows 7#0, 7#1, 7#2, 7#3 and 4 more``."""
    named = ", ".join(row_ids[:4]) + (f" and {len(row_ids) - 4} more" if len(row_ids) > 4 else "")
    return f"row{'s' if len(row_ids) > 1 else ''} {named}"


def none_apply() -> Failure:
    """The failure of a call in which nothing was rewarded."""
    text = "returned None for every completion, so nothing is rewarded"
    return Failure("none apply", text, "return a number for the rows that it applies to")


NETWORK_FIX = "set reward.network: true if it needs the network, or keep it from asking"


def _failure(reply: Mapping[str, Any], limits: Limits, fix: str) -> Failure:
    text = "".join(letter if letter.isprintable() else " " for letter in str(reply["text"]))[:500]
    row = reply.get("row")
    if reply["failed"] == "values":
        usual = "return one finite number, or None, for each completion"
        return Failure("values", text, usual, row if isinstance(row, int) else None)
    if reply["failed"] == "crashed":
        return Failure("crashed", text, "keep the function from ending its process")
    frame = reply.get("frame")
    if any(sign in text for sign in NO_MEMORY) and limits.memory_mb is not None:
        fix = f"make it take less, or raise reward.memory_mb (now {limits.memory_mb})"
    elif reply.get("network"):
        fix = NETWORK_FIX
    elif limits.sandbox and text.startswith("PermissionError"):
        fix = "its calls run in a sandbox: let it read files when it is loaded, and start nothing"
    return Failure("raised", text + _at(frame and tuple(frame)), fix)


def _whole(reply: Mapping[str, Any], count: int) -> bool:
    """Whether a reply is one to ``count`` completions. What ran a model's text may have written anything."""

    def finite(value: Any) -> bool:
        return isinstance(value, int | float) and math.isfinite(value)

    values, extra, metrics = reply.get("values"), reply.get("extra"), reply.get("metrics")
    return (
        isinstance(values, list) and len(values) == count and all(value is None or finite(value) for value in values)
        and isinstance(extra, dict) and all(isinstance(row, list) and len(row) == count for row in extra.values())
        and isinstance(metrics, dict)
        and all(isinstance(row, list) and row and all(map(finite, row)) for row in metrics.values())
    )  # fmt: skip


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
        "state": dict(call.state),
    }
    return json.dumps(content, default=plain).encode() + b"\n"


def plain(value: Any) -> Any:
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
