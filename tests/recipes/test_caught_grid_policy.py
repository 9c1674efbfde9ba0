"""Checks that a mutant of ``recipes/grid_policy.py`` showed to be missing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.recipes.grid_support import walks_by_hand
from upslope.recipes import grid_policy
from upslope.recipes.grid_config import GridRecipe
from upslope.recipes.grid_lab import Lab, prepare
from upslope.worlds.gridworld import SIX_BY_SIX, parse


def made(baseline: str = "mean") -> tuple[Lab, Tensor]:
    lab = prepare(parse(SIX_BY_SIX), GridRecipe(baseline=baseline, discount=1.0))
    return lab, lab.policy_table(lab.log_table(lab.policy()))


@pytest.mark.parametrize(
    ("baseline", "gains"),
    [("none", [[5.0, 0.0], [-2.0, -1.0]]), ("mean", [[13 / 3, 0.0], [-8 / 3, -5 / 3]]),
     ("leave_one_out", [[13 / 2, 0.0], [-4.0, -5 / 2]])],
)  # fmt: skip
def test_gains_against_the_mean_by_hand(baseline: str, gains: list[list[float]]) -> None:
    """Outcomes 5, -2 and -1, whose mean is 2/3; one walk has a move less, the other was cut and earns no value."""
    lab, policy = made(baseline)
    batch = walks_by_hand([[5.0], [-1.0, -1.0]], ended=[True, False])
    gain, study = grid_policy.against_the_mean(lab, batch, policy)
    torch.testing.assert_close(gain, torch.tensor(gains, dtype=torch.float64))
    assert study.value is None and study.outcome.tolist() == [[5.0, 0.0], [-2.0, -1.0]]
    assert study.gain is gain


def test_leave_one_out_of_two_moves_takes_the_other_one() -> None:
    lab, policy = made("leave_one_out")
    gain, _ = grid_policy.against_the_mean(lab, walks_by_hand([[5.0], [-1.0]], ended=[True, True]), policy)
    assert gain.tolist() == [[6.0], [-6.0]]


def test_against_exact_values_a_move_that_was_not_made_gains_nothing() -> None:
    lab, policy = made()
    batch = walks_by_hand([[5.0], [-1.0, -1.0]], ended=[True, True])
    gain, study = grid_policy.against_exact_values(lab, batch, policy)
    value = float(lab.exact.policy_values(policy)[0])
    assert value != 0
    torch.testing.assert_close(
        gain, torch.tensor([[5.0 - value, 0.0], [-2.0 - value, -1.0 - value]], dtype=torch.float64)
    )
    assert study.gain is gain
