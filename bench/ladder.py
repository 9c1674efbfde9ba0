"""Does the ladder lift held-out accuracy, and is it the reward that does it? Several seeds, paired tests, controls.

    python bench/ladder.py --seeds 11 12 13 --out runs/ladder

For each seed: SFT, then from that model PPO, GRPO, GRPO in float32, PPO with its critic frozen at zero, and GRPO
with rewards shuffled among the completions of a step. Each is scored greedily on the same 512 held-out prompts;
McNemar's exact test compares it with its SFT model, prompt by prompt. Prints a table and writes ladder.json.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

from upslope import api
from upslope.demo import ANSWER_TOKENS, DATA, MODEL, Plan, grpo_settings, ppo_settings, training_seconds
from upslope.recipes.configs import RECIPES
from upslope.run.recipe import build

SHUFFLED = str(Path(__file__).with_name("shuffled_reward.py")) + ":shuffled"
PLAN = Plan()
SFT: dict[str, Any] = {"train": {"steps": PLAN.sft, "prompts": 16}, "optim": {"lr": 5e-5, "decay": "linear"}}
PPO, GRPO = ppo_settings(PLAN), grpo_settings(PLAN)
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "ppo": ("ppo", PPO),
    "grpo": ("grpo", GRPO),
    "grpo-float32": ("grpo", {**GRPO, "dtype": "float32"}),
    "ppo-zero-critic": ("ppo", {**PPO, "ppo": {**PPO["ppo"], "freeze_critic": True}}),
    "grpo-shuffled": ("grpo", {**GRPO, "reward": SHUFFLED}),
}


def mcnemar(before: tuple[float, ...], after: tuple[float, ...]) -> tuple[int, int, float]:
    """Prompts gained, prompts lost, and the exact two-sided p-value of equal chances for both."""
    gained = sum(b < a for b, a in zip(before, after, strict=True))
    lost = sum(b > a for b, a in zip(before, after, strict=True))
    n, k = gained + lost, min(gained, lost)
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n if n else 1.0
    return gained, lost, min(1.0, 2 * tail)


def train(kind: str, out: Path, seed: int, model: str, settings: dict[str, Any]) -> Path:
    """Run a recipe unless ``out`` holds its finished run."""
    if not (out / "model" / "config.json").is_file():
        keys = {"seed": seed, "model": model, "data": DATA, "sampling": {"max_new_tokens": ANSWER_TOKENS}, **settings}
        keys["train"] = {"eval_every": 0, "eval_prompts": 128, **settings["train"]}
        api.execute(build(keys, RECIPES[kind], "bench/ladder.py"), "overwrite", path=out)
    return out / "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13])
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--out", type=Path, default=Path("runs/ladder"))
    chosen = parser.parse_args()
    rows = []
    for seed in chosen.seeds:
        base = chosen.out / f"seed-{seed}"
        start = train("sft", base / "sft", seed, MODEL, SFT)
        sft = api.evaluate(str(start), task="arithmetic", max_new_tokens=ANSWER_TOKENS, seed=seed)
        for arm in ["sft", *chosen.arms]:
            kind, settings = ARMS.get(arm, ("sft", {}))
            begun = time.perf_counter()
            model = start if arm == "sft" else train(kind, base / arm, seed, str(start), settings)
            found = sft if arm == "sft" else api.evaluate(
                str(model), task="arithmetic", max_new_tokens=ANSWER_TOKENS, seed=seed,
                dtype=settings.get("dtype", "auto"),
            )  # fmt: skip
            gained, lost, p = mcnemar(sft.greedy.rewards, found.greedy.rewards)
            row = {
                "seed": seed, "arm": arm, "greedy": found.greedy.mean, "low": found.greedy.low,
                "high": found.greedy.high,
                "sampled": found.sampled.mean, "n": found.greedy.n, "gained": gained, "lost": lost, "p": p,
                "training_s": training_seconds(model.parent), "wall_s": time.perf_counter() - begun,
            }  # fmt: skip
            rows.append(row)
            print("{seed:4d} {arm:16s} greedy {greedy:.3f} ({low:.3f} to {high:.3f}) sampled {sampled:.3f}  "
                  "+{gained} -{lost} p={p:.2g}  training {training_s:.0f} s".format(**row), flush=True)  # fmt: skip
            (chosen.out / "ladder.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
