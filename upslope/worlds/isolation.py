"""What a scoring process may do: its environment, memory, network, and the sandbox for what runs a model's text.

Ordinary scoring processes run the user's own code: they get a clean environment, a limit of memory, and no network.
The sandbox is for functions that execute or evaluate what a model wrote: each call runs in a fork that can compute,
read Python's own files, and nothing else. All of it is put up from inside before a completion is seen, and the sandbox
is tried out first: where it would not hold, nothing is scored. Needs only the standard library and ``kernel_walls``.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from upslope.worlds import kernel_walls
from upslope.worlds.kernel_walls import Refused

KEPT = frozenset({
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "PYTHONPATH", "PYTHONHASHSEED",
    "VIRTUAL_ENV", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES", "XDG_CACHE_HOME", "NLTK_DATA", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE",
    "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "TRANSFORMERS_OFFLINE", "DO_NOT_TRACK", "SSL_CERT_FILE",
    "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
})  # fmt: skip
"""Environment variables that a scoring process gets, beside ``LC_*`` and those that the recipe names."""

PROXIES = frozenset(
    name for one in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY") for name in (one, one.lower())
)
"""Kept too where the network is allowed: an address of a proxy may hold a password."""

LOG_BYTES = 16 << 20
"""What sandboxed calls may add to the log."""

FROM_SYSTEM = ("/usr/lib", "/lib", "/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache", "/dev/null", "/dev/urandom")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a scoring process may do.

    ``memory_mb`` is what it may take for its data, in MiB (``None``: no limit); ``network`` whether it may use it;
    ``environment`` names variables that it gets beside ``KEPT``; ``sandbox``: its function runs a model's text.
    """

    memory_mb: int | None = 4096
    network: bool = False
    environment: tuple[str, ...] = ()
    sandbox: bool = False


def environment(given: Mapping[str, str], limits: Limits) -> dict[str, str]:
    """The variables of ``given`` that a scoring process gets. Hashes of text are fixed, so that a reward which walks
    through a set is the same in every process; empty entries of PYTHONPATH, which mean the current folder, are out."""
    names = KEPT | set(limits.environment) | (PROXIES if limits.network else set())
    kept = {name: value for name, value in given.items() if name in names or name.startswith("LC_")}
    kept.setdefault("PYTHONHASHSEED", "0")
    if "PYTHONPATH" in kept:
        kept["PYTHONPATH"] = os.pathsep.join(entry for entry in kept["PYTHONPATH"].split(os.pathsep) if entry)
    if limits.sandbox:  # no threads of libraries: Landlock holds only the thread that asks for it
        kept.pop("HOME", None)
        kept |= {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
        kept["PYTHONDONTWRITEBYTECODE"] = "1"
    return kept


# ------------------------------------------------------------------------------------------------------------- ordinary
class Watch:
    """Notices that this process asks for the network, and refuses where the kernel does not (``enforce``)."""

    def __init__(self, enforce: bool) -> None:
        self.tried, self.enforce = False, enforce
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
            asks = True
        elif event == "socket.__new__":
            asks = arguments[1] == socket.AF_INET
        else:
            asks = event in ("socket.connect", "socket.sendto", "socket.sendmsg") and (
                arguments[0].family in (socket.AF_INET, socket.AF_INET6)
            )
        if asks:
            self.tried = True
            if self.enforce:
                raise PermissionError(1, "Operation not permitted")


def confine(limits: Limits) -> Watch | None:
    """Hold this process to ``limits``, for good. Where the network is denied, the watch that hears of attempts."""
    limit_memory(limits.memory_mb, resource.RLIMIT_DATA, "VmData")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if limits.network:
        return None
    return Watch(enforce=deny_network() == "python")


def deny_network() -> str:
    """Take the network away by the strongest means there is, and say which: ``seccomp`` or ``python``."""
    try:
        kernel_walls.deny_network()
        return "seccomp"
    except Refused:
        return "python"


def limit_memory(megabytes: int | None, limit: int, measure: str) -> bool:
    """Let this process take ``megabytes`` MiB beyond what it has; whether the system does so.

    ``RLIMIT_DATA`` counts private memory that can be written (``VmData``), ``RLIMIT_AS`` all addresses (``VmSize``).
    A fork may take again, uncounted, what its parent had freed and kept.
    """
    if megabytes is None or not sys.platform.startswith("linux"):
        return False
    status = Path("/proc/self/status").read_text()
    now = next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith(f"{measure}:")), 0)
    most = now + (megabytes << 20)
    with contextlib.suppress(ValueError, OSError):  # a lower limit is in force already
        resource.setrlimit(limit, (most, most))
        return True
    return False


# -------------------------------------------------------------------------------------------------------------- sandbox
def enter_sandbox(limits: Limits, keep: Sequence[int]) -> None:
    """Lock this process (a fork that scores one call) up, for good; ``keep`` are the descriptors that it needs.

    Raises:
        Refused: a wall is missing on this machine.
    """
    if len(os.listdir("/proc/self/task")) > 1:
        raise Refused("the function's process has several threads, and Landlock would hold only one")
    kernel_walls.die_with_parent()
    low = 3
    for descriptor in sorted({*keep, 1 << 20}):
        os.closerange(low, descriptor)
        low = descriptor + 1
    limit_memory(limits.memory_mb, resource.RLIMIT_AS, "VmSize")
    most = os.fstat(1).st_size + LOG_BYTES  # a larger log is for ordinary files a failed write, for pipes nothing
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    kernel_walls.allow_reading_only(readable())
    kernel_walls.allow_only_computing()


