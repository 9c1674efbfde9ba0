"""Do PPO and GRPO solve gridworlds, from any seed, on any map, with one setting? Against the exact solution.

    python bench/grid.py                                # the built-in world, 20 seeds; 20 generated maps, 6x6 to 12x12
    python bench/grid.py --learn ppo --seeds 5          # less
    python bench/grid.py --blocked bump                 # walls that are bumped into
    python bench/grid.py --lesson                       # what the inputs do at walls: one-hot, (x, y), Fourier features

A run passes if at its end the greedy policy is optimal from every start, J* - J < 0.05 and, where there is a critic,
its root mean square error against V^pi is below 0.1; all measured exactly. Prints a line a run, the failures, and a
summary as JSON on the last line. Settings are the defaults of ``GridRecipe``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from statistics import fmean, median
from typing import Any

import torch

from upslope.recipes.grid import train
from upslope.recipes.grid_config import GridRecipe
from upslope.types import GridTraining
from upslope.worlds.grid_maps import generate
from upslope.worlds.gridworld import SIX_BY_SIX, Blocked, Gridworld, parse

LARGEST_GAP, LARGEST_ERROR = 0.05, 0.1
SIDES = tuple(range(6, 13))


def worlds(seeds: range, blocked: Blocked) -> Iterator[tuple[str, int, Gridworld]]:
    """(name, seed of the run, world): the built-in world once a seed, and a generated map for each seed."""
    for seed in seeds:
        yield "built-in", seed, parse(SIX_BY_SIX, blocked=blocked)
    for seed in seeds:
        side = SIDES[seed % len(SIDES)]
        yield f"{side}x{side} map {seed}", seed, parse(generate(side, side, seed), blocked=blocked)


def passes(found: GridTraining) -> bool:
    truth = found.last.truth
    critic = truth.critic_rmse is None or truth.critic_rmse < LARGEST_ERROR
    return truth.optimal_share == 1.0 and truth.gap < LARGEST_GAP and critic


def measured(name: str, world: Gridworld, recipe: GridRecipe) -> dict[str, Any]:
    """One training run and its exact errors. ``seconds`` is wall time, ``cpu`` this process's, both of learning and
    measuring."""
    begun, cpu = time.perf_counter(), time.process_time()
    found = train(world, recipe)
    truth = found.last.truth
    row = {
        "world": name, "learn": recipe.learn, "seed": recipe.seed, "features": recipe.features,
        "states": len(world.cells) - len(world.terminals), "passed": passes(found),
        "optimal_share": truth.optimal_share, "gap": truth.gap, "value_gap": truth.value_gap,
        "critic_rmse": truth.critic_rmse, "moves": found.last.moves,
        "seconds": time.perf_counter() - begun, "cpu": time.process_time() - cpu,
    }  # fmt: skip
    critic = "" if truth.critic_rmse is None else f"  critic {truth.critic_rmse:.4f}"
    print(
        f"{'pass' if row['passed'] else 'FAIL'}  {recipe.learn:5s} {name:14s} seed {recipe.seed:3d}  "
        f"share {truth.optimal_share:.3f}  gap {truth.gap:.4f}{critic}  {found.last.moves} moves  {row['cpu']:.1f} s",
        flush=True,
    )
    return row


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of rows that belong together."""
    critics = [row["critic_rmse"] for row in rows if row["critic_rmse"] is not None]
    return {
        "runs": len(rows),
        "passed": sum(row["passed"] for row in rows),
        "optimal": sum(row["optimal_share"] == 1.0 for row in rows),
        "worst_gap": max(row["gap"] for row in rows),
        "median_gap": median(row["gap"] for row in rows),
        "worst_critic_rmse": max(critics) if critics else None,
        "median_critic_rmse": median(critics) if critics else None,
        "mean_cpu_seconds": fmean(row["cpu"] for row in rows),
        "longest_cpu_seconds": max(row["cpu"] for row in rows),
        "failures": [f"{row['world']} seed {row['seed']}" for row in rows if not row["passed"]],
    }


def certify(learners: list[str], seeds: range, blocked: Blocked) -> dict[str, Any]:
    """Every learner on every world, summed up by learner and kind of world."""
    found = {}
    for learn in learners:
        rows = [
            measured(name, world, GridRecipe.model_validate({"learn": learn, "seed": seed}))
            for name, seed, world in worlds(seeds, blocked)
        ]
        built_in = [row for row in rows if row["world"] == "built-in"]
        found[f"{learn}, built-in"] = summary(built_in)
        found[f"{learn}, generated"] = summary([row for row in rows if row not in built_in])
    return found


def lesson(seeds: range) -> dict[str, Any]:
    """PPO on the built-in world by input features and kind of wall."""
    found = {}
    blocked: Blocked
    for blocked in ("mask", "bump"):
        for features in ("one-hot", "xy", "fourier"):
            rows = []
            for seed in seeds:
                recipe = GridRecipe.model_validate({"seed": seed, "features": features})
                rows.append(measured(f"{features}, {blocked}", parse(SIX_BY_SIX, blocked=blocked), recipe))
            found[f"{features}, {blocked}"] = summary(rows)
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--learn", nargs="+", default=["ppo", "grpo"])
    arguments.add_argument("--seeds", type=int, default=20)
    arguments.add_argument("--first", type=int, default=0, help="the first seed")
    arguments.add_argument("--blocked", choices=["mask", "bump"], default="mask")
    arguments.add_argument("--lesson", action="store_true")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    seeds = range(given.first, given.first + given.seeds)
    found = lesson(seeds) if given.lesson else certify(given.learn, seeds, given.blocked)
    print("\n| | passed | policy optimal | worst gap | worst critic error | mean s | longest s |")
    print("|---|---|---|---|---|---|---|")
    for name, row in found.items():
        critic = "" if row["worst_critic_rmse"] is None else f"{row['worst_critic_rmse']:.3f}"
        print(
            f"| {name} | {row['passed']} of {row['runs']} | {row['optimal']} | {row['worst_gap']:.4f} | {critic} | "
            f"{row['mean_cpu_seconds']:.1f} | {row['longest_cpu_seconds']:.1f} |"
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
