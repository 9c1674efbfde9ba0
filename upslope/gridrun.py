"""``upslope grid``: a world solved exactly, learned by networks, drawn; a table and a live page at the end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from upslope.errors import InputError
from upslope.maths import bellman
from upslope.recipes.grid import train
from upslope.recipes.grid_catch import CatchWorld, PolicyAnswers, ValueAnswers, catch_at
from upslope.recipes.grid_config import GridRecipe
from upslope.run.recipe import build
from upslope.types import GridSnapshot, GridTraining
from upslope.views.grid_page import write_grid_page
from upslope.views.grid_story import draw_story, one_each
from upslope.views.grid_table import truth_table
from upslope.views.grid_text import grid_text
from upslope.views.numbers import duration
from upslope.worlds.grid_truth import Exact, solve
from upslope.worlds.gridworld import SIX_BY_SIX, Gridworld, parse, read

LEARNERS = ("values", "policy", "ppo", "grpo", "reinforce", "q-learning")
LARGEST_TEXT = 1000
"""Free cells of a world that is still printed in the terminal, where it fits."""
ABOUT = {
    "values": "a value network alone, on walks of a fixed policy",
    "policy": "a policy network alone: ratio x gain",
    "ppo": "both at once: the clipped ratio, a critic",
    "grpo": "groups of walks from one start, no critic",
    "reinforce": "a policy network, gain = what followed",
    "q-learning": "a table of action values",
}


def grid_command(
    map_file: Path | None,
    options: Mapping[str, Any],
    learn: str | None,
    settings: Mapping[str, Any],
    seeds: Sequence[int],
    size: int | None,
    out: Path,
) -> GridOutcome | None:
    """What ``upslope grid`` does. ``options`` are ``gridworld.parse``'s, ``settings`` keys of ``GridRecipe``."""
    console = Console(emoji=False, highlight=False)
    if size is not None:
        with console.status(f"a world of {size} x {size}: a table and networks, about two minutes at 100"):
            found = [catch_at(each, seeds[0]) for each in ((10, 32, size) if size > 32 else (size,))]
        show_catch(found, console)
        return None
    world = parse(SIX_BY_SIX, **options) if map_file is None else read(map_file, **options)
    chosen = LEARNERS if learn is None else (learn,)
    recipes = [recipe_of(name, {**settings, "seed": seed}, "upslope grid") for name in chosen for seed in seeds]
    return run_grid(world, recipes, out, console, "the built-in world" if map_file is None else map_file.stem)


def recipe_of(learn: str, settings: Mapping[str, Any], where: str) -> GridRecipe:
    """A checked ``GridRecipe``. Raises InputErrors that name each wrong key."""
    return build({"learn": learn, **settings}, GridRecipe, where).recipe


@dataclass(frozen=True, slots=True, eq=False)
class GridOutcome:
    """What ``run_grid`` made: the exact solution, the trainings in order, the pictures by name, the page."""

    exact: Exact
    trainings: tuple[GridTraining, ...]
    pictures: Mapping[str, Path]
    page: Path


def run_grid(
    world: Gridworld, recipes: Sequence[GridRecipe], out: Path, console: Console, name: str = "the world"
) -> GridOutcome:
    """Solve ``world``, run every recipe on it, print a table, and write pictures and ``grid.html`` to ``out``.

    The recipes share a discount. Raises InputError where a start reaches no end or ``out`` cannot be written.
    """
    discount = recipes[0].discount
    exact = solve(world, discount)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(str(out), f"the folder cannot be made: {error.strerror}", "give another --out") from error
    show_solution(world, exact, console, name)
    trainings = tuple(_train_all(world, recipes, console))
    console.print(truth_table(trainings))
    begun = time.perf_counter()
    with console.status("drawing"):
        pictures = draw_story(world, exact, trainings, out)
        page = write_grid_page(out / "grid.html", world, one_each(trainings), discount)
    console.print(f"pictures: {out} ({', '.join(pictures)}), {time.perf_counter() - begun:.0f} s", style="dim",
                  markup=False, soft_wrap=True)  # fmt: skip
    console.print(f"live page: {page}", markup=False, soft_wrap=True)
    return GridOutcome(exact, trainings, pictures, page)


