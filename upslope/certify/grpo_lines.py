"""GRPO's own functions against the exact answers: groups of every make-up, weightings, the KL terms in the loss."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from upslope.certify.common_lines import TIGHT
from upslope.certify.ground import Ground, apart, coin, cosine, doubles, harvested, paths, sum_of
from upslope.certify.lines import Line
from upslope.recipes import grpo
from upslope.recipes.configs import GrpoRecipe
from upslope.recipes.loop import Clock
from upslope.text.collation import collate_rollouts
from upslope.worlds.prefix_tree import Exact, PrefixTree


def recipe(**settings: Any) -> GrpoRecipe:
    """The settings that matter here; two passes, so that the recipe keeps the learner's own log-probabilities."""
    keys = {"data": {"task": "text-grid"}, "sampling": {"max_new_tokens": 5}, "train": {"epochs": 2}, "grpo": settings}
    return GrpoRecipe.model_validate(keys)


def grpo_lines(ground: Ground) -> Iterator[Line]:
    """Baselines, scales, ratios, weightings, KL terms."""
    exact = ground.policy_gradient()
    for ratio, told in (("token", "leave-one-out, G = 2"), ("sequence", "leave-one-out, sequence ratio (GSPO), G = 2")):
        found = -_expected(ground, recipe(group=2, ratio=ratio))
        yield _vector(f"policy gradient, {told}", exact, found)
    found = -_expected(ground, recipe(group=2, baseline="mean"))
    yield _vector("group mean, G = 2: half the gradient", exact / 2, found, note="a scale, (G-1)/G")
    yield from _groups(ground)
    yield from _std(coin())
    yield from _weightings(ground, exact)
    yield from _kl(ground)


def _vector(checked: str, wanted: Tensor, found: Tensor, note: str = "") -> Line:
    return Line("GRPO", checked, float(wanted.norm()), float(found.norm()), apart(found, wanted), TIGHT, note)


def _expected(ground: Ground, settings: GrpoRecipe, weighed: bool = False) -> Tensor:
    """The learner's gradient of the recipe's loss, in expectation over all groups of texts.

    Tokens weigh 1 / G, so that the right answer is the policy gradient itself; or as the recipe's ``weigh`` says where
    each group is a minibatch of its own.
    """
    size, number = settings.grpo.group, 0
    rows, mass = [], []
    for place, known in enumerate(ground.answers()):
        texts = [row for row in ground.rollouts() if row.group == place]
        p = known.leaf_probabilities.tolist()
        for members in itertools.product(range(len(texts)), repeat=size):
            rows += [replace(texts[member], group=number, sample=n) for n, member in enumerate(members)]
            mass += [math.prod(p[member] for member in members)] * size
            number += 1
    batch, targets = grpo.learn_from(settings, harvested(rows), ground.policy(), None, Clock())
    chance = torch.tensor(mass, dtype=torch.float64)[:, None]
    if weighed:
        with doubles():
            weights = torch.cat([grpo.weigh(settings, piece) for piece in targets.mask.split(size)]) * chance
    else:
        weights = targets.mask * chance / size
    return ground.gradient(batch, targets, weights, grpo.make_loss(settings, first=True))


def _groups(ground: Ground) -> Iterator[Line]:
    """Two groups of three in one batch, the second 10 points up; and a group whose rewards are all equal."""
    texts = ground.rollouts()[:3]
    scores = ((1.0, 4.0, -2.0), (11.0, 14.0, 15.0), (3.0, 3.0, 3.0))
    rows = [
        replace(text, group=group, rewards=(*(0.0,) * (len(text.rewards) - 1), score))
        for group, row in enumerate(scores)
        for text, score in zip(texts, row, strict=True)
    ]
    for scale, checked in (("none", "leave-one-out advantages, a group each"), ("std", "the same / std")):
        _, targets = grpo.learn_from(recipe(group=3, scale=scale), harvested(rows), ground.policy(), None, Clock())
        found = targets.advantages.sum(1) / targets.mask.sum(1)
        wanted = []
        for row in scores:
            gains = [score - (sum(row) - score) / 2 for score in row]
            mean = sum(row) / 3
            deviation = math.sqrt(sum((score - mean) ** 2 for score in row) / 3)
            wanted += [gain / deviation if scale == "std" and deviation > 0 else gain for gain in gains]
        gap = float((found - torch.tensor(wanted, dtype=torch.float64)).abs().max())
        exact, ours = (", ".join(f"{value:.3g}" for value in values) for values in (wanted[:3], found[:3].tolist()))
        yield Line("GRPO", f"{checked}; 0 in a silent one", exact, ours, gap, TIGHT)


