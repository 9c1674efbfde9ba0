"""Built-in tasks by name, and the split of rows into those to learn from and those held out."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from upslope.errors import InputError
from upslope.worlds.arithmetic import Arithmetic
from upslope.worlds.calculator_task import Calculator
from upslope.worlds.reasoning import ReasoningGym
from upslope.worlds.text_gridworld import TextGrid
from upslope.worlds.worked_sums import WorkedSums

if TYPE_CHECKING:
    from upslope.types import Task

Item = TypeVar("Item")
TASKS: dict[str, Callable[..., Any]] = {
    "arithmetic": Arithmetic,
    "calculator": Calculator,
    "text-grid": TextGrid,
    "reasoning-gym": ReasoningGym,
    "worked-sums": WorkedSums,
}


def load_task(name: str, options: Mapping[str, Any] | None = None) -> Task:
    """The built-in task ``name`` with its options.

    Raises:
        InputError: no such task or option (with the nearest name), or an option's value is bad.
    """
    if name not in TASKS:
        raise InputError(
            "data.task", f"no built-in task {name!r}. Tasks: {', '.join(TASKS)}", _nearest(name, TASKS, "data.task: ")
        )
    known = inspect.signature(TASKS[name]).parameters
    given = dict(options or {})
    for option, value in given.items():
        where = f"data.options.{option}"
        if option not in known:
            problem = f"task {name} has no option {option!r}. Options: {', '.join(known)}"
            raise InputError(where, problem, _nearest(option, known, "data.options."))
        default = known[option].default
        if default is None and value is None:
            continue
        kind = int if default is None else type(default)  # an option that may be null is a whole number
        if kind is float and type(value) is int:
            given[option] = float(value)
        elif type(value) is not kind:
            raise InputError(where, f"found {value!r}, expected {kind.__name__}", f"give it as {kind.__name__}")
    return TASKS[name](**given)


def _nearest(name: str, known: Mapping[str, Any], before: str) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {before}{near[0]}?" if near else f"use one of {', '.join(known)}"


def split_rows(items: Sequence[Item], heldout: int | float, seed: int = 0) -> tuple[list[Item], list[Item]]:
    """Split rows into (train, heldout), each in the given order, by a hash of the prompt and ``seed``.

    ``heldout`` below 1 is a share of the rows (at least one row, unless it is 0), from 1 on a number of rows. Rows with
    equal prompts go to one side together, so a held-out prompt is never trained on; where repeated prompts do not fit
    the number, fewer rows are held out. A prompt is ``content`` or ``prompt`` of an object, ``prompt``, ``input`` or
    ``messages`` of a mapping, or else the item as a whole. The order of the rows does not matter.

    Raises:
        InputError: a negative or fractional number, or nothing would be left to train on.
    """
    if heldout < 0 or (heldout >= 1 and heldout != int(heldout)):
        raise InputError(
            "data.heldout", f"found {heldout}, expected a share below 1 or a whole number of rows", "set it so"
        )
    if not heldout:
        return list(items), []
    together: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        text = json.dumps([seed, _prompt_of(item)], sort_keys=True, default=str)
        together.setdefault(hashlib.blake2b(text.encode(), digest_size=16).hexdigest(), []).append(index)
    wanted = int(heldout) if heldout >= 1 else max(1, round(heldout * len(items)))
    if wanted >= len(items) or len(together) < 2:
        problem = f"{wanted} rows to hold out, of {len(items)} rows with {len(together)} different prompts"
        raise InputError("data.heldout", problem, "lower data.heldout or give more rows")
    chosen: set[int] = set()
    for _, indices in sorted(together.items()):
        if len(chosen) + len(indices) <= wanted:
            chosen.update(indices)
    if not chosen:
        problem = f"{wanted} rows to hold out, but every prompt occurs more often than that"
        raise InputError("data.heldout", problem, "raise data.heldout")
    return [item for i, item in enumerate(items) if i not in chosen], [
        item for i, item in enumerate(items) if i in chosen
    ]


def _prompt_of(item: Any) -> Any:
    if isinstance(item, Mapping):
        found = next((item[name] for name in ("prompt", "input", "messages") if item.get(name) is not None), item)
    else:
        found = next((getattr(item, name) for name in ("content", "prompt") if hasattr(item, name)), item)
    if (
        isinstance(found, list | tuple)
        and found
        and isinstance(found[-1], Mapping)
        and found[-1].get("role") == "assistant"
    ):
        return found[:-1]  # a conversation to train on: its last turn is the answer
    return found
