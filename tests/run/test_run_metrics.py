from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from upslope.errors import InputError
from upslope.run import metrics as module
from upslope.run.metrics import MetricsStream, read_metrics, rollout_steps, rollouts_file
from upslope.types import State


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


def test_one_line_a_step_with_step_first_names_sorted_and_floats_by_repr(tmp_path: Path) -> None:
    stream = MetricsStream(tmp_path)
    stream.write(0, {"reward": 0.1, "kl": 1e-17, "clip/low": None, "n": 3}, {"update": 0.25, "sampling": 1.5})
    stream.write(1, {"loss": 1 / 3, "f32": np.float32(0.1), "t": torch.tensor(2.5)}, {})
    assert (tmp_path / "metrics.jsonl").read_bytes() == (
        b'{"step": 0, "clip/low": null, "kl": 1e-17, "n": 3, "reward": 0.1}\n'
        b'{"step": 1, "f32": 0.10000000149011612, "loss": 0.3333333333333333, "t": 2.5}\n'
    )
    assert (tmp_path / "timings.jsonl").read_bytes() == b'{"step": 0, "sampling": 1.5, "update": 0.25}\n{"step": 1}\n'


def test_values_that_are_not_finite_become_null_and_are_counted(tmp_path: Path) -> None:
    MetricsStream(tmp_path).write(
        4, {"a": float("nan"), "b": float("inf"), "c": np.float64("-inf"), "d": 1.0, "none": None}, {}
    )
    line = (tmp_path / "metrics.jsonl").read_text()
    assert strict(line) == {"step": 4, "a": None, "b": None, "c": None, "d": 1.0, "non_finite": 3, "none": None}


