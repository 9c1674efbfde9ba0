"""What a live view knows of a run: it takes in the listener's calls and answers questions. No terminal here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from upslope.views.health import Finding, findings
from upslope.views.numbers import finite

PHASES = ("sampling", "reward", "reference", "learning", "evaluation", "loading", "saving")
RECENT = 20  # steps whose mean time predicts the rest
KEPT = 10_000  # steps of history held in memory


@dataclass(frozen=True, slots=True)
class Phase:
    """What the run is doing now. ``total`` is 0 where it is not known."""

    step: int
    name: str
    done: int
    total: int
    since: float


@dataclass(frozen=True, slots=True)
class Sample:
    """A completion worth showing."""

    step: int
    prompt: str
    completion: str
    reward: float | None


@dataclass(slots=True)
class Progress:
    """The run so far. ``clock`` gives seconds and never goes back."""

    clock: Callable[[], float]
    facts: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    timings: dict[str, Any] = field(default_factory=dict)
    step_seconds: list[float] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    phase: Phase | None = None
    sample: Sample | None = None
    notices: list[str] = field(default_factory=list)
    summary: dict[str, Any] | None = None
    started: float = 0.0
    mark: float = 0.0  # when the last step ended

    def start(self, facts: Mapping[str, Any]) -> None:
        self.facts = dict(facts)
        self.started = self.mark = self.clock()

    def enter(self, step: int, name: str, done: int, total: int) -> bool:
        """Notes the phase; True where it is another one than before."""
        now, before = self.clock(), self.phase
        fresh = before is None or (before.step, before.name) != (step, name)
        since = now if fresh or before is None else before.since
        self.phase = Phase(step, name, done, total, since)
        return fresh

    def add(self, step: int, metrics: Mapping[str, Any], timings: Mapping[str, Any]) -> list[Finding]:
        """Takes in a finished step; returns the findings that the step before did not have."""
        row = {**metrics, "step": step}
        known = {finding.kind for finding in self.findings}
        self.findings = findings(row, self.history)
        self.history.append(row)
        del self.history[:-KEPT]
        now = self.clock()
        # The wall clock between steps holds what no timing names: evaluation, saving, logging. Step 0 is the evaluation
        # before training and says nothing about the others.
        if step > 0:
            self.step_seconds.append(max(now - self.mark, 0.0))
            del self.step_seconds[:-RECENT]
        self.mark, self.phase, self.timings = now, None, dict(timings)
        return [finding for finding in self.findings if finding.kind not in known]

    @property
    def step(self) -> int:
        """The last finished step."""
        return int(self.history[-1]["step"]) if self.history else 0

    @property
    def steps(self) -> int | None:
        """Steps of the whole run, where known."""
        steps = finite(self.facts, "steps")
        return int(steps) if steps is not None and steps > 0 else None

    @property
    def elapsed(self) -> float:
        return max(self.clock() - self.started, 0.0)

    @property
    def left(self) -> float | None:
        """Seconds until the last step ends, from the mean of recent steps; ``None`` before the first step has ended."""
        if self.steps is None or not self.step_seconds:
            return None
        rest = (self.steps - self.step) * fmean(self.step_seconds)
        return max(rest - max(self.clock() - self.mark, 0.0), 0.0) if self.step < self.steps else 0.0

    def last(self, name: str) -> float | None:
        """The newest finite value of a metric that is not measured at every step."""
        return next((value for row in reversed(self.history) if (value := finite(row, name)) is not None), None)

    def now(self, name: str) -> float | None:
        """The metric at the last finished step."""
        return finite(self.history[-1], name) if self.history else None

    def course(self, name: str, sparse: bool = False) -> list[float | None]:
        """The metric over the run; with ``sparse``, only the steps that have it."""
        values = [finite(row, name) for row in self.history]
        return [value for value in values if value is not None] if sparse else values

    def seen(self, name: str) -> bool:
        """Whether any step so far had the metric."""
        return any(name in row for row in self.history[-RECENT:]) or any(name in row for row in self.history)

    def phase_times(self) -> list[tuple[str, float]]:
        """(phase, seconds) of the last step in the usual order, phases that took no time left out."""
        times = [(name, finite(self.timings, f"time/{name}")) for name in PHASES]
        return [(name, seconds) for name, seconds in times if seconds]
