"""A value network alone, on a grid: ``(prediction - actual)^2`` on the outcomes of walks by a fixed policy.

The actual outcomes of a state are spread around V^pi of *the policy that walked*, and the mean is what a squared error
finds: the network approaches V^pi. It does not approach V*, the value of the best policy, however long it learns;
``GridTruth.value_gap`` says how far V^pi lies below V*.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from upslope.maths import bellman, weighting
from upslope.recipes import grid_lab
from upslope.recipes.grid_config import GridRecipe
from upslope.recipes.grid_diary import Diary, Study
from upslope.recipes.grid_lab import CriticTargets, Lab, look_up, walkers
from upslope.seeds import derive

MOST_KEPT = 20_000
"""Moves of a batch that are kept to learn from."""


def train(lab: Lab, diary: Diary) -> None:
    """Episodes of the fixed policy, outcomes, squared error, update.

    The policy never changes, so no walk grows old: each update draws from all walks so far.
    """
    recipe, critic, policy = lab.recipe, lab.critic(), fixed_policy(lab)
    critic_steps = grid_lab.adam(critic, recipe)
    log_policy = policy.log().masked_fill(lab.mdp.terminal.unsqueeze(1), 0.0)
    pool: list[CriticTargets] = []
    for iteration in range(recipe.iterations):
        grid_lab.anneal(recipe, iteration, critic_steps)
        batch = lab.episodes(look_up(log_policy), lab.starts(walkers(recipe), iteration), iteration)
        table = lab.value_table(critic)
        outcome = batch.outcomes(table, recipe.discount)
        study = Study(batch, table[batch.state], outcome, None)
        diary.count(batch)
        if iteration == 0:
            diary.write(0, policy, table, study)
        pool.append(
            thinned(CriticTargets(batch.mask, batch.state, table[batch.state], outcome).flat(), recipe, iteration)
        )
        for found in draws(recipe, pool, iteration):
            loss = grid_lab.value_loss(lab.values(critic, found.state), found)
            grid_lab.step(critic, critic_steps, (weighting.token_mean(found.mask) * loss).sum(), grid_lab.VALUE_NORM)
        diary.write(iteration + 1, policy, lab.value_table(critic), study)


def thinned(moves: CriticTargets, recipe: GridRecipe, iteration: int) -> CriticTargets:
    """All of the moves, or ``MOST_KEPT`` of them drawn at random: those of one walk tell much the same."""
    if len(moves.state) <= MOST_KEPT:
        return moves
    generator = torch.Generator().manual_seed(derive(recipe.seed, "thinned", iteration))
    return moves.take(torch.randperm(len(moves.state), generator=generator)[:MOST_KEPT])


def draws(recipe: GridRecipe, pool: list[CriticTargets], iteration: int) -> Iterator[CriticTargets]:
    """Moves of each optimizer step: ``epochs * minibatches`` of them, each as large as if it were cut from the newest
    walks alone, drawn from the whole pool with replacement."""
    every = CriticTargets(*(torch.cat([getattr(part, name) for part in pool]) for name in CriticTargets.__slots__))
    generator = torch.Generator().manual_seed(derive(recipe.seed, "minibatches", iteration))
    size = max(1, len(pool[-1].state) // recipe.minibatches)
    for _ in range(recipe.epochs * recipe.minibatches):
        yield every.take(torch.randint(len(every.state), (size,), generator=generator))


def fixed_policy(lab: Lab) -> Float[Tensor, "states actions"]:
    """The policy that walks: all moves equally likely, or the exact solution with ``epsilon`` random moves; 0 in
    terminal states."""
    available = lab.mdp.available & ~lab.mdp.terminal.unsqueeze(1)
    uniform = available.to(torch.float64) / available.sum(dim=1, keepdim=True).clamp(min=1)
    if lab.recipe.epsilon is None:
        return uniform
    best = bellman.greedy_policy(lab.exact.optimal_actions).masked_fill(~available, 0.0)
    # Where no policy ends there is no best move.
    best = torch.where((best == 0).all(dim=1, keepdim=True), uniform, best)
    return (1.0 - lab.recipe.epsilon) * best + lab.recipe.epsilon * uniform
