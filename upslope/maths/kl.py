"""Estimators of KL(pi || ref) from samples of pi, and the exact divergence of categorical distributions.

With ``d = log pi(x) - log ref(x)`` and ``x ~ pi`` (Schulman, "Approximating KL divergence", 2020):

- ``k1 = d``: unbiased as a value. In the reward (a constant, times grad log pi) it gives exactly grad KL(pi || ref). As
  a term of the loss its expected gradient is 0: it does nothing.
- ``k2 = d^2 / 2``: biased as a value (third order in d). As a term of the loss its expected gradient is exactly
  grad KL(pi || ref). Biased in the reward.
- ``k3 = e^-d - 1 + d``: unbiased as a value and never negative. As a term of the loss its expected gradient is
  grad KL(ref || pi), the divergence turned round; in the reward it gives grad KL(pi || ref) - grad KL(ref || pi).

Each statement is per sampling step and for samples of the current policy; tests enumerate them. Gradients reach
``logprobs`` (and ``ref_logprobs``, if it asks for them).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from upslope.maths.numeric import below_overflow, difference, promoted


def k1(logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``d = log pi - log ref`` in nats, elementwise.

    Unbiased for KL(pi || ref) as a value; exact in the reward (detached). As a loss term its expected gradient on
    samples of pi is 0, so it must not be used there. Infinite where ref gives no probability.
    """
    return difference(logprobs, ref_logprobs)


def k2(logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``d^2 / 2`` with ``d = log pi - log ref``, elementwise.

    As a loss term its expected gradient on samples of pi is exactly grad KL(pi || ref). Biased as a value (third order
    in d) and in the reward.
    """
    return difference(logprobs, ref_logprobs).square() / 2


def k3(logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``e^-d - 1 + d`` with ``d = log pi - log ref``, elementwise; never negative.

    Unbiased for KL(pi || ref) as a value. As a loss term its expected gradient on samples of pi is that of KL(ref ||
    pi), the divergence turned round; in the reward it is grad KL(pi || ref) - grad KL(ref || pi), whose ascent can
    diverge. Deviation: ``-d`` is held below the overflow of the exponential (80.7 in float32).
    """
    negative = below_overflow(difference(ref_logprobs, logprobs))
    return torch.expm1(negative) - negative


def categorical(
    p_logits: Float[Tensor, "*shape vocab"], q_logits: Float[Tensor, "*shape vocab"]
) -> Float[Tensor, "*shape"]:
    """Exact ``KL(p || q) = sum_x p(x) (log p(x) - log q(x))`` in nats, over the last dimension.

    Logits need no normalisation. Entries of -inf have no probability: where p has none the term is 0 (with 0 gradient);
    where p has some and q has none the result is infinite.
    """
    log_p, log_q = promoted(p_logits).log_softmax(dim=-1), promoted(q_logits).log_softmax(dim=-1)
    p = log_p.exp()
    absent = p == 0
    return (p * (log_p.masked_fill(absent, 0.0) - log_q.masked_fill(absent, 0.0))).sum(dim=-1)
