"""The classical path on real text: SFT, pairs, a reward model, PPO; DPO beside it; and is the reward hacked?

    python bench/preferences.py --out runs/preferences                # about 30 minutes on two cores
    python bench/preferences.py --out runs/preferences-quick --quick  # a few minutes: to see that it runs

SmolLM2-135M-Instruct learns to add with the work shown (task ``worked-sums``). The SFT model answers each of some
training prompts several times; of its answers the one with fewer faults in the work is better, by a rule that never
looks at the sum. The reward model learns the rule from these pairs; PPO and DPO start at the same SFT model. Beside the
reward model's score stands what it was never shown: whether the last number is the sum.

``--pairs rule`` takes the task's own pairs in their place, whose slips are drawn by rule and not made by the model.
``--hack`` adds PPO without a KL penalty at five times the rate, to see the two come apart.

Prints how both develop, and a table of all models on the same held-out prompts; writes preferences.json.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from upslope import api
from upslope.recipes.configs import RECIPES
from upslope.run.metrics import read_metrics
from upslope.run.recipe import build
from upslope.worlds.worked_sums import faults

MODEL, TASK, TOKENS = "smollm2-135m-instruct", "worked-sums", 48
RULE = "upslope.worlds.worked_sums:few_faults"
RIGHT = {"builtin": "numeric", "weight": 0, "name": "right_sum"}


@dataclass(frozen=True)
class Plan:
    """Steps of each training, prompts of a step, prompts that are asked for pairs, and held-out ones of the table."""

    sft: int = 18
    asked: int = 2048
    reward: int = 60
    pairs: int = 32
    ppo: int = 15
    prompts: int = 64
    dpo: int = 60
    evaluated: int = 256
    every: int = 5


QUICK = Plan(asked=256, reward=30, pairs=16, ppo=6, prompts=32, dpo=20, evaluated=64, every=3)


def keep_to(out: Path, settings: dict[str, Any]) -> None:
    """What ``out`` holds is taken up again; runs of other settings are not."""
    kept = out / "settings.json"
    if kept.is_file() and json.loads(kept.read_text()) != settings:
        raise SystemExit(f"{out} holds runs of other settings ({kept.name}): give another --out")
    out.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(settings, indent=1))


def own_pairs(model: str, out: Path, plan: Plan, seed: int) -> dict[str, Any]:
    """Pairs of a model's own answers in ``out``, and what is known of them; made unless they are there."""
    known = out.with_suffix(".json")
    if not (known.is_file() and out.is_file()):
        begun = time.perf_counter()
        found = api.sample_pairs(
            model, out, task=TASK, reward=RULE, prompts=plan.asked, max_new_tokens=TOKENS, seed=seed, overwrite=True
        )
        kept = ("prompts", "answers", "pairs", "cut", "empty", "mean", "chosen", "rejected", "longer")
        facts = {name: getattr(found, name) for name in kept}
        known.write_text(json.dumps({**facts, "seconds": time.perf_counter() - begun}))
    told: dict[str, Any] = json.loads(known.read_text())
    return told


def train(kind: str, out: Path, keys: dict[str, Any], seed: int) -> Path:
    """Run a recipe unless ``out`` holds its finished run."""
    if not (out / "model" / "config.json").is_file():
        whole = {"seed": seed, "data": {"task": TASK}, **keys}
        api.execute(build(whole, RECIPES[kind], "bench/preferences.py"), "overwrite", path=out)
    return out


def seconds(run: Path) -> float:
    """Time of all training steps."""
    rows = [json.loads(line) for line in (run / "timings.jsonl").read_text().splitlines()]
    return sum(row.get("time/step", 0.0) for row in rows if row.get("step", 0) > 0)


def scored(model: Path | str, judge: Path, plan: Plan, seed: int) -> dict[str, float]:
    """A model's greedy answers to held-out prompts: right sums, faults by the rule, the reward model's raw score."""
    found = api.evaluate(str(model), task=TASK, prompts=plan.evaluated, max_new_tokens=TOKENS, seed=seed)
    texts = found.greedy.completions
    asked = [tuple(map(int, re.findall(r"\d+", prompt)[:2])) for prompt in found.prompts]
    return {
        "right_sum": found.greedy.mean, "low": found.greedy.low, "high": found.greedy.high,
        "sampled_right": found.sampled.mean,
        "faults": fmean(faults(text, a, b) for text, (a, b) in zip(texts, asked, strict=True)),
        "no_fault": fmean(faults(text, a, b) == 0 for text, (a, b) in zip(texts, asked, strict=True)),
        "score": fmean(judged(judge, list(zip(found.prompts, texts, strict=True)))),
        "characters": fmean(map(len, texts)),
    }  # fmt: skip


def judged(directory: Path, answers: list[tuple[str, str]]) -> list[float]:
    """Raw scores of finished answers by a reward model."""
    import torch

    from upslope.learner.learner import FrozenScorer
    from upslope.models.loading import choose_dtype
    from upslope.models.scoring import load_classifier, read_classifier
    from upslope.text.collation import collate_texts
    from upslope.text.rendering import Renderer

    card, facts = read_classifier(str(directory))
    renderer = Renderer(card.tokenizer, tuple(facts["stop_ids"]), facts["chat"], facts["system_prompt"])
    cpu = torch.device("cpu")
    scorer: Any = FrozenScorer(load_classifier(card, cpu, choose_dtype("auto", cpu)))
    texts = [[*renderer.prompt(prompt), *renderer.completion(text)] for prompt, text in answers]
    return [float(score) for score in scorer.evaluate(collate_texts(texts, range(len(texts)))).scores]


