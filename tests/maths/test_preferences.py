"""Losses on pairs and calibration: hand numbers, identities, brute force."""

from __future__ import annotations

import math

import pytest
import torch

from upslope.maths import losses
from upslope.maths.preferences import calibration_error, centering, ipo, reliability, right_share

F64 = torch.float64


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


def test_ipo_is_the_square_of_the_distance_from_half_of_one_over_beta() -> None:
    found = ipo(numbers(3.0, 0.0, -1.0), numbers(1.0, 0.0, 4.0), beta=0.25)
    torch.testing.assert_close(found, numbers(0.0, 4.0, 49.0))  # 1 / (2 beta) = 2; differences 2, 0, -5


def test_ipo_stops_where_dpo_still_pushes() -> None:
    chosen = numbers(5.0).requires_grad_()
    ipo(chosen, numbers(0.0), beta=0.1).backward()
    assert chosen.grad is not None and float(chosen.grad) == 0.0
    chosen.grad = None
    losses.dpo(chosen, numbers(0.0), beta=0.1).backward()
    assert float(chosen.grad) == pytest.approx(-0.1 / (1 + math.exp(0.5)))


def test_the_centering_term_sees_the_sum_and_not_the_difference() -> None:
    torch.testing.assert_close(centering(numbers(1.5, 2.0), numbers(-1.5, 1.0)), numbers(0.0, 9.0))


def test_equal_scores_are_half_right() -> None:
    torch.testing.assert_close(right_share(numbers(2.0, 0.0, -0.1)), numbers(1.0, 0.5, 0.0))


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_reliability_by_hand() -> None:
    """Two bins, 0.5 to 0.75 and 0.75 to 1; two of three sure pairs are right, one of the two unsure ones."""
    differences = numbers(logit(0.9), logit(0.8), -logit(0.95), logit(0.6), -logit(0.7))
    counts, sure, right = reliability(differences, bins=2)
    assert counts.tolist() == [2, 3]
    torch.testing.assert_close(sure, numbers(0.65, (0.9 + 0.8 + 0.95) / 3))
    torch.testing.assert_close(right, numbers(0.5, 2 / 3))
    wanted = 2 / 5 * 0.15 + 3 / 5 * abs((0.9 + 0.8 + 0.95) / 3 - 2 / 3)
    assert float(calibration_error(differences, bins=2)) == pytest.approx(wanted, rel=1e-12)


def test_an_empty_bin_counts_nothing_and_no_pairs_have_no_error() -> None:
    counts, sure, right = reliability(numbers(logit(0.99)), bins=4)
    assert counts.tolist() == [0, 0, 0, 1] and bool(sure[:3].isnan().all() & right[:3].isnan().all())
    assert float(calibration_error(numbers(logit(0.99)), bins=4)) == pytest.approx(0.01)
    assert float(calibration_error(torch.zeros(0), bins=4)) == 0.0
    with pytest.raises(ValueError, match="bins is 0"):
        reliability(numbers(0.0), bins=0)


def test_a_model_whose_probabilities_are_the_truth_is_calibrated_and_a_surer_one_is_not() -> None:
    """Pairs in the proportions that the model says: p of them chosen first, 1 - p the other way round."""
    differences = []
    for percent in range(52, 100, 2):
        differences += [logit(percent / 100)] * percent + [-logit(percent / 100)] * (100 - percent)
    honest = numbers(*differences)
    assert float(calibration_error(honest, bins=10)) < 1e-9
    assert float(calibration_error(2 * honest, bins=10)) > 0.05
    assert float(right_share(honest).mean()) == float(right_share(2 * honest).mean())


def test_certainty_lies_in_the_last_bin() -> None:
    counts, sure, right = reliability(numbers(1e4, -1e4), bins=5)
    assert counts.tolist() == [0, 0, 0, 0, 2] and float(sure[4]) == 1.0 and float(right[4]) == 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_half_precision_is_promoted(dtype: torch.dtype) -> None:
    wide = torch.promote_types(dtype, torch.float32)
    x, y = torch.ones(2, dtype=dtype), torch.zeros(2, dtype=dtype)
    assert ipo(x, y, 0.5).dtype == centering(x, y).dtype == right_share(x).dtype == wide
    assert calibration_error(x).dtype == wide
