"""DPO (arXiv:2305.18290): learn from preferences without a reward model and without sampling.

With h(y) = log pi(y | x) - log ref(y | x), sums over the answer's tokens, the end token included:

    sigmoid    -log sigmoid(beta (h(y_chosen) - h(y_rejected)))                       eq. 7
    ipo        (h(y_chosen) - h(y_rejected) - 1 / (2 beta))^2                         arXiv:2310.12036, eq. 17

beta h is an implicit reward. If preferences follow the Bradley-Terry model of a reward r, the sigmoid loss is least
where pi is proportional to ref exp(r / beta): the very policy that PPO with a KL penalty of weight beta looks for.

The reference is the policy at the start. Its log-probabilities of the pairs that the run will look at are computed
once, before the first step, and kept in the run's state: no second network is held.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from upslope.learner.learner import FrozenScorer, Learner
from upslope.learner.optimizer import OptimizerSettings
from upslope.maths import losses, preferences
from upslope.models import adapters, loading
from upslope.models.networks import PolicyNetwork
from upslope.recipes.configs import DpoRecipe
from upslope.recipes.judge import due, finish, judge
from upslope.recipes.loop import Clock, Loop
from upslope.recipes.reward import on_chosen, pair_weights
from upslope.recipes.rollouts import rows_of_step
from upslope.recipes.setup import RewardFunction, Workshop, prepare
from upslope.run.session import Run
from upslope.seeds import derive
from upslope.text.collation import collate_pairs
from upslope.types import Batch, EncodedPair, Loss, PolicyEvaluation, Rows, Scorer, State

LOSS = {"sigmoid": losses.dpo, "ipo": preferences.ipo}
ROWS = 64
"""Pairs whose reference log-probabilities are computed at once, between two reports of progress."""


@dataclass(frozen=True, slots=True)
class DpoTargets(Rows):
    """``mask`` is the answer; ``reference`` the reference's log-probability of the whole answer, in nats. Rows 2i and
    2i + 1 are chosen and rejected of a pair."""

    mask: Bool[Tensor, "batch time"]
    reference: Float[Tensor, " batch"]


@dataclass(frozen=True, slots=True)
class NumberedPair:
    """A pair and its place in the table of the reference's log-probabilities."""

    place: int
    pair: EncodedPair


class Reference:
    """A table [pairs, 2] (chosen, rejected) of the reference's log-probability of every answer, in nats: training pairs
    first, then held-out ones; NaN for pairs that the run does not look at. ``Stateful``: a run that goes on reads the
    table that it began with."""

    def __init__(self) -> None:
        self.table = torch.zeros(0, 2)

    def missing(self, places: Sequence[int]) -> list[int]:
        """Those of the places whose log-probabilities are not known yet."""
        return [place for place in places if place >= len(self.table) or bool(self.table[place].isnan().any())]

    def fill(self, shop: Workshop, scorer: Scorer[PolicyEvaluation], places: Sequence[int]) -> None:
        """The reference, as ``scorer`` is now, on the pairs at these places."""
        pairs = [*shop.pairs, *shop.heldout_pairs]
        for start in range(0, len(places), ROWS):
            shop.run.phase(0, "reference", start, len(places))
            chunk = list(places[start : start + ROWS])
            batch = collate_pairs([pairs[place] for place in chunk])
            found = whole(scorer.evaluate(batch), batch.mask).reshape(-1, 2)
            if not len(self.table):
                self.table = torch.full((len(pairs), 2), math.nan, dtype=found.dtype)
            self.table[chunk] = found

    def state(self) -> State:
        return State({"logprobs": self.table})

    def restore(self, state: State) -> None:
        self.table = state.tensors["logprobs"]

    def targets(self, pairs: Sequence[NumberedPair], batch: Batch) -> DpoTargets:
        return DpoTargets(batch.mask, self.table[[pair.place for pair in pairs]].reshape(-1))


def places_of(recipe: DpoRecipe, shop: Workshop) -> list[int]:
    """Places of the pairs that the whole run looks at, the held-out ones of its evaluations among them."""
    count, settings = len(shop.pairs), recipe.train
    drawn = rows_of_step(range(count), min(settings.steps * settings.prompts, count), 0, recipe.seed)
    return [*sorted(drawn), *range(count, count + min(settings.eval_prompts, len(shop.heldout_pairs)))]


def starting_policy(recipe: DpoRecipe, shop: Workshop) -> Scorer[PolicyEvaluation]:
    """The policy that the run began with, read anew: for a run that goes on with more steps than were planned."""
    started = loading.load(shop.model.card, shop.model.device, shop.model.dtype)
    return FrozenScorer(PolicyNetwork(started.model), recipe.train.micro_batch_tokens)


def whole(found: PolicyEvaluation, mask: Bool[Tensor, "batch time"]) -> Float[Tensor, " batch"]:
    """Log-probability of the whole answer: the sum over its tokens."""
    return torch.where(mask, found.logprobs, 0.0).sum(1)


