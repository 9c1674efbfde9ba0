"""What the learners of a gridworld share: the world in arrays, its exact solution, the networks, the minibatches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from upslope.maths import distributions, losses, weighting
from upslope.maths.bellman import SparseMdp
from upslope.models.small import PolicyMlp, ValueMlp, encode, policy_at, values_at
from upslope.recipes.grid_config import GridRecipe
from upslope.seeds import derive
from upslope.types import Rows
from upslope.worlds.grid_truth import Exact, solve
from upslope.worlds.gridworld import Gridworld
from upslope.worlds.walks import LogPolicy, Transitions, Walks, episodes

POLICY_NORM, VALUE_NORM = 0.5, 10.0
"""Largest norms of the gradients. A critic that starts far from its values needs room; half a point would hold it."""
ADAM_EPS = 1e-5


def settled(recipe: GridRecipe, states: int) -> GridRecipe:
    """``recipe`` with its nulls filled in for a world with ``states`` states that do not end.

    - ``horizon``: four times the states, at least 64: far beyond the longest best way, and an end to circles.
    - ``walkers``: enough that a batch tells something of every state. Rows of ``moves`` moves (ppo, q-learning): 40
      moves a state, at least 32 walkers. Whole episodes: 40 a state but at most 1000 for the value network, 8 a state
      for a policy network, one group a state for GRPO.
    """
    found = {}
    if recipe.horizon is None:
        found["horizon"] = max(64, 4 * states)
    if recipe.walkers is None:
        episodes = {"values": min(40 * states, 1000), "policy": 8 * states, "reinforce": 8 * states}
        episodes["grpo"] = recipe.group * states
        found["walkers"] = episodes.get(recipe.learn, max(32, -(-40 * states // recipe.moves)))
    return recipe.model_copy(update=found)


@dataclass(frozen=True, slots=True, eq=False)
class Lab:
    """A world ready for learning. ``inputs`` [states, features] are the encoded states.

    ``available`` is True for all actions of terminal states, where nothing is chosen, so that each row of a policy is
    a distribution. ``arrival`` [states]: points of the terminal cells.
    """

    recipe: GridRecipe
    mdp: SparseMdp
    start: Float[Tensor, " states"]
    exact: Exact
    inputs: Float[Tensor, "states features"]
    available: Bool[Tensor, "states actions"]
    arrival: Float[Tensor, " states"] | None

    @property
    def states(self) -> int:
        return len(self.inputs)

    def policy(self) -> PolicyMlp:
        sizes = (self.recipe.hidden, self.recipe.hidden)
        actions = self.available.shape[1]
        return PolicyMlp(self.inputs.shape[1], actions, sizes, derive(self.recipe.seed, "policy"))

    def critic(self) -> ValueMlp:
        sizes = (self.recipe.hidden, self.recipe.hidden)
        return ValueMlp(self.inputs.shape[1], sizes, derive(self.recipe.seed, "critic"))

    def walks(self) -> Walks:
        return Walks(self.mdp, self.start, walkers(self.recipe), self.recipe.seed, self.arrival)

    def episodes(self, policy: LogPolicy, starts: Int[Tensor, " batch"], iteration: int) -> Transitions:
        """A whole episode from each of ``starts``."""
        seed = derive(self.recipe.seed, "episode", iteration)
        return episodes(self.mdp, policy, starts, horizon(self.recipe), seed, self.arrival)

    def starts(self, count: int, iteration: int) -> Int[Tensor, " batch"]:
        """``count`` starts, each start cell as often as its share says, but for a remainder that is drawn."""
        generator = torch.Generator().manual_seed(derive(self.recipe.seed, "starts", iteration))
        first = torch.rand(1, generator=generator, dtype=torch.float64)
        places = (torch.arange(count, dtype=torch.float64) + first) / count
        return distributions.draw(self.start.log().expand(count, -1), places)

    def log_table(self, policy: PolicyMlp) -> Float[Tensor, "states actions"]:
        """log pi in every state, without gradient: what walks are drawn from."""
        with torch.no_grad():
            return policy(self.inputs, self.available)

    def policy_table(self, log_table: Float[Tensor, "states actions"]) -> Float[Tensor, "states actions"]:
        """pi in every state, in float64; 0 in terminal states."""
        return log_table.to(torch.float64).softmax(dim=1).masked_fill(self.mdp.terminal.unsqueeze(1), 0.0)

    def value_table(self, critic: ValueMlp) -> Float[Tensor, " states"]:
        """V_phi in every state, in float64 and without gradient; 0 in terminal states, which nobody departs from."""
        with torch.no_grad():
            return critic(self.inputs).to(torch.float64).masked_fill(self.mdp.terminal, 0.0)

    def log_probs(self, policy: PolicyMlp, state: Int[Tensor, "*n"]) -> Float[Tensor, "*n actions"]:
        return policy_at(policy, self.inputs, self.available, state)

    def values(self, critic: ValueMlp, state: Int[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return values_at(critic, self.inputs, state)


def prepare(world: Gridworld, recipe: GridRecipe) -> Lab:
    """Solve the world exactly and lay out what the learners need. Raises InputError, see ``grid_truth.solve``."""
    exact = solve(world, recipe.discount)
    arrival = torch.zeros(len(world.cells), dtype=torch.float64)
    for cell, points in world.terminals.items():
        arrival[world.index[cell]] = points
    return lab_of(
        world.sparse_mdp(), world.start_distribution(), exact, encode(world, recipe.features), recipe, arrival
    )


def lab_of(
    mdp: SparseMdp,
    start: Float[Tensor, " states"],
    exact: Exact,
    inputs: Float[Tensor, "states features"],
    recipe: GridRecipe,
    arrival: Float[Tensor, " states"] | None = None,
) -> Lab:
    """A ``Lab`` of any finite process; the recipe's nulls are filled in."""
    ready = settled(recipe, int((~mdp.terminal).sum()))
    return Lab(ready, mdp, start, exact, inputs, mdp.available | mdp.terminal.unsqueeze(1), arrival)


