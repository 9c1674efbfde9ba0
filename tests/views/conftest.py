"""A run folder as a training command writes it, with numbers drawn from a fixed seed."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RECIPE = "data:\n  task: arithmetic\ngrpo:\n  group: 8\ntrain:\n  steps: 60\n"
HOSTILE = "</script><img src=x onerror=alert(1)>\x1b]52;c;aGVsbG8=\x07\u202egnp.exe [/INST] &amp; \ud800"


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def facts(kind: str, steps: int, seed: int) -> dict[str, Any]:
    return {
        "run": f"{kind}-arithmetic",
        "recipe": kind,
        "model": "smollm2-135m-instruct",
        "device": "cpu",
        "dtype": "bfloat16",
        "steps": steps,
        "seed": seed,
        "status": "finished",
        "step": steps,
        "versions": {"python": "3.11.2", "upslope": "0.1.0", "torch": "2.13.0"},
        "cpu": "a processor",
        "memory_bytes": 16 * 2**30,
        "git": {"commit": "0123abcd", "dirty": True},
        "command": ["upslope", kind, "recipes/x.yaml"],
        "attempts": [{"started": "2026-11-22T14:00:00Z", "versions": {"torch": "2.13.0"}}],
        "started": "2026-11-22T14:00:00Z",
        "ended": "2026-11-22T14:04:00Z",
    }


def rollout_rows(step: int, level: float, dice: random.Random, groups: int = 4, size: int = 8) -> list[dict[str, Any]]:
    rows = []
    for group in range(groups):
        a, b = dice.randrange(10, 90), dice.randrange(10, 90)
        rewards = [float(dice.random() < level) for _ in range(size)]
        for sample, reward in enumerate(rewards):
            others = (sum(rewards) - reward) / (size - 1)
            shown = a + b if reward else a + b + dice.choice((-10, -1, 1, 10))
            rows.append(
                {
                    "step": step,
                    "prompt_id": f"{a}+{b}",
                    "group": group,
                    "sample": sample,
                    "prompt": f"What is {a} + {b}?",
                    "completion": str(shown),
                    "reward": reward,
                    "advantage": reward - others,
                    "parts": {"exact": reward},
                    "terminated": dice.random() > 0.1,
                    "answer": str(a + b),
                    "token_ids": list(range(len(str(shown)) + 1)),
                    "logprobs": [-0.1] * (len(str(shown)) + 1),
                }
            )
    return rows


def write_run(folder: Path, kind: str = "grpo", steps: int = 60, seed: int = 0) -> Path:
    """A complete run folder of ``kind`` sft, ppo or grpo."""
    dice = random.Random(seed)
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (folder / "run.json").write_text(json.dumps(facts(kind, steps, seed)), encoding="utf-8")
    metrics, timings = [], []
    for step in range(1, steps + 1):
        level = 0.25 + 0.5 * (1 - math.exp(-step / 20))
        row: dict[str, Any] = {"step": step, "grad_norm": 0.4 + 0.2 * dice.random(), "lr": 1e-5}
        evaluated = step % 10 == 0
        if kind == "sft":
            row |= {"loss": 0.3 + 2 * math.exp(-step / 15) + 0.1 * dice.random(), "mean_token_accuracy": level}
            row |= {"eval_loss": 0.4 + 2 * math.exp(-step / 15)} if evaluated else {}
        else:
            row |= {
                "loss": 1e-3 * dice.gauss(0, 1),
                "reward": level + 0.08 * dice.gauss(0, 1),
                "reward_std": 0.4,
                "kl": 2e-4 * step**1.3 * (1 + 0.2 * dice.gauss(0, 1)),
                "entropy": 0.9 - 0.3 * level + 0.03 * dice.gauss(0, 1),
                "completions/mean_length": 4.5 + 0.3 * dice.gauss(0, 1),
                "completions/min_length": 3.0,
                "completions/max_length": float(dice.randrange(5, 9)),
                "completions/clipped_ratio": 0.3 * math.exp(-step / 10),
                "sampler_gap/mean": 0.02 + 0.005 * dice.random(),
                "sampler_gap/max": 0.3,
                "num_tokens": 1600.0 * step,
                "rewards/exact/mean": level,
            }
            row |= {"eval/reward": level + 0.05, "eval/accuracy": level + 0.05} if evaluated else {}
        if kind == "grpo":
            row |= {"frac_reward_zero_std": 1.0 if step in (7, 8) else 0.2 + 0.1 * dice.random(), "groups": 8.0}
        if kind == "ppo":
            row |= {"value_loss": 0.3 * math.exp(-step / 20), "explained_variance": 1 - 1.3 * math.exp(-step / 15)}
        metrics.append(row)
        sampling, learning = 1.2 + 0.2 * dice.random(), 1.8 + 0.2 * dice.random()
        evaluation = 2.0 if evaluated else 0.0
        timings.append(
            {
                "step": step,
                "time/sampling": sampling,
                "time/reward": 0.01,
                "time/learning": learning,
                "time/evaluation": evaluation,
                "time/step": sampling + learning + evaluation + 0.2,
                "tokens_per_second": 800 + 50 * dice.random(),
                "learner_tokens_per_second": 1500.0,
            }
        )
        if kind != "sft" and evaluated:
            (folder / "rollouts").mkdir(exist_ok=True)
            _lines(folder / "rollouts" / f"step-{step:05d}.jsonl", rollout_rows(step, level, dice))
    _lines(folder / "metrics.jsonl", metrics)
    _lines(folder / "timings.jsonl", timings)
    return folder


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """``make_run("grpo", steps=60)`` writes a run folder and returns its path."""

    def make(kind: str = "grpo", steps: int = 60, seed: int = 0) -> Path:
        return write_run(tmp_path / f"{kind}-{seed}", kind, steps, seed)

    return make
