"""PPO (arXiv:1707.06347) on completions: a policy and a critic, both trained at the same time.

With token rewards r_t = -kl_coef * k1_t (k1 against the frozen starting policy) and the score on the last token:

    A_t          GAE(discount, trace) of r and the critic's V; a completion that the length cut bootstraps from V,
                 one that stopped does not (nor one that was cut, with ``cut: end``)
    policy loss  -min(rho_t A_t, clip(rho_t, 1 - clip, 1 + clip) A_t) - entropy_coef * H_t
    critic loss  1/2 (V_t - (A_t + V_t,old))^2, optionally clipped

The KL penalty is k1 because its gradient in the reward is KL(pi || ref)'s; k3's is not. Critic and policy are two
networks with two optimizers. The critic starts as a copy of the policy's decoder with a zero head. The head's rate is
far above the decoder's: what tells a good answer from a bad one is in the decoder's hidden state from the start
(``bench/critic.py``).
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from upslope.learner.learner import FrozenScorer, Learner
from upslope.learner.optimizer import OptimizerSettings
from upslope.maths import advantages, kl, losses, returns, weighting
from upslope.models import adapters
from upslope.models.networks import PolicyNetwork, ValueNetwork
from upslope.recipes.configs import PpoRecipe
from upslope.recipes.judge import due, finish, judge
from upslope.recipes.loop import Clock, Loop, entropy_weight, updates
from upslope.recipes.rollout_log import log_rows, scored_in
from upslope.recipes.rollouts import Harvest, check_versions, harvest, rows_of_step, statistics
from upslope.recipes.setup import RewardFunction, Workshop, prepare
from upslope.run.session import Run
from upslope.seeds import derive
from upslope.text.collation import collate_rollouts, per_target
from upslope.types import Batch, Loss, PolicyEvaluation, Rows, Scorer, ValueEvaluation

VALUE_COEF = 0.5


@dataclass(frozen=True, slots=True)
class PpoTargets(Rows):
    """Fixed for all passes over a batch."""

    mask: Bool[Tensor, "batch time"]
    advantages: Float[Tensor, "batch time"]
    returns: Float[Tensor, "batch time"]
    old_values: Float[Tensor, "batch time"]
    old_logprobs: Float[Tensor, "batch time"]
    sampler_logprobs: Float[Tensor, "batch time"]


@dataclass(frozen=True, eq=False)
class Networks:
    """Policy and critic learn; the reference is the policy at the start, frozen (None: no KL penalty)."""

    policy: Learner[PolicyEvaluation]
    critic: Learner[ValueEvaluation]
    reference: Scorer[PolicyEvaluation] | None


def policy_loss(recipe: PpoRecipe, first: bool, step: int = 0) -> Loss[PolicyEvaluation, PpoTargets]:
    """The policy's loss in step ``step`` (from 0). In the ``first`` optimizer step since sampling the policy is the old
    policy: its own detached log-probabilities are the old ones and the ratio is exactly 1."""
    settings = recipe.ppo
    bonus = entropy_weight(settings, step, recipe.train.steps)

    def loss(found: PolicyEvaluation, goal: PpoTargets) -> tuple[Tensor, dict[str, Tensor]]:
        old = found.logprobs.detach() if first else goal.old_logprobs
        per_token, clipped = losses.clipped_surrogate(
            found.logprobs, old, goal.advantages, settings.clip, settings.clip
        )
        if bonus > 0:
            per_token = per_token - bonus * found.entropy
        ratio = (found.logprobs - old).exp()
        metrics = {
            "entropy": found.entropy,
            "clip_ratio": clipped.to(old.dtype),
            "approx_kl": kl.k3(old, found.logprobs),
        }
        metrics |= {"ratio/mean": ratio, "ratio/max": ratio}
        if first:
            gap = (found.logprobs - goal.sampler_logprobs).abs()
            metrics |= {"sampler_gap/mean": gap, "sampler_gap/max": gap}
        return per_token, metrics

    return loss


def value_loss(recipe: PpoRecipe) -> Loss[ValueEvaluation, PpoTargets]:
    """Half the squared error against the returns, clipped around the old values if asked for."""

    def loss(found: ValueEvaluation, goal: PpoTargets) -> tuple[Tensor, dict[str, Tensor]]:
        per_token = VALUE_COEF * losses.clipped_value(
            found.values, goal.old_values, goal.returns, recipe.ppo.value_clip
        )
        return per_token, {}

    return loss


def train(recipe: PpoRecipe, shop: Workshop, networks: Networks, loop: Loop[PpoTargets]) -> None:
    """Prompts, completions, rewards, values, advantages, both losses, both updates, publish."""
    run, settings, clock, policy = shop.run, recipe.train, Clock(), networks.policy
    if run.resumed is None:
        run.log(0, judge(recipe, shop, loop, 0, clock), clock.timings())
    while loop.step < settings.steps:
        step = loop.step + 1
        if not loop.opened:
            found = collect(recipe, shop, loop.step, clock)
            check_versions(found.rollouts, policy.version)
            run.phase(step, "reference")
            with clock("reference"):
                batch, targets, metrics = learn_from(recipe, found, networks)
                seen = {"values": targets.old_values}
                seen |= {"estimates": targets.returns - targets.old_values} if recipe.ppo.whiten else {}
                scorer = policy if scored_in(step, settings.steps) else None
                lines = log_rows(shop, found, step, scorer, batch, targets.advantages, targets.mask, seen)
            loop.open(batch, targets, {**statistics(found, recipe.ppo.samples), **metrics})
            run.rollouts(step, lines)
            run.sample(step, found.prompts[0], found.completions[0], found.scores[0])
        run.phase(step, "learning")
        for number, rows in enumerate(updates(recipe, loop)):
            if number < loop.inner or loop.batch is None or loop.targets is None or moved_too_far(recipe, loop):
                continue
            with clock("learning"):
                loop.add(
                    update(
                        recipe, networks, loop.batch.take(rows), loop.targets.take(rows), loop.step, first=number == 0
                    )
                )
                shop.sampler.load(policy.weights(), policy.version)
            run.boundary((step, loop.inner))
        metrics = {**loop.close(), "skipped_updates": float(policy.skipped + networks.critic.skipped)}
        if due(recipe, step):
            metrics |= judge(recipe, shop, loop, step, clock)
        sampled = metrics["completions/mean_length"] * metrics["groups"] * recipe.ppo.samples
        run.log(step, metrics, clock.timings(sampled, metrics["num_tokens"] * settings.epochs))
        run.boundary((step, 0))


def collect(recipe: PpoRecipe, shop: Workshop, step: int, clock: Clock) -> Harvest:
    """Scored completions for step ``step`` (from 0)."""
    prompts = rows_of_step(shop.train, recipe.train.prompts, step, recipe.seed)
    seeds = [derive(recipe.seed, "rollout", step, index) for index in range(len(prompts))]
    return harvest(shop, prompts, recipe.ppo.samples, seeds, recipe.reward, clock, step + 1)


def learn_from(recipe: PpoRecipe, found: Harvest, networks: Networks) -> tuple[Batch, PpoTargets, dict[str, float]]:
    """Token rewards with the KL penalty, the critic's values, GAE; and how well the critic did."""
    settings = recipe.ppo
    batch = collate_rollouts(found.rollouts)
    time = batch.mask.shape[1]
    rewards = per_target([rollout.rewards for rollout in found.rollouts], time)
    sampled = per_target([rollout.logprobs for rollout in found.rollouts], time)
    old = networks.policy.evaluate(batch).logprobs
    metrics: dict[str, float] = {}
    weights = weighting.token_mean(batch.mask)
    if networks.reference is not None:
        ref = networks.reference.evaluate(batch).logprobs
        rewards = rewards - settings.kl_coef * kl.k1(old, ref)
        metrics["kl"] = float((kl.k3(old, ref) * weights).sum())
    values = networks.critic.evaluate(batch)
    terminated = torch.tensor([rollout.terminated or recipe.sampling.cut == "end" for rollout in found.rollouts])
    bootstrap = torch.where(terminated, 0.0, values.last_value)
    estimated = returns.gae(rewards, values.values, bootstrap, batch.mask, settings.discount, settings.trace)
    goal = (estimated + values.values) * batch.mask
    metrics |= {
        "explained_variance": explained_variance(values.values[batch.mask], goal[batch.mask]),
        "value/mean": float((values.values * weights).sum()),
        "returns/mean": float((goal * weights).sum()),
    }
    if settings.whiten:
        estimated = advantages.whiten(estimated, batch.mask)
    return batch, PpoTargets(batch.mask, estimated, goal, values.values, old, sampled), metrics


