"""Checks that a mutant of ``maths/returns.py`` showed to be missing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from upslope.maths import returns


def test_half_precision_is_promoted_before_anything_is_computed() -> None:
    """0.99 has no bfloat16: a discount in the rewards' own precision would be 0.9883."""
    torch.manual_seed(0)
    rewards, values = torch.randn(2, 5).bfloat16(), torch.randn(2, 5).bfloat16()
    mask, last = torch.ones(2, 5, dtype=torch.bool), torch.randn(2).bfloat16()
    found = returns.gae(rewards, values, last, mask, 0.99, 0.95)
    assert torch.equal(found, returns.gae(rewards.float(), values.float(), last.float(), mask, 0.99, 0.95))
    assert torch.equal(returns.discounted(rewards, 0.99), returns.discounted(rewards.float(), 0.99))


def test_a_discount_of_0_is_allowed_and_sees_one_reward() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0]])
    mask = torch.ones_like(rewards, dtype=torch.bool)
    assert torch.equal(returns.discounted(rewards, 0.0), rewards)
    assert torch.equal(returns.gae(rewards, torch.ones(1, 3), torch.ones(1), mask, 0.0, 1.0), rewards - 1)


def test_an_error_names_what_is_wrong() -> None:
    x = torch.zeros(1, 2)
    everywhere = torch.ones_like(x, dtype=torch.bool)
    calls: list[tuple[str, Any]] = [
        ("discount is 1.5", lambda: returns.discounted(x, 1.5)),
        ("discount is 1.5", lambda: returns.gae(x, x, torch.zeros(1), everywhere, 1.5, 0.5)),
        (r"trace \(lambda\) is 1.5", lambda: returns.gae(x, x, torch.zeros(1), everywhere, 0.5, 1.5)),
    ]
    for said, call in calls:
        with pytest.raises(ValueError, match=rf"^{said}; it must lie in \[0, 1\]$"):
            call()
