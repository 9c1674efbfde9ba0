"""Seconds of a supervised step: ours and TRL's, in turns, on the same rows of 20 to 300 tokens.

    python bench/sft.py --against trl --peer-python V/bin/python

TRL as in ``bench/grpo.py``, at its defaults (float32 weights under bfloat16 autocast, gradient checkpointing) and tuned
(bfloat16 weights, no checkpointing). Every step takes the same ``--rows`` rows, so every step is the same work; the
loss counts the completion only, on both sides. The three sides stand in memory at once; their peaks, which do not meet,
are 8, 8 and 10 GB with 16 rows. Medians over ``--rounds`` steps after the first; JSON on the last line.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from sides import OUR_GATE, OUR_THREADS, TRL_GATE, Side, in_turns, table

OURS = """
import upslope
def figures(metrics, timings):
    return {"tokens": metrics["num_tokens"], "trained_tokens": metrics["trained_tokens"]}
upslope.sft(
    model=work["model"], data=work["data"], out=work["out"], overwrite=True, listeners=[Gate(figures)], heldout=0.0,
    optim={"lr": 1e-6, "warmup": 0}, train={"steps": 1000000, "prompts": work["rows"], "eval_prompts": 0},
)
"""

TRL = """
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
tuned = work["tuned"]
model = AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.bfloat16 if tuned else torch.float32)
config = SFTConfig(
    output_dir=work["out"], use_cpu=True, bf16=True, gradient_checkpointing=not tuned, max_steps=100000,
    per_device_train_batch_size=work["rows"], learning_rate=1e-6, save_strategy="no", report_to="none",
    disable_tqdm=True, seed=0, logging_steps=100000,
)
rows = Dataset.from_list([json.loads(line) for line in open(work["data"])])
trainer = SFTTrainer(model=model, args=config, train_dataset=rows,
                     processing_class=AutoTokenizer.from_pretrained(work["model"]), callbacks=[Gate(dict)])
trainer.train()
"""

STORY = "the sea was calm and a small boat went out before dawn to look for what the storm had left on the sand"


def rows(count: int) -> list[dict[str, object]]:
    """Conversations of about 20 to 300 tokens, in even steps."""
    source = random.Random(0)
    made = []
    for number in range(count):
        length = max(4, round(2 + 262 * number / max(1, count - 1)))
        answer = " ".join(source.choice(STORY.split()) for _ in range(length))
        made.append(
            {
                "prompt": [{"role": "user", "content": f"Tell me story {number}."}],
                "completion": [{"role": "assistant", "content": answer}],
            }
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", choices=["trl"], default=None)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    from upslope.models import bundled

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        place = Path(folder)
        data = place / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows(chosen.rows)))
        work = {**vars(chosen), "model": str(bundled.directory()), "data": str(data), "out": str(place / "out")}
        sides = [stack.enter_context(Side("upslope", sys.executable, OUR_GATE + OURS, work, OUR_THREADS))]
        for name, tuned in (("TRL default", False), ("TRL tuned", True)) if chosen.against == "trl" else ():
            own = {**work, "tuned": tuned, "out": str(place / name.replace(" ", "-"))}
            sides.append(stack.enter_context(Side(name, chosen.peer_python, TRL_GATE + TRL, own, {})))
        print(json.dumps(table(in_turns(sides, chosen.rounds))))


if __name__ == "__main__":
    main()
