"""The inside of the tools' process: loads the user's functions and calls them. Needs only the standard library.

It is served like a reward function (``reward_worker.py``): each "completion" is one call, its answer is logged beside a
reward of 0. What a tool raises is an answer too: the model is told.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

LONGEST_ERROR = 500
_FEW = 20
"""So many different failures are written to the log with their traceback."""
_told: set[tuple[str, ...]] = set()


def make(sources: Sequence[Sequence[str]]) -> Callable[..., list[float]]:
    """A function that answers calls to the tools at these (path, name)."""
    return answering(load_tools(sources))


def load_tools(sources: Sequence[Sequence[str]]) -> dict[str, Callable[..., Any]]:
    """The functions by name; each file is loaded once.

    Raises:
        ValueError: a file cannot be loaded, or has no such function; the text says where.
    """
    modules: dict[str, ModuleType] = {}
    tools: dict[str, Callable[..., Any]] = {}
    for path, name in sources:
        if path not in modules:
            modules[path] = _module(path, f"upslope_tools_{len(modules)}")
        found = getattr(modules[path], name, None)
        if not callable(found):
            raise ValueError(f"{Path(path).name} has no function {name!r}")
        tools[name] = found
    return tools


def _module(path: str, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{Path(path).name} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        place = f"{Path(path).name}:{lines[-1]}" if lines else Path(path).name
        raise ValueError(f"{place}: {_words(error)}") from error
    return module


def answering(tools: Mapping[str, Callable[..., Any]]) -> Callable[..., list[float]]:
    """A reward function whose completions are calls: column ``calls`` holds ``{"name", "arguments", "longest"}``.

    It logs a ``reply`` a call: ``{"text", "length"}``, of which ``text`` are the first ``longest`` characters, or
    ``{"error"}``.
    """

    def answer(
        completions: Sequence[Any], calls: Sequence[Mapping[str, Any]], log_extra: Any, **columns: Any
    ) -> list[float]:  # fmt: skip
        log_extra("reply", [reply(tools[call["name"]], call["arguments"], call["longest"]) for call in calls])
        return [0.0] * len(completions)

    return answer


def reply(tool: Callable[..., Any], arguments: Mapping[str, Any], longest: int) -> dict[str, Any]:
    """Call a tool. Text is answered as it is, any other value as JSON."""
    try:
        value = tool(**arguments)
        if inspect.isawaitable(value):
            value = asyncio.run(_awaited(value))
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        return {"text": text[:longest], "length": len(text)}
    except (Exception, SystemExit) as error:
        _log(error)
        return {"error": _words(error)[:LONGEST_ERROR]}


async def _awaited(value: Any) -> Any:
    return await value


def _words(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip()


def _log(error: BaseException) -> None:
    """The traceback to the log, the first time that a tool fails in that way at that line."""
    frames = traceback.extract_tb(error.__traceback__)
    seen = (type(error).__name__, *(f"{frame.filename}:{frame.lineno}" for frame in frames[-1:]))
    if seen not in _told and len(_told) < _FEW:
        _told.add(seen)
        traceback.print_exception(error)
