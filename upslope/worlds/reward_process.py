"""Starting, talking to and killing the child process of a reward function (``reward_worker.py`` is its inside)."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from upslope.worlds import isolation, reward_worker
from upslope.worlds.isolation import Limits

SECONDS_TO_EXPLAIN = 0.3
SECONDS_TO_LEAVE = 1.0
_FRAME = re.compile(r'^  File "(.+)", line (\d+) in (.+)$', re.MULTILINE)
_parent_ends: set[int] = set()
"""Our ends of all children's pipes: a forked child must close them, or it would keep its sisters from seeing our
end."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A child that gave no answer and is dead now.

    ``exit`` says how it ended by itself, ``None`` that the deadline killed it. ``frame`` is the innermost (file, line,
    function) of the user's file, where known; ``output`` the last line that it printed.
    """

    exit: str | None
    frame: tuple[str, int, str] | None
    output: str


@dataclass(slots=True)
class Child:
    """A started worker and our ends of its pipes."""

    pid: int
    user_file: str
    requests: int
    replies: int
    trace: IO[bytes]
    output: IO[bytes]
    process: subprocess.Popen[bytes] | None = None
    status: int | None = None
    sandbox: bool = False

    def exchange(self, request: bytes, timeout: float) -> dict[str, Any] | Lost:
        """Send a request (nothing, for the first reply) and wait for its reply; past ``timeout`` seconds the child is
        killed."""
        return exchange([(self, request)], timeout)[0]

    def lost(self, deadline: bool) -> Lost:
        """The child is of no use any more: kill it and say how it ended, and where it was."""
        if deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGUSR1)
                if self.sandbox:  # its call runs in a fork
                    os.killpg(self.pid, signal.SIGUSR1)
            explained = time.monotonic() + SECONDS_TO_EXPLAIN
            while self._frame() is None and time.monotonic() < explained:
                time.sleep(0.01)
        self.kill()
        code = os.waitstatus_to_exitcode(self.status or 0)
        ours = (-signal.SIGKILL, -signal.SIGUSR1) if deadline else ()
        ended = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        return Lost(None if code in ours else ended, self._frame(), self._last_line())

    def _frame(self) -> tuple[str, int, str] | None:
        text = os.pread(self.trace.fileno(), 1 << 20, 0).decode("ascii", "replace")
        name = self.user_file.encode("ascii", "backslashreplace").decode()  # as faulthandler writes it
        for stack in sorted(text.split("\n\n"), key=lambda part: "Current thread" not in part):
            for file, line, function in _FRAME.findall(stack):
                if file == name:
                    return self.user_file, int(line), function
                if function == "serve" and file.endswith("reward_worker.py"):
                    break  # what lies outside it in a forked child is the parent's stack
        return None

    def _last_line(self) -> str:
        size = os.fstat(self.output.fileno()).st_size
        lines = os.pread(self.output.fileno(), 4000, max(0, size - 4000)).decode(errors="replace").strip().splitlines()
        return "".join(letter for letter in lines[-1] if letter.isprintable())[:200] if lines else ""

    def kill(self) -> None:
        """SIGKILL to the child and all of its process group, at once."""
        if self.status is None:
            for end, target in ((os.killpg, self.pid), (os.kill, self.pid)):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    end(target, signal.SIGKILL)
            _, self.status = os.waitpid(self.pid, 0)
            if self.process is not None:
                self.process.returncode = os.waitstatus_to_exitcode(
                    self.status
                )  # it is reaped: Popen need not look again

    def close(self) -> None:
        """Let the child leave by itself (its ``atexit`` runs), kill what is left after a second, and close the
        pipes."""
        self._close(self.requests)
        if self.status is None:
            poll = select.poll()
            poll.register(self.replies, select.POLLIN)
            until = time.monotonic() + SECONDS_TO_LEAVE
            while (left := until - time.monotonic()) > 0:
                if poll.poll(left * 1000) and not os.read(self.replies, 1 << 16):
                    break
        self.kill()
        self._close(self.replies)
        self.trace.close()
        self.output.close()

    @staticmethod
    def _close(descriptor: int) -> None:
        if descriptor in _parent_ends:
            _parent_ends.discard(descriptor)
            os.close(descriptor)


def exchange(requests: Sequence[tuple[Child, bytes]], timeout: float) -> list[dict[str, Any] | Lost]:
    """Send each child its request, all at the same time, and wait for the replies. A child that has not answered within
    ``timeout`` seconds is killed, and so is one that sends more than a reply may hold or what is no reply."""
    until = time.monotonic() + timeout
    found: dict[int, dict[str, Any] | Lost] = {}
    unsent = [memoryview(request) for _, request in requests]
    received = [bytearray() for _ in requests]
    poll, ends = select.poll(), {}
    for index, (child, request) in enumerate(requests):
        poll.register(child.replies, select.POLLIN)
        ends[child.replies] = index
        if request:
            poll.register(child.requests, select.POLLOUT)
            ends[child.requests] = index
    while len(found) < len(requests) and (left := until - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(max(1, left * 1000)):
            index = ends[descriptor]
            child = requests[index][0]
            if descriptor == child.requests:
                try:
                    unsent[index] = unsent[index][os.write(descriptor, unsent[index]) :]
                except BrokenPipeError:  # it is gone; the other pipe says so too
                    unsent[index] = unsent[index][:0]
                if not unsent[index]:
                    poll.unregister(descriptor)
                continue
            received[index] += (data := os.read(descriptor, 1 << 20))
            if not data or len(received[index]) > reward_worker.LARGEST_REPLY:
                found[index] = child.lost(deadline=False)
            elif received[index].endswith(b"\n"):
                found[index] = _read(received[index]) or child.lost(deadline=False)
            if index in found:
                poll.unregister(descriptor)
    return [found[i] if i in found else child.lost(deadline=True) for i, (child, _) in enumerate(requests)]


def _read(line: bytes | bytearray) -> dict[str, Any] | None:
    """A reply; ``None`` for what is none: a function may have written into our pipe."""
    try:
        reply = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return reply if isinstance(reply, dict) else None


def _open(log: Path | None) -> tuple[int, int, int, int, IO[bytes], IO[bytes]]:
    """The child's and our ends of two pipes (their read, our write, our read, their write), the trace file, the log."""
    their_read, our_write = os.pipe()
    our_read, their_write = os.pipe()
    os.set_blocking(our_write, False)
    _parent_ends.update((our_write, our_read))
    output: IO[bytes] = tempfile.TemporaryFile() if log is None else open(log, "a+b")  # noqa: SIM115 (the child keeps it)
    return their_read, our_write, our_read, their_write, tempfile.TemporaryFile(), output


