"""Checks that a mutant of ``maths/kl.py`` showed to be missing."""

from __future__ import annotations

import torch

from upslope.maths import kl


def test_half_precision_logits_are_promoted_before_their_softmax() -> None:
    logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = kl.categorical(logits[0], logits[1])
    assert found.dtype == torch.float32
    assert torch.equal(found, kl.categorical(logits[0].float(), logits[1].float()))
