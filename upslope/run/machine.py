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

from upslope.errors import InputError, MachineError

STANDS_ON = ("torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "peft")
"""Packages that every training loads, and whose older versions fail in the midst of it, or are unsafe."""
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


def check_packages(of: str = "upslope") -> None:
    """See that the packages that a training loads are of versions that ``of`` asks for, from their metadata alone.

    Raises:
        MachineError: the first that is not, with both versions.
    """
    from packaging.requirements import Requirement

    try:
        asked = [Requirement(text) for text in metadata.requires(of) or ()]
    except metadata.PackageNotFoundError:  # a source tree that was never installed
        return
    for requirement in asked:
        if requirement.name not in STANDS_ON or requirement.marker is not None:
            continue
        installed = _version(requirement.name)
        known = installed != "not installed"
        if known and requirement.specifier.contains(installed.partition("+")[0], prereleases=True):
            continue
        found = f"is {installed}" if known else "is not installed"
        fix = f"pip install -U '{requirement.name}{requirement.specifier}'; `upslope doctor` lists the rest"
        raise MachineError(requirement.name, f"{found}, {requirement.specifier} is needed", fix)


def check_alone(environment: Mapping[str, str]) -> None:
    """A run is one process: several that a launcher started would all do the same, in one folder.

    Raises:
        InputError: ``WORLD_SIZE`` says that there are several.
    """
    size = environment.get("WORLD_SIZE", "").strip()
    if size not in ("", "0", "1"):
        problem = f"is {size[:20]!r} in the environment, as torchrun and accelerate set it, but a run is one process"
        raise InputError("WORLD_SIZE", problem, "start upslope without them, or unset WORLD_SIZE if nobody meant it")


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
