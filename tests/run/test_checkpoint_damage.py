"""Damaged checkpoints are named, and the one before is used."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from tests.run.checkpoint_support import hidden, no_waiting_for_the_disk, read, write
from upslope.run import checkpoint

__all__ = ["no_waiting_for_the_disk"]


def test_one_flipped_bit_in_any_file_is_detected_and_the_previous_checkpoint_used(tmp_path: Path) -> None:
    write(tmp_path, 1)
    newest = write(tmp_path, 2)
    files = sorted(path.name for path in newest.iterdir())
    assert files == ["a.json", "a.safetensors", "b.json", "b.safetensors", "manifest.json"]
    chance = random.Random(0)
    for name in files:
        original = (newest / name).read_bytes()
        places = range(len(original)) if name == "manifest.json" else chance.sample(range(len(original)), 20)
        for place in places:
            damaged = bytearray(original)
            damaged[place] ^= 1 << chance.randrange(8)
            (newest / name).write_bytes(damaged)
            found, notices = checkpoint.latest(tmp_path)
            assert found is not None and found.order == (1, 0), (name, place)
            assert len(notices) == 1 and name in notices[0] and "step-00002" in notices[0]
        (newest / name).write_bytes(original)
    assert read(tmp_path) == ((2, 0), [])


@pytest.mark.parametrize("name", ["a.json", "b.safetensors", "manifest.json"])
@pytest.mark.parametrize("harm", ["missing", "truncated", "empty", "longer"])
def test_a_missing_or_torn_file_is_named_and_the_previous_checkpoint_used(tmp_path: Path, name: str, harm: str) -> None:
    write(tmp_path, 1)
    file = write(tmp_path, 2) / name
    data = file.read_bytes()
    file.write_bytes({"missing": b"", "truncated": data[:-5], "empty": b"", "longer": data + b" "}[harm])
    if harm == "missing":
        file.unlink()
    order, notices = read(tmp_path)
    assert order == (1, 0) and len(notices) == 1
    assert name in notices[0]
    assert harm != "missing" or f"{name} is missing" in notices[0]
    if harm != "missing" and name != "manifest.json":
        assert f"{name} has {file.stat().st_size} bytes, expected {len(data)}" in notices[0]


def test_a_renamed_checkpoint_a_newer_format_and_a_path_outside_are_refused(tmp_path: Path) -> None:
    write(tmp_path, 1)
    shutil.copytree(tmp_path / "step-00001", tmp_path / "step-00005")
    assert read(tmp_path)[0] == (1, 0)
    assert "says it is step-00001" in read(tmp_path)[1][0]
    shutil.rmtree(tmp_path / "step-00005")
    body = json.loads((write(tmp_path, 2) / "manifest.json").read_text())
    del body["sha256"]
    (tmp_path / "step-00002" / "manifest.json").write_bytes(checkpoint._sealed({**body, "format": 2}))
    assert "format 2" in read(tmp_path)[1][0]
    outside = {"../../x.json": {"bytes": 0, "sha256": ""}}
    (tmp_path / "step-00002" / "manifest.json").write_bytes(checkpoint._sealed({**body, "files": outside}))
    assert "no checkpoint file" in read(tmp_path)[1][0]


def test_nothing_saved_is_none_without_notice(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "absent") == (None, [])


def test_latest_leaves_another_process_writing_alone(tmp_path: Path) -> None:
    (tmp_path / ".tmp-step-00003.1").mkdir()
    checkpoint.latest(tmp_path)
    assert hidden(tmp_path) == [".tmp-step-00003.1"]
