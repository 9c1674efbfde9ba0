"""KL penalties, the optimum under them, and DPO: the recipes' KL terms against exact divergences of the trees.

Where a policy has to stand exactly at an optimum, the network stays as it is and the reference is computed for which
that network *is* the optimum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.truth.support import (
    BOUND,
    F64,
    ONE_MOVE,
    THREE,
    Gradient,
    TableScorer,
    Whole,
    agree,
    autograd,
    cosine,
    frozen,
    group_weights,
    groups,
    grpo_recipe,
    harvested,
    learned,
    learner,
    net,
    nets,
    of_choices,
    off,
    ppo_recipe,
    scaled,
    size,
    sum_of,
    tables,
    texts_batch,
    vanishes,
    whole,
)  # fmt: skip
from upslope.maths import kl, losses
from upslope.models.tree import tree_logprobs
from upslope.recipes import grpo, ppo
from upslope.recipes.loop import Clock
from upslope.text.collation import collate_rollouts
from upslope.types import PolicyEvaluation, Rows
from upslope.worlds.prefix_tree import PrefixTree, exact, regularised_return, sequence_kl, soft_optimum

BETA = 0.8
REFERENCE = 5
"""The seed of the network that is the reference."""


# ----------------------------------------------------------------------------------------------- the two recipes' sides
def of_grpo(of: Whole, model: Any, reference: Any, estimator: str, beta: float = BETA, **settings: Any) -> Gradient:
    """Minus the expected gradient of GRPO's loss with its KL term, over all pairs. ``reference``: a net or tables."""
    rows, index = groups(of, 2)
    at = learner(model, 1500)
    scorer = TableScorer(of, reference, rows) if isinstance(reference, list) else frozen(reference, 1500)
    recipe = grpo_recipe(2, kl_coef=beta, kl_estimator=estimator, **settings)
    batch, targets = grpo.learn_from(recipe, harvested(rows), at, scorer, Clock())
    weights = group_weights(of, index, 2, tables(model, of.names))[:, None] / 2 * targets.mask
    return scaled(learned(at, batch, targets, weights, grpo.make_loss(recipe, first=True)), -1.0)


def ppo_targets(
    of: Whole, model: Any, reference: Any, values: dict[tuple[int, ...], float], trace: float = 1.0
) -> tuple[Any, Any, Any, Any]:
    """Recipe, networks, batch and targets with k1 in the reward."""
    scorer = TableScorer(of, reference, of.rollouts) if isinstance(reference, list) else frozen(reference)
    recipe, networks = ppo_recipe(trace=trace, kl_coef=BETA), nets(model, values, scorer)
    batch, targets, _ = ppo.learn_from(recipe, harvested(of.rollouts), networks)
    return recipe, networks, batch, targets


def of_ppo(
    of: Whole, model: Any, reference: Any, values: dict[tuple[int, ...], float] | None = None, trace: float = 1.0
) -> Gradient:
    nothing = dict.fromkeys(of.values(of.exact(model)), 0.0)
    recipe, networks, batch, targets = ppo_targets(of, model, reference, values or nothing, trace)
    weights = of.weights(tables(model, of.names), batch)
    return scaled(learned(networks.policy, batch, targets, weights, ppo.policy_loss(recipe, first=True)), -1.0)


def returns_at_start(of: Whole, model: Any, reference: Any) -> float:
    """The mean over prompts of E[score - beta sum of k1], by PPO's returns at the first token of each text."""
    *_, batch, targets = ppo_targets(of, model, reference, dict.fromkeys(of.values(of.exact(model)), 0.0))
    first = batch.mask.int().argmax(1)
    chance = of.chances(tables(model, of.names))
    return float((chance * targets.returns[torch.arange(len(batch)), first]).sum() / of.prompts)


# ------------------------------------------------------------------------------------------------------- the exact side
def mean_over(of: Whole, model: Any, what: Any, reference: Sequence[Tensor]) -> Tensor:
    """Mean over the prompts of ``what(tree, log pi, log ref)``, with its gradient."""
    return (
        sum_of(what(tree, tree_logprobs(model, tree), ref) for tree, ref in zip(of.trees, reference, strict=True))
        / of.prompts
    )


