"""Makes every picture of the docs, from exact solutions and real trainings: ``python docs/pictures.py``.

About a minute on one core. The same machine makes the same bytes again. ``docs/images/grid.png``, ``grid-page.png``
and ``report.png`` are made elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from torch import Tensor

import upslope
from upslope.maths import advantages, bellman, distributions, losses, weighting
from upslope.models.small import PolicyMlp, encode
from upslope.seeds import derive
from upslope.types import GridTraining
from upslope.views import grid_curves, grid_map, grid_networks, grid_values, grid_walk
from upslope.views.grid import grid_figure
from upslope.views.grid_canvas import BLANK, BLUE, INK, ORANGE, PAPER, color_of, number_text, save, scale_of
from upslope.views.grid_gif import training_gif
from upslope.views.grid_story import telling
from upslope.worlds.walks import episodes

IMAGES = Path(__file__).parent / "images"
WORLD = upslope.gridworld()
EXACT = upslope.solve(WORLD)
VALUES = {"learn": "values", "epsilon": 0.3, "iterations": 200, "walkers": 256, "seed": 1}
"""Settings of the value network's training in gridworld.md."""
CURVES, SEEDS = ("ppo", "grpo", "reinforce"), range(3)
GRPO = {"learn": "grpo", "iterations": 60, "minibatches": 4, "entropy_coef": 0.1, "seed": 0}
PAUSE, GROUP, GROUP_START, GROUP_SEED = 6, 6, (4, 3), 1
"""GRPO's picture: its settings, after how many updates, how many walks, from where, and their seed."""
SFT_START, SFT_STEPS = (5, 4), 100
WALK_COLOR = (0.84, 0.90, 0.96)


@cache
def training(**settings: Any) -> GridTraining:
    return upslope.grid(WORLD, **settings)


def network_values(found: GridTraining) -> Float[Tensor, " states"]:
    """What the value network says at the end."""
    if found.last.values is None:
        raise ValueError(f"{found.algorithm} has no value network")
    return found.last.values


# ------------------------------------------------------------------------------------------------------- gridworld.md
def solution() -> Figure:
    shown = WORLD.display_values(EXACT.optimal_values)
    return grid_figure(WORLD, shown, bellman.greedy_policy(EXACT.optimal_actions), "The world, solved exactly")


def sweeps() -> Figure:
    return grid_values.sweeps_figure(WORLD, bellman.value_iteration_sweeps(EXACT.mdp, 1.0))


def action_values() -> Figure:
    return grid_values.action_values_figure(WORLD, EXACT.optimal_actions)


def value_network() -> Figure:
    last = training(**VALUES).last
    values = network_values(training(**VALUES))
    title = "A value network; 3 moves in 10 are random"
    return grid_values.error_figure(WORLD, values, EXACT.policy_values(last.policy), title)


def coordinates() -> Figure:
    last = training(learn="ppo", features="xy", seed=0).last
    values = network_values(training(learn="ppo", features="xy", seed=0))
    title = "Inputs (x, y): the critic smears across walls"
    return grid_values.error_figure(WORLD, values, EXACT.policy_values(last.policy), title)


def networks() -> Figure:
    seen = training(learn="ppo", seed=0).portrait
    if seen is None:
        raise ValueError("PPO leaves a portrait of its networks")
    return grid_networks.network_figure(
        WORLD, WORLD.cells[seen.state], seen.inputs, seen.value_layers, seen.value, seen.policy_layers,
        seen.probabilities, "One state through both networks, after PPO",
    )  # fmt: skip


def walk() -> Figure:
    told = telling(training(learn="ppo", seed=0))
    return grid_walk.walk_figure(WORLD, told.walk, f"A walk of PPO, before update {told.iteration} and after it")


def clip() -> Figure:
    found = training(learn="ppo", seed=0)
    early = telling(found)
    title = f"The clip at work, update {early.iteration}"
    return grid_curves.clip_figure(early.ratios, early.gains, found.clip, title)


def curves() -> Figure:
    groups = {name: [training(learn=name, seed=seed) for seed in SEEDS] for name in CURVES}
    return grid_curves.curves_figure(groups, f"Three learners, {len(SEEDS)} seeds each")


# ---------------------------------------------------------------------------------------------------------- ladder.md
def imitate(
    states: Sequence[int], actions: Sequence[int], steps: int
) -> tuple[Float[Tensor, "states actions"], Float[Tensor, "states actions"]]:
    """The policy before and after ``steps`` gradient steps on the negative log-likelihood of one walk."""
    inputs, available = encode(WORLD, "one-hot", torch.float64), EXACT.mdp.available | EXACT.mdp.terminal.unsqueeze(1)
    policy = PolicyMlp(inputs.shape[1], 4, (64, 64), seed=0).double()
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.05)
    before = policy(inputs, available).exp().detach()
    rows, chosen = torch.tensor([list(states)]), torch.tensor([list(actions)])
    weights = weighting.token_mean(torch.ones_like(rows, dtype=torch.bool), torch.float64)
    for _ in range(steps):
        logprobs = distributions.chosen(policy(inputs, available)[rows], chosen)
        optimizer.zero_grad()
        (weights * losses.nll(logprobs)).sum().backward()
        optimizer.step()
    return before, policy(inputs, available).exp().detach()


