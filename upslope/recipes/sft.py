"""Supervised fine-tuning: raise the log-probability of the completions in the rows.

    loss = - sum_t w_t log pi(y_t | x, y_<t)        over completion tokens only, the stop token included

``w`` is the token mean or the sequence mean over the rows of a step. Its minimum is the conditional entropy of the
data.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from upslope.learner.learner import Learner
from upslope.learner.optimizer import OptimizerSettings
from upslope.maths import losses, weighting
from upslope.models import adapters
from upslope.models.networks import PolicyNetwork
from upslope.recipes.configs import SftRecipe
from upslope.recipes.judge import due, finish, judge
from upslope.recipes.loop import Clock, Loop
from upslope.recipes.rollouts import rows_of_step
from upslope.recipes.setup import RewardFunction, Workshop, prepare
from upslope.run.session import Run
from upslope.seeds import derive
from upslope.text.collation import collate_examples
from upslope.types import PolicyEvaluation, Rows

WEIGHTING = {"token_mean": weighting.token_mean, "sequence_mean": weighting.sequence_mean}


@dataclass(frozen=True, slots=True)
class SftTargets(Rows):
    """Imitation needs nothing beside the tokens; ``mask`` says which."""

    mask: Bool[Tensor, "batch time"]


def loss(found: PolicyEvaluation, goal: SftTargets) -> tuple[Float[Tensor, "batch time"], dict[str, Tensor]]:
    """Negative log-likelihood a token."""
    return losses.nll(found.logprobs), {"entropy": found.entropy}


def train(recipe: SftRecipe, shop: Workshop, policy: Learner[PolicyEvaluation], loop: Loop[SftTargets]) -> None:
    """Rows, weights, gradient, step."""
    run, settings, clock = shop.run, recipe.train, Clock()
    if run.resumed is None:
        run.log(0, judge(recipe, shop, loop, 0, clock, heldout_loss(recipe, shop, policy)), clock.timings())
    while loop.step < settings.steps:
        rows = rows_of_step(shop.examples, settings.prompts, loop.step, recipe.seed)
        batch = collate_examples(rows)
        step, tokens = loop.step + 1, int(batch.lengths.sum())
        run.phase(step, "learning")
        with clock("learning"), adapters.dropping(shop.model.model, derive(recipe.seed, "dropout", loop.step)):
            weights = WEIGHTING[recipe.sft.weighting](batch.mask)
            metrics = policy.gradient(batch, SftTargets(batch.mask), weights, loss)
            report = policy.step()
        shop.sampler.load(policy.weights(), policy.version)
        loop.step = step
        metrics |= {"grad_norm": report.grad_norm, "lr": report.lr, "skipped_updates": float(policy.skipped)}
        metrics |= {"num_tokens": float(tokens), "trained_tokens": float(batch.mask.sum())}
        if due(recipe, step):
            metrics |= judge(recipe, shop, loop, step, clock, heldout_loss(recipe, shop, policy))
        run.log(step, metrics, clock.timings(learned_tokens=tokens))
        run.boundary((step, 0))


@torch.no_grad()
def heldout_loss(recipe: SftRecipe, shop: Workshop, policy: Learner[PolicyEvaluation]) -> dict[str, float]:
    """``eval_loss``: the same loss on held-out rows, in nats a token."""
    rows = list(shop.heldout_examples[: recipe.train.eval_prompts])
    if not rows:
        return {}
    batch = collate_examples(rows)
    logprobs = policy.evaluate(batch).logprobs
    return {"eval_loss": float((losses.nll(logprobs) * WEIGHTING[recipe.sft.weighting](batch.mask)).sum())}


def start(recipe: SftRecipe, run: Run, reward: RewardFunction | None = None) -> None:
    """Prepare, train, save."""
    with ExitStack() as stack:
        shop = prepare(recipe, run, reward, stack)
        settings = OptimizerSettings(
            recipe.optim.lr, recipe.train.steps, recipe.optim.warmup, recipe.optim.decay, recipe.optim.clip_norm
        )
        policy: Learner[PolicyEvaluation] = Learner(
            PolicyNetwork(shop.model.model), settings, recipe.train.micro_batch_tokens
        )
        loop = Loop(SftTargets)
        run.attach(policy=policy, loop=loop)
        shop.sampler.load(policy.weights(), policy.version)
        train(recipe, shop, policy, loop)
        finish(recipe, shop, loop)