def start_file(
    path: str, function: str, search: Sequence[str], log: Path | None, limits: Limits | None = None,
    options: Mapping[str, Any] | None = None,
) -> Child:  # fmt: skip
    """Start a fresh Python on ``reward_worker.py``, which loads ``function`` from ``path``, within ``limits``.

    With ``options`` the function makes the reward function. ``-P`` keeps the current directory out of the child's
    import path.
    """
    limits = limits or Limits()
    their_read, our_write, our_read, their_write, trace, output = _open(log)
    task: dict[str, Any] = {"path": path, "function": function, "search": list(search), "limits": asdict(limits)}
    task.update(requests=their_read, replies=their_write, trace=trace.fileno())
    task["options"] = None if options is None else dict(options)
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-u", reward_worker.__file__, json.dumps(task)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=isolation.environment(os.environ, limits),
            cwd="/" if limits.sandbox else None,
            pass_fds=(their_read, their_write, trace.fileno()),
            start_new_session=True,
        )
    finally:
        os.close(their_read)
        os.close(their_write)
    return Child(process.pid, path, our_write, our_read, trace, output, process, sandbox=limits.sandbox)


def start_function(function: Callable[..., Any], log: Path | None, limits: Limits | None = None) -> Child:
    """Start a forked copy of this process that serves ``function`` within ``limits``."""
    limits = limits or Limits()
    inner = inspect.unwrap(getattr(function, "func", function))  # a partial's function
    method = inspect.getattr_static(type(inner), "__call__", None)  # an object's
    code = getattr(inner, "__code__", None) or getattr(method, "__code__", None)
    user_file = code.co_filename if code is not None else ""
    their_read, our_write, our_read, their_write, trace, output = _open(log)
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of threads; the child keeps to one, below
        pid = os.fork()
    if pid == 0:
        try:
            _become_worker(output, limits)
            reward_worker.serve(lambda: function, user_file, their_read, their_write, trace.fileno(), limits)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    with contextlib.suppress(OSError):  # both sides do it: whoever is first
        os.setpgid(pid, pid)
    os.close(their_read)
    os.close(their_write)
    return Child(pid, user_file, our_write, our_read, trace, output)


def _become_worker(output: IO[bytes], limits: Limits) -> None:
    """In a forked child: a process group, streams, environment and signals of its own, and none of the parent's
    pipes."""
    for name in set(os.environ) - set(isolation.environment(os.environ, limits)):
        del os.environ[name]
    os.setpgid(0, 0)
    for descriptor in _parent_ends:
        os.close(descriptor)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    signal.set_wakeup_fd(-1)
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGALRM,
    ):  # the parent's handlers save checkpoints
        signal.signal(number, signal.SIG_DFL)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)  # the parent's thread pool does not exist here: waiting for it would never end
