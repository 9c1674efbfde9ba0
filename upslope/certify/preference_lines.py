"""Reward models and DPO against what preferences of a known model must give.

Pairs are drawn from a known law: two texts of one prompt, each with probability m, and text y is chosen over y' with
probability sigmoid(r(y) - r(y')) (Bradley and Terry). All pairs, both ways round, are one batch with these weights, so
that the learner's gradient is the expected one. Some texts of each prompt stand for all: what is certified holds for
every set of texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from upslope.certify.ground import Ground, apart, paths, taken
from upslope.certify.lines import Line
from upslope.learner.learner import Learner
from upslope.learner.optimizer import OptimizerSettings
from upslope.models.scoring import ScoreNetwork
from upslope.models.tree import tree_logprobs
from upslope.recipes import dpo, reward
from upslope.recipes.configs import DpoRecipe, RewardRecipe
from upslope.text.collation import collate_rollouts
from upslope.types import Batch, Rollout

TIGHT = 1e-8
TEXTS = 8
"""Texts of each prompt."""
BETA = 0.7
DATA = {"data": {"task": "worked-sums"}}


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Every pair of texts of a prompt, both ways round: rows 2i (chosen) and 2i + 1 of ``batch``.

    ``place`` [pairs, 2] says which text each is, ``score`` [texts] its true reward, ``share`` [texts] how often it is
    drawn among the texts of its prompt.
    """

    batch: Batch
    place: Tensor
    score: Tensor
    share: Tensor

    @property
    def mass(self) -> Tensor:
        """[pairs] probability of the two texts being compared, in this order."""
        return self.share[self.place].prod(1)

    def weights(self, score: Tensor) -> Tensor:
        """[rows, 1] probability of the pair with this outcome, on chosen rows, for preferences by ``score``."""
        difference = score[self.place[:, 0]] - score[self.place[:, 1]]
        return reward.on_chosen(self.mass * difference.sigmoid())