def explained_variance(predicted: Float[Tensor, " n"], actual: Float[Tensor, " n"]) -> float:
    """1 - Var(actual - predicted) / Var(actual); 0 where the actual values do not vary.

    Against sampled returns even the perfect critic stays below 1, for returns vary around their mean.
    """
    variance = actual.var(correction=0)
    return float(1 - (actual - predicted).var(correction=0) / variance) if variance > 0 else 0.0


def moved_too_far(recipe: PpoRecipe, loop: Loop[PpoTargets]) -> bool:
    """Whether the mean KL to the collecting policy, over this step's updates, has passed ``target_kl``."""
    # The first update's is 0 by construction and says nothing.
    limit, count = recipe.ppo.target_kl, loop.counts.get("approx_kl", 0) - 1
    return limit is not None and count > 0 and loop.sums["approx_kl"] / count > limit


def update(
    recipe: PpoRecipe, networks: Networks, batch: Batch, targets: PpoTargets, step: int, first: bool
) -> dict[str, float]:
    """One optimizer step of the policy and one of the critic, on the same rows."""
    weights = weighting.token_mean(targets.mask)
    metrics: dict[str, float] = {}
    if step >= recipe.ppo.critic_warmup:
        metrics = networks.policy.gradient(batch, targets, weights, policy_loss(recipe, first, step))
        report = networks.policy.step()
        metrics |= {"grad_norm": report.grad_norm, "lr": report.lr}
    if not recipe.ppo.freeze_critic:
        metrics["value_loss"] = networks.critic.gradient(batch, targets, weights, value_loss(recipe))["loss"]
        metrics["critic/grad_norm"] = networks.critic.step().grad_norm
    return metrics


