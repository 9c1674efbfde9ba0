"""The completions of a run as rows that can be chosen, sorted, searched and compared. Read from ``rollouts/``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, TypeAlias

from upslope.errors import InputError
from upslope.views.numbers import finite
from upslope.views.run_files import read_lines, require_run, rollout_files

Order: TypeAlias = Literal["written", "reward", "advantage", "length"]
ORDERS: tuple[Order, ...] = ("written", "reward", "advantage", "length")


@dataclass(frozen=True, slots=True)
class Entry:
    """One completion. ``row`` is its line of the file; ``place`` its number there, from 0."""

    step: int
    place: int
    row: Mapping[str, Any]

    @property
    def prompt_id(self) -> str:
        """What tells prompts apart: the id, or the text where there is none."""
        found = self.row.get("prompt_id")
        return self.prompt if found is None else str(found)

    @property
    def prompt(self) -> str:
        return _text(self.row.get("prompt"))

    @property
    def completion(self) -> str:
        return _text(self.row.get("completion"))

    @property
    def answer(self) -> str | None:
        found = self.row.get("answer")
        return None if found is None else str(found)

    @property
    def group(self) -> int | None:
        found = finite(self.row, "group")
        return None if found is None else int(found)

    @property
    def reward(self) -> float | None:
        return finite(self.row, "reward")

    @property
    def advantage(self) -> float | None:
        return finite(self.row, "advantage")

    @property
    def length(self) -> int | None:
        """Tokens of the completion, its end token included."""
        tokens = self.row.get("token_ids")
        return len(tokens) if isinstance(tokens, list) else None

    @property
    def end(self) -> str:
        ended = self.row.get("terminated")
        return "ended" if ended is True else "cut" if ended is False else "-"

    @property
    def parts(self) -> dict[str, float]:
        """Rewards by name."""
        found = self.row.get("parts")
        names = found if isinstance(found, dict) else {}
        return {str(name): value for name in names if (value := finite(names, name)) is not None}


def _text(value: Any) -> str:
    """Text as it is; a conversation with its roles; anything else as Python writes it."""
    if isinstance(value, list) and all(isinstance(turn, dict) and "content" in turn for turn in value):
        return "\n".join(f"{turn.get('role', '?')}: {turn['content']}" for turn in value)
    return "" if value is None else value if isinstance(value, str) else str(value)


def steps_of(run: Path | str) -> dict[int, Path]:
    """Steps with rollouts and their files. Raises ``InputError`` where ``run`` is no run folder, or has none."""
    folder = require_run(run)
    files = rollout_files(folder)
    if not files:
        problem = "no rollouts/step-*.jsonl in it: SFT writes none, and other runs from their first step on"
        raise InputError(str(folder), problem, "give the folder of a ppo or grpo run that has taken a step")
    return files


def read_step(files: Mapping[int, Path], step: int) -> list[Entry]:
    """The completions of a step in the order of the file; lines that cannot be read are left out.

    Raises ``InputError`` where the run has no rollouts of that step.
    """
    if step not in files:
        known = list(files)
        near = min(known, key=lambda other: abs(other - step))
        some = ", ".join(map(str, known[:8])) + (", ..." if len(known) > 8 else "")
        raise InputError(f"step {step}", f"no rollouts of it; there are those of {some}", f"give --step {near}")
    lines = read_lines(files[step])
    return [Entry(step, place, row) for place, row in enumerate(lines.rows if lines else ())]


def select(entries: Sequence[Entry], group: int | None = None, search: str = "") -> list[Entry]:
    """Those of a group, and with ``search`` in prompt, completion or answer, whatever its case."""
    wanted = search.casefold()
    return [
        entry
        for entry in entries
        if (group is None or entry.group == group)
        and any(wanted in text.casefold() for text in (entry.prompt, entry.completion, entry.answer or ""))
    ]


def ordered(entries: Sequence[Entry], order: Order, ascending: bool = False) -> list[Entry]:
    """Sorted, the largest first (``ascending``: the smallest); equal ones as they were written, those without the
    number last. ``written`` is the order of the file."""
    if order == "written":
        return sorted(entries, key=lambda entry: entry.place, reverse=ascending)
    sign = 1 if ascending else -1

    def key(entry: Entry) -> tuple[bool, float, int]:
        value = getattr(entry, order)
        return value is None, sign * (value or 0.0), entry.place

    return sorted(entries, key=key)


@dataclass(frozen=True, slots=True)
class Pair:
    """The completions of one prompt in two steps."""

    prompt_id: str
    prompt: str
    before: tuple[Entry, ...]
    after: tuple[Entry, ...]


def pairs(before: Sequence[Entry], after: Sequence[Entry]) -> list[Pair]:
    """The prompts that both steps have, in the order of the later one; completions with the highest reward first."""
    first, second = _by_prompt(before), _by_prompt(after)
    return [
        Pair(name, entries[0].prompt, tuple(ordered(first[name], "reward")), tuple(ordered(entries, "reward")))
        for name, entries in second.items()
        if name in first
    ]


def _by_prompt(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.prompt_id, []).append(entry)
    return found


def steps_with(files: Mapping[int, Path], prompt_id: str) -> list[int]:
    """The steps in which a prompt was asked."""
    return [step for step in files if any(entry.prompt_id == prompt_id for entry in read_step(files, step))]


def mean_reward(entries: Sequence[Entry]) -> float | None:
    """The mean of the rewards that are numbers."""
    known = [entry.reward for entry in entries if entry.reward is not None]
    return fmean(known) if known else None
