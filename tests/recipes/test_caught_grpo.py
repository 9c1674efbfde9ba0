"""Checks that a mutant of ``recipes/grpo.py`` showed to be missing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.learner.support import policy
from tests.recipes.test_grpo import rollouts
from upslope.recipes import grpo
from upslope.recipes.configs import DataSection, GrpoRecipe, GrpoSection, SamplingSection, TrainSection
from upslope.recipes.loop import Clock
from upslope.types import PolicyEvaluation

F64 = torch.float64
NEW = torch.tensor([[-1.0, -2.0, -0.5]], dtype=F64)
OLD = torch.tensor([[-1.5, -1.2, -0.6]], dtype=F64)
REF = torch.tensor([[-0.7, -2.5, -0.5]], dtype=F64)
SAMPLED = torch.tensor([[-1.1, -2.0, -0.4]], dtype=F64)
ENTROPY = torch.tensor([[0.3, 0.2, 0.1]], dtype=F64)


def told(first: bool, kl_coef: float, *step: int, **bonus: Any) -> tuple[Tensor, dict[str, Tensor]]:
    settings = GrpoSection(kl_coef=kl_coef, **bonus)
    recipe = GrpoRecipe(data=DataSection(task="arithmetic"), grpo=settings, train=TrainSection(steps=4))
    mask = torch.ones(1, 3, dtype=torch.bool)
    goal = grpo.GrpoTargets(mask, torch.ones(1, 3, dtype=F64), SAMPLED, OLD, REF)
    return grpo.make_loss(recipe, first, *step)(PolicyEvaluation(NEW, ENTROPY), goal)


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


@pytest.mark.parametrize(
    ("decay", "step", "weight"),
    [("constant", (3,), 0.4), ("linear", (), 0.4), ("linear", (0,), 0.4), ("linear", (1,), 0.3), ("linear", (3,), 0.1)],
)
def test_the_entropy_bonus_stays_or_falls_on_a_line(decay: str, step: tuple[int, ...], weight: float) -> None:
    """Without a step it is the first."""
    per_token, metrics = told(False, 0.0, *step, entropy_coef=0.4, entropy_decay=decay)
    surrogate = -torch.minimum((NEW - OLD).exp(), torch.tensor(1.28, dtype=F64))
    torch.testing.assert_close(per_token, surrogate - weight * ENTROPY)
    torch.testing.assert_close(metrics["entropy"], ENTROPY)  # as it is, not as it is weighed


def test_the_first_update_tells_how_far_sampler_and_learner_are_apart() -> None:
    per_token, metrics = told(True, 0.0)
    assert set(metrics) == {"entropy", "clip_ratio", "approx_kl", "sampler_gap/mean", "sampler_gap/max"}
    for name in ("sampler_gap/mean", "sampler_gap/max"):
        torch.testing.assert_close(metrics[name], torch.tensor([[0.1, 0.0, 0.1]], dtype=F64))
    assert not metrics["approx_kl"].any() and per_token.tolist() == [[-1.0] * 3]


@pytest.mark.parametrize(("epochs", "minibatches"), [(1, 1), (2, 1), (1, 2)])
def test_old_log_probabilities_are_computed_where_there_are_several_updates(epochs: int, minibatches: int) -> None:
    """With one update the sampler's stand for them, and the loss takes its own: no pass of the network."""
    recipe = GrpoRecipe(
        data=DataSection(task="arithmetic"), grpo=GrpoSection(group=2),
        train=TrainSection(epochs=epochs, minibatches=minibatches),
    )  # fmt: skip
    learner, clock = policy(tiny.served()), Clock()
    passes = []
    evaluate = learner.evaluate
    learner.evaluate = lambda batch: passes.append(len(batch)) or evaluate(batch)  # type: ignore[method-assign]
    batch, targets = grpo.learn_from(recipe, rollouts([1.0, 0.0], [True, True], 2), learner, None, clock)
    assert targets.sampler_logprobs[0].tolist() == [0.0, -1.0, -2.0]
    assert targets.old_logprobs.dtype == targets.advantages.dtype == torch.float32
    if epochs * minibatches == 1:
        assert passes == [] and torch.equal(targets.old_logprobs, targets.sampler_logprobs)
    else:
        assert passes == [2] and torch.equal(targets.old_logprobs, evaluate(batch).logprobs)
        assert not torch.equal(targets.old_logprobs, targets.sampler_logprobs)
    assert "time/reference" in clock.timings()


@pytest.mark.parametrize(
    ("weighting", "wanted"),
    [
        ("token_mean", [[0.25, 0.25, 0.25], [0.25, 0.0, 0.0]]),
        ("sequence_mean", [[1 / 6, 1 / 6, 1 / 6], [0.5, 0.0, 0.0]]),
        ("constant_length", [[1 / 20, 1 / 20, 1 / 20], [1 / 20, 0.0, 0.0]]),
    ],
)
def test_weights_of_two_completions_by_hand(weighting: Any, wanted: list[list[float]]) -> None:
    recipe = GrpoRecipe(
        data=DataSection(task="arithmetic"), grpo=GrpoSection(weighting=weighting),
        sampling=SamplingSection(max_new_tokens=10),
    )  # fmt: skip
    mask = torch.tensor([[True, True, True], [True, False, False]])
    torch.testing.assert_close(grpo.weigh(recipe, mask), torch.tensor(wanted))


def test_a_minibatch_that_teaches_nothing_takes_no_step() -> None:
    recipe = GrpoRecipe(data=DataSection(task="arithmetic"), grpo=GrpoSection(group=2))
    learner = policy(tiny.served())
    batch, targets = grpo.learn_from(recipe, rollouts([1.0, 1.0], [True, True], 2), learner, None, Clock())
    assert grpo.update(recipe, learner, batch, targets, [0, 1], 0, first=True) == {"loss": 0.0, "grad_norm": 0.0}
    assert learner.version == 0
    wide = recipe.model_copy(update={"grpo": GrpoSection(group=2, entropy_coef=0.1)})
    grpo.update(wide, learner, batch, targets, [0, 1], 0, first=True)
    assert learner.version == 1  # the bonus has something to say


def test_an_update_tells_its_loss_its_gradient_s_norm_and_its_rate() -> None:
    recipe = GrpoRecipe(data=DataSection(task="arithmetic"), grpo=GrpoSection(group=2))
    learner = policy(tiny.served())
    batch, targets = grpo.learn_from(recipe, rollouts([1.0, 0.0], [True, True], 2), learner, None, Clock())
    told_of = grpo.update(recipe, learner, batch, targets, [0, 1], 0, first=True)
    assert {"loss", "entropy", "grad_norm", "lr"} <= set(told_of) and told_of["grad_norm"] > 0
    assert told_of["lr"] == learner.optimizer.settings.rate(0)
