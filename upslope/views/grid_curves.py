"""Learning curves over seeds against the exact optimum, and the clip of PPO with a batch of real ratios."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from torch import Tensor

from upslope.errors import InputError
from upslope.maths.losses import clipped_surrogate
from upslope.types import GridSnapshot, GridTraining
from upslope.views.grid_canvas import (
    BLUE,
    INK,
    LINE,
    MARGIN,
    ORANGE,
    SOFT,
    TITLE,
    WIDTH,
    foot,
    place,
    sheet,
    text_width,
)

# Okabe and Ito's palette, which colour-blind readers tell apart.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#1c1d1f")
DASHES = ("-", "--", "-.", ":")
STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""97.5 % quantile of Student's t with 1, 2, ... 30 degrees of freedom."""
PANEL_HIGH, KEY = 3.3, 0.35  # inches, of a panel and of a line in the legend
LEAST_ERROR = 1e-5
"""Points; the axis of errors ends here, as a table's critic goes on to rounding errors."""

Curve = list[tuple[float, float]]


# --------------------------------------------------------------------------------------------------------------- curves
def curves_figure(groups: Mapping[str, Sequence[GridTraining]], title: str = "Learning curves") -> Figure:
    """J(pi) against environment moves, with the exact J* dashed; and the error of the critics, where there are any.

    ``groups`` are trainings by name, in one world, each with several seeds: thin lines are seeds, thick ones their
    mean, the band its 95 % interval (Student's t). Points where a number is infinite are left out, as J is where the
    policy may never end. Raises ``InputError`` where there is no training or the worlds differ in J*.
    """
    trainings = [training for group in groups.values() for training in group]
    if not trainings or any(not group for group in groups.values()):
        raise InputError("curves", "a group without trainings", "pass at least one training for each name")
    best = trainings[0].last.truth.optimal_return
    if any(not math.isclose(run.last.truth.optimal_return, best, abs_tol=1e-9) for run in trainings):
        raise InputError("curves", "trainings of worlds with different J*", "draw each world by itself")
    if not math.isfinite(best):
        raise InputError("curves", f"J* is {best}", "let every start have a way to an end")
    critics = {name: group for name, group in groups.items() if all(map(_has_critic, group))}
    notes = []
    if any(len(group) > 1 for group in groups.values()):
        notes += ["thin: each seed", "thick: their mean, with its 95 % interval"]
    values = [snapshot.truth.expected_return for run in trainings for snapshot in run.snapshots]
    errors = [error for group in critics.values() for run in group for _, error in _curve(run, _critic_rmse, log=True)]
    notes += (
        [f"critics are below the axis where they err by less than {LEAST_ERROR:g}"]
        if min(errors, default=1) < LEAST_ERROR
        else []
    )
    notes += [] if all(map(math.isfinite, values)) else ["left out: where J is -∞, as the policy may never end"]
    names = [f"{name} ({len(group)} seed{'' if len(group) == 1 else 's'})" for name, group in groups.items()]
    legend = _legend_places(names)
    head = TITLE + 0.28 * (1 + legend[-1][1]) + 0.35
    figure = sheet(head + PANEL_HIGH + 0.55 + foot(notes), title, notes)
    for number, (name, (x, line)) in enumerate(zip(names, legend, strict=True)):
        y = 1 - (TITLE + 0.08 + 0.28 * line) / figure.get_size_inches()[1]
        ends = (MARGIN + x) / WIDTH, (MARGIN + x + KEY) / WIDTH
        figure.add_artist(Line2D(ends, (y, y), linewidth=2.6, gid="key", **_line(number)))
        figure.text(ends[1] + 0.08 / WIDTH, y, name, va="center", fontsize=10, color=INK, gid="legend")
    room = WIDTH - 2 * MARGIN
    wide = (room - 1.75) / 2 if critics else room - 0.75
    left = place(figure, MARGIN + 0.6, head, wide, PANEL_HIGH)
    _chart(left, "J(π): expected points of an episode", "moves made in the world")
    left.axhline(best, color=INK, linewidth=1.3, linestyle=(0, (5, 3)), zorder=2, gid="optimum")
    label = f"J* = {best:.3f}".rstrip("0").rstrip(".")
    left.annotate(
        label, (1, best), xycoords=("axes fraction", "data"), xytext=(0, 4), textcoords="offset points",
        ha="right", va="bottom", fontsize=10, color=INK, weight="bold", gid="optimum",
    )  # fmt: skip
    for number, group in enumerate(groups.values()):
        _draw_group(left, number, group, lambda snapshot: snapshot.truth.expected_return, best)
    bottom, top = left.get_ylim()
    left.set_ylim(bottom, max(top, best) + 0.09 * (max(top, best) - bottom))
    if critics:
        right = place(figure, MARGIN + 0.6 + wide + 0.95, head, wide, PANEL_HIGH)
        _chart(right, r"critic's error: rmse of $V - V^{\,\pi}$, in points", "moves made in the world")
        right.set_yscale("log")
        for number, (name, group) in enumerate(groups.items()):
            if name in critics:
                _draw_group(right, number, group, _critic_rmse, log=True)
        right.set_ylim(bottom=max(right.get_ylim()[0], LEAST_ERROR))
        right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    return figure


