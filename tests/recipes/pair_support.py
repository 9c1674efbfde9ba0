"""Short runs on preferences with tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.recipes.support import Bench, letters
from upslope.api import FinishedRun, dpo, grpo, ppo, reward_model

SIZES: dict[str, dict[str, Any]] = {
    "reward": {"steps": 3, "prompts": 4, "micro_batch_tokens": 64},
    "dpo": {"steps": 3, "prompts": 4, "micro_batch_tokens": 64},
    "ppo": {"steps": 2, "prompts": 2, "samples": 3, "epochs": 2, "minibatches": 2},
    "grpo": {"steps": 2, "prompts": 3, "group": 3, "epochs": 2, "minibatches": 2},
}
RUN = {"reward": reward_model, "dpo": dpo, "ppo": ppo, "grpo": grpo}


def pairs_file(path: Path, count: int = 16) -> str:
    """The better answer has letters, the worse one digits; lengths of both differ."""
    rows = [
        {"prompt": f"say {n}", "chosen": "abcd"[: 1 + n % 4], "rejected": "7" * (1 + (n + 2) % 3), "answer": str(n)}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run(bench: Bench, kind: str, out: str, **keywords: Any) -> FinishedRun:
    paired = kind in ("reward", "dpo")
    base: dict[str, Any] = {
        "model": str(bench.model), "data": pairs_file(bench.root / "pairs.jsonl") if paired else bench.rows,
        "out": str(bench.root / out), "lr": 1e-2, "warmup": 0, "dtype": "float32", "device": "cpu", "eval_prompts": 8,
        "eval_every": 2, "listeners": [], "heldout": 4 if paired else 0.1, **SIZES[kind],
    }  # fmt: skip
    if not paired:
        base |= {"reward": letters, "max_new_tokens": 6, "eval_prompts": 2}
    return RUN[kind](**{**base, **keywords})
