"""The functions that a model may call, in a process of their own: described, called, and held to their limits.

They run where reward functions run (``reward_process.py``): a clean environment, a limit of memory, no network, and a
deadline a call. Whatever goes wrong in a call is told to the model as the call's result and counted: a tool that
raises, one that hangs (its process is killed and started anew), arguments that do not fit. What is wrong with the tools
themselves is told to the user before anything is sampled.
"""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from upslope.errors import InputError, MachineError
from upslope.worlds import tool_worker
from upslope.worlds.isolation import Limits
from upslope.worlds.reward_calls import Call, Failure, RewardProcess, function_name
from upslope.worlds.reward_source import RewardSource, check_source

WHERE = "episode.tools"
KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,), "array": (list,),
    "object": (dict,), "null": (type(None),),
}  # fmt: skip
NETWORK_FIX = "set episode.tool_network: true if it needs the network, or keep it from asking"


@dataclass(frozen=True, slots=True)
class Result:
    """What the model is told of its call. ``failed``: there was no answer, and ``text`` says why."""

    text: str
    failed: bool = False


class Toolbox:
    """The tools of a run. Use it in a ``with`` block: their processes live as long.

    Args:
        sources: ``path/to/file.py:function``, or Python functions, which run in a forked copy of this process.
        timeout: seconds that one call may take.
        limits: what their process may do; with ``sandbox`` each call runs in a fork that can only compute.
        longest: characters of a result; what is cut is said in it.
        log: where their output goes.

    Raises:
        InputError: a file or function that is not there, or two of one name.
    """

    def __init__(
        self, sources: Sequence[str | Callable[..., Any]], timeout: float = 10.0, limits: Limits | None = None,
        *, longest: int = 2000, log: Path | None = None,
    ) -> None:  # fmt: skip
        held = limits or Limits()
        self.timeout, self.longest, self.seconds = timeout, longest, 0.0
        files = [check_source(source, WHERE) for source in sources if isinstance(source, str)]
        self._functions = {function_name(given): given for given in sources if not isinstance(given, str)}
        names = [found.function for found in files] + [function_name(s) for s in sources if not isinstance(s, str)]
        double = next((name for name in names if names.count(name) > 1), None)
        if double is not None:
            raise InputError(WHERE, f"two tools are called {double!r}", "give one of them another name")
        if self._functions and held.sandbox:
            problem = f"{next(iter(self._functions))} is a function of this process, which the sandbox would hold too"
            raise InputError(WHERE, problem, "put it into a file and give path/to/file.py:function")
        self._files = files
        self._owner: dict[str, RewardProcess] = {}
        if files:
            options = {"sources": [[str(found.path), found.function] for found in files]}
            maker = "upslope.worlds.tool_worker:make"
            served = RewardProcess(maker, timeout, "tools", log=log, limits=held, options=options)
            self._owner |= {found.function: served for found in files}
        if self._functions:
            forked = RewardProcess(tool_worker.answering(self._functions), timeout, "tools", log=log, limits=held)
            self._owner |= dict.fromkeys(self._functions, forked)
        self._limits, self._log = held, log
        self.schemas: tuple[Mapping[str, Any], ...] = ()
        """What the model is told of them, as chat templates take it; known inside the ``with`` block."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._owner)

    def __enter__(self) -> Toolbox:
        try:
            described = {**self._describe_files(), **{n: describe(f) for n, f in self._functions.items()}}
            self.schemas = tuple(described[name] for name in self.names)
            for process in set(self._owner.values()):
                self._ready(process)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        for process in set(self._owner.values()):
            process.close()

    def call(self, name: str, arguments: Mapping[str, Any]) -> Result:
        """Call a tool by name.

        Raises:
            InputError: the tool asked for a network that it may not use, or its file cannot be loaded any more.
        """
        if name not in self._owner:
            return refusal(f"there is no tool {name!r}; the tools are {', '.join(self.names)}")
        schema = next(one for one in self.schemas if one["function"]["name"] == name)["function"]["parameters"]
        problem = misfit(schema, arguments)
        if problem is not None:
            return refusal(problem)
        process, begun = self._owner[name], time.monotonic()
        given = {"name": name, "arguments": dict(arguments), "longest": self.longest}
        found = process.attempt(Call([None], [None], None, {"calls": [given]}, [name]))
        self.seconds += time.monotonic() - begun
        if isinstance(found, Failure):
            return self._failed(name, found)
        reply = found[0].extra["reply"]
        if "error" in reply:
            return refusal(reply["error"])
        text, length = _plain(reply["text"]), reply["length"]
        return Result(text if length <= self.longest else f"{text} [cut: {length:,} characters in all]")

    def take_seconds(self) -> float:
        """Seconds spent in calls since this was last asked."""
        taken, self.seconds = self.seconds, 0.0
        return taken

    def _failed(self, name: str, failure: Failure) -> Result:
        if failure.kind == "network":
            raise InputError(f"{WHERE} {name}", failure.text, NETWORK_FIX)
        if failure.kind == "load":
            raise InputError(f"{WHERE} {name}", failure.text, failure.fix)
        if failure.kind == "hung":
            return refusal(f"no answer within {self.timeout:g} s")
        return refusal("the tool's process ended" if failure.kind == "crashed" else failure.text)

    def _ready(self, process: RewardProcess) -> None:
        try:
            failure = process.ready()
        except MachineError as error:
            raise MachineError(WHERE, error.problem, error.fix) from None
        if failure is not None:
            raise InputError(WHERE, failure.text, "correct its file")

    def _describe_files(self) -> dict[str, Mapping[str, Any]]:
        """Schemas of the tools in files: read in a fork of this process, for their files are not run in this one."""
        if not self._files:
            return {}
        describing = RewardProcess(_describer(self._files), 60.0, "tools", log=self._log, limits=self._plain_limits())
        try:
            failure = describing.ready()
            found = failure or describing.attempt(Call([None], [None], None, {}, ["tools"]))
        finally:
            describing.close()
        if isinstance(found, Failure):
            raise InputError(WHERE, found.text, "correct its file")
        answer = found[0].extra["described"]
        if "problem" in answer:
            raise InputError(answer["where"], answer["problem"], answer["fix"])
        described: dict[str, Mapping[str, Any]] = answer["schemas"]
        return described

    def _plain_limits(self) -> Limits:
        return Limits(self._limits.memory_mb, self._limits.network, self._limits.environment)


def _describer(files: Sequence[RewardSource]) -> Callable[..., list[float]]:
    sources = [(str(found.path), found.function) for found in files]

    def described(completions: Sequence[Any], log_extra: Any) -> list[float]:
        answer: dict[str, Any]
        try:
            tools = tool_worker.load_tools(sources)
            answer = {"schemas": {name: describe(tool) for name, tool in tools.items()}}
        except InputError as error:
            answer = {"where": error.where, "problem": error.problem, "fix": error.fix}
        except ValueError as error:
            answer = {"where": WHERE, "problem": str(error), "fix": "correct the file"}
        log_extra("described", [answer] * len(completions))
        return [0.0] * len(completions)

    return described


def describe(tool: Callable[..., Any]) -> dict[str, Any]:
    """The JSON schema of a function, by transformers' ``get_json_schema``, which chat templates take.

    Raises:
        InputError: no docstring, an argument without a type hint or a description, or a type that JSON does not have.
    """
    from transformers.utils.chat_template_utils import (
        DocstringParsingException,
        TypeHintParsingException,
        get_json_schema,
    )

    name = function_name(tool)
    fix = "give each argument a type hint, and the docstring an Args: section with a line for each"
    try:
        found: dict[str, Any] = get_json_schema(tool)
    except (DocstringParsingException, TypeHintParsingException) as error:
        raise InputError(f"{WHERE} {name}", " ".join(str(error).split())[:300], fix) from None
    except (NameError, TypeError, ValueError) as error:
        raise InputError(f"{WHERE} {name}", f"{type(error).__name__}: {error}"[:300], fix) from None
    for parameter in inspect.signature(tool).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            problem = f"{str(parameter).split(':')[0]} cannot be given by name, and models give arguments by name"
            raise InputError(f"{WHERE} {name}", problem, "give it named arguments only")
    found["function"]["name"] = name
    return found


def misfit(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> str | None:
    """Why arguments do not fit a function's schema: a missing or unknown name, a value of another type; else None.

    Types are compared one level deep; a whole number is a number too.
    """
    known: Mapping[str, Any] = schema.get("properties", {})
    unknown = next((name for name in arguments if name not in known), None)
    if unknown is not None:
        return f"there is no argument {unknown!r}; the arguments are {', '.join(known) or 'none'}"
    missing = next((name for name in schema.get("required", ()) if name not in arguments), None)
    if missing is not None:
        return f"the argument {missing!r} is missing"
    for name, value in arguments.items():
        wanted = known[name]
        if value is None and wanted.get("nullable"):
            continue
        if "enum" in wanted and value not in wanted["enum"]:
            return f"the argument {name!r} is {_short(value)}, expected one of {_short(wanted['enum'])}"
        kinds = wanted.get("type")
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if kinds and not any(_is(value, kind) for kind in kinds):
            return f"the argument {name!r} is {_short(value)}, expected {' or '.join(kinds)}"
    return None


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool) and kind != "boolean":
        return False
    return kind not in KINDS or isinstance(value, KINDS[kind])


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:80] + "..."


def refusal(text: str) -> Result:
    """What the model is told where there is no result."""
    return Result(json.dumps({"error": _plain(text)}, ensure_ascii=False), failed=True)


def _plain(text: str) -> str:
    """Text that can be encoded: what a model wrote as half a character becomes a question mark."""
    return text.encode("utf-8", "replace").decode()
