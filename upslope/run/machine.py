"""What ``run.json`` tells about where a run came from: versions, hardware, git, command line, and who holds a lock."""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

_SECRET_NAME = re.compile(r"(?:^|[._-])(?:token|secret|password|passwd|api[-_]?key|credentials?)$", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"\b(?:hf_|sk-|ghp_|github_pat_|glpat-|xox[abp]-|AKIA|AIza)[A-Za-z0-9_\-]{8,}")
MASK = "***"


def describe() -> dict[str, Any]:
    """Versions, platform, processor, memory, git state of the working folder, the command line without secrets."""
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": _cores(),
        "memory_bytes": _memory(),
        "git": _git(),
        "command": masked(sys.argv),
    }


def versions() -> dict[str, str]:
    """Installed versions, read from package metadata: nothing is imported."""
    names = ("upslope", "torch", "transformers", "tokenizers", "safetensors")
    return {"python": platform.python_version(), **{name: _version(name) for name in names}}


@cache  # parsing metadata costs milliseconds, and every checkpoint notes the versions
def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def masked(arguments: Sequence[str]) -> list[str]:
    """Arguments with values that look secret replaced: after a telling name, or of a well-known token form."""
    result: list[str] = []
    hide_next = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if hide_next and not argument.startswith("-"):
            result.append(MASK)
        elif equals and _SECRET_NAME.search(name):
            result.append(f"{name}={MASK}")
        else:
            result.append(_SECRET_VALUE.sub(MASK, argument))
        hide_next = argument.startswith("-") and not equals and bool(_SECRET_NAME.search(argument))
    return result


# -------------------------------------------------------------------------------------------------- processes and locks
def me() -> dict[str, Any]:
    """This process, so that a later one can tell whether it still lives: pid, host, start time where known."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "start": _start_time(os.getpid())}


def is_dead(holder: Mapping[str, Any]) -> bool:
    """Whether a lock's process is certainly gone: on this host, and no such pid, or it is now another process."""
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    start = _start_time(pid)
    return start == "zombie" or (start is not None and holder.get("start") not in (None, start))


def _start_time(pid: int) -> str | None:
    """Clock ticks between boot and the start of ``pid`` (Linux), ``zombie`` if it has ended, None if unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return "zombie" if fields[0] in "ZX" else fields[19]


# ------------------------------------------------------------------------------------------------------------- hardware
def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _git() -> dict[str, Any] | None:
    """Commit and whether tracked files differ from it; None outside a repository."""
    git = shutil.which("git")
    if git is None:
        return None

    def ask(*arguments: str) -> str | None:
        # fsmonitor is a program named by the repository's own settings: asking for the state must not run it
        command = [git, "--no-optional-locks", "-c", "core.fsmonitor=false", *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
            return None
        return done.stdout.strip()

    commit = ask("rev-parse", "HEAD")
    if commit is None:
        return None
    state = ask("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if state is None else bool(state)}
