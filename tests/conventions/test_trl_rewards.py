"""A file of TRL reward functions, unchanged, rewards a run; metrics have the names that TRL's users search for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.recipes.support import Bench, bench, one_thread
from upslope.api import FinishedRun

__all__ = ["bench", "one_thread"]
FILE = Path(__file__).parent / "trl_rewards.py"
NAMES = ("think_format_reward", "digit_reward", "length_judge")
SHARED = {
    "reward", "reward_std", "frac_reward_zero_std", "entropy", "num_tokens", "grad_norm", "loss",
    "completions/mean_length", "completions/min_length", "completions/max_length", "completions/clipped_ratio",
    "kl", *(f"rewards/{name}/{what}" for name in NAMES for what in ("mean", "std")),
}  # fmt: skip
"""Names that TRL 1.16 gives to the same things (bench/same_rewards.py prints them)."""


@pytest.fixture(scope="module")
def run(bench: Bench) -> FinishedRun:
    rows = [
        {"prompt": [{"role": "user", "content": f"say {n}"}], "answer": str(n) if n % 3 else None} for n in range(12)
    ]
    place = bench.root / "talk.jsonl"
    place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rewards: list[Any] = [f"{FILE}:{name}" for name in NAMES]
    return bench.run("grpo", "trl", data=str(place), reward=rewards, eval_prompts=0, kl_coef=0.1, steps=2)


def test_every_function_is_logged_apart_and_their_sum_is_the_reward(run: FinishedRun) -> None:
    lines = [line for path in (run.folder / "rollouts").iterdir() for line in path.read_text().splitlines()]
    for line in map(json.loads, lines):
        number = int(line["prompt_id"]) - 1
        truth = str(number) if number % 3 else None
        assert set(line["parts"]) == set(NAMES) - ({"digit_reward"} if truth is None else set())
        assert line["reward"] == pytest.approx(sum(line["parts"].values()))
        assert line["extra"] == {"truth": truth}  # by log_extra
        assert line["parts"]["length_judge"] == pytest.approx(min(1.0, len(line["completion"]) / 10))
    assert len(lines) == 2 * 4 * 3
    last = run.metrics[-1]
    assert last["progress"] == 0.5 and last["ids"] == pytest.approx(last["completions/mean_length"])  # by log_metric


def test_metrics_have_trls_names(run: FinishedRun) -> None:
    assert set(run.metrics[-1]) >= SHARED
