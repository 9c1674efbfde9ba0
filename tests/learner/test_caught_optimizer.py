"""Checks that a mutant of ``learner/optimizer.py`` showed to be missing."""

from __future__ import annotations

import pytest
import torch

from upslope.learner.optimizer import OptimizerSettings, unrounded


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