def start(recipe: PpoRecipe, run: Run, reward: RewardFunction | None = None) -> None:
    """Prepare, train, save."""
    with ExitStack() as stack:
        shop = prepare(recipe, run, reward, stack)
        networks = build(recipe, shop)
        loop = Loop(PpoTargets)
        run.attach(policy=networks.policy, critic=networks.critic, loop=loop, **shop.parts)
        shop.sampler.load(networks.policy.weights(), networks.policy.version)
        train(recipe, shop, networks, loop)
        finish(recipe, shop, loop)


def build(recipe: PpoRecipe, shop: Workshop) -> Networks:
    """Policy, critic and reference, all from the starting model; with LoRA they share its frozen weights."""
    model, optim, settings = shop.model.model, recipe.optim, recipe.train
    tokens = settings.micro_batch_tokens
    count = settings.steps * settings.epochs * settings.minibatches
    frozen = None
    if recipe.ppo.kl_coef > 0:
        frozen = FrozenScorer[PolicyEvaluation](PolicyNetwork(adapters.reference(model)), tokens)
    critic = ValueNetwork(adapters.twin(model.get_decoder()))
    boost = recipe.ppo.critic_head_lr / recipe.ppo.critic_lr
    return Networks(
        Learner(
            PolicyNetwork(model), OptimizerSettings(optim.lr, count, optim.warmup, optim.decay, optim.clip_norm), tokens
        ),
        Learner(
            critic,
            OptimizerSettings(
                recipe.ppo.critic_lr, count, optim.warmup, optim.decay, optim.clip_norm, boosts={"head.": boost}
            ),
            tokens,
        ),
        frozen,
    )
