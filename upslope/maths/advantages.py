"""Advantages without a critic (group baselines) and their normalisation."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from upslope.maths.numeric import promoted


def group_relative(
    rewards: Float[Tensor, "prompts group"], baseline: str = "mean", scale: str = "none"
) -> Float[Tensor, "prompts group"]:
    """Reward of each completion minus a baseline from its group, the samples of the same prompt.

    - ``baseline="mean"``: ``r_i - mean(r)`` (GRPO, arXiv 2402.03300; Dr. GRPO, 2503.20783, with ``scale="none"``). The
      mean holds ``r_i`` itself, so the expected gradient is (G-1)/G times the exact one: a pure scale.
    - ``baseline="leave_one_out"``: ``r_i - mean of the others`` (RLOO, arXiv 2402.14740): the expected gradient is
      exact.
    - ``scale="std"``: divided by the group's population standard deviation (GRPO). This weighs prompts by difficulty:
      for rewards 0 and 1 with success probability p the expected gradient is w_G(p) grad p, w_inf = 1 / sqrt(p (1 -
      p)).

    A group whose rewards are all equal gives exact zeros. Deviations: population deviation (ddof 0; some
    implementations use ddof 1, sqrt((G-1)/G) times smaller advantages), and no epsilon, which the exact zeros make
    needless; so rewards that differ only by rounding count as different. NaN rewards make their group NaN.
    Raises ValueError for G = 1 (there is nothing to compare with), and for an unknown ``baseline`` or ``scale``.
    """
    group = rewards.shape[1]
    if group < 2:
        raise ValueError(f"group_relative needs at least 2 completions a prompt, found {group}")
    if baseline not in ("mean", "leave_one_out"):
        raise ValueError(f"baseline is {baseline!r}; expected 'mean' or 'leave_one_out'")
    if scale not in ("none", "std"):
        raise ValueError(f"scale is {scale!r}; expected 'none' or 'std'")
    rewards = promoted(rewards)
    highest, lowest = rewards.amax(dim=1, keepdim=True), rewards.amin(dim=1, keepdim=True)
    equal = highest == lowest
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    if scale == "std":
        # In units of the range, so that the squares of tiny or huge rewards neither vanish nor overflow.
        centred = centred / (highest - lowest).masked_fill(equal, 1.0)
        deviation = centred.square().mean(dim=1, keepdim=True).sqrt()
        centred = centred / deviation.masked_fill(equal, 1.0)
    if baseline == "leave_one_out":
        centred = centred * (group / (group - 1))
    return centred.masked_fill(equal, 0.0)


def whiten(
    x: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"], shift_mean: bool = True, eps: float = 1e-8
) -> Float[Tensor, "batch time"]:
    """``(x - mean) / sqrt(variance + eps)`` over the positions where ``mask`` is True; 0 elsewhere.

    ``shift_mean=False`` puts the mean back, which scales and keeps the sign's meaning (used on rewards). Source: the
    RLHF implementations descending from OpenAI's lm-human-preferences (arXiv 2403.17031): population variance (ddof 0).
    Deviation: a constant ``x`` has whitened deviation exactly 0.
    """
    x = promoted(x).masked_fill(~mask, 0.0)
    if not bool(mask.any()):
        return x
    count = mask.sum()
    mean = x.sum() / count
    constant = x[mask].max() == x[mask].min()
    centred = (x - mean).masked_fill(~mask | constant, 0.0)
    scaled = centred * torch.rsqrt(centred.square().sum() / count + eps)
    return scaled if shift_mean else (scaled + mean).masked_fill(~mask, 0.0)
