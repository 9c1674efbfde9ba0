"""A reward model: score answers so that the preferred one of a pair scores higher (Bradley and Terry, 1952).

    loss = -log sigmoid(s(x, y_chosen) - s(x, y_rejected) - margin) + center * (s_chosen + s_rejected)^2

a pair, mean over the pairs of a step. ``s`` is a linear number at the last token, the end token of the answer. Pairs
say nothing of the mean of the scores; the second term (arXiv:2312.09244, eq. 2) holds it near 0. The minimum of the
first is the entropy of the preferences: where people disagree, no model gets below.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from upslope.learner.learner import Learner
from upslope.learner.optimizer import OptimizerSettings
from upslope.maths import losses, preferences
from upslope.models import adapters, scoring
from upslope.models.scoring import ScoreNetwork
from upslope.recipes.configs import RewardRecipe
from upslope.recipes.judge import BEST, MODEL, due
from upslope.recipes.loop import Clock, Loop
from upslope.recipes.rollouts import rows_of_step
from upslope.recipes.setup import RewardFunction, Workshop, prepare
from upslope.run.session import Run
from upslope.seeds import derive
from upslope.text.collation import collate_pairs
from upslope.types import EncodedPair, Loss, Rows, ScoreEvaluation

HEAD_BOOST = 10.0
"""The new head learns at ten times the rate of the pretrained decoder."""


@dataclass(frozen=True, slots=True)
class PairTargets(Rows):
    """``margin`` of the pair that the row belongs to. Rows 2i and 2i + 1 are chosen and rejected of a pair."""

    margin: Float[Tensor, " batch"]


def make_loss(recipe: RewardRecipe) -> Loss[ScoreEvaluation, PairTargets]:
    """The loss of a pair, on its chosen row ([batch, 1]; 0 on rejected rows). Units are never cut, so rows stay in
    pairs."""

    def loss(found: ScoreEvaluation, goal: PairTargets) -> tuple[Tensor, dict[str, Tensor]]:
        chosen, rejected = found.scores[0::2], found.scores[1::2]
        per_pair = losses.bradley_terry(chosen, rejected, goal.margin[0::2])
        per_pair = per_pair + recipe.reward_model.center * preferences.centering(chosen, rejected)
        metrics = {
            "accuracy": preferences.right_share(chosen - rejected),
            "margin": chosen - rejected,
            "mean_reward": (chosen + rejected) / 2,
            "high/max": torch.maximum(chosen, rejected),
            "low/max": -torch.minimum(chosen, rejected),
        }
        return on_chosen(per_pair), {name: on_chosen(value) for name, value in metrics.items()}

    return loss


def on_chosen(values: Float[Tensor, " pairs"]) -> Float[Tensor, "batch 1"]:
    """A number a pair, put on its chosen row; 0 on the rejected one."""
    return torch.stack([values, torch.zeros_like(values)], 1).reshape(-1, 1)


def pair_weights(count: int) -> Float[Tensor, "batch 1"]:
    """The mean over ``count`` pairs: weights 1 / count on chosen rows."""
    return on_chosen(torch.full((count,), 1.0 / count))


def targets_of(pairs: list[EncodedPair]) -> PairTargets:
    margins = torch.tensor([pair.margin for pair in pairs], dtype=torch.get_default_dtype())
    return PairTargets(margins.repeat_interleave(2))


def train(recipe: RewardRecipe, shop: Workshop, model: Learner[ScoreEvaluation], loop: Loop[PairTargets]) -> None:
    """Pairs, scores, gradient, step."""
    run, settings, clock, loss = shop.run, recipe.train, Clock(), make_loss(recipe)
    if run.resumed is None:
        run.log(0, judge(recipe, shop, model, loop, 0), clock.timings())
    while loop.step < settings.steps:
        pairs = rows_of_step(shop.pairs, settings.prompts, loop.step, recipe.seed)
        batch = collate_pairs(pairs)
        step, tokens = loop.step + 1, int(batch.lengths.sum())
        run.phase(step, "learning")
        with clock("learning"), adapters.dropping(shop.model.model, derive(recipe.seed, "dropout", loop.step)):
            metrics = model.gradient(batch, targets_of(pairs), pair_weights(len(pairs)), loss)
            report = model.step()
        loop.step = step
        metrics |= {"max_reward": metrics.pop("high/max"), "min_reward": -metrics.pop("low/max")}
        metrics |= {"grad_norm": report.grad_norm, "lr": report.lr, "skipped_updates": float(model.skipped)}
        metrics |= {"num_tokens": float(tokens)}
        if due(recipe, step):
            with clock("evaluation"):
                metrics |= judge(recipe, shop, model, loop, step)
        run.log(step, metrics, clock.timings(learned_tokens=tokens))
        run.boundary((step, 0))


def judge(
    recipe: RewardRecipe, shop: Workshop, model: Learner[ScoreEvaluation], loop: Loop[PairTargets], step: int
) -> dict[str, float]:
    """Held-out pairs: loss, accuracy, score difference and calibration error. The lowest loss goes to ``best/``."""
    pairs = list(shop.heldout_pairs[: recipe.train.eval_prompts])
    if not pairs:
        return {}
    shop.run.phase(step, "evaluation")
    scores = model.evaluate(collate_pairs(pairs)).scores
    chosen, rejected = scores[0::2], scores[1::2]
    margins = torch.tensor([pair.margin for pair in pairs], dtype=scores.dtype)
    metrics = {
        "eval_loss": float(losses.bradley_terry(chosen, rejected, margins).mean()),
        "eval/accuracy": float(preferences.right_share(chosen - rejected).mean()),
        "eval/margin": float((chosen - rejected).mean()),
        "eval/mean_reward": float(scores.mean()),
        "eval/calibration_error": float(preferences.calibration_error(chosen - rejected, recipe.reward_model.bins)),
    }
    if step > 0 and (loop.best is None or -metrics["eval_loss"] > loop.best):
        loop.best = -metrics["eval_loss"]
        save(recipe, shop, model, BEST)
    return metrics


def reliability_table(
    recipe: RewardRecipe, shop: Workshop, model: Learner[ScoreEvaluation]
) -> list[dict[str, float | int]]:
    """How sure the model is of the evaluations' pairs against how often it is right; empty bins left out."""
    pairs = list(shop.heldout_pairs[: recipe.train.eval_prompts])
    if not pairs:
        return []
    scores = model.evaluate(collate_pairs(pairs)).scores
    counts, sure, right = preferences.reliability(scores[0::2] - scores[1::2], recipe.reward_model.bins)
    rows = zip(counts.tolist(), sure.tolist(), right.tolist(), strict=True)
    return [{"pairs": n, "confidence": p, "accuracy": hit} for n, p, hit in rows if n and math.isfinite(p)]


