"""LoRA and full fine-tuning on the demo's task, side by side: accuracy, memory, time. And the memory bill, measured.

    python bench/lora.py                                  # all of it, one seed: about a quarter of an hour
    python bench/lora.py --parts accuracy --seeds 11 12 13 --out runs/lora
    python bench/lora.py --parts memory table             # a minute
    python bench/lora.py --parts sizes                    # ten minutes, and as much disk as the largest model: 6 GB

``accuracy``: SFT and then GRPO with the demo's settings, three arms: all weights; LoRA (rank 16, every linear layer of
the blocks) at ten times the rates; LoRA at the rates of all weights. Each is scored greedily on the same held-out
prompts. ``memory``: peak resident memory of two optimizer steps on SmolLM2-135M beside what ``models.memory.bill``
states, for all weights and for LoRA; once with the C library's allocator as it is, which keeps freed pieces among
those in use, and once told to give every large piece back (MALLOC_MMAP_THRESHOLD_). ``sizes``: the same for models of
0.5, 1.5 and 3 B with random weights, where it fits. ``table``: the bill of these three. Every training and every
measurement is a process of its own; its peak is the kernel's, counted from after the model was loaded. Prints tables
and, on the last line, JSON (also OUT/lora.json).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from upslope import api
from upslope.demo import ANSWER_TOKENS, DATA, MODEL, Plan, grpo_settings, training_seconds
from upslope.models.memory import Adapter, bill, shape_of
from upslope.recipes.configs import LORA_RATE, RECIPES
from upslope.run.recipe import build
from upslope.run.resources import memory as machine_memory

RANK = 16
QWEN = {"model_type": "qwen2", "vocab_size": 151_936, "tie_word_embeddings": True, "num_key_value_heads": 2}
MODELS = {
    "0.5 B": {"hidden_size": 896, "num_hidden_layers": 24, "intermediate_size": 4864, "num_attention_heads": 14},
    "1.5 B": {"hidden_size": 1536, "num_hidden_layers": 28, "intermediate_size": 8960, "num_attention_heads": 12},
    "3 B": {"hidden_size": 2048, "num_hidden_layers": 36, "intermediate_size": 11_008, "num_attention_heads": 16},
}
"""Qwen2.5's sizes."""
TOKENS = 1024
FITS = 0.8
"""A peak that is measured is stated below this share of the memory that is free."""
STATED: dict[str, Any] = {"tokens": 2048, "longest": 512, "slots": 64, "capacity": 512}
"""A micro-batch of 2,048 tokens in rows of up to 512; 64 completions at once, prompts included 512 tokens each."""


# ------------------------------------------------------------------------------------------------- in their own process
def reset_peak() -> None:
    """Count the peak from here on (Linux; elsewhere it is that of the whole process)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Peak resident memory in bytes."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    return 1024 * (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def train(work: dict[str, Any]) -> dict[str, Any]:
    """One run of a recipe; the peak is that of the whole process from the first step on."""

    class FromTheFirstStep:
        def __getattr__(self, name: str) -> Any:
            return self.on_step if name == "on_step" else lambda *_: None

        def on_step(self, step: int, *_: Any) -> None:
            if step == 0:
                reset_peak()

    api.execute(
        build(work["keys"], RECIPES[work["kind"]], "bench/lora.py"), "overwrite", listeners=[FromTheFirstStep()],
        path=Path(work["out"]),
    )  # fmt: skip
    record = json.loads((Path(work["out"]) / "run.json").read_text())
    return {"peak": peak(), "trained": record["trained_parameters"]}


def steps(work: dict[str, Any]) -> dict[str, Any]:
    """Two optimizer steps of SFT's loss on rows of random tokens that begin differently."""
    import torch

    from upslope.learner.learner import Learner
    from upslope.learner.optimizer import OptimizerSettings
    from upslope.maths import losses, weighting
    from upslope.models import adapters, loading
    from upslope.models.networks import PolicyNetwork
    from upslope.recipes.sft import SftTargets
    from upslope.types import Batch

    dtype = loading.DTYPES[work["dtype"]]
    loaded = loading.load(loading.read_card(work["model"]), torch.device("cpu"), dtype, work["checkpointing"])
    if work["rank"]:
        adapters.add(loaded.model, adapters.Lora(work["rank"], 2.0 * work["rank"]), seed=0)
    learner: Learner[Any] = Learner(PolicyNetwork(loaded.model), OptimizerSettings(1e-5, 10), work["tokens"] * 2)
    rows, longest = work["tokens"] // work["longest"], work["longest"]
    ids = torch.randint(10, 40_000, (rows, longest), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(rows, longest - 1, dtype=torch.bool)
    batch = Batch(ids, torch.full((rows,), longest), mask, torch.arange(rows))
    reset_peak()
    seconds = 0.0
    for _ in range(2):
        begun = time.perf_counter()
        weights = weighting.token_mean(mask)
        learner.gradient(batch, SftTargets(mask), weights, lambda found, goal: (losses.nll(found.logprobs), {}))
        learner.step()
        seconds = time.perf_counter() - begun
    return {"peak": peak(), "seconds": seconds}


def random_model(work: dict[str, Any]) -> dict[str, Any]:
    """A model directory of these sizes with random weights, and SmolLM2's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from upslope.models import loading

    config = AutoConfig.for_model(**work["config"])
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(work["out"])
    AutoTokenizer.from_pretrained(loading.locate(MODEL)).save_pretrained(work["out"])
    return {}


WORKERS = {"train": train, "steps": steps, "random_model": random_model}


def apart(name: str, work: dict[str, Any], **environment: str) -> dict[str, Any]:
    """The worker's figures, from a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--worker", name], input=json.dumps(work), capture_output=True, text=True,
        check=False, env={**os.environ, **environment},
    )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


