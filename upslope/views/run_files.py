"""Reading a run folder as it lies on disk: complete, still being written, or with files missing.

A line that is torn or is not a JSON object is skipped and counted, since a page about a run is most wanted when the run
went wrong.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from upslope.errors import InputError
from upslope.views.numbers import finite

MARKS = ("run.json", "metrics.jsonl", "recipe.yaml")
_ROLLOUTS = re.compile(r"step-(\d+)\.jsonl")
LONGEST_TEXT = 1_000_000  # bytes of recipe.yaml or run.json that are read


@dataclass(frozen=True, slots=True)
class Lines:
    """The objects of a JSONL file, and how many of its lines could not be read."""

    rows: tuple[dict[str, Any], ...]
    bad: int
    more: int = 0  # lines after the limit, not read


def require_run(run: Path | str) -> Path:
    """The folder, if it is a run folder; else ``InputError``."""
    folder = Path(run)
    if not folder.exists():
        raise InputError(str(folder), "no such folder, expected a run folder", "give the path of a folder under runs/")
    if not folder.is_dir():
        raise InputError(str(folder), "a file, expected a run folder", f"give its folder: {folder.parent}")
    if not any((folder / mark).is_file() for mark in MARKS):
        found = f"none of {', '.join(MARKS)} is in it, expected a run folder"
        raise InputError(str(folder), found, "give a folder that a training command wrote")
    return folder


def _objects(path: Path) -> Iterator[dict[str, Any] | None]:
    """Each line's object; ``None`` for a line that is not one. Blank lines are passed over."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                yield None
                continue
            yield value if isinstance(value, dict) else None


def read_lines(path: Path, limit: int | None = None) -> Lines | None:
    """The first ``limit`` objects of a JSONL file; ``None`` where there is no such file."""
    if not path.is_file():
        return None
    objects = _objects(path)
    read = list(islice(objects, limit))
    rows = tuple(row for row in read if row is not None)
    return Lines(rows, len(read) - len(rows), sum(1 for _ in objects))


def read_steps(path: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl or timings.jsonl in the order of their steps; empty where there is no such file.

    Where a step occurs twice the later row counts.
    """
    lines = read_lines(path)
    by_step: dict[float, dict[str, Any]] = {}
    for row in lines.rows if lines else ():
        step = finite(row, "step")
        if step is not None:
            by_step[step] = row
    return [by_step[step] for step in sorted(by_step)]


def read_text(path: Path) -> str | None:
    """A text file's first megabyte; ``None`` where there is no such file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return file.read(LONGEST_TEXT).decode("utf-8", errors="replace")


def read_facts(run: Path) -> dict[str, Any] | None:
    """run.json; ``None`` where it is missing or is not a JSON object."""
    text = read_text(run / "run.json")
    try:
        value = json.loads(text) if text is not None else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def flat(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings as (dotted key, value) pairs; lists of plain values joined, others numbered from 1."""
    pairs: list[tuple[str, Any]] = []
    for key, value in facts.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and prefix.count(".") < 8:
            pairs += flat(value, name + ".")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            pairs += flat({str(index + 1): item for index, item in enumerate(value)}, name + ".")
        elif isinstance(value, list):
            pairs.append((name, (" " if key == "command" else ", ").join(str(item) for item in value)))
        else:
            pairs.append((name, value))
    return pairs


def rollout_files(run: Path) -> dict[int, Path]:
    """The rollouts files of a run by step, in order."""
    folder = run / "rollouts"
    if not folder.is_dir():
        return {}
    found = {int(match[1]): path for path in folder.iterdir() if (match := _ROLLOUTS.fullmatch(path.name))}
    return {step: found[step] for step in sorted(found) if found[step].is_file()}


def spread(items: list[int], count: int) -> list[int]:
    """At most ``count`` of ``items``, evenly spread, with the first and the last."""
    if len(items) <= count:
        return items
    if count == 1:
        return items[-1:]
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]
