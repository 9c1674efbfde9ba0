"""What a run will need in memory and on disk, beside what there is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upslope.checkup.facts import Bill, ModelFacts, RowFacts, StepFacts
from upslope.models import memory
from upslope.recipes.configs import PAIRED, PpoRecipe, Recipe, SftRecipe
from upslope.run import resources

if TYPE_CHECKING:
    from upslope.models.loading import Card
    from upslope.recipes.setup import Survey

LOG_BYTES = 40
"""About so many bytes of ``rollouts/`` for each sampled token: its id, its log-probability and its text."""
KEPT = 2
"""Checkpoints on the disk at once: the newest is removed only when its successor is whole."""


def adapter_of(recipe: Recipe, card: Card) -> memory.Adapter | None:
    """The adapter that is trained: the recipe's, or the one that the model comes with; None: all weights are."""
    if recipe.lora is not None:
        return memory.Adapter(recipe.lora.rank, _short_names(recipe.lora.targets))
    if card.adapter is None:
        return None
    config = card.adapter.config
    targets = config.get("target_modules")
    return memory.Adapter(int(config.get("r", 8)), _short_names(targets if isinstance(targets, list) else ()))


def _short_names(targets: Sequence[str]) -> tuple[str, ...]:
    """The kinds of layers that targets name, by the end of their names; none: all linear layers."""
    return tuple(dict.fromkeys(target.rpartition(".")[2] for target in targets)) or memory.LINEAR


def trained_parameters(recipe: Recipe, card: Card, config: Mapping[str, Any], parameters: int | None) -> int | None:
    """Parameters of the policy that the optimizer moves; None where the model's sizes are not known."""
    adapter = adapter_of(recipe, card)
    if adapter is None:
        return parameters
    shape = _shape(config, parameters)
    return None if shape is None else adapter.parameters(shape)


def _shape(config: Mapping[str, Any], parameters: int | None) -> memory.Shape | None:
    try:
        return memory.shape_of(config, parameters)
    except (KeyError, TypeError, ZeroDivisionError):  # a config.json of another make
        return None


def memory_bill(recipe: Recipe, seen: Survey, rows: RowFacts, step: StepFacts, model: ModelFacts) -> Bill | None:
    """Bytes at the peak of training; None where the model's sizes are not known."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(seen.card.source, trust_remote_code=False).to_dict()
    shape = _shape(config, model.parameters)
    if shape is None:
        return None
    supervised = isinstance(recipe, SftRecipe)
    prompt = rows.prompt.longest if rows.prompt else 0
    if isinstance(recipe, PAIRED):
        longest = max((max(len(p.chosen.token_ids), len(p.rejected.token_ids)) for p in seen.pairs), default=1)
        in_a_step = 2 * step.prompts * longest
    elif supervised:
        longest = max((len(row.token_ids) for row in seen.examples), default=1)
        in_a_step = step.prompts * longest
    else:
        longest = prompt + step.longest_completion
        in_a_step = step.completions * longest
    in_an_update = math.ceil(in_a_step / recipe.train.minibatches)
    section = getattr(recipe, recipe.kind, None)
    sampled = step.completions or (rows.evaluated if seen.reward is not None else 0)
    slots = recipe.sampling.slots if hasattr(recipe, "sampling") else 0
    parts = dict(
        memory.bill(
            shape, dtype_bytes=seen.dtype.itemsize, adapter=adapter_of(recipe, seen.card),
            tokens=max(min(recipe.train.micro_batch_tokens, in_a_step), longest), longest=longest,
            reference=getattr(section, "kl_coef", 0) > 0, critic=isinstance(recipe, PpoRecipe),
            checkpointing=recipe.model.gradient_checkpointing, slots=min(slots, max(sampled, rows.evaluated)),
            capacity=longest, continued=seen.card.adapter is not None,
            several=in_an_update > max(recipe.train.micro_batch_tokens, longest),
        )
    )  # fmt: skip
    needed = parts.pop("peak")
    if judges := sum(_stored_weights(judge.card) for judge in seen.judges) * seen.dtype.itemsize:
        parts["reward models"] = judges
        needed += judges
    if seen.device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(seen.device)
        return Bill(parts, needed, int(free), f"free on {seen.device}")
    there = resources.memory()
    free_now = there.available if there.available is not None else there.total
    return Bill(parts, needed, free_now, "free in main memory")


def _stored_weights(card: Card) -> int:
    """Numbers in a model's files; 0 where they are not to be had."""
    from upslope.models import weights

    return weights.parameters(weights.find(card.source) or {}, tied=False)


def disk_bill(
    recipe: Recipe, seen: Survey, rows: RowFacts, step: StepFacts, model: ModelFacts, folder: Path
) -> Bill | None:
    """Bytes in the run folder at the end; None where the model's size is not known.

    ``model/`` and, with evaluations, ``best/`` hold the weights in the compute type (of an adapter only itself); a
    checkpoint holds each trained number and its two moments in at least float32.
    """
    if model.parameters is None or model.trained is None:
        return None
    width = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}.get(model.dtype, 4)
    lora = adapter_of(recipe, seen.card) is not None
    saved = model.trained * max(width, 4) if lora else model.parameters * width
    networks = 2 if isinstance(recipe, PpoRecipe) else 1
    # A run that is stopped saves too, so one checkpoint must always fit.
    checkpoints = (KEPT if recipe.train.save_every > 0 else 1) * networks * model.trained * 3 * max(width, 4)
    tokens = step.steps * step.completions * step.longest_completion
    parts = {
        "model": saved,
        "best": saved if rows.evaluated else 0,
        "checkpoints": checkpoints,
        "rollouts": tokens * LOG_BYTES,
    }
    return Bill(parts, sum(parts.values()), resources.disk_free(folder), f"free at {folder}")