# ---------------------------------------------------------------------------------------------------------------- parts
def accuracy(seeds: list[int], plan: Plan, out: Path) -> list[dict[str, Any]]:
    """SFT, then GRPO from it, for each arm and seed."""
    sft = {"train": {"steps": plan.sft, "prompts": 16}, "optim": {"lr": 5e-5, "decay": "linear"}}
    ladder = {"sft": sft, "grpo": grpo_settings(plan)}
    arms = {"all weights": (None, 1.0), "LoRA": (RANK, LORA_RATE), "LoRA, rates of all weights": (RANK, 1.0)}
    found = []
    heads = f"{'seed':>4}  {'arm':28}{'rung':6}{'greedy (95 %)':>24}"
    print(heads + f"{'sampled':>9}{'trained':>13}{'peak':>9}{'training':>10}")
    for seed in seeds:
        for arm, (rank, factor) in arms.items():
            model = MODEL
            for kind, settings in ladder.items():
                place = out / f"seed-{seed}" / arm.replace(",", "").replace(" ", "-") / kind
                optim = {**settings["optim"], "lr": factor * settings["optim"]["lr"]}
                keys = {
                    "seed": seed, "model": model, "data": DATA, "sampling": {"max_new_tokens": ANSWER_TOKENS},
                    **settings, "optim": optim, "train": {"eval_every": 0, "eval_prompts": 0, **settings["train"]},
                    **({"lora": {"rank": rank}} if rank else {}),
                }  # fmt: skip
                figures = apart("train", {"kind": kind, "keys": keys, "out": str(place)})
                model = str(place / "model")
                score = api.evaluate(
                    model, task="arithmetic", prompts=plan.prompts, max_new_tokens=ANSWER_TOKENS, seed=seed
                )
                row = {
                    "seed": seed, "arm": arm, "rung": kind, "lr": optim["lr"], "greedy": score.greedy.mean,
                    "low": score.greedy.low, "high": score.greedy.high, "sampled": score.sampled.mean,
                    "n": score.greedy.n, "seconds": training_seconds(place), **figures,
                }  # fmt: skip
                found.append(row)
                held = f"{100 * row['greedy']:.1f} % ({100 * row['low']:.1f}-{100 * row['high']:.1f})"
                print(
                    f"{seed:4}  {arm:28}{kind:6}{held:>24}{100 * row['sampled']:7.1f} %{row['trained']:13,}"
                    f"{row['peak'] / 1e9:6.2f} GB{row['seconds']:8.0f} s", flush=True,
                )  # fmt: skip
    return found


def memory(out: Path) -> list[dict[str, Any]]:
    """Measured peaks of two optimizer steps on SmolLM2-135M beside the bill."""
    from upslope.models import loading

    config = json.loads((Path(loading.locate(MODEL)) / "config.json").read_text())
    kinds = (("bfloat16", False), ("bfloat16", True), ("float32", False))
    arms = [(rank, dtype, checkpointing) for rank in (0, RANK) for dtype, checkpointing in kinds]
    return measured("SmolLM2-135M", MODEL, shape_of(config), arms)


