"""Every test of this directory computes in float64 throughout, on one thread, with the head cut into small chunks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch

from tests.learner.support import patch_norms
from upslope.models import head, networks


@pytest.fixture(autouse=True)
def exactly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """RMSNorm in the model's dtype; chunks of 7 rows, so that a small batch has many; one thread."""
    patch_norms(monkeypatch)
    monkeypatch.setattr(networks, "chosen", partial(head.chosen, chunk=7))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def wide_weights() -> Iterator[None]:
    """The rules of ``weighting`` give weights of torch's default dtype: float64 here."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