def save(recipe: RewardRecipe, shop: Workshop, model: Learner[ScoreEvaluation], name: str) -> None:
    """Write the reward model into the run folder, with how its texts were rendered."""
    network: Any = model.network
    renderer = shop.renderer
    facts = {"chat": "auto" if renderer.wraps else "never", "system_prompt": renderer.system_prompt,
             "stop_ids": list(renderer.stop_ids)}  # fmt: skip
    scoring.save(network, shop.model, shop.run.folder.path / name, model_card(recipe, shop), facts)


def start(recipe: RewardRecipe, run: Run, reward: RewardFunction | None = None) -> None:
    """Prepare, train, save."""
    with ExitStack() as stack:
        shop = prepare(recipe, run, reward, stack)
        optim = recipe.optim
        settings = OptimizerSettings(
            optim.lr, recipe.train.steps, optim.warmup, optim.decay, optim.clip_norm, boosts={"head.": HEAD_BOOST}
        )
        network: ScoreNetwork = scoring.fresh(shop.model)
        model: Learner[ScoreEvaluation] = Learner(network, settings, recipe.train.micro_batch_tokens)
        loop = Loop(PairTargets)
        run.attach(reward=model, loop=loop)
        train(recipe, shop, model, loop)
        run.phase(loop.step, "saving")
        save(recipe, shop, model, MODEL)
        summary = {"steps": loop.step, "best_eval": loop.best, "model": str(run.folder.path / MODEL)}
        run.finish({**summary, "reliability": reliability_table(recipe, shop, model)})


def model_card(recipe: RewardRecipe, shop: Workshop) -> str:
    """README.md of a saved reward model."""
    card = shop.model.card
    merged = " The adapter is merged into the weights." if recipe.lora is not None or card.adapter is not None else ""
    head = f"---\nbase_model: {card.base}\nlibrary_name: transformers\npipeline_tag: text-classification\ntags:\n"
    return (
        f"{head}- upslope\n- reward-model\n---\n\n# {card.name}, after `upslope reward`\n\n"
        f"A reward model: one number for a prompt and an answer, read at the answer's end token.{merged} "
        "The recipe lies in `recipe.yaml` of the run folder.\n\n"
        "```python\nimport torch\nfrom transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
        'model = AutoModelForSequenceClassification.from_pretrained("model", dtype=torch.float32)\n'
        'tokenizer = AutoTokenizer.from_pretrained("model")\n```\n'
    )
