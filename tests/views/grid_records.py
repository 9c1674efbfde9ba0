"""Worlds, exact records of made-up trainings, and eyes for pictures."""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Tensor

from upslope.maths import bellman
from upslope.types import GridMove, GridSnapshot, GridTraining, GridTruth
from upslope.worlds.gridworld import SIX_BY_SIX, Gridworld, parse

SMALL = ". . +5\n. # .\n-1 . .\n"
MARKED = "S . ~3 +5\n. # ~3 .\nS~4 . # .\n. -1 # +2.5\n"
LOST = ". . +5\n# # #\n. # .\n"


def sized(rows: int, columns: int) -> Gridworld:
    """A map of that size with walls (never round a cell) and three ends."""
    walls = {(row, column) for row in range(1, rows, 3) for column in range(1, columns - 1, 4)}
    ends = {(0, columns - 1): "+5", (rows - 1, 0): "+4" if rows > 1 else ".", (rows // 2, columns // 2): "-1"}
    ends = ends if rows > 1 else {(0, columns - 1): "+1"}
    return parse(
        "\n".join(
            " ".join(ends.get((row, column), "#" if (row, column) in walls else ".") for column in range(columns))
            for row in range(rows)
        )
    )


SIZES = {"1x3": sized(1, 3), "6x6": parse(SIX_BY_SIX), "12x12": sized(12, 12), "30x30": sized(30, 30)}


def soft_policy(world: Gridworld, temperature: float) -> Tensor:
    """Softmax of the optimal action values (discount 1) over the moves that exist; uniform where all are lost."""
    mdp = world.mdp()
    values = bellman.action_values(mdp, bellman.optimal_values(mdp, 1.0), 1.0)
    lost = torch.isneginf(values).all(dim=1, keepdim=True)
    logits = torch.where(lost, 0.0, values / temperature).masked_fill(~mdp.available, -torch.inf)
    return torch.softmax(logits.masked_fill(mdp.terminal.unsqueeze(1), 0.0), dim=1)


def truth_of(world: Gridworld, policy: Tensor, values: Tensor | None) -> GridTruth:
    mdp, start = world.mdp(), world.start_distribution()
    best, worth = bellman.optimal_values(mdp, 1.0), bellman.policy_values(mdp, policy, 1.0)
    live = ~mdp.terminal
    error = None if values is None else (values - worth)[live]
    return GridTruth(
        optimal_return=float(start @ best),
        expected_return=float(start @ worth),
        value_gap=float((best - worth)[live].max()),
        optimal_share=1.0,
        critic_rmse=None if error is None else float(error.square().mean().sqrt()),
        critic_worst=None if error is None else float(error.abs().max()),
    )


def training_of(
    world: Gridworld, algorithm: str = "ppo", seed: int = 0, snapshots: int = 4, critic: bool = True
) -> GridTraining:
    """Exact solutions between a vague policy and a sharp one; the critic is V^pi and noise that fades."""
    draw, found = torch.Generator().manual_seed(seed), []
    for number in range(snapshots):
        done = number / max(snapshots - 1, 1)
        policy = soft_policy(world, 4 * math.exp(-5 * done) + 0.01 * seed)
        worth = bellman.policy_values(world.mdp(), policy, 1.0)
        noise = torch.randn(len(worth), generator=draw, dtype=torch.float64) * math.exp(-6 * done)
        values = (worth + noise).masked_fill(world.mdp().terminal, 0.0) if critic else None
        ratios = (0.2 * torch.randn(64, generator=draw, dtype=torch.float64)).exp()
        gains = torch.randn(64, generator=draw, dtype=torch.float64)
        truth = truth_of(world, policy, values)
        found.append(GridSnapshot(number, 1000 * number, policy, values, truth, (), ratios, gains))
    visits = torch.ones(len(world.cells), dtype=torch.long)
    return GridTraining(algorithm, seed, 1.0, 0.2, {}, tuple(found), visits, 2.0 + seed)


def walk_of(world: Gridworld, *path: tuple[tuple[int, int], str, tuple[int, int]], critic: bool = True) -> tuple:
    """Moves (cell, chosen action, next cell) with their true rewards and returns, and a made-up prediction."""
    moves: list[GridMove] = []
    outcome = 0.0
    for number, (here, action, there) in reversed(list(enumerate(path))):
        reward = world.terminals.get(there, 0.0) - world.cost(here)
        outcome += reward
        value = 0.25 * number - 1.0
        move = GridMove(
            state=world.index[here],
            action=world.ACTIONS.index(action),
            reward=reward,
            next_state=world.index[there],
            value=value if critic else None,
            outcome=outcome,
            gain=outcome - value if critic else None,
            ratio=1.0 + 0.1 * number if critic else None,
            clipped=number == 3 if critic else None,
        )
        moves.append(move)
    return tuple(reversed(moves))


# ----------------------------------------------------------------------------------------------------------------- eyes
def named(where: Figure | Axes, name: str) -> list:
    """Artists drawn under that name, in order."""
    return where.findobj(lambda artist: artist.get_gid() == name)


def numbers_of(axes: Axes, name: str = "number") -> dict[tuple[int, int], str]:
    """What is written in each cell."""
    return {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in named(axes, name)}


def cell_colors(axes: Axes) -> np.ndarray:
    (cells,) = named(axes, "cells")
    return cells.get_facecolor()


def middles(collection: PolyCollection) -> list[tuple[float, float]]:
    """Mean of the corners of each polygon of a collection (x, y)."""
    return [tuple(np.asarray(path.vertices)[:-1].mean(axis=0)) for path in collection.get_paths()]


def title_of(figure: Figure) -> str:
    (title,) = named(figure, "title")
    return title.get_text()


def notes_of(figure: Figure) -> str:
    return " ".join(text.get_text() for text in named(figure, "note"))


def _drawn_texts(figure: Figure) -> list[Text]:
    """Texts that are really drawn: no tick labels of axes without axes, or beyond their ends."""
    texts = list(figure.texts)
    for axes in [*figure.axes, *(inner for outer in figure.axes for inner in outer.child_axes)]:
        texts += [*axes.texts, axes.title, axes._left_title, axes._right_title]  # type: ignore[attr-defined]
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            low, high = sorted(axis.get_view_interval())
            texts += [axis.label, *(tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high)]
    return texts


def assert_readable(figure: Figure, least: float = 6.0) -> None:
    """Every text lies wholly on the picture, is large enough to read, and covers no other text."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer, (width, height) = canvas.get_renderer(), canvas.get_width_height()
    texts = [text for text in _drawn_texts(figure) if text.get_visible() and text.get_text().strip()]
    boxes = np.array([text.get_window_extent(renderer).extents for text in texts])
    words = [text.get_text() for text in texts]
    outside = (boxes[:, :2] < -0.5).any(1) | (boxes[:, 2] > width + 0.5) | (boxes[:, 3] > height + 0.5)
    assert not outside.any(), f"cut: {[word for word, out in zip(words, outside, strict=True) if out]}"
    small = [text.get_text() for text in texts if float(text.get_fontsize()) < least]
    assert not small, f"too small: {small[:5]}"
    low, high = boxes[:, :2] + 1, boxes[:, 2:] - 1
    apart = (low[:, None] >= high[None]).any(2) | (high[:, None] <= low[None]).any(2)
    pairs = np.argwhere(np.triu(~apart, 1))
    assert not len(pairs), f"overlap: {[(words[a], words[b]) for a, b in pairs[:5]]}"