def readable() -> list[str]:
    """What a sandboxed call may read: the standard library, installed packages and shared libraries."""
    import sysconfig  # here and below: what few processes need is not loaded in all

    paths = sysconfig.get_paths()
    places = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")} | {sys.prefix, sys.base_prefix}
    places |= {entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages", "lib-dynload")}
    return sorted({*places, str(Path(__file__).parents[1]), *FROM_SYSTEM} - {"", "/"})


def rehearse(limits: Limits) -> None:
    """Try the sandbox out on harmless attempts at what it must prevent.

    Raises:
        Refused: it cannot be put up here, or something got through; the text says what.
    """
    import tempfile

    with tempfile.TemporaryDirectory(prefix="upslope-") as folder:
        secret = Path(folder) / "secret"
        secret.write_text("secret")
        found = _in_fork(lambda: breaches(secret, os.getppid()), limits)
        if (Path(folder) / "marker").exists():
            found = [*found, "write a file"]
    if found:
        raise Refused(f"the sandbox does not hold on this machine: it did not keep a process from: {', '.join(found)}")


def breaches(secret: Path, parent: int) -> list[str]:
    """What this process can do of that which a sandbox must prevent."""

    def fork() -> None:
        if os.fork() == 0:
            os._exit(0)
        os.wait()

    files = resource.RLIMIT_NOFILE
    attempts: dict[str, Callable[[], Any]] = {
        "write a file": lambda: (secret.parent / "marker").write_text("x"),
        "remove a file": lambda: os.unlink(secret),
        "read a file": secret.read_text,
        "read another process's environment": lambda: Path(f"/proc/{parent}/environ").read_bytes(),
        "list a folder": lambda: os.listdir(secret.parent),
        "open a socket": lambda: socket.socket(socket.AF_INET).close(),
        "open a local socket": lambda: socket.socket(socket.AF_UNIX).close(),
        "start a process": fork,
        "start a program": lambda: os.posix_spawn("/bin/true", ["true"], {}),
        "signal another process": lambda: os.kill(parent, 0),
        "set limits": lambda: resource.setrlimit(files, resource.getrlimit(files)),
    }
    done = []
    for name, attempt in attempts.items():
        with contextlib.suppress(OSError, ValueError):
            attempt()
            done.append(name)
    return done


def _in_fork(work: Callable[[], list[str]], limits: Limits, seconds: float = 10.0) -> list[str]:
    """``work`` in a locked fork: what it returns. Raises ``Refused`` where the fork cannot be locked or gives
    nothing."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            try:
                enter_sandbox(limits, [theirs])
                answer: Any = work()
            except Refused as error:
                answer = str(error)
            os.write(theirs, json.dumps(answer).encode())
        os._exit(0)
    os.close(theirs)
    try:
        ready, _, _ = select.select([ours], [], [], seconds)
        text = os.read(ours, 1 << 16) if ready else b""
    finally:
        os.close(ours)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    answer = json.loads(text) if text else "a process that was locked up gave no answer"
    if isinstance(answer, str):
        raise Refused(answer)
    return list(answer)


# --------------------------------------------------------------------------------------------------------------- report
@dataclass(frozen=True, slots=True)
class Isolation:
    """What scoring processes are held to on this machine, for `upslope doctor`. The texts say by what, or why not.

    ``network`` is ``seccomp`` (the kernel refuses, to programs that it starts too) or ``python`` (Python's own sockets
    are refused; other programs and C libraries are not held). ``sandbox`` is empty where it holds, else the reason.
    """

    memory: bool
    network: str
    sandbox: str

    @property
    def lines(self) -> tuple[tuple[str, bool, str], ...]:
        """(what, whether it holds, by what or why not), for a table."""
        network = "by the kernel (seccomp)" if self.network == "seccomp" else "only for Python's own sockets"
        walls = "by the kernel (seccomp and Landlock)"
        return (
            ("rewards get a clean environment and a deadline", True, "a process of its own"),
            ("rewards are held to reward.memory_mb", self.memory, "RLIMIT_DATA" if self.memory else "only on Linux"),
            ("rewards have no network", self.network == "seccomp", network),
            ("a sandbox for rewards that run a model's text", not self.sandbox, self.sandbox or walls),
        )


@functools.cache
def isolation() -> Isolation:
    """What holds here, tried out in a process of its own (a tenth of a second)."""
    import subprocess

    from upslope.worlds import reward_worker

    command = [sys.executable, "-P", reward_worker.__file__, json.dumps({"probe": True})]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=environment(os.environ, Limits())
    )
    try:
        return Isolation(**json.loads(done.stdout))
    except (ValueError, TypeError):
        return Isolation(False, "python", f"its trial failed: {done.stderr.strip()[-200:]}")


def probe() -> str:
    """``Isolation`` of the calling process as JSON. It is held to what was tried from then on."""
    try:
        rehearse(Limits(sandbox=True))
        sandbox = ""
    except OSError as error:
        sandbox = str(error)
    memory = limit_memory(4096, resource.RLIMIT_DATA, "VmData")
    return json.dumps(asdict(Isolation(memory, deny_network(), sandbox)))
