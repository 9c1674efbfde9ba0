"""The exact solution of a finite Markov decision process: the oracle of everything above.

Every function takes a dense ``Mdp`` or a ``SparseMdp`` (see ``maths.mdp``) and runs the same lines on both.

Conventions: the value of a terminal state is 0 (its points are part of the reward for entering it). Under discount 1 a
policy that may go on for ever from a state has value -inf there, as it has where every step costs something.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from upslope.maths.mdp import AnyMdp, Chain, Mdp, SparseMdp, names

__all__ = [
    "Mdp",
    "SparseMdp",
    "action_values",
    "greedy_policy",
    "occupancy",
    "optimal_values",
    "policy_iteration",
    "policy_values",
    "value_iteration_sweeps",
]

_NEVER = 2**62  # more edges than any action has


def action_values(mdp: AnyMdp, values: Float[Tensor, " states"], discount: float) -> Float[Tensor, "states actions"]:
    """``Q(s, a) = r(s, a) + discount * sum_s' P(s' | s, a) V(s')`` (Sutton and Barto, eq. 4.6).

    ``values`` at terminal states are taken as 0. -inf for actions that do not exist and for those that lead with
    positive probability to a state of value -inf (if ``discount`` > 0); 0 for terminal states, where there is nothing
    to choose.
    """
    _check_discount(discount)
    values = values.to(mdp.reward.dtype).masked_fill(mdp.terminal, 0.0)
    lost = torch.isneginf(values)
    result = mdp.reward + discount * mdp.expected(values.masked_fill(lost, 0.0))
    if discount > 0 and bool(lost.any()):
        result = result.masked_fill(mdp.may_reach(lost), -torch.inf)
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


def optimal_values(mdp: AnyMdp, discount: float, max_sweeps: int = 1_000_000) -> Float[Tensor, " states"]:
    """``V*(s) = max_a [r(s, a) + discount * sum_s' P(s' | s, a) V*(s')]`` by value iteration to convergence.

    See ``value_iteration_sweeps`` for the start, the stopping rule and the errors.
    """
    return deque(_sweeps(mdp, discount, max_sweeps), maxlen=1)[0]


def value_iteration_sweeps(mdp: AnyMdp, discount: float, max_sweeps: int = 1_000_000) -> Float[Tensor, "sweeps states"]:
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


def _sweeps(mdp: AnyMdp, discount: float, max_sweeps: int) -> Iterator[Tensor]:
    _check_discount(discount)
    values = _start(mdp, discount)
    if discount == 1.0 and mdp.deterministic:
        max_sweeps = min(max_sweeps, len(values) + 1)  # the best walk visits no state twice, unless a circle pays
    yield values
    for _ in range(max_sweeps):
        before, values = values, action_values(mdp, values, discount).amax(dim=1)
        yield values
        change = (values - before).abs().masked_fill(values == before, 0.0).max()
        if float(change) <= _rounding(values) / 8:
            return
    raise ValueError(
        f"value iteration did not converge in {max_sweeps} sweeps with discount {discount}: "
        "a circle of moves pays for ever, or the discount is too close to 1 for this many sweeps"
    )


def _start(mdp: AnyMdp, discount: float) -> Tensor:
    if discount < 1.0:
        return torch.zeros_like(mdp.reward[:, 0])
    certain, safe, _ = _certain_end(mdp)
    if bool((certain & ~_bounded_end(mdp)).any()):
        uniform = safe.to(mdp.reward.dtype)
        return policy_values(mdp, uniform / uniform.sum(dim=1, keepdim=True).clamp(min=1.0), 1.0)
    return torch.zeros_like(mdp.reward[:, 0]).masked_fill(~mdp.terminal, -torch.inf)


def policy_iteration(
    mdp: AnyMdp, discount: float, max_evaluations: int = 100_000
) -> tuple[Float[Tensor, " states"], Float[Tensor, "states actions"], int]:
    """``(V*, a deterministic optimal policy, policies evaluated)`` by Howard's policy iteration (1960).

    Evaluates a policy exactly, then takes a better action in every state that has one (by more than rounding), until
    none has: Sutton and Barto, section 4.3. It starts from a policy that ends with probability 1 wherever
    one does (each state takes a safe action that may bring it nearer to an end). Under discount 1 improvement keeps
    that, so that the result is the best of them (Bertsekas and Tsitsiklis 1991). V* is ``optimal_values`` to rounding,
    and the surer way to it where value iteration needs many sweeps (large worlds, a discount near 1).
    Rows of terminal states, and of states of value -inf, are 0. Raises ValueError if ``max_evaluations`` do not suffice
    or if rewards can be collected for ever under discount 1.
    """
    _check_discount(discount)
    certain, _, nearer = _certain_end(mdp)
    hopeful = ~mdp.terminal & (certain if discount == 1.0 else torch.ones_like(certain))
    actions = torch.where(certain, nearer, mdp.available.int().argmax(dim=1))
    policy = _deterministic(mdp, actions, hopeful)
    values = policy_values(mdp, policy, discount)
    for evaluations in range(1, max_evaluations + 1):
        worth = action_values(mdp, values, discount)
        now = worth.gather(1, actions.unsqueeze(1)).squeeze(1)
        best, better = worth.max(dim=1)
        change = hopeful & (best > now + _rounding(values))
        if not bool(change.any()):
            return values, policy, evaluations
        actions = torch.where(change, better, actions)
        trial = _deterministic(mdp, actions, hopeful)
        risen = policy_values(mdp, trial, discount)
        if bool((torch.isneginf(risen) & ~torch.isneginf(values)).any()):
            raise ValueError("a circle of moves pays for ever: under discount 1 there is no best policy that ends")
        if float((risen - values)[hopeful].sum()) <= _rounding(values):  # only ties that rounding had parted
            return values, policy, evaluations + 1
        values, policy = risen, trial
    raise ValueError(f"policy iteration did not settle in {max_evaluations} evaluations with discount {discount}")


def _deterministic(mdp: AnyMdp, actions: Tensor, hopeful: Tensor) -> Tensor:
    return torch.zeros_like(mdp.reward).scatter(1, actions.unsqueeze(1), 1.0) * hopeful.unsqueeze(1)


def _rounding(values: Tensor) -> float:
    size = values.masked_fill(torch.isneginf(values), 0.0).abs().max().clamp(min=1.0)
    return 64 * torch.finfo(values.dtype).eps * float(size)


def policy_values(mdp: AnyMdp, policy: Float[Tensor, "states actions"], discount: float) -> Float[Tensor, " states"]:
    """``V^pi``, the exact solution of ``V = r_pi + discount * P_pi V`` by a linear solve.

    Differentiable in ``policy`` for a dense ``Mdp``; for a ``SparseMdp`` a sparse factorisation, without gradient.
    Under discount 1, -inf at every state from which the policy may never end: one that can reach a state from where it
    cannot reach a terminal one. Rows of terminal states are ignored. Raises ValueError if a row is not a distribution
    over available actions; under discount 1 a row of zeros (no action: see ``greedy_policy``) is allowed and never
    ends.
    """
    chain, rewards = _under(mdp, policy, discount)
    endless = _endless(chain, mdp.terminal) if discount == 1.0 else torch.zeros_like(mdp.terminal)
    live = (~mdp.terminal & ~endless).nonzero().flatten()
    values = torch.zeros_like(rewards).masked_fill(endless, -torch.inf)
    return values.index_put((live,), chain.solve(live, rewards[live], discount))


def occupancy(
    mdp: AnyMdp, policy: Float[Tensor, "states actions"], start: Float[Tensor, " states"], discount: float
) -> Float[Tensor, " states"]:
    """Expected discounted visits ``d(s) = sum_t discount^t P(s_t = s)`` from the distribution ``start``, unnormalised.

    ``J = sum_s d(s) r_pi(s)``, and ``grad J = sum_s d(s) sum_a grad pi(a | s) Q(s, a)`` (Sutton et al. 2000). A
    terminal state counts its arrival, so that under discount 1 its entry is the probability of ending there.
    Raises ValueError under discount 1 if the policy may never end from ``start``: visits are then infinite.
    """
    chain, _ = _under(mdp, policy, discount)
    start = start.to(mdp.reward.dtype)
    source, target = chain.edges()
    visited, _ = _spread(target, source, torch.ones_like(mdp.terminal, dtype=torch.int64).unsqueeze(1), start > 0)
    if discount == 1.0 and bool((visited & _endless(chain, mdp.terminal)).any()):
        raise ValueError("under discount 1 the policy may never end from these starts, so visits are infinite")
    live = (visited & ~mdp.terminal).nonzero().flatten()
    found = chain.solve(live, start[live], discount, transposed=True)
    visits = torch.zeros_like(start).index_put((live,), found)
    arrivals = start + discount * chain.after(visits)
    return torch.where(mdp.terminal, arrivals, visits)


def _under(mdp: AnyMdp, policy: Tensor, discount: float) -> tuple[Chain, Tensor]:
    """Markov chain and expected reward [S] under a policy, after checking it; zeros at terminal states."""
    _check_discount(discount)
    policy = policy.to(mdp.reward.dtype).masked_fill(mdp.terminal.unsqueeze(1), 0.0)
    fixed = policy.detach()
    sums = fixed.sum(dim=1)
    fine = (sums - 1.0).abs() < 1e-5
    if discount == 1.0:
        fine |= (fixed == 0).all(dim=1)
    wrong = ~mdp.terminal & ~(fine & (fixed >= 0).all(dim=1) & ((fixed == 0) | mdp.available).all(dim=1))
    if bool(wrong.any()):
        raise ValueError(f"policy rows of states {names(wrong)} are not distributions over available actions")
    return mdp.chain(policy), (policy * mdp.reward).sum(dim=1)


def _certain_end(mdp: AnyMdp) -> tuple[Tensor, Tensor, Tensor]:
    """States from which some policy ends with probability 1, the actions [S, A] that never leave them, and for each
    such state an action [S] that may bring it nearer to an end: together these end with probability 1.
    """
    source, target = mdp.edges()
    certain = torch.ones_like(mdp.terminal)
    while True:
        safe = mdp.available & ~mdp.may_reach(~certain)
        need = torch.where(safe, 1, _NEVER)
        reached, action = _spread(source, target, need, mdp.terminal)
        if torch.equal(reached, certain):
            return certain, safe & certain.unsqueeze(1), action
        certain = reached


def _bounded_end(mdp: AnyMdp) -> Tensor:
    """States from which some policy ends surely within a bounded number of steps, however the dice fall."""
    source, target = mdp.edges()
    every = torch.bincount(source, minlength=mdp.reward.numel()).view_as(mdp.reward)
    return _spread(source, target, torch.where(mdp.available, every, _NEVER), mdp.terminal)[0]


def _endless(chain: Chain, terminal: Tensor) -> Tensor:
    """States from which the chain may never end."""
    source, target = chain.edges()
    one = torch.ones_like(terminal, dtype=torch.int64).unsqueeze(1)
    ending, _ = _spread(source, target, one, terminal)
    return _spread(source, target, one, ~ending)[0]


def _spread(source: Tensor, target: Tensor, need: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """The least set that holds ``states`` and every state with an action of which ``need[s, a]`` edges lead into it.

    Edge ``e`` leads from pair ``source[e]`` = s * actions + a to state ``target[e]``. Also, for each state that was
    added, the action that added it (0 elsewhere). Each edge is looked at once: backward from what is new.
    """
    count, actions = need.shape
    source = source[target.argsort()]
    incoming = torch.bincount(target, minlength=count)
    first = incoming.cumsum(0) - incoming
    left, reached = need.flatten().clone(), states.clone()
    chosen = torch.zeros_like(incoming)
    fresh = reached.nonzero().flatten()
    while len(fresh):
        many = incoming[fresh]
        within = torch.arange(int(many.sum()), device=many.device) - (many.cumsum(0) - many).repeat_interleave(many)
        pairs = source[first[fresh].repeat_interleave(many) + within]
        left.index_add_(0, pairs, -torch.ones_like(pairs))
        ready = pairs[left[pairs] <= 0]
        ready = ready[~reached[ready // actions]].unique()
        ready = ready[(ready // actions).diff(prepend=ready.new_full((1,), -1)) > 0]  # a state's first action
        fresh = ready // actions
        chosen[fresh], reached[fresh] = ready % actions, True
    return reached, chosen


def _check_discount(discount: float) -> None:
    if not 0.0 <= discount <= 1.0:
        raise ValueError(f"discount is {discount}; it must lie in [0, 1]")
