"""Checkpoints: the round trip, and crashes, full disks and kills at any moment of a save."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.run.checkpoint_support import (
    Part,
    assert_all_visible_are_valid,
    hidden,
    no_waiting_for_the_disk,
    read,
    visible,
    write,
)
from upslope.errors import InputError, MachineError
from upslope.run import checkpoint
from upslope.types import State

__all__ = ["no_waiting_for_the_disk"]
PRIMITIVES = ("_make_folder", "_write_bytes", "_write_tensors", "_sync", "_rename", "_remove")
WRITERS = ("_write_bytes", "_write_tensors")


# ------------------------------------------------------------------------------------------------------ the round trip
def test_every_dtype_and_shape_comes_back_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = torch.randn(6, 4)
    special = torch.tensor([float("nan"), float("inf"), -0.0, 5e-324], dtype=torch.float64)
    tensors = {
        "bf16": torch.randn(3, 2).bfloat16(),
        "f16": torch.randn(3).half(),
        "f64": special,
        "i64": torch.tensor([-(2**63), 2**63 - 1]),
        "u8": torch.arange(256, dtype=torch.uint8),
        "bool": torch.tensor([[True, False], [False, False]]),
        "empty": torch.empty(0),
        "empty_rows": torch.empty(0, 3, dtype=torch.int32),
        "scalar": torch.tensor(0.1, dtype=torch.float64),
        "transposed": base.T,
        "alias": base,
        "slice": base[2:4],
        "strided": base[:, ::2],
        "parameter": torch.nn.Parameter(torch.randn(2)),
        "name with / and \u00e9": torch.zeros(1),
    }
    values = {
        "f": 0.1,
        "tiny": 5e-324,
        "big": 2**70,
        "none": None,
        "list": [1, [True, "x\x00\ud800"]],
        "inf": float("inf"),
    }

    class Holder:
        def state(self) -> State:
            return State(tensors=tensors, values=values)

        def restore(self, state: State) -> None:
            self.back = state

    holder = Holder()
    checkpoint.save(tmp_path, (1, 0), {"p": holder}, {})
    found, notices = checkpoint.latest(tmp_path)
    assert found is not None and notices == [] and found.parts == ("p",)
    found.restore({"p": holder})
    assert dict(holder.back.values) == values
    assert set(holder.back.tensors) == set(tensors)
    for name, before in tensors.items():
        after = holder.back.tensors[name]
        assert (after.dtype, after.shape) == (before.dtype, before.shape), name
        assert after.is_contiguous() and not after.requires_grad
        raw = [x.detach().contiguous().reshape(-1).view(torch.uint8).tolist() for x in (before, after)]
        assert raw[0] == raw[1], name


def test_restored_tensors_are_aligned_and_do_not_share_memory(tmp_path: Path) -> None:
    weights = torch.zeros(5)

    class Tied:
        def state(self) -> State:
            return State(tensors={"odd": torch.ones(3, dtype=torch.uint8), "embedding": weights, "head": weights})

        def restore(self, state: State) -> None:
            self.back = state.tensors

    tied = Tied()
    checkpoint.save(tmp_path, (1, 0), {"p": tied}, {})
    found, _ = checkpoint.latest(tmp_path)
    assert found is not None
    found.restore({"p": tied})
    assert {tensor.data_ptr() % 64 for tensor in tied.back.values()} == {0}
    tied.back["embedding"].fill_(7)
    assert tied.back["head"].tolist() == [0.0] * 5


@pytest.mark.parametrize(
    ("values", "trail"),
    [
        ({"a": {1: 2}}, "key 1"),
        ({"a": [torch.float32]}, r"p\.a\[0\]"),
        ({"a": {2, 3}}, r"p\.a"),
        ({"a": b"x"}, r"p\.a"),
    ],
)
def test_values_that_json_would_change_are_refused_by_name(tmp_path: Path, values: dict[str, Any], trail: str) -> None:
    class Bad:
        def state(self) -> State:
            return State(values=values)

        def restore(self, state: State) -> None: ...

    with pytest.raises(TypeError, match=trail):
        checkpoint.save(tmp_path / "c", (1, 0), {"p": Bad()}, {})
    assert not (tmp_path / "c").exists()


def test_labels_and_their_order_in_time() -> None:
    assert checkpoint.label((10, 0)) == "step-00010"
    assert checkpoint.label((10, 3)) == "step-00010-003"
    assert checkpoint.label((1234567, 1001)) == "step-1234567-1001"
    orders = [(9, 0), (10, 1), (10, 2), (10, 0), (11, 1), (11, 0), (100000, 0)]
    shuffled = random.Random(0).sample(orders, len(orders))
    assert shuffled != orders and sorted(shuffled, key=checkpoint.age) == orders
    assert [checkpoint.parse_label(checkpoint.label(order)) for order in orders] == orders
    for name in ("step-10", "step-00010.old", ".tmp-step-00010.7", "step-00010-000", "step-000010", "best"):
        assert checkpoint.parse_label(name) is None


def test_the_end_of_a_step_is_newer_than_its_inside(tmp_path: Path) -> None:
    for order in ((10, 1), (10, 2), (10, 0)):
        write(tmp_path, order[0], keep=3, inner=order[1])
        assert read(tmp_path)[0] == order
    assert visible(tmp_path) == ["step-00010", "step-00010-001", "step-00010-002"]


def test_prunes_to_the_newest_keep_and_drops_a_future_that_was_given_up(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step, keep=2)
    assert visible(tmp_path) == ["step-00003", "step-00004"]
    (tmp_path / "step-00004" / "a.json").unlink()
    assert read(tmp_path)[0] == (3, 0)
    write(tmp_path, 3, keep=2, inner=0)  # resumed from 3 and saved 3 again before reaching 4
    assert visible(tmp_path) == ["step-00003"] and read(tmp_path) == ((3, 0), [])
    assert hidden(tmp_path) == []


def test_restore_refuses_missing_and_extra_parts_by_name(tmp_path: Path) -> None:
    write(tmp_path, 1)
    found, _ = checkpoint.latest(tmp_path)
    assert found is not None
    a = Part()
    with pytest.raises(InputError, match="holds no critic and it holds b, which this run does not have"):
        found.restore({"a": a, "critic": Part()})
    assert a.restored is None


@pytest.mark.parametrize("name", ["manifest", "../x", "a b", "", "a.b"])
def test_part_names_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="identifier"):
        checkpoint.save(tmp_path, (1, 0), {name: Part()}, {})


# -------------------------------------------------------------------------------------------------- crash, by injection
class Crash(BaseException):
    """The process is gone: no handler may do anything on the disk after it."""


class Injector:
    """Counts the disk operations of ``checkpoint`` and acts at the k-th: ``crash`` (torn where it can be) or ENOSPC."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int | None, code: int | None = None) -> None:
        self.at, self.code, self.count, self.dead, self.log = at, code, 0, False, list[str]()
        for name in PRIMITIVES:
            monkeypatch.setattr(checkpoint, name, self.wrap(name, getattr(checkpoint, name)))

    def wrap(self, name: str, original: Callable[..., None]) -> Callable[..., None]:
        def operation(path: Path, *rest: Any) -> None:
            if self.dead:
                raise Crash
            self.count += 1
            self.log.append(f"{name} {path.name}")
            if self.count == self.at:
                if self.code is not None:
                    if name in WRITERS:
                        path.write_bytes(b"torn")
                    raise OSError(self.code, os.strerror(self.code))
                self.dead = True
                if name in WRITERS:
                    original(path, *rest)
                    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
                elif name == "_remove":
                    sorted(item for item in path.rglob("*") if item.is_file())[0].unlink()
                raise Crash
            original(path, *rest)

        return operation


