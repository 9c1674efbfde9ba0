"""GRPO: the completions of one prompt are compared with each other; no critic.

For a group of G completions with rewards r_i (DeepSeekMath, arXiv:2402.03300):

    A_i    = r_i - baseline_i            the mean of the group, or of the others (leave-one-out); optionally / std
    loss_t = -min(rho_t A, clip(rho_t, 1 - low, 1 + high) A) + kl_coef * KL_t - entropy_coef * H_t
    rho_t  = pi(y_t | .) / pi_old(y_t | .)

``weighting`` says how tokens weigh: the paper's mean a sequence, DAPO's token mean (arXiv:2503.14476), Dr. GRPO's
constant length (arXiv:2503.20783). ``ratio: sequence`` is GSPO (arXiv:2507.18071). Defaults: leave-one-out and no std,
which make the expected gradient exactly the policy gradient.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from upslope.errors import RewardError
from upslope.learner.learner import FrozenScorer, Learner
from upslope.learner.optimizer import OptimizerSettings
from upslope.maths import advantages, kl, losses, weighting
from upslope.models import adapters
from upslope.models.networks import PolicyNetwork
from upslope.recipes.configs import GrpoRecipe
from upslope.recipes.judge import due, finish, judge
from upslope.recipes.loop import Clock, Loop, entropy_weight, updates
from upslope.recipes.rollout_log import log_rows, scored_in
from upslope.recipes.rollouts import Harvest, check_versions, harvest, rows_of_step, statistics
from upslope.recipes.setup import RewardFunction, Workshop, prepare
from upslope.run.session import Run
from upslope.seeds import derive, generator
from upslope.text.collation import collate_rollouts, per_target
from upslope.types import Batch, Loss, PolicyEvaluation, Rows, Scorer

KL = {"k2": kl.k2, "k3": kl.k3}


@dataclass(frozen=True, slots=True)
class GrpoTargets(Rows):
    """``advantages`` are one number a completion, spread over its tokens; ``mask`` is what is trained on."""

    mask: Bool[Tensor, "batch time"]
    advantages: Float[Tensor, "batch time"]
    sampler_logprobs: Float[Tensor, "batch time"]
    old_logprobs: Float[Tensor, "batch time"]
    ref_logprobs: Float[Tensor, "batch time"]


def make_loss(recipe: GrpoRecipe, first: bool, step: int = 0) -> Loss[PolicyEvaluation, GrpoTargets]:
    """The loss in step ``step`` (from 0). In its ``first`` optimizer step since sampling the policy is the old policy:
    its own detached log-probabilities are the old ones and the ratio is exactly 1."""
    settings = recipe.grpo
    bonus = entropy_weight(settings, step, recipe.train.steps)

    def loss(found: PolicyEvaluation, goal: GrpoTargets) -> tuple[Tensor, dict[str, Tensor]]:
        old = found.logprobs.detach() if first else goal.old_logprobs
        if settings.ratio == "sequence":
            per_token, clipped = losses.clipped_surrogate_sequence(
                found.logprobs, old, goal.advantages, goal.mask, settings.clip_low, settings.clip_high
            )
        else:
            per_token, clipped = losses.clipped_surrogate(
                found.logprobs, old, goal.advantages, settings.clip_low, settings.clip_high
            )
        metrics = {
            "entropy": found.entropy,
            "clip_ratio": clipped.to(old.dtype),
            "approx_kl": kl.k3(old, found.logprobs),
        }
        if bonus > 0:
            per_token = per_token - bonus * found.entropy
        if settings.kl_coef > 0:
            per_token = per_token + settings.kl_coef * KL[settings.kl_estimator](found.logprobs, goal.ref_logprobs)
            metrics["kl"] = kl.k3(found.logprobs, goal.ref_logprobs)
        if first:
            gap = (found.logprobs - goal.sampler_logprobs).abs()
            metrics |= {"sampler_gap/mean": gap, "sampler_gap/max": gap}
        return per_token, metrics

    return loss


def weigh(recipe: GrpoRecipe, mask: Tensor) -> Tensor:
    """Weights of a whole minibatch, dead groups included: leaving those out afterwards changes nothing."""
    if recipe.grpo.weighting == "constant_length":
        return weighting.constant_length(mask, recipe.sampling.max_new_tokens)
    return weighting.token_mean(mask) if recipe.grpo.weighting == "token_mean" else weighting.sequence_mean(mask)


def train(
    recipe: GrpoRecipe, shop: Workshop, policy: Learner[PolicyEvaluation],
    reference: Scorer[PolicyEvaluation] | None, loop: Loop[GrpoTargets],
) -> None:  # fmt: skip
    """Prompts, groups of completions, rewards, advantages, loss, update, publish."""
    run, settings, clock = shop.run, recipe.train, Clock()
    if run.resumed is None:
        run.log(0, judge(recipe, shop, loop, 0, clock), clock.timings())
    while loop.step < settings.steps:
        step = loop.step + 1
        if not loop.opened:
            found = collect(recipe, shop, loop.step, clock)
            check_versions(found.rollouts, policy.version)
            batch, targets = learn_from(recipe, found, policy, reference, clock)
            loop.open(batch, targets, statistics(found, recipe.grpo.group))
            with clock("reference"):
                scorer = policy if scored_in(step, settings.steps) else None
                lines = log_rows(shop, found, step, scorer, batch, targets.advantages, targets.mask)
            run.rollouts(step, lines)
            run.sample(step, found.prompts[0], found.completions[0], found.scores[0])
        run.phase(step, "learning")
        for number, rows in enumerate(updates(recipe, loop)):
            if number < loop.inner or loop.batch is None or loop.targets is None:
                continue  # taken before this run was stopped
            with clock("learning"):
                loop.add(update(recipe, policy, loop.batch, loop.targets, rows, loop.step, first=number == 0))
                shop.sampler.load(policy.weights(), policy.version)
            run.boundary((step, loop.inner))
        metrics = {**loop.close(), "skipped_updates": float(policy.skipped)}
        if due(recipe, step):
            metrics |= judge(recipe, shop, loop, step, clock)
        sampled = metrics["completions/mean_length"] * metrics["groups"] * recipe.grpo.group
        run.log(step, metrics, clock.timings(sampled, metrics["num_tokens"] * settings.epochs))
        run.boundary((step, 0))


def collect(recipe: GrpoRecipe, shop: Workshop, step: int, clock: Clock) -> Harvest:
    """Groups for step ``step`` (from 0).

    With ``resample``, prompts whose group taught nothing are replaced by fresh ones.
    """
    settings, group = recipe.train, recipe.grpo.group
    prompts = rows_of_step(shop.train, settings.prompts, step, recipe.seed)
    seeds = [derive(recipe.seed, "rollout", step, index) for index in range(len(prompts))]
    found = harvest(shop, prompts, group, seeds, recipe.reward, clock, step + 1)
    for attempt in range(recipe.grpo.resample):
        live = alive(found, group)
        missing = settings.prompts - len(live) // group
        if missing == 0:
            break
        draw = generator(recipe.seed, "resample", step, attempt)
        fresh = [
            shop.train[int(index)] for index in draw.choice(len(shop.train), missing, replace=len(shop.train) < missing)
        ]
        seeds = [derive(recipe.seed, "resample", step, attempt, index) for index in range(missing)]
        first = settings.prompts * (attempt + 1)
        try:
            more = harvest(shop, fresh, group, seeds, recipe.reward, clock, step + 1, first_group=first)
        except RewardError:
            if recipe.reward.on_error == "stop":
                raise
            break  # what there is must do
        found = found.keep(live) + more
    return found


def alive(found: Harvest, group: int) -> list[int]:
    """Rows of the groups whose rewards differ."""
    rewards = found.groups(group)
    spread = rewards.max(1).values != rewards.min(1).values
    return [row for row in range(len(found.rollouts)) if spread[row // group]]


def learn_from(
    recipe: GrpoRecipe, found: Harvest, policy: Learner[PolicyEvaluation],
    reference: Scorer[PolicyEvaluation] | None, clock: Clock,
) -> tuple[Batch, GrpoTargets]:  # fmt: skip
    """Batch and targets.

    Group-relative advantages on every token, and the log-probabilities that the loss compares with.
    """
    settings = recipe.grpo
    batch = collate_rollouts(found.rollouts)
    relative = advantages.group_relative(found.groups(settings.group), settings.baseline, settings.scale)
    sampled = per_target([rollout.logprobs for rollout in found.rollouts], batch.mask.shape[1])
    with clock("reference"):
        several = recipe.train.epochs * recipe.train.minibatches > 1
        old = policy.evaluate(batch).logprobs if several else sampled
        ref = reference.evaluate(batch).logprobs if reference is not None else torch.zeros_like(sampled)
    mask = batch.mask
    if settings.truncated == "mask":
        mask = mask & torch.tensor([rollout.terminated for rollout in found.rollouts])[:, None]
    return batch, GrpoTargets(mask, relative.to(old.dtype).reshape(-1, 1) * batch.mask, sampled, old, ref)


def update(
    recipe: GrpoRecipe,
    policy: Learner[PolicyEvaluation],
    batch: Batch,
    targets: GrpoTargets,
    rows: list[int],
    step: int,
    first: bool,
) -> dict[str, float]:
    """One optimizer step on these rows.

    Rows whose advantages are all zero are not run, unless a KL term or an entropy bonus needs them.
    """
    weights = weigh(recipe, targets.mask[rows])
    useful = targets.mask[rows].any(1)
    if recipe.grpo.kl_coef == 0 and recipe.grpo.entropy_coef == 0:
        useful &= (targets.advantages[rows] != 0).any(1)
    kept = useful.nonzero()[:, 0].tolist()
    if not kept:
        return {"loss": 0.0, "grad_norm": 0.0}
    rows = [rows[place] for place in kept]
    metrics = policy.gradient(batch.take(rows), targets.take(rows), weights[kept], make_loss(recipe, first, step))
    report = policy.step()
    return {**metrics, "grad_norm": report.grad_norm, "lr": report.lr}


def start(recipe: GrpoRecipe, run: Run, reward: RewardFunction | None = None) -> None:
    """Prepare, train, save."""
    with ExitStack() as stack:
        shop = prepare(recipe, run, reward, stack)
        tokens = recipe.train.micro_batch_tokens
        reference = None
        if recipe.grpo.kl_coef > 0:
            reference = FrozenScorer[PolicyEvaluation](PolicyNetwork(adapters.reference(shop.model.model)), tokens)
        settings = OptimizerSettings(
            recipe.optim.lr, recipe.train.steps * recipe.train.epochs * recipe.train.minibatches, recipe.optim.warmup,
            recipe.optim.decay, recipe.optim.clip_norm,
        )  # fmt: skip
        policy: Learner[PolicyEvaluation] = Learner(PolicyNetwork(shop.model.model), settings, tokens)
        loop = Loop(GrpoTargets)
        run.attach(policy=policy, loop=loop, **shop.parts)
        shop.sampler.load(policy.weights(), policy.version)
        train(recipe, shop, policy, reference, loop)
        finish(recipe, shop, loop)
