"""Checks that a mutant of ``maths/numeric.py`` showed to be missing."""

from __future__ import annotations

import math

import pytest
import torch

from upslope.maths.numeric import below_overflow


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 80.7228), (torch.float64, 701.7827)])
def test_the_bound_leaves_a_factor_of_e_to_the_8_below_overflow(dtype: torch.dtype, bound: float) -> None:
    held = float(below_overflow(torch.tensor(math.inf, dtype=dtype)))
    assert held == pytest.approx(bound, abs=1e-4)
    assert float(below_overflow(torch.tensor(bound - 0.01, dtype=dtype))) == pytest.approx(bound - 0.01, rel=1e-6)
