"""Seconds of a GRPO step, by phase: ours, and beside it TRL's on the same machine, model, prompts and lengths.

    python bench/grpo.py                                   # ours alone
    python bench/grpo.py --against trl --peer-python /path/to/venv-with-trl/bin/python

TRL lives in an environment of its own: `python -m venv V && V/bin/pip install -c constraints.txt torch trl==1.16.0`.
Work of a step: `--prompts` x `--samples` completions of at most `--tokens` tokens at temperature 1, one optimizer
step, AdamW, lr 1e-6, reward = share of digits in the completion. TRL runs twice: at its defaults (float32 weights
under bfloat16 autocast, gradient checkpointing) and tuned (bfloat16 weights, no checkpointing). Medians over the
steps after the first. JSON on the last line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

PEER = """
import json, sys, time
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

work = json.loads(sys.argv[1])
lengths = []
def digits(prompts, completions, completion_ids, **columns):
    lengths.append(sum(map(len, completion_ids)))
    texts = [c[0]["content"] for c in completions]
    return [sum(ch.isdigit() for ch in text) / max(1, len(text)) for text in texts]

class Times(TrainerCallback):
    steps = []
    def on_step_begin(self, *_, **__): self.begun = time.perf_counter()
    def on_step_end(self, *_, **__): self.steps.append(time.perf_counter() - self.begun)

tuned = work["tuned"]
model = AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.bfloat16 if tuned else torch.float32)
count = work["prompts"] * work["samples"]
config = GRPOConfig(
    output_dir=work["out"], use_cpu=True, bf16=True, gradient_checkpointing=not tuned, 
    per_device_train_batch_size=count,
    num_generations=work["samples"], max_completion_length=work["tokens"], max_steps=work["steps"], learning_rate=1e-6,
    logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, seed=0,
)
rows = Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in work["texts"]])
times = Times()
trainer = GRPOTrainer(model=model, reward_funcs=digits, args=config, train_dataset=rows,
                      processing_class=AutoTokenizer.from_pretrained(work["model"]), callbacks=[times])
trainer.train()
import resource
print("RESULT" + json.dumps({"steps": times.steps, "tokens": lengths,
                             "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))
"""

OURS = """
import json, resource, sys
import upslope
work = json.loads(sys.argv[1])
run = upslope.grpo(
    model=work["model"], data=work["rows"], reward=work["reward"], out=work["out"], overwrite=True, listeners=[],
    heldout=0.0, sampling={"max_new_tokens": work["tokens"]}, grpo={"group": work["samples"]},
    optim={"lr": 1e-6, "warmup": 0}, train={"steps": work["steps"], "prompts": work["prompts"], "eval_prompts": 0},
)
times = [json.loads(line) for line in (run.folder / "timings.jsonl").read_text().splitlines()]
rows = {m["step"]: m for m in run.metrics}
times = [t for t in times if t["step"] > 0]
tokens = [rows[t["step"]]["completions/mean_length"] * work["prompts"] * work["samples"] for t in times]
print("RESULT" + json.dumps({"steps": [t["time/step"] for t in times], "tokens": tokens,
    "sampling": [t["time/sampling"] for t in times], "learning": [t["time/learning"] for t in times],
    "reward": [t["time/reward"] for t in times],
    "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))
"""

REWARD = """
def digits(prompts, completions, **columns):
    return [sum(ch.isdigit() for ch in text) / max(1, len(text)) for text in completions]
"""


def child(python: str, code: str, work: dict[str, Any]) -> dict[str, Any]:
    """Run a side in a process of its own and read its figures."""
    done = subprocess.run([python, "-c", code, json.dumps(work)], capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if not lines:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
    found: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT"))
    return found


def summary(found: dict[str, Any]) -> dict[str, float]:
    """Medians after the first step; tokens a second over sampling where it is known, and over the whole step."""
    steps, tokens = found["steps"][1:], found["tokens"][1 : len(found["steps"])]
    out = {"step_s": median(steps), "tokens": median(tokens), "peak_gb": found["peak_gb"]}
    out["tokens_per_step_s"] = sum(tokens) / sum(steps)
    for phase in ("sampling", "learning", "reward"):
        if phase in found:
            out[f"{phase}_s"] = median(found[phase][1:])
    if "sampling" in found:
        out["sampled_tokens_per_s"] = sum(tokens) / sum(found["sampling"][1:])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", choices=["trl"], default=None)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--steps", type=int, default=6)
    chosen = parser.parse_args()
    from upslope.models import bundled

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        texts = [f"Tell me what {a} times {a + 7} is, and why." for a in range(11, 43)]
        (place / "rows.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
        (place / "reward.py").write_text(REWARD)
        work = {
            "model": str(bundled.directory()), "texts": texts, "rows": str(place / "rows.jsonl"),
            "out": str(place / "out"),
            "reward": str(place / "reward.py") + ":digits", **vars(chosen),
        }  # fmt: skip
        sides = {"upslope": summary(child(sys.executable, OURS, work))}
        if chosen.against == "trl":
            for name, tuned in (("TRL default", False), ("TRL tuned", True)):
                sides[name] = summary(child(chosen.peer_python, PEER, {**work, "tuned": tuned}))
    for name, row in sides.items():
        ratio = row["step_s"] / sides["upslope"]["step_s"]
        print(
            f"{name:12s} step {row['step_s']:6.2f} s ({ratio:4.1f}x)  "
            + "  ".join(f"{k} {v:.2f}" for k, v in row.items() if k != "step_s")
        )
    print(json.dumps(sides))


if __name__ == "__main__":
    main()