def _critic_rmse(snapshot: GridSnapshot) -> float | None:
    return snapshot.truth.critic_rmse


def _has_critic(training: GridTraining) -> bool:
    return any(snapshot.truth.critic_rmse is not None for snapshot in training.snapshots)


def _legend_places(names: Sequence[str]) -> list[tuple[float, int]]:
    """Inches from the margin, and the line, at which each name's key stands."""
    places: list[tuple[float, int]] = []
    x, line = 0.0, 0
    for name in names:
        width = KEY + 0.08 + text_width(name) * 10 / 72
        if places and x + width > WIDTH - 2 * MARGIN:
            x, line = 0.0, line + 1
        places.append((x, line))
        x += width + 0.3
    return places


def _line(number: int) -> dict[str, Any]:
    """Colour and dashes of a group."""
    return {"color": PALETTE[number % len(PALETTE)], "linestyle": DASHES[number // len(PALETTE) % len(DASHES)]}


def _draw_group(
    axes: Axes,
    number: int,
    group: Sequence[GridTraining],
    read: Callable[[GridSnapshot], float | None],
    most: float = math.inf,
    log: bool = False,
) -> None:
    """One group's lines: each seed, their mean, its band (of the logarithms on a logarithmic axis; never above
    ``most``, which nothing can exceed)."""
    color = _line(number)["color"]
    curves = [_curve(training, read, log) for training in group]
    for curve in curves if len(curves) > 1 else []:
        if curve:
            axes.plot(*zip(*curve, strict=True), color=color, linewidth=0.8, alpha=0.4, zorder=2, gid="seed")
    middle = mean_and_band(curves, log)
    if not middle:
        return
    moves, mean, low, high = zip(*middle, strict=True)
    axes.plot(moves, mean, linewidth=2.2, zorder=4, gid="mean", **_line(number))
    if len(curves) > 1:
        tops = [min(top, most) for top in high]
        axes.fill_between(moves, low, tops, color=color, alpha=0.18, linewidth=0, zorder=1, gid="band")


def _curve(training: GridTraining, read: Callable[[GridSnapshot], float | None], log: bool) -> Curve:
    found = ((float(snapshot.moves), read(snapshot)) for snapshot in training.snapshots)
    return [(x, y) for x, y in found if y is not None and math.isfinite(y) and (y > 0 or not log)]


def mean_and_band(curves: Sequence[Curve], log: bool = False) -> list[tuple[float, float, float, float]]:
    """(moves, mean, low, high) at every point of any curve that lies within all of them.

    The curves are interpolated linearly; the band is ``mean +- t s / sqrt(n)`` with Student's t at 95 %, both of the
    logarithms where ``log`` says so. Empty where the curves share no range.
    """
    if not curves or not all(curves):
        return []
    start, end = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
    points = sorted({x for curve in curves for x, _ in curve if start <= x <= end})
    found = []
    for x in points:
        values = [_at(curve, x) for curve in curves]
        values = [math.log(value) for value in values] if log else values
        mean = sum(values) / len(values)
        half = 0.0
        if len(values) > 1:
            spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
            half = (STUDENT[len(values) - 2] if len(values) < 32 else 1.96) * spread / math.sqrt(len(values))
        three = (mean, mean - half, mean + half)
        found.append((x, *(math.exp(value) if log else value for value in three)))
    return found  # type: ignore[return-value]


def _at(curve: Curve, x: float) -> float:
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x0 <= x <= x1:
            return y0 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return curve[-1][1]


def _chart(axes: Axes, title: str, label: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=SOFT, pad=8)
    axes.set_xlabel(label, fontsize=10, color=SOFT)
    axes.grid(color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", labelsize=9.5, colors=INK, length=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(LINE)


# ----------------------------------------------------------------------------------------------------------------- clip
def clip_figure(
    ratios: Float[Tensor, " moves"],
    gains: Float[Tensor, " moves"],
    clip: float | None,
    title: str = "The clip at work",
) -> Figure:
    """PPO's objective ``min(r A, clip(r, 1 - clip, 1 + clip) A)`` against the ratio r, for A > 0 and for A < 0.

    Each move of the batch is a dot at its ratio and its own objective; the line is the objective of a move of the mean
    gain, both by ``maths.losses.clipped_surrogate`` itself. Crosses are moves whose gradient the clip removes; the
    title ends in their share. Raises ``InputError`` where there are no moves.
    """
    if len(ratios) == 0 or ratios.shape != gains.shape:
        raise InputError(
            "clip picture",
            f"found {len(ratios)} ratios and {len(gains)} gains",
            "pass the ratios and gains of a snapshot of a learner that has them",
        )
    ratios, gains = ratios.detach().cpu().double(), gains.detach().cpu().double()
    objective, clipped = _objective(ratios, gains, clip)
    share = 100 * int(clipped.sum()) / len(ratios)
    notes = ["dots: moves of the batch", "line: a move of the mean gain"]
    if clip is None:
        full = f"{title}: no clip, the plain ratio x gain of {len(ratios)} moves"
    else:
        full = f"{title}: {int(clipped.sum())} of {len(ratios)} moves clipped ({share:.1f} %)"
        notes += ["crosses: clipped, their gradient is 0", f"grey: ratios from {1 - clip:g} to {1 + clip:g}"]
    still = int((gains == 0).sum())
    notes += [f"not drawn: {still} of gain 0"] if still else []
    figure = sheet(TITLE + 0.3 + PANEL_HIGH + 0.55 + foot(notes), full, notes)
    wide = (WIDTH - 2 * MARGIN - 1.6) / 2
    reach = clip or 0.2
    low = min(float(ratios.min()), 1 - 2 * reach) - 0.05
    high = max(float(ratios.max()), 1 + 2 * reach) + 0.05
    for panel, (side, words) in enumerate(((gains > 0, "gain > 0: push up"), (gains < 0, "gain < 0: push down"))):
        axes = place(figure, MARGIN + 0.55 + panel * (wide + 0.95), TITLE + 0.3, wide, PANEL_HIGH)
        count = f"{int(side.sum())} moves" + ("" if clip is None else f", {int(clipped[side].sum())} clipped")
        _chart(axes, f"{words} ({count})", r"ratio $r = \pi_\mathrm{new} / \pi_\mathrm{old}$ of the move made")
        axes.set_ylabel(
            "objective: min(r A, clip(r) A)" if clip is not None else "objective: r A", fontsize=10, color=SOFT
        )
        if clip is not None:
            axes.axvspan(1 - clip, 1 + clip, color="#eceded", linewidth=0, zorder=0)
        axes.axvline(1.0, color=SOFT, linewidth=0.8, zorder=1)
        gain = float(gains[side].mean()) if bool(side.any()) else (1.0, -1.0)[panel]
        line = torch.linspace(max(low, 1e-3), high, 400, dtype=torch.float64)
        curve, _ = _objective(line, torch.full_like(line, gain), clip)
        axes.plot(line.tolist(), curve.tolist(), color=INK, linewidth=2.2, zorder=2, gid="objective")
        free, caught = side & ~clipped, side & clipped
        dots: dict[str, Any] = {"color": BLUE, "s": 16, "alpha": 0.55, "linewidths": 0, "zorder": 3}
        axes.scatter(ratios[free].tolist(), objective[free].tolist(), gid="free", **dots)
        crosses: dict[str, Any] = {"color": ORANGE, "s": 26, "marker": "x", "linewidths": 1.4, "zorder": 4}
        axes.scatter(ratios[caught].tolist(), objective[caught].tolist(), gid="clipped", **crosses)
        axes.set_xlim(low, high)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    return figure


def _objective(ratios: Tensor, gains: Tensor, clip: float | None) -> tuple[Tensor, Tensor]:
    """What each move adds to PPO's objective, and whether the clip acts on it."""
    logs = ratios.log().unsqueeze(0)
    loss, clipped = clipped_surrogate(logs, torch.zeros_like(logs), gains.unsqueeze(0), clip, clip)
    return -loss[0], clipped[0]
