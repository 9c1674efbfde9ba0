"""Checks that a mutant of ``recipes/grid_grpo.py`` showed to be missing."""

from __future__ import annotations

import torch

from tests.recipes.grid_support import walks_by_hand
from upslope.recipes import grid_grpo
from upslope.recipes.grid_config import GridRecipe
from upslope.recipes.grid_lab import prepare
from upslope.worlds.gridworld import SIX_BY_SIX, parse


def test_a_walk_is_worth_what_it_earned_from_its_start_and_nothing_when_it_is_cut() -> None:
    lab = prepare(parse(SIX_BY_SIX), GridRecipe(group=2, baseline="mean", discount=1.0))
    batch = walks_by_hand([[-1.0, 5.0], [-1.0, -1.0]], ended=[True, False])
    targets, study = grid_grpo.learn_from(lab, batch)
    assert study.outcome.tolist() == [[4.0, 5.0], [-2.0, -1.0]]  # the second was cut: no value is added
    gains = targets.gain.tolist()  # a row a move: 4 and -2 have mean 1 and deviation 3 or sqrt(18)
    assert gains[0] == gains[1] and gains[2] == gains[3]
    assert torch.allclose(torch.tensor(gains[0]), -torch.tensor(gains[2])) and gains[0][0] > 0
    assert study.gain is not None and torch.equal(study.gain.flatten(), torch.tensor(gains).flatten())
    # What differs on the later move alone does not rank whole walks.
    equal, _ = grid_grpo.learn_from(lab, walks_by_hand([[-3.0, 5.0], [3.0, -1.0]], ended=[True, True]))
    assert not equal.gain.any()
