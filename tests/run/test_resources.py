"""Memory and disk: the machine's, a container's limit, and systems that do not say."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from upslope.run.resources import Memory, disk_free, keep_freed_memory, memory, writable

GIB = 2**30


def system(root: Path, total: int, available: int, **files: str) -> tuple[Path, Path]:
    """A made-up /proc/meminfo and cgroup folder; ``__`` in a name is a slash, ``_dot_`` a dot."""
    meminfo = root / "meminfo"
    meminfo.write_text(f"MemTotal: {total // 1024} kB\nMemAvailable: {available // 1024} kB\nHugePages_Total: 7\n")
    for name, text in files.items():
        path = root / "cgroup" / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return meminfo, root / "cgroup"


def test_a_machine_without_limits(tmp_path: Path) -> None:
    assert memory(*system(tmp_path, 16 * GIB, 10 * GIB)) == Memory(16 * GIB, 10 * GIB)
    assert memory(*system(tmp_path, 16 * GIB, 10 * GIB, memory_dot_max="max\n")) == Memory(16 * GIB, 10 * GIB)


def test_the_limit_of_a_container_counts_and_its_file_cache_is_free(tmp_path: Path) -> None:
    files = {"memory_dot_max": f"{4 * GIB}\n", "memory_dot_current": f"{3 * GIB}\n"}
    files["memory_dot_stat"] = f"anon 1\ninactive_file {2 * GIB}\n"
    assert memory(*system(tmp_path, 16 * GIB, 10 * GIB, **files)) == Memory(4 * GIB, 3 * GIB)


def test_the_older_kind_of_container(tmp_path: Path) -> None:
    files = {"memory__memory.limit_in_bytes": str(4 * GIB), "memory__memory.usage_in_bytes": str(GIB)}
    assert memory(*system(tmp_path, 16 * GIB, 2 * GIB, **files)) == Memory(4 * GIB, 2 * GIB)


def test_a_limit_above_the_machine_is_none(tmp_path: Path) -> None:
    found = memory(*system(tmp_path, 16 * GIB, 10 * GIB, memory_dot_max=str(2**62)))
    assert found == Memory(16 * GIB, 10 * GIB)


def test_a_system_without_these_files_still_has_a_total(tmp_path: Path) -> None:
    found = memory(tmp_path / "none", tmp_path / "none")
    assert found.total and found.total > GIB // 4 and found.available is None


def test_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    free = disk_free(tmp_path / "a" / "b")
    assert free is not None and free == pytest.approx(disk_free(tmp_path) or 0, rel=0.05)


def test_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert writable(tmp_path / "new" / "folder") and not writable(tmp_path / "file" / "below")


FAULTS = """
import ctypes, resource, sys
from upslope.run.resources import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
size = 64 * 2**20
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked")
def test_freed_memory_is_used_again_without_faulting_in_new_pages() -> None:
    def second_block(how: str) -> int:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True,
                              env=environment)  # fmt: skip
        return int(done.stdout)

    assert second_block("as it is") > 10 * max(second_block("keep"), 1)


def test_an_allocator_that_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")
    assert not keep_freed_memory()
