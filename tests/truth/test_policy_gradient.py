"""The policy gradient, improvement, the surrogate and importance weighting: the recipes' losses against the exact J."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.truth.support import (
    BOUND,
    F64,
    Gradient,
    TableCritic,
    Whole,
    agree,
    autograd,
    by_move,
    cosine,
    critic,
    grpo_recipe,
    harvested,
    learned,
    learner,
    net,
    nets,
    of_choices,
    off,
    ppo_recipe,
    said,
    scaled,
    size,
    tables,
    texts_batch,
    whole,
)  # fmt: skip
from upslope.maths import losses
from upslope.recipes import grpo, ppo
from upslope.recipes.grpo import GrpoTargets
from upslope.recipes.ppo import Networks, PpoTargets
from upslope.types import Batch
from upslope.worlds.prefix_tree import exact


def gradient_of_return(of: Whole, model: Any) -> Gradient:
    return autograd(learner(model), of.expected_return(model))


def of_ppo(of: Whole, model: Any, rollouts: Any, values: dict[tuple[int, ...], float], **settings: Any) -> Gradient:
    """Minus the expected gradient of PPO's policy loss, its targets by ``learn_from`` with this critic."""
    recipe, networks = ppo_recipe(**settings), nets(model, values)
    batch, targets, _ = ppo.learn_from(recipe, harvested(rollouts), networks)
    weights = of.weights(tables(model, of.names), batch)
    return scaled(learned(networks.policy, batch, targets, weights, ppo.policy_loss(recipe, first=True)), -1.0)


def plain_targets(batch: Batch, advantages: Tensor, old: Tensor) -> PpoTargets:
    empty = torch.zeros_like(advantages)
    return PpoTargets(batch.mask, advantages, empty, empty, old, old)


def anything(of: Whole) -> dict[tuple[int, ...], float]:
    """Some number for every text: a baseline that knows nothing."""
    draw = torch.Generator().manual_seed(1)
    known = of.values(of.exact(net()))
    return dict(zip(known, torch.randn(len(known), generator=draw, dtype=F64).mul(3).tolist(), strict=True))


# --------------------------------------------------------------------------------------------------- what is enumerated
def test_every_text_of_every_prompt_is_there_once_and_their_probabilities_sum_to_1() -> None:
    of, model = whole(), net()
    found = learner(model).evaluate(texts_batch(of)).logprobs.sum(1).exp()
    leaves = torch.cat([answers.leaf_probabilities for answers in of.exact(model)])
    assert float((found - leaves).abs().max()) < 1e-12
    for number, tree in enumerate(of.trees):
        rows = [row for row, owner in zip(of.rollouts, of.owner, strict=True) if owner == number]
        assert [said(row) for row in rows] == tree.leaf_tokens()
        assert [row.score for row in rows] == tree.leaf_scores.tolist()
    assert abs(float(found.sum()) - of.prompts) < 1e-12
    assert len({tree.prompt_length for tree in of.trees}) == 3 and len({len(said(row)) for row in of.rollouts}) == 3


# --------------------------------------------------------------------------------------- the policy gradient, four ways
def test_policy_gradient_by_occupancy_times_policy_times_advantage() -> None:
    """grad J = sum_h d(h) sum_a pi(a|h) A(h, a) grad log pi(a|h): each choice once, in a text that passes through."""
    of, model = whole(), net()
    answers = of.exact(model)
    batch, at = texts_batch(of), learner(model)
    advantages = of.spread([found.advantages for found in answers])
    masses = of.spread([found.occupancy[:, None] * found.probabilities for found in answers]) / of.prompts
    first, seen = torch.zeros_like(masses), set()
    for row, (tree, path) in enumerate(of.paths()):
        for depth, place in enumerate(path):
            if (tree, place) not in seen:
                seen.add((tree, place))
                target = of.trees[tree].prompt_length - 1 + depth
                first[row, target] = masses[row, target]
    assert len(seen) == sum(int(tree.legal.sum()) for tree in of.trees)
    goal = plain_targets(batch, advantages, torch.zeros_like(advantages))
    found = learned(at, batch, goal, first, ppo.policy_loss(ppo_recipe(), first=True))
    agree(scaled(found, -1.0), gradient_of_return(of, model))


