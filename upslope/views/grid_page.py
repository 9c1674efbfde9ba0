"""``grid.html``: a gridworld to edit, solved at every change in the page itself, beside recorded trainings on it.

The page needs nothing but itself: one script named by its hash, data as JSON, no network. Value iteration runs in the
page (``assets/grid_solver.js``); every number about a training is computed here and stored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from upslope.errors import InputError
from upslope.maths.bellman import Mdp, SparseMdp, optimal_values, policy_values
from upslope.types import GridMove, GridSnapshot, GridTraining
from upslope.views.page import asset, document
from upslope.views.report import write_page
from upslope.views.safe_text import clean
from upslope.worlds.gridworld import Gridworld

MOST_EDITABLE = 30  # rows or columns; MOST_ROWS in grid_solver.js
DIGITS = 6  # significant digits of recorded numbers
MOST_MOVES = 60  # of a recorded walk
TABLE_BYTES = 3_000_000  # that the tables of all snapshots together may take, about
NUMBER_BYTES = 8
DENSE_STATES = 600  # beyond, a dense transition table would be large and slow
SCRIPTS = ("grid_solver.js", "grid_map.js", "grid_editor.js", "grid_training.js")


def write_grid_page(path: Path | str, world: Gridworld, trainings: Sequence[GridTraining], discount: float) -> Path:
    """Writes the page of ``world`` and of ``trainings`` recorded on it, and returns its path.

    ``discount`` is what the editor starts with; a training is measured with its own. For each snapshot that is kept,
    the exact V^pi of its policy is computed here. Recorded numbers are rounded to 6 significant digits; of large worlds
    fewer snapshots keep their tables, so that the file stays small, and the page says how many. Maps beyond 30 rows or
    columns are shown without the editor.

    Raises ``InputError`` where ``discount`` is outside [0, 1] or a training's tables do not fit the world, and
    ``MachineError`` where the file cannot be written.
    """
    return write_page(Path(path), grid_page(world, trainings, discount))


def grid_page(world: Gridworld, trainings: Sequence[GridTraining], discount: float) -> str:
    """The HTML document that ``write_grid_page`` writes."""
    if not 0.0 <= discount <= 1.0:
        raise InputError("discount", f"found {discount}, expected a number between 0 and 1", "use 1.0")
    for training in trainings:
        _check(world, training)
    data = {
        "world": _world(world, discount),
        "editable": max(world.rows, world.columns) <= MOST_EDITABLE,
        **_records(world, trainings),
    }
    ends = ", ".join(f"{points:+g}" for points in sorted(set(world.terminals.values()), reverse=True)[:8])
    free = len(world.cells) - len(world.terminals)
    subtitle = f"{world.rows} x {world.columns} cells, {free} of them free; ends worth {ends}"
    script = "(() => {\n'use strict';\n" + "\n".join(map(asset, SCRIPTS)) + "\n})();"
    return document(
        "Gridworld: exact beside learned" if trainings else "Gridworld, solved live", subtitle, asset("grid.html"),
        f"{asset('report.css')}\n{asset('grid.css')}", script,
        data=json.dumps(data, separators=(",", ":"), allow_nan=False),
    )  # fmt: skip


def _world(world: Gridworld, discount: float) -> dict[str, Any]:
    return {
        "rows": world.rows,
        "columns": world.columns,
        "cells": [_cell(world, (row, column)) for row in range(world.rows) for column in range(world.columns)],
        "step_cost": world.step_cost,
        "slip": world.slip,
        "blocked": world.blocked,
        "discount": discount,
    }


def _cell(world: Gridworld, cell: tuple[int, int]) -> list[Any]:
    if cell in world.walls:
        return ["#"]
    if cell in world.terminals:
        return ["t", world.terminals[cell]]
    return [".", world.costs.get(cell), world.starts_given and cell in world.starts]


# ----------------------------------------------------------------------------------------------------------- trainings
def _check(world: Gridworld, training: GridTraining) -> None:
    states, actions = len(world.cells), len(world.ACTIONS)
    where = f"training {clean(training.algorithm, 40)}, seed {training.seed}"
    if not training.snapshots:
        raise InputError(where, "it has no snapshot", "pass trainings with at least one snapshot")
    for snapshot in training.snapshots:
        shapes = [tuple(snapshot.policy.shape)] + ([] if snapshot.values is None else [tuple(snapshot.values.shape)])
        if shapes not in ([(states, actions)], [(states, actions), (states,)]):
            raise InputError(
                f"{where}, snapshot {snapshot.iteration}",
                f"tables of shape {shapes} do not fit {states} states and {actions} actions",
                "pass the world on which it was trained",
            )
        if any(not (0 <= move.state < states and 0 <= move.next_state < states) for move in snapshot.walk):
            raise InputError(
                f"{where}, snapshot {snapshot.iteration}",
                f"its walk leaves the {states} states of this world",
                "pass the world on which it was trained",
            )


def _records(world: Gridworld, trainings: Sequence[GridTraining]) -> dict[str, Any]:
    if not trainings:
        return {"trainings": [], "best": {}}
    mdp: Mdp | SparseMdp = world.mdp() if len(world.cells) <= DENSE_STATES else world.sparse_mdp()
    per_snapshot = len(world.cells) * (len(world.ACTIONS) + 2) * NUMBER_BYTES
    most = max(2, TABLE_BYTES // (per_snapshot * len(trainings)))
    best = {repr(discount): _numbers(optimal_values(mdp, discount)) for discount in {t.discount for t in trainings}}
    return {"trainings": [_training(mdp, training, most) for training in trainings], "best": best}


def _training(mdp: Mdp | SparseMdp, training: GridTraining, most: int) -> dict[str, Any]:
    count = len(training.snapshots)
    kept = sorted({round(k * (count - 1) / (most - 1)) for k in range(most)}) if count > most else range(count)
    return {
        "algorithm": clean(training.algorithm, 40),
        "seed": training.seed,
        "discount": training.discount,
        "best": repr(training.discount),
        "clip": training.clip,
        "settings": [[clean(str(name), 60), clean(str(value), 200)] for name, value in training.settings.items()],
        "seconds": _number(training.seconds),
        "visits": training.visits.tolist(),
        "curve": [_curve(snapshot) for snapshot in training.snapshots],
        "snapshots": [{"at": at, **_snapshot(mdp, training.snapshots[at], training.discount)} for at in kept],
    }


def _curve(snapshot: GridSnapshot) -> list[Any]:
    """In the order of FACTS in grid_training.js."""
    truth = snapshot.truth
    numbers = (truth.optimal_return, truth.expected_return, truth.value_gap, truth.optimal_share)
    return [
        snapshot.iteration,
        snapshot.moves,
        *map(_number, numbers),
        _number(truth.critic_rmse),
        _number(truth.critic_worst),
    ]


def _snapshot(mdp: Mdp | SparseMdp, snapshot: GridSnapshot, discount: float) -> dict[str, Any]:
    policy = snapshot.policy.detach().cpu()
    return {
        "policy": _numbers(policy.flatten()),
        "values": None if snapshot.values is None else _numbers(snapshot.values),
        "exact": _numbers(policy_values(mdp, policy, discount)),
        "walk": [_move(move) for move in snapshot.walk[:MOST_MOVES]],
        "walked": len(snapshot.walk),
    }


def _move(move: GridMove) -> list[Any]:
    """In the order that read() in grid_training.js takes."""
    numbers = (move.value, move.outcome, move.gain, move.ratio)
    return [
        move.state,
        move.action,
        _number(move.reward),
        move.next_state,
        *map(_number, numbers),
        None if move.clipped is None else bool(move.clipped),
    ]


def _numbers(values: Tensor) -> list[float | int | str | None]:
    return [_number(value) for value in _floats(values)]


def _floats(values: Tensor) -> Iterable[float]:
    return values.detach().cpu().tolist()


def _number(value: float | None) -> float | int | str | None:
    """Rounded; whole numbers without a fraction; words for what JSON has no number for."""
    if value is None:
        return None
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    rounded = float(f"{value:.{DIGITS}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 2**53 else rounded
