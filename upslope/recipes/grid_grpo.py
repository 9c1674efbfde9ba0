"""GRPO (arXiv:2402.03300) on a grid: several whole walks from one start are compared with each other; no critic.

    A_i    = (G_i - mean of the group) / std of the group     for every move of walk i, G_i its discounted return
    loss   = -min(rho A, clip(rho, 1 - clip, 1 + clip) A) - entropy_coef * H

A start is what a prompt is to a language model, a walk its completion. Every start cell begins one group a batch unless
``walkers`` says otherwise. ``advantages.group_relative`` is the function of ``recipes/grpo.py``.
"""

from __future__ import annotations

import torch

from upslope.maths import advantages, weighting
from upslope.recipes import grid_lab
from upslope.recipes.grid_diary import Diary, Study
from upslope.recipes.grid_lab import Lab, Targets, look_up, walkers
from upslope.worlds.walks import Transitions

SCALE = "std"
"""Groups in which walks differ little speak as loud as others: late in training such differences are all there is."""


def train(lab: Lab, diary: Diary) -> None:
    """Groups of walks, their returns, group-relative advantages, loss, update."""
    recipe, policy = lab.recipe, lab.policy()
    policy_steps = grid_lab.adam(policy, recipe)
    groups = max(1, walkers(recipe) // recipe.group)
    for iteration in range(recipe.iterations):
        entropy_coef = grid_lab.anneal(recipe, iteration, policy_steps)
        table = lab.log_table(policy)
        starts = lab.starts(groups, iteration).repeat_interleave(recipe.group)
        batch = lab.episodes(look_up(table), starts, iteration)
        targets, study = learn_from(lab, batch)
        diary.count(batch)
        if iteration == 0:
            diary.write(0, lab.policy_table(table), None, study, table)
        for number, rows in enumerate(grid_lab.minibatches(recipe, batch.moves, iteration)):
            found = targets.take(rows)
            logprobs = lab.log_probs(policy, found.state)
            loss = grid_lab.policy_loss(logprobs, found, recipe.clip, entropy_coef, first=number == 0)
            grid_lab.step(policy, policy_steps, (weighting.token_mean(found.mask) * loss).sum(), grid_lab.POLICY_NORM)
        table = lab.log_table(policy)
        diary.write(iteration + 1, lab.policy_table(table), None, study, table)


def learn_from(lab: Lab, batch: Transitions) -> tuple[Targets, Study]:
    """One advantage a walk, on each of its moves. A walk that was cut earned what it earned: there is no critic."""
    recipe = lab.recipe
    outcome = batch.outcomes(torch.zeros(lab.states, dtype=torch.float64), recipe.discount)
    whole = outcome[:, 0].reshape(-1, recipe.group)
    gain = advantages.group_relative(whole, recipe.baseline, SCALE).reshape(-1, 1) * batch.mask
    return grid_lab.targets_of(batch, gain).flat(), Study(batch, None, outcome, gain)
