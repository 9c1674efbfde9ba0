"""GAE, truncation and the critic: PPO's targets and value loss against V^pi, Q^pi and A^pi of the trees."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.learner.support import stock_gradients
from tests.truth.support import (
    BOUND,
    F64,
    Whole,
    agree,
    autograd,
    by_move,
    completions,
    critic,
    grown,
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
    sum_of,
    tables,
    whole,
)  # fmt: skip
from upslope.learner.learner import FrozenScorer
from upslope.models.networks import ValueNetwork
from upslope.models.tree import tree_values
from upslope.recipes import ppo
from upslope.recipes.rollouts import _rollout
from upslope.types import Rollout, ValueEvaluation
from upslope.worlds.prefix_tree import Exact
from upslope.worlds.rewards import Score

TRACES = (0.0, 0.5, 0.95, 1.0)


def wrong_values(of: Whole, answers: list[Exact]) -> dict[tuple[int, ...], float]:
    """V^pi and some points of error at every text that is not finished."""
    draw = torch.Generator().manual_seed(3)
    return {
        text: value + float(torch.randn((), generator=draw, dtype=F64)) for text, value in of.values(answers).items()
    }


def of_gae(of: Whole, values: dict[tuple[int, ...], float], trace: float) -> dict[str, Tensor]:
    model = net()
    recipe, networks = ppo_recipe(trace=trace), nets(model, values)
    batch, targets, _ = ppo.learn_from(recipe, harvested(of.rollouts), networks)
    weights = of.weights(tables(model, of.names), batch)
    return scaled(learned(networks.policy, batch, targets, weights, ppo.policy_loss(recipe, first=True)), -1.0)


# ------------------------------------------------------------------------------------------------------------------ GAE
@pytest.mark.parametrize("trace", TRACES)
def test_gae_is_exact_for_every_trace_with_the_true_values(trace: float) -> None:
    of, model = whole(), net()
    wanted = autograd(learner(model), of.expected_return(model))
    agree(of_gae(of, of.values(of.exact(model)), trace), wanted)


@pytest.mark.parametrize("trace", TRACES)
def test_the_expected_advantage_of_a_choice_is_a_with_the_true_values(trace: float) -> None:
    """E[A_t | h, a] = A^pi(h, a), choice by choice, although each text's estimate varies (but for trace 0)."""
    of, model = whole(), net()
    answers = of.exact(model)
    _, targets, _ = ppo.learn_from(ppo_recipe(trace=trace), harvested(of.rollouts), nets(model, of.values(answers)))
    chance = of.chances(tables(model, of.names))[:, None].expand_as(targets.advantages)
    found = [
        total / mass.clamp(min=1e-300)
        for total, mass in zip(of.collect(chance * targets.advantages), of.collect(chance), strict=True)
    ]
    worst = max(float((mean - exact.advantages).abs().max()) for mean, exact in zip(found, answers, strict=True))
    varies = float((targets.advantages - of.spread([exact.advantages for exact in answers])).abs().max())
    assert worst < BOUND
    assert varies < 1e-10 if trace == 0 else varies > 0.3


@pytest.mark.parametrize(("trace", "low", "high"), [(0.0, 0.1, 5.0), (0.5, 0.05, 3.0), (0.95, 0.005, 0.4)])
def test_gae_with_wrong_values_is_biased_by_what_the_error_says(trace: float, low: float, high: float) -> None:
    """With V = V^pi + e, GAE's expectation is A - e(h) + b(h, a), where e(h) is a baseline and

        b(h, a) = (1 - trace) e(ha) + trace sum_a' pi(a'|ha) b(ha, a') ,     b = 0 beyond the end,

    so the gradient is that of J plus sum of d pi b grad log pi: exactly so, and far from J's alone."""
    of, model = whole(), net()
    answers, at = of.exact(model), learner(model)
    truth, wrong = of.values(answers), wrong_values(of, answers)
    found = of_gae(of, wrong, trace)
    coefficients = []
    for tree, exact in zip(of.trees, answers, strict=True):
        prompt = tuple(tree.token_ids[: tree.prompt_length].tolist())
        bias = torch.zeros(tree.reward.shape, dtype=F64)
        for node in reversed(range(len(tree))):
            for choice in tree.legal[node].nonzero()[:, 0].tolist():
                text = (*prompt, *tree.path(node), int(tree.support[node, choice]))
                bias[node, choice] = (1 - trace) * (wrong[text] - truth[text])
                child = int(tree.child[node, choice])
                if child >= 0:
                    bias[node, choice] += trace * (exact.probabilities[child] * bias[child]).sum()
        coefficients.append(exact.occupancy[:, None] * exact.probabilities * (exact.advantages + bias) / of.prompts)
    agree(found, of_choices(at, of, coefficients))
    relative = off(found, autograd(at, of.expected_return(model)))
    print(f"trace {trace}: relative bias {relative:.3f}")
    assert low < relative < high


def test_gae_with_wrong_values_is_exact_for_trace_1() -> None:
    of, model = whole(), net()
    wanted = autograd(learner(model), of.expected_return(model))
    agree(of_gae(of, wrong_values(of, of.exact(model)), 1.0), wanted)


# ------------------------------------------------------------------------------------------ truncated is not terminated
def cut_short(name: str, most: int) -> tuple[Whole, list[Rollout]]:
    """Every text of at most ``most`` tokens that the sampler says when it may say no more; points by move."""
    tree, model = grown(name)[1], net()
    prompt = tree.token_ids[: tree.prompt_length].tolist()
    first = {row.token_ids: row for row in completions(name, model, 1500, most, 5)}
    rows = [
        _rollout(name, number, 0, prompt, first[ids], Score(0.0), 1.0) for number, ids in enumerate(sorted(first))
    ]  # fmt: skip
    of = Whole((name,), [tree], rows, [0] * len(rows))
    return of, by_move(of, rows)


