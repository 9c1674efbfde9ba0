"""Many walkers at once on a finite Markov decision process.

``Walks.collect`` cuts a stream of episodes into rows of equal length, for learners that bootstrap; ``episodes`` gives
whole episodes from given starts, for those that do not. A walker whose episode ended stands on a new start in the same
step: every column of every row is a move that was made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from upslope.maths import distributions, returns
from upslope.maths.bellman import SparseMdp
from upslope.seeds import derive
from upslope.types import Rows

LogPolicy: TypeAlias = Callable[[Tensor], Tensor]
"""States [n] to log-probabilities [n, actions]."""
Policy: TypeAlias = Float[Tensor, "states actions"] | LogPolicy
"""A table of probabilities, or a ``LogPolicy``."""


@dataclass(frozen=True, slots=True, eq=False)
class Transitions(Rows):
    """Moves that were made. ``reward`` in points, ``logprob`` in nats under the policy that chose.

    ``terminated``: the move entered a terminal state. ``truncated``: the episode was cut after ``horizon`` moves, and
    ``next_state`` is where it stood, so its value is still to come. After either the next column begins a new episode
    (``Walks.collect``) or ``mask`` is False (``episodes``), where all other columns are 0.
    """

    state: Int[Tensor, "batch time"]
    action: Int[Tensor, "batch time"]
    reward: Float[Tensor, "batch time"]
    next_state: Int[Tensor, "batch time"]
    logprob: Float[Tensor, "batch time"]
    terminated: Bool[Tensor, "batch time"]
    truncated: Bool[Tensor, "batch time"]
    mask: Bool[Tensor, "batch time"]

    @property
    def moves(self) -> int:
        return int(self.mask.sum())

    def cut(self) -> Bool[Tensor, "batch time"]:
        """Where the walk goes on but is not seen: truncated moves, and the end of a row that has not ended."""
        cut = self.truncated.clone()
        cut[:, -1] |= self.mask[:, -1] & ~self.terminated[:, -1]
        return cut

    def closed(
        self, values: Float[Tensor, " states"], discount: float
    ) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
        """Rewards and discounts a step with which each episode is complete in itself, for ``returns.gae`` and
        ``returns.discounted`` with bootstrap 0.

        The discount is 0 at an episode's last move. Where a walk was cut (``cut``) its reward there has
        ``discount * V(next_state)`` added; where it terminated nothing: *terminated is not truncated*.
        """
        cut = self.cut()
        after = discount * values.to(self.reward.dtype)[self.next_state]
        going_on = (self.mask & ~self.terminated & ~cut).to(self.reward.dtype)
        return self.reward + after.masked_fill(~cut, 0.0), discount * going_on

    def outcomes(self, values: Float[Tensor, " states"], discount: float) -> Float[Tensor, "batch time"]:
        """Discounted reward-to-go of each move within its episode, with ``values`` where the walk was cut."""
        rewards, discounts = self.closed(values, discount)
        return returns.discounted(rewards, discounts, self.mask)

    def visits(self, states: int) -> Int[Tensor, " states"]:
        """How often each state was stood in: once for each move made from it, once for each arrival at an end."""
        made = torch.bincount(self.state[self.mask], minlength=states)
        return made + torch.bincount(self.next_state[self.terminated], minlength=states)


class _Dice:
    """Draws from a policy and from the world; numbers belong to (draw, row), whatever the other rows do."""

    def __init__(self, mdp: SparseMdp, policy: Policy, arrival: Tensor | None) -> None:
        self.mdp = mdp
        if isinstance(policy, Tensor):
            table = policy.to(mdp.reward.dtype).masked_fill(mdp.terminal.unsqueeze(1), 1.0).log()
            self.policy: LogPolicy = lambda states: table[states]
        else:
            self.policy = policy
        self.outcomes = mdp.probability.log() if mdp.probability.shape[2] > 1 else None
        self.arrival = arrival
        self.base = mdp.reward
        if arrival is not None and self.outcomes is not None:
            self.base = mdp.reward - (mdp.probability * arrival[mdp.successor]).sum(dim=2)

    def move(self, state: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Action, reward, next state, log-probability; ``uniforms`` [n, 2]."""
        logprobs = self.policy(state)
        action = distributions.draw(logprobs, uniforms[:, 0])
        logprob = distributions.chosen(logprobs, action).to(self.mdp.reward.dtype)
        if self.outcomes is None:
            return action, self.mdp.reward[state, action], self.mdp.successor[state, action, 0], logprob
        outcome = distributions.draw(self.outcomes[state, action], uniforms[:, 1])
        next_state = self.mdp.successor[state, action, outcome]
        reward = self.base[state, action]
        return action, reward if self.arrival is None else reward + self.arrival[next_state], next_state, logprob


