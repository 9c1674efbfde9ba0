"""The metrics stream: one JSON object a step, and the rollouts behind it.

``metrics.jsonl`` holds only what the run's seed decides, so that two runs of one recipe can be compared byte for
byte; times go to ``timings.jsonl``. Losing a line of a log, on a full disk say, is counted and told once, and never
stops training.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, SupportsFloat

from upslope.errors import InputError
from upslope.run.folder import plain, replace_file
from upslope.types import State

METRICS = "metrics.jsonl"
TIMINGS = "timings.jsonl"
ROLLOUTS = "rollouts"
Number = SupportsFloat | None


def rollouts_file(folder: Path, step: int) -> Path:
    """Where the rollouts of ``step`` are: ``rollouts/step-00010.jsonl``."""
    return folder / ROLLOUTS / f"step-{step:05d}.jsonl"


def rollout_steps(folder: Path) -> list[int]:
    """Steps whose rollouts are in the folder, in order."""
    found = (re.fullmatch(r"step-(\d{5,})\.jsonl", path.name) for path in (folder / ROLLOUTS).glob("step-*.jsonl"))
    return sorted(int(match.group(1)) for match in found if match)


class MetricsStream:
    """Writes ``metrics.jsonl``, ``timings.jsonl`` and ``rollouts/`` of one run folder. A ``Stateful`` part of the run.

    Its state is the length of ``metrics.jsonl`` (bytes and lines) and the last step whose rollouts are written.
    ``restore`` cuts the files back to that, so that a resumed run writes the bytes that an uninterrupted one would
    have. ``lost`` counts log writes that failed; ``notice`` is called at the first.
    """

    def __init__(self, folder: Path, notice: Callable[[str], None] | None = None) -> None:
        self.folder = folder
        self.notice = notice
        self.lost = 0
        self.lines = 0
        self.rollouts_step = -1
        self._bytes = 0
        self._unsynced: set[Path] = set()

    def write(self, step: int, metrics: Mapping[str, Number], timings: Mapping[str, float]) -> None:
        """Append one line to each file: ``step`` first, then the names in order.

        NaN and infinities become null and are counted under ``non_finite``. None is null: the metric does not apply.
        """
        start = {path: _size(path) for path in (self.folder / METRICS, self.folder / TIMINGS)}
        try:
            for path, row in zip(start, (_line(step, metrics), _line(step, timings)), strict=True):
                _append(path, row)
        except OSError as error:
            for path, size in start.items():  # no torn line may stay, and the two files keep the same number of lines
                _cut(path, size)
            self._lose(METRICS, error)
            return
        self.lines += 1
        self._bytes = _size(self.folder / METRICS)
        self._unsynced.update(start)

    def write_rollouts(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the rollouts of ``step``, one JSON object a line, all or nothing.

        Text is escaped to ASCII, so lone surrogates, NUL and exotic line ends are safe; NaN and infinities become null.
        """
        path = rollouts_file(self.folder, step)
        data = "".join(json.dumps(plain(row)) + "\n" for row in rows).encode("ascii")
        try:
            path.parent.mkdir(exist_ok=True)
            replace_file(path, data, sync=False)
        except OSError as error:
            self._lose(f"{ROLLOUTS}/{path.name}", error)
            return
        self.rollouts_step = max(step, self.rollouts_step)
        self._unsynced.add(path)

    def state(self) -> State:
        """What a checkpoint keeps. Syncs the logs first: a checkpoint must never outlive the lines that it counts."""
        for path in self._unsynced:
            try:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            except OSError as error:
                self._lose(path.name, error)
        self._unsynced.clear()
        return State(values={"bytes": self._bytes, "lines": self.lines, "rollouts_step": self.rollouts_step})

    def restore(self, state: State) -> None:
        """Cut ``metrics.jsonl`` and ``timings.jsonl`` back to the saved length; delete the rollouts of later steps."""
        size, self.lines = int(state.values["bytes"]), int(state.values["lines"])
        self.rollouts_step = int(state.values["rollouts_step"])
        found = _size(self.folder / METRICS)
        if found < size and self.notice:
            self.notice(f"{METRICS} has {found} bytes, the checkpoint counted {size}: earlier lines were removed")
        _cut(self.folder / METRICS, size)
        self._bytes = _size(self.folder / METRICS)
        _cut(self.folder / TIMINGS, _end_of_line(self.folder / TIMINGS, self.lines))
        for step in rollout_steps(self.folder):
            if step > self.rollouts_step:
                rollouts_file(self.folder, step).unlink()
        for leftover in (self.folder / ROLLOUTS).glob(".*.tmp"):
            leftover.unlink()

    def _lose(self, name: str, error: OSError) -> None:
        self.lost += 1
        if self.lost == 1 and self.notice:
            reason = error.strerror or str(error)
            self.notice(f"{name} could not be written ({reason}); training goes on, later losses are only counted")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl`` (or of the one in folder ``path``), while it is being written too.

    A last line without its line end is still being written and is left out. A bad line elsewhere is an ``InputError``.
    """
    file = path / METRICS if path.is_dir() else path
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(str(file), f"it cannot be read ({error.strerror})", "give the folder of a run") from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise InputError(f"{file}:{number}", "this line is not a JSON object", "delete the line")
        rows.append(row)
    return rows


def _line(step: int, values: Mapping[str, Number]) -> bytes:
    if "step" in values or "non_finite" in values:
        raise ValueError("'step' and 'non_finite' are columns of the stream itself, not metrics")
    row = {name: _number(value) for name, value in values.items()}
    bad = [name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
    row |= dict.fromkeys(bad)
    if bad:
        row["non_finite"] = len(bad)
    return (json.dumps({"step": step, **dict(sorted(row.items()))}) + "\n").encode("ascii")


def _number(value: Any) -> float | int | None:
    """A Python number; numpy and torch scalars are read out exactly."""
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        return float(value)
    plain = value.item() if hasattr(value, "item") else value
    return plain if isinstance(plain, int | float) else float(plain)


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:  # opened for each line: the line is out when we return, and another process can tail
        file.write(data)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _cut(path: Path, size: int) -> None:
    try:
        if _size(path) > size:
            os.truncate(path, size)
    except OSError:  # the log cannot be mended; the failure that led here has been counted
        return


def _end_of_line(path: Path, lines: int) -> int:
    """Offset behind the first ``lines`` lines, or behind the last whole line if there are fewer."""
    offset = 0
    if path.is_file():
        with path.open("rb") as file:
            for _, line in zip(range(lines), file, strict=False):
                offset += len(line) if line.endswith(b"\n") else 0
    return offset
