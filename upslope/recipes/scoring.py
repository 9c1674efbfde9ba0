"""From a recipe's ``reward`` to the functions that score: files, built-in rewards, Python functions, a task's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any

from upslope.errors import InputError
from upslope.recipes.reward_section import RewardEntry, RewardSection
from upslope.worlds.reward_calls import function_name
from upslope.worlds.reward_menu import builtin_part
from upslope.worlds.rewards import Limits, Part, RewardPanel, check_source

RewardFunction = Callable[..., Any] | Mapping[str, Callable[..., Any]]
"""What Python gives: a function, or those that a recipe names ``python:...``, by that name."""

FROM_PYTHON = "python:"


def reward_parts(section: RewardSection, given: RewardFunction | None = None) -> tuple[Part, ...]:
    """The functions that a recipe's reward names; none where it names none, and the task brings its own. Reward models
    are not among them (``reward_models``).

    Raises:
        InputError: a file, function, built-in reward or option that is not there. MachineError: a package that is not.
    """
    entries = section.entries
    if not entries:
        return (Part(given),) if callable(given) else ()
    return tuple(
        _part(entry, given, where_of(section, place)) for place, entry in enumerate(entries) if entry.model is None
    )


def where_of(section: RewardSection, place: int) -> str:
    """The key of an entry, for messages."""
    return "reward" if section.function is not None else f"reward.functions[{place}]"


def _part(entry: RewardEntry, given: RewardFunction | None, where: str) -> Part:
    if entry.builtin is not None:
        return builtin_part(entry.builtin, entry.options, entry.weight, entry.name, where)
    source: Any = entry.function
    if source.startswith(FROM_PYTHON):
        found = given.get(source) if isinstance(given, Mapping) else given
        if found is None:
            problem = f"{source} was a function of the Python call that started this run"
            raise InputError(f"{where}.function", problem, "start it from Python, or put the function into a file")
        return Part(found, entry.name, entry.weight, sandbox=entry.sandbox)
    check_source(source, f"{where}.function")
    return Part(source, entry.name, entry.weight, sandbox=entry.sandbox)


def task_part(task: Any) -> Part:
    """The reward that a built-in task brings."""
    part: Part = task.reward_part if hasattr(task, "reward_part") else Part(task.reward_source)
    return part


def open_panel(
    parts: tuple[Part, ...], section: RewardSection, log: Path | None = None, max_steps: int = 0
) -> RewardPanel:
    """The processes of a reward, not yet started, within the recipe's limits."""
    limits = Limits(section.memory_mb, section.network, section.env)
    return RewardPanel(parts, section.timeout, limits, log=log, max_steps=max_steps)


def name_functions(reward: Any, weights: Any = None) -> tuple[Any, dict[str, Callable[..., Any]]]:
    """A Python call's ``reward`` and ``reward_weights`` as a recipe's value and the functions that it names.

    ``reward`` is a function, text, or a list of functions, text and mappings (``{"function": f, "weight": 0.5}``,
    ``{"builtin": "format"}``), alone or under the key ``functions`` of a mapping. Functions become ``python:NAME``.

    Raises:
        InputError: weights that are not one number for each function.
    """
    named: dict[str, Callable[..., Any]] = {}

    def text_of(function: Callable[..., Any]) -> str:
        own = name = f"{FROM_PYTHON}{function_name(function)}"
        while name in named:
            name = f"{own}-{len(named) + 1}"
        named[name] = function
        return name

    def plain(item: Any) -> Any:
        if isinstance(item, Mapping):
            inner = {"function": plain, "model": plain, "functions": lambda value: [plain(one) for one in value]}
            return {key: inner.get(key, lambda value: value)(value) for key, value in item.items()}
        if isinstance(item, PurePath):
            return str(item)
        return text_of(item) if callable(item) else item

    several = isinstance(reward, list | tuple)
    value = [plain(item) for item in reward] if several else plain(reward)
    if weights is None:
        return value, named
    where = "reward_weights"
    if not several or not isinstance(weights, list | tuple) or len(weights) != len(value):
        found = f"{len(weights)} weights" if isinstance(weights, list | tuple) else repr(weights)
        wanted = f"{len(value)}, one for each function of reward" if several else "none, for reward is no list"
        raise InputError(where, f"found {found}, expected {wanted}", "give reward=[f, g] and reward_weights=[1.0, 0.5]")
    return [
        {**(item if isinstance(item, dict) else {"function": item}), "weight": weight}
        for item, weight in zip(value, weights, strict=True)
    ], named
