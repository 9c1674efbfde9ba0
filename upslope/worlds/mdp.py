"""A Gymnasium environment with a table of its dynamics, as the arrays that ``maths.bellman`` solves.

Toy-text environments (FrozenLake, CliffWalking, Taxi, our own ``GridEnv``) carry
``P[s][a] = [(probability, next state, reward, done), ...]``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from upslope.errors import InputError
from upslope.maths.bellman import Mdp, SparseMdp


@dataclass(frozen=True, slots=True)
class _Table:
    """``outcomes[s, a]``: what the action may lead to; ``ended`` holds the states in which an episode is over.

    ``adds_end``: some outcome ends in a state in which one may also walk on, so that a state ``states`` is added.
    """

    name: str
    states: int
    actions: int
    outcomes: Mapping[tuple[int, int], list[tuple[float, int, float, bool]]]
    ended: frozenset[int]
    adds_end: bool
    starts: Sequence[float] | None


def from_gymnasium(env: Any) -> Mdp:
    """The dynamics of ``env.unwrapped.P`` as dense arrays, in float64; state ``s`` is observation ``s``.

    An outcome with ``done`` leads to a terminal state. That is the state it names where episodes only ever end in it
    (its own row is then ignored, as Gymnasium ignores it). Where one may also stand in it and walk on, the outcome
    leads to one terminal state that is added after the others instead. "May" counts from the states in which the
    environment starts (``initial_state_distrib``; without one, any state that no outcome ends in), so values are those
    of every state that can occur; Taxi's table has others. Outcomes of the same next state are summed. An action
    without outcomes is not available.

    Actions that an ``action_mask`` forbids are kept: the table says what they do. Raises InputError if the environment
    has no such table or one that is no decision process.
    """
    return sparse_from_gymnasium(env).dense()


def sparse_from_gymnasium(env: Any) -> SparseMdp:
    """``from_gymnasium`` as successor lists, for tables of many states."""
    table = _table(env)
    states = table.states + table.adds_end
    width = max((len(outcomes) for outcomes in table.outcomes.values()), default=1)
    successor = torch.zeros(states, table.actions, width, dtype=torch.int64)
    probability = torch.zeros(states, table.actions, width, dtype=torch.float64)
    reward = torch.zeros(states, table.actions, dtype=torch.float64)
    available = torch.zeros(states, table.actions, dtype=torch.bool)
    for (state, action), outcomes in table.outcomes.items():
        for k, (chance, there, paid, done) in enumerate(outcomes):
            successor[state, action, k] = table.states if done and there not in table.ended else there
            probability[state, action, k] = chance
            reward[state, action] += chance * paid
        available[state, action] = bool(outcomes)
    terminal = torch.tensor([state in table.ended or state == table.states for state in range(states)])
    try:
        return SparseMdp(successor, probability, reward, terminal, available)
    except ValueError as error:
        raise InputError(f"{table.name}: P", str(error), "correct the environment's table") from error


def start_distribution(env: Any) -> Float[Tensor, " states"]:
    """``initial_state_distrib`` of the environment, for the states of ``from_gymnasium(env)``, in float64.

    Raises InputError where there is none.
    """
    table = _table(env)
    if table.starts is None:
        raise InputError(
            table.name,
            "found no `initial_state_distrib`, expected one with a probability for each state",
            "give the start distribution yourself, as a tensor [states]",
        )
    return torch.tensor([*table.starts, *[0.0] * table.adds_end], dtype=torch.float64)


def _table(env: Any) -> _Table:
    inner = getattr(env, "unwrapped", env)
    name = inner.spec.id if getattr(inner, "spec", None) is not None else type(inner).__name__
    found = getattr(inner, "P", None)
    if found is None:
        raise InputError(
            name,
            "found no table `P` of its dynamics, expected P[s][a] = [(probability, next state, reward, done), ...]",
            "use an environment that has one, such as FrozenLake-v1, CliffWalking-v1, Taxi-v4 or upslope/Grid-v0",
        )
    try:
        rows = [_row(found[state]) for state in range(len(found))]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(
            f"{name}: P",
            f"cannot be read ({type(error).__name__}: {error}), "
            "expected P[s][a] = [(probability, next state, reward, done), ...] with states counted from 0",
            "correct the environment's table",
        ) from error
    outcomes = {(state, action): row[action] for state, row in enumerate(rows) for action in row}
    actions = 1 + max((action for _, action in outcomes), default=-1)
    outside = [there for reached in outcomes.values() for _, there, _, _ in reached if not 0 <= there < len(rows)]
    if outside or actions == 0 or min(action for _, action in outcomes) < 0:
        problem = f"leads to state {outside[0]}" if outside else "has no actions 0, 1, ..."
        raise InputError(f"{name}: P", f"{problem}, expected states 0 to {len(rows) - 1}", "correct the table")
    starts = getattr(inner, "initial_state_distrib", None)
    starts = None if starts is None else [float(chance) for chance in starts]
    if starts is not None and len(starts) != len(rows):
        problem = f"has {len(starts)} entries, expected {len(rows)}, one for each state of P"
        raise InputError(f"{name}: initial_state_distrib", problem, "correct it in the environment")
    walked = _walked(outcomes, starts, len(rows))
    entered = {there for reached in outcomes.values() for _, there, _, done in reached if done}
    return _Table(
        name,
        len(rows),
        actions,
        outcomes,
        frozenset(entered - walked),
        bool(entered & walked),
        starts,
    )


def _row(row: Any) -> dict[int, list[tuple[float, int, float, bool]]]:
    """The outcomes of each action of a state; those of probability 0 are left out."""
    actions = row.items() if isinstance(row, Mapping) else enumerate(row)
    return {
        int(action): [
            (float(chance), int(there), float(paid), bool(done)) for chance, there, paid, done in reached if chance != 0
        ]
        for action, reached in actions
    }


def _walked(
    outcomes: Mapping[tuple[int, int], list[tuple[float, int, float, bool]]], starts: list[float] | None, states: int
) -> set[int]:
    """States in which an episode may stand without being over: the starts, and what outcomes without ``done`` reach."""
    if starts is not None:
        fresh = {state for state, chance in enumerate(starts) if chance > 0}
    else:
        ends = {there for reached in outcomes.values() for _, there, _, done in reached if done}
        fresh = set(range(states)) - ends or set(range(states))
    follow: dict[int, set[int]] = defaultdict(set)
    for (state, _), reached in outcomes.items():
        follow[state] |= {there for _, there, _, done in reached if not done}
    walked: set[int] = set()
    while fresh:
        walked |= fresh
        fresh = {there for state in fresh for there in follow[state]} - walked
    return walked
