"""LoRA in a recipe: what the `lora` section asks for, put on the model that was loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from upslope.errors import InputError
from upslope.recipes.configs import PAIRED, Recipe, SftRecipe
from upslope.run.recipe import LOW_LORA_RATE

if TYPE_CHECKING:
    from upslope.models.adapters import Lora
    from upslope.models.loading import Card, LanguageModel


def lora_of(recipe: Recipe) -> Lora | None:
    """The recipe's adapter, or None."""
    from upslope.models.adapters import Lora

    asked = recipe.lora
    return None if asked is None else Lora(asked.rank, asked.scale_alpha, asked.targets, asked.dropout)


def check_adapter(recipe: Recipe, card: Card) -> None:
    """What can be wrong with the adapter before weights are read.

    Raises:
        InputError: targets that name no layer; an adapter of a kind that is not served.
    """
    from upslope.models.adapter_files import refuse_unserved
    from upslope.models.adapters import chosen_layers
    from upslope.models.memory import linear_layers
    from upslope.models.weights import stored_tensors

    if card.adapter is not None:
        refuse_unserved(card.adapter)
    if recipe.lora is not None and Path(card.source).is_dir():
        shapes = {name: stored.shape for name, stored in stored_tensors(Path(card.source)).items()}
        if names := linear_layers(shapes):
            chosen_layers(names, recipe.lora.targets)


def adapt(recipe: Recipe, model: LanguageModel, notice: Callable[[str], None]) -> dict[str, int]:
    """Put the recipe's adapter on the model, or check that the one it came with is meant; how many weights are trained.

    Raises:
        InputError: the model is an adapter of other rank, alpha or layers than the recipe asks for.
    """
    from upslope.models import adapters

    network, card, wanted = model.model, model.card, lora_of(recipe)
    if card.adapter is not None:
        adapters.go_on(network, wanted, card.name)
        own = float(card.adapter.config.get("lora_dropout") or 0.0)
        share = own if wanted is None else wanted.dropout
        if isinstance(recipe, (SftRecipe, *PAIRED)):
            adapters.set_dropout(network, share)
        elif share > 0:
            notice(f"{card.name} was trained with a dropout of {share:g}: off here, where completions are sampled")
        if wanted is None and recipe.optim.lr < LOW_LORA_RATE:
            notice(f"optim.lr {recipe.optim.lr:g} suits training all weights; an adapter usually takes 1e-4 to 1e-3")
    elif wanted is not None:
        adapters.add(network, wanted, recipe.seed)
    counts = {
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "trained_parameters": sum(weight.numel() for weight in network.parameters() if weight.requires_grad),
    }
    if counts["trained_parameters"] < counts["parameters"]:
        share = counts["trained_parameters"] / counts["parameters"]
        numbers = "{trained_parameters:,} of {parameters:,}".format(**counts)
        notice(f"LoRA: {numbers} weights are trained ({share:.2%})")
    return counts


def weights_digest(card: Card) -> str | None:
    """Which weights a run begins from: the base's and the adapter's; None for a hub id. See ``fingerprint``."""
    from upslope.models.adapter_files import fingerprint

    if not Path(card.source).is_dir():
        return None
    base = fingerprint(Path(card.source))
    return base if card.adapter is None else f"{base}+{fingerprint(card.adapter.directory)}"


def same_weights(before: str | None, now: str | None, name: str) -> None:
    """Raise ``InputError`` where a run that is resumed would stand on other weights than it began with."""
    if before is not None and now is not None and before != now:
        raise InputError("model.name", f"{name} holds other weights than this run began with",
                         "put the old model back, or start a new run")  # fmt: skip
