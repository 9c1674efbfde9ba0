"""A finite Markov decision process as arrays: dense ``Mdp``, or successor lists ``SparseMdp`` for large worlds.

Both answer the same few questions (``expected``, ``may_reach``, ``edges``, ``chain``), and ``maths.bellman`` asks
nothing else, so that each exact solution is written once for the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

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
        available = _available(self.reward, self.terminal, self.available)
        dtype = torch.promote_types(self.transition.dtype, self.reward.dtype)
        transition = self.transition.to(dtype).masked_fill(~available.unsqueeze(2), 0.0)
        reward = self.reward.to(dtype).masked_fill(~available, 0.0)
        _check(transition, reward, available)
        object.__setattr__(self, "available", available)
        object.__setattr__(self, "transition", transition)
        object.__setattr__(self, "reward", reward)

    @property
    def deterministic(self) -> bool:
        """Whether every action leads to one state for certain."""
        return bool(((self.transition == 0) | (self.transition == 1)).all())

    def expected(self, values: Float[Tensor, " states"]) -> Float[Tensor, "states actions"]:
        """``sum_s' P(s' | s, a) values(s')``; 0 for actions that do not exist."""
        return self.transition @ values

    def may_reach(self, states: Bool[Tensor, " states"]) -> Bool[Tensor, "states actions"]:
        """Does the action lead with positive probability into ``states``, in one step?"""
        return self.transition @ states.to(self.transition.dtype) > 0

    def edges(self) -> tuple[Int[Tensor, " edges"], Int[Tensor, " edges"]]:
        """``(s * actions + a, s')`` of every transition of positive probability."""
        state, action, target = (self.transition > 0).nonzero(as_tuple=True)
        return state * self.reward.shape[1] + action, target

    def chain(self, policy: Float[Tensor, "states actions"]) -> DenseChain:
        """The Markov chain under ``policy``, differentiable in it."""
        return DenseChain(torch.einsum("sa,sat->st", policy, self.transition))


@dataclass(frozen=True, slots=True, eq=False)
class SparseMdp:
    """The same as successor lists, for worlds too large for [S, A, S]: action ``a`` in state ``s`` leads to state
    ``successor[s, a, k]`` with probability ``probability[s, a, k]``. A successor may occur more than once; entries of
    probability 0 mean nothing. The other fields, and the errors, as in ``Mdp``.
    """

    successor: Int[Tensor, "states actions outcomes"]
    probability: Float[Tensor, "states actions outcomes"]
    reward: Float[Tensor, "states actions"]
    terminal: Bool[Tensor, " states"]
    available: Bool[Tensor, "states actions"] = None  # type: ignore[assignment]  # filled below

    def __post_init__(self) -> None:
        available = _available(self.reward, self.terminal, self.available)
        dtype = torch.promote_types(self.probability.dtype, self.reward.dtype)
        probability = self.probability.to(dtype).masked_fill(~available.unsqueeze(2), 0.0)
        reward = self.reward.to(dtype).masked_fill(~available, 0.0)
        _check(probability, reward, available)
        itself = torch.arange(len(reward), device=reward.device).view(-1, 1, 1)
        successor = torch.where(probability == 0, itself, self.successor.to(torch.int64))
        outside = (successor < 0) | (successor >= len(reward))
        if bool(outside.any()):
            raise ValueError(f"successors of states {names(outside.any(dim=2).any(dim=1))} are no states")
        object.__setattr__(self, "available", available)
        object.__setattr__(self, "successor", successor)
        object.__setattr__(self, "probability", probability)
        object.__setattr__(self, "reward", reward)

    @property
    def deterministic(self) -> bool:
        """Whether every action leads to one state for certain."""
        return bool(((self.probability == 0) | (self.probability == 1)).all())

    def dense(self) -> Mdp:
        """The same process with ``transition`` [S, A, S]: memory grows with the square of the states."""
        states, actions = self.reward.shape
        transition = self.probability.new_zeros(states, actions, states)
        transition.scatter_add_(2, self.successor, self.probability)
        return Mdp(transition, self.reward, self.terminal, self.available)

    def expected(self, values: Float[Tensor, " states"]) -> Float[Tensor, "states actions"]:
        """``sum_s' P(s' | s, a) values(s')``; 0 for actions that do not exist."""
        return torch.einsum("sak,sak->sa", self.probability, self._at_successors(values))

    def may_reach(self, states: Bool[Tensor, " states"]) -> Bool[Tensor, "states actions"]:
        """Does the action lead with positive probability into ``states``, in one step?"""
        return (self._at_successors(states) & (self.probability > 0)).any(dim=2)

    def _at_successors(self, of_states: Tensor) -> Tensor:
        return of_states.index_select(0, self.successor.flatten()).view_as(self.successor)  # 5 times faster than x[i]

    def edges(self) -> tuple[Int[Tensor, " edges"], Int[Tensor, " edges"]]:
        """``(s * actions + a, s')`` of every entry of positive probability."""
        state, action, outcome = (self.probability > 0).nonzero(as_tuple=True)
        return state * self.reward.shape[1] + action, self.successor[state, action, outcome]

    def chain(self, policy: Float[Tensor, "states actions"]) -> SparseChain:
        """The Markov chain under ``policy``. Raises ValueError if a gradient is asked for: ``dense()`` has it."""
        if policy.requires_grad and torch.is_grad_enabled():
            raise ValueError("the sparse solution has no gradient: use mdp.dense(), or a policy without gradient")
        weight = policy.detach().unsqueeze(2) * self.probability
        source, action, outcome = (weight > 0).nonzero(as_tuple=True)
        at = (source, action, outcome)
        return SparseChain(source, self.successor[at], weight[at])


@dataclass(frozen=True, slots=True, eq=False)
class DenseChain:
    """``moves[s, s']`` = P(s' | s)."""

    moves: Float[Tensor, "states states"]

    def edges(self) -> tuple[Int[Tensor, " edges"], Int[Tensor, " edges"]]:
        """``(s, s')`` of every step of positive probability."""
        source, target = (self.moves.detach() > 0).nonzero(as_tuple=True)
        return source, target

    def after(self, visits: Float[Tensor, " states"]) -> Float[Tensor, " states"]:
        """``sum_s visits(s) P(s' | s)``."""
        return visits @ self.moves

    def solve(
        self, live: Int[Tensor, " live"], right: Float[Tensor, " live"], discount: float, transposed: bool = False
    ) -> Float[Tensor, " live"]:
        """``x = right + discount * P x`` among the states ``live`` (with ``transposed``: P^T), by a linear solve."""
        moves = self.moves[live][:, live]
        system = torch.eye(len(live), dtype=moves.dtype, device=moves.device) - discount * (
            moves.T if transposed else moves
        )
        return torch.linalg.solve(system, right)


@dataclass(frozen=True, slots=True, eq=False)
class SparseChain:
    """``weight[e]`` is probability of stepping from ``source[e]`` to ``target[e]``; several entries of a pair add."""

    source: Int[Tensor, " edges"]
    target: Int[Tensor, " edges"]
    weight: Float[Tensor, " edges"]

    def edges(self) -> tuple[Int[Tensor, " edges"], Int[Tensor, " edges"]]:
        """``(s, s')`` of every step of positive probability."""
        return self.source, self.target

    def after(self, visits: Float[Tensor, " states"]) -> Float[Tensor, " states"]:
        """``sum_s visits(s) P(s' | s)``."""
        return torch.zeros_like(visits).index_add(0, self.target, visits[self.source] * self.weight)

    def solve(
        self, live: Int[Tensor, " live"], right: Float[Tensor, " live"], discount: float, transposed: bool = False
    ) -> Float[Tensor, " live"]:
        """``x = right + discount * P x`` among the states ``live`` (with ``transposed``: P^T), by sparse LU in float64.

        The system is a diagonally dominant M-matrix, for which elimination without pivoting is stable; its pattern is
        nearly symmetric, so the ordering of A^T + A keeps the factors thin. One step of refinement follows.
        """
        from scipy.sparse import csc_array, eye_array  # here, for it takes a third of a second
        from scipy.sparse.linalg import splu

        if len(live) == 0:
            return right
        last = int(torch.cat([self.source, self.target, live]).max())
        number = torch.full((last + 1,), -1, dtype=torch.int64, device=live.device)
        number[live] = torch.arange(len(live), device=live.device)
        source, target = number[self.source], number[self.target]
        inside = (source >= 0) & (target >= 0)
        rows, columns = (target, source) if transposed else (source, target)
        weight = self.weight[inside].to(torch.float64).cpu().numpy()
        moves = csc_array((weight, (rows[inside].cpu().numpy(), columns[inside].cpu().numpy())), shape=(len(live),) * 2)
        system = (eye_array(len(live), format="csc") - discount * moves).tocsc()
        factors = splu(system, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
        wanted = right.detach().to(torch.float64).cpu().numpy()
        found = factors.solve(wanted)
        found += factors.solve(wanted - system @ found)
        return torch.from_numpy(found).to(right)


AnyMdp: TypeAlias = Mdp | SparseMdp
Chain: TypeAlias = DenseChain | SparseChain


def names(states: Bool[Tensor, " states"]) -> str:
    """The first few numbers of the states that are True, for an error message."""
    found = states.nonzero().flatten().tolist()
    return ", ".join(str(state) for state in found[:8]) + (", ..." if len(found) > 8 else "")


def _available(reward: Tensor, terminal: Tensor, available: Tensor | None) -> Tensor:
    given = torch.ones_like(reward, dtype=torch.bool) if available is None else available
    result = given & ~terminal.unsqueeze(1)
    stuck = ~terminal & ~result.any(dim=1)
    if bool(stuck.any()):
        raise ValueError(f"states {names(stuck)} do not end the episode and have no available action")
    return result


def _check(probability: Tensor, reward: Tensor, available: Tensor) -> None:
    """Rows over the last dimension are distributions where the action exists; rewards are finite."""
    wrong = available & ~(((probability.sum(dim=2) - 1.0).abs() < 1e-5) & (probability >= 0).all(dim=2))
    if bool(wrong.any()):
        raise ValueError(f"transition rows of states {names(wrong.any(dim=1))} are not distributions")
    if not bool(torch.isfinite(reward).all()):
        raise ValueError(f"rewards of states {names((~torch.isfinite(reward)).any(dim=1))} are not finite")
