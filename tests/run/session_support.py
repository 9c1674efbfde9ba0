"""A small training loop with its parts, and everything that a run of it decides."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from upslope.run import checkpoint
from upslope.run.folder import RunFolder
from upslope.run.session import Run
from upslope.run.signals import StopSignals
from upslope.seeds import generator
from upslope.types import State

STEPS, INNER = 4, 3


@pytest.fixture(autouse=True)
def known_surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("UPSLOPE_STOP_AFTER", raising=False)
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # nothing here cuts the power, and disks are slow
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Weights:
    """A tensor with momentum, updated from the buffered rollouts: where it is wrong once it stays wrong."""

    def __init__(self) -> None:
        self.w = torch.zeros(3, dtype=torch.float64)
        self.momentum = torch.zeros(3, dtype=torch.float64)
        self.version = 0

    def update(self, row: list[float]) -> None:
        self.momentum = 0.9 * self.momentum + torch.tensor(row, dtype=torch.float64)
        self.w = self.w + 0.1 * self.momentum
        self.version += 1

    def state(self) -> State:
        return State(tensors={"w": self.w, "momentum": self.momentum}, values={"version": self.version})

    def restore(self, state: State) -> None:
        self.w, self.momentum = state.tensors["w"], state.tensors["momentum"]
        self.version = state.values["version"]


class Buffer:
    """Rollouts of the step in progress."""

    def __init__(self) -> None:
        self.rows: list[list[float]] = []

    def state(self) -> State:
        return State(values={"rows": self.rows})

    def restore(self, state: State) -> None:
        self.rows = state.values["rows"]


def recipe(steps: int = STEPS, save_every: int = 2, seed: int = 5) -> str:
    return yaml.safe_dump({"train": {"steps": steps, "save_every": save_every, "seed": seed}})


def train(
    path: Path,
    mode: Any = "new",
    *,
    steps: int = STEPS,
    save_every: int = 2,
    listeners: list[Any] | None = None,
    stop: StopSignals | None = None,
    hook: Any = None,
    keep: int = 1,
) -> Run:
    """Draw rollouts, take INNER optimizer steps on them, log; resumable after each of them."""
    folder = RunFolder.open(path, recipe(steps, save_every), {}, mode)
    weights, buffer = Weights(), Buffer()
    with Run(folder, save_every=save_every, keep=keep, listeners=listeners or [], stop=stop) as run:
        run.attach(weights=weights, buffer=buffer)
        run.start({"recipe": "counter"})
        begun, done = run.resumed.order if run.resumed else (0, 0)
        for step in range(begun if done else begun + 1, steps + 1):
            if done == 0:
                run.phase(step, "sampling")
                draws = generator(5, "rollout", step).standard_normal((INNER, 3)) + weights.w.numpy()
                buffer.rows = draws.tolist()
                run.rollouts(step, [{"row": row} for row in buffer.rows])
                run.sample(step, "p", str(buffer.rows[0]), 0.5)
            for inner in range(done + 1, INNER + 1):
                if hook:
                    hook(run, step, inner)
                weights.update(buffer.rows[inner - 1])
                run.boundary((step, inner))
            run.log(step, {"norm": float(weights.w.norm()), "version": weights.version}, {"update": 0.5})
            done = 0
            run.boundary((step, 0))
        run.finish({"version": weights.version})
    return run


def outcome(path: Path) -> dict[str, bytes]:
    """Everything a run decides, byte for byte: metrics, rollouts, and the parts of its last checkpoint."""
    found, notices = checkpoint.latest(path / "checkpoints")
    assert found is not None and notices == []
    assert found.order == (STEPS, 0)
    files = [path / "metrics.jsonl", *sorted((path / "rollouts").iterdir())]
    files += [file for file in sorted(found.path.iterdir()) if file.name != "manifest.json"]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("whole") / "run"
    train(path)
    return outcome(path)
