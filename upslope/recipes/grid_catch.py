"""The catch: a table must visit every cell, many times; a network answers for cells that it never visited.

Generated worlds of growing size. Training starts from a few cells only, so that a good part of the world is never
stood in; which part is counted exactly. Each contender is then asked about visited and never-visited cells apart, and
its answers are compared with the exact ones:

- values of a fixed policy (the exact solution with 30 % random moves), from the same walks: a table of mean outcomes,
  which says 0 where it never was, against a value network trained on ``(prediction - actual)^2``;
- a policy, from as many moves: tabular Q-learning against PPO's policy network. Episodes are short (``HORIZON`` moves);
  what was still to come is estimated by the table or by the critic.

Networks see Fourier features of a cell's coordinates, of periods down to some 12 cells, and which moves exist.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from upslope.maths import bellman, weighting
from upslope.models.small import encode
from upslope.recipes import grid_lab, grid_ppo, grid_tables
from upslope.recipes.grid_config import GridRecipe
from upslope.recipes.grid_diary import Diary
from upslope.recipes.grid_lab import CriticTargets, Lab, lab_of
from upslope.recipes.grid_values import fixed_policy
from upslope.seeds import derive
from upslope.worlds import grid_maps
from upslope.worlds.grid_truth import Exact, solve
from upslope.worlds.gridworld import Gridworld, parse
from upslope.worlds.walks import Transitions, episodes

DISCOUNT = 0.99
"""Walking on for ever is worth -100 points, so that every answer can be compared."""
WALLS, CELLS_PER_GOAL = 0.1, 800
START_SHARE, FEWEST_STARTS = 0.04, 3
EPSILON, WALKS_PER_START, LONGEST = 0.3, 10, 400
HORIZON, ITERATIONS, MOVES, ENTROPY_COEF = 6, 150, 32, 0.2
FIT_STEPS, FIT_BATCH, FIT_LR = 2000, 1024, 5e-3


@dataclass(frozen=True, slots=True)
class ValueAnswers:
    """Predicted values on some cells: root mean square ``error`` against exact V^pi, in points, beside the standard
    deviation of V^pi there, the error of the best constant."""

    cells: int
    error: float
    spread: float


@dataclass(frozen=True, slots=True)
class PolicyAnswers:
    """A policy on some cells: share of cells whose likeliest move is an optimal one, mean exact return of the policy
    from there (``earned``) and of the best policy (``best``)."""

    cells: int
    best_moves: float
    earned: float
    best: float


@dataclass(frozen=True, slots=True)
class Contender:
    """A table or a network after training: its size, wall time, and its answers; ``moves`` is what it was shown."""

    name: str
    parameters: int
    bytes: int
    seconds: float
    moves: int
    visited: ValueAnswers | PolicyAnswers
    never: ValueAnswers | PolicyAnswers


@dataclass(frozen=True, slots=True)
class CatchWorld:
    """One size: ``states`` (at least size x size) that do not end, value iteration's time, sweeps and table, and the
    four contenders."""

    size: int
    states: int
    starts: int
    solve_seconds: float
    sweeps: int
    table_bytes: int
    contenders: tuple[Contender, ...]


def catch(sizes: Sequence[int] = (10, 32, 100), seed: int = 0) -> tuple[CatchWorld, ...]:
    """The experiment in worlds of at least size x size free cells. Under a minute for 100 on a quiet core."""
    return tuple(catch_at(size, seed) for size in sizes)


def catch_at(size: int, seed: int = 0, iterations: int = ITERATIONS, fit_steps: int = FIT_STEPS) -> CatchWorld:
    """The experiment for one size, with ``iterations`` of PPO and Q-learning, ``fit_steps`` of the value network."""
    world = world_at(size, seed)
    begun = time.perf_counter()
    exact = solve(world, DISCOUNT)
    solved = time.perf_counter() - begun
    sweeps = len(bellman.value_iteration_sweeps(exact.mdp, DISCOUNT)) - 1
    start = some_starts(world, seed)
    lab = lab_at(world, replace(exact, start=start), recipe_at("ppo", world, seed, iterations))
    table_lab = replace(lab, recipe=recipe_at("q-learning", world, seed, iterations))
    return CatchWorld(
        size=size,
        states=int((~lab.mdp.terminal).sum()),
        starts=int((start > 0).sum()),
        solve_seconds=solved,
        sweeps=sweeps,
        table_bytes=exact.optimal_values.nbytes,
        contenders=(*value_contenders(lab, fit_steps), q_table(table_lab), policy_network(lab)),
    )


def world_at(size: int, seed: int) -> Gridworld:
    """A generated world of at least size x size free cells."""
    side = 1 + math.ceil(math.sqrt((size * size + len(ends(size))) / (1 - WALLS)))
    return parse(grid_maps.generate(side, side, derive(seed, "catch") % 2**31, WALLS, ends(size)))


def ends(size: int) -> list[float]:
    """Points of the ends: one good end for ``CELLS_PER_GOAL`` cells, at least two, and half as many bad ones."""
    goals = max(2, round(size * size / CELLS_PER_GOAL))
    return [5.0, 4.0, *[3.0] * (goals - 2), *[-1.0] * (goals // 2)]


def some_starts(world: Gridworld, seed: int) -> Float[Tensor, " states"]:
    """Uniform over a random ``START_SHARE`` of the free cells, at least ``FEWEST_STARTS``."""
    free = world.start_distribution().nonzero().flatten()
    count = max(FEWEST_STARTS, round(START_SHARE * len(free)))
    order = torch.randperm(len(free), generator=torch.Generator().manual_seed(derive(seed, "catch starts")))
    return torch.zeros(len(world.cells), dtype=torch.float64).index_fill(0, free[order[:count]], 1.0 / count)


def recipe_at(learn: str, world: Gridworld, seed: int, iterations: int) -> GridRecipe:
    """PPO's and Q-learning's settings: batches that grow with the world, the same number of moves for both."""
    return GridRecipe.model_validate(
        {
            "learn": learn, "seed": seed, "discount": DISCOUNT, "features": "fourier", "iterations": iterations,
            "walkers": min(256, max(32, len(world.cells) // 32)), "moves": MOVES, "horizon": HORIZON, "snapshots": 1,
        } | ({"minibatches": 8, "entropy_coef": ENTROPY_COEF} if learn == "ppo" else {})
    )  # fmt: skip


def lab_at(world: Gridworld, exact: Exact, recipe: GridRecipe) -> Lab:
    octaves = max(1, math.ceil(math.log2(max(world.rows, world.columns))) - 3)
    inputs = encode(world, "fourier", octaves=octaves)
    return lab_of(world.sparse_mdp(), exact.start, exact, inputs, recipe)


# --------------------------------------------------------------------------------------------- values of a fixed policy
def value_contenders(lab: Lab, fit_steps: int) -> tuple[Contender, Contender]:
    """Table and network, from the same walks."""
    policy = fixed_policy(replace(lab, recipe=lab.recipe.model_copy(update={"epsilon": EPSILON})))
    exact = lab.exact.policy_values(policy)
    starts = (lab.start > 0).nonzero().flatten().repeat_interleave(WALKS_PER_START)
    batch = episodes(lab.mdp, policy, starts, LONGEST, derive(lab.recipe.seed, "catch values"))
    outcome = batch.outcomes(torch.zeros_like(exact), DISCOUNT)
    visits = batch.visits(lab.states)

    def answers(values: Tensor, cells: Tensor) -> ValueAnswers:
        return value_answers(values, exact, cells)

    begun = time.perf_counter()
    table = mean_outcomes(batch, outcome, lab.states)
    table_seconds = time.perf_counter() - begun
    begun = time.perf_counter()
    network, parameters = fitted(lab, batch, outcome, fit_steps)
    return (
        _contender(lab, "table of mean outcomes", table.numel(), table.nbytes, table_seconds, batch.moves, visits,
                   lambda cells: answers(table, cells)),
        _contender(lab, "value network", parameters, 4 * parameters, time.perf_counter() - begun, batch.moves, visits,
                   lambda cells: answers(network, cells)),
    )  # fmt: skip


def mean_outcomes(batch: Transitions, outcome: Float[Tensor, "batch time"], states: int) -> Float[Tensor, " states"]:
    """Mean outcome of each state (every-visit Monte Carlo; Sutton and Barto, section 5.1); 0 where nobody stood."""
    sums = torch.zeros(states, dtype=torch.float64).index_add(0, batch.state[batch.mask], outcome[batch.mask])
    return sums / torch.bincount(batch.state[batch.mask], minlength=states).clamp(min=1)


def fitted(
    lab: Lab, batch: Transitions, outcome: Float[Tensor, "batch time"], steps: int
) -> tuple[Float[Tensor, " states"], int]:
    """V_phi in every state and its number of parameters, after ``steps`` steps on ``(prediction - actual)^2``.

    Outcomes are measured in units of their root mean square, so that one learning rate fits every world.
    """
    recipe = lab.recipe.model_copy(update={"lr": FIT_LR, "iterations": steps})
    critic = lab.critic()
    critic_steps = grid_lab.adam(critic, recipe)
    unit = float(outcome[batch.mask].square().mean().sqrt())
    found = CriticTargets(batch.mask, batch.state, torch.zeros_like(outcome), outcome / unit).flat()
    generator = torch.Generator().manual_seed(derive(lab.recipe.seed, "catch fit"))
    for iteration in range(steps):
        grid_lab.anneal(recipe, iteration, critic_steps)
        goal = found.take(torch.randint(len(found.state), (FIT_BATCH,), generator=generator))
        loss = grid_lab.value_loss(lab.values(critic, goal.state), goal)
        grid_lab.step(critic, critic_steps, (weighting.token_mean(goal.mask) * loss).sum(), grid_lab.VALUE_NORM)
    return unit * lab.value_table(critic), _count(critic)


def value_answers(
    values: Float[Tensor, " states"], exact: Float[Tensor, " states"], cells: Bool[Tensor, " states"]
) -> ValueAnswers:
    """How far ``values`` are from ``exact`` on ``cells``; zeros where there are none."""
    if not bool(cells.any()):
        return ValueAnswers(0, 0.0, 0.0)
    error = (values[cells] - exact[cells]).square().mean().sqrt()
    return ValueAnswers(int(cells.sum()), float(error), float(exact[cells].std(correction=0)))


# ------------------------------------------------------------------------------------------------------------- policies
def q_table(lab: Lab) -> Contender:
    """Tabular Q-learning."""
    diary = Diary(lab)
    grid_tables.train(lab, diary)
    entries = int(lab.mdp.available.sum())
    return _policy_contender(lab, diary, "Q-learning table", entries, 8 * lab.available.numel())


def policy_network(lab: Lab) -> Contender:
    """PPO; its critic's parameters are counted too."""
    diary = Diary(lab)
    grid_ppo.train(lab, diary)
    parameters = _count(lab.policy()) + _count(lab.critic())
    return _policy_contender(lab, diary, "PPO's two networks", parameters, 4 * parameters)