def count_operations(directory: Path, keep: int, steps: tuple[int, ...]) -> int:
    with pytest.MonkeyPatch.context() as patch:
        injector = Injector(patch, None)
        for step in steps:
            write(directory, step, keep)
    return injector.count


@pytest.mark.parametrize(("keep", "steps"), [(1, (1, 2, 3)), (2, (1, 2, 3)), (1, (1, 2, 2))])
def test_a_crash_at_any_disk_operation_leaves_the_newest_committed_checkpoint(
    tmp_path: Path, keep: int, steps: tuple[int, ...]
) -> None:
    total = count_operations(tmp_path / "count", keep, steps)
    assert total > 3 * 12
    for at in range(1, total + 1):
        directory = tmp_path / f"{at}"
        committed: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            Injector(patch, at)
            with pytest.raises(Crash):
                for step in steps:
                    write(directory, step, keep)
                    committed.append(step)
        checkpoint.sweep(directory)  # what a resuming run does first
        order, notices = read(directory)
        newest = committed[-1] if committed else None
        following = steps[len(committed)]
        assert order in ((newest, 0) if newest else None, (following, 0)), at  # the one being saved may be out already
        assert notices == [], at
        if directory.exists():
            assert hidden(directory) == []
            assert_all_visible_are_valid(directory)
        write(directory, 9, keep)
        assert read(directory) == ((9, 0), [])
        assert len(visible(directory)) == min(keep, 1 + (order is not None) * keep), at


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_error_at_any_operation_leaves_what_was_there(tmp_path: Path, code: int) -> None:
    def first(directory: Path) -> None:
        write(directory, 1)
        (directory / ".tmp-step-00007.1").mkdir()  # a leftover, so that sweeping is an operation too

    first(tmp_path / "count")
    total = count_operations(tmp_path / "count", 2, (2,))
    outcomes = set()
    for at in range(1, total + 1):
        directory = tmp_path / f"{at}"
        first(directory)
        with pytest.MonkeyPatch.context() as patch:
            injector = Injector(patch, at, code)
            try:
                write(directory, 2)
                expected, error = (2, 0), None
            except MachineError as raised:
                error = str(raised)
                # an error of the very last sync comes after the rename: the checkpoint is whole, and is also there
                expected = (2, 0) if injector.log[at - 1] == f"_sync {directory.name}" else (1, 0)
        outcomes.add(expected)
        assert error is None or (os.strerror(code) in error and "untouched" in error)
        assert read(directory) == (expected, []), (at, injector.log[at - 1])
        assert_all_visible_are_valid(directory)
        write(directory, 3)
        assert read(directory) == ((3, 0), []) and hidden(directory) == []
    assert outcomes == {(1, 0), (2, 0)}


