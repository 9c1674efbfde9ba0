"""Trainings on the grid in a table: how far each algorithm is from the exact answers, and how many seeds pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from rich.table import Table
from rich.text import Text

from upslope.types import GridTraining, GridTruth
from upslope.views.numbers import MISSING, duration
from upslope.views.safe_text import clean

COLUMNS = (
    "algorithm",
    "seeds",
    "J* - J",
    "max V* - V^pi",
    "critic rmse",
    "optimal starts",
    "moves",
    "time",
    "policy passes",
    "critic passes",
)
GAP_GATE, RMSE_GATE = 0.05, 0.1
"""A policy passes if it is greedily optimal from every start and J* - J is below the first, in points; a critic if its
rmse against V^pi is below the second."""


def policy_passes(truth: GridTruth) -> bool:
    """The gate of the policy, apart from the critic's."""
    return truth.optimal_share == 1.0 and truth.gap < GAP_GATE


def critic_passes(truth: GridTruth) -> bool:
    """The gate of the critic, apart from the policy's; False without a critic."""
    return truth.critic_rmse is not None and truth.critic_rmse < RMSE_GATE


def truth_rows(trainings: Sequence[GridTraining]) -> list[tuple[str, ...]]:
    """A row of ``COLUMNS`` for each algorithm, in the order of their first training: the last snapshots' numbers.

    Means over seeds, for the errors with the worst in brackets where there are several. ``-`` where there is nothing to
    measure: no critic, or (for the policy's gate) a policy that was held fixed.
    """
    groups: dict[str, list[GridTraining]] = {}
    for training in trainings:
        groups.setdefault(training.algorithm, []).append(training)
    return [_row(name, group) for name, group in groups.items()]


def _row(name: str, group: Sequence[GridTraining]) -> tuple[str, ...]:
    truths = [training.last.truth for training in group]
    learned = any(map(_policy_moved, group))
    critics = [truth.critic_rmse for truth in truths if truth.critic_rmse is not None]
    return (
        clean(name, 40),
        str(len(group)),
        _points([truth.gap for truth in truths]),
        _points([truth.value_gap for truth in truths]),
        _points(critics),
        _mean_and_worst([100 * truth.optimal_share for truth in truths], lambda share: f"{share:.0f} %", min),
        _many(sum(training.last.moves for training in group) / len(group)),
        duration(sum(training.seconds for training in group) / len(group)),
        f"{sum(map(policy_passes, truths))} of {len(group)}" if learned else MISSING,
        f"{sum(map(critic_passes, truths))} of {len(group)}" if critics else MISSING,
    )


def _policy_moved(training: GridTraining) -> bool:
    return not torch.equal(training.snapshots[0].policy, training.last.policy)


def _many(number: float) -> str:
    """A count in three digits: 950, 61 k, 1.53 M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def _points(values: Sequence[float]) -> str:
    return _mean_and_worst(values, _point, max)


def _point(value: float) -> str:
    if not math.isfinite(value):
        return "infinite"
    return f"{value:.3f}" if value < 10 else f"{value:.2f}"


def _mean_and_worst(
    values: Sequence[float], write: Callable[[float], str], worst: Callable[[Sequence[float]], float]
) -> str:
    if not values:
        return MISSING
    mean = write(sum(values) / len(values))
    last = write(worst(values))
    return mean if last == mean else f"{mean} ({last})"


def truth_table(trainings: Sequence[GridTraining], title: str = "Against the exact answers") -> Table:
    """``truth_rows`` as a table for a terminal; what passes is green, what fails is red, in words too."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 0, 0, 1),
        caption=legend(),
    )
    table.caption_justify = "left"
    for number, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold", no_wrap=number == 0)
    for row in truth_rows(trainings):
        table.add_row(*(Text(cell.replace(" (", "\n(")) for cell in row[:-2]), *map(_colored, row[-2:]))
    return table


def _colored(passes: str) -> Text:
    if passes == MISSING:
        return Text(passes)
    passed, _, seeds = passes.partition(" of ")
    return Text(passes, "green" if passed == seeds else "red")


def truth_text(trainings: Sequence[GridTraining]) -> str:
    """``truth_rows`` as plain text in aligned columns, for logs and documents."""
    rows = [COLUMNS, *truth_rows(trainings)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(COLUMNS))]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join([*lines, legend()])


def legend() -> str:
    """What the numbers are and what passes."""
    return (
        "mean (worst) over seeds, in points, at the end of training; policy passes: the likeliest move is optimal from "
        f"every start and J* - J < {GAP_GATE:g}; critic passes: rmse against V^pi < {RMSE_GATE:g}"
    )
