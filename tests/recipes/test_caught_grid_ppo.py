"""Checks that a mutant of ``recipes/grid_ppo.py`` showed to be missing."""

from __future__ import annotations

import torch

from upslope.recipes import grid_lab, grid_ppo
from upslope.recipes.grid_config import GridRecipe
from upslope.recipes.grid_lab import prepare
from upslope.worlds.gridworld import SIX_BY_SIX, parse


def test_what_is_studied_is_the_prediction_the_outcome_and_the_gain_of_each_move() -> None:
    lab = prepare(parse(SIX_BY_SIX), GridRecipe())
    critic = lab.critic()
    batch = lab.walks().collect(grid_lab.look_up(lab.log_table(lab.policy())), 32, 100)
    _, _, study = grid_ppo.learn_from(lab, batch, critic)
    table = lab.value_table(critic)
    assert study.value is not None and study.outcome is not None
    assert torch.equal(study.value, table[batch.state])
    assert torch.equal(study.outcome, batch.outcomes(table, lab.recipe.discount))
    assert not torch.equal(study.outcome, study.value)