def all_pairs(ground: Ground) -> Pairs:
    """Pairs among the texts of each prompt."""
    rows: list[Rollout] = []
    place: list[tuple[int, int]] = []
    shares = []
    for number in range(len(ground.trees)):
        every = [row for row in ground.rollouts() if row.group == number]
        kept = every[:: max(1, len(every) // TEXTS)][:TEXTS]
        numbers = range(len(rows), len(rows) + len(kept))
        rows += kept
        place += [(a, b) for a in numbers for b in numbers if a != b]
        share = torch.arange(1, len(kept) + 1, dtype=torch.float64)
        shares.append(share / share.sum())
    both = [replace(rows[index], group=number) for number, pair in enumerate(place) for index in pair]
    scores = torch.tensor([row.score for row in rows], dtype=torch.float64)
    return Pairs(collate_rollouts(both), torch.tensor(place), scores, torch.cat(shares))


def preference_lines(ground: Ground) -> Iterator[Line]:
    """The loss of a reward model at the true scores; DPO and IPO at their optima, and their gradients elsewhere."""
    pairs = all_pairs(ground)
    yield from _reward_lines(ground, pairs)
    yield from _dpo_lines(ground, pairs)


def _reward_lines(ground: Ground, pairs: Pairs) -> Iterator[Line]:
    """A reward model's own scores are taken for the truth that people follow."""
    network = ScoreNetwork(ground.model.get_decoder(), _head(ground.model))
    learner: Learner[Any] = Learner(network, OptimizerSettings(1e-3, 10))
    scores = torch.zeros_like(pairs.score)
    scores[pairs.place.flatten()] = learner.evaluate(pairs.batch).scores
    loss = reward.make_loss(RewardRecipe.model_validate({**DATA, "reward_model": {"center": 0.0}}))
    goal = reward.PairTargets(torch.zeros(len(pairs.batch), dtype=torch.float64))
    found = learner.gradient(pairs.batch, goal, pairs.weights(scores), loss)["loss"]
    still = float(taken(learner).norm())
    wanted = _entropy(pairs, scores)
    yield Line("reward", "loss at the true scores: entropy of the preferences", wanted, found, abs(found - wanted),
               TIGHT)  # fmt: skip
    yield Line("reward", "gradient there (its minimum)", 0.0, still, still, TIGHT)
    learner.gradient(pairs.batch, goal, pairs.weights(pairs.score), loss)
    ours = taken(learner)
    exact = _by_autograd(network, pairs)
    yield Line("reward", "gradient at other scores", float(exact.norm()), float(ours.norm()), apart(ours, exact), TIGHT)


def _head(model: Any) -> Tensor:
    """Some head, so that texts differ in score by about 1."""
    width = model.config.hidden_size
    return torch.cos(torch.arange(width, dtype=torch.float64))[None]


def _entropy(pairs: Pairs, score: Tensor) -> float:
    difference = score[pairs.place[:, 0]] - score[pairs.place[:, 1]]
    return float((pairs.mass * difference.sigmoid() * softplus(-difference)).sum())


def _by_autograd(network: ScoreNetwork, pairs: Pairs) -> Tensor:
    """The gradient of the expected loss from a plain forward of each text alone."""
    plain = {}
    for row, text in zip(range(len(pairs.batch)), pairs.place.flatten().tolist(), strict=True):
        if text not in plain:
            plain[text] = network(pairs.batch.take([row])).scores[0]
    score = torch.stack([plain[text] for text in sorted(plain)])
    weight = pairs.weights(pairs.score)[0::2, 0]
    value = (weight * softplus(score[pairs.place[:, 1]] - score[pairs.place[:, 0]])).sum()
    weights = list(network.parameters())
    gradients = torch.autograd.grad(value, weights)
    return torch.cat([gradient.flatten() for gradient in gradients])


def _dpo_lines(ground: Ground, pairs: Pairs) -> Iterator[Line]:
    """The policy in hand is made the optimum, by the choice of its reference; and compared elsewhere."""
    learner = ground.policy()
    whole = dpo.whole(learner.evaluate(pairs.batch), pairs.batch.mask)
    true = pairs.score[pairs.place].reshape(-1)
    recipe = DpoRecipe.model_validate({**DATA, "dpo": {"beta": BETA}})
    weights = pairs.weights(pairs.score)
    # pi* = ref exp(r / beta) / Z, so ref = pi exp(-r / beta) Z; another number for each text of a pair is the same.
    goal = dpo.DpoTargets(pairs.batch.mask, whole - true / BETA + 3.0)
    found = learner.gradient(pairs.batch, goal, weights, dpo.make_loss(recipe))["loss"]
    still = float(taken(learner).norm())
    wanted = _entropy(pairs, pairs.score)
    yield Line("DPO", f"loss at ref exp(r / {BETA}) / Z: entropy of the preferences", wanted, found,
               abs(found - wanted), TIGHT)  # fmt: skip
    yield Line("DPO", "gradient there: the policy of KL-regularised reward", 0.0, still, still, TIGHT)
    own = _reference(ground, pairs)
    goal = dpo.DpoTargets(pairs.batch.mask, own)
    ours = ground.gradient(pairs.batch, goal, weights, dpo.make_loss(recipe))
    exact = _dpo_by_autograd(ground, pairs, own, weights[0::2, 0])
    yield Line("DPO", "gradient elsewhere = the tree's", float(exact.norm()), float(ours.norm()), apart(ours, exact),
               TIGHT)  # fmt: skip
    wins = _win_rates(pairs)
    goal = dpo.DpoTargets(pairs.batch.mask, whole - wins[pairs.place].reshape(-1) / BETA)
    square = DpoRecipe.model_validate({**DATA, "dpo": {"beta": BETA, "loss": "ipo"}})
    still = float(ground.gradient(pairs.batch, goal, weights, dpo.make_loss(square)).norm())
    yield Line("DPO", "ipo: gradient where log(pi / ref) is the win rate / beta", 0.0, still, still, TIGHT)


def _reference(ground: Ground, pairs: Pairs) -> Tensor:
    """[rows] log-probability of each text under the reference network."""
    return dpo.whole(ground.frozen().evaluate(pairs.batch), pairs.batch.mask)


def _win_rates(pairs: Pairs) -> Tensor:
    """[texts] probability of being chosen over a text drawn for the same prompt, itself included (a half)."""
    first, second = pairs.place.unbind(1)
    difference = pairs.score[first] - pairs.score[second]
    none = torch.zeros_like(pairs.share)
    return none.index_add(0, first, pairs.share[second] * difference.sigmoid()) + 0.5 * pairs.share


def _dpo_by_autograd(ground: Ground, pairs: Pairs, reference: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the expected loss from the trees' log-probabilities."""
    tables = {}
    for tree in ground.trees:
        table = tree_logprobs(ground.model, tree)
        prompt = tuple(tree.token_ids[: tree.prompt_length].tolist())
        for path, text in zip(paths(tree), tree.leaf_tokens(), strict=True):
            tables[(*prompt, *text)] = torch.stack([table[place] for place in path]).sum()
    texts = [
        tuple(row[:length].tolist())
        for row, length in zip(pairs.batch.token_ids, pairs.batch.lengths.tolist(), strict=True)
    ]
    ratios = torch.stack([tables[text] for text in texts]) - reference
    value = (weight * softplus(-BETA * (ratios[0::2] - ratios[1::2]))).sum()
    return ground.autograd(value)
