"""Checks that a mutant of ``recipes/ppo.py`` showed to be missing: what the loss tells beside its gradient."""

from __future__ import annotations

import pytest
import torch

from upslope.recipes import ppo
from upslope.recipes.configs import DataSection, PpoRecipe
from upslope.types import PolicyEvaluation

F64 = torch.float64
NEW = torch.tensor([[-1.0, -2.0, -0.5]], dtype=F64)
OLD = torch.tensor([[-1.5, -1.2, -0.6]], dtype=F64)
SAMPLED = torch.tensor([[-1.1, -2.0, -0.4]], dtype=F64)
ENTROPY = torch.tensor([[0.3, 0.2, 0.1]], dtype=F64)
ZERO = torch.zeros(1, 3, dtype=F64)


def told(first: bool) -> dict[str, torch.Tensor]:
    recipe = PpoRecipe(data=DataSection(task="arithmetic"))
    goal = ppo.PpoTargets(torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 3, dtype=F64), ZERO, ZERO, OLD, SAMPLED)
    return ppo.policy_loss(recipe, first)(PolicyEvaluation(NEW, ENTROPY), goal)[1]


def test_a_later_update_tells_entropy_ratio_clip_and_its_distance_from_the_old_policy() -> None:
    ratio = (NEW - OLD).exp()
    wanted = {
        "entropy": ENTROPY,
        "clip_ratio": torch.tensor([[1.0, 0.0, 0.0]], dtype=F64),
        "approx_kl": ratio - 1 - (NEW - OLD),
        "ratio/mean": ratio,
        "ratio/max": ratio,
    }
    metrics = told(False)
    assert set(metrics) == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(metrics[name], value)


def test_the_first_update_tells_how_far_sampler_and_learner_are_apart() -> None:
    metrics = told(True)
    for name in ("sampler_gap/mean", "sampler_gap/max"):
        torch.testing.assert_close(metrics[name], torch.tensor([[0.1, 0.0, 0.1]], dtype=F64))
    assert not metrics["approx_kl"].any() and bool((metrics["ratio/mean"] == 1).all())


def test_explained_variance_by_hand() -> None:
    actual = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=F64)
    assert ppo.explained_variance(actual, actual) == 1.0
    assert ppo.explained_variance(torch.zeros(4, dtype=F64), actual) == 0.0
    # Errors 0, 0, 0, 2 have variance 3/4, the values 14/4.
    assert ppo.explained_variance(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=F64), actual) == pytest.approx(1 - 3 / 14)
    assert ppo.explained_variance(actual, torch.ones(4, dtype=F64)) == 0.0