def penalised(tree: PrefixTree, ours: Tensor, ref: Tensor, beta: float = BETA) -> Tensor:
    return regularised_return(tree, ours, ref, beta)


def by_token(tree: PrefixTree, ours: Tensor, ref: Tensor, turned: bool = False) -> Tensor:
    """sum_h d(h) KL_h with the occupancy held: what a loss on tokens sees. ``turned``: KL(ref || pi)."""
    d = exact(tree, ours.detach()).occupancy
    ours, ref = torch.where(tree.legal, ours, 0.0), torch.where(tree.legal, ref, 0.0)
    weight = ref.exp() if turned else ours.exp()
    gap = ref - ours if turned else ours - ref
    return (d * (weight * gap * tree.legal).sum(1)).sum()


def with_penalty(of: Whole, model: Any, reference: Sequence[Tensor], penalty: Any) -> Gradient:
    """grad of J - beta penalty."""
    return autograd(learner(model), of.expected_return(model) - BETA * mean_over(of, model, penalty, reference))


def turned_round(tree: PrefixTree, ours: Tensor, ref: Tensor) -> Tensor:
    return sequence_kl(tree, ref, ours)


# ------------------------------------------------------------------------------------------------------ values of k1..3
def test_k1_and_k3_are_the_divergence_as_values_and_k2_is_not() -> None:
    """E over texts of their sum: k1 in PPO's returns, k3 in GRPO's metric ``kl``, k2 in GRPO's loss."""
    of, model, reference = whole(), net(), net(REFERENCE)
    refs = tables(reference, of.names)
    with torch.no_grad():
        wanted = float(mean_over(of, model, sequence_kl, refs))
        expected = float(of.expected_return(model))
    assert wanted > 0.1
    k1 = (expected - returns_at_start(of, model, reference)) / BETA
    batch, at = texts_batch(of), learner(model)
    old, ref = at.evaluate(batch).logprobs, frozen(reference).evaluate(batch).logprobs
    goal = grpo.GrpoTargets(batch.mask, torch.zeros_like(old), old, old, ref)
    weights = of.weights(tables(model, of.names), batch)
    told = at.gradient(batch, goal, weights, grpo.make_loss(grpo_recipe(kl_coef=1.0, kl_estimator="k2"), first=True))
    assert abs(k1 - wanted) < BOUND
    assert abs(told["kl"] * float(weights.sum()) - wanted) < BOUND
    print(f"KL {wanted:.4f}, E k2 {told['loss']:.4f}")
    assert abs(told["loss"] - wanted) > 0.01


# ------------------------------------------------------------------------------------------------ as a term of the loss
@dataclass(frozen=True, slots=True)
class Reference(Rows):
    ref: Tensor


def test_k1_in_the_loss_has_no_gradient_and_the_recipe_refuses_it() -> None:
    of, model = whole(), net()
    batch, at = texts_batch(of), learner(model)
    ref = frozen(net(REFERENCE)).evaluate(batch).logprobs
    weights = of.weights(tables(model, of.names), batch)

    def loss(estimator: Any) -> Any:
        return lambda found, goal: (estimator(found.logprobs, goal.ref), {})

    found = learned(at, batch, Reference(ref), weights, loss(kl.k1))
    beside = learned(at, batch, Reference(ref), weights, loss(kl.k2))
    vanishes(found, beside)
    with pytest.raises(ValidationError, match="kl_estimator"):
        grpo_recipe(kl_coef=0.1, kl_estimator="k1")


@pytest.mark.parametrize(("estimator", "turned"), [("k2", False), ("k3", True)])
def test_k2_in_the_loss_is_kl_of_pi_from_ref_and_k3_is_kl_of_ref_from_pi(estimator: str, turned: bool) -> None:
    """Over whole texts where these are one choice long."""
    of, model = whole(ONE_MOVE), net()
    refs = tables(net(REFERENCE), of.names)
    found = of_grpo(of, model, net(REFERENCE), estimator)
    agree(found, with_penalty(of, model, refs, turned_round if turned else sequence_kl))
    other = with_penalty(of, model, refs, sequence_kl if turned else turned_round)
    assert off(found, other) > 0.05


