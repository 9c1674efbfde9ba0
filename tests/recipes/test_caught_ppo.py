"""Checks that a mutant of ``recipes/ppo.py`` showed to be missing."""

from __future__ import annotations

import pytest
import torch

from tests import tiny
from tests.learner.support import policy
from tests.recipes.test_ppo import fixed, rollout
from upslope.learner.learner import Learner
from upslope.learner.optimizer import OptimizerSettings
from upslope.models.networks import ValueNetwork
from upslope.recipes import ppo
from upslope.recipes.configs import DataSection, PpoRecipe, PpoSection
from upslope.recipes.loop import Loop
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


@pytest.mark.parametrize(
    ("decay", "step", "weight"),
    [
        ("constant", (0,), 0.4),
        ("constant", (3,), 0.4),
        ("linear", (), 0.4),
        ("linear", (0,), 0.4),
        ("linear", (3,), 0.1),
    ],
)
def test_the_entropy_bonus_stays_or_falls_on_a_line(decay: str, step: tuple[int, ...], weight: float) -> None:
    """Without a step it is the first."""
    settings = {"ppo": {"entropy_coef": 0.4, "entropy_decay": decay}, "train": {"steps": 4}}
    recipe = PpoRecipe.model_validate({"data": {"task": "arithmetic"}, **settings})
    goal = ppo.PpoTargets(torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 3, dtype=F64), ZERO, ZERO, OLD, SAMPLED)
    per_token, _ = ppo.policy_loss(recipe, False, *step)(PolicyEvaluation(NEW, ENTROPY), goal)
    surrogate = -torch.minimum((NEW - OLD).exp(), torch.tensor(1.2, dtype=F64))
    torch.testing.assert_close(per_token, surrogate - weight * ENTROPY)


def test_explained_variance_by_hand() -> None:
    actual = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=F64)
    assert ppo.explained_variance(actual, actual) == 1.0
    assert ppo.explained_variance(torch.zeros(4, dtype=F64), actual) == 0.0
    # Errors 0, 0, 0, 2 have variance 3/4, the values 14/4.
    assert ppo.explained_variance(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=F64), actual) == pytest.approx(1 - 3 / 14)
    assert ppo.explained_variance(actual, torch.ones(4, dtype=F64)) == 0.0
    assert ppo.explained_variance(actual / 10, actual / 10) == 1.0  # also where the values vary little


def test_what_is_told_of_the_critic_before_the_update() -> None:
    recipe = PpoRecipe(data=DataSection(task="arithmetic"), ppo=PpoSection(whiten=False, kl_coef=0.0, trace=1.0))
    harvest, networks = fixed(
        [rollout(2, 1.0, True), rollout(1, 4.0, True)], [[0.2, 0.4], [1.0]], [9.0, 9.0], -1.5, None
    )
    _, targets, told = ppo.learn_from(recipe, harvest, networks)
    # With trace 1 the returns are the scores, 1, 1 and 4, of variance 2; the errors are 0.8, 0.6 and 3.
    assert set(told) == {"explained_variance", "value/mean", "returns/mean"}
    assert told["explained_variance"] == pytest.approx(1 - ((0.64 + 0.36 + 9) / 3 - (4.4 / 3) ** 2) / 2)
    assert (told["value/mean"], told["returns/mean"]) == (pytest.approx(1.6 / 3), pytest.approx(2.0))
    assert all(type(value) is float for value in told.values())
    assert targets.old_logprobs[0].tolist() == [0.0, -1.5, -1.5]
    assert targets.sampler_logprobs[0].tolist() == [0.0, -1.0, -1.0]


@pytest.mark.parametrize(("cut", "goal"), [("bootstrap", 7.0), ("end", -2.0)])
def test_an_answer_that_was_cut_goes_on_as_sampling_cut_says(cut: str, goal: float) -> None:
    """Score -2 and V(end) = 9: with trace 1 all returns are 7 where the cut is no end, -2 where it is one."""
    recipe = PpoRecipe.model_validate(
        {"data": {"task": "arithmetic"}, "sampling": {"cut": cut}, "ppo": {"whiten": False, "kl_coef": 0, "trace": 1}}
    )
    harvest, networks = fixed([rollout(2, -2.0, False)], [[0.2, 0.4]], [9.0], -1.5, None)
    _, targets, _ = ppo.learn_from(recipe, harvest, networks)
    assert targets.returns[targets.mask].tolist() == pytest.approx([goal, goal])


def test_passes_stop_above_the_mean_of_the_updates_after_the_first() -> None:
    recipe = PpoRecipe(data=DataSection(task="arithmetic"), ppo=PpoSection(target_kl=0.25))
    loop = Loop(ppo.PpoTargets)
    assert not ppo.moved_too_far(recipe, loop)
    for moved, stops in ((0.0, False), (0.25, False), (0.25, False), (0.5, True)):
        loop.add({"approx_kl": moved})
        assert ppo.moved_too_far(recipe, loop) == stops
    free = PpoRecipe(data=DataSection(task="arithmetic"), ppo=PpoSection(target_kl=None))
    assert not ppo.moved_too_far(free, loop)


def test_an_update_tells_what_both_networks_did() -> None:
    recipe = PpoRecipe(data=DataSection(task="arithmetic"), ppo=PpoSection(kl_coef=0.0, whiten=False))
    critic = Learner(ValueNetwork(tiny.served().get_decoder()), OptimizerSettings(1e-3, 10))
    networks = ppo.Networks(policy(tiny.served()), critic, None)
    harvest, scorers = fixed([rollout(2, 1.0, True)], [[0.0, 0.0]], [0.0], -1.0, None)
    batch, targets, _ = ppo.learn_from(recipe, harvest, scorers)
    told = ppo.update(recipe, networks, batch, targets, 0, first=True)
    losses = {"loss", "value_loss", "grad_norm", "critic/grad_norm", "lr"}
    distances = {"approx_kl", "clip_ratio", "ratio/mean", "ratio/max", "sampler_gap/mean", "sampler_gap/max"}
    assert set(told) == losses | distances | {"entropy"}
    assert told["value_loss"] == pytest.approx(0.5 * (0.95**2 + 1) / 2)  # V = 0; GAE's trace is 0.95
    assert told["lr"] == networks.policy.optimizer.settings.rate(0)
