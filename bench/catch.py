"""The catch: tables against networks as worlds grow, on cells that were visited and on cells that never were.

    python bench/catch.py                       # 10x10, 32x32, 100x100
    python bench/catch.py --sizes 32 --seed 1

See ``upslope/recipes/grid_catch.py`` for the experiment. Prints a table a size, and everything as JSON on the last
line.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

import torch

from upslope.recipes.grid_catch import CatchWorld, Contender, PolicyAnswers, ValueAnswers, catch_at


def answer(found: ValueAnswers | PolicyAnswers) -> str:
    if found.cells == 0:
        return "no such cells"
    if isinstance(found, ValueAnswers):
        return f"{found.cells} cells: error {found.error:.2f} (V varies by {found.spread:.2f})"
    return f"{found.cells} cells: best move in {found.best_moves:.0%}, earns {found.earned:.1f} (best {found.best:.1f})"


def line(row: Contender) -> str:
    return (
        f"| {row.name} | {row.parameters} | {row.bytes / 1024:.0f} KiB | {row.seconds:.1f} s | {row.moves} | "
        f"{answer(row.visited)} | {answer(row.never)} |"
    )


def show(world: CatchWorld) -> None:
    print(
        f"\n{world.size}x{world.size}: {world.states} states, {world.starts} starts. Value iteration: {world.sweeps} "
        f"sweeps, {world.solve_seconds:.2f} s, table of values {world.table_bytes / 1024:.0f} KiB\n"
    )
    print("| | numbers | memory | time | moves | visited | never visited |\n|---|---|---|---|---|---|---|")
    for row in world.contenders:
        print(line(row), flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--sizes", type=int, nargs="+", default=[10, 32, 100])
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    worlds = []
    for size in given.sizes:
        worlds.append(catch_at(size, given.seed))
        show(worlds[-1])
    print(json.dumps([asdict(world) for world in worlds]))


if __name__ == "__main__":
    main()