class Walks:
    """``walkers`` that go on from one ``collect`` to the next; where an episode ends, the next begins at ``start``.

    ``start`` [states] is a distribution. A move earns the expected reward of its state and action; with ``arrival``
    [states], what entering a state is worth, it earns that of the state which it really enters (a slippery grid: the
    points of the end that was reached). The same seed gives the same walks, bit for bit.
    """

    def __init__(
        self,
        mdp: SparseMdp,
        start: Float[Tensor, " states"],
        walkers: int,
        seed: int,
        arrival: Float[Tensor, " states"] | None = None,
    ) -> None:
        self.mdp, self.arrival = mdp, arrival
        self._start = start.log()
        self._generator = torch.Generator().manual_seed(derive(seed, "walks"))
        self.state = self._begin(torch.rand(walkers, generator=self._generator, dtype=torch.float64))
        self.age = torch.zeros(walkers, dtype=torch.long)

    def _begin(self, uniforms: Tensor) -> Tensor:
        return distributions.draw(self._start.expand(len(uniforms), -1), uniforms)

    def collect(self, policy: Policy, moves: int, horizon: int) -> Transitions:
        """``moves`` moves of each walker, as rows [walkers, moves]; episodes are cut after ``horizon`` moves."""
        dice = _Dice(self.mdp, policy, self.arrival)
        walkers = len(self.state)
        uniforms = torch.rand(moves, walkers, 3, generator=self._generator, dtype=torch.float64)
        columns: list[tuple[Tensor, ...]] = []
        for now in uniforms:
            state = self.state
            action, reward, next_state, logprob = dice.move(state, now[:, :2])
            self.age = self.age + 1
            terminated = self.mdp.terminal[next_state]
            truncated = ~terminated & (self.age >= horizon)
            columns.append((state, action, reward, next_state, logprob, terminated, truncated))
            ended = terminated | truncated
            self.state = next_state.clone()
            if bool(ended.any()):
                self.state[ended] = self._begin(now[ended, 2])
                self.age = self.age.masked_fill(ended, 0)
        rows = [torch.stack(column, dim=1) for column in zip(*columns, strict=True)]
        rows.append(torch.ones(walkers, moves, dtype=torch.bool))
        return Transitions(*rows)


def episodes(
    mdp: SparseMdp,
    policy: Policy,
    starts: Int[Tensor, " batch"],
    cap: int,
    seed: int,
    arrival: Float[Tensor, " states"] | None = None,
) -> Transitions:
    """One whole episode from each of ``starts``, cut after ``cap`` moves; rows as long as the longest of them.

    Rewards as in ``Walks``. ``starts`` must not be terminal: raises ValueError.
    """
    if bool(mdp.terminal[starts].any()):
        raise ValueError("an episode cannot start in a terminal state")
    dice, batch = _Dice(mdp, policy, arrival), len(starts)
    generator = torch.Generator().manual_seed(derive(seed, "episodes"))
    alive, state, columns = torch.arange(batch), starts, []
    for step in range(cap):
        uniforms = torch.rand(batch, 2, generator=generator, dtype=torch.float64)[alive]
        action, reward, next_state, logprob = dice.move(state, uniforms)
        terminated = mdp.terminal[next_state]
        truncated = ~terminated & (step == cap - 1)
        made = torch.ones_like(terminated)
        found = (state, action, reward, next_state, logprob, terminated, truncated, made)
        columns.append([column.new_zeros(batch).index_put((alive,), column) for column in found])
        alive, state = alive[~terminated], next_state[~terminated]
        if len(alive) == 0:
            break
    return Transitions(*(torch.stack(column, dim=1) for column in zip(*columns, strict=True)))
