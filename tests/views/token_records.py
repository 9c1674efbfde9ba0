"""Run folders whose rollouts have the numbers of their tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LINE: dict[str, Any] = {
    "group": 0, "sample": 0, "prompt": "What is 2 + 2?", "completion": "It is 4", "reward": 1.0, "advantage": 0.25,
    "terminated": True, "token_ids": [4, 5, 6, 2], "logprobs": [-0.5, -0.25, -1.5, -0.125],
    "pieces": ["It", " is", " 4", "<|im_end|>"], "advantages": [0.5, -1.0, 2.0, 0.0],
    "entropies": [1.0, 0.5, 0.0, 2.0], "gaps": [0.0, 0.01, -0.02, 0.0],
}  # fmt: skip
"""A completion of four tokens."""
WALK: dict[str, Any] = {
    "group": 0, "sample": 0, "prompt_id": "1-3", "prompt": "1 3 <sep>", "completion": "U D U L", "reward": 1.0,
    "advantage": 0.5, "terminated": True, "token_ids": [5, 7, 5, 8, 3], "logprobs": [-0.5, -2.0, -0.5, -0.1, 0.0],
    "pieces": ["U", " D", " U", " L", " <eos>"], "entropies": [1.0, 1.0, 1.0, 1.0, 0.0], "gaps": [0.0] * 5,
    "values": [1.0, 2.0, 0.0, 2.0, 3.0], "estimates": [1.0, -2.0, 2.0, 0.0, 0.0],
    "advantages": [0.5, -1.0, 1.0, 0.0, 0.0], "true_advantages": [0.5, -1.0, -0.25, 0.001, None],
    "true_values": [1.749, 2.249, 1.249, 0.999, None],
}  # fmt: skip
"""Up, down, up again and left into +5 on the built-in map: row 2, column 4, counted from 1."""


def record(folder: Path, steps: dict[int, list[dict[str, Any]]], kind: str = "grpo", **facts: Any) -> Path:
    """A run folder with these lines of rollouts/."""
    (folder / "rollouts").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"run": folder.name, "recipe": kind, **facts}), encoding="utf-8")
    (folder / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n', encoding="utf-8")
    for step, lines in steps.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "rollouts" / f"step-{step:05d}.jsonl").write_text(text, encoding="utf-8")
    return folder


def walks(folder: Path, steps: dict[int, list[dict[str, Any]]], kind: str = "ppo", **options: Any) -> Path:
    """A run folder of the text gridworld."""
    return record(folder, steps, kind, data={"task": "text-grid", "options": {"horizon": 5, **options}})
