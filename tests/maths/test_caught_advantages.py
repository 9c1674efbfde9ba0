"""Checks that a mutant of ``maths/advantages.py`` showed to be missing."""

from __future__ import annotations

import pytest
import torch

from upslope.maths import advantages


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("scale", ["none", "std"])
def test_half_precision_rewards_are_promoted_before_their_mean_is_taken(baseline: str, scale: str) -> None:
    rewards = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = advantages.group_relative(rewards, baseline, scale)
    assert found.dtype == torch.float32
    assert torch.equal(found, advantages.group_relative(rewards.float(), baseline, scale))


@pytest.mark.parametrize("shift_mean", [True, False])
def test_half_precision_is_promoted_before_it_is_whitened(shift_mean: bool) -> None:
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1)).bfloat16()
    mask = torch.rand(3, 6, generator=torch.Generator().manual_seed(2)) < 0.7
    found = advantages.whiten(x, mask, shift_mean)
    assert found.dtype == torch.float32 and torch.equal(found, advantages.whiten(x.float(), mask, shift_mean))