def _policy_contender(lab: Lab, diary: Diary, name: str, parameters: int, size: int) -> Contender:
    found = diary.training()
    policy = found.last.policy
    earned, ways = lab.exact.policy_values(policy), bellman.greedy_policy(lab.exact.optimal_actions) > 0

    def answers(cells: Tensor) -> PolicyAnswers:
        return policy_answers(policy, earned, lab.exact.optimal_values, ways, cells)

    return _contender(lab, name, parameters, size, found.seconds, found.last.moves, found.visits, answers)


def policy_answers(
    policy: Float[Tensor, "states actions"],
    earned: Float[Tensor, " states"],
    best: Float[Tensor, " states"],
    ways: Bool[Tensor, "states actions"],
    cells: Bool[Tensor, " states"],
) -> PolicyAnswers:
    """How good ``policy`` is on ``cells``; ``ways`` are the optimal moves, ``earned`` its exact values. Zeros where
    there are none."""
    if not bool(cells.any()):
        return PolicyAnswers(0, 0.0, 0.0, 0.0)
    right = ways.gather(1, policy.argmax(dim=1, keepdim=True)).squeeze(1)[cells]
    return PolicyAnswers(
        int(cells.sum()), float(right.to(torch.float64).mean()), float(earned[cells].mean()), float(best[cells].mean())
    )


def _contender(
    lab: Lab,
    name: str,
    parameters: int,
    size: int,
    seconds: float,
    moves: int,
    visits: Int[Tensor, " states"],
    answers: Callable[[Tensor], ValueAnswers | PolicyAnswers],
) -> Contender:
    free = ~lab.mdp.terminal
    return Contender(
        name, parameters, size, seconds, moves, answers(free & (visits > 0)), answers(free & (visits == 0))
    )


def _count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