def test_policy_gradient_by_the_whole_return() -> None:
    """REINFORCE: the score at the end, a critic that says 0, trace 1."""
    of, model = whole(), net()
    found = of_ppo(of, model, of.rollouts, dict.fromkeys(of.values(of.exact(model)), 0.0))
    agree(found, gradient_of_return(of, model))


def test_policy_gradient_by_reward_to_go() -> None:
    """Each move's points on its own token: only what comes after a choice is its advantage."""
    of, model = whole(), net()
    nothing = dict.fromkeys(of.values(of.exact(model)), 0.0)
    agree(of_ppo(of, model, by_move(of), nothing), gradient_of_return(of, model))


def test_policy_gradient_by_any_state_baseline() -> None:
    of, model = whole(), net()
    found = of_ppo(of, model, of.rollouts, anything(of))
    agree(found, gradient_of_return(of, model))
    agree(of_ppo(of, model, by_move(of), anything(of)), gradient_of_return(of, model))


@pytest.mark.parametrize("tokens", [1, 100, 10_000])
def test_policy_gradient_is_the_same_however_the_batch_is_cut(tokens: int) -> None:
    of, model = whole(), net()
    recipe = ppo_recipe()
    values = critic(TableCritic(anything(of)))
    networks = Networks(learner(model, tokens), values, None)
    batch, targets, _ = ppo.learn_from(recipe, harvested(of.rollouts), networks)
    weights = of.weights(tables(model, of.names), batch)
    found = learned(networks.policy, batch, targets, weights, ppo.policy_loss(recipe, first=True))
    agree(scaled(found, -1.0), gradient_of_return(of, model))


# ---------------------------------------------------------------------------------------------------------- improvement
def temporal_differences(of: Whole, model: Any) -> PpoTargets:
    """PPO's targets with trace 0 and V = V^pi: advantages are A^pi of each choice, returns are Q^pi."""
    networks = nets(model, of.values(of.exact(model)))
    return ppo.learn_from(ppo_recipe(trace=0.0), harvested(of.rollouts), networks)[1]


def test_performance_difference() -> None:
    """J(pi') - J(pi) = E under pi' of the sum of A^pi over the text."""
    of, old, new = whole(), net(0), net(1)
    advantages = temporal_differences(of, old).advantages
    chance = learner(new).evaluate(texts_batch(of)).logprobs.sum(1).exp()
    found = float((chance[:, None] * advantages).sum() / of.prompts)
    with torch.no_grad():
        wanted = float(of.expected_return(new) - of.expected_return(old))
    assert abs(wanted) > 0.5 and abs(found - wanted) < BOUND


def test_policy_improvement_is_nowhere_worse_and_ends_at_the_optimum() -> None:
    """Greedy on PPO's returns for V = V^pi: V rises at every text, until it is V*."""
    of = whole()
    values = of.exact(net())
    passes = of.collect(of.spread([torch.ones_like(tree.reward) for tree in of.trees]))
    for _ in range(3):
        networks = nets(net(), of.values(values))
        _, targets, _ = ppo.learn_from(ppo_recipe(trace=0.0), harvested(of.rollouts), networks)
        sums = of.collect(targets.returns)
        better = []
        for tree, count, total, before in zip(of.trees, passes, sums, values, strict=True):
            q = (total / count.clamp(min=1)).masked_fill(~tree.legal, -torch.inf)
            best = torch.nn.functional.one_hot(q.argmax(1), q.shape[1]).to(F64)
            found = exact(tree, best.log())
            assert float((found.values - before.values).min()) > -1e-12
            better.append(found)
        values = better
    for tree, found, start in zip(of.trees, values, of.exact(net()), strict=True):
        assert torch.allclose(found.values, tree.best, atol=1e-12)
        assert float(found.expected_return - start.expected_return) > 0.5


