"""A world that answers between two turns, enumerated: the learner's expected gradient is that of the exact J.

Turn one is two tokens, the world answers with one to three of its own, turn two is one token. Every episode is played
by the real sampler; its probability and J come from the stock model, one plain forward pass an episode.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.learner.support import patch_norms
from tests.truth.support import (
    F64,
    TableCritic,
    agree,
    autograd,
    critic,
    frozen,
    grpo_recipe,
    harvested,
    learned,
    learner,
    off,
    ppo_recipe,
    scaled,
    size,
)
from upslope.maths import returns
from upslope.models import attention
from upslope.recipes import grpo, ppo
from upslope.recipes.ppo import Networks
from upslope.rollout.episodes import play
from upslope.rollout.sampler import InProcessSampler
from upslope.text.collation import collate_rollouts, per_target
from upslope.types import Rollout, Sampling
from upslope.worlds.episode import Step

FIRST, SECOND, LAST = (10, 11), (12, 13), (14, 15, 16)
"""What may be said as the first, second and third token."""
PROMPT = [5, 6, 7]
ANSWERS = {(10, 12): (20,), (10, 13): (21, 22), (11, 12): (23, 24, 25), (11, 13): (20,)}
EARLY = {(10, 12): 0.5, (10, 13): -1.0, (11, 12): 0.0, (11, 13): 2.0}


def late(first: tuple[int, ...], last: int) -> float:
    """Points of the second turn: they depend on the first one too."""
    return float((last - 14) * (first[0] - 10) - (last == 15) * (first[1] - 12)) * 1.5


class World:
    """The first turn's points are ``EARLY``, the second's ``late``."""

    def __init__(self) -> None:
        self.first: tuple[int, ...] = ()

    def reset(self, seed: int) -> Sequence[int]:
        self.first = ()
        return PROMPT

    def step(self, token_ids: Sequence[int]) -> Step:
        if not self.first:
            self.first = tuple(token_ids)
            return Step(ANSWERS[self.first], EARLY[self.first])
        return Step((), late(self.first, token_ids[0]), terminated=True)


def allowed(prompt: Sequence[int], so_far: Sequence[int]) -> Sequence[int]:
    return LAST if len(prompt) > len(PROMPT) else (FIRST, SECOND)[len(so_far)]


class TwoTurns(InProcessSampler):
    """Turns of two tokens and of one, which no stop token ends."""

    def sample(self, prompts: Any, samples: int, sampling: Sampling, seeds: Any) -> Any:
        first = len(prompts[0]) == len(PROMPT)
        return super().sample(prompts, samples, Sampling(2 if first else 1, sampling.stop_ids, allowed=allowed), seeds)


@pytest.fixture(autouse=True)
def exact_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_norms(monkeypatch)


def model(seed: int = 0) -> Any:
    found = tiny.model("llama", seed, F64)
    with torch.no_grad():
        found.lm_head.weight *= 0.3
    found.set_attn_implementation(attention.NAME)
    return found


@lru_cache
def episodes(count: int = 400) -> tuple[Rollout, ...]:
    """Every episode once, as it was played."""
    played = play(TwoTurns(model(), 64, slots=100), [[World() for _ in range(count)]], Sampling(9, (2,)), [1], 20)[0]
    first: dict[tuple[int, ...], Rollout] = {}
    for number, found in enumerate(played):
        first.setdefault(found.chosen, found.rollout("p", number, 0, PROMPT, 1.0))
    assert first.keys() == set(itertools.product(FIRST, SECOND, LAST)), "an episode never came: play more"
    return tuple(first[said] for said in sorted(first))


def chances(network: Any, temperature: float = 1.0) -> Tensor:
    """[episodes] log-probability of each, by plain forward passes of the stock model; with its gradient."""
    found = []
    for rollout in episodes():
        ids = torch.tensor(rollout.token_ids)
        logits = network(input_ids=ids[None], use_cache=False).logits[0] / temperature
        total = logits.new_zeros(())
        for place, own in enumerate(rollout.action_mask):
            if own:
                support = torch.tensor(rollout.support[place])  # type: ignore[index]
                logs = logits[place - 1, support].log_softmax(0)
                total = total + logs[support == ids[place]].sum()
        found.append(total)
    return torch.stack(found)


def stock() -> Any:
    found = tiny.model("llama", 0, F64)
    with torch.no_grad():
        found.lm_head.weight *= 0.3
    return found


def scores() -> Tensor:
    return torch.tensor([rollout.score for rollout in episodes()], dtype=F64)


def exact_gradient() -> Any:
    """Autograd of J = sum over episodes of p(episode) times its points, in the stock model."""
    network = stock()
    value = (chances(network).exp() * scores()).sum()
    grads = torch.autograd.grad(value, list(network.parameters()), allow_unused=True)
    named = [f"model.{name}" for name, _ in network.named_parameters()]
    return {name: grad for name, grad in zip(named, grads, strict=True) if grad is not None}


def values() -> dict[tuple[int, ...], float]:
    """V^pi of every text at which a token is chosen: the points so far and those expected."""
    masses = chances(stock()).exp().detach()
    out: dict[tuple[int, ...], float] = {}
    for rollout in episodes():
        for place, own in enumerate(rollout.action_mask):
            if own:
                text = rollout.token_ids[:place]
                inside = torch.tensor([row.token_ids[:place] == text for row in episodes()])
                behind = sum(rollout.rewards[:place])
                out[text] = float((masses * inside * (scores() - behind)).sum() / (masses * inside).sum())
    return out


def test_the_episodes_are_all_there_are() -> None:
    assert len(episodes()) == 12 and float(chances(stock()).exp().sum()) == pytest.approx(1.0, abs=1e-12)
    lengths = {len(rollout.token_ids) for rollout in episodes()}
    assert lengths == {len(PROMPT) + 3 + n for n in (1, 2, 3)}
    for rollout in episodes():
        said = tuple(t for t, own in zip(rollout.token_ids, rollout.action_mask, strict=True) if own)
        assert rollout.score == EARLY[said[:2]] + late(said[:2], said[2])
        assert rollout.token_ids[len(PROMPT) + 2 : -1] == ANSWERS[said[:2]]
        assert [rollout.rewards[place] for place in (len(PROMPT) + 1, -1)] == [EARLY[said[:2]], late(said[:2], said[2])]


def test_the_sampler_and_the_learner_give_an_episode_its_probability() -> None:
    batch = collate_rollouts(episodes())
    learned_ = learner(model()).evaluate(batch).logprobs
    wanted = chances(stock()).detach()
    assert float((learned_.sum(1) - wanted).abs().max()) < 1e-10
    sampled = torch.tensor([sum(rollout.logprobs) for rollout in episodes()], dtype=F64)
    assert float((sampled - wanted).abs().max()) < 1e-6
    assert bool((learned_[~batch.mask] == 0).all()) and int(batch.mask.sum()) == 12 * 3


@pytest.mark.parametrize("trace", [1.0, 0.95, 0.0])
def test_ppos_expected_gradient_is_the_gradient_of_j(trace: float) -> None:
    """With V^pi as critic every trace gives it: the answer of the world is transparent."""
    network = model()
    recipe = ppo_recipe(trace=trace)
    networks = Networks(learner(network), critic(TableCritic(values())), None)
    batch, targets, _ = ppo.learn_from(recipe, harvested(episodes()), networks)
    weights = chances(stock()).exp().detach()[:, None] * batch.mask
    agree(
        scaled(learned(networks.policy, batch, targets, weights, ppo.policy_loss(recipe, True)), -1.0), exact_gradient()
    )


def test_with_any_critic_reward_to_go_gives_it_too_and_its_returns_are_the_points_to_come() -> None:
    known = {text: value + 3.0 * len(text) for text, value in values().items()}
    networks = Networks(learner(model()), critic(TableCritic(known)), None)
    recipe = ppo_recipe(trace=1.0)
    batch, targets, _ = ppo.learn_from(recipe, harvested(episodes()), networks)
    weights = chances(stock()).exp().detach()[:, None] * batch.mask
    agree(
        scaled(learned(networks.policy, batch, targets, weights, ppo.policy_loss(recipe, True)), -1.0), exact_gradient()
    )
    for row, rollout in enumerate(episodes()):
        for place in batch.mask[row].nonzero()[:, 0].tolist():
            assert float(targets.returns[row, place]) == pytest.approx(sum(rollout.rewards[place + 1 :]), abs=1e-6)


def test_grpos_expected_gradient_over_groups_is_the_gradient_of_j() -> None:
    """Leave-one-out over every group of two, each with its probability."""
    rows = [row for pair in itertools.product(range(12), repeat=2) for row in pair]
    rollouts = [episodes()[row] for row in rows]
    numbered = [
        Rollout(**{**_fields(one), "group": place // 2, "sample": place % 2}) for place, one in enumerate(rollouts)
    ]
    policy = learner(model())
    recipe = grpo_recipe(2)
    batch, targets = grpo.learn_from(recipe, harvested(numbered), policy, None, grpo.Clock())
    masses = chances(stock()).exp().detach()[torch.tensor(rows)]
    weights = masses.reshape(-1, 2).prod(1).repeat_interleave(2)[:, None] * batch.mask / 2
    found = learned(policy, batch, targets, weights, grpo.make_loss(recipe, True))
    agree(scaled(found, -1.0), exact_gradient())


def _fields(rollout: Rollout) -> dict[str, Any]:
    return {name: getattr(rollout, name) for name in rollout.__dataclass_fields__}


def test_training_on_the_worlds_tokens_too_would_be_another_gradient() -> None:
    """The check has teeth: the same with the answers in the mask misses."""
    policy = learner(model())
    batch = collate_rollouts(episodes())
    bare = [Rollout(**{**_fields(one), "support": None}) for one in episodes()]
    seen = [
        Rollout(**{**_fields(one), "action_mask": (False,) * 3 + (True,) * (len(one.token_ids) - 3)}) for one in bare
    ]
    wrong = collate_rollouts(seen)
    score = scores()[:, None]
    masses = chances(stock()).exp().detach()[:, None]
    found = autograd(policy, (policy.network(wrong).logprobs * masses * score).sum())
    right = autograd(policy, (policy.network(batch).logprobs * masses * score).sum())
    agree(right, exact_gradient())
    assert off(found, right) > 0.1 and size(right) > 0.1


def test_gae_steps_over_the_answer_by_hand() -> None:
    """Discount 0.5 an action of the policy, trace 0: A = r + 0.5 V(next action) - V, whatever stands between."""
    rollout = episodes()[3]  # (10, 13): an answer of two tokens
    batch = collate_rollouts([rollout])
    reward = per_target([rollout.rewards], batch.mask.shape[1])
    value = torch.tensor([[9.0, 9.0, 1.0, 2.0, 7.0, 7.0, 4.0]])
    found = returns.gae(reward, value, torch.zeros(1), batch.mask, 0.5, 0.0)
    early, last = EARLY[(10, 13)], rollout.rewards[-1]
    assert found.tolist() == [[0.0, 0.0, 0.5 * 2 - 1, early + 0.5 * 4 - 2, 0.0, 0.0, last - 4]]


def test_kl_and_entropy_count_the_policys_tokens_only() -> None:
    """The reward's KL penalty, the logged KL, and the entropy are 0 at the world's tokens."""
    recipe = ppo_recipe(kl_coef=0.3)
    networks = Networks(learner(model()), critic(TableCritic(values())), frozen(model(1)))
    batch, targets, metrics = ppo.learn_from(recipe, harvested(episodes()), networks)
    ours, theirs = networks.policy.evaluate(batch).logprobs, frozen(model(1)).evaluate(batch).logprobs
    ratio = (theirs - ours)[batch.mask]
    assert metrics["kl"] == pytest.approx(float((ratio.exp() - 1 - ratio).mean()), abs=1e-9)
    assert bool((targets.advantages[~batch.mask] == 0).all()) and bool((targets.returns[~batch.mask] == 0).all())
    entropy = networks.policy.evaluate(batch).entropy
    assert bool((entropy[~batch.mask] == 0).all()) and bool((entropy[batch.mask] > 0).all())
