"""A finite Markov decision process as arrays, and its exact solution: the oracle of everything above.

Conventions: the value of a terminal state is 0 (its points are part of the reward for entering it). Under discount 1 a
policy that may go on for ever from a state has value -inf there, as it has where every step costs something.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Mdp:
    """``transition[s, a, s']`` = P(s' | s, a); ``reward[s, a]`` expected; ``terminal[s]`` ends the episode on arrival.

    ``available[s, a]`` False: that action does not exist there (an arrow into a wall); default: all exist. Rows of
    ``transition`` and ``reward`` for actions that do not exist, and of terminal states, mean nothing and are stored as
    0. Raises ValueError if a row is not a distribution, a reward is not finite, or a state that does not end has no
    action.
    """

    transition: Float[Tensor, "states actions states"]
    reward: Float[Tensor, "states actions"]
    terminal: Bool[Tensor, " states"]
    available: Bool[Tensor, "states actions"] = None  # type: ignore[assignment]  # filled below

    def __post_init__(self) -> None:
        available = torch.ones_like(self.reward, dtype=torch.bool) if self.available is None else self.available
        available = available & ~self.terminal.unsqueeze(1)
        dtype = torch.promote_types(self.transition.dtype, self.reward.dtype)
        transition = self.transition.to(dtype).masked_fill(~available.unsqueeze(2), 0.0)
        reward = self.reward.to(dtype).masked_fill(~available, 0.0)
        stuck = ~self.terminal & ~available.any(dim=1)
        if bool(stuck.any()):
            raise ValueError(f"states {_names(stuck)} do not end the episode and have no available action")
        sums = transition.sum(dim=2)
        wrong = available & ~(((sums - 1.0).abs() < 1e-5) & (transition >= 0).all(dim=2))
        if bool(wrong.any()):
            raise ValueError(f"transition rows of states {_names(wrong.any(dim=1))} are not distributions")
        if not bool(torch.isfinite(reward).all()):
            raise ValueError(f"rewards of states {_names((~torch.isfinite(reward)).any(dim=1))} are not finite")
        object.__setattr__(self, "available", available)
        object.__setattr__(self, "transition", transition)
        object.__setattr__(self, "reward", reward)


@dataclass(frozen=True, slots=True, eq=False)
class SparseMdp:
    """The same as successor lists, for worlds too large for [S, A, S]: action ``a`` in state ``s`` leads to state
    ``successor[s, a, k]`` with probability ``probability[s, a, k]``. A successor may occur more than once; entries of
    probability 0 mean nothing. The other fields as in ``Mdp``.
    """

    successor: Int[Tensor, "states actions outcomes"]
    probability: Float[Tensor, "states actions outcomes"]
    reward: Float[Tensor, "states actions"]
    terminal: Bool[Tensor, " states"]
    available: Bool[Tensor, "states actions"]

    def dense(self) -> Mdp:
        """The same process with ``transition`` [S, A, S]: memory grows with the square of the states."""
        states, actions = self.reward.shape
        transition = self.probability.new_zeros(states, actions, states)
        transition.scatter_add_(2, self.successor, self.probability)
        return Mdp(transition, self.reward, self.terminal, self.available)


def action_values(mdp: Mdp, values: Float[Tensor, " states"], discount: float) -> Float[Tensor, "states actions"]:
    """``Q(s, a) = r(s, a) + discount * sum_s' P(s' | s, a) V(s')`` (Sutton and Barto, eq. 4.6).

    ``values`` at terminal states are taken as 0. -inf for actions that do not exist and for those that lead with
    positive probability to a state of value -inf (if ``discount`` > 0); 0 for terminal states, where there is nothing
    to choose.
    """
    _check_discount(discount)
    values = values.to(mdp.transition.dtype).masked_fill(mdp.terminal, 0.0)
    lost = torch.isneginf(values)
    result = mdp.reward + discount * (mdp.transition @ values.masked_fill(lost, 0.0))
    if discount > 0 and bool(lost.any()):
        result = result.masked_fill(_some_successor(mdp.transition, lost), -torch.inf)
    return result.masked_fill(~mdp.available, -torch.inf).masked_fill(mdp.terminal.unsqueeze(1), 0.0)


def greedy_policy(
    action_values: Float[Tensor, "states actions"], tolerance: float = 1e-6
) -> Float[Tensor, "states actions"]:
    """Probability spread evenly over the best actions: those within ``tolerance * max(1, |best|)`` of the best.

    A state whose action values are all -inf has no best action: its row is 0. With steps that cost nothing, an even
    spread over ties may walk in circles; ``policy_values`` then says -inf.
    """
    best = action_values.amax(dim=1, keepdim=True)
    hopeless = torch.isneginf(best)
    threshold = best - tolerance * best.abs().clamp(min=1.0).masked_fill(hopeless, 0.0)
    chosen = ((action_values >= threshold) & ~hopeless).to(action_values.dtype)
    return chosen / chosen.sum(dim=1, keepdim=True).clamp(min=1.0)


def optimal_values(mdp: Mdp, discount: float, max_sweeps: int = 1_000_000) -> Float[Tensor, " states"]:
    """``V*(s) = max_a [r(s, a) + discount * sum_s' P(s' | s, a) V*(s')]`` by value iteration to convergence.

    See ``value_iteration_sweeps`` for the start, the stopping rule and the errors.
    """
    return deque(_sweeps(mdp, discount, max_sweeps), maxlen=1)[0]


def value_iteration_sweeps(mdp: Mdp, discount: float, max_sweeps: int = 1_000_000) -> Float[Tensor, "sweeps states"]:
    """Every sweep of value iteration (Sutton and Barto, eq. 4.10), the start first and the converged V* last.

    ``discount < 1``: from zeros. The error at the end is at most discount / (1 - discount) times the last change.
    ``discount = 1``, the stochastic shortest path: V* is the best value among policies that end with probability 1, and
    -inf at states where none does (exact when going on for ever is worth -inf, as with positive step costs). It starts
    from -inf outside the terminal states, so that values spread from the ends and are exact after at most one sweep a
    state in a deterministic world; where no policy ends within a bounded time (slippery moves) it starts from the value
    of the policy that is uniform over the actions from which the end stays certain, and rises from there.
    Stops when no value changes by more than 8 rounding units of the largest. Raises ValueError if ``max_sweeps`` do not
    suffice, or if rewards can be collected for ever under discount 1.
    """
    return torch.stack(list(_sweeps(mdp, discount, max_sweeps)))


def _sweeps(mdp: Mdp, discount: float, max_sweeps: int) -> Iterator[Tensor]:
    _check_discount(discount)
    values = _start(mdp, discount)
    if discount == 1.0 and bool(((mdp.transition == 0) | (mdp.transition == 1)).all()):
        max_sweeps = min(max_sweeps, len(values) + 1)  # the best walk visits no state twice, unless a circle pays
    yield values
    for _ in range(max_sweeps):
        before, values = values, action_values(mdp, values, discount).amax(dim=1)
        yield values
        change = (values - before).abs().masked_fill(values == before, 0.0).max()
        size = values.masked_fill(torch.isneginf(values), 0.0).abs().max().clamp(min=1.0)
        if bool(change <= 8 * torch.finfo(values.dtype).eps * size):
            return
    raise ValueError(
        f"value iteration did not converge in {max_sweeps} sweeps with discount {discount}: "
        "a circle of moves pays for ever, or the discount is too close to 1 for this many sweeps"
    )


def _start(mdp: Mdp, discount: float) -> Tensor:
    if discount < 1.0:
        return torch.zeros_like(mdp.reward[:, 0])
    certain, safe = _certain_end(mdp)
    if bool((certain & ~_bounded_end(mdp)).any()):
        uniform = safe.to(mdp.reward.dtype)
        return policy_values(mdp, uniform / uniform.sum(dim=1, keepdim=True).clamp(min=1.0), 1.0)
    return torch.zeros_like(mdp.reward[:, 0]).masked_fill(~mdp.terminal, -torch.inf)


def policy_values(mdp: Mdp, policy: Float[Tensor, "states actions"], discount: float) -> Float[Tensor, " states"]:
    """``V^pi``, the exact solution of ``V = r_pi + discount * P_pi V`` by a linear solve; differentiable in ``policy``.

    Under discount 1, -inf at every state from which the policy may never end: one that can reach a state from where it
    cannot reach a terminal one. Rows of terminal states are ignored. Raises ValueError if a row is not a distribution
    over available actions; under discount 1 a row of zeros (no action: see ``greedy_policy``) is allowed and never
    ends.
    """
    moves, rewards = _under(mdp, policy, discount)
    endless = _endless(moves, mdp.terminal) if discount == 1.0 else torch.zeros_like(mdp.terminal)
    live = (~mdp.terminal & ~endless).nonzero().flatten()
    system = torch.eye(len(live), dtype=moves.dtype, device=moves.device) - discount * moves[live][:, live]
    values = torch.zeros_like(rewards).masked_fill(endless, -torch.inf)
    return values.index_put((live,), torch.linalg.solve(system, rewards[live]))


def occupancy(
    mdp: Mdp, policy: Float[Tensor, "states actions"], start: Float[Tensor, " states"], discount: float
) -> Float[Tensor, " states"]:
    """Expected discounted visits ``d(s) = sum_t discount^t P(s_t = s)`` from the distribution ``start``, unnormalised.

    ``J = sum_s d(s) r_pi(s)``, and ``grad J = sum_s d(s) sum_a grad pi(a | s) Q(s, a)`` (Sutton et al. 2000). A
    terminal state counts its arrival, so that under discount 1 its entry is the probability of ending there.
    Raises ValueError under discount 1 if the policy may never end from ``start``: visits are then infinite.
    """
    moves, _ = _under(mdp, policy, discount)
    start = start.to(moves.dtype)
    visited = _backward_reach(moves.detach().T > 0, start > 0)
    if discount == 1.0 and bool((visited & _endless(moves, mdp.terminal)).any()):
        raise ValueError("under discount 1 the policy may never end from these starts, so visits are infinite")
    live = (visited & ~mdp.terminal).nonzero().flatten()
    system = torch.eye(len(live), dtype=moves.dtype, device=moves.device) - discount * moves[live][:, live].T
    visits = torch.zeros_like(start).index_put((live,), torch.linalg.solve(system, start[live]))
    arrivals = start + discount * (visits @ moves)
    return torch.where(mdp.terminal, arrivals, visits)


def _under(mdp: Mdp, policy: Tensor, discount: float) -> tuple[Tensor, Tensor]:
    """Transition matrix [S, S] and expected reward [S] under a policy, after checking it; zeros at terminal states."""
    _check_discount(discount)
    policy = policy.to(mdp.transition.dtype).masked_fill(mdp.terminal.unsqueeze(1), 0.0)
    fixed = policy.detach()
    sums = fixed.sum(dim=1)
    fine = (sums - 1.0).abs() < 1e-5
    if discount == 1.0:
        fine |= (fixed == 0).all(dim=1)
    wrong = ~mdp.terminal & ~(fine & (fixed >= 0).all(dim=1) & ((fixed == 0) | mdp.available).all(dim=1))
    if bool(wrong.any()):
        raise ValueError(f"policy rows of states {_names(wrong)} are not distributions over available actions")
    return torch.einsum("sa,sat->st", policy, mdp.transition), (policy * mdp.reward).sum(dim=1)


def _certain_end(mdp: Mdp) -> tuple[Tensor, Tensor]:
    """States from which some policy ends with probability 1, and the actions [S, A] that never leave them."""
    certain = torch.ones_like(mdp.terminal)
    while True:
        safe = mdp.available & ~_some_successor(mdp.transition, ~certain)
        steps = ((mdp.transition > 0) & safe.unsqueeze(2)).any(dim=1)
        reached = _backward_reach(steps, mdp.terminal)
        if torch.equal(reached, certain):
            return certain, safe & certain.unsqueeze(1)
        certain = reached


def _bounded_end(mdp: Mdp) -> Tensor:
    """States from which some policy ends surely within a bounded number of steps, however the dice fall."""
    ended = mdp.terminal
    while True:
        wider = ended | (mdp.available & ~_some_successor(mdp.transition, ~ended)).any(dim=1)
        if torch.equal(wider, ended):
            return ended
        ended = wider


def _endless(moves: Tensor, terminal: Tensor) -> Tensor:
    """States from which the chain ``moves`` may never end."""
    steps = moves.detach() > 0
    return _backward_reach(steps, ~_backward_reach(steps, terminal))


def _backward_reach(steps: Tensor, targets: Tensor) -> Tensor:
    """States with a path of ``steps`` [S, S] (from, to) to ``targets``, the targets included."""
    while True:
        wider = targets | (steps & targets).any(dim=1)
        if torch.equal(wider, targets):
            return targets
        targets = wider


def _some_successor(transition: Tensor, states: Tensor) -> Tensor:
    """[S, A]: does the action lead with positive probability into ``states``?"""
    return transition @ states.to(transition.dtype) > 0


def _check_discount(discount: float) -> None:
    if not 0.0 <= discount <= 1.0:
        raise ValueError(f"discount is {discount}; it must lie in [0, 1]")


def _names(states: Tensor) -> str:
    found = states.nonzero().flatten().tolist()
    return ", ".join(str(state) for state in found[:8]) + (", ..." if len(found) > 8 else "")