# -------------------------------------------------------------------------------------------------------- the surrogate
def positive(of: Whole) -> list[Tensor]:
    draw = torch.Generator().manual_seed(2)
    return [torch.rand(tree.reward.shape, generator=draw, dtype=F64) + 0.5 for tree in of.trees]


@pytest.mark.parametrize("first", [True, False])
def test_the_surrogates_gradient_at_the_old_policy_is_the_policy_gradient(first: bool) -> None:
    """The ratio is 1, by construction in a first step and by the old log-probabilities in a later one."""
    of, model = whole(), net()
    networks, recipe = nets(model, of.values(of.exact(model))), ppo_recipe(trace=0.95)
    batch, targets, _ = ppo.learn_from(recipe, harvested(of.rollouts), networks)
    weights = of.weights(tables(model, of.names), batch)
    wanted = gradient_of_return(of, model)
    for loss, goal in (
        (ppo.policy_loss(recipe, first), targets),
        (
            grpo.make_loss(grpo_recipe(), first),
            GrpoTargets(batch.mask, targets.advantages, targets.old_logprobs, targets.old_logprobs, targets.advantages),
        ),
    ):
        agree(scaled(learned(networks.policy, batch, goal, weights, loss), -1.0), wanted)


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
@pytest.mark.parametrize(
    ("ratio", "sign", "slope"), [(1.3, 1.0, 0.0), (0.7, 1.0, 0.7), (1.3, -1.0, 1.3), (0.7, -1.0, 0.0)]
)
def test_the_four_corners_of_the_clip(kind: str, ratio: float, sign: float, slope: float) -> None:
    """A choice is pushed with its ratio times its advantage, unless it has moved too far the way it is pushed."""
    of, model = whole(), net()
    batch, at = texts_batch(of), learner(model)
    advantages = [sign * table for table in positive(of)]
    spread = of.spread(advantages)
    logs = tables(model, of.names)
    old = at.evaluate(batch).logprobs - torch.tensor(ratio, dtype=F64).log() * batch.mask
    weights = of.weights(logs, batch)
    if kind == "ppo":
        loss: Any = ppo.policy_loss(ppo_recipe(clip=0.2), first=False)
        goal: Any = plain_targets(batch, spread, old)
    else:
        loss = grpo.make_loss(grpo_recipe(clip_low=0.2, clip_high=0.28), first=False)
        goal = GrpoTargets(batch.mask, spread, old, old, old)
    found = learned(at, batch, goal, weights, loss)
    pushed = of_choices(at, of, of.collect(-weights * spread))
    assert size(pushed) > 0.1
    if slope == 0:
        assert size(found) == 0
    else:
        agree(found, scaled(pushed, slope))


@pytest.mark.parametrize(("high", "slope"), [(0.2, 0.0), (0.28, 1.25)])
def test_the_upper_clip_is_a_side_of_its_own(high: float, slope: float) -> None:
    """At ratio 1.25 GRPO's default still pushes up; a symmetric clip of .2 does not. Down it pushes either way."""
    of, model = whole(), net()
    batch, at = texts_batch(of), learner(model)
    spread = of.spread(positive(of))
    old = at.evaluate(batch).logprobs - torch.tensor(1.25, dtype=F64).log() * batch.mask
    weights = of.weights(tables(model, of.names), batch)
    loss = grpo.make_loss(grpo_recipe(clip_high=high), first=False)
    found = learned(at, batch, GrpoTargets(batch.mask, spread, old, old, old), weights, loss)
    pushed = of_choices(at, of, of.collect(-weights * spread))
    if slope == 0:
        assert size(found) == 0
    else:
        agree(found, scaled(pushed, slope))
    down = learned(at, batch, GrpoTargets(batch.mask, -spread, old, old, old), weights, loss)
    agree(down, scaled(pushed, -1.25))


