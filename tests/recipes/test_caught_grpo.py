"""Checks that a mutant of ``recipes/grpo.py`` showed to be missing: what the loss tells beside its gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from upslope.recipes import grpo
from upslope.recipes.configs import DataSection, GrpoRecipe, GrpoSection
from upslope.types import PolicyEvaluation

F64 = torch.float64
NEW = torch.tensor([[-1.0, -2.0, -0.5]], dtype=F64)
OLD = torch.tensor([[-1.5, -1.2, -0.6]], dtype=F64)
REF = torch.tensor([[-0.7, -2.5, -0.5]], dtype=F64)
SAMPLED = torch.tensor([[-1.1, -2.0, -0.4]], dtype=F64)
ENTROPY = torch.tensor([[0.3, 0.2, 0.1]], dtype=F64)


def told(first: bool, kl_coef: float) -> tuple[Tensor, dict[str, Tensor]]:
    recipe = GrpoRecipe(data=DataSection(task="arithmetic"), grpo=GrpoSection(kl_coef=kl_coef))
    mask = torch.ones(1, 3, dtype=torch.bool)
    goal = grpo.GrpoTargets(mask, torch.ones(1, 3, dtype=F64), SAMPLED, OLD, REF)
    return grpo.make_loss(recipe, first)(PolicyEvaluation(NEW, ENTROPY), goal)


def k3(samples_of: Tensor, other: Tensor) -> Tensor:
    """q / p - 1 - log(q / p), written out."""
    return (other - samples_of).exp() - 1 - (other - samples_of)


@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_a_later_update_tells_entropy_clip_and_its_distance_from_the_old_policy(kl_coef: float) -> None:
    per_token, metrics = told(False, kl_coef)
    wanted = {"entropy": ENTROPY, "clip_ratio": torch.tensor([[1.0, 0.0, 0.0]], dtype=F64), "approx_kl": k3(OLD, NEW)}
    wanted |= {"kl": k3(NEW, REF)} if kl_coef else {}
    assert set(metrics) == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(metrics[name], value)
    surrogate = -torch.minimum((NEW - OLD).exp(), torch.tensor(1.28, dtype=F64))
    torch.testing.assert_close(per_token, surrogate + kl_coef * (NEW - REF).square() / 2)


def test_the_first_update_tells_how_far_sampler_and_learner_are_apart() -> None:
    per_token, metrics = told(True, 0.0)
    assert set(metrics) == {"entropy", "clip_ratio", "approx_kl", "sampler_gap/mean", "sampler_gap/max"}
    for name in ("sampler_gap/mean", "sampler_gap/max"):
        torch.testing.assert_close(metrics[name], torch.tensor([[0.1, 0.0, 0.1]], dtype=F64))
    assert not metrics["approx_kl"].any() and per_token.tolist() == [[-1.0] * 3]
