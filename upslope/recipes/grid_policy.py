"""A policy network alone, on a grid: ``ratio x gain``, without a clip and without a critic.

``train`` (the seed of PPO): gain = outcome - V^pi(s), where the prediction is the exact value of the policy that
walked, *at the state that the move departs from*. With the prediction at the state arrived at, the expected gain of
every move would be 0 and nothing could be learned.

``train_reinforce`` (Williams 1992; Sutton and Barto, section 13.4): gain = outcome, minus the mean outcome of the batch
unless ``baseline`` is none.

The first optimizer step of a batch has ratio 1: its gradient is that of ``-gain * log pi``, the policy gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from upslope.maths import weighting
from upslope.recipes import grid_lab
from upslope.recipes.grid_diary import Diary, Study
from upslope.recipes.grid_lab import Lab, look_up, walkers
from upslope.worlds.walks import Transitions

Gains: TypeAlias = Callable[[Lab, Transitions, Tensor], tuple[Tensor, Study]]
"""Gain [batch, time] of each move of whole episodes, given pi [states, actions]; and the same for the record."""


def train(lab: Lab, diary: Diary) -> None:
    """The policy network with the exact V^pi as its prediction."""
    _train(lab, diary, against_exact_values)


def train_reinforce(lab: Lab, diary: Diary) -> None:
    """REINFORCE: reward-to-go, with or without the batch's mean as the baseline."""
    _train(lab, diary, against_the_mean)


def _train(lab: Lab, diary: Diary, gains: Gains) -> None:
    """Episodes, outcomes, gains, ratio x gain, update."""
    recipe, policy = lab.recipe, lab.policy()
    policy_steps = grid_lab.adam(policy, recipe)
    for iteration in range(recipe.iterations):
        entropy_coef = grid_lab.anneal(recipe, iteration, policy_steps)
        table = lab.log_table(policy)
        starts = lab.starts(walkers(recipe), iteration)
        batch = lab.episodes(look_up(table), starts, iteration)
        gain, study = gains(lab, batch, lab.policy_table(table))
        diary.count(batch)
        if iteration == 0:
            diary.write(0, lab.policy_table(table), None, study, table)
        moves = grid_lab.targets_of(batch, grid_lab.scaled(gain, batch.mask)).flat()
        for number, rows in enumerate(grid_lab.minibatches(recipe, len(moves.state), iteration)):
            found = moves.take(rows)
            logprobs = lab.log_probs(policy, found.state)
            loss = grid_lab.policy_loss(logprobs, found, recipe.clip, entropy_coef, first=number == 0)
            grid_lab.step(policy, policy_steps, (weighting.token_mean(found.mask) * loss).sum(), grid_lab.POLICY_NORM)
        table = lab.log_table(policy)
        diary.write(iteration + 1, lab.policy_table(table), None, study, table)


def against_exact_values(lab: Lab, batch: Transitions, policy: Tensor) -> tuple[Tensor, Study]:
    """``outcome - V^pi(s)``, s the departing state. An episode that was cut goes on from V^pi."""
    exact = lab.exact.policy_values(policy)
    prediction, outcome = exact[batch.state], batch.outcomes(exact, lab.recipe.discount)
    gain = (outcome - prediction).masked_fill(~batch.mask, 0.0)
    return gain, Study(batch, prediction, outcome, gain)


def against_the_mean(lab: Lab, batch: Transitions, policy: Tensor) -> tuple[Tensor, Study]:
    """``outcome - mean outcome of the batch's moves``, or the outcome alone. An episode that was cut earned what it
    earned: nothing estimates the rest."""
    outcome = batch.outcomes(torch.zeros(lab.states, dtype=torch.float64), lab.recipe.discount)
    if lab.recipe.baseline == "none":
        return outcome, Study(batch, None, outcome, outcome)
    mean = (weighting.token_mean(batch.mask, torch.float64) * outcome).sum()
    others = batch.moves / max(batch.moves - 1, 1) if lab.recipe.baseline == "leave_one_out" else 1.0
    gain = ((outcome - mean) * others).masked_fill(~batch.mask, 0.0)
    return gain, Study(batch, None, outcome, gain)