# ----------------------------------------------------------------------------------------------------------- off-policy
def scores(of: Whole) -> Tensor:
    return torch.tensor([row.score for row in of.rollouts], dtype=F64)


def test_the_importance_ratio_of_the_sequence_is_exact_off_policy() -> None:
    """Texts of the old policy, weighed by (pi / pi_old)(y) of the whole text: sequence_ratio to the power of |y|."""
    of, old, new = whole(), net(0), net(1)
    batch, at = texts_batch(of), learner(new)
    ratio = losses.sequence_ratio(at.evaluate(batch).logprobs, learner(old).evaluate(batch).logprobs, batch.mask)
    importance = ratio ** batch.mask.sum(1)
    assert float((importance - 1).abs().max()) > 1
    weights = of.weights(tables(old, of.names), batch)
    goal = plain_targets(batch, (importance * scores(of))[:, None] * batch.mask, torch.zeros_like(weights))
    found = learned(at, batch, goal, weights, ppo.policy_loss(ppo_recipe(), first=True))
    agree(scaled(found, -1.0), gradient_of_return(of, new))


@pytest.mark.parametrize("kind", ["token", "sequence"])
def test_the_ratio_of_a_token_and_the_geometric_mean_are_not_exact_off_policy(kind: str) -> None:
    """GRPO's two ratios without clips, on texts of the old policy: far from grad J of the new one."""
    of, old, new = whole(), net(0), net(1)
    batch, at = texts_batch(of), learner(new)
    before = learner(old).evaluate(batch).logprobs
    gains = scores(of)[:, None] * batch.mask
    recipe = grpo_recipe(ratio=kind, clip_low=1.0, clip_high=1e12)
    weights = of.weights(tables(old, of.names), batch)
    goal = GrpoTargets(batch.mask, gains, before, before, before)
    found = scaled(learned(at, batch, goal, weights, grpo.make_loss(recipe, first=False)), -1.0)
    wrong, direction = off(found, gradient_of_return(of, new)), cosine(found, gradient_of_return(of, new))
    print(f"{kind} ratio off-policy: relative error {wrong:.3f}, cosine {direction:.3f}")
    assert 0.05 < wrong < 20


def test_the_ratio_of_a_token_weighs_the_old_policys_texts() -> None:
    """What PPO's surrogate does ascend without a clip: sum_h d_old(h) sum_a pi(a|h) A_old(h, a) grad log pi(a|h)."""
    of, old, new = whole(), net(0), net(1)
    batch, at = texts_batch(of), learner(new)
    before, after = of.exact(old), of.exact(new)
    recipe = grpo_recipe(clip_low=1.0, clip_high=1e12)
    logs = learner(old).evaluate(batch).logprobs
    goal = GrpoTargets(batch.mask, of.spread([found.advantages for found in before]), logs, logs, logs)
    weights = of.weights(tables(old, of.names), batch)
    found = learned(at, batch, goal, weights, grpo.make_loss(recipe, first=False))
    coefficients = [
        was.occupancy[:, None] * now.probabilities * was.advantages / of.prompts
        for was, now in zip(before, after, strict=True)
    ]
    agree(scaled(found, -1.0), of_choices(at, of, coefficients))


def test_rollouts_of_a_batch_keep_the_samplers_own_logprobs() -> None:
    """What stands behind p(y) here: log-probabilities that the sampler reported are those that the learner finds."""
    of, model = whole(), net()
    found = learner(model).evaluate(texts_batch(of)).logprobs
    for row, rollout in enumerate(of.rollouts):
        told = torch.tensor(rollout.logprobs[1:], dtype=F64)
        assert float((found[row, : len(told)] - told).abs().max()) < 1e-10