def difficulty(p: float, group: int) -> float:
    """w_G(p): by how much dividing by a group's standard deviation weighs a prompt with success probability p.

    Rewards 0 and 1: E[gradient] = w_G(p) grad p, w_G(p) = sum_j Bin(j; G-1, p) [sqrt((G-1-j)/(j+1)) + sqrt(j/(G-j))].
    """
    total = 0.0
    for j in range(group):
        chance = math.comb(group - 1, j) * p**j * (1 - p) ** (group - 1 - j)
        total += chance * (math.sqrt((group - 1 - j) / (j + 1)) + math.sqrt(j / (group - j)))
    return total


def _std(ground: Ground) -> Iterator[Line]:
    gradient = ground.policy_gradient()
    p = float(ground.answers()[0].expected_return)
    for size in (2, 4):
        found = -_expected(ground, recipe(group=size, baseline="mean", scale="std"))
        weight = difficulty(p, size)
        note = f"{weight:.2f}x (p = .1, G = 16: {difficulty(0.1, 16):.2f}x)"
        yield _vector(f"std scaling, rewards 0 and 1, p = {p:.3f}, G = {size}", weight * gradient, found, note)


def _weightings(ground: Ground, exact: Tensor) -> Iterator[Line]:
    """One group of two completions is a minibatch: what each weighting makes of it."""
    limit = recipe().sampling.max_new_tokens
    found = -_expected(ground, recipe(group=2, weighting="constant_length"), weighed=True)
    yield _vector(f"constant length: 1/{limit} of the gradient", exact / limit, found)
    wanted = ground.autograd(sum_of([_by_length(ground, tree, known, each=True) for tree, known in _pairs(ground)]))
    found = -_expected(ground, recipe(group=2, weighting="sequence_mean"), weighed=True)
    yield _vector("sequence mean: each text divided by its length", wanted, found,
                  f"short texts count more, cosine {cosine(wanted, exact):.4f}")  # fmt: skip
    wanted = ground.autograd(sum_of([_by_length(ground, tree, known, each=False) for tree, known in _pairs(ground)]))
    found = -_expected(ground, recipe(group=2, weighting="token_mean"), weighed=True)
    yield _vector("token mean: divided by the tokens of the minibatch", wanted, found,
                  f"cosine {cosine(wanted, exact):.4f} in batches of 2 texts")  # fmt: skip


def _pairs(ground: Ground) -> list[tuple[PrefixTree, Exact]]:
    return list(zip(ground.trees, ground.answers(), strict=True))


def _by_length(ground: Ground, tree: PrefixTree, known: Exact, each: bool) -> Tensor:
    """The number whose gradient two texts y, z follow on average: sum p(y) p(z) (R(y) - R(z)) log pi(y) / length, the
    length being 2 |y|, or |y| + |z| of both, times the two texts."""
    p, score = known.leaf_probabilities, tree.leaf_scores
    lengths = torch.tensor([float(len(text)) for text in tree.leaf_tokens()], dtype=torch.float64)
    divisor = 2 * lengths[:, None] if each else lengths[:, None] + lengths
    coefficient = 2 * (p[:, None] * p * (score[:, None] - score) / divisor).sum(1)
    table = ground.logprobs(tree)
    logprobs = torch.stack([torch.stack([table[place] for place in path]).sum() for path in paths(tree)])
    return (coefficient * logprobs).sum()


def _kl(ground: Ground) -> Iterator[Line]:
    """k2 and k3 as terms of the loss: each follows a KL of every choice, how often one comes there held fixed."""
    batch = collate_rollouts(ground.rollouts())
    now, ref = ground.policy().evaluate(batch).logprobs, ground.frozen().evaluate(batch).logprobs
    zero = torch.zeros_like(now)
    weights = ground.mass()[:, None] * batch.mask
    for name, turned in (("k2", False), ("k3", True)):
        settings = recipe(group=2, kl_coef=1.0, kl_estimator=name)
        found = ground.gradient(
            batch, grpo.GrpoTargets(batch.mask, zero, now, now, ref), weights, grpo.make_loss(settings, first=True)
        )
        parts = [_choice_kl(ground, tree, known, turned) for tree, known in _pairs(ground)]
        wanted = ground.autograd(sum_of(parts))
        which = "KL(ref || pi)" if turned else "KL(pi || ref)"
        note = "not the KL that k1 in the reward has" if turned else ""
        yield _vector(f"{name} in the loss: gradient of {which} of each choice", wanted, found, note)


def _choice_kl(ground: Ground, tree: PrefixTree, known: Exact, turned: bool) -> Tensor:
    ours = torch.where(tree.legal, ground.logprobs(tree), 0.0)
    theirs = torch.where(tree.legal, ground.logprobs(tree, reference=True), 0.0)
    first, second = (theirs, ours) if turned else (ours, theirs)
    kl = (first.exp() * (first - second) * tree.legal).sum(1)
    return (known.occupancy * kl).sum()
