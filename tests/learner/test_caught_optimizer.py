"""Checks that a mutant of ``learner/optimizer.py`` showed to be missing."""

from __future__ import annotations

import pytest
import torch

from tests import tiny
from tests.learner.support import batch, policy
from upslope.learner.optimizer import OptimizerSettings, unrounded
from upslope.maths.losses import nll
from upslope.maths.weighting import token_mean


def test_settings_that_are_not_given() -> None:
    settings = OptimizerSettings(2.0, 10)
    assert (settings.warmup, settings.decay, settings.clip_norm, settings.boosts) == (0, "constant", 1.0, None)
    assert [settings.rate(step) for step in (0, 9, 99)] == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_a_decay_of_two_steps_ends_at_a_tenth_and_stays_there(decay: str) -> None:
    settings = OptimizerSettings(1.0, 2, 0, decay)  # type: ignore[arg-type]
    assert [settings.rate(step) for step in (0, 1, 2, 50)] == pytest.approx([1.0, 0.1, 0.1, 0.1])


def test_the_random_points_of_masters_are_the_same_in_every_version() -> None:
    """A run is repeated by its seed: other random points would make another run of it."""
    assert unrounded(torch.ones(4, dtype=torch.bfloat16), "w").tolist() == [
        float.fromhex(number) for number in ("0x1.ff9fa2p-1", "0x1.00eec6p+0", "0x1.000e0ep+0", "0x1.ff0762p-1")
    ]


def test_a_state_is_out_of_the_graph_and_stays_as_it_was_given() -> None:
    learner = policy(tiny.served(dtype=torch.bfloat16))

    def update() -> None:
        rows = batch()
        learner.gradient(rows, rows, token_mean(rows.mask), lambda found, _: (nll(found.logprobs), {}))
        learner.step()

    update()
    given = {name: tensor.clone() for name, tensor in learner.state().tensors.items()}
    assert not any(tensor.requires_grad for tensor in learner.state().tensors.values())
    kept = learner.state()
    kept = type(kept)({name: tensor.clone() for name, tensor in kept.tensors.items()}, kept.values)
    learner.restore(kept)
    update()
    assert all(torch.equal(tensor, given[name]) for name, tensor in kept.tensors.items())
