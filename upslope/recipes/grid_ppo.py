"""PPO (arXiv:1707.06347) on a grid: a policy network and a value network, both trained at the same time.

    A_t          GAE(discount, trace) of the rewards and V, at the state that the move departs from; a walk that was cut
                 goes on from V, one that ended does not
    policy loss  -min(rho_t A_t, clip(rho_t, 1 - clip, 1 + clip) A_t) - entropy_coef * H
    critic loss  value_coef * (V - (A_t + V_old))^2, value_coef = 1/2

GAE and the losses are the functions that ``recipes/ppo.py`` trains language models with.
"""

from __future__ import annotations

import torch

from upslope.maths import returns, weighting
from upslope.models.small import ValueMlp
from upslope.recipes import grid_lab
from upslope.recipes.grid_diary import Diary, Study
from upslope.recipes.grid_lab import CriticTargets, Lab, Targets, horizon, look_up
from upslope.worlds.walks import Transitions


def train(lab: Lab, diary: Diary) -> None:
    """Walks, values, advantages, both losses, both updates."""
    recipe, policy, critic, walks = lab.recipe, lab.policy(), lab.critic(), lab.walks()
    policy_steps, critic_steps = grid_lab.adam(policy, recipe), grid_lab.adam(critic, recipe)
    for iteration in range(recipe.iterations):
        entropy_coef = grid_lab.anneal(recipe, iteration, policy_steps, critic_steps)
        table = lab.log_table(policy)
        batch = walks.collect(look_up(table), recipe.moves, horizon(recipe))
        moves, predictions, study = learn_from(lab, batch, critic)
        diary.count(batch)
        if iteration == 0:
            diary.write(0, lab.policy_table(table), lab.value_table(critic), study, table)
        for number, rows in enumerate(grid_lab.minibatches(recipe, batch.moves, iteration)):
            found, goal = moves.take(rows), predictions.take(rows)
            weights = weighting.token_mean(found.mask)
            logprobs = lab.log_probs(policy, found.state)
            policy_loss = grid_lab.policy_loss(logprobs, found, recipe.clip, entropy_coef, first=number == 0)
            grid_lab.step(policy, policy_steps, (weights * policy_loss).sum(), grid_lab.POLICY_NORM)
            value_loss = recipe.value_coef * grid_lab.value_loss(lab.values(critic, goal.state), goal)
            grid_lab.step(critic, critic_steps, (weights * value_loss).sum(), grid_lab.VALUE_NORM)
        table = lab.log_table(policy)
        diary.write(iteration + 1, lab.policy_table(table), lab.value_table(critic), study, table)
    diary.portray(policy, critic)


def learn_from(lab: Lab, batch: Transitions, critic: ValueMlp) -> tuple[Targets, CriticTargets, Study]:
    """The critic's values at the departing states, GAE, and the critic's targets (the lambda-returns), a row a move."""
    recipe, table = lab.recipe, lab.value_table(critic)
    values, closed = table[batch.state], torch.zeros(len(batch.state), dtype=torch.float64)
    rewards, discounts = batch.closed(table, recipe.discount)
    gain = returns.gae(rewards, values, closed, batch.mask, discounts, recipe.trace)
    moves = grid_lab.targets_of(batch, grid_lab.scaled(gain, batch.mask))
    predictions = CriticTargets(batch.mask, batch.state, values, gain + values)
    study = Study(batch, values, batch.outcomes(table, recipe.discount), gain)
    return moves.flat(), predictions.flat(), study
