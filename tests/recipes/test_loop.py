"""The cursor of a run: open, add, close, and back from its state."""

from __future__ import annotations

import torch

from tests.learner.support import batch
from upslope.recipes.loop import Loop
from upslope.recipes.rollouts import rows_of_step
from upslope.recipes.sft import SftTargets
from upslope.types import State


def copied(state: State) -> State:
    return State({name: tensor.clone() for name, tensor in state.tensors.items()}, dict(state.values))


def test_close_gives_the_collections_metrics_and_means_over_the_updates_that_gave_them() -> None:
    loop = Loop(SftTargets)
    rows = batch()
    loop.open(rows, SftTargets(rows.mask), {"reward": 2.0})
    loop.add({"loss": 1.0, "sampler_gap/max": 5.0})
    loop.add({"loss": 4.0})
    assert loop.opened and loop.inner == 2
    assert loop.close() == {"reward": 2.0, "loss": 2.5, "sampler_gap/max": 5.0}
    assert (loop.step, loop.inner, loop.opened, loop.batch) == (1, 0, False, None)


def test_state_in_the_midst_of_a_step_comes_back_whole() -> None:
    loop, other = Loop(SftTargets), Loop(SftTargets)
    rows = batch()
    loop.step, loop.best = 4, 0.5
    loop.open(rows, SftTargets(rows.mask), {"reward": 2.0})
    loop.add({"loss": 1.0})
    other.restore(copied(loop.state()))
    assert (other.step, other.inner, other.best, other.metrics) == (4, 1, 0.5, {"reward": 2.0})
    assert other.batch is not None and other.targets is not None
    assert torch.equal(other.batch.token_ids, rows.token_ids) and other.batch.temperature == rows.temperature
    assert other.batch.support is None and torch.equal(other.targets.mask, rows.mask)
    assert other.close() == loop.close()


def test_restoring_between_steps_drops_the_rollouts_that_were_open() -> None:
    loop = Loop(SftTargets)
    kept = copied(loop.state())
    rows = batch()
    loop.open(rows, SftTargets(rows.mask), {"reward": 2.0})
    loop.restore(kept)
    assert loop.batch is None and loop.targets is None and not loop.opened


def test_every_pass_over_the_data_is_a_permutation_and_seeds_differ() -> None:
    data = list(range(7))
    taken = [row for step in range(14) for row in rows_of_step(data, 3, step, seed=1)]
    passes = [taken[start : start + 7] for start in range(0, 42, 7)]
    assert all(sorted(rows) == data for rows in passes)
    assert len({tuple(rows) for rows in passes}) > 1
    assert taken != [row for step in range(14) for row in rows_of_step(data, 3, step, seed=2)]
    assert rows_of_step(data, 3, 5, 1) == taken[15:18]