@pytest.mark.parametrize(("estimator", "turned"), [("k2", False), ("k3", True)])
def test_a_token_term_in_the_loss_leaves_out_which_texts_come(estimator: str, turned: bool) -> None:
    """Over longer texts it is the gradient of sum_h d(h) KL_h with d held, and that is not the divergence's own."""
    of, model = whole(), net()
    refs = tables(net(REFERENCE), of.names)
    found = of_grpo(of, model, net(REFERENCE), estimator)
    agree(found, with_penalty(of, model, refs, partial(by_token, turned=turned)))
    partly = autograd(learner(model), mean_over(of, model, partial(by_token, turned=turned), refs))
    fully = autograd(learner(model), mean_over(of, model, turned_round if turned else sequence_kl, refs))
    missing = off(partly, fully)
    print(f"{estimator} on tokens: relative error to the whole divergence's gradient {missing:.3f}")
    assert 0.05 < missing < 5


# -------------------------------------------------------------------------------------------------------- in the reward
def test_k1_in_the_reward_is_the_gradient_of_the_divergence() -> None:
    """PPO's expected gradient is that of J - beta KL(pi || ref), over whole texts."""
    of, model = whole(), net()
    refs = tables(net(REFERENCE), of.names)
    agree(of_ppo(of, model, net(REFERENCE)), autograd(learner(model), mean_over(of, model, penalised, refs)))


@pytest.mark.parametrize("trace", [0.0, 0.95])
def test_k1_in_the_reward_is_exact_for_every_trace_with_the_true_penalised_values(trace: float) -> None:
    of, model = whole(), net()
    refs = tables(net(REFERENCE), of.names)
    values = of.values(of.exact(model))
    for tree, ref, ours in zip(of.trees, refs, tables(model, of.names), strict=True):
        prompt = tuple(tree.token_ids[: tree.prompt_length].tolist())
        reward = tree.reward - BETA * torch.where(tree.legal, ours - ref, 0.0)
        worth = exact(PrefixTree(**{**fields_of(tree), "reward": reward}), ours).values
        for node in range(len(tree)):
            values[(*prompt, *tree.path(node))] = float(tree.so_far[node] + worth[node])
    found = of_ppo(of, model, net(REFERENCE), values, trace)
    agree(found, autograd(learner(model), mean_over(of, model, penalised, refs)))


def fields_of(tree: PrefixTree) -> dict[str, Any]:
    return {name: getattr(tree, name) for name in PrefixTree.__slots__}


def test_k3_in_the_reward_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes off the gradient of sum_h d(h) KL_h(ref || pi): the difference of the two divergences."""
    of, model = whole(), net()
    refs = tables(net(REFERENCE), of.names)
    right = autograd(learner(model), mean_over(of, model, penalised, refs))
    turned = mean_over(of, model, partial(by_token, turned=True), refs)
    other = autograd(learner(model), mean_over(of, model, penalised, refs) + BETA * turned)
    monkeypatch.setattr(ppo.kl, "k1", kl.k3)
    found = of_ppo(of, model, net(REFERENCE))
    agree(found, other)
    print(f"k3 in the reward: relative error {off(found, right):.3f}, cosine {cosine(found, right):.3f}")
    assert off(found, right) > 0.05


# ---------------------------------------------------------------------------------------- the optimum under the penalty
def references(of: Whole, model: Any, beta: float) -> tuple[list[Tensor], list[Tensor]]:
    """For each tree the reference under which the model's policy is the optimum, and the optimum's values:

    V(h) = -beta log sum_a pi exp(-Q / beta),  ref = pi exp((V - Q) / beta),  Q(h, a) = r + V(ha)."""
    refs, values = [], []
    for tree, ours in zip(of.trees, tables(model, of.names), strict=True):
        v, q = torch.zeros(len(tree), dtype=F64), torch.zeros(tree.reward.shape, dtype=F64)
        for node in reversed(range(len(tree))):
            inner = tree.child[node] >= 0
            q[node] = tree.reward[node] + torch.where(inner, v[tree.child[node].clamp(min=0)], 0.0)
            v[node] = -beta * (ours[node] - q[node] / beta).logsumexp(0)
        refs.append(ours + (v[:, None] - q) / beta)
        values.append(v)
        assert float((refs[-1].exp().sum(1) - 1).abs().max()) < 1e-12
        assert float((soft_optimum(tree, refs[-1], beta).logprobs - ours)[tree.legal].abs().max()) < 1e-10
    return refs, values


def test_what_a_policy_loses_under_the_penalty_is_beta_times_its_divergence_from_the_optimum() -> None:
    """J*_beta by soft recursion, J_beta by PPO's returns with k1 in the reward."""
    of, reference = whole(), net(REFERENCE)
    soft = [
        soft_optimum(tree, ref, BETA) for tree, ref in zip(of.trees, tables(reference, of.names), strict=True)
    ]  # fmt: skip
    best = float(torch.stack([found.expected_return for found in soft]).mean())
    for seed in (0, 1):
        model = net(seed)
        with torch.no_grad():
            away = float(mean_over(of, model, sequence_kl, [found.logprobs for found in soft]))
        lost = best - returns_at_start(of, model, reference)
        assert lost > 0.5 and abs(lost - BETA * away) < BOUND
    refs, _ = references(of, net(), BETA)
    stars = [soft_optimum(tree, ref, BETA).expected_return for tree, ref in zip(of.trees, refs, strict=True)]
    assert abs(float(torch.stack(stars).mean()) - returns_at_start(of, net(), refs)) < BOUND


