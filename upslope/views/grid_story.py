"""All pictures of a world and of what was learned in it, in the order of the story."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from upslope.maths import bellman
from upslope.types import GridSnapshot, GridTraining
from upslope.views import grid_curves, grid_networks, grid_values, grid_walk
from upslope.views.grid import grid_figure
from upslope.views.grid_canvas import save
from upslope.views.grid_gif import training_gif
from upslope.worlds.grid_truth import Exact
from upslope.worlds.gridworld import Gridworld

LARGEST_FILM = 400
"""States of a world that is still filmed."""


def draw_story(world: Gridworld, exact: Exact, trainings: Sequence[GridTraining], out: Path) -> dict[str, Path]:
    """Every picture that these trainings allow, as PNG files in the folder ``out``, and a GIF of PPO; by name."""
    made = {name: save(figure, out / f"{name}.png") for name, figure in _figures(world, exact, trainings)}
    film = _first(trainings, "ppo")
    if film is not None and len(world.cells) <= LARGEST_FILM:
        made["ppo-film"] = training_gif(world, film, out / "ppo-film.gif")
    return made


def one_each(trainings: Sequence[GridTraining]) -> list[GridTraining]:
    """The first training of each algorithm."""
    first: dict[str, GridTraining] = {}
    for training in trainings:
        first.setdefault(training.algorithm, training)
    return list(first.values())


def telling(training: GridTraining) -> GridSnapshot:
    """The snapshot whose walk shows most: of the walks of 4 to 10 moves in the first half, the one with the largest
    gains; else the one in the middle."""

    def weight(snapshot: GridSnapshot) -> float:
        return sum(abs(move.gain or 0.0) for move in snapshot.walk) / max(len(snapshot.walk), 1)

    half = training.snapshots[1 : len(training.snapshots) // 2]
    fitting = [snapshot for snapshot in half if 4 <= len(snapshot.walk) <= 10]
    return max(fitting, key=weight, default=training.snapshots[len(training.snapshots) // 2])


def _first(trainings: Sequence[GridTraining], algorithm: str) -> GridTraining | None:
    return next((training for training in trainings if training.algorithm == algorithm), None)


def _figures(world: Gridworld, exact: Exact, trainings: Sequence[GridTraining]) -> Iterator[tuple[str, Figure]]:
    shown, policy = world.display_values(exact.optimal_values), bellman.greedy_policy(exact.optimal_actions)
    yield "solution", grid_figure(world, shown, policy, "Solved exactly")
    yield "sweeps", grid_values.sweeps_figure(world, bellman.value_iteration_sweeps(exact.mdp, exact.discount))
    yield "action-values", grid_values.action_values_figure(world, exact.optimal_actions)
    for training in one_each(trainings):
        yield from _figures_of(world, exact, training)
    groups: dict[str, list[GridTraining]] = {}
    for training in trainings:
        if training.algorithm != "values":  # its policy never changes
            groups.setdefault(training.algorithm, []).append(training)
    if groups:
        yield "curves", grid_curves.curves_figure(groups)


def _figures_of(world: Gridworld, exact: Exact, training: GridTraining) -> Iterator[tuple[str, Figure]]:
    name, last, seed = training.algorithm, training.last, f"seed {training.seed}"
    true = exact.policy_values(last.policy)
    if name != "values":
        values = world.display_values(true if last.values is None else last.values)
        whose = "the policy's exact values" if last.values is None else "the values it predicts"
        yield name, grid_figure(world, values, last.policy, f"{name}, {seed}: {whose}, and its policy")
    if name in ("values", "ppo") and last.values is not None:
        yield f"{name}-error", grid_values.error_figure(world, last.values, true, f"{name}, {seed}: V_network - V^pi")
    if name != "ppo":
        return
    told, middle = telling(training), training.snapshots[len(training.snapshots) // 4]
    if told.walk:
        yield "ppo-walk", grid_walk.walk_figure(world, told.walk, f"A walk of PPO, update {told.iteration}")
    if len(middle.ratios):
        title = f"The clip at work, update {middle.iteration}"
        yield "ppo-clip", grid_curves.clip_figure(middle.ratios, middle.gains, training.clip, title)
    if training.portrait is not None:
        seen = training.portrait
        yield (
            "ppo-networks",
            grid_networks.network_figure(
                world, world.cells[seen.state], seen.inputs, seen.value_layers, seen.value, seen.policy_layers,
                seen.probabilities,
            ),
        )  # fmt: skip