def sizes(out: Path) -> list[dict[str, Any]]:
    """The same for models of Qwen2.5's sizes with random weights, where the bill fits into this machine."""
    found = []
    for name, numbers in MODELS.items():
        shape = shape_of({**QWEN, **numbers})
        arms = [(rank, "bfloat16", checkpointing) for rank in (0, RANK) for checkpointing in (False, True)]
        fitting = [arm for arm in arms if stated(shape, *arm)["peak"] < FITS * (machine_memory().available or 0)]
        if fitting:
            place = out / name.replace(" ", "")
            apart("random_model", {"out": str(place), "config": {**QWEN, **numbers}})
            found += measured(name, str(place), shape, fitting)
            shutil.rmtree(place)
        left = [arm for arm in arms if arm not in fitting]
        print(f"{name}: " + ("all measured" if not left else f"{len(left)} of {len(arms)} do not fit here"), flush=True)
    return found


def stated(shape: Any, rank: int, dtype: str, checkpointing: bool) -> dict[str, int]:
    """The bill of a training without a sampler."""
    return bill(
        shape, dtype_bytes=2 if dtype == "bfloat16" else 4, adapter=Adapter(rank) if rank else None,
        tokens=TOKENS, longest=256, checkpointing=checkpointing,
    )  # fmt: skip


def measured(model: str, place: str, shape: Any, arms: list[tuple[int, str, bool]]) -> list[dict[str, Any]]:
    """Peaks of two optimizer steps in processes of their own, beside the bill; ``arms``: rank, type, checkpointing."""
    found = []
    title = f"{model}, {TOKENS:,} tokens in a micro-batch"
    print(f"\n{title:52}{'stated':>12}{'measured':>12}{'with malloc':>12}{'a step':>11}")
    for rank, dtype, checkpointing in arms:
        work = {
            "model": place, "rank": rank, "dtype": dtype, "checkpointing": checkpointing, "tokens": TOKENS,
            "longest": 256,
        }  # fmt: skip
        figures = apart("steps", work)
        tidy = apart("steps", work, MALLOC_MMAP_THRESHOLD_="131072", MALLOC_TRIM_THRESHOLD_="131072")["peak"]
        parts = stated(shape, rank, dtype, checkpointing)
        expected = parts["peak"] - parts["packed"]  # no sampler here
        row = {**work, **figures, "tidy": tidy, "stated": expected, "parts": parts}
        found.append(row)
        name = f"{f'LoRA, rank {rank}' if rank else 'all weights'}, {dtype}" + ", checkpointing" * checkpointing
        columns = "".join(f"{size / 1e9:9.2f} GB" for size in (expected, tidy, row["peak"]))
        print(f"{name:52}{columns}{row['seconds']:9.1f} s", flush=True)
    return found


def table(out: Path) -> list[dict[str, Any]]:
    """The bill of three models in bfloat16 on a GPU: gigabytes held at once, by recipe."""
    recipes = {
        "SFT": {**STATED, "slots": 0}, "GRPO, no reference": STATED, "GRPO": {**STATED, "reference": True},
        "PPO": {**STATED, "reference": True, "critic": True},
    }  # fmt: skip
    found = []
    print(f"\n{'bfloat16, GB':12}{'':26}" + "".join(f"{name:>20}" for name in recipes))
    for name, sizes in MODELS.items():
        shape = shape_of({**QWEN, **sizes})
        for what, adapter, checkpointing in (
            ("all weights", None, False), ("all weights, checkpointing", None, True),
            ("LoRA, rank 16", Adapter(RANK), False), ("LoRA, checkpointing", Adapter(RANK), True),
        ):  # fmt: skip
            peaks = {
                recipe: bill(shape, adapter=adapter, checkpointing=checkpointing, cpu=False, **keys)["peak"]
                for recipe, keys in recipes.items()
            }
            found.append({"model": name, "parameters": shape.parameters, "what": what, **peaks})
            print(f"{name:8}{what:30}" + "".join(f"{size / 1e9:20.1f}" for size in peaks.values()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["accuracy", "memory", "sizes", "table"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[11])
    parser.add_argument("--quick", action="store_true", help="a few steps and prompts: to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("runs/lora"))
    parser.add_argument("--worker", choices=list(WORKERS), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        print(json.dumps(WORKERS[chosen.worker](json.load(sys.stdin))))
        return
    plan = Plan(sft=3, grpo=2, prompts=32) if chosen.quick else Plan()
    makers: dict[str, Any] = {
        "accuracy": lambda out: accuracy(chosen.seeds, plan, out), "memory": memory, "sizes": sizes, "table": table,
    }  # fmt: skip
    found = {part: makers[part](chosen.out) for part in chosen.parts}
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "lora.json").write_text(json.dumps(found, indent=1))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
