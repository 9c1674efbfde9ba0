"""Discounted returns, TD errors and generalised advantage estimation.

Masked positions are transparent: the result equals that of the row with those positions cut out, whatever stands there
(NaN included), and is 0 there. *Terminated is not truncated*: a row that truly ended has ``bootstrap`` 0; one that was
cut off has ``bootstrap`` = V of the state after its last step.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from upslope.maths.numeric import promoted


def discounted(
    rewards: Float[Tensor, "batch time"],
    discount: float | Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"] | None = None,
) -> Float[Tensor, "batch time"]:
    """Reward-to-go ``G_t = r_t + discount_t * G_{t+1}``, with G after the last step = 0 (Sutton and Barto, eq. 3.9).

    ``discount`` is a float in [0, 1], or one number a step, 0 at the last step of an episode that ends inside a row.
    Deviation: time passes only at positions where ``mask`` is True (``None``: everywhere); 0 elsewhere.
    """
    mask = torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask
    rewards = promoted(rewards).masked_fill(~mask, 0.0)
    discounts = _per_step(discount, "discount", rewards, mask)
    after = rewards.new_zeros(rewards.shape[0])
    backwards = []
    for reward, gamma, here in _backwards(rewards, discounts, mask):
        after = torch.where(here, reward + gamma * after, after)
        backwards.append(after)
    return _forwards(backwards, rewards).masked_fill(~mask, 0.0)


def gae(
    rewards: Float[Tensor, "batch time"],
    values: Float[Tensor, "batch time"],
    bootstrap: Float[Tensor, " batch"],
    mask: Bool[Tensor, "batch time"],
    discount: float | Float[Tensor, "batch time"],
    trace: float,
) -> Float[Tensor, "batch time"]:
    """Generalised advantage estimates (Schulman et al., arXiv 1506.02438, eq. 16), by the backward recursion

        delta_t = r_t + discount_t * V_{t+1} - V_t,    A_t = delta_t + discount_t * trace * A_{t+1}.

    ``values[b, t]`` is V of the state that action ``t`` departs from; ``bootstrap[b]`` is V after the row's last step,
    0 if the episode truly ended there. ``discount`` is a float in [0, 1], or one number a step: 0 where an episode ends
    inside a row, which cuts both V and the trace. ``trace`` is lambda: 0 gives the TD error, 1 gives reward-to-go (with
    the bootstrap) minus V. ``gae + values`` is the lambda-return, the critic's usual target.
    Deviation: "next" means the next position where ``mask`` is True; results elsewhere are 0.
    """
    if not 0.0 <= trace <= 1.0:
        raise ValueError(f"trace (lambda) is {trace}; it must lie in [0, 1]")
    rewards = promoted(rewards).masked_fill(~mask, 0.0)
    values = promoted(values).masked_fill(~mask, 0.0)
    discounts = _per_step(discount, "discount", rewards, mask)
    value_after = promoted(bootstrap)
    advantage_after = torch.zeros_like(value_after)
    backwards = []
    for reward, gamma, here, value in _backwards(rewards, discounts, mask, values):
        advantage = reward + gamma * (value_after + trace * advantage_after) - value
        advantage_after = torch.where(here, advantage, advantage_after)
        value_after = torch.where(here, value, value_after)
        backwards.append(advantage_after)
    return _forwards(backwards, rewards).masked_fill(~mask, 0.0)


def td_errors(
    rewards: Float[Tensor, "batch time"],
    values: Float[Tensor, "batch time"],
    bootstrap: Float[Tensor, " batch"],
    mask: Bool[Tensor, "batch time"],
    discount: float | Float[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """One-step TD errors ``r_t + discount_t * V_{t+1} - V_t`` (Sutton and Barto, eq. 6.5): ``gae`` with trace 0."""
    return gae(rewards, values, bootstrap, mask, discount, trace=0.0)


def _per_step(discount: float | Tensor, name: str, like: Tensor, mask: Tensor) -> Tensor:
    if isinstance(discount, Tensor):
        return promoted(discount).masked_fill(~mask, 0.0)  # garbage there would reach gradients as 0 * NaN
    if not 0.0 <= discount <= 1.0:
        raise ValueError(f"{name} is {discount}; it must lie in [0, 1]")
    return torch.full_like(like, discount)


def _backwards(*columns: Tensor) -> zip[tuple[Tensor, ...]]:
    return zip(*(reversed(column.unbind(dim=1)) for column in columns), strict=True)


def _forwards(backwards: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(backwards[::-1], dim=1) if backwards else torch.zeros_like(like)
