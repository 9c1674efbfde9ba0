"""Recipes: from a YAML file, overrides or Python keywords to a checked, frozen model, and back to YAML.

The schema (a pydantic model) is an argument: this file knows nothing of algorithms. Nothing here imports torch, so
that a mistake in a recipe is told within a second.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from upslope.errors import InputError, InputErrors
from upslope.run.recipe_errors import keys, validate
from upslope.run.recipe_overrides import apply_keywords, apply_overrides, expand
from upslope.run.recipe_yaml import Draft, clean, flow_text, parse, read_file, shown

R = TypeVar("R", bound=BaseModel)

COMMENT_COLUMN = 34
LOW_LORA_RATE = 5e-5


@dataclass(frozen=True, slots=True)
class Loaded(Generic[R]):
    """A checked recipe.

    ``text`` is the resolved YAML with every key; ``name`` the stem of the file; ``where`` tells for each dotted key
    that was given its place (``r.yaml:6``, ``command line``); ``notices`` are warnings, for the caller to show.
    """

    recipe: R
    text: str
    name: str
    where: Mapping[str, str]
    notices: tuple[str, ...]


def load(path: Path | str, schema: type[R], overrides: Sequence[str] = ()) -> Loaded[R]:
    """The recipe in a YAML file, with overrides applied and checked against ``schema``.

    Overrides are ``section.key=value``, ``--section.key=value`` and ``--section.key value``, mixed in one list; a later
    one wins. Values are YAML: scalars, quoted text, ``[a, b]``, ``{a: 1}``. ``model=dir``, ``data=rows.jsonl`` and
    ``reward=rewards.py:correct`` stand for ``model.name``, ``data.path`` and ``reward.function``.

    Exactly one of ``data.path`` and ``data.task`` may stand: an override of ``data.path`` takes out a ``data.task``
    (and its ``data.options``) that came from the file, and the other way round (with ``data.columns``); a notice
    says so.

    Raises:
        InputError: the file cannot be read, or is not a YAML mapping.
        InputErrors: everything that is wrong with its keys and values, and with the overrides, at once.
    """
    path = Path(path)
    draft = parse(read_file(path), clean(str(path), 200))
    expand(draft, schema)
    apply_overrides(draft, schema, overrides)
    return _loaded(draft, schema, path.stem)


def build(keywords: Mapping[str, Any], schema: type[R], where: str = "upslope.grpo()") -> Loaded[R]:
    """The recipe that the keywords of a Python call give.

    A keyword is a section (``optim={"lr": 1e-5}``), a shorthand (``model="dir"``, ``data="rows.jsonl"``), a dotted name
    (``optim__lr=1e-5`` or ``"optim.lr"``), or a last name that only one key has (``lr=1e-5``, ``steps=40``,
    ``group=8``). A last name of several keys is an error that lists them. ``where`` names the call in messages; the
    recipe's name is its last word (``grpo``).

    Raises:
        InputErrors: everything that is wrong with the keywords, at once.
    """
    draft = Draft(where)
    apply_keywords(draft, schema, keywords)
    expand(draft, schema)
    return _loaded(draft, schema, re.sub(r"\(\)$", "", where).rpartition(".")[2])


def read_text(text: str, schema: type[R], where: str = "recipe.yaml") -> R:
    """The recipe that a run folder's recipe.yaml holds; ``where`` names it in messages. Raises as ``load`` does."""
    draft = parse(text, where)
    expand(draft, schema)
    return validate(draft, schema)


def dump(recipe: BaseModel) -> str:
    """The resolved YAML of a recipe: every key in the schema's order, with the first sentence that documents it.

    ``read_text(dump(recipe), type(recipe)) == recipe``, floats to the last bit.
    """
    return "\n".join(_lines(recipe, "")) + "\n"


def _loaded(draft: Draft, schema: type[R], name: str) -> Loaded[R]:
    recipe = validate(draft, schema)
    return Loaded(recipe, dump(recipe), name, dict(draft.where), (*draft.notices, *_notices(recipe, draft)))


def _lines(section: BaseModel, indent: str) -> Iterator[str]:
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        comment = _first_sentence(info.description or "")
        if isinstance(value, BaseModel):
            line = f"{indent}{name}:"
        else:
            line = f"{indent}{name}: {flow_text(_entries(value))}"
        yield f"{line:<{COMMENT_COLUMN}}  # {comment}" if comment else line
        if isinstance(value, BaseModel):
            yield from _lines(value, indent + "  ")


def _entries(value: Any) -> Any:
    """A list of models as mappings of what is set in them."""
    if isinstance(value, tuple):
        return [item.model_dump(exclude_defaults=True) if isinstance(item, BaseModel) else item for item in value]
    return value


def _first_sentence(text: str) -> str:
    return re.split(r"(?<!\bDr)\.(?:\s+(?=[A-Z])|$)", " ".join(text.split()))[0]


def _notices(recipe: BaseModel, draft: Draft) -> Iterator[str]:
    """Warnings about values that are allowed and seldom meant."""
    values = {key: _value(recipe, key) for key in keys(type(recipe))}

    def number(key: str) -> float | None:
        value = values.get(key)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    lora = values.get("lora") is not None
    for key in ("optim.lr", "ppo.critic_lr"):
        rate = number(key)
        if lora and rate is not None and key not in draft.where:
            yield f"{key}: {shown(rate)}, ten times its usual default, because lora trains few weights"
        if lora and rate is not None and key in draft.where and rate < LOW_LORA_RATE and "dpo" not in values:
            yield (
                f"{draft.at(key)}: {shown(rate)} suits training all weights. LoRA usually learns best at about ten "
                "times such a rate: 1e-4 to 1e-3."
            )
        if rate is not None and rate > 1e-2:
            yield (
                f"{draft.at(key)}: {shown(rate)} is very high. Training all weights of a language model usually "
                "takes 1e-6 to 1e-4; above 1e-2 it seldom survives."
            )
    warmup, steps = number("optim.warmup"), number("train.steps")
    if warmup is not None and steps is not None:
        passes = 1.0 if "sft" in values else (number("train.epochs") or 1.0) * (number("train.minibatches") or 1.0)
        if warmup > steps * passes:
            yield (
                f"{draft.at('optim.warmup')}: {warmup:g} steps of warm-up in a run of {steps * passes:g} optimizer "
                "steps: the learning rate never reaches optim.lr."
            )
    temperature = number("sampling.temperature")
    if temperature is not None and temperature < 0.3 and ("grpo" in values or "ppo" in values):
        yield (
            f"{draft.at('sampling.temperature')}: {shown(temperature)} is low. Completions of one prompt will be "
            "nearly equal, and equal completions teach nothing."
        )


def _value(recipe: BaseModel, key: str) -> Any:
    value: Any = recipe
    for part in key.split("."):
        value = getattr(value, part, None)
    return value


__all__ = ["InputError", "InputErrors", "Loaded", "build", "dump", "load", "read_text"]
