"""`upslope rollouts` without a terminal to browse in: tables for pipes, logs and scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from upslope.errors import InputError
from upslope.views.numbers import short, whole
from upslope.views.rollout_rows import (
    Entry,
    Order,
    Pair,
    mean_reward,
    ordered,
    pairs,
    read_step,
    select,
    steps_of,
    steps_with,
)
from upslope.views.safe_text import clean

CELL = 300
"""Cells of a text that a table shows at most."""


def print_rollouts(
    run: Path | str, console: Console, step: int | None = None, group: int | None = None, order: Order = "written",
    ascending: bool = False, search: str = "", limit: int = 20, as_json: bool = False,
) -> None:  # fmt: skip
    """The completions of a step (default: the last), as a table or as JSON lines.

    With ``search`` and no ``step``, those of all steps. Raises ``InputError`` where there is nothing to show.
    """
    files = steps_of(run)
    steps = [step] if step is not None else list(files) if search else [max(files)]
    entries = [entry for number in steps for entry in read_step(files, number)]
    groups = sorted({entry.group for entry in entries if entry.group is not None})
    if group is not None and group not in groups:
        there = f"{groups[0]} to {groups[-1]}" if groups else "none"
        raise InputError("command line --group", f"step {steps[-1]} has no group {group}; it has {there}",
                         f"give one of them{f', such as {groups[0]}' if groups else ''}")  # fmt: skip
    found = ordered(select(entries, group, search), order, ascending)
    if order == "written":
        found = sorted(found, key=lambda entry: entry.step)
    shown = found[: limit or None]
    if as_json:
        for entry in shown:
            sys.stdout.write(json.dumps(dict(entry.row)) + "\n")
        return
    console.print(Text(_title(files, steps, entries, found, search), style="bold"))
    if shown:
        console.print(_table(shown, several=len(steps) > 1))
    if len(shown) < len(found):
        console.print(Text(f"{len(found) - len(shown)} more: --limit 0 shows all", style="dim"))


def _title(files: dict[int, Path], steps: Sequence[int], entries: Sequence[Entry], found: Sequence[Entry],
           search: str) -> str:  # fmt: skip
    where = f"step {steps[0]} of {max(files)}" if len(steps) == 1 else f"{len(steps)} steps"
    count = f"{whole(len(found))} of {whole(len(entries))} completions"
    told = f" with {clean(search, 80)!r}" if search else ""
    return f"{where}: {count}{told}, mean reward {short(mean_reward(found))}"


def _table(entries: Sequence[Entry], several: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in [*(["step"] if several else []), "group", "reward", "advantage", "tokens"]:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("end", no_wrap=True)
    for name in ("prompt", "completion"):
        table.add_column(name, overflow="ellipsis", no_wrap=True, ratio=1)
    table.expand = True
    for entry in entries:
        cells = [*([str(entry.step)] if several else []), whole(entry.group)]
        cells += [short(entry.reward), signed(entry.advantage), whole(entry.length), entry.end]
        texts = [Text(clean(text, CELL)) for text in (entry.prompt, entry.completion or "(empty)")]
        table.add_row(*cells, *texts)
    return table


def signed(value: float | None) -> str:
    """An advantage, with its sign."""
    return f"+{short(value)}" if value is not None and value > 0 else short(value)


def print_diff(
    run: Path | str, console: Console, first: int, second: int, limit: int = 20, as_json: bool = False
) -> None:
    """The prompts that two steps have in common: what was answered before and after, and what it earned.

    Raises ``InputError`` where they have none in common, with a pair of steps that has.
    """
    files = steps_of(run)
    before, after = read_step(files, first), read_step(files, second)
    common = pairs(before, after)
    if not common:
        raise InputError(
            f"steps {first} and {second}", "no prompt was asked in both", _other_pair(files, after, second)
        )
    if as_json:
        for pair in common[: limit or None]:
            told = {str(first): [dict(e.row) for e in pair.before], str(second): [dict(e.row) for e in pair.after]}
            sys.stdout.write(json.dumps({"prompt_id": pair.prompt_id, "prompt": pair.prompt, "steps": told}) + "\n")
        return
    console.print(Text(f"{len(common)} {_prompts(len(common))} in both step {first} and step {second}", style="bold"))
    for pair in common[: limit or None]:
        console.print(diff_table(pair))
    if limit and len(common) > limit:
        console.print(Text(f"{len(common) - limit} more: --limit 0 shows all", style="dim"))


def _prompts(count: int) -> str:
    return "prompt" if count == 1 else "prompts"


def _other_pair(files: dict[int, Path], after: Sequence[Entry], second: int) -> str:
    for name in dict.fromkeys(entry.prompt_id for entry in after):
        others = [step for step in steps_with(files, name) if step != second]
        if others:
            return f"try --diff {others[0]} {second}"
    return f"take another step: no prompt of step {second} was asked twice"


def diff_table(pair: Pair, most: int = 4) -> Table:
    """Both steps' completions of a prompt side by side: all equal ones in one line, with how often they came."""
    table = Table(box=None, pad_edge=False, expand=True, title_justify="left")
    table.title = Text(clean(pair.prompt, CELL), style="bold")
    for entries in (pair.before, pair.after):
        name = f"step {entries[0].step}: mean reward {short(mean_reward(entries))}"
        table.add_column(name, overflow="fold", ratio=1, header_style="dim")
    left, right = _told(pair.before, most), _told(pair.after, most)
    for number in range(max(len(left), len(right))):
        table.add_row(*(side[number] if number < len(side) else Text() for side in (left, right)))
    return table


def _told(entries: Sequence[Entry], most: int) -> list[Text]:
    counted: dict[tuple[str, float | None], int] = {}
    for entry in entries:
        key = (entry.completion, entry.reward)
        counted[key] = counted.get(key, 0) + 1
    lines = [
        Text(f"{short(reward):>6} {f'{count}x' if count > 1 else '  ':>3}  ").append(clean(text or "(empty)", CELL))
        for (text, reward), count in list(counted.items())[:most]
    ]
    if len(counted) > most:
        lines.append(Text(f"... {len(counted) - most} more", style="dim"))
    return lines
