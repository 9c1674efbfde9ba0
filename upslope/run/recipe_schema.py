"""JSON Schema of recipes, for editors: completion, documentation and errors as one types.

The schema says what the loader accepts: a section's short form (``model: dir``), unknown keys as errors, YAML numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from upslope.run.recipe_errors import section_of
from upslope.run.recipe_overrides import SHORTHANDS

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema(schema: type[BaseModel], title: str) -> dict[str, Any]:
    """The schema of one kind of recipe. Each key's description is the string that documents it."""
    found = schema.model_json_schema()
    definitions: dict[str, Any] = found.pop("$defs", {})
    for name, info in schema.model_fields.items():
        section = section_of(info.annotation)
        if section is not None:
            found["properties"][name] = _with_short_forms(found["properties"][name], name, section)
    for definition in definitions.values():
        _loosen(definition)
    whole: dict[str, Any] = _untitled({**found, "$defs": definitions})
    return {"$schema": DIALECT, "title": title, **whole}


def any_of(schemas: Mapping[str, type[BaseModel]], own: Mapping[str, set[str]]) -> dict[str, Any]:
    """One schema for all kinds. A section that only one kind has (``own``) says which one is meant, so that an editor's
    errors are about that one."""
    definitions: dict[str, Any] = {}
    for kind, schema in schemas.items():
        one = json_schema(schema, kind)
        inner = one.pop("$defs")
        one.pop("$schema")
        names = {name: f"{kind}.{name}" for name in inner}
        definitions[kind] = _renamed(one, names)
        definitions.update({names[name]: _renamed(value, names) for name, value in inner.items()})
    chosen: dict[str, Any] = {"anyOf": [{"$ref": f"#/$defs/{kind}"} for kind in schemas]}
    for kind, sections in own.items():
        if sections:
            named = [{"required": [section]} for section in sorted(sections)]
            chosen = {"if": {"anyOf": named}, "then": {"$ref": f"#/$defs/{kind}"}, "else": chosen}
    return {"$schema": DIALECT, "title": "upslope recipe", "type": "object", **chosen, "$defs": definitions}


def _with_short_forms(field: dict[str, Any], name: str, section: type[BaseModel]) -> dict[str, Any]:
    """The section, or what the loader takes in its place: text, a list, nothing between its colon and the next key."""
    described = {key: value for key, value in field.items() if key in ("description", "default")}
    whole = {key: value for key, value in field.items() if key not in described}
    forms = list(whole["anyOf"]) if set(whole) == {"anyOf"} else [whole]
    leaf = SHORTHANDS.get(name)
    if leaf in section.model_fields:
        about = section.model_fields[str(leaf)].description or ""
        forms.append({"type": "string", "description": f"Short for {name}.{leaf}: {about}"})
    if _takes_list(section):
        items: list[dict[str, Any]] = [{"type": "string"}, {"type": "object"}]
        forms.append({"type": "array", "items": {"anyOf": items}, "description": f"Several: {name}.functions."})
    if {"type": "null"} not in forms:
        forms.append({"type": "null"})
    return {"anyOf": forms, **described}


def _takes_list(section: type[BaseModel]) -> bool:
    """Whether the section can be given as a list: its own validator says so."""
    try:
        section.model_validate(["file.py:function"])
    except ValidationError:
        return False
    return True


def _takes_more_keys(definition: Mapping[str, Any]) -> bool:
    """Whether keys beside those listed are options of what ``builtin`` names."""
    return {"builtin", "options"} <= set(definition.get("properties", {}))


def _loosen(definition: dict[str, Any]) -> None:
    """Where options of a built-in function stand beside its keys, other keys are no errors."""
    if _takes_more_keys(definition) or "functions" in definition.get("properties", {}):
        definition["additionalProperties"] = True


def _untitled(value: Any) -> Any:
    """A copy without pydantic's titles, which say a key's name once more."""
    if isinstance(value, dict):
        return {
            key: item if key == "default" else _untitled(item)
            for key, item in value.items()
            if key != "title" or not isinstance(item, str)
        }
    return [_untitled(item) for item in value] if isinstance(value, list) else value


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """A copy whose references go to the new names."""
    if isinstance(value, dict):
        out = {key: _renamed(item, names) for key, item in value.items()}
        target = out.get("$ref")
        if isinstance(target, str):
            out["$ref"] = f"#/$defs/{names[target.rpartition('/')[2]]}"
        return out
    return [_renamed(item, names) for item in value] if isinstance(value, list) else copy.copy(value)