def test_a_full_disk_while_replacing_a_checkpoint_puts_the_old_one_back(tmp_path: Path) -> None:
    write(tmp_path, 2)
    real = checkpoint._rename

    def rename(source: Path, target: Path) -> None:
        if source.name.startswith(".tmp-"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "_rename", rename)
        with pytest.raises(MachineError):
            write(tmp_path, 2)
    assert read(tmp_path) == ((2, 0), []) and hidden(tmp_path) == []


def test_files_are_synced_before_the_rename_and_pruned_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "checkpoints"
    write(directory, 1, keep=1)
    synced: set[int] = set()
    monkeypatch.setattr(os, "fsync", lambda handle: synced.add(os.fstat(handle).st_ino))
    injector = Injector(monkeypatch, None)
    newest = write(directory, 2, keep=1)
    assert synced == {path.stat().st_ino for path in (*newest.iterdir(), newest, directory)}
    temporary = f".tmp-step-00002.{os.getpid()}"
    log = injector.log
    for name in ("a.safetensors", "a.json", "b.safetensors", "b.json"):
        assert log.index(f"_sync {name}") < log.index("_write_bytes manifest.json")
    tail = ["_write_bytes manifest.json", "_sync manifest.json", f"_sync {temporary}", f"_rename {temporary}"]
    start = log.index(tail[0])
    assert log[start : start + 4] == tail
    assert log[start + 4 :] == [
        "_sync checkpoints",
        "_rename step-00001",
        f"_remove .tmp-step-00001.{os.getpid()}",
    ]