def show_solution(world: Gridworld, exact: Exact, console: Console, name: str) -> None:
    """The exact values and arrows, in the terminal where they fit, and the facts in a line."""
    policy = bellman.greedy_policy(exact.optimal_actions)
    free = len(world.cells) - len(world.terminals)
    words = "Values: best neighbour - cost. Arrows: towards the best neighbour, several where it is a tie."
    if world.slip or exact.discount < 1:
        words = "Values: what the best policy earns from here. Arrows: its moves, several where they tie."
    console.print(words, style="dim")
    drawn = grid_text(world, exact.optimal_values, policy, color=console.is_terminal) if free <= LARGEST_TEXT else None
    if drawn is not None and drawn.plain.index("\n") <= console.width:
        console.print(drawn)
    else:
        console.print("(The map is too large for this terminal: see the picture.)", style="dim")
    console.print(
        f"{name}: {world.rows} x {world.columns}, {free} free cells, {len(world.terminals)} ends; best expected "
        f"return J* = {exact.optimal_return:.3f} over {len(world.starts)} start{'s' * (len(world.starts) > 1)}, exact",
        markup=False, soft_wrap=True,
    )  # fmt: skip


def _train_all(world: Gridworld, recipes: Sequence[GridRecipe], console: Console) -> Iterable[GridTraining]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        for recipe in recipes:
            bar = progress.add_task(f"{recipe.learn}, seed {recipe.seed}", total=recipe.iterations)

            def show(snapshot: GridSnapshot, bar: TaskID = bar) -> None:
                progress.update(bar, completed=snapshot.iteration)

            found = train(world, recipe, show)
            progress.remove_task(bar)
            truth = found.last.truth
            parts = [f"{recipe.learn:10s} seed {recipe.seed}  {ABOUT[recipe.learn]}:"]
            if recipe.learn != "values":
                parts.append(f"J* - J = {truth.gap:.3f}, best from {truth.optimal_share:.0%} of the starts")
            if truth.critic_rmse is not None:
                parts.append(f"value error {truth.critic_rmse:.3f}")
            progress.console.print("  ".join(parts) + f"  ({found.seconds:.1f} s)", markup=False, soft_wrap=True)
            yield found


VALUE_WORDS = (
    "Walks begin in a few of the cells, so that many cells are never visited; which, is counted. Error: root mean "
    "square against the exact values of the policy that walked, in points; spread: the error of the best constant. "
    "Value iteration keeps one number a state and visits all of them in every sweep."
)
POLICY_WORDS = (
    "Best moves: share of cells where the likeliest move is a best one. Earned: what the policy earns from there on "
    "average, exactly, and the best that can be earned, in points, discount 0.99."
)


def show_catch(worlds: Sequence[CatchWorld], console: Console) -> None:
    """Two tables: who knows the values, and who knows the moves, where it has been and where it has never been."""
    for title, words, (head, *rows) in (
        ("The catch: values", VALUE_WORDS, value_rows(worlds)),
        ("The catch: moves", POLICY_WORDS, policy_rows(worlds)),
    ):
        table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False,
                      padding=(0, 0, 0, 1), caption=words, caption_justify="left")  # fmt: skip
        for number, name in enumerate(head):
            table.add_column(name, justify="left" if number == 1 else "right")
        for row in rows:
            table.add_row(*row)
        console.print(table)


def value_rows(worlds: Sequence[CatchWorld]) -> list[tuple[str, ...]]:
    """The values' table, its head first."""
    rows: list[tuple[str, ...]] = [("states", "contender", "numbers", "time", "visited cells", "error", "spread",
                                    "never visited", "error", "spread")]  # fmt: skip
    for world in worlds:
        states = f"{world.states:,}"
        rows.append((states, f"value iteration, {world.sweeps} sweeps", f"{world.table_bytes // 8:,}",
                     duration(world.solve_seconds), states, "exact", "", "0", "", ""))  # fmt: skip
        for found in world.contenders:
            if isinstance(found.visited, ValueAnswers) and isinstance(found.never, ValueAnswers):
                answers = [(f"{there.cells:,}", f"{there.error:.2f}", f"{there.spread:.2f}")
                           for there in (found.visited, found.never)]  # fmt: skip
                rows.append(
                    (states, found.name, f"{found.parameters:,}", duration(found.seconds), *answers[0], *answers[1])
                )
    return rows


def policy_rows(worlds: Sequence[CatchWorld]) -> list[tuple[str, ...]]:
    """The moves' table, its head first."""
    rows: list[tuple[str, ...]] = [("states", "contender", "numbers", "time", "visited cells", "best moves", "earned",
                                    "never visited", "best moves", "earned")]  # fmt: skip
    for world in worlds:
        for found in world.contenders:
            if isinstance(found.visited, PolicyAnswers) and isinstance(found.never, PolicyAnswers):
                answers = [(f"{there.cells:,}", f"{there.best_moves:.0%}", f"{there.earned:.1f} of {there.best:.1f}")
                           for there in (found.visited, found.never)]  # fmt: skip
                rows.append((f"{world.states:,}", found.name, f"{found.parameters:,}", duration(found.seconds),
                             *answers[0], *answers[1]))  # fmt: skip
    return rows
