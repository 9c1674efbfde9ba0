"""PPO's own functions against the exact answers: targets (GAE, the KL penalty in the reward), both losses, the clip."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from upslope.certify.common_lines import TIGHT
from upslope.certify.ground import (
    Ground,
    TableCritic,
    apart,
    cosine,
    everything,
    harvested,
    sum_of,
    taken,
    text_values,
)
from upslope.certify.lines import Line
from upslope.learner.learner import Learner
from upslope.learner.optimizer import OptimizerSettings
from upslope.recipes import ppo, sft
from upslope.recipes.configs import PpoRecipe
from upslope.types import Batch
from upslope.worlds.prefix_tree import regularised_return

TRACES = (0.0, 0.95, 1.0)
BETA = 0.3


def recipe(trace: float, kl_coef: float = 0.0) -> PpoRecipe:
    """The settings that matter here. Whitening is off: it is a scale and a shift that depend on the batch."""
    settings = {"trace": trace, "kl_coef": kl_coef, "whiten": False}
    return PpoRecipe.model_validate({"data": {"task": "text-grid"}, "ppo": settings})


def prepared(
    ground: Ground, settings: PpoRecipe, values: dict[tuple[int, ...], float]
) -> tuple[Batch, ppo.PpoTargets, Learner]:  # type: ignore[type-arg]
    """Batch and targets of all texts, by ``ppo.learn_from`` with a critic that says ``values``."""
    critic: Learner = Learner(TableCritic(values), OptimizerSettings(1e-3, 10))  # type: ignore[type-arg]
    reference = ground.frozen() if settings.ppo.kl_coef > 0 else None
    networks = ppo.Networks(ground.policy(), critic, reference)
    batch, targets, _ = ppo.learn_from(settings, harvested(ground.rollouts()), networks)
    return batch, targets, critic


def ppo_lines(ground: Ground) -> Iterator[Line]:
    """Policy gradient, wrong critics, KL penalty, clip, critic."""
    values, visits = text_values(ground)
    _, weights = everything(ground)
    gradient = ground.policy_gradient()
    for trace in TRACES:
        found = _expected(ground, recipe(trace), values, weights)
        yield Line("PPO", f"policy gradient, GAE with V^pi, trace {trace:g}", float(gradient.norm()),
                   float(found.norm()), apart(found, gradient), TIGHT)  # fmt: skip
    wrong = {text: value + 2.0 * torch.tensor(float(n)).cos().item() for n, (text, value) in enumerate(values.items())}
    for trace in TRACES:
        found = _expected(ground, recipe(trace), wrong, weights)
        wanted = gradient if trace == 1 else ground.autograd(_with_wrong_critic(ground, wrong, trace))
        note = "" if trace == 1 else f"cosine {cosine(found, gradient):.4f} with the truth"
        yield Line("PPO", f"policy gradient, GAE with a wrong V, trace {trace:g}", float(wanted.norm()),
                   float(found.norm()), apart(found, wanted), TIGHT, note)  # fmt: skip
    penalised = [
        regularised_return(tree, ground.logprobs(tree), ground.logprobs(tree, reference=True), BETA)
        for tree in ground.trees
    ]
    wanted = ground.autograd(sum_of(penalised))
    found = _expected(ground, recipe(1.0, BETA), values, weights)
    yield Line("PPO", f"k1 in the reward, weight {BETA}: gradient of J - {BETA} KL(pi || ref)", float(wanted.norm()),
               float(found.norm()), apart(found, wanted), TIGHT)  # fmt: skip
    yield from _clip(ground)
    yield from _critic(ground, values, wrong, torch.tensor(visits, dtype=torch.float64), weights)


def _expected(ground: Ground, settings: PpoRecipe, values: dict[tuple[int, ...], float], weights: Tensor) -> Tensor:
    batch, targets, _ = prepared(ground, settings, values)
    return -ground.gradient(batch, targets, weights, ppo.policy_loss(settings, first=True))


def _with_wrong_critic(ground: Ground, values: dict[tuple[int, ...], float], trace: float) -> Tensor:
    """The number whose gradient GAE follows in expectation, by theory.

    With the critic's error e = V - V^pi and b(h) = (1 - trace) e(h) + trace sum_a pi(a|h) b(ha), E[A_hat | h, a] =
    A^pi(h, a) + b(ha) - e(h), where e = b = 0 beyond a finished walk but for what the critic says of its end.
    """
    parts = []
    for tree, known in zip(ground.trees, ground.answers(), strict=True):
        prompt = tuple(tree.token_ids[: tree.prompt_length].tolist())
        places = [(*prompt, *tree.path(node)) for node in range(len(tree))]
        error = torch.tensor([values[text] for text in places], dtype=torch.float64) - tree.so_far - known.values
        after = torch.zeros_like(known.probabilities)  # b of where each choice leads to
        node, choice = tree.leaves
        texts = [(*prompt, *text[:-1]) for text in tree.leaf_tokens()]
        ends = torch.tensor([values[text] for text in texts], dtype=torch.float64) - tree.leaf_scores
        after[node, choice] = (1 - trace) * ends  # the forced stop token earns the score, and nothing follows it
        for parent, way in reversed((tree.child >= 0).nonzero().tolist()):
            child = int(tree.child[parent, way])
            later = (known.probabilities[child] * after[child]).sum()
            after[parent, way] = (1 - trace) * error[child] + trace * later
        gain = known.advantages + after - error[:, None]
        logprobs = torch.where(tree.legal, ground.logprobs(tree), 0.0)
        parts.append((known.occupancy[:, None] * known.probabilities * gain * logprobs).sum())
    return sum_of(parts)


def _clip(ground: Ground) -> Iterator[Line]:
    """The loss's gradient at four corners, as a multiple of that of the plain -log pi."""
    settings = recipe(1.0)
    batch, weights = everything(ground)
    weights = weights.sqrt()  # any weights but p: with those the plain gradient would be 0
    plain = ground.gradient(batch, sft.SftTargets(batch.mask), weights, sft.loss)
    now = ground.policy().evaluate(batch).logprobs
    told, worst = [], 0.0
    corners = ((1.0, 1.3, 0.0), (1.0, 0.7, 0.7), (-1.0, 1.3, -1.3), (-1.0, 0.7, 0.0))
    for gain, ratio, wanted in corners:
        gains = torch.full_like(now, gain)
        old = now - torch.tensor(ratio, dtype=torch.float64).log()
        goal = ppo.PpoTargets(batch.mask, gains, gains, gains, old, old)
        found = ground.gradient(batch, goal, weights, ppo.policy_loss(settings, first=False))
        told.append(float(found @ plain / (plain @ plain)))
        worst = max(worst, float((found - wanted * plain).norm() / plain.norm()))
    yield Line("PPO", "clip 0.2 at (A, ratio) = (1, 1.3), (1, .7), (-1, 1.3), (-1, .7)", "0, 0.7, -1.3, 0",
               ", ".join(f"{value + 0.0:.3g}" for value in told), worst, TIGHT)  # fmt: skip