def test_too_little_space_is_told_with_numbers_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 1, keep=1)
    bytes_of_tensors = 2 * (50 * 8 + 8)
    monkeypatch.setattr(checkpoint, "_free_bytes", lambda path: int(1.2 * bytes_of_tensors))
    injector = Injector(monkeypatch, None)
    with pytest.raises(MachineError, match=r"0\.0 MB are free") as raised:
        write(tmp_path, 2, keep=1)
    assert raised.value.exit_code == 3
    assert not any("_write" in entry for entry in injector.log)
    assert read(tmp_path) == ((1, 0), [])
    monkeypatch.setattr(checkpoint, "_free_bytes", lambda path: int(1.2 * (bytes_of_tensors + 200)))
    write(tmp_path, 2, keep=1)
    assert read(tmp_path) == ((2, 0), [])


# ------------------------------------------------------------------------------------------------------- real SIGKILL
def kill_at_random(directory: Path, kills: int, seed: int) -> int:
    """Fork a saver, SIGKILL it at a random time, until ``kills`` have hit a save in the midst; the number of tries.

    After each, the newest step that the saver reported must load, or the next one, out but not yet reported.
    """
    chance, committed, inside, tries = random.Random(seed), 0, 0, 0
    while inside < kills and tries < 20 * kills:
        tries += 1
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                for step in range(committed + 1, committed + 10_000):
                    write(directory, step)
                    os.write(writer, step.to_bytes(4, "little"))
            finally:
                os._exit(1)
        os.close(writer)
        first = os.read(reader, 4)  # the child is at work
        time.sleep(chance.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        with os.fdopen(reader, "rb") as pipe:
            reported = first + pipe.read()
        committed = int.from_bytes(reported[-4:], "little")
        inside += bool(hidden(directory))
        checkpoint.sweep(directory)
        order, notices = read(directory)
        assert order in ((committed, 0), (committed + 1, 0)) and notices == []
        assert hidden(directory) == []
    assert inside == kills
    return tries


def test_sigkill_at_random_times_never_costs_a_committed_checkpoint(tmp_path: Path) -> None:
    assert kill_at_random(tmp_path, kills=8, seed=0) >= 8


@pytest.mark.slow
def test_two_hundred_sigkills_in_the_midst_of_a_save(tmp_path: Path) -> None:
    assert kill_at_random(tmp_path, kills=200, seed=1) >= 200


@pytest.mark.slow
def test_a_really_full_disk(tmp_path: Path) -> None:
    """A 1 MB tmpfs in a mount namespace of our own: the second save does not fit, the first stays."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    script = textwrap.dedent(
        """
        import sys, torch
        from pathlib import Path
        from upslope.errors import MachineError
        from upslope.run import checkpoint
        from upslope.types import State

        class Part:
            def state(self): return State(tensors={"w": torch.zeros(150_000)})
            def restore(self, state): pass

        place = Path(sys.argv[1])
        for free in (None, lambda path: 1 << 40):  # by the check, and by the disk itself
            if free: checkpoint._free_bytes = free
            if not free: checkpoint.save(place, (1, 0), {"p": Part()}, {})
            try:
                checkpoint.save(place, (2, 0), {"p": Part()}, {})
            except MachineError as error:
                print(error)
        found, notices = checkpoint.latest(place)
        print(found.order, notices, [path.name for path in place.iterdir()])
        """
    )
    shell = 'mount -t tmpfs -o size=1m tmpfs "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "-Urm", "sh", "-c", shell, "sh", str(tmp_path), sys.executable, script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    lines = done.stdout.splitlines()
    assert "are free" in lines[0] and "No space left" in lines[1]
    assert lines[2] == "(1, 0) [] ['step-00001']"