def course(run: Path) -> list[dict[str, float]]:
    """Held-out numbers of a PPO run as it goes: what it is rewarded for beside what its reward has not seen."""
    kept = {"score": "eval/rewards/reward_model/raw", "right_sum": "eval/rewards/right_sum/mean", "kl": "kl"}
    return [
        {"step": row["step"], **{name: row[metric] for name, metric in kept.items() if metric in row}}
        for row in read_metrics(run / "metrics.jsonl") if "eval/reward" in row
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/preferences"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default=MODEL, help="the model to begin with")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--pairs", choices=("own", "rule"), default="own", help="whose answers the pairs are")
    parser.add_argument("--hack", action="store_true", help="PPO without a KL penalty, at five times the rate, too")
    chosen = parser.parse_args()
    plan, out, seed = QUICK if chosen.quick else Plan(), chosen.out, chosen.seed
    begun = time.perf_counter()
    same = {"model": chosen.model, "seed": seed, "pairs": chosen.pairs, **vars(plan)}
    keep_to(out, same)
    falling = {"decay": "linear"}
    quiet = {"eval_every": 0, "eval_prompts": 0}
    sft = train("sft", out / "sft", {
        "model": chosen.model, "optim": {"lr": 5e-5, **falling}, "train": {"steps": plan.sft, "prompts": 16, **quiet},
        "sampling": {"max_new_tokens": TOKENS},
    }, seed)  # fmt: skip
    start = str(sft / "model")
    made = own_pairs(start, out / "pairs.jsonl", plan, seed) if chosen.pairs == "own" else {}
    pairs = {"data": {"path": str(out / "pairs.jsonl")}} if made else {}
    reward = train("reward", out / "reward", {
        **pairs, "model": start, "optim": {"lr": 5e-5, **falling},
        "train": {"steps": plan.reward, "prompts": plan.pairs, "eval_every": plan.reward // 3,
                  "eval_prompts": plan.evaluated},
    }, seed)  # fmt: skip
    ppo = {
        "model": start, "sampling": {"max_new_tokens": TOKENS},
        "reward": [{"model": str(reward / "model"), "missing_eos_penalty": 1.0}, RIGHT],
        "train": {"steps": plan.ppo, "prompts": plan.prompts, "eval_every": plan.every, "eval_prompts": plan.evaluated},
    }  # fmt: skip
    runs = {"SFT": sft, "PPO": train("ppo", out / "ppo", {**ppo, "optim": {"lr": 1e-5, **falling}}, seed)}
    runs["DPO"] = train("dpo", out / "dpo", {
        **pairs, "model": start, "optim": {"lr": 2e-6, **falling}, "sampling": {"max_new_tokens": TOKENS},
        "train": {"steps": plan.dpo, "prompts": 16, **quiet},
    }, seed)  # fmt: skip
    if chosen.hack:
        free = {**ppo, "optim": {"lr": 5e-5}, "ppo": {"kl_coef": 0.0, "target_kl": None, "critic_lr": 5e-5}}
        runs["PPO, no KL, 5x rate"] = train("ppo", out / "ppo-free", free, seed)
    judge = [row for row in read_metrics(reward / "metrics.jsonl") if "eval/accuracy" in row]
    if made:
        print("\n{pairs} pairs from {answers} answers to {prompts} prompts in {seconds:.0f} s".format(**made))
    print("\nReward model on held-out pairs")
    for row in judge:
        print(f"  step {row['step']:3d}  loss {row['eval_loss']:.3f}  accuracy {row['eval/accuracy']:.3f}  "
              f"calibration error {row['eval/calibration_error']:.3f}")  # fmt: skip
    for name, run in runs.items():
        if name.startswith("PPO"):
            print(f"\n{name}, held-out prompts: the reward model's score, and what it has not seen")
            for row in course(run):
                print(f"  step {row['step']:3d}  " + "  ".join(f"{key} {row[key]:.3f}" for key in row if key != "step"))
    rows = []
    print("\n| model | right sums (95 %) | sampled | no fault | faults | reward model | training |")
    print("|---|---|---|---|---|---|---|")
    for name, run in runs.items():
        row = {"model": name, **scored(run / "model", reward / "model", plan, seed), "training_s": seconds(run)}
        rows.append(row)
        right = "{right_sum:.1%} ({low:.1%}-{high:.1%}) | {sampled_right:.1%}".format(**row)
        rest = "{no_fault:.1%} | {faults:.2f} | {score:.2f} | {training_s:.0f} s".format(**row)
        print(f"| {name} | {right} | {rest} |", flush=True)
    found = {"settings": same, "rows": rows, "pairs": made, "reward_model": judge, "reward_training_s": seconds(reward),
             "course": {name: course(run) for name, run in runs.items() if name.startswith("PPO")},
             "wall_s": time.perf_counter() - begun}  # fmt: skip
    (out / "preferences.json").write_text(json.dumps(found, indent=1))
    print(f"\n{found['wall_s']:.0f} s in all")


if __name__ == "__main__":
    main()
