"""Checkpoints of two small parts: written, read and checked, and what lies in their folder."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from upslope.run import checkpoint
from upslope.types import State


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses no written data, only a power cut does; that files are synced has its own test."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@dataclass
class Part:
    """A part whose content is decided by one number."""

    number: int = 0
    size: int = 50
    restored: State | None = field(default=None)

    def state(self) -> State:
        tensors = {"w": torch.arange(self.size, dtype=torch.float64) * self.number, "n": torch.tensor(self.number)}
        return State(tensors=tensors, values={"number": self.number, "name": f"part {self.number}"})

    def restore(self, state: State) -> None:
        self.restored = state
        self.number = state.values["number"]


def write(directory: Path, step: int, keep: int = 2, inner: int = 0) -> Path:
    return checkpoint.save(directory, (step, inner), {"a": Part(step), "b": Part(-step)}, {"recipe": "r"}, keep)


def read(directory: Path) -> tuple[tuple[int, int] | None, list[str]]:
    """Order of the newest valid checkpoint, after checking that its content is the one saved under that order."""
    found, notices = checkpoint.latest(directory)
    if found is None:
        return None, notices
    a, b = Part(), Part()
    found.restore({"a": a, "b": b})
    assert (a.number, b.number) == (found.order[0], -found.order[0])
    assert a.restored is not None
    assert torch.equal(a.restored.tensors["w"], torch.arange(50, dtype=torch.float64) * found.order[0])
    return found.order, notices


def visible(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))


def assert_all_visible_are_valid(directory: Path) -> None:
    for name in visible(directory):
        order = checkpoint.parse_label(name)
        assert order is not None
        assert checkpoint.verify(directory / name, order)[1] == ""


def hidden(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name.startswith("."))
