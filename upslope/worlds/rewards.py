"""The reward of a run: one function or several with weights, each in a process of its own, scored group by group.

The reward of a completion is the weighted sum over the functions that apply to it (TRL's rule: ``None`` is left out of
the sum, not counted as 0). Each function is logged apart, unweighted. Where one fails, nothing is made up for it: the
run stops, or the prompt's group is left out and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from upslope.errors import InputError, NothingRewarded
from upslope.worlds.isolation import Limits
from upslope.worlds.reward_calls import (
    Call,
    Failure,
    Group,
    RewardProcess,
    Score,
    attempt_all,
    call_of,
    name_rows,
    none_apply,
)
from upslope.worlds.reward_source import RewardSource, check_source

__all__ = [
    "Call",
    "Failure",
    "Group",
    "Limits",
    "Part",
    "RewardPanel",
    "RewardProcess",
    "RewardSource",
    "Score",
    "attempt_all",
    "call_of",
    "check_source",
    "score_groups",
]
OnError = Literal["stop", "drop_group"]


@dataclass(frozen=True, slots=True)
class Part:
    """One function of a reward.

    ``source`` is ``path/to/file.py:function`` or a Python function; with ``options`` the function in the file makes the
    reward function. ``name`` is what it is logged as (``None``: the function's own); ``sandbox``: it runs what the
    model wrote.
    """

    source: str | Callable[..., Any]
    name: str | None = None
    weight: float = 1.0
    options: Mapping[str, Any] | None = None
    sandbox: bool = False


class RewardPanel:
    """All reward functions of a run, called at the same time. Use it in a ``with`` block.

    ``max_steps`` is told to the functions as ``trainer_state.max_steps``.

    Raises:
        InputError: a file or function does not exist, or two parts have one name.
    """

    def __init__(
        self, parts: Sequence[Part], timeout: float = 30.0, limits: Limits | None = None, *, log: Path | None = None,
        max_steps: int = 0,
    ) -> None:  # fmt: skip
        held = limits or Limits()
        self.weights = tuple(part.weight for part in parts)
        self.max_steps = max_steps
        self.processes = tuple(
            RewardProcess(
                part.source, timeout, part.name, log=log, options=part.options,
                limits=replace(held, sandbox=held.sandbox or part.sandbox),
            )
            for part in parts
        )  # fmt: skip
        names = [process.name for process in self.processes]
        double = next((name for name in names if names.count(name) > 1), None)
        if double is not None:
            raise InputError("reward.functions", f"two functions are called {double!r}", "give one of them a name")

    @property
    def where(self) -> str:
        """The functions, for messages."""
        return ", ".join(process.where for process in self.processes)

    def __enter__(self) -> RewardPanel:
        try:
            for process in self.processes:
                process.launch()
            for process in self.processes:
                process.__enter__()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes."""
        for process in self.processes:
            process.close()

    def take_metrics(self) -> dict[str, float]:
        """What the functions gave to ``log_metric`` since this was last asked: the mean of each name."""
        return {name: value for process in self.processes for name, value in process.take_metrics().items()}


@dataclass(slots=True)
class _Verdict:
    """One function's scores, group by group: ``None`` where it failed, and why."""

    groups: list[list[Score] | None]
    failed: dict[int, str] = field(default_factory=dict)


def score_groups(
    reward: RewardProcess | RewardPanel, groups: Sequence[Group], on_error: OnError, step: int = 0
) -> tuple[list[list[Score] | None], list[tuple[int, str]]]:
    """Score every completion of every group: one call for all, and only where that fails one call a group, to find the
    culprit.

    A group on which a function fails both times stops with its error (``stop``) or is left out (``drop_group``): its
    scores are ``None`` and ``(index, reason)`` is in the second list. The call a group is the second try, in a fresh
    process after a hang. ``step`` is told to the functions as ``trainer_state.global_step``.

    Raises:
        RewardError: with ``stop``; and always where a function cannot be loaded.
        NothingRewarded: with ``stop``, where no function applies to any completion.
    """
    processes: tuple[RewardProcess, ...]
    if isinstance(reward, RewardPanel):
        processes, weights, last = reward.processes, reward.weights, reward.max_steps
    else:
        processes, weights, last = (reward,), (1.0,), 0
    state = {"global_step": step, "max_steps": last}
    found = attempt_all(processes, call_of(groups, state))
    verdicts = [
        _settle(process, whole, groups, on_error, state) for process, whole in zip(processes, found, strict=True)
    ]
    result: list[list[Score] | None] = []
    for index in range(len(groups)):
        columns = [verdict.groups[index] for verdict in verdicts]
        scored = [column for column in columns if column is not None]
        complete = len(scored) == len(columns)
        result.append([combine(row, weights) for row in zip(*scored, strict=True)] if complete else None)
    failed = {index: reason for verdict in reversed(verdicts) for index, reason in verdict.failed.items()}
    if not failed and groups and all(score.value is None for row in result for score in row or ()):
        row_ids = call_of(groups).row_ids
        several = len(processes) > 1
        text = "all returned None for every completion, so nothing is rewarded" if several else none_apply().text
        error = NothingRewarded(f"reward {reward.where}", f"{text} ({name_rows(row_ids)})", none_apply().fix)
        if on_error == "stop":
            raise error
        return [None for _ in groups], [(index, str(error)) for index in range(len(groups))]
    return result, sorted(failed.items())


def combine(scores: Sequence[Score], weights: Sequence[float]) -> Score:
    """One completion's scores by several functions as one: sum of weight x value over those that apply, all parts, and
    what each logged (under ``name/column`` where two logged one column)."""
    if len(scores) == 1 and weights[0] == 1.0:
        return scores[0]
    values = [weight * score.value for weight, score in zip(weights, scores, strict=True) if score.value is not None]
    extra: dict[str, Any] = {}
    for number, score in enumerate(scores):
        for column, value in score.extra.items():
            name = next(iter(score.parts), str(number + 1))
            extra[f"{name}/{column}" if column in extra else column] = value
    parts = {name: value for score in scores for name, value in score.parts.items()}
    return Score(sum(values) if values else None, parts, extra)


def _settle(
    process: RewardProcess, whole: list[Score] | Failure, groups: Sequence[Group], on_error: OnError,
    state: Mapping[str, int],
) -> _Verdict:  # fmt: skip
    """The scores of one function for all groups, asked again group by group where the whole call failed."""
    if isinstance(whole, list):
        scores = iter(whole)
        return _Verdict([[next(scores) for _ in group.completions] for group in groups])
    verdict = _Verdict([])
    for index, group in enumerate(groups):
        call = call_of([group], state)
        alone = process.attempt(call)
        if isinstance(alone, Failure):
            error = process.error(process.located(alone, call), call.row_ids)
            if on_error == "stop" or alone.kind == "load":
                raise error
            verdict.failed[index] = str(error)
            verdict.groups.append(None)
        else:
            verdict.groups.append(alone)
    return verdict
