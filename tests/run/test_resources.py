"""Memory and disk: the machine's, a container's limit, and systems that do not say."""

from __future__ import annotations

from pathlib import Path

import pytest

from upslope.run.resources import Memory, disk_free, memory, writable

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
