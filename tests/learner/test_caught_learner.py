"""Checks that a mutant of ``learner/learner.py`` showed to be missing."""

from __future__ import annotations

from torch import Tensor

from tests import tiny
from tests.learner.support import batch, policy
from upslope.learner.learner import micro_batches
from upslope.maths import losses, weighting
from upslope.types import Batch, PolicyEvaluation


def nll(found: PolicyEvaluation, goal: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    return losses.nll(found.logprobs), {}


def test_micro_batches_go_from_the_unit_with_the_longest_row_down() -> None:
    assert micro_batches(batch([2, 9, 4, 7], [0, 1, 2, 3]), 11) == [[1], [3, 2], [0]]
    # By the longest row of a unit, not its shortest, its number, or its sum.
    assert micro_batches(batch([5, 5, 5, 2, 9], [0, 0, 0, 1, 1]), 1) == [[3, 4], [0, 1, 2]]


def test_the_version_counts_optimizer_steps_from_0() -> None:
    learner, rows = policy(tiny.served()), batch()
    assert (learner.version, learner.skipped) == (0, 0)
    for version in (1, 2):
        learner.gradient(rows, rows, weighting.token_mean(rows.mask), nll)
        learner.step()
        assert (learner.version, learner.skipped) == (version, 0)


def test_weights_are_given_out_of_the_graph() -> None:
    assert not any(tensor.requires_grad for _, tensor in policy(tiny.served()).weights())
