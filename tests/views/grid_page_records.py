"""Records of trainings made without a learner: policies between uniform and optimal, values near the exact ones."""

from __future__ import annotations

import torch
from torch import Tensor

from upslope.maths.bellman import Mdp, action_values, optimal_values, policy_values
from upslope.seeds import derive
from upslope.types import GridMove, GridSnapshot, GridTraining, GridTruth
from upslope.worlds.gridworld import Gridworld


def policies(mdp: Mdp, discount: float, count: int) -> list[Tensor]:
    """Softmax of the optimal action values, sharper and sharper; uniform where no move has a value."""
    q = action_values(mdp, optimal_values(mdp, discount), discount)
    finite = torch.where(torch.isfinite(q), q, q[torch.isfinite(q)].min() - 1.0)
    made = []
    for k in range(count):
        logits = (finite * 6.0 * (k / max(count - 1, 1)) ** 2).masked_fill(~mdp.available, -torch.inf)
        made.append(logits.masked_fill(mdp.terminal.unsqueeze(1), 0.0).softmax(dim=1))
    return made


def truth(world: Gridworld, mdp: Mdp, policy: Tensor, values: Tensor | None, discount: float) -> GridTruth:
    best, real = optimal_values(mdp, discount), policy_values(mdp, policy, discount)
    greedy = torch.nn.functional.one_hot(policy.argmax(dim=1), 4).to(policy.dtype)
    reached = policy_values(mdp, greedy, discount)
    starts = [world.index[cell] for cell in world.starts]
    open_states = ~mdp.terminal
    error = None if values is None else (values - real)[open_states]
    return GridTruth(
        optimal_return=float(best[starts].mean()),
        expected_return=float(real[starts].mean()),
        value_gap=float((best - real)[open_states].nan_to_num(0.0).max()),
        optimal_share=float(((best - reached)[starts].abs() < 1e-9).double().mean()),
        critic_rmse=None if error is None else float(error.square().mean().sqrt()),
        critic_worst=None if error is None else float(error.abs().max()),
    )


def walk(
    world: Gridworld, policy: Tensor, after: Tensor | None, values: Tensor | None, dice: torch.Generator,
    discount: float, clip: float | None,
) -> tuple[GridMove, ...]:  # fmt: skip
    """A walk of ``policy``, with the ratios to ``after``; the gain is return minus prediction."""
    start = world.starts[int(torch.randint(len(world.starts), (1,), generator=dice))]
    steps: list[tuple[int, int, float, int]] = []
    cell = start
    while cell not in world.terminals and len(steps) < 40:
        state = world.index[cell]
        action = int(torch.multinomial(policy[state], 1, generator=dice))
        chances = torch.tensor([chance for chance, _ in world.outcomes(cell, action)])
        there = world.outcomes(cell, action)[int(torch.multinomial(chances, 1, generator=dice))][1]
        steps.append((state, action, world.terminals.get(there, 0.0) - world.cost(cell), world.index[there]))
        cell = there
    moves, outcome = [], 0.0
    for state, action, reward, there_state in reversed(steps):
        outcome = reward + discount * outcome
        value = None if values is None else float(values[state])
        gain = outcome - (value if value is not None else -2.0)
        ratio = None if after is None else float(after[state, action] / policy[state, action])
        clipped = None
        if ratio is not None and clip is not None:
            clipped = ratio > 1 + clip if gain > 0 else ratio < 1 - clip
        moves.append(GridMove(state, action, reward, there_state, value, outcome, gain, ratio, clipped))
    return tuple(reversed(moves))


def record(
    world: Gridworld, algorithm: str = "ppo", seed: int = 0, critic: bool = True, discount: float = 1.0,
    clip: float | None = 0.2, count: int = 60,
) -> GridTraining:  # fmt: skip
    mdp = world.mdp()
    dice = torch.Generator().manual_seed(derive(seed, "record"))
    made, snapshots = policies(mdp, discount, count), []
    for k, policy in enumerate(made):
        noise = torch.randn(len(mdp.terminal), generator=dice, dtype=torch.float64) * 3.0 * (1 - k / count) ** 2
        noise = noise.masked_fill(mdp.terminal, 0.0)
        real = policy_values(mdp, policy, discount)
        values = (real.clamp(min=-99.0) * (k + 1) / count + noise) if critic else None
        after = made[k + 1] if k + 1 < count else None
        snapshots.append(
            GridSnapshot(
                iteration=k,
                moves=k * 1024,
                policy=policy,
                values=values,
                truth=truth(world, mdp, policy, values, discount),
                walk=walk(world, policy, after, values, dice, discount, clip),
                ratios=torch.ones(0),
                gains=torch.zeros(0),
            )
        )
    visits = torch.randint(1, 4000, (len(mdp.terminal),), generator=dice)
    settings = {"lr": 3e-3, "walkers": 32, "trace": 0.95}
    return GridTraining(algorithm, seed, discount, clip, settings, tuple(snapshots), visits, 3.21)
