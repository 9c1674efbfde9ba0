"""Seconds of a GRPO step, by phase: ours, and beside it TRL's, in turns, on the same model, prompts and lengths.

    python bench/grpo.py                                   # ours alone
    python bench/grpo.py --against trl --peer-python V/bin/python
    python bench/grpo.py --against trl --peer-python V/bin/python --prompts 8 --tokens 96 --forced

TRL lives in an environment of its own: ``python -m venv V && V/bin/pip install -c constraints.txt torch trl==1.16.0``.
Work of a step: ``--prompts`` x ``--samples`` completions of at most ``--tokens`` tokens at temperature 1, one optimizer
step, AdamW, lr 1e-6, reward = share of digits in the completion. ``--forced``: all completions have exactly that length
(both sides get plain prompts, whose end nobody marks, and a copy of the model whose end token never comes). TRL runs
twice: at its defaults (float32 weights under bfloat16 autocast, gradient checkpointing) and tuned (bfloat16 weights, no
checkpointing). In both the generation batch is the whole step, and 16 completions learn at once: with 64 of 96 tokens
the tuned one was killed on 24 GB, beside the other two. Medians over ``--rounds`` steps after the first; JSON on the
last line.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from sides import OUR_GATE, OUR_THREADS, TRL_GATE, Side, in_turns, table

OURS = """
import upslope
def figures(metrics, timings):
    tokens = metrics["completions/mean_length"] * work["prompts"] * work["samples"]
    phases = {name: timings["time/" + name] for name in ("sampling", "learning", "reward")}
    return {"tokens": tokens, **phases, "sampled_tokens_per_s": tokens / timings["time/sampling"]}
upslope.grpo(
    model=work["model"], data=work["rows"], reward=work["reward"], out=work["out"], overwrite=True,
    listeners=[Gate(figures)], heldout=0.0, chat="never" if work["forced"] else "auto",
    sampling={"max_new_tokens": work["tokens"]}, grpo={"group": work["samples"]},
    optim={"lr": 1e-6, "warmup": 0}, train={"steps": 1000000, "prompts": work["prompts"], "eval_prompts": 0},
)
"""

TRL = """
import math
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer
tuned, count, lengths = work["tuned"], work["prompts"] * work["samples"], []
at_once = math.gcd(count, 16)
def digits(prompts, completions, completion_ids, **columns):
    lengths.append(sum(map(len, completion_ids)))
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [sum(ch.isdigit() for ch in text) / max(1, len(text)) for text in texts]
model = AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.bfloat16 if tuned else torch.float32)
config = GRPOConfig(
    output_dir=work["out"], use_cpu=True, bf16=True, gradient_checkpointing=not tuned,
    per_device_train_batch_size=at_once, gradient_accumulation_steps=count // at_once,
    num_generations=work["samples"], max_completion_length=work["tokens"],
    max_steps=100000, learning_rate=1e-6, save_strategy="no", report_to="none", disable_tqdm=True, seed=0,
    logging_steps=100000,
)
message = lambda text: text if work["forced"] else [{"role": "user", "content": text}]
rows = Dataset.from_list([{"prompt": message(text)} for text in work["texts"]])
trainer = GRPOTrainer(model=model, reward_funcs=digits, args=config, train_dataset=rows,
                      processing_class=AutoTokenizer.from_pretrained(work["model"]),
                      callbacks=[Gate(lambda: {"tokens": lengths[-1]})])
trainer.train()
"""

REWARD = """
def digits(prompts, completions, **columns):
    texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
    return [sum(ch.isdigit() for ch in text) / max(1, len(text)) for text in texts]
"""


def endless(model: Path, out: Path) -> Path:
    """A copy of a model whose end token is the last id of its vocabulary, which it practically never writes. A chat
    template would bring the end of a turn back: use it with plain prompts."""
    shutil.copytree(model, out)
    size = json.loads((out / "config.json").read_text())["vocab_size"]
    pieces = json.loads((out / "tokenizer.json").read_text())["model"]["vocab"]
    last = next(piece for piece, number in pieces.items() if number == size - 1)
    ends = {"eos_token_id": size - 1, "eos_token": last}
    for name, keys in (
        ("config.json", ("eos_token_id",)), ("generation_config.json", ("eos_token_id",)),
        ("tokenizer_config.json", ("eos_token",)),
    ):  # fmt: skip
        content = json.loads((out / name).read_text())
        (out / name).write_text(json.dumps({**content, **{key: ends[key] for key in keys}}))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", choices=["trl"], default=None)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--forced", action="store_true", help="completions of exactly --tokens tokens")
    chosen = parser.parse_args()
    from upslope.models import bundled

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        place = Path(folder)
        model = endless(bundled.directory(), place / "model") if chosen.forced else bundled.directory()
        texts = [f"Tell me what {a} times {a + 7} is, and why." for a in range(11, 43)]
        (place / "rows.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
        (place / "reward.py").write_text(REWARD)
        work = {
            **vars(chosen), "model": str(model), "texts": texts, "rows": str(place / "rows.jsonl"),
            "out": str(place / "out"), "reward": str(place / "reward.py") + ":digits",
        }  # fmt: skip
        sides = [stack.enter_context(Side("upslope", sys.executable, OUR_GATE + OURS, work, OUR_THREADS))]
        for name, tuned in (("TRL default", False), ("TRL tuned", True)) if chosen.against == "trl" else ():
            own = {**work, "tuned": tuned, "out": str(place / name.replace(" ", "-"))}
            sides.append(stack.enter_context(Side(name, chosen.peer_python, TRL_GATE + TRL, own, {})))
        print(json.dumps(table(in_turns(sides, chosen.rounds))))


if __name__ == "__main__":
    main()
