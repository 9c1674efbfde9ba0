"""Checks a draft against a recipe's schema and says what is wrong in words, all of it in one pass."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from upslope.errors import InputError, InputErrors
from upslope.run.recipe_hints import SECRET_VALUE, hint, is_secret_key
from upslope.run.recipe_yaml import COMMAND_LINE, Draft, clean, flow_text, shown

R = TypeVar("R", bound=BaseModel)

MOST_ERRORS = 50
_MISSING = object()
_NUMBER = ("is not a number", "give a number")
_WHOLE = ("is not a whole number", "give a whole number")
_BOOL = ("is neither true nor false", "write true or false")
_TEXT = ("is not text", "put it in quotes if it is meant as text")
_LIST = ("is not a list", "write a list")
_WORDS: dict[str, tuple[str, str]] = {
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "int_parsing": _WHOLE,
    "int_type": _WHOLE,
    "int_from_float": _WHOLE,
    "int_parsing_size": ("is too large", "give a smaller number"),
    "finite_number": ("is not a finite number", "give a finite number"),
    "bool_parsing": _BOOL,
    "bool_type": _BOOL,
    "string_type": _TEXT,
    "string_unicode": ("is not Unicode text", "remove the broken characters"),
    "tuple_type": _LIST,
    "list_type": _LIST,
    "dict_type": ("is not a mapping", "write a mapping"),
}
_BOUNDS = {"greater_than": ">", "greater_than_equal": ">=", "less_than": "<", "less_than_equal": "<="}
_BOUND_NAMES = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}
_EXAMPLES = {"data": "path: rows.jsonl", "model": "name: path/to/model", "reward": "function: rewards.py:correct"}


# --------------------------------------------------------------------------------------------------------------- schema
def section_of(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds, if it is a section. A list of models is none: its entries are not keys."""
    if get_origin(annotation) in (tuple, list):
        return None
    for item in (annotation, *get_args(annotation)):
        if isinstance(item, type) and issubclass(item, BaseModel):
            return item
    return None


@lru_cache(maxsize=64)
def keys(schema: type[BaseModel]) -> Mapping[str, FieldInfo]:
    """Every dotted key of ``schema``, sections among them, in order."""
    found: dict[str, FieldInfo] = {}
    for name, info in schema.model_fields.items():
        found[name] = info
        section = section_of(info.annotation)
        if section is not None:
            found.update({f"{name}.{inner}": item for inner, item in keys(section).items()})
    return found


def is_section(schema: type[BaseModel], key: str) -> bool:
    """Whether ``key`` names a section of ``schema``."""
    info = keys(schema).get(key)
    return info is not None and section_of(info.annotation) is not None


def default(info: FieldInfo) -> Any:
    """A field's default, or None where it has none."""
    return None if info.is_required() else info.get_default(call_default_factory=True, validated_data={})


# ----------------------------------------------------------------------------------------------------------- validation
def validate(draft: Draft, schema: type[R]) -> R:
    """The recipe that the draft holds.

    Raises:
        InputErrors: everything that is wrong with it, in the order of the file: repeated and unknown keys, values of a
            wrong kind or out of range, missing keys, keys that do not go together, secrets.
    """
    _sift(draft)
    failure: ValidationError | None = None
    recipe: R | None = None
    try:
        recipe = schema.model_validate(draft.data)
    except ValidationError as error:
        failure = error
    details = [] if failure is None else _details(failure)
    blamed = {error.where.rpartition(" ")[2].partition(".")[0] for error in draft.errors}
    details = [item for item in details if item["type"] != "value_error" or not blamed & _named(item, schema)]
    bools = _misplaced_bools(draft.data, schema)
    located = {_dotted(item) for item in bools}
    details = [item for item in details if _dotted(item) not in located] + bools
    details += _hidden(draft, schema, details)
    errors = draft.errors + [_explain(item, draft, schema) for item in details[:MOST_ERRORS]]
    if len(details) > MOST_ERRORS:
        errors.append(InputError(draft.source, f"{len(details) - MOST_ERRORS} more errors", "mend those above first"))
    if errors or recipe is None:
        raise InputErrors(sorted(errors, key=_line))
    return recipe


def _line(error: InputError) -> float:
    number = re.match(r".*?:(\d+)(?: |$)", error.where)
    return float(number[1]) if number else float("inf")