def _critic(
    ground: Ground, values: dict[tuple[int, ...], float], wrong: dict[tuple[int, ...], float], visits: Tensor,
    weights: Tensor,
) -> Iterator[Line]:  # fmt: skip
    """The critic's expected gradient: 0 at V^pi; elsewhere visits x error with trace 1, and half a step is home."""
    for trace in TRACES:
        settings = recipe(trace)
        batch, targets, critic = prepared(ground, settings, values)
        critic.gradient(batch, targets, weights, ppo.value_loss(settings))
        still = float(taken(critic).norm())
        yield Line("PPO", f"critic's gradient at V^pi, trace {trace:g}", 0.0, still, still, TIGHT)
    settings = recipe(1.0)
    batch, targets, critic = prepared(ground, settings, wrong)
    critic.gradient(batch, targets, weights, ppo.value_loss(settings))
    found = taken(critic)
    said, true = (torch.tensor(list(table.values()), dtype=torch.float64) for table in (wrong, values))
    wanted = visits * (said - true)
    yield Line("PPO", "critic's gradient at a wrong V = visits x (V - V^pi)", float(wanted.norm()),
               float(found.norm()), apart(found, wanted), TIGHT)  # fmt: skip
    home = float((said - found / visits - true).abs().max())
    yield Line("PPO", "critic's fixed point: a step of size 1 / visits leads to", "V^pi", "V^pi", home, TIGHT)
