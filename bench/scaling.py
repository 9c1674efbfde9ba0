"""How time and memory of a GRPO step grow with what a step has: prompts, group, completion length, tokens at once.

    python bench/scaling.py                              # all four: about twelve minutes on two cores
    python bench/scaling.py --axes group tokens --rounds 5

Every setting is a process of its own with SmolLM2-135M in bfloat16: a step of warm-up, then the median of ``--rounds``
steps, completions of exactly the stated length (see ``bench/grpo.py``). Printed for each axis: seconds by phase; the
exponent e of a straight line through log(seconds) over log(size), so that seconds ~ size^e (1: in proportion; less: a
fixed part is shared); the peak of resident memory from the first step on beside what ``upslope check`` states. The
settings of an axis are run forwards and then backwards, so that a slow minute does not look like growth.
JSON on the last line.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from grpo import REWARD, endless
from sides import OUR_GATE, OUR_THREADS, Side, in_turns

BASE = {"prompts": 2, "samples": 8, "length": 48, "at_once": 4096}
AXES: dict[str, tuple[str, list[int]]] = {
    "prompts": ("prompts", [1, 2, 4, 8]),
    "group": ("samples", [4, 8, 16, 32]),
    "length": ("length", [24, 48, 96, 192]),
    "at once": ("at_once", [512, 1024, 2048, 4096]),
}
"""Axis: what it changes in ``BASE``, and to which values."""
WIDE = {"prompts": 4, "samples": 16, "length": 48}
"""The step whose cut into micro-batches the axis ``at once`` changes: 64 completions of about 80 tokens."""

OURS = """
import contextlib, pathlib, re
import upslope
class FromTheFirstStep(Gate):
    def on_step(self, step, metrics, timings):
        if step == 0:
            with contextlib.suppress(OSError):
                pathlib.Path("/proc/self/clear_refs").write_text("5")  # count the peak from here on
        super().on_step(step, metrics, timings)
def figures(metrics, timings):
    high = re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())
    return {**{name: timings["time/" + name] for name in ("sampling", "learning")}, "tokens": metrics["num_tokens"],
            "peak": 1024 * int(high[1])}
upslope.grpo(**work["keys"], reward=work["reward"], overwrite=True, listeners=[FromTheFirstStep(figures)])
"""


def keys(model: Path, folder: Path, setting: dict[str, int]) -> dict[str, Any]:
    """The recipe of a setting."""
    return {
        "model": str(model), "out": str(folder / "out"),
        "data": {"path": str(folder / "rows.jsonl"), "heldout": 0.0, "chat": "never"},
        "sampling": {"max_new_tokens": setting["length"]}, "grpo": {"group": setting["samples"]},
        "optim": {"lr": 1e-6, "warmup": 0},
        "train": {
            "steps": 1_000_000, "prompts": setting["prompts"], "eval_prompts": 0,
            "micro_batch_tokens": setting["at_once"],
        },
    }  # fmt: skip


def stated(recipe: dict[str, Any], reward: str) -> int:
    """Peak bytes that ``upslope check`` states for it."""
    from upslope.checkup.gather import check
    from upslope.recipes.configs import GrpoRecipe
    from upslope.run.recipe import build

    found = check(build({**recipe, "reward": reward, "train": {**recipe["train"], "steps": 4}}, GrpoRecipe, "scaling"))
    assert found.memory is not None
    return found.memory.needed


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Slope of the least-squares line through (log size, log seconds)."""
    xs, ys = [math.log(size) for size in sizes], [math.log(second) for second in seconds]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    above = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return above / sum((x - mean_x) ** 2 for x in xs)


def axis(name: str, model: Path, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """The figures of each setting of an axis."""
    key, values = AXES[name]
    base = {**BASE, **(WIDE if name == "at once" else {})}
    reward = f"{folder / 'reward.py'}:digits"
    told: dict[int, list[dict[str, Any]]] = {value: [] for value in values}
    for value in [*values, *reversed(values)]:
        work = {"keys": keys(model, folder, {**base, key: value}), "reward": reward}
        with Side(f"{name} {value}", sys.executable, OUR_GATE + OURS, work, OUR_THREADS) as side:
            told[value] += in_turns([side], rounds)[side.name]
    rows = []
    for value, found in told.items():
        row = {item: median(one[item] for one in found) for item in ("seconds", "sampling", "learning", "tokens")}
        row |= {"peak": max(one["peak"] for one in found)}
        rows.append({name: value, **row, "stated": stated(keys(model, folder, {**base, key: value}), reward)})
        last = rows[-1]
        print(
            f"{name:8} {value:5}  {last['seconds']:7.2f} s  sampling {last['sampling']:6.2f}  "
            f"learning {last['learning']:6.2f}  peak {last['peak'] / 1e9:5.2f} GB, "
            f"stated {last['stated'] / 1e9:5.2f} ({last['stated'] / last['peak'] - 1:+.0%})", flush=True,
        )  # fmt: skip
    shown = {item: exponent(values, [row[item] for row in rows]) for item in ("seconds", "sampling", "learning")}
    print(f"{name:8} exponents: " + ", ".join(f"{item} {value:.2f}" for item, value in shown.items()), flush=True)
    return [{**row, "exponents": shown} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=list(AXES))
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    from upslope.models import bundled

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = endless(bundled.directory(), folder / "model")
        texts = [f"Tell me what {a} times {a + 7} is, and why." for a in range(11, 75)]
        (folder / "rows.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
        (folder / "reward.py").write_text(REWARD)
        print(json.dumps({name: axis(name, model, folder, chosen.rounds) for name in chosen.axes}))


if __name__ == "__main__":
    main()
