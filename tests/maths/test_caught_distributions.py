"""Checks that a mutant of ``maths/distributions.py`` showed to be missing."""

from __future__ import annotations

import pytest
import torch

from upslope.maths import distributions


@pytest.mark.parametrize("settings", [(0.0, 0, 1.0), (0.7, 0, 1.0), (1.0, 2, 1.0), (1.3, 3, 0.6)])
def test_the_vocabulary_is_the_last_dimension_of_however_many(settings: tuple[float, int, float]) -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = distributions.log_probs(logits, *settings)
    rows = torch.stack([distributions.log_probs(row, *settings) for row in logits.reshape(6, 5)])
    torch.testing.assert_close(whole.reshape(6, 5), rows, rtol=0, atol=1e-14)
    torch.testing.assert_close(
        distributions.entropy(whole).reshape(6), torch.stack([distributions.entropy(row) for row in rows])
    )
