"""The built-in rewards by name: where each lies, what it needs, and whether its options are right before a run."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from upslope.errors import InputError, MachineError
from upslope.worlds import reward_builtin
from upslope.worlds.rewards import Part


@dataclass(frozen=True, slots=True)
class Builtin:
    """``maker`` names the function of ``reward_builtin`` that makes the reward; ``package`` is one that it imports.

    ``sandbox``: it evaluates what the model wrote, by code that was never made for strangers.
    """

    maker: str
    package: str | None = None
    sandbox: bool = False


BUILTINS: dict[str, Builtin] = {
    "exact": Builtin("exact"),
    "numeric": Builtin("numeric"),
    "math": Builtin("math_verify", "math_verify", sandbox=True),
    "format": Builtin("format_tags"),
    "regex": Builtin("regex"),
    "json-schema": Builtin("json_schema", "jsonschema"),
    "length": Builtin("length"),
    "overlong": Builtin("overlong"),
}


def builtin_part(
    name: str, options: Mapping[str, Any] | None = None, weight: float = 1.0, shown: str | None = None,
    where: str = "reward",
) -> Part:  # fmt: skip
    """The built-in reward ``name`` with its options, checked; ``shown`` is what it is logged as, else its name.

    Raises:
        InputError: no such reward or option (with the nearest name), or an option's value is bad.
        MachineError: its package is not installed.
    """
    if name not in BUILTINS:
        problem = f"no built-in reward {name!r}. Built in: {', '.join(BUILTINS)}"
        raise InputError(f"{where}.builtin", problem, _nearest(name, list(BUILTINS)))
    builtin, given = BUILTINS[name], dict(options or {})
    maker = getattr(reward_builtin, builtin.maker)
    hints, known = typing.get_type_hints(maker), inspect.signature(maker).parameters
    for option, value in given.items():
        if option not in known:
            problem = f"reward {name} has no option {option!r}. Options: {', '.join(known)}"
            raise InputError(f"{where}.{option}", problem, _nearest(option, list(known)))
        if not _fits(value, hints[option]):
            wanted = _words(hints[option])
            raise InputError(f"{where}.{option}", f"found {value!r}, expected {wanted}", f"give {wanted}")
    missing = [option for option, item in known.items() if item.default is item.empty and option not in given]
    if missing:
        raise InputError(f"{where}.{missing[0]}", "is missing", f"give {missing[0]}: {_words(hints[missing[0]])}")
    if builtin.package is not None and importlib.util.find_spec(builtin.package) is None:
        package = builtin.package.replace("_", "-")
        raise MachineError(f"{where} {name}", f"{package} is not installed", "pip install 'upslope[tasks]'")
    if not builtin.sandbox:  # those take seconds to load
        try:
            maker(**given)
        except (ValueError, OSError) as error:
            raise InputError(f"{where} {name}", str(error), "correct its options") from None
    return Part(f"upslope.worlds.reward_builtin:{builtin.maker}", shown or name, weight, given, builtin.sandbox)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from YAML is of a type among ``int``, ``float``, ``str``, ``bool``, mappings, lists of text, and
    unions of these."""
    inner = typing.get_args(hint)
    kind = typing.get_origin(hint) or hint
    if kind in (Sequence, list):
        return isinstance(value, list | tuple) and all(_fits(item, inner[0]) for item in value)
    if kind in (dict, Mapping):
        return isinstance(value, Mapping)
    if inner:  # a union
        return any(_fits(value, item) for item in inner)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _words(hint: Any) -> str:
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if hint in words:
        return words[hint]
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind in (Sequence, list):
        return "a list of text"
    if kind in (dict, Mapping):
        return "a mapping"
    return " or ".join(_words(item) for item in inner if item is not type(None))


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"use one of {', '.join(known)}"
