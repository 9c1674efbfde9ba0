"""Built-in task: the sets of reasoning-gym, with difficulty and a curriculum. Needs ``pip install 'upslope[tasks]'``.

Rows are made and answers scored in processes of their own (``reasoning_sets.py``). Nine sets run the answer as Python:
they are scored in the sandbox, and refused where there is none. So is every set of a version of the package other than
the one whose sets were looked through.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upslope.errors import InputError, MachineError
from upslope.worlds.isolation import Limits, environment
from upslope.worlds.rewards import Part

if TYPE_CHECKING:
    from upslope.types import Example, Prompt

VETTED = "0.1.25"
EVALUATES = frozenset({
    "binary_matrix", "countdown", "intermediate_integration", "n_queens", "polynomial_multiplication", "puzzle24",
    "simple_integration", "spiral_matrix", "string_insertion",
})  # fmt: skip
"""Sets of that version whose scorer evaluates the answer: ``eval``, or sympy's ``parse_expr``, which does."""


@dataclass(frozen=True, slots=True)
class Climb:
    """When a run goes on to the next level: once the mean reward of its last ``after`` steps is at least ``at``."""

    levels: tuple[int, ...]
    at: float
    after: int


class ReasoningGym:
    """Questions of one set of reasoning-gym: ``{task: reasoning-gym, options: {name: chain_sum, size: 500}}``.

    Args:
        name: the set, e.g. ``chain_sum``; ``composite`` mixes several.
        size: questions to train on, at each level.
        heldout: questions to evaluate on, over all levels; none of them is trained on.
        seed: of the questions.
        config: the set's own options, e.g. ``{min_terms: 2, max_terms: 4}``.
        difficulty: level of the set's curriculum, from 0; null: the set's defaults.
        rise_to: the last level of a curriculum that begins at ``difficulty``; null: no curriculum.
        rise_at: go to the next level when the mean reward has reached this ...
        rise_after: ... over so many steps.
        tag: score only what stands in the last ``<tag>...</tag>`` of a completion.
        partial: keep the set's partial scores; else a full score is 1 and less is 0.

    Raises:
        InputError: no such set or option, or a value that it refuses. MachineError: the package is not installed.
    """

    def __init__(
        self, name: str = "", size: int = 1000, heldout: int = 128, seed: int = 0,
        config: dict[str, Any] = {},  # noqa: B006 (never changed; its type says what is expected)
        difficulty: int | None = None, rise_to: int | None = None, rise_at: float = 0.8, rise_after: int = 4,
        tag: str = "", partial: bool = False,
    ) -> None:  # fmt: skip
        if importlib.util.find_spec("reasoning_gym") is None:
            raise MachineError("data.task", "reasoning-gym is not installed", "pip install 'upslope[tasks]'")
        if not name:
            raise InputError("data.options.name", "is missing", "name a set, such as chain_sum")
        for option, value in (("size", size), ("heldout", heldout), ("rise_after", rise_after)):
            if value < 1:
                raise InputError(f"data.options.{option}", f"found {value}, expected at least 1", "raise it")
        start = difficulty or 0
        if start < 0 or (rise_to is not None and rise_to <= start):
            problem = f"found difficulty {start} and rise_to {rise_to}, expected 0 <= difficulty < rise_to"
            raise InputError("data.options.rise_to", problem, f"set rise_to to {max(start, 0) + 1} or more")
        self.name, self.set, self.config, self.tag, self.partial = "reasoning-gym", name, dict(config), tag, partial
        self.levels: tuple[int | None, ...] = (difficulty,) if rise_to is None else tuple(range(start, rise_to + 1))
        steps = tuple(level for level in self.levels if level is not None)
        self.climb = Climb(steps, rise_at, rise_after) if rise_to is not None else None
        request = {"name": name, "config": self.config, "levels": self.levels, "seed": seed, "size": size}
        self._rows = _make_rows(json.dumps({**request, "heldout": heldout}, sort_keys=True))

    @property
    def reward_part(self) -> Part:
        """The set's own scorer, in the sandbox where it evaluates answers."""
        members = [self.set, *(item.get("name") for item in self.config.get("datasets") or ())]
        vetted = importlib.metadata.version("reasoning-gym") == VETTED
        options = {"name": self.set, "config": self.config, "levels": list(self.levels), "tag": self.tag or None}
        return Part(
            "upslope.worlds.reasoning_sets:score", self.set, options={**options, "partial": self.partial},
            sandbox=not vetted or not EVALUATES.isdisjoint(members),
        )  # fmt: skip

    def prompts(self, split: str) -> list[Prompt]:
        """The questions of ``train`` or ``heldout``, level after level, with ``answer``, ``entry`` and ``level``."""
        from upslope.types import Prompt

        return [
            Prompt(key, item["question"], {"answer": item["answer"], "entry": item, "level": level})
            for key, level, item in self._items(split)
        ]

    def examples(self, split: str) -> list[Example]:
        """The same rows for supervised learning.

        Raises:
            InputError: the set gives no answers, only verdicts.
        """
        from upslope.types import Example

        found = self._items(split)
        if any(item["answer"] is None for _, _, item in found):
            problem = f"set {self.set} gives questions without answers, which cannot be imitated"
            raise InputError("data.options.name", problem, "train on it with grpo or ppo, or choose another set")
        shown = f"<{self.tag}>{{}}</{self.tag}>" if self.tag else "{}"
        return [Example(key, item["question"], shown.format(item["answer"])) for key, _, item in found]

    def _items(self, split: str) -> list[tuple[str, int | None, dict[str, Any]]]:
        if split not in ("train", "heldout"):
            raise InputError("reasoning-gym split", f"{split!r} is unknown", "use train or heldout")
        return [
            (f"{self.set}-{'' if level is None else f'{level}-'}{item['index']}", level, item)
            for level, part in zip(self.levels, self._rows, strict=True)
            for item in part[split]
        ]


@lru_cache(maxsize=8)
def _make_rows(request: str) -> Sequence[Mapping[str, Any]]:
    """The rows for a request, made in a process of its own: always the same for the same request."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("reasoning_sets.py"))]
    variables = {**environment(os.environ, Limits()), "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, input=request, capture_output=True, text=True, check=False, env=variables)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise MachineError("data.task", f"reasoning-gym failed: {said[0][:300]}", "run it with another seed or set")
    answer = json.loads(done.stdout)
    if "problem" in answer:
        raise InputError(f"data.options.{answer['where']}", answer["problem"], answer["fix"])
    rows: list[dict[str, Any]] = answer["rows"]
    return rows
