"""The child process in which a reward function runs. Needs only the standard library.

One JSON object a line comes in on a pipe and one goes out on another; what the function prints goes to a log instead.
The parent (``reward_process.py``) holds the deadline. ``SIGUSR1`` makes this process write its stack, so that a hang
can be named. A function that runs a model's text is loaded here and called in locked forks, one a call.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import fcntl
import importlib
import importlib.util
import inspect
import json
import math
import numbers
import os
import select
import signal
import sys
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upslope.worlds.isolation import Limits, Watch

Json = dict[str, Any]
LARGEST_REPLY = 64 << 20


class TrainerState:
    """What a reward function gets as ``trainer_state``: ``global_step``, the training steps that are complete (0 at
    first), and ``max_steps``, those planned (0 outside a training run)."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        self.global_step, self.max_steps = int(state.get("global_step", 0)), int(state.get("max_steps", 0))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"trainer_state has no {name!r} here; it has global_step and max_steps")


# ------------------------------------------------------------------------------------------------------- one call
def score(function: Callable[..., Any], request: Mapping[str, Any], user_file: str, runner: asyncio.Runner) -> Json:
    """Call the function once. ``{"values", "extra", "metrics"}``, or ``{"failed", ...}`` that says what is wrong."""
    count = len(request["completions"])
    extra: dict[str, list[Any]] = {}
    metrics: dict[str, list[float]] = {}

    def log_extra(column: str, values: Sequence[Any]) -> None:
        extra[str(column)] = list(values)

    def log_metric(name: str, value: Any) -> None:
        metrics.setdefault(str(name), []).append(float(value))

    try:
        returned = function(**_arguments(function, request, log_extra, log_metric))
        if inspect.isawaitable(returned):
            returned = runner.run(_awaited(returned))
    except BaseException as error:  # SystemExit too: the user's code may not end the worker
        return failure(error, user_file)
    for column, logged in extra.items():
        if len(logged) != count:
            return {
                "failed": "values",
                "text": f"log_extra({column!r}) got {len(logged)} values for {count} completions",
            }
    checked = _values(returned, count)
    if isinstance(checked, dict):
        return checked
    return {"values": checked, "extra": extra, "metrics": metrics}


def failure(error: BaseException, user_file: str) -> Json:
    """What an exception was and the last line of the user's own file that it came through."""
    text = "".join(traceback.format_exception_only(error)).strip()
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if frame.filename == user_file]
    others = [frame for frame in frames if frame.filename != __file__ and not frame.filename.startswith("<frozen")]
    place = [[last.filename, last.lineno, last.name] for last in (theirs or others)[-1:]]
    return {"failed": "raised", "text": text, "frame": place[0] if place else None}


async def _awaited(value: Any) -> Any:
    return await value


def _arguments(function: Callable[..., Any], request: Mapping[str, Any], log_extra: Any, log_metric: Any) -> Json:
    """The arguments that the function's signature asks for, by name; all of them where it takes ``**kwargs``."""
    offered = dict(request["columns"])
    offered.update(prompts=request["prompts"], completions=request["completions"])
    if request["completion_ids"] is not None:
        offered["completion_ids"] = request["completion_ids"]
    offered.update(
        log_extra=log_extra, log_metric=log_metric, trainer_state=TrainerState(request.get("state") or {})
    )  # fmt: skip
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # written in C, without a signature
        return offered
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in variable]
    missing = [name for name in needed if name not in offered]
    if missing:
        columns = ", ".join(request["columns"]) or "none"
        raise TypeError(
            f"it needs {', '.join(map(repr, missing))}, and no such column comes with the rows (columns: {columns})"
        )
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return offered
    names = {p.name for p in parameters}
    return {name: value for name, value in offered.items() if name in names}


