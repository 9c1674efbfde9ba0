"""Preferences: losses on pairs, elementwise and never reduced, and how well stated probabilities fit what was chosen.

``losses.bradley_terry`` and ``losses.dpo`` are the sigmoid losses; here stand what goes beside them.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from upslope.maths.numeric import promoted


def ipo(
    chosen_logratios: Float[Tensor, " batch"], rejected_logratios: Float[Tensor, " batch"], beta: float
) -> Float[Tensor, " batch"]:
    """``(chosen - rejected - 1 / (2 beta))^2`` on log-ratios ``log pi(y) - log ref(y)`` of whole sequences.

    Identity preference optimisation (arXiv 2310.12036, eq. 17; its tau is ``beta`` here). Where the sigmoid loss pushes
    the log-ratios of a pair apart for ever, this one stops at a distance of 1 / (2 beta) nats. Log-ratios are sums over
    the tokens as in the paper; TRL's ``ipo`` divides them by the lengths.
    """
    return (promoted(chosen_logratios) - promoted(rejected_logratios) - 1.0 / (2.0 * beta)).square()


def centering(
    chosen_scores: Float[Tensor, " batch"], rejected_scores: Float[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """``(chosen + rejected)^2``: pulls scores to mean 0, which pairs alone leave free (arXiv 2312.09244, eq. 2)."""
    return (promoted(chosen_scores) + promoted(rejected_scores)).square()


def right_share(differences: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """1 where ``chosen - rejected`` is above 0, 1/2 where it is 0, else 0: its mean is the accuracy on pairs."""
    return 0.5 + 0.5 * promoted(differences).sign()


def reliability(
    differences: Float[Tensor, " batch"], bins: int = 10
) -> tuple[Int[Tensor, " bins"], Float[Tensor, " bins"], Float[Tensor, " bins"]]:
    """How often a reward model is right where it is so sure: ``(pairs, confidence, accuracy)`` of each bin.

    Of a pair with score difference d = chosen - rejected the model says that the answer with the higher score is better
    with probability sigmoid(|d|), between 1/2 and 1, and it is right where d > 0 (half right at d = 0). The bins split
    1/2 .. 1 evenly; confidence and accuracy are means over a bin's pairs, NaN where it has none.
    Raises ValueError for less than one bin.
    """
    if bins < 1:
        raise ValueError(f"bins is {bins}; it must be at least 1")
    wide = promoted(differences)
    sure = wide.abs().sigmoid()
    place = ((sure - 0.5) * 2 * bins).floor().long().clamp(0, bins - 1)
    counts = torch.zeros(bins, dtype=torch.long, device=wide.device).index_add(0, place, torch.ones_like(place))
    empty = wide.new_zeros(bins)
    confidence = empty.index_add(0, place, sure) / counts
    accuracy = empty.index_add(0, place, right_share(wide)) / counts
    return counts, confidence, accuracy


def calibration_error(differences: Float[Tensor, " batch"], bins: int = 10) -> Float[Tensor, ""]:
    """Expected calibration error: ``sum_b n_b / n |accuracy_b - confidence_b|`` over the bins of ``reliability``.

    Guo et al. (arXiv 1706.04599, eq. 3). 0 of no pairs. It is an estimate: few pairs in a bin raise it by chance.
    """
    counts, confidence, accuracy = reliability(differences, bins)
    gaps = torch.where(counts > 0, (accuracy - confidence).abs(), 0.0)
    return (gaps * counts).sum() / counts.sum().clamp(min=1)
