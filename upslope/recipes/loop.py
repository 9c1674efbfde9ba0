"""Where a run stands: the step, the optimizer step inside it, the rollouts in use. Saved, so that resuming is exact."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Generic, TypeVar

from torch import Tensor

from upslope.learner.learner import minibatches
from upslope.recipes.configs import GrpoSection, PpoSection, RolloutRecipe
from upslope.seeds import permutation
from upslope.types import Batch, Rows, State

T = TypeVar("T", bound=Rows)


class Loop(Generic[T]):
    """A ``Stateful`` cursor.

    ``step`` steps are complete. Inside a step, ``batch`` and ``targets`` hold the rollouts in use, ``inner`` of its
    optimizer steps have been taken, ``metrics`` are those of the collection, ``sums`` and ``counts`` those of the
    optimizer steps. ``best`` is the best evaluation so far. A checkpoint between two optimizer steps holds all of it.
    """

    def __init__(self, targets_type: type[T]) -> None:
        self.targets_type = targets_type
        self.step, self.inner = 0, 0
        self.batch: Batch | None = None
        self.targets: T | None = None
        self.metrics: dict[str, float] = {}
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.best: float | None = None

    def open(self, batch: Batch | None, targets: T | None, metrics: dict[str, float]) -> None:
        """Begin a step with these rollouts (None: nothing to learn from)."""
        self.batch, self.targets, self.metrics, self.inner = batch, targets, dict(metrics), 0
        self.sums, self.counts = {}, {}

    def add(self, metrics: dict[str, float]) -> None:
        """Metrics of one optimizer step; ``close`` returns the mean of each over the steps that gave it."""
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1
        self.inner += 1

    def close(self) -> dict[str, float]:
        """End the step: the collection's metrics and the means over the optimizer steps."""
        means = {name: value / self.counts[name] for name, value in self.sums.items()}
        metrics = {**self.metrics, **means}
        self.step += 1
        self.open(None, None, {})
        return metrics

    @property
    def opened(self) -> bool:
        """Whether a step is under way (its rollouts are collected)."""
        return bool(self.metrics)

    def state(self) -> State:
        tensors: dict[str, Tensor] = {}
        values: dict[str, Any] = {"step": self.step, "inner": self.inner, "metrics": self.metrics, "sums": self.sums}
        values |= {
            "counts": self.counts,
            "best": self.best,
            "batch": {},
            "targets": {},
            "filled": self.batch is not None,
        }
        for name, rows in (("batch", self.batch), ("targets", self.targets)):
            for item in fields(rows) if rows is not None else ():  # type: ignore[arg-type]
                value = getattr(rows, item.name)
                if isinstance(value, Tensor):
                    tensors[f"{name}.{item.name}"] = value
                else:
                    values[name][item.name] = value
        return State(tensors, values)

    def restore(self, state: State) -> None:
        values = dict(state.values)
        self.step, self.inner, self.best = int(values["step"]), int(values["inner"]), values["best"]
        self.metrics, self.sums, self.counts = dict(values["metrics"]), dict(values["sums"]), dict(values["counts"])
        filled = bool(values["filled"])
        self.batch = _rebuild(Batch, "batch", state) if filled else None
        self.targets = _rebuild(self.targets_type, "targets", state) if filled else None


def _rebuild(kind: type[Any], name: str, state: State) -> Any:
    found = {key.removeprefix(f"{name}."): value for key, value in state.tensors.items() if key.startswith(f"{name}.")}
    return kind(**found, **state.values[name])


def updates(recipe: RolloutRecipe, loop: Loop[Any]) -> list[list[int]]:
    """Rows of every optimizer step of the open step: each pass deals the prompts anew into its minibatches.

    The completions of one prompt stay together: they are compared with each other, and their prompt is run once.
    """
    if loop.batch is None:
        return []
    units, train = loop.batch.unit.tolist(), recipe.train
    orders = [permutation(recipe.seed, len(set(units)), "minibatch", loop.step, epoch) for epoch in range(train.epochs)]
    return [rows for order in orders for rows in minibatches(units, train.minibatches, order)]


def entropy_weight(section: PpoSection | GrpoSection, step: int, steps: int) -> float:
    """The weight of the entropy bonus in step ``step`` (from 0) of ``steps``: ``entropy_coef``, or on a line from it in
    the first step to 0 after the last, entropy_coef (1 - step / steps)."""
    return section.entropy_coef * (1 - step / steps if section.entropy_decay == "linear" else 1.0)


class Clock:
    """Seconds by phase of one step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.begun = time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    def move(self, source: str, target: str, seconds: float) -> None:
        """Count ``seconds`` of one phase as another's."""
        self.seconds[source] = self.seconds.get(source, 0.0) - seconds
        self.seconds[target] = self.seconds.get(target, 0.0) + seconds

    def timings(self, sampled_tokens: float = 0.0, learned_tokens: float = 0.0) -> dict[str, float]:
        """``time/PHASE`` and tokens a second; starts the next step's clock."""
        now = time.perf_counter()
        out = {f"time/{phase}": seconds for phase, seconds in self.seconds.items()}
        out["time/step"] = now - self.begun
        if sampled_tokens and self.seconds.get("sampling"):
            out["tokens_per_second"] = sampled_tokens / self.seconds["sampling"]
        if learned_tokens and self.seconds.get("learning"):
            out["learner_tokens_per_second"] = learned_tokens / self.seconds["learning"]
        self.seconds, self.begun = {}, now
        return out