def test_the_optimum_is_ppos_fixed_point() -> None:
    of, model = whole(), net()
    refs, _ = references(of, model, BETA)
    vanishes(of_ppo(of, model, refs), autograd(learner(model), of.expected_return(model)))
    assert size(of_ppo(of, model, net(REFERENCE))) > 0.1


@pytest.mark.parametrize("trace", [0.0, 0.5, 0.95, 1.0])
def test_at_the_optimum_every_advantage_is_0_with_its_values(trace: float) -> None:
    """Not in expectation: on every token of every text."""
    of, model = whole(), net()
    refs, optimum = references(of, model, BETA)
    values = of.values(of.exact(model))
    for tree, v in zip(of.trees, optimum, strict=True):
        prompt = tuple(tree.token_ids[: tree.prompt_length].tolist())
        for node in range(len(tree)):
            values[(*prompt, *tree.path(node))] = float(tree.so_far[node] + v[node])
    *_, targets = ppo_targets(of, model, refs, values, trace)
    assert float(targets.advantages.abs().max()) < BOUND
    *_, elsewhere = ppo_targets(of, model, net(REFERENCE), values, trace)
    assert float(elsewhere.advantages.abs().max()) > 0.1


@pytest.mark.parametrize(("baseline", "factor"), [("leave_one_out", 1.0), ("mean", 2.0)])
def test_the_optimum_is_the_fixed_point_of_grpo_with_k2_where_texts_are_one_choice(
    baseline: str, factor: float
) -> None:
    """The mean of a pair halves the rewards' gradient, which doubles beta."""
    of, model = whole(ONE_MOVE), net()
    refs, _ = references(of, model, BETA * factor)
    beside = autograd(learner(model), of.expected_return(model))
    vanishes(of_grpo(of, model, refs, "k2", baseline=baseline), beside)


@pytest.mark.parametrize(("names", "estimator"), [(ONE_MOVE, "k3"), (THREE, "k3"), (THREE, "k2")])
def test_the_optimum_is_not_the_fixed_point_of_grpo_with_k3_nor_of_a_token_term_over_longer_texts(
    names: tuple[str, ...], estimator: str
) -> None:
    of, model = whole(names), net()
    refs, _ = references(of, model, BETA)
    left = size(of_grpo(of, model, refs, estimator)) / size(autograd(learner(model), of.expected_return(model)))
    print(f"GRPO + {estimator} in the loss at pi*, {of.names}: gradient {left:.3f} of J's")
    assert left > 0.02


