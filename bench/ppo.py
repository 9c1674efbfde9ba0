"""Seconds and memory of a PPO step (policy, critic, reference; one epoch) beside our own GRPO step at equal tokens.

    python bench/ppo.py

Both take ``--prompts`` x ``--samples`` completions of exactly ``--tokens`` tokens (an end token that never comes, see
``bench/grpo.py``) and one optimizer step; GRPO without, PPO with a reference model. In turns, each in a process of its
own; medians over ``--rounds`` steps after the first; JSON on the last line.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from grpo import OURS as GRPO
from grpo import REWARD, endless
from sides import OUR_GATE, OUR_THREADS, Side, in_turns, table

PPO = GRPO.replace("upslope.grpo(", "upslope.ppo(").replace(
    'grpo={"group": work["samples"]},', 'ppo={"samples": work["samples"]},'
).replace('"prompts": work["prompts"],', '"prompts": work["prompts"], "epochs": 1, "minibatches": 1,')  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    from upslope.models import bundled

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        place = Path(folder)
        texts = [f"Tell me what {a} times {a + 7} is, and why." for a in range(11, 43)]
        (place / "rows.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
        (place / "reward.py").write_text(REWARD)
        work = {
            **vars(chosen), "forced": True, "model": str(endless(bundled.directory(), place / "model")),
            "rows": str(place / "rows.jsonl"), "reward": str(place / "reward.py") + ":digits",
        }  # fmt: skip
        sides = [
            stack.enter_context(
                Side(name, sys.executable, OUR_GATE + code, {**work, "out": str(place / name)}, OUR_THREADS)
            )
            for name, code in (("GRPO", GRPO), ("PPO", PPO))
        ]
        print(json.dumps(table(in_turns(sides, chosen.rounds))))


if __name__ == "__main__":
    main()
