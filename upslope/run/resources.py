"""How much memory and disk there is, read from the system: a container's limit counts, not only the machine's. And how
the C library is to deal with it."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class Memory:
    """Main memory in bytes: what this process may use in all, and what is free now. None: the system does not say."""

    total: int | None
    available: int | None


def memory(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> Memory:
    """The machine's memory, or the limit of this process's container (cgroup v2, then v1) where that is lower."""
    machine = _meminfo(meminfo)
    total, available = machine.get("MemTotal"), machine.get("MemAvailable")
    if total is None:
        total = _physical()
    for limit_name, used_name, stat_name, cache_name in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        limit, used = _number(cgroup / limit_name), _number(cgroup / used_name)
        if limit is None or (total is not None and limit >= total):
            continue
        total = limit
        if used is not None:
            # Pages of files that were read count as used and are given back when memory is short.
            free = limit - max(used - (_stat(cgroup / stat_name, cache_name) or 0), 0)
            available = free if available is None else min(available, free)
        break
    if available is not None and total is not None:
        available = max(min(available, total), 0)
    return Memory(total, available)


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Ask the C library to keep what is freed for the next tensor; True where it can (glibc).

    By itself glibc maps every block above 32 MB from the system and gives it back when it is freed, so a training step
    faults in hundreds of megabytes of fresh pages that it had a moment before; that took a fifth of a step on two CPU
    cores. Nothing is done where the environment already sets glibc's allocator (``MALLOC_MMAP_MAX_`` and its kin).
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))  # -1: never trim


def disk_free(path: Path) -> int | None:
    """Free bytes where ``path`` is or would be made; None where that cannot be told."""
    for place in (path.absolute(), *path.absolute().parents):
        if place.exists():
            try:
                return shutil.disk_usage(place).free
            except OSError:
                return None
    return None


def writable(path: Path) -> bool:
    """Whether ``path`` could be made or written: the nearest folder that is there allows it."""
    for place in (path.absolute(), *path.absolute().parents):
        if place.exists():
            return place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    return False


def _meminfo(path: Path) -> dict[str, int]:
    """``/proc/meminfo`` in bytes; empty where there is none."""
    found: dict[str, int] = {}
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return found
    for line in lines:
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdecimal():
            found[name] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
    return found


def _physical() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _number(path: Path) -> int | None:
    """The number in a file; None where there is none, or ``max``."""
    try:
        text = path.read_text("ascii", errors="replace").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _stat(path: Path, name: str) -> int | None:
    try:
        lines = path.read_text("ascii", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        key, _, value = line.partition(" ")
        if key == name and value.isdecimal():
            return int(value)
    return None