def make_loss(recipe: DpoRecipe) -> Loss[PolicyEvaluation, DpoTargets]:
    """The loss of a pair, on its chosen row ([batch, 1]; 0 on rejected rows). Units are never cut, so rows stay in
    pairs."""
    settings = recipe.dpo

    def loss(found: PolicyEvaluation, goal: DpoTargets) -> tuple[Tensor, dict[str, Tensor]]:
        logprobs = whole(found, goal.mask)
        ratios = logprobs - goal.reference
        chosen, rejected = ratios[0::2], ratios[1::2]
        tokens = goal.mask.sum(1)
        entropy = torch.where(goal.mask, found.entropy, 0.0).sum(1)
        metrics = {
            "rewards/chosen": settings.beta * chosen,
            "rewards/rejected": settings.beta * rejected,
            "rewards/accuracies": preferences.right_share(chosen - rejected),
            "rewards/margins": settings.beta * (chosen - rejected),
            "logps/chosen": logprobs[0::2],
            "logps/rejected": logprobs[1::2],
            "entropy": (entropy[0::2] + entropy[1::2]) / (tokens[0::2] + tokens[1::2]),
        }
        per_pair = LOSS[settings.loss](chosen, rejected, settings.beta)
        return on_chosen(per_pair), {name: on_chosen(value) for name, value in metrics.items()}

    return loss


def train(
    recipe: DpoRecipe, shop: Workshop, policy: Learner[PolicyEvaluation], reference: Reference, loop: Loop[DpoTargets]
) -> None:
    """Pairs, log-ratios, gradient, step."""
    run, settings, clock, loss = shop.run, recipe.train, Clock(), make_loss(recipe)
    numbered = [NumberedPair(place, pair) for place, pair in enumerate([*shop.pairs, *shop.heldout_pairs])]
    learn, keep = numbered[: len(shop.pairs)], numbered[len(shop.pairs) :][: settings.eval_prompts]
    if unknown := reference.missing(places_of(recipe, shop)):
        with clock("reference"):
            reference.fill(shop, policy if run.resumed is None else starting_policy(recipe, shop), unknown)
    if run.resumed is None:
        run.log(0, judge(recipe, shop, loop, 0, clock, heldout(recipe, keep, policy, reference)), clock.timings())
    while loop.step < settings.steps:
        pairs = rows_of_step(learn, settings.prompts, loop.step, recipe.seed)
        batch = collate_pairs([row.pair for row in pairs])
        step, tokens = loop.step + 1, int(batch.lengths.sum())
        run.phase(step, "learning")
        with clock("learning"), adapters.dropping(shop.model.model, derive(recipe.seed, "dropout", loop.step)):
            metrics = policy.gradient(batch, reference.targets(pairs, batch), pair_weights(len(pairs)), loss)
            report = policy.step()
        shop.sampler.load(policy.weights(), policy.version)
        loop.step = step
        metrics |= {"grad_norm": report.grad_norm, "lr": report.lr, "skipped_updates": float(policy.skipped)}
        metrics |= {"num_tokens": float(tokens)}
        if due(recipe, step):
            metrics |= judge(recipe, shop, loop, step, clock, heldout(recipe, keep, policy, reference))
        run.log(step, metrics, clock.timings(learned_tokens=tokens))
        run.boundary((step, 0))


@torch.no_grad()
def heldout(
    recipe: DpoRecipe, pairs: Sequence[NumberedPair], policy: Scorer[PolicyEvaluation], reference: Reference
) -> dict[str, float]:
    """``eval_loss`` and the implicit rewards on held-out pairs."""
    if not pairs:
        return {}
    batch = collate_pairs([row.pair for row in pairs])
    per_row, metrics = make_loss(recipe)(policy.evaluate(batch), reference.targets(pairs, batch))
    kept = ("rewards/accuracies", "rewards/margins")
    return {
        "eval_loss": float(per_row[0::2].mean()),
        **{f"eval/{name}": float(metrics[name][0::2].mean()) for name in kept},
    }


def start(recipe: DpoRecipe, run: Run, reward: RewardFunction | None = None) -> None:
    """Prepare, train, save."""
    with ExitStack() as stack:
        shop = prepare(recipe, run, reward, stack)
        optim = recipe.optim
        settings = OptimizerSettings(optim.lr, recipe.train.steps, optim.warmup, optim.decay, optim.clip_norm)
        policy: Learner[PolicyEvaluation] = Learner(
            PolicyNetwork(shop.model.model), settings, recipe.train.micro_batch_tokens
        )
        reference, loop = Reference(), Loop(DpoTargets)
        run.attach(policy=policy, reference=reference, loop=loop, **shop.parts)
        shop.sampler.load(policy.weights(), policy.version)
        train(recipe, shop, policy, reference, loop)
        finish(recipe, shop, loop)
