"""Group baselines and token weights: every group of texts enumerated, through GRPO's targets, loss and weights."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.truth.support import (
    F64,
    ONE_MOVE,
    THREE,
    TWO,
    Gradient,
    Whole,
    agree,
    autograd,
    cosine,
    group_weights,
    groups,
    grpo_recipe,
    harvested,
    learned,
    learner,
    net,
    of_texts,
    scaled,
    tables,
    whole,
)  # fmt: skip
from upslope.models.tree import tree_logprobs
from upslope.recipes import grpo
from upslope.recipes.loop import Clock
from upslope.types import Rollout
from upslope.worlds.prefix_tree import exact

MICRO = 1500
"""Tokens of a micro-batch: the enumerated groups are many."""


def of_groups(of: Whole, size: int, success: bool = False, **settings: str) -> Gradient:
    """Minus the expected gradient of GRPO's loss over all groups, each token with the probability of its group and
    1 / group size. With ``success`` a text's reward is 1 if no text of its prompt scores higher, else 0."""
    model = net()
    rows, index = groups(of, size)
    if success:
        rows = [only_success(of, row, int(text)) for row, text in zip(rows, index, strict=True)]
    at, recipe = learner(model, MICRO), grpo_recipe(size, **settings)
    batch, targets = grpo.learn_from(recipe, harvested(rows), at, None, Clock())
    weights = group_weights(of, index, size, tables(model, of.names))[:, None] / size * targets.mask
    return scaled(learned(at, batch, targets, weights, grpo.make_loss(recipe, first=True)), -1.0)


def only_success(of: Whole, row: Rollout, text: int) -> Rollout:
    best = max(float(score) for score in of.trees[of.owner[text]].leaf_scores)
    return replace(row, rewards=(*(0.0 for _ in row.rewards[1:]), float(row.score == best)))


def gradient_of_return(of: Whole) -> Gradient:
    model = net()
    return autograd(learner(model), of.expected_return(model))


# ------------------------------------------------------------------------------------------------------------ baselines
@pytest.mark.parametrize(("size", "names"), [(2, THREE), (3, TWO)])
def test_leave_one_out_is_exactly_the_policy_gradient(size: int, names: tuple[str, ...]) -> None:
    of = whole(names)
    agree(of_groups(of, size, baseline="leave_one_out"), gradient_of_return(of))


@pytest.mark.parametrize(("size", "names"), [(2, THREE), (3, TWO)])
def test_the_mean_of_the_group_is_g_minus_1_over_g_of_it(size: int, names: tuple[str, ...]) -> None:
    of = whole(names)
    agree(of_groups(of, size, baseline="mean"), scaled(gradient_of_return(of), (size - 1) / size))


def weight_of_std(p: float, group: int) -> float:
    """w_G(p) = sum_j Bin(j; G - 1, p) (sqrt((G - 1 - j) / (j + 1)) + sqrt(j / (G - j)))."""
    return sum(
        math.comb(group - 1, j)
        * p**j
        * (1 - p) ** (group - 1 - j)
        * (math.sqrt((group - 1 - j) / (j + 1)) + math.sqrt(j / (group - j)))
        for j in range(group)
    )


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize(("size", "names"), [(2, THREE), (3, TWO), (4, ONE_MOVE)])
def test_std_scaling_of_binary_rewards_weighs_a_prompt_by_w_of_its_difficulty(
    size: int, names: tuple[str, ...], baseline: str
) -> None:
    """E[gradient] = mean over prompts of w_G(p) grad p; leaving one out multiplies by G / (G - 1)."""
    of, model = whole(names), net()
    at = learner(model)
    wanted = torch.zeros((), dtype=F64)
    weights = []
    for tree in of.trees:
        best = float(tree.leaf_scores.max())
        hit = (tree.child < 0) & tree.legal & (tree.so_far[:, None] + tree.reward == best)
        p = exact(replace(tree, reward=hit.to(F64)), tree_logprobs(model, tree)).expected_return
        weights.append(weight_of_std(float(p.detach()), size))
        wanted = wanted + weights[-1] * p / of.prompts
    factor = size / (size - 1) if baseline == "leave_one_out" else 1.0
    found = of_groups(of, size, success=True, baseline=baseline, scale="std")
    agree(found, scaled(autograd(at, wanted), factor))
    if size == 4:
        assert max(weights) - min(weights) > 0.01  # prompts of different difficulty weigh differently
    else:  # in groups of 2 and 3 they do not
        assert weights == pytest.approx([math.sqrt(size - 1)] * of.prompts, abs=1e-12)


# -------------------------------------------------------------------------------------------------------- token weights
def weighted(of: Whole, rule: str) -> Gradient:
    """Minus the expected gradient over batches of two texts of a prompt, weighed by the recipe's rule."""
    model = net()
    rows, index = groups(of, 2)
    at, recipe = learner(model, MICRO), grpo_recipe(2, weighting=rule)
    batch, targets = grpo.learn_from(recipe, harvested(rows), at, None, Clock())
    by_rule = [grpo.weigh(recipe, targets.mask[row : row + 2]) for row in range(0, len(rows), 2)]
    weights = group_weights(of, index, 2, tables(model, of.names))[:, None] * torch.cat(by_rule)
    assert weights.dtype == F64
    return scaled(learned(at, batch, targets, weights, grpo.make_loss(recipe, first=True)), -1.0)


def of_lengths(of: Whole) -> tuple[Tensor, Tensor, Tensor]:
    """Score, number of tokens with the stop token, and probability / prompts of every text."""
    score = torch.tensor([row.score for row in of.rollouts], dtype=F64)
    length = torch.tensor([row.completion_length for row in of.rollouts], dtype=F64)
    return score, length, of.chances(tables(net(), of.names)) / of.prompts


@pytest.mark.usefixtures("wide_weights")
def test_a_constant_length_is_exactly_proportional_to_the_policy_gradient() -> None:
    of = whole()
    agree(weighted(of, "constant_length"), scaled(gradient_of_return(of), 1 / 4))  # max_new_tokens is 4


@pytest.mark.usefixtures("wide_weights")
def test_a_mean_over_each_sequence_is_not_proportional_to_the_policy_gradient() -> None:
    """It is the gradient in which each text's score counts 1 / |y|: sum of p (R - J) / |y| grad log p."""
    of = whole()
    found, right = weighted(of, "sequence_mean"), gradient_of_return(of)
    score, length, chance = of_lengths(of)
    returns = torch.stack([answers.expected_return for answers in of.exact(net())])[torch.tensor(of.owner)]
    agree(found, of_texts(learner(net()), of, chance * (score - returns) / length))
    direction = cosine(found, right)
    print(f"sequence mean: cosine with grad J {direction:.4f}")
    assert 0.5 < direction < 1 - 1e-4


@pytest.mark.usefixtures("wide_weights")
def test_a_mean_over_the_tokens_of_a_batch_is_the_expectation_over_its_random_divisor() -> None:
    """Over pairs: sum of p p' (R - R') / (|y| + |y'|) grad log p, twice; not proportional to grad J either."""
    of = whole()
    found, right = weighted(of, "token_mean"), gradient_of_return(of)
    score, length, chance = of_lengths(of)
    owner = torch.tensor(of.owner)
    same = (owner[:, None] == owner).to(F64)
    pairs = same * chance[:, None] * chance * of.prompts * (score[:, None] - score) / (length[:, None] + length)
    agree(found, of_texts(learner(net()), of, 2 * pairs.sum(1)))
    direction = cosine(found, right)
    print(f"token mean over pairs: cosine with grad J {direction:.4f}")
    assert 0.5 < direction < 1 - 1e-5
