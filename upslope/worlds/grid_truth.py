"""How far a policy and a critic are from the exact solution of their world: measured, not estimated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from upslope.errors import InputError
from upslope.maths import bellman
from upslope.maths.bellman import Mdp, SparseMdp
from upslope.types import GridTruth
from upslope.worlds.gridworld import Gridworld

DENSE_STATES = 600
"""Worlds up to this size are solved as dense arrays, which is quicker there."""
TOLERANCE = 1e-6
"""A return counts as optimal within ``TOLERANCE * max(1, |V*|)``, ``bellman.greedy_policy``'s rule for ties."""


@dataclass(frozen=True, slots=True, eq=False)
class Exact:
    """The exact solution of a world under ``discount``: V* [states], Q* [states, actions], J*. In float64.

    ``start`` [states] is the distribution of start states. ``mdp`` is dense for small worlds, sparse for large ones.
    """

    mdp: Mdp | SparseMdp
    discount: float
    start: Float[Tensor, " states"]
    optimal_values: Float[Tensor, " states"]
    optimal_actions: Float[Tensor, "states actions"]

    @property
    def optimal_return(self) -> float:
        """J*: the mean of V* over the starts."""
        return self._mean(self.optimal_values)

    def policy_values(self, policy: Float[Tensor, "states actions"]) -> Float[Tensor, " states"]:
        """V^pi in float64, exact; -inf where the policy may never end under discount 1."""
        return bellman.policy_values(self.mdp, policy.to(torch.float64), self.discount)

    def measure(
        self,
        policy: Float[Tensor, "states actions"],
        values: Float[Tensor, " states"] | None = None,
        target: Float[Tensor, " states"] | None = None,
    ) -> GridTruth:
        """Where ``policy`` and the critic's ``values`` stand; see ``GridTruth`` for each number.

        ``target`` [states] is what the critic should say, V^pi of ``policy`` unless given. The greedy policy takes the
        likeliest move (of equal ones the first) and counts as optimal from a start where its exact value is V* within
        ``TOLERANCE``. Exactness is that of a linear solve in float64. States where V* is -inf (no policy ends there)
        are left out of ``value_gap``, states whose target is not finite make the critic's errors infinite.
        """
        acted = self.policy_values(policy)
        greedy = torch.zeros_like(policy).scatter(1, policy.argmax(dim=1, keepdim=True), 1.0)
        earned = self.policy_values(greedy)
        best, open_ = self.optimal_values, ~self.mdp.terminal
        near = earned >= best - TOLERANCE * best.abs().clamp(min=1.0)
        solvable = open_ & ~torch.isneginf(best)
        critic: tuple[float, float] | tuple[None, None] = (None, None)
        if values is not None:
            wanted = (acted if target is None else target.to(torch.float64))[open_]
            error = (values.to(torch.float64)[open_] - wanted).abs()
            critic = (float(error.square().mean().sqrt()), float(error.max()))
        return GridTruth(
            optimal_return=self.optimal_return,
            expected_return=self._mean(acted),
            value_gap=float((best - acted)[solvable].max()),
            optimal_share=float(near[self.start > 0].to(torch.float64).mean()),
            critic_rmse=critic[0],
            critic_worst=critic[1],
        )

    def _mean(self, values: Tensor) -> float:
        begun = self.start > 0  # 0 * -inf is no number
        return float((self.start[begun] * values[begun]).sum())


def solve(world: Gridworld, discount: float) -> Exact:
    """The exact solution of a grid.

    Raises InputError under discount 1 if some start cell cannot reach an end, naming the first such cell.
    """
    sparse = world.sparse_mdp()
    mdp = sparse.dense() if len(world.cells) <= DENSE_STATES else sparse
    return solve_mdp(mdp, world.start_distribution(), discount, lambda state: _cell_name(world, state))


def solve_mdp(
    mdp: Mdp | SparseMdp,
    start: Float[Tensor, " states"],
    discount: float,
    name: Callable[[int], str] = lambda state: f"state {state}",
) -> Exact:
    """The exact solution of any finite process; ``name`` says how a state is called in an error."""
    values = bellman.optimal_values(mdp, discount)
    lost = ((start > 0) & torch.isneginf(values)).nonzero().flatten().tolist()
    if lost:
        raise InputError(
            f"map, {name(lost[0])}",
            "found a start from which no end can be reached for certain, expected a way to a terminal cell "
            f"(discount 1; {len(lost)} such starts)",
            "open a wall, mark other cells as starts with S, or use a discount below 1",
        )
    return Exact(mdp, discount, start, values, bellman.action_values(mdp, values, discount))


def _cell_name(world: Gridworld, state: int) -> str:
    row, column = world.cells[state]
    return f"row {row + 1}, column {column + 1}"