def _values(returned: Any, count: int) -> list[float | None] | Json:
    if not isinstance(returned, list | tuple) and callable(getattr(returned, "tolist", None)):
        returned = returned.tolist()  # an array or a tensor of numbers
    if not isinstance(returned, list | tuple):
        kind = type(returned).__name__
        return {"failed": "values", "text": f"returned {kind}, expected a list of {count} numbers, one per completion"}
    if len(returned) != count:
        return {"failed": "values", "text": f"returned {len(returned)} values for {count} completions"}
    values: list[float | None] = []
    for index, item in enumerate(returned):
        number = item.item() if getattr(item, "shape", None) == () and hasattr(item, "item") else item
        if number is None:
            values.append(None)
        elif not isinstance(number, numbers.Real):
            found = f"{type(item).__name__} {repr(item)[:60]}"
            return {
                "failed": "values",
                "text": f"returned {found} for a completion, expected a number or None",
                "row": index,
            }
        else:
            with contextlib.suppress(OverflowError):
                if math.isfinite(float(number)):
                    values.append(float(number))
                    continue
            found = repr(number)[:60]
            return {
                "failed": "values",
                "text": f"returned {found} for a completion, expected a finite number",
                "row": index,
            }
    return values


# ------------------------------------------------------------------------------------------------------- the process
def load(path: str, function: str, options: Mapping[str, Any] | None = None) -> Callable[..., Any]:
    """Load ``function`` from the file at ``path``, and from nowhere else: ``sys.path`` is not searched for it.

    With ``options`` it makes the reward function: what it returns for them is the one.
    """
    name = "upslope_reward_file"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and multiprocessing look their module up
    spec.loader.exec_module(module)
    found = getattr(module, function)
    if not callable(found):
        raise TypeError(f"{function} is {type(found).__name__}, not a function")
    return found if options is None else found(**options)  # type: ignore[no-any-return]


def serve(
    find: Callable[[], Callable[..., Any]], user_file: str, requests: int, replies: int, trace: int, limits: Limits
) -> None:
    """Answer requests until the parent closes its end. The first reply says that the function is loaded, or why not."""
    isolation = _isolation()
    process = os.getpid()
    watch: Watch | None = None
    for descriptor in (requests, replies, trace):
        os.set_inheritable(descriptor, False)  # programs that the user's code starts must not hold our pipes
    with asyncio.Runner() as runner:
        _explain_on_signal(runner, trace)
        with _dying_with_parent(requests):
            try:
                if not limits.sandbox:
                    watch = isolation.confine(limits)
                function = find()
                if limits.sandbox:
                    isolation.rehearse(limits)
                reply: Json = {"ready": True}
            except isolation.Refused as error:
                reply = {"failed": "refused", "text": str(error)}
            except BaseException as error:
                reply = failure(error, user_file)
            reply["network"] = watch is not None and watch.tried
        _send(replies, reply)
        with open(requests, "rb", closefd=False) as lines:
            for line in lines:
                with _dying_with_parent(requests):
                    if limits.sandbox:
                        reply = score_locked(function, line, user_file, trace, limits)
                    else:
                        reply = score_watched(function, json.loads(line), user_file, runner, watch)
                if os.getpid() != process:
                    os._exit(0)  # the user's code forked and both copies came back: only the first one answers
                _send(replies, reply)


def score_watched(
    function: Callable[..., Any], request: Json, user_file: str, runner: asyncio.Runner, watch: Watch | None
) -> Json:
    """``score``, with ``network``: whether the function asked for a network that it may not use."""
    if watch is not None:
        watch.tried = False
    reply = score(function, request, user_file, runner)
    return {**reply, "network": watch is not None and watch.tried}


def score_locked(
    function: Callable[..., Any], line: bytes, user_file: str, trace: int, limits: Limits
) -> Json:  # fmt: skip
    """``score`` in a fork that is locked up before it reads the request. Nothing that it does outlives the call.

    Whatever comes back is taken for what it may be, the word of a model: the parent checks it like a stranger's.
    """
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.set_inheritable(theirs, False)
            with asyncio.Runner() as runner:
                _explain_on_signal(runner, trace)
                try:
                    _isolation().enter_sandbox(limits, [theirs, trace, *_descriptors_of(runner)])
                    reply = score(function, json.loads(line), user_file, runner)
                except BaseException as error:
                    reply = failure(error, user_file)
                _send(theirs, reply)
        finally:
            os._exit(0)
    os.close(theirs)
    received = bytearray()
    while len(received) <= LARGEST_REPLY and (data := os.read(ours, 1 << 20)):
        received += data
    os.close(ours)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    try:
        reply = json.loads(received)
        if isinstance(reply, dict):
            return {**reply, "network": False}
    except (ValueError, RecursionError):
        pass
    code = os.waitstatus_to_exitcode(status)
    ended = f"killed by {signal.Signals(-code).name}" if code < 0 and code != -signal.SIGKILL else "no answer"
    return {"failed": "crashed", "text": f"its sandboxed call ended ({ended})", "network": False}


