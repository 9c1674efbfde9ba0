"""Which command a recipe file is for: the file itself does not say it in a key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upslope.errors import InputError
from upslope.recipes.configs import RECIPES
from upslope.run.recipe_yaml import clean, parse, read_file


def own_sections(kind: str) -> set[str]:
    """Keys at the top of a recipe of this kind that no other kind has: ``{"grpo"}``."""
    others = {name for other, schema in RECIPES.items() if other != kind for name in schema.model_fields}
    return set(RECIPES[kind].model_fields) - others


def kind_of(path: Path, overrides: Sequence[str] = ()) -> str:
    """The kind of a recipe, told by a section that only one kind has (in the file or the overrides), by the first
    command in its comments, or by the first word of its name.

    Raises:
        InputError: none of them tells, or two sections contradict each other; or the file cannot be read.
    """
    text = read_file(path)
    given = _top_keys(parse(text, clean(str(path), 200)).data, overrides)
    by_section = [kind for kind in RECIPES if own_sections(kind) & given]
    if len(by_section) == 1:
        return by_section[0]
    if len(by_section) > 1:
        sections = " and ".join(sorted(name for kind in by_section for name in own_sections(kind) & given))
        raise InputError(str(path), f"it has the sections {sections}, which belong to different commands", "keep one")
    command = re.search(rf"^#.*\bupslope +({'|'.join(RECIPES)})\b", text, re.MULTILINE)
    if command:
        return command[1]
    first = re.split(r"[^a-z]", path.name.lower(), maxsplit=1)[0]
    if first in RECIPES:
        return first
    kinds = ", ".join(RECIPES)
    problem = f"nothing in it says which command it is for (one of {kinds})"
    raise InputError(str(path), problem, f"give --kind {next(iter(RECIPES))}, say")


def _top_keys(data: Mapping[str, Any], overrides: Sequence[str]) -> set[str]:
    names = {str(name) for name in data}
    return names | {re.split(r"[.=]", text.removeprefix("--"), maxsplit=1)[0] for text in overrides}