@pytest.mark.parametrize("trace", TRACES)
@pytest.mark.parametrize("name", ["near", "wide"])
def test_a_walk_that_was_cut_bootstraps_and_its_expected_advantage_is_q_minus_v(name: str, trace: float) -> None:
    """Texts cut after H - 1 tokens, V = V^pi: E[A_t | h, a] = Q - V. Taking the cut for an end is far off."""
    of, rows = cut_short(name, 2)
    model, (answers,) = net(), of.exact(net())
    ended = [row.terminated for row in rows]
    assert ended.count(False) >= 3 and all(len(said(row)) <= 2 for row in rows)
    chance = of.chances(tables(model, of.names))[:, None]
    assert abs(float(chance.sum()) - 1) < 1e-12  # nothing that can be said is missing
    table = of.values([answers], so_far=False)

    def error(given: list[Rollout]) -> float:
        networks = nets(model, table)
        _, targets, _ = ppo.learn_from(ppo_recipe(trace=trace), harvested(given), networks)
        (mass,) = of.collect(chance.expand_as(targets.advantages))
        (total,) = of.collect(chance * targets.advantages)
        seen = mass > 0
        assert int(seen.sum()) >= 5
        return float((total[seen] / mass[seen] - answers.advantages[seen]).abs().max())

    assert error(rows) < BOUND
    assert error([replace(row, terminated=True) for row in rows]) > 0.5


def test_a_walk_that_ended_looks_at_no_value_beyond_its_end() -> None:
    """The table says ``GARBAGE`` after a stop token; the returns of trace 1 are the score at every token."""
    of, model = whole(), net()
    batch, targets, _ = ppo.learn_from(ppo_recipe(), harvested(of.rollouts), nets(model, of.values(of.exact(model))))
    score = torch.tensor([row.score for row in of.rollouts], dtype=F64)[:, None]
    assert float(((targets.returns - score) * batch.mask).abs().max()) < 1e-10


# ----------------------------------------------------------------------------------------------------------- the critic
def value_network(seed: int = 3) -> ValueNetwork:
    network = ValueNetwork(net(seed).model)
    nn.init.normal_(network.head.weight, generator=torch.Generator().manual_seed(4))
    return network


def test_the_gradient_of_the_value_loss_is_that_of_the_distance_to_the_true_values() -> None:
    """With weights p(y): grad of sum_h d(h) (V_phi(h) - so_far(h) - V^pi(h))^2 / 2, through the packed critic."""
    of, model, network = whole(), net(), value_network()
    recipe, networks = ppo_recipe(trace=1.0), nets(model, network)
    batch, targets, _ = ppo.learn_from(recipe, harvested(of.rollouts), networks)
    choices = of.spread([torch.ones_like(tree.reward) for tree in of.trees]) > 0  # not the forced stop tokens
    weights = of.weights(tables(model, of.names), batch) * choices
    found = learned(networks.critic, batch, targets, weights, ppo.value_loss(recipe))
    distance = sum_of(
        (exact.occupancy * (tree_values(network, tree) - tree.so_far - exact.values).square()).sum() / 2
        for tree, exact in zip(of.trees, of.exact(model), strict=True)
    )
    agree(found, stock_gradients(network, distance / of.prompts))


@pytest.mark.parametrize("trace", TRACES)
def test_the_critics_fixed_point_is_the_points_so_far_and_the_true_value(trace: float) -> None:
    """No gradient there, for any trace. Elsewhere, for trace 1, one Newton step (curvature d(h)) lands on it."""
    of, model = whole(), net()
    answers = of.exact(model)
    truth = of.values(answers)

    def gradient(values: dict[tuple[int, ...], float]) -> tuple[Tensor, Tensor]:
        networks, recipe = nets(model, values), ppo_recipe(trace=trace)
        batch, targets, _ = ppo.learn_from(recipe, harvested(of.rollouts), networks)
        weights = of.weights(tables(model, of.names), batch)
        found = learned(networks.critic, batch, targets, weights, ppo.value_loss(recipe))["table"]
        ones = replace(targets, returns=targets.old_values - 1.0)
        visits = learned(networks.critic, batch, ones, weights, ppo.value_loss(recipe))["table"]
        return found, visits

    at_truth, visits = gradient(truth)
    assert float(at_truth.abs().max()) < BOUND
    assert abs(float(visits[0])) == 0 and float(visits[1:].min()) > 1e-4  # every text is visited, none beyond its end
    wrong = wrong_values(of, answers)
    slope, _ = gradient(wrong)
    assert float(slope.abs().max()) > 0.1
    landed = torch.tensor(list(wrong.values()), dtype=F64) - slope[1:] / visits[1:]
    gap = float((landed - torch.tensor(list(truth.values()), dtype=F64)).abs().max())
    assert gap < BOUND if trace == 1.0 else gap > 0.01


def test_the_packed_critic_is_the_trees() -> None:
    of, network = whole(), value_network()
    batch = harvested(of.rollouts)
    found = FrozenScorer[ValueEvaluation](network, 60).evaluate(ppo.collate_rollouts(batch.rollouts)).values
    with torch.no_grad():
        wanted = [
            tree_values(network, tree)[:, None].expand(tree.reward.shape) for tree in of.trees
        ]  # fmt: skip
    choices = of.spread([torch.ones_like(tree.reward) for tree in of.trees]) > 0
    assert float((found - of.spread(wanted))[choices].abs().max()) < 1e-10
    assert critic(network).version == 0