def best_walk(start: tuple[int, int]) -> tuple[list[int], list[int]]:
    """States and moves of the best walk from ``start``; of equally good moves the first."""
    states, actions, state = [], [], WORLD.index[start]
    while not bool(EXACT.mdp.terminal[state]):
        states.append(state)
        actions.append(int(EXACT.optimal_actions[state].argmax()))
        state = WORLD.index[WORLD.neighbour(WORLD.cells[state], actions[-1]) or WORLD.cells[state]]
    return states, actions


def sft() -> Figure:
    states, actions = best_walk(SFT_START)
    panels = imitate(states, actions, SFT_STEPS)
    captions = ("before: every move is about as likely", f"after {SFT_STEPS} gradient steps on one walk")
    notes = ["blue: the cells of the walk that was imitated", "the longer the arrow, the likelier the move"]
    figure, axes = grid_map.panels(WORLD, captions, 2, "SFT: imitating one optimal walk", notes)
    scale, cell = scale_of(WORLD.terminals.values()), grid_map.cell_inches(WORLD, 2)
    paper = [WALK_COLOR if state in states else BLANK for state in range(len(WORLD.cells))]
    for at, points in WORLD.terminals.items():
        paper[WORLD.index[at]] = color_of(points, scale)
    for panel, policy in zip(axes, panels, strict=True):
        grid_map.draw_cells(panel, WORLD, paper)
        grid_map.draw_policy(panel, WORLD, policy, cell)
        grid_map.draw_terminals(panel, WORLD, paper, cell)
    return figure


def group() -> tuple[list[list[tuple[int, int]]], list[float], list[float]]:
    """Walks from one start as (state, action) pairs, their scores and group-relative advantages.

    The policy is GRPO's after ``PAUSE`` updates.
    """
    found = next(shot for shot in training(**GRPO).snapshots if shot.iteration == PAUSE)
    start = torch.full((GROUP,), WORLD.index[GROUP_START])
    batch = episodes(WORLD.sparse_mdp(), found.policy, start, 100, derive(GROUP_SEED, "picture"))
    scores = batch.outcomes(torch.zeros(len(WORLD.cells), dtype=torch.float64), 1.0)[:, 0]
    gains = advantages.group_relative(scores.unsqueeze(0), baseline="mean", scale="none")[0]
    walks = [
        list(zip(batch.state[row][batch.mask[row]].tolist(), batch.action[row][batch.mask[row]].tolist(), strict=True))
        for row in range(GROUP)
    ]
    return walks, scores.tolist(), gains.tolist()


def grpo() -> Figure:
    walks, scores, gains = group()
    mean = sum(scores) / len(scores)
    captions = [
        f"score {number_text(score, 0, sign=True)}, advantage {number_text(gain, 2, sign=True)}"
        for score, gain in zip(scores, gains, strict=True)
    ]
    title = f"GRPO: {GROUP} walks from one start; their mean score is {number_text(mean, 2, sign=True)}"
    notes = [
        "blue: better than the group's mean, all its moves become likelier", "orange: worse, they become less likely",
        f"the policy is GRPO's after {PAUSE} updates", "score: points of the end minus 1 a move",
        "advantage: score minus mean (GRPO then divides by the group's standard deviation)",
    ]  # fmt: skip
    figure, axes = grid_map.panels(WORLD, captions, 3, title, notes)
    scale, cell = scale_of(WORLD.terminals.values()), grid_map.cell_inches(WORLD, 3)
    paper = [BLANK] * len(WORLD.cells)
    for at, points in WORLD.terminals.items():
        paper[WORLD.index[at]] = color_of(points, scale)
    for panel, steps, gain in zip(axes, walks, gains, strict=True):
        grid_map.draw_cells(panel, WORLD, paper)
        grid_map.draw_terminals(panel, WORLD, paper, cell)
        outlines = []
        for state, action in steps:
            (row, column), (down, right) = WORLD.cells[state], grid_map.STEPS[WORLD.ACTIONS[action]]
            # Each arrow keeps to its right, so that there and back do not cover each other.
            x, y = column + 0.5 - 0.13 * down, row + 0.5 + 0.13 * right
            length = 0.5 if (row + down, column + right) in WORLD.terminals else 0.95
            outlines.append(grid_map.arrow(x, y, right, down, length, 1.4))
        color = BLUE if gain > 0 else ORANGE
        style: dict[str, Any] = {"facecolors": color, "edgecolors": PAPER, "linewidths": 0.4, "zorder": 5}
        panel.add_collection(PolyCollection(outlines, **style), autolim=False)
        first = grid_map.disc(GROUP_START[1] + 0.5, GROUP_START[0] + 0.5, 0.13)
        panel.add_collection(PolyCollection([first], facecolors=INK, edgecolors="none", zorder=6), autolim=False)
    return figure


PICTURES: Mapping[str, Callable[[], Figure]] = {
    "grid-solution": solution,
    "grid-sweeps": sweeps,
    "grid-action-values": action_values,
    "grid-value-network": value_network,
    "grid-networks": networks,
    "grid-walk": walk,
    "grid-clip": clip,
    "grid-curves": curves,
    "grid-coordinates": coordinates,
    "ladder-sft": sft,
    "ladder-grpo": grpo,
}
FILM = "grid-ppo"
"""The animation, ``grid-ppo.gif``."""


def main(names: Sequence[str]) -> None:
    """Make the pictures of these names; all of them without any."""
    torch.set_num_threads(1)
    IMAGES.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        if not names or name in names:
            sys.stdout.write(f"{save(draw(), IMAGES / f'{name}.png')}\n")
    if not names or FILM in names:
        sys.stdout.write(f"{training_gif(WORLD, training(learn='ppo', seed=0), IMAGES / f'{FILM}.gif')}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