def _descriptors_of(runner: asyncio.Runner) -> list[int]:
    """The event loop's own descriptors, made before the process is locked up."""
    loop: Any = runner.get_loop()
    return [loop._selector.fileno(), loop._ssock.fileno(), loop._csock.fileno()]


def _send(descriptor: int, reply: Json) -> None:
    data = memoryview(json.dumps(reply, default=repr).encode() + b"\n")
    while data:
        data = data[os.write(descriptor, data) :]


class _dying_with_parent:
    """While user code runs nobody reads the request pipe. Its hang-up, which means that the parent is gone, then raises
    SIGIO, whose default action ends this process and its group: no hung reward outlives a killed run."""

    def __init__(self, requests: int) -> None:
        self.requests = requests

    def __enter__(self) -> None:
        fcntl.fcntl(self.requests, fcntl.F_SETOWN, -os.getpgrp())
        self._set(os.O_ASYNC)
        poll = select.poll()
        poll.register(self.requests, 0)
        if any(event & select.POLLHUP for _, event in poll.poll(0)):
            os._exit(0)

    def __exit__(self, *_: object) -> None:
        self._set(0)

    def _set(self, flag: int) -> None:
        flags = fcntl.fcntl(self.requests, fcntl.F_GETFL)
        fcntl.fcntl(self.requests, fcntl.F_SETFL, (flags & ~os.O_ASYNC) | flag)


def _explain_on_signal(runner: asyncio.Runner, trace: int) -> None:
    """On SIGUSR1 write the stack to ``trace``: from C, whatever Python is doing, then the tasks of a waiting event
    loop."""

    def write_tasks(number: int, frame: types.FrameType | None) -> None:
        tasks = asyncio.all_tasks(runner.get_loop())
        for task in sorted(tasks, key=lambda task: type(getattr(task, "_fut_waiter", None)) is not asyncio.Future):
            stack: list[str] = []  # tasks that wait for other tasks come last: they are not where it hangs
            waiting: Any = task.get_coro()
            while (inner := getattr(waiting, "cr_frame", None)) is not None:
                stack.append(f'  File "{inner.f_code.co_filename}", line {inner.f_lineno} in {inner.f_code.co_name}\n')
                waiting = waiting.cr_await
            os.write(trace, "".join(["\nTask:\n", *reversed(stack)]).encode("ascii", "backslashreplace"))

    faulthandler.enable(file=trace)  # a crash in C leaves its stack too
    signal.signal(signal.SIGUSR1, write_tasks)
    faulthandler.register(signal.SIGUSR1, file=trace, all_threads=True, chain=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1, signal.SIGIO})


def _isolation() -> Any:
    """``upslope.worlds.isolation``, in a process that was run by its path without the rest of the package: that would
    take ten times as long, and a reward file that imports ``upslope`` is to get all of it."""
    if __name__ != "__main__":
        from upslope.worlds import isolation

        return isolation
    if not _loaded:
        package = types.ModuleType("upslope")
        package.__path__ = [str(Path(__file__).parents[1])]
        sys.modules["upslope"] = package
        _loaded.append(importlib.import_module("upslope.worlds.isolation"))
        for name in [name for name in sys.modules if name.partition(".")[0] == "upslope"]:
            del sys.modules[name]
    return _loaded[0]


_loaded: list[Any] = []


def main() -> None:
    task = json.loads(sys.argv[1])
    isolation = _isolation()
    if task.get("probe"):
        sys.stdout.write(isolation.probe())
        return
    sys.path.extend(task["search"])  # last: only our own package, for a reward that ships with it
    limits = isolation.Limits(**{**task["limits"], "environment": tuple(task["limits"]["environment"])})
    serve(
        lambda: load(task["path"], task["function"], task["options"]),
        task["path"], task["requests"], task["replies"], task["trace"], limits,
    )  # fmt: skip


if __name__ == "__main__":
    main()
