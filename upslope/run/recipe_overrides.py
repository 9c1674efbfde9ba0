"""Puts keys into a draft: overrides of the command line, and keywords of the Python API."""

from __future__ import annotations

import numbers
import os
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from upslope.errors import InputError
from upslope.run.recipe_errors import default, is_section, keys
from upslope.run.recipe_hints import hint
from upslope.run.recipe_yaml import COMMAND_LINE, Draft, clean, parse_value, shown

SHORTHANDS = {"model": "name", "data": "path", "reward": "function"}
"""A section given as text stands for one of its keys: ``model: dir`` is ``model: {name: dir}``."""

REWARDS = {"function", "builtin", "model", "functions"}
"""Keys of ``reward`` that say what it is; the others are options."""

_REPLACES = {"data.path": ("data.task", "data.options"), "data.task": ("data.path", "data.columns")}


def expand(draft: Draft, schema: type[BaseModel]) -> None:
    """Writes shorthands out, and takes a section without keys (``optim:``) for an empty one, unless it may be null."""
    for key in schema.model_fields:
        if key not in draft.data or not is_section(schema, key):
            continue
        value, leaf = draft.data[key], SHORTHANDS.get(key)
        if value is None:
            draft.data[key] = None if default(schema.model_fields[key]) is None else {}
        elif isinstance(value, str) and leaf and f"{key}.{leaf}" in keys(schema):
            draft.data[key] = {leaf: value}
            draft.where[f"{key}.{leaf}"] = draft.place(key)


def put(draft: Draft, schema: type[BaseModel], key: str, value: Any, place: str) -> None:
    """Sets a dotted key. A mapping for a section sets its keys one by one, other values replace what was there; so does
    a mapping that says what the reward is: ``reward={model: DIR}`` in place of a function with its options."""
    if isinstance(value, str) and key in SHORTHANDS and f"{key}.{SHORTHANDS[key]}" in keys(schema):
        if isinstance(draft.data.get(key), list):
            draft.data[key] = {}  # one function in place of several
        key = f"{key}.{SHORTHANDS[key]}"
    if isinstance(value, Mapping) and is_section(schema, key):
        if key == "reward" and REWARDS & value.keys():
            draft.data[key] = {}
        for name, item in value.items():
            put(draft, schema, f"{key}.{name}", item, place)
        return
    parts = key.split(".")
    node = draft.data
    for depth, part in enumerate(parts[:-1]):
        above = ".".join(parts[: depth + 1])
        if node.get(part) is None:
            node[part] = {}
            draft.where[above] = place
        if not isinstance(node[part], dict):
            problem = f"{clean(above)} is a single value, not a section"
            draft.errors.append(InputError(f"{place} {clean(key)}", problem, f"write {clean(above)}=value"))
            return
        node = node[part]
    node[parts[-1]] = value
    for name in [name for name in draft.where if name.startswith(key + ".")]:
        del draft.where[name]
    draft.where[key] = place


# --------------------------------------------------------------------------------------------------------- command line
def apply_overrides(draft: Draft, schema: type[BaseModel], tokens: Sequence[str]) -> None:
    """Applies ``section.key=value``, ``--section.key=value`` and ``--section.key value``, the later over the earlier.

    Exactly one of ``data.path`` and ``data.task`` may stand, so an override of one takes out the other where the file
    gave it, with its ``data.options`` or ``data.columns``; a notice says so.
    """
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        key, equals, text = token.partition("=")
        flagged, key = key.startswith("--"), key.strip().removeprefix("--")
        key = key.replace("-", "_") if flagged and key.replace("-", "_") in keys(schema) else key
        where = f"{COMMAND_LINE} {clean(key)}".strip()
        if not all(key.split(".")) or not (equals or flagged):
            draft.errors.append(_not_understood(token, schema))
            continue
        if not equals and rest and not _is_override(rest[0], schema):
            text = rest.pop(0)
        if not text.strip():
            draft.errors.append(_no_value(where, key, schema))
            continue
        try:
            value = parse_value(text, key)
        except InputError as error:
            draft.errors.append(error)
            continue
        put(draft, schema, key, value, COMMAND_LINE)
        _replace(draft, key, value)


def _is_override(token: str, schema: type[BaseModel]) -> bool:
    return token.startswith("--") or ("=" in token and token.partition("=")[0] in keys(schema))


