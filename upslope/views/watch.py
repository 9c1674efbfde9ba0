"""Following a run from its files alone, while it goes on in another process: `upslope watch`.

Reads ``run.json``, ``metrics.jsonl``, ``timings.jsonl`` and the newest rollouts; writes nothing and sends nothing to
the run. What it shows is what the training command's own view shows, but for the phase inside a step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from upslope.run import machine
from upslope.run.folder import LOCK
from upslope.views.numbers import finite
from upslope.views.progress import RECENT, Phase, Progress, Sample
from upslope.views.run_files import read_facts, read_lines, require_run, rollout_files
from upslope.views.safe_text import clean
from upslope.views.terminal import end_line, panel, plain_line

POLL = 0.5  # seconds between two looks at the files


@dataclass(slots=True)
class Tail:
    """The rows of a JSONL file that is being written, each once. A file that became shorter is read anew."""

    path: Path
    offset: int = 0
    cut: bool = False

    def rows(self) -> list[dict[str, Any]]:
        """The objects of the lines that were completed since the last call. ``cut`` says that earlier ones are void: a
        resumed run has cut the file back."""
        self.cut = False
        try:
            if self.path.stat().st_size < self.offset:
                self.offset, self.cut = 0, True
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        found = []
        for line in whole.splitlines():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and finite(row, "step") is not None:
                found.append(row)
        return found


@dataclass(slots=True)
class Follower:
    """A run as its files tell it. ``look`` brings it up to date and returns the lines of the steps that are new."""

    folder: Path
    clock: Callable[[], float] = time.time
    progress: Progress = field(init=False)
    status: str = field(init=False, default="")
    _metrics: Tail = field(init=False)
    _timings: Tail = field(init=False)
    _times: dict[int, dict[str, Any]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._metrics, self._timings = Tail(self.folder / "metrics.jsonl"), Tail(self.folder / "timings.jsonl")
        self._begin()

    def _begin(self) -> None:
        self.progress = Progress(self.clock)
        self._times = {}
        self._metrics.offset = self._timings.offset = 0

    @property
    def ended(self) -> bool:
        return self.status not in ("", "running")

    def look(self) -> list[str]:
        """Read what is new. Returns one line for each new step, as a log has it."""
        # The status first: what a run wrote before it said that it ended is then read, too.
        self._facts()
        rows = self._metrics.rows()
        if self._metrics.cut:
            self._begin()
            self._facts()
            rows = self._metrics.rows()
        for row in self._timings.rows():
            self._times[int(row["step"])] = row
        lines = []
        for row in rows:
            step = int(row["step"])
            fresh = self.progress.add(step, row, self._times.get(step, {}))
            self._measure(step)
            told = [finding.text for finding in fresh]
            told += [f"({one.kind})" for one in self.progress.findings if one not in fresh]
            lines.append(plain_line(self.progress) + (f"  ! {'; '.join(told)}" if told else ""))
        if rows:
            self._sample()
        self._phase()
        return lines

    def _facts(self) -> None:
        facts = read_facts(self.folder) or {}
        status = str(facts.get("status") or "")
        if status == "running" and self._killed():
            status = "killed"
        self.status = status
        facts = {**facts, "run": self.folder.resolve().name, "folder": str(self.folder)}
        progress = self.progress
        progress.facts = facts
        attempts = facts.get("attempts")
        begun = attempts[-1].get("started") if isinstance(attempts, list) and attempts else facts.get("started")
        now = self.clock()
        progress.started = _seconds(begun) or progress.started or now
        if self.ended:
            end = _seconds(facts.get("ended")) or _changed(self._metrics.path) or now
            progress.clock = lambda: end
            progress.summary = {"status": status, "folder": str(self.folder)}
        else:
            progress.clock, progress.summary = self.clock, None

    def _killed(self) -> bool:
        """Whether the process that holds the folder is gone without having said how the run ended."""
        try:
            holder = json.loads((self.folder / LOCK).read_bytes())
        except FileNotFoundError:
            return (read_facts(self.folder) or {}).get("status") == "running"
        except (OSError, ValueError):
            return False
        return isinstance(holder, dict) and machine.is_dead(holder)

    def _measure(self, step: int) -> None:
        """Times by the run's own clock: ours says when we looked."""
        seconds = [finite(self._times.get(n, {}), "time/step") for n in range(max(step - RECENT, 0) + 1, step + 1)]
        self.progress.step_seconds = [value for value in seconds if value is not None]
        self.progress.mark = _changed(self._metrics.path) or self.progress.mark

    def _phase(self) -> None:
        progress = self.progress
        if self.ended or not progress.history or (progress.steps and progress.step >= progress.steps):
            progress.phase = None
        else:
            progress.phase = Phase(progress.step + 1, "training", 0, 0, progress.mark)

    def _sample(self) -> None:
        files = rollout_files(self.folder)
        if not files:
            return
        step = max(files)
        lines = read_lines(files[step], limit=1)
        for row in lines.rows if lines else ():
            prompt, completion = row.get("prompt"), row.get("completion")
            self.progress.sample = Sample(step, str(prompt), str(completion), finite(row, "reward"))


def watch(
    run: Path | str,
    console: Console,
    once: bool = False,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.time,
) -> None:
    """Show the run until it ends: a live panel on a terminal, one line a step elsewhere. ``once``: only how it stands.

    Ctrl-C ends the watching and leaves the run alone. Raises ``InputError`` where ``run`` is not a run folder.
    """
    follower = Follower(require_run(run), clock)
    unicode = console.encoding.lower().startswith("utf")
    live = console.is_terminal and not console.is_dumb_terminal and unicode
    try:
        if live:
            _live(follower, console, once, sleep)
        else:
            _lines(follower, console, once, sleep)
    except KeyboardInterrupt:
        _write(console, f"no longer watching {follower.folder}; the run goes on")


def _live(follower: Follower, console: Console, once: bool, sleep: Callable[[float], None]) -> None:
    follower.look()
    picture = lambda: panel(follower.progress, console.width)  # noqa: E731
    if once:
        console.print(picture())
        return
    # Refreshed from this loop only, so that the panel is never drawn while the numbers change.
    with Live(get_renderable=picture, console=console, auto_refresh=False) as display:
        while not follower.ended:
            sleep(POLL)
            follower.look()
            display.refresh()
    _write(console, end_line(follower.progress))


def _lines(follower: Follower, console: Console, once: bool, sleep: Callable[[float], None]) -> None:
    while True:
        for line in follower.look():
            _write(console, line)
        if follower.ended:
            _write(console, end_line(follower.progress))
            return
        if once:
            return
        sleep(POLL)


def _write(console: Console, text: str) -> None:
    encoding = console.encoding
    shown = clean(text, 4000).encode(encoding, errors="replace").decode(encoding, errors="replace")
    console.file.write(shown + "\n")
    console.file.flush()


def _seconds(text: Any) -> float | None:
    """Seconds since 1970 of a time as ``run.json`` has it; None where it is none."""
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None


def _changed(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
