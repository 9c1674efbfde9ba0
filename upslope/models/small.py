"""Small networks for worlds whose states can be listed: a policy and a critic, each a multi-layer perceptron.

Both take the encoded states, a table [states, features], and answer for all of them in one forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import embedding

from upslope.errors import InputError
from upslope.maths import distributions

Features: TypeAlias = Literal["one-hot", "xy", "fourier"]

LARGEST_ONE_HOT = 4096
"""States up to which one-hot inputs are allowed: their table grows with the square of the states."""


@runtime_checkable
class Lattice(Protocol):
    """What an encoding needs of a world (``upslope.worlds.gridworld.Gridworld`` has it)."""

    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def cells(self) -> Sequence[tuple[int, int]]: ...


def encode(
    world: Lattice, features: Features, dtype: torch.dtype = torch.float32, octaves: int | None = None
) -> Float[Tensor, "states features"]:
    """The input vector of each state, in the order of ``world.cells``.

    - ``one-hot``: 1 at the state's own number. Nothing is shared: each state can have any answer.
    - ``xy``: row and column, scaled to [-1, 1]. Neighbours look alike, also across a wall.
    - ``fourier``: x and y, and ``sin`` and ``cos`` of ``2^k pi x`` and ``2^k pi y`` for ``octaves`` numbers k = 0, 1,
      ... (the positional encoding of NeRF, arXiv 2003.08934, eq. 4): coarse and fine at once. By default until half a
      period is about one cell, which tells all cells apart; fewer octaves say more about cells never seen.

    Raises InputError for one-hot inputs of a world with more than ``LARGEST_ONE_HOT`` states.
    """
    cells = torch.tensor(list(world.cells), dtype=torch.float64)
    if features == "one-hot":
        if len(cells) > LARGEST_ONE_HOT:
            raise InputError(
                "features", f"found one-hot for {len(cells)} states, expected at most {LARGEST_ONE_HOT}", "use fourier"
            )
        return torch.eye(len(cells), dtype=dtype)
    size = max(world.rows, world.columns)
    # One scale for both sides, so that a step is as long downwards as to the right.
    xy = 2.0 * cells / max(size - 1, 1) - 1.0
    if features == "xy":
        return xy.to(dtype)
    count = max(1, math.ceil(math.log2(size))) if octaves is None else octaves
    angles = (xy.unsqueeze(2) * torch.pi * 2.0 ** torch.arange(count, dtype=torch.float64)).flatten(1)
    return torch.cat([xy, angles.sin(), angles.cos()], dim=1).to(dtype)


def mlp(inputs: int, outputs: int, hidden: Sequence[int], gain: float, generator: torch.Generator) -> nn.Sequential:
    """Linear layers with tanh between them, weights orthogonal: factor sqrt(2), and ``gain`` in the last; biases 0.

    Source: the initialisation of OpenAI baselines' PPO ("The 37 implementation details of PPO", ICLR blog 2022, 2).
    """
    widths = [inputs, *hidden, outputs]
    layers: list[nn.Module] = []
    for number in range(len(widths) - 1):
        layer = nn.Linear(widths[number], widths[number + 1])
        last = number == len(widths) - 2
        nn.init.orthogonal_(layer.weight, gain if last else math.sqrt(2.0), generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer] if last else [layer, nn.Tanh()]
    return nn.Sequential(*layers)


class PolicyMlp(nn.Module):
    """pi(action | state): moves that do not exist have probability 0. Nearly uniform before training."""

    def __init__(self, inputs: int, actions: int, hidden: Sequence[int], seed: int) -> None:
        super().__init__()
        self.body = mlp(inputs, actions, hidden, 0.01, torch.Generator().manual_seed(seed))

    def forward(
        self, inputs: Float[Tensor, "*n features"], available: Bool[Tensor, "*n actions"]
    ) -> Float[Tensor, "*n actions"]:
        """Log-probabilities in nats; -inf where ``available`` is False. A row needs one available action."""
        return distributions.log_probs(self.body(inputs).masked_fill(~available, -torch.inf))


class ValueMlp(nn.Module):
    """V(state), in points."""

    def __init__(self, inputs: int, hidden: Sequence[int], seed: int) -> None:
        super().__init__()
        self.body = mlp(inputs, 1, hidden, 1.0, torch.Generator().manual_seed(seed))

    def forward(self, inputs: Float[Tensor, "*n features"]) -> Float[Tensor, "*n"]:
        return self.body(inputs).squeeze(-1)


def activations(
    network: PolicyMlp | ValueMlp, inputs: Float[Tensor, "*n features"]
) -> tuple[Float[Tensor, "*n units"], ...]:
    """What each hidden layer answers to ``inputs``, after its tanh, first layer first; for a picture. No gradient."""
    found = []
    with torch.no_grad():
        for layer in network.body:
            inputs = layer(inputs)
            if isinstance(layer, nn.Tanh):
                found.append(inputs)
    return tuple(found)


def policy_at(
    network: PolicyMlp,
    inputs: Float[Tensor, "states features"],
    available: Bool[Tensor, "states actions"],
    state: Int[Tensor, "*n"],
) -> Float[Tensor, "*n actions"]:
    """Log-probabilities at these states. Where there are more of them than the world has, its whole table is computed
    once and looked up."""
    if state.numel() >= len(inputs):
        return embedding(state, network(inputs, available))
    return network(inputs[state], available[state])


def values_at(
    network: ValueMlp, inputs: Float[Tensor, "states features"], state: Int[Tensor, "*n"]
) -> Float[Tensor, "*n"]:
    """Values at these states; see ``policy_at``."""
    if state.numel() >= len(inputs):
        return embedding(state, network(inputs).unsqueeze(1)).squeeze(-1)
    return network(inputs[state])