def _sift(draft: Draft) -> None:
    """Finds what no recipe may hold: secrets, which are taken out so that they reach neither a message nor a run
    folder, NUL, and whole numbers beyond 64 bits."""

    def walk(node: Any, path: str) -> Any:
        if isinstance(node, dict):
            for name in list(node):
                key = f"{path}.{name}" if path else name
                if is_secret_key(name) and node[name] is not None:
                    draft.errors.append(_secret(draft, key))
                    del node[name]
                else:
                    node[name] = walk(node[name], key)
        elif isinstance(node, list | tuple):
            return [walk(item, path) for item in node]
        elif isinstance(node, str) and SECRET_VALUE.search(node):
            draft.errors.append(_secret(draft, path))
            return SECRET_VALUE.sub("***", node)
        elif isinstance(node, str) and "\0" in node:  # no file, no tokenizer and no environment takes one
            draft.errors.append(InputError(draft.at(path), "holds a NUL character", "remove it"))
            return node.replace("\0", "")
        elif isinstance(node, int) and abs(node) >= 2**63:
            draft.errors.append(InputError(draft.at(path), "is too large", "give a number within 64 bits"))
            return 1
        return node

    walk(draft.data, "")


def _secret(draft: Draft, key: str) -> InputError:
    problem = "looks like a secret, and recipes are copied into run folders"
    return InputError(
        draft.at(key), problem, "give secrets by environment variables, such as HF_TOKEN or WANDB_API_KEY"
    )


def _misplaced_bools(data: dict[str, Any], schema: type[BaseModel]) -> list[dict[str, Any]]:
    """true and false where a number is wanted: pydantic would take them for 1 and 0."""
    found = []
    for key, info in keys(schema).items():
        value = _get(data, key.split("."))
        if isinstance(value, bool) and not _allows(info.annotation, {bool, Any}):
            whole = _allows(info.annotation, {int})
            kind = "int_type" if whole else "float_type" if _allows(info.annotation, {float}) else "string_type"
            found.append({"type": kind, "loc": tuple(key.split(".")), "input": value, "msg": "", "ctx": {}})
    return found


def _allows(annotation: Any, kinds: set[Any]) -> bool:
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is Literal:
        return any(type(item) in kinds for item in get_args(annotation))
    inner = get_args(annotation)
    return any(_allows(item, kinds) for item in inner) if inner else annotation in kinds


def _get(data: Any, parts: Iterable[str | int]) -> Any:
    for part in parts:
        if not isinstance(data, dict) or part not in data:
            return _MISSING
        data = data[part]
    return data


