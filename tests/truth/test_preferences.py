"""DPO by enumeration: where preferences follow a known reward, its optimum is the policy of KL-regularised reward.

All pairs of texts of the text grid, weighted by how often they are compared and by the Bradley-Terry probability of
each outcome, go through the recipe's loss and the project's learner. At pi* = ref exp(r / beta) / Z the expected
gradient is 0; a training from the reference ends there.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.truth.support import (
    F64,
    ONE_MOVE,
    Whole,
    agree,
    groups,
    learned,
    learner,
    net,
    of_texts,
    tables,
    vanishes,
    whole,
)
from upslope.learner.learner import Learner
from upslope.learner.optimizer import OptimizerSettings
from upslope.models.networks import PolicyNetwork
from upslope.recipes import dpo
from upslope.recipes.configs import DpoRecipe
from upslope.recipes.reward import on_chosen
from upslope.text.collation import collate_rollouts
from upslope.types import Batch

BETA = 0.8
CUT = 400
"""Tokens of a micro-batch: the pairs are cut into several."""


def recipe(**own: Any) -> DpoRecipe:
    return DpoRecipe.model_validate({"data": {"task": "worked-sums"}, "dpo": {"beta": BETA, **own}})


class Compared:
    """Every pair of texts of a prompt, in both orders; texts are drawn as ``net(5)`` says them."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.of: Whole = whole(names)
        rollouts, self.index = groups(self.of, 2)
        self.batch: Batch = collate_rollouts(rollouts)
        self.reward = torch.tensor([row.score for row in self.of.rollouts], dtype=F64)
        self.drawn = self.of.chances(tables(net(5), names))

    def weights(self) -> Tensor:
        """[rows, 1] on chosen rows: the probability of the pair and of this outcome."""
        first, second = self.index.reshape(-1, 2).unbind(1)
        outcome = (self.reward[first] - self.reward[second]).sigmoid()
        return on_chosen(self.drawn[first] * self.drawn[second] * outcome)

    def targets(self, reference: Tensor) -> dpo.DpoTargets:
        """``reference`` [texts] is its log-probability of each text."""
        return dpo.DpoTargets(self.batch.mask, reference[self.index])


@pytest.fixture(scope="module")
def compared() -> Compared:
    return Compared(("short", "turn"))


def logs(of: Whole, model: Any) -> Tensor:
    return of.chances(tables(model, of.names)).log()


def test_the_gradient_vanishes_at_the_optimum_of_kl_regularised_reward(compared: Compared) -> None:
    """The reference is chosen so that the policy in hand is its optimum: ref = pi exp(-r / beta) Z."""
    model = net(0)
    own = logs(compared.of, model)
    goal = compared.targets(own - compared.reward / BETA)
    here = learned(learner(model, CUT), compared.batch, goal, compared.weights(), dpo.make_loss(recipe()))
    there = compared.targets(logs(compared.of, net(1)))
    elsewhere = learned(learner(model, CUT), compared.batch, there, compared.weights(), dpo.make_loss(recipe()))
    vanishes(here, elsewhere)


def test_elsewhere_it_is_the_gradient_of_the_expected_loss(compared: Compared) -> None:
    model = net(0)
    reference = logs(compared.of, net(1))
    found = learned(
        learner(model, CUT), compared.batch, compared.targets(reference), compared.weights(), dpo.make_loss(recipe())
    )
    ratio = logs(compared.of, model) - reference
    first, second = compared.index.reshape(-1, 2).unbind(1)
    # d softplus(-x) / dx = -sigmoid(-x), so each text's log-probability is pulled with that, as chosen and as rejected.
    pull = -BETA * (-BETA * (ratio[first] - ratio[second])).sigmoid() * compared.weights()[0::2, 0]
    each = torch.zeros_like(ratio).index_add(0, first, pull).index_add(0, second, -pull)
    agree(found, of_texts(learner(model), compared.of, each))


def test_ipos_gradient_vanishes_where_the_log_ratio_is_the_win_rate_over_beta(compared: Compared) -> None:
    model = net(0)
    owner = torch.tensor(compared.of.owner)
    same = owner[:, None] == owner[None, :]
    wins = ((compared.reward[:, None] - compared.reward[None, :]).sigmoid() * compared.drawn[None, :] * same).sum(1)
    goal = compared.targets(logs(compared.of, model) - wins / BETA)
    loss = dpo.make_loss(recipe(loss="ipo"))
    here = learned(learner(model, CUT), compared.batch, goal, compared.weights(), loss)
    there = compared.targets(logs(compared.of, net(1)))
    vanishes(here, learned(learner(model, CUT), compared.batch, there, compared.weights(), loss))


def test_a_training_ends_at_the_optimum_of_kl_regularised_reward() -> None:
    """Expected gradients, Adam, from the reference: sum_y pi (r - beta log(pi / ref)) rises to beta log Z."""
    seen = Compared(ONE_MOVE)
    model = net(0, sharpness=1.0)
    reference = logs(seen.of, model)
    owner = torch.tensor(seen.of.owner)

    def value(of_texts: Tensor) -> Tensor:
        mass = of_texts.exp() * (seen.reward - BETA * (of_texts - reference))
        return torch.zeros(2, dtype=F64).index_add(0, owner, mass)

    free = torch.stack([
        BETA * (reference + seen.reward / BETA)[owner == number].logsumexp(0) for number in range(2)
    ])  # fmt: skip
    start = value(reference)
    settings = OptimizerSettings(lr=2e-2, steps=60, decay="cosine", clip_norm=1e9)
    taught: Learner[Any] = Learner(PolicyNetwork(model), settings, 4096)
    for _ in range(60):
        taught.gradient(seen.batch, seen.targets(reference), seen.weights(), dpo.make_loss(recipe()))
        taught.step()
    gap, before = free - value(logs(seen.of, model)), free - start
    assert bool((before > 0.3).all()) and bool((gap > -1e-9).all())
    assert float(gap.max()) < 1e-3, gap
