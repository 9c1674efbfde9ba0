"""Do PPO and GRPO reach the optimum of the text gridworld? One setting for all seeds and maps, measured exactly;
another number of steps where the task is another (``upslope/certify/trainings.py``).

    python bench/certificates.py                                  # seeds 0 to 19 of PPO and GRPO on the built-in map
    python bench/certificates.py --seeds 0 1 2 3 4                # what CI runs
    python bench/certificates.py --seeds 0 --maps 20              # 20 generated maps, the net of seed 0 on each
    python bench/certificates.py --seeds 0 1 2 3 4 --beta 1       # with a KL penalty: beta KL(pi || pi*)
    python bench/certificates.py --seeds 0 1 2 3 4 --prompt map   # the prompt is a drawn map, not a pair of numbers
    python bench/certificates.py --seeds 0 1 2 3 4 --vocabulary full   # every token may be said, not the moves alone

Maps are those of ``generated_maps``; with ``--first 1000`` those that the settings were chosen on.

A run passes with max over prompts of J* - J < 0.05 points; with beta, with beta KL(pi || pi*) < 0.02 (GRPO, whose k2 in
the loss has a fixed point of its own: against that; both are printed), a mean over the prompts. Exit code 1 if fewer
than nine in ten seeds pass on the built-in map, or eight in ten with a drawn map or every token; on generated maps
failures are listed. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from upslope.certify.trainings import Certificate, certify_training, generated_maps

NEEDED, NEEDED_IF_HARDER = 0.9, 0.8
"""Share of the runs that must pass."""


def told(found: Certificate, name: str) -> str:
    """One line about a run."""
    parts = [f"{found.kind:4s} seed {found.seed:2d} {name:7s}"]
    if found.beta == 0:
        parts.append(f"max J* - J {found.worst:.4f}  mean {found.mean:.4f}")
    if found.kl is not None:
        parts.append(f"beta {found.beta:g}  beta KL(pi || pi*) {found.kl:.4f}")
    if found.own_kl is not None:
        parts.append(f"to its own fixed point {found.own_kl:.4f}")
    if found.critic_rmse is not None:
        parts.append(f"critic rmse against so_far + V^pi {found.critic_rmse:.3f}")
    return "  ".join([*parts, f"{found.seconds:.1f} s", "pass" if found.passed else "FAIL"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(20)))
    parser.add_argument("--kinds", nargs="+", default=["ppo", "grpo"], choices=["ppo", "grpo"])
    parser.add_argument("--maps", type=int, default=0, help="so many generated maps in place of the built-in one")
    parser.add_argument("--first", type=int, default=0, help="seed from which maps are generated")
    parser.add_argument("--beta", type=float, default=0.0)
    parser.add_argument("--prompt", choices=["coordinate", "map"], default="coordinate")
    parser.add_argument("--vocabulary", choices=["moves", "full"], default="moves")
    parser.add_argument("--out", type=Path, help="keep the run folders here")
    chosen = parser.parse_args()
    harder = (chosen.prompt, chosen.vocabulary) != ("coordinate", "moves")
    if chosen.beta > 0 and harder:
        parser.error("--beta goes with coordinates and moves alone: leave --prompt and --vocabulary out")
    needed = NEEDED_IF_HARDER if harder else NEEDED
    maps = {f"map {number}": text for number, text in enumerate(generated_maps(chosen.maps, chosen.first))} or {
        "4x4": "4x4"
    }
    rows, good = [], True
    for kind in chosen.kinds:
        done = []
        for name, text in maps.items():
            for seed in chosen.seeds:
                folder = None if chosen.out is None else chosen.out / name.replace(" ", "-")
                found = certify_training(kind, seed, text, chosen.beta, folder, chosen.prompt, chosen.vocabulary)
                print(told(found, name), flush=True)
                done.append(found)
                setting = {"map": name, "prompt": chosen.prompt, "vocabulary": chosen.vocabulary}
                rows.append({**asdict(found), **setting, "passed": found.passed})
        passed = [found.passed for found in done]
        times = sum(found.seconds for found in done) / len(done)
        print(f"{kind}: {sum(passed)} of {len(passed)} pass, {times:.1f} s each")
        for failed in (found for found in done if not found.passed):
            print(f"  failed: {kind} seed {failed.seed} beta {failed.beta:g}\n{failed.map}")
        good &= chosen.maps > 0 or sum(passed) >= needed * len(passed)
    print(json.dumps(rows))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