def _not_understood(token: str, schema: type[BaseModel]) -> InputError:
    name = token.removeprefix("--").partition("=")[0]
    near = hint(name, list(keys(schema))).near or tuple(key for key in keys(schema) if key == name)
    key = near[0] if near else "train.steps"
    problem = f"'{clean(token)}' is not understood, expected section.key=value"
    return InputError(COMMAND_LINE, problem, f"write {key}=value")


def _no_value(where: str, key: str, schema: type[BaseModel]) -> InputError:
    near = hint(key, list(keys(schema))).near if key not in keys(schema) else ()
    problem = f"unknown key without a value. Did you mean {near[0]}?" if near else "has no value"
    name = near[0] if near else clean(key)
    return InputError(where, problem, f"write {name}=value, {name}=null for none or {name}='\"\"' for empty text")


def _replace(draft: Draft, key: str, value: Any) -> None:
    key = f"{key}.{SHORTHANDS[key]}" if key in SHORTHANDS and isinstance(value, str) else key
    if key == "data" and isinstance(value, Mapping):
        for name, item in value.items():
            _replace(draft, f"data.{name}", item)
    data = draft.data.get("data")
    if value is None or not isinstance(data, dict):
        return
    for other in _REPLACES.get(key, ()):
        name, place = other.partition(".")[2], draft.place(other)
        if data.get(name) is not None and place != COMMAND_LINE:
            old = data.pop(name)
            draft.where.pop(other, None)
            draft.notices.append(f"{place} {other}: {shown(old)} is left out, because the command line gives {key}")


# --------------------------------------------------------------------------------------------------------------- Python
def apply_keywords(draft: Draft, schema: type[BaseModel], keywords: Mapping[str, Any]) -> None:
    """Applies keywords of a Python call: sections, dotted names (``optim.lr``, ``optim__lr``) and unique last names."""
    seen: dict[str, str] = {}
    for name, value in keywords.items():
        key = _full_name(draft, schema, str(name).replace("__", "."))
        if key is None:
            continue
        try:
            value = plain(value)
        except (TypeError, ValueError, RecursionError) as error:
            fix = "give text, numbers, true or false, lists and mappings of these"
            draft.errors.append(InputError(f"{draft.source} {clean(key)}", clean(str(error)), fix))
            continue
        for full in _spread(schema, key, value):
            if full in seen:
                problem = f"given twice (as {clean(seen[full])} and as {clean(str(name))})"
                draft.errors.append(InputError(f"{draft.source} {clean(full)}", problem, "keep one"))
            seen[full] = str(name)
        put(draft, schema, key, value, draft.source)


def _full_name(draft: Draft, schema: type[BaseModel], name: str) -> str | None:
    if not all(name.split(".")):
        draft.errors.append(InputError(draft.source, f"'{clean(name)}' is not a key", "write section__key=value"))
        return None
    if name in schema.model_fields or "." in name:
        return name
    matches = [key for key in keys(schema) if key.rpartition(".")[2] == name and not is_section(schema, key)]
    if len(matches) > 1:
        spelled = ", ".join(key.replace(".", "__") for key in matches)
        problem = f"may mean any of {', '.join(matches)}"
        draft.errors.append(InputError(f"{draft.source} {clean(name)}", problem, f"write one of {spelled}"))
        return None
    return matches[0] if matches else name


def _spread(schema: type[BaseModel], key: str, value: Any) -> list[str]:
    if isinstance(value, str) and key in SHORTHANDS:
        return [f"{key}.{SHORTHANDS[key]}"]
    if isinstance(value, Mapping) and is_section(schema, key):
        return [full for name, item in value.items() for full in _spread(schema, f"{key}.{name}", item)]
    return [key]


def plain(value: Any, depth: int = 0) -> Any:
    """``value`` with paths as text, numpy's numbers as Python's and tuples as lists.

    Raises:
        TypeError: something that a recipe cannot hold. ValueError: too deep, or a whole number beyond 64 bits.
    """
    if depth > 20:
        raise ValueError("more than 20 levels deep")
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, numbers.Integral):
        if abs(int(value)) >= 2**64:
            raise ValueError("a whole number beyond 64 bits")
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, Mapping):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise TypeError(f"the key {shown(wrong[0])} is not text")
        return {str(key): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, depth + 1) for item in value]
    raise TypeError(f"a {type(value).__name__} cannot be written into a recipe")
