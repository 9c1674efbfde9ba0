"""Short runs of the recipes on tiny models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import upslope
from tests import tiny
from upslope.api import FinishedRun
from upslope.errors import Stopped

SIZES: dict[str, dict[str, Any]] = {
    "sft": {"steps": 3, "prompts": 4},
    "grpo": {"steps": 2, "prompts": 4, "group": 3, "epochs": 2, "minibatches": 2},
    "ppo": {"steps": 2, "prompts": 2, "samples": 3, "epochs": 2, "minibatches": 2},
}
"""Several passes and minibatches, ragged groups, evaluations in the midst."""


def letters(prompts: list[Any], completions: list[str], **columns: list[Any]) -> list[float]:
    """Share of lower-case letters, so that nearly every group differs; and a constant for emptiness."""
    return [sum(c.islower() for c in text) / max(1, len(text)) for text in completions]


def sevens(prompts: list[Any], completions: list[str], **columns: list[Any]) -> list[float]:
    """Share of the digit 7: a game that a tiny model can learn."""
    return [text.count("7") / max(1, len(text)) for text in completions]


def rows_file(path: Path, count: int = 12) -> str:
    """Prompts with a completion, for every recipe."""
    rows = [{"prompt": f"say {n}", "completion": str(n % 10), "answer": str(n)} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


class Bench:
    """A tiny model and rows; ``run`` trains on them in a folder of that name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = tiny.directory(root / "start")
        self.rows = rows_file(root / "rows.jsonl")

    def run(self, kind: str, out: str, **keywords: Any) -> FinishedRun:
        base: dict[str, Any] = {
            "model": str(self.model), "data": self.rows, "out": str(self.root / out), "max_new_tokens": 6, "lr": 1e-2,
            "warmup": 0, "dtype": "float32", "device": "cpu", "eval_prompts": 2, "eval_every": 2, "listeners": [],
            "reward": letters, **SIZES[kind],
        }  # fmt: skip
        return getattr(upslope, kind)(**{**base, **keywords})


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Any:
    """Sums in one order, whatever the machine; for the runs that fixtures make too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@contextmanager
def stopped_at(place: str, patch: pytest.MonkeyPatch) -> Any:
    """The run inside must stop at this boundary."""
    patch.setenv("UPSLOPE_STOP_AFTER", place)
    with pytest.raises(Stopped):
        yield
    patch.delenv("UPSLOPE_STOP_AFTER")


def digests(
    folder: Path, parts: Sequence[str] = ("metrics.jsonl", "rollouts", "model", "best", "checkpoints")
) -> dict[str, str]:
    """sha256 of every file of these parts of a run folder. A manifest holds times of its own folder: left out."""
    found = {}
    for part in parts:
        for path in sorted((folder / part).rglob("*")) if (folder / part).is_dir() else [folder / part]:
            if path.is_file() and path.name != "manifest.json":
                found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def metrics(run: FinishedRun) -> list[dict[str, Any]]:
    return [row for row in run.metrics if row["step"] > 0]