@pytest.mark.parametrize("name", ["step", "non_finite"])
def test_the_streams_own_columns_cannot_be_metrics(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        MetricsStream(tmp_path).write(0, {name: 1.0}, {})


def test_another_reader_sees_a_line_as_soon_as_it_is_written(tmp_path: Path) -> None:
    stream = MetricsStream(tmp_path)
    for step in range(3):
        stream.write(step, {"x": step}, {})
        assert read_metrics(tmp_path) == [{"step": k, "x": k} for k in range(step + 1)]


def test_reading_tolerates_a_torn_last_line_only(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 0}\n{"step": 1, "x": 0.')
    assert read_metrics(file) == [{"step": 0}]
    file.write_bytes(b'{"step": 0}\n{"step": 1}')  # it parses, but its end may be missing: 1 of 12, say
    assert read_metrics(tmp_path) == [{"step": 0}]
    file.write_bytes(b'{"step": 0}\n{"st\n{"step": 2}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl:2"):
        read_metrics(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        read_metrics(tmp_path / "absent")
    file.write_bytes(b"")
    assert read_metrics(tmp_path) == []


def test_restore_cuts_both_files_to_the_saved_lines_and_writing_goes_on(tmp_path: Path) -> None:
    def write(stream: MetricsStream, step: int, pace: float) -> None:
        stream.write(step, {"x": 10.0**step}, {"update": pace})

    stream = MetricsStream(tmp_path)
    for step in range(3):
        write(stream, step, 0.1)
    state = stream.state()
    assert state == State(values={"bytes": len(b'{"step": 0, "x": 1.0}\n') * 3 + 3, "lines": 3, "rollouts_step": -1})
    before = (tmp_path / "metrics.jsonl").read_bytes(), (tmp_path / "timings.jsonl").read_bytes()
    for step in range(3, 6):
        write(stream, step, 0.123456)
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 6, "x"')  # killed in the midst of a line
    again = MetricsStream(tmp_path)
    again.restore(state)
    assert ((tmp_path / "metrics.jsonl").read_bytes(), (tmp_path / "timings.jsonl").read_bytes()) == before
    assert again.state() == state
    for step in range(3, 6):
        write(again, step, 7.0)
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole
    assert [row["step"] for row in read_metrics(tmp_path / "timings.jsonl")] == list(range(6))


def test_restore_to_the_beginning_empties_everything(tmp_path: Path) -> None:
    stream = MetricsStream(tmp_path)
    stream.write(0, {"x": 1.0}, {})
    stream.write_rollouts(0, [{"a": 1}])
    stream.restore(State(values={"bytes": 0, "lines": 0, "rollouts_step": -1}))
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"" == (tmp_path / "timings.jsonl").read_bytes()
    assert rollout_steps(tmp_path) == []


def test_restore_tells_when_earlier_lines_are_gone(tmp_path: Path) -> None:
    told: list[str] = []
    stream = MetricsStream(tmp_path, notice=told.append)
    stream.write(0, {"x": 1.0}, {})
    state = stream.state()
    (tmp_path / "metrics.jsonl").unlink()
    stream.restore(state)
    assert len(told) == 1 and "0 bytes" in told[0]
    stream.write(1, {"x": 1.0}, {})
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]


def test_state_syncs_what_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = MetricsStream(tmp_path)
    stream.write(0, {"x": 1.0}, {})
    stream.write_rollouts(0, [{}])
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    stream.state()
    files = [tmp_path / "metrics.jsonl", tmp_path / "timings.jsonl", rollouts_file(tmp_path, 0)]
    assert sorted(synced) == sorted(file.stat().st_ino for file in files)
    stream.state()
    assert len(synced) == 3


# ------------------------------------------------------------------------------------------------------------ full disk
def test_a_full_disk_loses_lines_and_never_raises(tmp_path: Path) -> None:
    told: list[str] = []
    stream = MetricsStream(tmp_path, notice=told.append)
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    for step in range(3):
        stream.write(step, {"x": 1.0}, {"t": 1.0})
    assert stream.lost == 3 and stream.lines == 0
    assert len(told) == 1 and "No space left" in told[0]
    assert not (tmp_path / "timings.jsonl").exists() or (tmp_path / "timings.jsonl").read_bytes() == b""
    (tmp_path / "metrics.jsonl").unlink()
    stream.write(3, {"x": 1.0}, {"t": 1.0})
    assert [row["step"] for row in read_metrics(tmp_path)] == [3] and stream.lines == 1


@pytest.mark.parametrize("victim", ["metrics.jsonl", "timings.jsonl"])
def test_a_line_torn_by_a_full_disk_is_taken_back_from_both_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    stream = MetricsStream(tmp_path)
    stream.write(0, {"x": 1.0}, {"t": 1.0})
    real = module._append

    def torn(path: Path, data: bytes) -> None:
        if path.name == victim:
            real(path, data[:7])
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(module, "_append", torn)
    stream.write(1, {"x": 1.0}, {"t": 1.0})
    monkeypatch.undo()
    stream.write(2, {"x": 1.0}, {"t": 1.0})
    for name in ("metrics.jsonl", "timings.jsonl"):
        assert [row["step"] for row in read_metrics(tmp_path / name)] == [0, 2]
    assert (stream.lost, stream.lines) == (1, 2)
    assert stream.state().values["bytes"] == (tmp_path / "metrics.jsonl").stat().st_size


def test_a_full_disk_keeps_the_earlier_rollouts_and_never_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    stream = MetricsStream(tmp_path, notice=told.append)
    stream.write_rollouts(0, [{"a": 1}])

    def full(path: Path, data: bytes, sync: bool) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "replace_file", full)
    stream.write_rollouts(1, [{"a": 2}])
    assert (stream.lost, len(told), stream.rollouts_step) == (1, 1, 0)
    assert rollout_steps(tmp_path) == [0]


# ------------------------------------------------------------------------------------------------------------- rollouts
def test_rollouts_of_any_text_and_number_come_back(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "a\x00b", "completion": "\ud800 lone", "reward": 0.1},
        {"completion": "line\u2028end\x85\r\n\x1b]52;c;x", "reward": None, "parts": {"f": np.float32(0.5)}},
        {"completion": "\U0001f600 \u4f60", "reward": float("nan"), "ids": (1, 2), "t": torch.tensor([1, 2])},
    ]
    MetricsStream(tmp_path).write_rollouts(10, rows)
    file = tmp_path / "rollouts" / "step-00010.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3 and "\x00" not in "".join(lines) and "\x1b" not in "".join(lines)
    back = [strict(line) for line in lines]
    assert back[0] == rows[0]
    assert back[1] == {"completion": rows[1]["completion"], "reward": None, "parts": {"f": 0.5}}
    assert back[2] == {"completion": rows[2]["completion"], "reward": None, "ids": [1, 2], "t": [1, 2]}


def test_restore_removes_rollouts_of_later_steps_and_leftovers(tmp_path: Path) -> None:
    stream = MetricsStream(tmp_path)
    for step in (1, 2):
        stream.write_rollouts(step, [{"s": step}])
    state = stream.state()
    assert state.values["rollouts_step"] == 2
    for step in (3, 100000):
        stream.write_rollouts(step, [{"s": step}])
    (tmp_path / "rollouts" / ".step-00004.jsonl.tmp").write_text("torn")
    again = MetricsStream(tmp_path)
    again.restore(state)
    assert sorted(path.name for path in (tmp_path / "rollouts").iterdir()) == ["step-00001.jsonl", "step-00002.jsonl"]
    assert again.rollouts_step == 2


def test_a_crash_while_writing_rollouts_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        MetricsStream(tmp_path).write_rollouts(1, [{"a": 1}])
    assert rollout_steps(tmp_path) == [] and not rollouts_file(tmp_path, 1).exists()
