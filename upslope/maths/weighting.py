"""Per-token weights: the only reduction rule. The loss of an optimizer step is ``(weights * loss).sum()``.

The weights are computed once on the whole optimizer step, so cutting it into micro-batches cannot change the gradient.
``dtype`` is that of the result (default: torch's default dtype).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def token_mean(mask: Bool[Tensor, "batch time"], dtype: torch.dtype | None = None) -> Float[Tensor, "batch time"]:
    """``mask / number of True positions``: every token counts the same (DAPO, arXiv 2503.14476, section 3.3).

    Sums to 1; an all-False mask gives zeros. The divisor is a property of the sampled batch, so the expected gradient
    over batches of random length is not exactly proportional to that of the expected reward; see ``constant_length``.
    """
    weights = _numbers(mask, dtype)
    return weights / weights.sum().clamp(min=1.0)


def sequence_mean(mask: Bool[Tensor, "batch time"], dtype: torch.dtype | None = None) -> Float[Tensor, "batch time"]:
    """``mask / (row's True positions * rows that have any)``: every sequence counts the same (GRPO, 2402.03300, eq. 3).

    Sums to 1; rows without a True position get 0 and are not counted; an all-False mask gives zeros. A token of a long
    sequence weighs less, the length bias that Dr. GRPO (arXiv 2503.20783) describes.
    """
    weights = _numbers(mask, dtype)
    lengths = weights.sum(dim=1, keepdim=True)
    return weights / lengths.clamp(min=1.0) / (lengths > 0).sum().clamp(min=1)


def constant_length(
    mask: Bool[Tensor, "batch time"], length: int, dtype: torch.dtype | None = None
) -> Float[Tensor, "batch time"]:
    """``mask / (rows * length)``: a divisor that no sample can change (Dr. GRPO, arXiv 2503.20783, section 3).

    ``length`` is a constant of the run, usually the completion limit. All rows count, empty ones too. Does not sum to
    1: the expected gradient is exactly 1 / ``length`` times that of the mean over rows of per-sequence sums.
    Raises ValueError if ``length`` is not positive.
    """
    if length <= 0:
        raise ValueError(f"length is {length}; it must be positive")
    return _numbers(mask, dtype) / (max(mask.shape[0], 1) * length)


def _numbers(mask: Tensor, dtype: torch.dtype | None) -> Tensor:
    return mask.to(torch.get_default_dtype() if dtype is None else dtype)