def _hidden(draft: Draft, schema: type[BaseModel], details: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rules between keys that pydantic leaves unchecked once a single value is wrong.

    The wrong values are left out and the rest is checked again; a rule counts if it speaks of no section that lost one.
    """
    wrong = [item for item in details if item["type"] != "value_error"]
    if not wrong or len(wrong) > MOST_ERRORS:
        return []
    rest = copy.deepcopy(draft.data)
    touched = {error.where.rpartition(" ")[2].partition(".")[0] for error in draft.errors}
    for item in wrong:
        parts = [str(part) for part in item["loc"]]
        touched |= {parts[0], *(near.split(".")[0] for near in hint(".".join(parts), list(keys(schema))).near)}
        parent = _get(rest, parts[:-1]) if item["type"] != "missing" else None
        if isinstance(parent, dict):
            parent.pop(parts[-1], None)
    try:
        schema.model_validate(rest)
    except ValidationError as failure:
        known = {(item["loc"], item["msg"]) for item in details}
        rules = [item for item in _details(failure) if item["type"] == "value_error"]
        rules = [item for item in rules if (item["loc"], item["msg"]) not in known]
        return [item for item in rules if not touched & _named(item, schema)]
    return []


def _details(failure: ValidationError) -> list[dict[str, Any]]:
    return [dict(item) for item in failure.errors(include_url=False)]


def _named(item: Mapping[str, Any], schema: type[BaseModel]) -> set[str]:
    """The sections that a rule between keys speaks of."""
    return {*map(str, item["loc"][:1]), *(set(re.findall(r"[a-z_]+", str(item["msg"]))) & set(schema.model_fields))}


# ---------------------------------------------------------------------------------------------------------------- words
def _dotted(item: Mapping[str, Any]) -> str:
    return ".".join(str(part) for part in item["loc"])


def _explain(item: Mapping[str, Any], draft: Draft, schema: type[BaseModel]) -> InputError:
    kind = str(item["type"])
    parts = [str(part) for part in item["loc"] if part != "[key]"]
    key = ".".join(parts)
    if kind == "extra_forbidden":
        return _unknown(key, draft, schema)
    if kind in ("value_error", "assertion_error"):
        return _rule(item, key, draft, schema)
    info = keys(schema).get(key) or keys(schema).get(".".join(parts[:-1]))
    value, context = item["input"], item.get("ctx") or {}
    where = draft.at(key)
    if kind == "missing":
        return InputError(where, "is missing", _shape(key, info, "add"))
    if info is not None and section_of(info.annotation) is not None:
        problem = f"{shown(value)} was given for a section, expected keys under it"
        return InputError(where, problem, _shape(key, info, "write, for example,"))
    if kind in _BOUNDS:
        bound = f"{_BOUNDS[kind]} {context[_BOUND_NAMES[kind]]:g}"
        return InputError(where, f"must be {bound} (got {shown(value)})", f"give a number {bound}")
    if kind == "literal_error":
        return _choice(where, key, value, re.findall(r"'([^']*)'", str(context.get("expected", ""))))
    if kind == "string_pattern_mismatch":
        allowed = (info.description if info else None) or f"text like {context.get('pattern')}"
        problem = f"{shown(value)} is not one of {allowed.rstrip('.').replace(' | ', ', ')}"
        return InputError(where, problem, _example(key, info, "write one of them"))
    problem, fix = _WORDS.get(kind, (f"is not allowed ({clean(str(item['msg'])).lower()})", "change the value"))
    if kind in ("tuple_type", "list_type"):
        return InputError(where, f"{shown(value)} {problem}", f"{fix}: {parts[-1]}: {flow_text([_plain(value)])}")
    return InputError(where, f"{shown(value)} {problem}", _example(key, info, fix))


def _plain(value: Any) -> Any:
    return clean(value, 40) if isinstance(value, str) else value if isinstance(value, int | float) else "..."


def _example(key: str, info: FieldInfo | None, fix: str) -> str:
    value = default(info) if info is not None else None
    if value is None or value == () or value == {} or isinstance(value, BaseModel):
        return fix
    return f"{fix}, such as {key.rpartition('.')[2]}: {flow_text(value)}"


def _shape(key: str, info: FieldInfo | None, verb: str) -> str:
    """What to write for a section or a key that is missing, in two lines for a section."""
    leaf = key.rpartition(".")[2]
    section = section_of(info.annotation) if info is not None else None
    if section is None:
        return f"{verb} {leaf}: and a value"
    defaults = ((name, default(item)) for name, item in section.model_fields.items())
    usual = (f"{name}: {flow_text(value)}" for name, value in defaults if value not in (None, (), {}))
    inner = _EXAMPLES.get(key) or next(usual, f"{next(iter(section.model_fields), 'key')}: ...")
    return f"{verb}\n    {leaf}:\n      {inner}\n  with two spaces before the inner key"


def _unknown(key: str, draft: Draft, schema: type[BaseModel]) -> InputError:
    known = list(keys(schema))
    if draft.place(key) in (COMMAND_LINE, draft.source):  # say the whole key that was typed, not its unknown section
        key = next((name for name in draft.where if name.startswith(key + ".")), key)
    section = key.rpartition(".")[0]
    section = section if section in known else ""
    here = ", ".join(name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == section)
    near, why, foreign = hint(key, known)
    fix = f"write {near[0]}" if near else "remove it"
    if foreign and near:
        remark = f" ({why})" if why else ""
        return InputError(draft.at(key), f"unknown key. {key.rpartition('.')[2]} is called {near[0]} here{remark}", fix)
    if near:
        return InputError(draft.at(key), f"unknown key. Did you mean {' or '.join(near)}? Keys here: {here}", fix)
    return InputError(draft.at(key), f"unknown key: {why}" if why else f"unknown key. Keys here: {here}", fix)


def _choice(where: str, key: str, value: Any, allowed: list[str]) -> InputError:
    near = difflib.get_close_matches(str(value), allowed, n=1)
    fix = f"write {key.rpartition('.')[2]}: {near[0]}" if near else "write one of them"
    return InputError(where, f"{shown(value)} is not one of {', '.join(allowed)}", fix)


def _rule(item: Mapping[str, Any], key: str, draft: Draft, schema: type[BaseModel]) -> InputError:
    """A rule between keys, in the model's own words; what follows ``Fix:`` or ``: give`` in them is the action."""
    text = str((item.get("ctx") or {}).get("error") or item["msg"]).removeprefix("Value error, ")
    found = re.split(r"\.?\s*Fix:\s*|:\s*(?=give )", text, maxsplit=1)
    problem = found[0]
    named = [name for name in re.findall(r"\b[a-z_]+(?:\.[a-z_]+)+", problem) if name in keys(schema)]
    named = list(dict.fromkeys(named))
    given = [name for name in named if name in draft.where]
    subject = key or (given[0] if given else "")
    first = re.match(r"([a-z_.]+) (?=[a-z])", problem)  # "grpo.group must be ...", "reward is needed ..."
    if first and first[1] in keys(schema) and (first[1] in given or not given or "." not in first[1]):
        subject, problem = first[1], problem.removeprefix(first[0])
    if len(found) == 2:
        fix = found[1]
    elif given:
        fix = "change " + " or ".join(f"{name} ({draft.place(name)})" for name in given)
    else:
        fix = f"give {' or '.join(named)}" if named else f"change {subject or 'the recipe'}"
    return InputError(draft.at(subject), clean(problem, 400), clean(fix, 400))