def look_up(log_table: Float[Tensor, "states actions"]) -> LogPolicy:
    """The policy that a table of log-probabilities holds."""
    return lambda state: log_table[state]


def walkers(recipe: GridRecipe) -> int:
    """``walkers`` of a settled recipe."""
    if recipe.walkers is None:
        raise ValueError("the recipe is not settled: walkers is null")
    return recipe.walkers


def horizon(recipe: GridRecipe) -> int:
    """``horizon`` of a settled recipe."""
    if recipe.horizon is None:
        raise ValueError("the recipe is not settled: horizon is null")
    return recipe.horizon


# --------------------------------------------------------------------------------------------------- learning, in parts
@dataclass(frozen=True, slots=True, eq=False)
class Targets(Rows):
    """What is fixed for all passes over a batch. ``gain`` is the advantage of the move at its *departing* state."""

    mask: Bool[Tensor, "batch time"]
    state: Int[Tensor, "batch time"]
    action: Int[Tensor, "batch time"]
    old_logprobs: Float[Tensor, "batch time"]
    gain: Float[Tensor, "batch time"]

    def flat(self) -> Targets:
        """One row a move, [moves, 1], masked positions left out: moves of all walks are shuffled together."""
        columns = (getattr(self, name) for name in Targets.__slots__)
        return Targets(*(flat(column, self.mask) for column in columns))


@dataclass(frozen=True, slots=True, eq=False)
class CriticTargets(Rows):
    """What the critic learns from a batch: its ``returns`` are to be predicted at ``state``."""

    mask: Bool[Tensor, "batch time"]
    state: Int[Tensor, "batch time"]
    old_values: Float[Tensor, "batch time"]
    returns: Float[Tensor, "batch time"]

    def flat(self) -> CriticTargets:
        """One row a move, as ``Targets.flat``."""
        columns = (getattr(self, name) for name in CriticTargets.__slots__)
        return CriticTargets(*(flat(column, self.mask) for column in columns))


def targets_of(batch: Transitions, gain: Float[Tensor, "batch time"]) -> Targets:
    """``Targets`` of a batch of moves."""
    return Targets(batch.mask, batch.state, batch.action, batch.logprob, gain)


def flat(column: Shaped[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]) -> Shaped[Tensor, "moves 1"]:
    """The entries where ``mask`` is True, row by row, each a row of its own."""
    return column[mask].unsqueeze(1)


def scaled(gain: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
    """Gains divided by their root mean square over the batch: steps of equal size in every world and at every time.

    Unlike whitening, which also takes the mean off, it never turns a gain into a loss.
    """
    size = (weighting.token_mean(mask, gain.dtype) * gain.square()).sum().sqrt()
    return gain / size.clamp(min=torch.finfo(gain.dtype).tiny)


def policy_loss(
    logprobs: Float[Tensor, "batch time actions"], found: Targets, clip: float | None, entropy_coef: float, first: bool
) -> Float[Tensor, "batch time"]:
    """``-(ratio x gain)``, clipped unless ``clip`` is None, minus the entropy bonus; one loss a move.

    In the ``first`` optimizer step since the walks the policy is the one that walked: its own detached
    log-probabilities are the old ones and the ratio is exactly 1.
    """
    chosen = distributions.chosen(logprobs, found.action)
    old = chosen.detach() if first else found.old_logprobs.to(chosen.dtype)
    per_move, _ = losses.clipped_surrogate(chosen, old, found.gain.to(chosen.dtype), clip, clip)
    return per_move - entropy_coef * distributions.entropy(logprobs) if entropy_coef > 0 else per_move


def value_loss(values: Float[Tensor, "batch time"], found: CriticTargets) -> Float[Tensor, "batch time"]:
    """``(prediction - actual)^2``, one loss a move."""
    return losses.clipped_value(values, found.old_values.to(values.dtype), found.returns.to(values.dtype), clip=None)


def adam(network: nn.Module, recipe: GridRecipe) -> torch.optim.Adam:
    return torch.optim.Adam(network.parameters(), lr=recipe.lr, eps=ADAM_EPS, fused=True)


def anneal(recipe: GridRecipe, iteration: int, *optimizers: torch.optim.Adam) -> float:
    """Set the learning rates of ``iteration`` (from 0), on a line from ``lr`` to 0; returns the entropy bonus's
    coefficient, on its own line."""
    left = 1.0 - iteration / recipe.iterations
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = recipe.lr * left
    return recipe.entropy_coef * left


def step(network: nn.Module, optimizer: torch.optim.Adam, loss: Float[Tensor, ""], largest_norm: float) -> None:
    """One optimizer step, the gradient clipped to ``largest_norm``."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), largest_norm)
    optimizer.step()


def minibatches(recipe: GridRecipe, moves: int, iteration: int) -> Iterator[Int[Tensor, " rows"]]:
    """Places of the moves of each optimizer step: every pass takes all of them once, in an order of its own."""
    generator = torch.Generator().manual_seed(derive(recipe.seed, "minibatches", iteration))
    for _ in range(recipe.epochs):
        order = torch.randperm(moves, generator=generator)
        yield from (rows for rows in order.tensor_split(recipe.minibatches) if len(rows))
