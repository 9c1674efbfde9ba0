"""Tabular Q-learning (Watkins 1989; Sutton and Barto, eq. 6.8) on a grid: no network, one number a state and action.

    Q(s, a) += step size * (r + discount * max_a' Q(s', a') - Q(s, a))

It plays the likeliest best move and, with probability ``epsilon``, one at random; ``epsilon`` falls to 0 and the step
size to a tenth. It learns about the greedy policy whatever it plays, so its values ``max_a Q`` are measured against V*,
while the policy that is measured is the one it plays.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from upslope.recipes.grid_diary import Diary, Study
from upslope.recipes.grid_lab import Lab, horizon
from upslope.worlds.walks import Transitions


def train(lab: Lab, diary: Diary) -> None:
    """Moves, and after them each move's update in the order in which they were made."""
    recipe, walks = lab.recipe, lab.walks()
    table = torch.zeros(lab.available.shape, dtype=torch.float64).masked_fill(~lab.available, -torch.inf)
    for iteration in range(recipe.iterations):
        left = 1.0 - iteration / recipe.iterations
        policy = epsilon_greedy(lab, table, (recipe.epsilon or 0.0) * left)
        batch = walks.collect(policy, recipe.moves, horizon(recipe))
        values = best(lab, table)
        diary.count(batch)
        before = Study(batch, values[batch.state], batch.outcomes(values, recipe.discount), None)
        if iteration == 0:
            diary.write(0, policy, values, before, target=lab.exact.optimal_values)
        gain = learn_from(lab, batch, table, recipe.lr * (0.1 + 0.9 * left))
        study = Study(batch, before.value, before.outcome, gain)
        left = 1.0 - (iteration + 1) / recipe.iterations
        played = epsilon_greedy(lab, table, (recipe.epsilon or 0.0) * left)
        diary.write(iteration + 1, played, best(lab, table), study, target=lab.exact.optimal_values)


def learn_from(
    lab: Lab, batch: Transitions, table: Float[Tensor, "states actions"], step_size: float
) -> Float[Tensor, "batch time"]:
    """Update ``table`` in place; returns the TD error of each move. Walkers that make the same move at the same time
    share one step towards their mean. Where an episode is cut its end still has a value; where it terminated none."""
    errors = []
    for time in range(batch.state.shape[1]):
        place = (batch.state[:, time], batch.action[:, time])
        after = best(lab, table)[batch.next_state[:, time]]
        error = batch.reward[:, time] + lab.recipe.discount * after - table[place]
        times = torch.zeros_like(table).index_put(place, torch.ones_like(error), accumulate=True)[place]
        table.index_put_(place, step_size * error / times, accumulate=True)
        errors.append(error)
    return torch.stack(errors, dim=1)


def best(lab: Lab, table: Float[Tensor, "states actions"]) -> Float[Tensor, " states"]:
    """``max_a Q(s, a)`` over the moves that exist; 0 in terminal states."""
    return table.amax(dim=1).masked_fill(lab.mdp.terminal, 0.0)


def epsilon_greedy(lab: Lab, table: Float[Tensor, "states actions"], epsilon: float) -> Float[Tensor, "states actions"]:
    """The first best move, and each move that exists with equal shares of ``epsilon``; 0 in terminal states."""
    available = lab.mdp.available & ~lab.mdp.terminal.unsqueeze(1)
    uniform = available.to(table.dtype) / available.sum(dim=1, keepdim=True).clamp(min=1)
    greedy = torch.zeros_like(table).scatter(1, table.argmax(dim=1, keepdim=True), 1.0)
    return ((1.0 - epsilon) * greedy + epsilon * uniform).masked_fill(lab.mdp.terminal.unsqueeze(1), 0.0)