def test_grpo_with_k3_has_a_fixed_point_of_its_own() -> None:
    """pi = beta ref / (lambda - r) for one choice, lambda = beta + J: found by solving for ref; it is not pi*."""
    of, model, beta = whole(ONE_MOVE), net(), 8.0
    refs, apart = [], []
    for tree, ours, found in zip(of.trees, tables(model, of.names), of.exact(model), strict=True):
        ref = ours + ((beta + found.expected_return - tree.reward) / beta).log()
        assert abs(float(ref.exp()[tree.legal].sum()) - 1) < 1e-12
        refs.append(ref)
        apart.append(float(sequence_kl(tree, ours, soft_optimum(tree, ref, beta).logprobs)))
    beside = autograd(learner(model), of.expected_return(model))
    vanishes(of_grpo(of, model, refs, "k3", beta), beside)
    print(f"KL(fixed point || pi*) {[round(number, 4) for number in apart]}")
    assert max(apart) > 1e-4
    assert size(of_grpo(of, model, refs, "k2", beta)) > 0.01 * size(beside)


# ------------------------------------------------------------------------------------------------------------------ DPO
def of_preferences(of: Whole, model: Any, refs: list[Tensor]) -> tuple[Gradient, float]:
    """Population gradient of ``losses.dpo`` over all pairs of texts of a prompt, labelled by Bradley and Terry from
    their scores; and the loss. Pairs come (chosen, rejected), both ways round."""
    rows, index = groups(of, 2)
    batch, at = collate_rollouts(rows), learner(model, 1500)
    ref = TableScorer(of, refs, rows).evaluate(batch).logprobs
    score = torch.tensor([of.rollouts[row].score for row in index.tolist()], dtype=F64).reshape(-1, 2)
    preferred = torch.sigmoid(score[:, 0] - score[:, 1])

    def loss(found: PolicyEvaluation, goal: Any) -> tuple[Tensor, dict[str, Tensor]]:
        ratio = (found.logprobs - goal.ref).sum(1).reshape(-1, 2)
        out = torch.zeros_like(found.logprobs)
        out[0::2, 0] = losses.dpo(ratio[:, 0], ratio[:, 1], BETA)
        return out, {}

    weights = torch.zeros(batch.mask.shape, dtype=F64)
    weights[0::2, 0] = group_weights(of, index, 2, tables(net(2), of.names))[0::2] * preferred
    total = at.gradient(batch, Reference(ref), weights, loss)["loss"]
    found = {name: gradient.clone() for name, gradient in at.optimizer.gradients().items()}
    return found, total


def test_dpos_population_gradient_is_0_at_the_optimum() -> None:
    """Pairs of any policy (here another network's): at pi* the implicit reward is the score plus a constant."""
    of, model = whole(), net()
    refs, _ = references(of, model, BETA)
    at_optimum, least = of_preferences(of, model, refs)
    elsewhere, more = of_preferences(of, model, tables(net(REFERENCE), of.names))
    assert size(elsewhere) > 0.05 and more > least + 0.01
    vanishes(at_optimum, elsewhere)
    ratio = of.chances(tables(model, of.names)).log() - of.chances(refs).log()
    implicit = BETA * ratio - torch.tensor([row.score for row in of.rollouts], dtype=F64)
    for number in range(of.prompts):
        own = implicit[torch.tensor(of.owner) == number]
        assert float(own.max() - own.min()) < BOUND


def test_every_choice_is_pulled_by_dpo_towards_the_optimum() -> None:
    """The gradient is sum over pairs of w (sigma(implicit) - sigma(score difference)) beta grad log ratio."""
    of, model = whole(ONE_MOVE), net()
    refs = tables(net(REFERENCE), of.names)
    found, _ = of_preferences(of, model, refs)
    chance, owner = of.chances(tables(net(2), of.names)), torch.tensor(of.owner)
    implicit = BETA * (of.chances(tables(model, of.names)).log() - of.chances(refs).log())
    score = torch.tensor([row.score for row in of.rollouts], dtype=F64)
    pull = torch.sigmoid(implicit[:, None] - implicit) - torch.sigmoid(score[:, None] - score)
    both = (owner[:, None] == owner) * chance[:, None] * chance / of.prompts * pull * BETA
    coefficients = both.sum(1)
    at = learner(model)
    time = texts_batch(of).mask.shape[1]
    agree(found, of_choices(at, of, of.collect(coefficients[:, None].expand(-1, time))))
