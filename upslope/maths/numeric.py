"""The few numerical habits that every file of this room shares."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def promoted(x: Tensor) -> Tensor:
    """``x`` in at least float32: half precisions rise to float32, float64 stays float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def difference(left: Float[Tensor, "*shape"], right: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``left - right`` of log-probabilities, promoted; 0 where both are the same infinity, instead of NaN."""
    left, right = promoted(left), promoted(right)
    same = torch.isinf(left) & (left == right)
    return left.masked_fill(same, 0.0) - right.masked_fill(same, 0.0)


def below_overflow(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``min(x, ln(largest float) - 8)``: 80.7 in float32, 701.8 in float64.

    The exponential of the result is finite with room for a factor of 3000, so that a zero weight or a zero gradient
    times it is 0 and not NaN. NaN stays NaN.
    """
    return x.clamp(max=math.log(torch.finfo(x.dtype).max) - 8.0)
