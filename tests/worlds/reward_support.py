"""Reward functions in files and their processes: what the tests of them share."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from upslope.worlds.rewards import RewardProcess, Score

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def writer(text: str) -> Path:
        path = tmp_path / "rewards.py"
        path.write_text(textwrap.dedent(text))
        return path

    return writer


def run(process: RewardProcess, completions: list, columns: dict | None = None, ids: list | None = None) -> list[Score]:
    names = [f"r{index}" for index in range(len(completions))]
    return process.score(["p"] * len(completions), completions, ids, columns or {}, names)


def values(scores: list[Score]) -> list[float | None]:
    return [score.value for score in scores]
