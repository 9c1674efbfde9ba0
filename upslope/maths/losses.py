"""Losses, elementwise: ``[batch, time]`` or ``[batch]``, never reduced. ``weighting`` holds the reduction rules.

Targets (old log-probabilities, advantages, returns, old values) are constants: no gradient reaches them. Half
precisions are promoted to float32. A ratio is held below overflow, so that zero weights times its loss or gradient are
zeros; NaN is never hidden.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus

from upslope.maths.numeric import below_overflow, difference, promoted


def nll(logprobs: Float[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
    """Negative log-likelihood ``-log pi(y_t | ...)`` in nats, the loss of supervised fine-tuning."""
    return -promoted(logprobs)


def clipped_surrogate(
    logprobs: Float[Tensor, "batch time"],
    old_logprobs: Float[Tensor, "batch time"],
    advantages: Float[Tensor, "batch time"],
    clip_low: float | None,
    clip_high: float | None,
) -> tuple[Float[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
    """PPO's loss a token, ``-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)`` (arXiv 1707.06347, eq. 7).

    ``r = exp(logprobs - old_logprobs)`` is the importance weight against the policy that collected the data. The clips
    are offsets from 1 (0.2; unequal ones as in DAPO, arXiv 2503.14476); ``None`` switches that side off, and with both
    ``None`` the loss is the plain ratio x gain (eq. 6). The second result is True where the clip *acts*: A > 0 and r >
    1 + clip_high, or A < 0 and r < 1 - clip_low, exactly where the gradient is 0. Its mean can be smaller than the
    "clip fraction" of implementations that count |r - 1| > clip whatever the sign of A.
    Deviation: log r is held below the overflow of the exponential (80.7 in float32).
    """
    ratio = below_overflow(difference(logprobs, old_logprobs.detach())).exp()
    return _clipped(ratio, promoted(advantages.detach()), clip_low, clip_high)


def sequence_ratio(
    logprobs: Float[Tensor, "batch time"], old_logprobs: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, " batch"]:
    """``s = (pi(y) / pi_old(y))^(1 / |y|)``, the geometric mean of the token ratios (GSPO, arXiv 2507.18071, eq. 7).

    ``|y|`` counts the positions where ``mask`` is True; what stands elsewhere is ignored; a row without any has s = 1.
    """
    logs = difference(logprobs.masked_fill(~mask, 0.0), old_logprobs.detach().masked_fill(~mask, 0.0))
    return below_overflow(logs.sum(dim=1) / mask.sum(dim=1).clamp(min=1)).exp()


def clipped_surrogate_sequence(
    logprobs: Float[Tensor, "batch time"],
    old_logprobs: Float[Tensor, "batch time"],
    advantages: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    clip_low: float | None,
    clip_high: float | None,
) -> tuple[Float[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
    """The clipped surrogate with one ratio a sequence, a token at a time (GSPO-token, arXiv 2507.18071, eq. 13-14).

    The ratio at token t is ``stop_gradient(s) * pi_t / stop_gradient(pi_t)``: its value is ``s = sequence_ratio(...)``
    at every token, its gradient ``s grad log pi_t``. With one advantage a sequence and weights that are equal within a
    row (any rule of ``weighting``), the weighted sum has the value and the gradient of GSPO's own objective, ``min(s A,
    clip(s) A)`` (eq. 5, 11). A sequence is clipped as a whole. Loss 0 and clipped False where ``mask`` is False,
    whatever stands there. The paper's clips are 3e-4 and 4e-4 (section 5.1): s strays from 1 far less than a token's
    ratio does.
    """
    logprobs = logprobs.masked_fill(~mask, 0.0)
    ratio = sequence_ratio(logprobs, old_logprobs, mask).detach().unsqueeze(1)
    ratio = ratio * difference(logprobs, logprobs.detach()).exp()
    return _clipped(ratio, promoted(advantages.detach()).masked_fill(~mask, 0.0), clip_low, clip_high)


def _clipped(
    ratio: Tensor, advantages: Tensor, clip_low: float | None, clip_high: float | None
) -> tuple[Tensor, Tensor]:
    clipped = torch.zeros_like(ratio, dtype=torch.bool)
    if clip_high is not None:
        above = (advantages > 0) & (ratio > 1.0 + clip_high)
        ratio, clipped = ratio.masked_fill(above, 1.0 + clip_high), clipped | above
    if clip_low is not None:
        below = (advantages < 0) & (ratio < 1.0 - clip_low)
        ratio, clipped = ratio.masked_fill(below, 1.0 - clip_low), clipped | below
    return -ratio * advantages, clipped


def clipped_value(
    values: Float[Tensor, "batch time"],
    old_values: Float[Tensor, "batch time"],
    returns: Float[Tensor, "batch time"],
    clip: float | None,
) -> Float[Tensor, "batch time"]:
    """``max((V - G)^2, (V_old + clip(V - V_old, -clip, clip) - G)^2)``; the plain squared error for ``clip=None``.

    Source: the value loss of OpenAI baselines' ppo2. Deviation: without its factor 1/2, which is the recipe's
    coefficient.
    """
    values, returns = promoted(values), promoted(returns.detach())
    error = (values - returns).square()
    if clip is None:
        return error
    old_values = promoted(old_values.detach())
    near = old_values + (values - old_values).clamp(-clip, clip)
    return torch.maximum(error, (near - returns).square())


def bradley_terry(
    chosen_scores: Float[Tensor, " batch"],
    rejected_scores: Float[Tensor, " batch"],
    margin: float | Float[Tensor, " batch"] = 0.0,
) -> Float[Tensor, " batch"]:
    """``-log sigmoid(chosen - rejected - margin)``: the loss of a reward model on pairs.

    Bradley and Terry (1952); margin as in Llama 2 (arXiv 2307.09288, eq. 2). Adding a number to all scores changes
    nothing.
    """
    return softplus(margin - (promoted(chosen_scores) - promoted(rejected_scores)))


def dpo(
    chosen_logratios: Float[Tensor, " batch"], rejected_logratios: Float[Tensor, " batch"], beta: float
) -> Float[Tensor, " batch"]:
    """``-log sigmoid(beta (chosen - rejected))`` on log-ratios ``log pi(y) - log ref(y)`` of whole sequences.

    Direct preference optimisation (arXiv 2305.18290, eq. 7): ``beta * logratio`` is the implicit reward.
    """
    return bradley_terry(beta * promoted(chosen_logratios), beta * promoted(rejected_logratios))
