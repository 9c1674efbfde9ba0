"""Each tracker for real: a run writes, and its files, read by means of its own, hold the numbers of metrics.jsonl."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.recipes.support import Bench, bench, one_thread

__all__ = ["bench", "one_thread"]
CHILD = """
import json, sys
import upslope
settings = json.loads(sys.argv[1])
upslope.grpo(**settings, listeners=[])
"""
REWARD = "def score(prompts, completions, **columns):\n    return [len(set(str(text))) / 9 for text in completions]\n"
needs = {
    name: pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed (upslope[track])")
    for name in ("tensorboard", "wandb", "trackio")
}


def train(bench: Bench, tracker: str, **variables: str) -> Path:
    """A short run in a process of its own: trackers leave threads, services and settings behind."""
    (bench.root / "rewards.py").write_text(REWARD)
    settings = {
        "model": str(bench.model), "data": bench.rows, "reward": f"{bench.root}/rewards.py:score", "steps": 2,
        "prompts": 2, "group": 2, "max_new_tokens": 4, "dtype": "float32", "device": "cpu", "eval_prompts": 2,
        "out": str(bench.root / tracker), "report_to": [tracker],
    }  # fmt: skip
    place = {**os.environ, "HOME": str(bench.root), "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(settings)], capture_output=True, text=True, timeout=180, check=False,
        env=place, cwd=bench.root,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "was dropped" not in done.stdout + done.stderr
    return bench.root / tracker


def written(folder: Path) -> dict[int, dict[str, float]]:
    """The numbers of metrics.jsonl by step; what does not apply is left out."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        line["step"]: {name: value for name, value in line.items() if isinstance(value, int | float) and name != "step"}
        for line in lines
    }


@needs["tensorboard"]
def test_tensorboard(bench: Bench) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train(bench, "tensorboard")
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    for step, metrics in written(folder).items():
        for name, value in metrics.items():
            found = {event.step: event.value for event in events.Scalars(name)}
            assert found[step] == pytest.approx(value, rel=1e-6)
    assert any(name.startswith("time/") for name in events.Tags()["scalars"])


def leveldb_records(content: bytes, begin: int) -> Iterator[bytes]:
    """The records of a log in LevelDB's format (blocks of 32 KiB, 7 bytes of head), ``begin`` bytes into a block."""
    at, whole = 0, b""
    while at + 7 <= len(content):
        left = 32768 - (at + begin) % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            yield whole
            whole = b""


@needs["wandb"]
def test_wandb_offline(bench: Bench) -> None:
    from wandb.proto import wandb_internal_pb2

    folder = train(bench, "wandb", WANDB_MODE="offline", WANDB_SILENT="true")
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    rows: list[dict[str, Any]] = []
    config: dict[str, Any] = {}
    for data in leveldb_records(file.read_bytes()[7:], 7):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            rows.append(
                {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            )
        elif record.WhichOneof("record_type") == "run":
            config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            assert record.run.display_name == "wandb" and record.run.project == "upslope"
    found = {row["_step"]: row for row in rows}
    for step, metrics in written(folder).items():
        for name, value in metrics.items():
            assert found[step][name] == pytest.approx(value)
    assert config["grpo"]["group"] == 2 and config["optim"]["lr"] == 1e-5


@needs["trackio"]
def test_trackio(bench: Bench) -> None:
    place = bench.root / "trackio-files"
    folder = train(bench, "trackio", TRACKIO_DIR=str(place), HF_HUB_OFFLINE="1")
    (file,) = place.rglob("upslope*.db")
    with sqlite3.connect(file) as base:
        found = {step: json.loads(metrics) for step, metrics in base.execute("select step, metrics from metrics")}
    for step, metrics in written(folder).items():
        for name, value in metrics.items():
            assert math.isclose(found[step][name], value, rel_tol=1e-6), name
