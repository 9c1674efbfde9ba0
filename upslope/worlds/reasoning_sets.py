"""reasoning-gym's sets: rows made and answers scored. The only file that imports the package.

It is run in processes of its own. Rows are made in one whose hashes of text are fixed, because some sets walk through
Python sets while they draw: else a run would see other questions when it is resumed.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import reasoning_gym
from reasoning_gym.composite import DatasetSpec
from reasoning_gym.factory import CURRICULA, DATASETS

TUPLES = frozenset({"arc_agi", "rearc"})
"""Sets whose scorer compares tuples with what is a list after it has travelled as JSON."""

Item = dict[str, Any]


class BadOption(ValueError):
    """An option that cannot be used: ``where`` names it, ``fix`` is what to do."""

    def __init__(self, where: str, problem: str, fix: str) -> None:
        super().__init__(problem)
        self.where, self.fix = where, fix


def make_set(name: str, config: Mapping[str, Any], level: int | None, seed: int, size: int) -> Any:
    """The set ``name`` with its own options, at a level of its curriculum (``None``: at its defaults).

    Raises:
        BadOption: no such set or option, a value that it refuses, no curriculum.
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=1)
        fix = f"did you mean {near[0]}?" if near else f"use one of {', '.join(sorted(DATASETS))}"
        raise BadOption("name", f"reasoning-gym has no set {name!r}", fix)
    made, options = DATASETS[name][0], dict(config)
    kind: Any = DATASETS[name][1]
    known = [item.name for item in dataclasses.fields(kind) if item.name not in ("seed", "size")]
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            fix = f"did you mean {near[0]}?" if near else f"use one of {', '.join(known)}"
            raise BadOption(f"config.{option}", f"set {name} has no option {option!r}", fix)
    try:
        if name == "composite":
            given = options.get("datasets") or ()
            options["datasets"] = [DatasetSpec(**{"weight": 1.0, "config": {}, **item}) for item in given]
        if level is None:
            chosen = kind(seed=seed, size=size, **options)
        else:
            if name not in CURRICULA:
                raise BadOption("difficulty", f"set {name} has no levels of difficulty", "use config instead")
            ladder = CURRICULA[name]()  # type: ignore[operator]
            ladder.set_global_level(level)
            chosen = ladder.generate_configuration({**options, "seed": seed, "size": size})
        return made(chosen)  # which validates what it gets
    except (AssertionError, TypeError, ValueError, KeyError, AttributeError) as error:
        if isinstance(error, BadOption):
            raise
        raise BadOption("config", f"set {name} refuses it: {error}", "correct that option") from error


def make_rows(
    name: str, config: Mapping[str, Any], levels: Sequence[int | None], seed: int, size: int, heldout: int
) -> list[dict[str, list[Item]]]:
    """``{"train", "heldout"}`` of each level: ``size`` and ``heldout / levels`` items (``heldout`` rounded up).

    The held-out questions of all levels come first and differ from each other; none of them is a question to train on.
    A small set gives fewer items to train on, and may repeat them.

    Raises:
        BadOption: as ``make_set``, or there are too few different questions.
    """
    each = -(-heldout // len(levels))
    kept: set[str] = set()
    found: list[dict[str, list[Item]]] = []
    starts: list[int] = []
    most = 4 * (size + each) + 100
    sets = [make_set(name, config, level, seed + place * most, most) for place, level in enumerate(levels)]
    for made in sets:
        chosen: list[Item] = []
        index = 0
        while len(chosen) < each and index < most:
            item = _item(made, index)
            if item["question"] not in kept:
                kept.add(item["question"])
                chosen.append(item)
            index += 1
        if len(chosen) < each:
            text = f"{each} questions to hold out, but set {name} gave {len(chosen)} different ones in {most}"
            raise BadOption("heldout", text, "lower it, or widen the set by config")
        found.append({"heldout": chosen})
        starts.append(index)
    for made, start, part in zip(sets, starts, found, strict=True):
        part["train"] = []
        for index in range(start, most):
            if len(part["train"]) == size:
                break
            item = _item(made, index)
            if item["question"] not in kept:
                part["train"].append(item)
        if not part["train"]:
            text = f"all questions that set {name} gives are held out"
            raise BadOption("heldout", text, "lower it, or widen the set by config")
    return found


def _item(made: Any, index: int) -> Item:
    """An item as it comes out of JSON."""
    found: Item = json.loads(json.dumps({**made[index], "index": index}))
    return found


def score(
    name: str, config: dict[str, Any], levels: list[int | None], tag: str | None, partial: bool
) -> Callable[..., list[float | None]]:
    """The reward of a set: its own scorer's verdict on the completion, or on what stands in the last ``<tag>``.

    1 for a full score and 0 for less, unless ``partial``: several scorers pay for an answer that merely contains the
    right one. An answer at which the scorer raises, while it can score the right one, is a wrong answer; the share of
    these is logged as ``reasoning/unreadable``.
    """
    from upslope.worlds.reward_builtin import inside

    sets = {level: make_set(name, config, level, 0, 1) for level in levels}

    def judge(made: Any, entry: Item, answer: str) -> float:
        return float(made.score_answer(answer, entry))

    def reward(
        completions: list[Any], entry: list[Item], level: list[int | None], log_metric: Any, **columns: Any
    ) -> list[float | None]:
        scores: list[float | None] = []
        unreadable = 0
        for completion, row, at in zip(completions, entry, level, strict=True):
            text = completion if isinstance(completion, str) else completion[-1]["content"]
            answer, row = inside(text, tag), _as_made(row)
            if answer is None or not answer.strip():
                scores.append(0.0)
                continue
            try:
                value = judge(sets[at], row, answer.strip())
            except Exception:
                if row["answer"] is not None:
                    judge(sets[at], row, row["answer"])  # raises where it is the scorer that is broken
                unreadable, value = unreadable + 1, 0.0
            scores.append(value if partial else float(value >= 1 - 1e-9))
        log_metric("reasoning/unreadable", unreadable / max(1, len(scores)))
        return scores

    return reward


def _as_made(entry: Item) -> Item:
    if entry["metadata"].get("source_dataset") not in TUPLES:
        return entry

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: tuples(item) for key, item in value.items()}
        return tuple(tuples(item) for item in value) if isinstance(value, list) else value

    return {**entry, "metadata": tuples(entry["metadata"])}


def main() -> None:
    """Rows for the request on stdin, as JSON on stdout. Some sets print, at the exit too: that goes to stderr."""
    request = json.load(sys.stdin)
    answer: dict[str, Any]
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        try:
            answer = {"rows": make_rows(**request), "version": reasoning_gym.__version__}
        except BadOption as error:
            answer = {"where": error.where, "problem": str(error), "fix": error.fix}
        json.dump(answer, out)


if __name__ == "__main__":
    main()
