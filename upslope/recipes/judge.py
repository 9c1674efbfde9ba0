"""Evaluation during a run, the best model beside the last, and the end of a run."""

from __future__ import annotations

from typing import Any

from upslope.models import loading
from upslope.recipes.configs import Recipe
from upslope.recipes.loop import Clock, Loop
from upslope.recipes.rollouts import evaluate
from upslope.recipes.setup import Workshop, model_card

MODEL, BEST = "model", "best"


def due(recipe: Recipe, step: int) -> bool:
    """Whether to evaluate after ``step`` steps: every ``eval_every``, at the start and at the end."""
    train = recipe.train
    return step == train.steps or (train.eval_every > 0 and step % train.eval_every == 0)


def judge(
    recipe: Any, shop: Workshop, loop: Loop[Any], step: int, clock: Clock, extra: dict[str, float] | None = None
) -> dict[str, float]:
    """Evaluation metrics where one is due. A new best is saved in ``best/``.

    Best is the highest ``eval/reward``, else the lowest ``eval_loss``.

    ``extra`` are evaluation metrics that the recipe computed itself.
    """
    metrics = dict(extra or {})
    metrics |= evaluate(shop, shop.heldout[: recipe.train.eval_prompts], clock, step, recipe.reward)
    value = metrics.get("eval/reward", -metrics["eval_loss"] if "eval_loss" in metrics else None)
    if step > 0 and value is not None and (loop.best is None or value > loop.best):
        loop.best = value
        loading.save(shop.model, shop.run.folder.path / BEST, model_card(recipe, shop.model.card))
    return metrics


def finish(recipe: Recipe, shop: Workshop, loop: Loop[Any]) -> None:
    """Save the last model and mark the run as finished."""
    shop.run.phase(loop.step, "saving")
    loading.save(shop.model, shop.run.folder.path / MODEL, model_card(recipe, shop.model.card))
    shop.run.finish({"steps": loop.step, "best_eval": loop.best, "model": str(shop.run.folder.path / MODEL)})
