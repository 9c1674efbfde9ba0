"""Training progress in the terminal: a live panel on a TTY, one plain line a step elsewhere.

``TerminalView`` listens to a run. It never raises because of what a metric holds or because the terminal went away: a
view must not end a training run.
"""

from __future__ import annotations

import atexit
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from upslope.views.numbers import duration, finite, percent, short, sparkline, whole
from upslope.views.progress import Progress, Sample
from upslope.views.safe_text import clean

HEARTBEAT = 30.0  # seconds of silence after which a log gets a line about the phase that is going on
ANNOUNCED = ("loading",)  # phases that a log names as they begin
LABEL = 11
WARNING, GOOD, DIM, STRONG = "yellow", "green", "dim", "bold"

# (label, metric, width) of the plain line; a column appears once the run has the metric, and then stays.
COLUMNS = (
    ("reward", "reward", 6),
    ("std", "reward_std", 6),
    ("loss", "loss", 8),
    ("accuracy", "mean_token_accuracy", 6),
    ("accuracy", "accuracy", 6),
    ("accuracy", "rewards/accuracies", 6),
    ("margin", "margin", 6),
    ("margin", "rewards/margins", 6),
    ("value_loss", "value_loss", 8),
    ("expl_var", "explained_variance", 6),
    ("kl", "kl", 8),
    ("entropy", "entropy", 7),
    ("length", "completions/mean_length", 7),
)
EVALUATIONS = (("eval", "eval/accuracy"), ("eval_reward", "eval/reward"), ("eval_loss", "eval_loss"))


class TerminalView:
    """A listener of a run that shows it in a terminal.

    ``console`` defaults to one on standard output. Where it is not a terminal, or cannot show Unicode, each step is one
    line without escape sequences. ``clock`` gives seconds. Use as a context manager, or call ``close``, so that the
    terminal is restored when the run ends by an exception.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        # FORCE_COLOR must not turn a log file into a live view, so a default console asks the file itself.
        self._console = console or Console(
            force_terminal=sys.stdout.isatty(), markup=False, emoji=False, highlight=False
        )
        unicode = self._console.encoding.lower().startswith("utf")
        self.live = self._console.is_terminal and not self._console.is_dumb_terminal and unicode
        self._progress = Progress(clock)
        self._display: Live | None = None
        self._lock = threading.Lock()
        self._spoke = clock()

    # ---------------------------------------------------------------------------------------------- what the run tells
    def on_start(self, facts: Mapping[str, Any]) -> None:
        with self._lock:
            self._progress.start(facts)
        if self.live:
            self._open()
        else:
            self._line(_title(facts) + (f", {self._progress.steps} steps" if self._progress.steps else ""))

    def on_phase(self, step: int, phase: str, done: int, total: int) -> None:
        with self._lock:
            fresh = self._progress.enter(step, phase, done, total)
        if self.live:
            return
        silent = self._progress.clock() - self._spoke
        if (fresh and phase in ANNOUNCED) or silent >= HEARTBEAT:
            count = f" {done}/{total}" if total else ""
            since = self._progress.phase.since if self._progress.phase else self._progress.clock()
            spent = "" if fresh else f", {duration(self._progress.clock() - since)} so far"
            where = f"step {step}: " if step else ""
            self._line(f"{where}{phase}{count}{spent}")

    def on_step(self, step: int, metrics: Mapping[str, Any], timings: Mapping[str, Any]) -> None:
        with self._lock:
            fresh = self._progress.add(step, metrics, timings)
            line = plain_line(self._progress)
        if not self.live:
            lasting = [finding for finding in self._progress.findings if finding not in fresh]
            told = [finding.text for finding in fresh] + [f"({finding.kind})" for finding in lasting]
            self._line(line + (f"  ! {'; '.join(told)}" if told else ""))

    def on_notice(self, text: str) -> None:
        with self._lock:
            self._progress.notices.append(text)
        if self.live:
            self._guard(lambda: self._console.print(Text(clean(text, 2000), style=WARNING)))
        else:
            self._line(clean(text, 2000))

    def on_sample(self, step: int, prompt: str, completion: str, reward: float | None) -> None:
        with self._lock:
            self._progress.sample = Sample(step, prompt, completion, reward)

    def on_end(self, summary: Mapping[str, Any]) -> None:
        with self._lock:
            self._progress.summary = dict(summary)
            self._progress.phase = None
            line = end_line(self._progress)
        self.close()
        if self.live:
            self._guard(lambda: self._console.print(Text(line, style=STRONG)))
        else:
            self._line(line)

    # --------------------------------------------------------------------------------------------------- the terminal
    def renderable(self) -> RenderableType:
        """The live panel as it stands, for a console of this view's width."""
        with self._lock:
            return panel(self._progress, self._console.width)

    def close(self) -> None:
        """Leaves the last panel standing and gives the terminal back. Harmless when called twice."""
        display, self._display = self._display, None
        if display is not None:
            self._guard(display.stop)
            atexit.unregister(self.close)

    def __enter__(self) -> TerminalView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        if self._display is not None:
            return
        display = Live(get_renderable=self.renderable, console=self._console, refresh_per_second=4)
        self._display = display
        self._guard(display.start)
        atexit.register(self.close)  # an exception that nobody catches must not leave the cursor hidden

    def _line(self, text: str) -> None:
        self._spoke = self._progress.clock()
        encoding = self._console.encoding
        shown = clean(text, 4000).encode(encoding, errors="replace").decode(encoding, errors="replace")

        def write() -> None:
            self._console.file.write(shown + "\n")
            self._console.file.flush()

        self._guard(write)

    @staticmethod
    def _guard(write: Callable[[], Any]) -> None:
        """A full disk, a closed pipe or a closed file must not end the training run."""
        with contextlib.suppress(OSError, ValueError):
            write()


# ----------------------------------------------------------------------------------------------------------- plain text
def _title(facts: Mapping[str, Any]) -> str:
    """``name: recipe, model on device (dtype)`` from the facts that are there."""
    known = {
        key: clean(str(facts[key]), 60)
        for key in ("name", "run", "recipe", "model", "device", "dtype")
        if facts.get(key)
    }
    model = known.get("model", "")
    if "device" in known:
        model = f"{model} on {known['device']}" if model else known["device"]
    if "dtype" in known:
        model = f"{model} ({known['dtype']})".strip()
    head = known.get("name") or known.get("run", "run")
    rest = ", ".join(part for part in (known.get("recipe", ""), model) if part)
    return f"{head}: {rest}" if rest else head


def plain_line(progress: Progress) -> str:
    """The last finished step in one line of aligned ASCII, without health."""
    total = str(progress.steps) if progress.steps else ""
    head = f"{progress.step:>{len(total)}}/{total}" if total else f"{progress.step:>5}"
    parts = [f"step {head}"]
    for label, name, width in COLUMNS:
        if progress.seen(name):
            parts.append(f"{label} {short(progress.now(name)):>{width}}")
    if progress.seen("completions/clipped_ratio"):
        parts.append(f"cut {percent(progress.now('completions/clipped_ratio')):>5}")
    seconds = finite(progress.timings, "time/step")
    if seconds is None and progress.step_seconds:
        seconds = progress.step_seconds[-1]
    parts.append(f"{duration(seconds):>7}")
    speed = _speed(progress.timings)
    if speed is not None:
        parts.append(f"{short(speed):>6} tok/s")
    parts.append(f"left {duration(progress.left):>7}")
    parts += [f"{label} {short(value)}" for label, name in EVALUATIONS if (value := progress.now(name)) is not None]
    return "  ".join(parts)


def end_line(progress: Progress) -> str:
    """How the run ended: status, steps, time, the last reward and evaluation, and the folder."""
    summary = progress.summary or {}
    status = clean(str(summary.get("status") or "finished"), 40)
    parts = [f"{status} at step {progress.step}" + (f" of {progress.steps}" if progress.steps else "")]
    if progress.facts:  # a run that failed while it was loading never told when it began
        parts.append(f"in {duration(progress.elapsed)}")
    for label, name in (("reward", "reward"), *EVALUATIONS):
        value = progress.last(name)
        if value is not None:
            parts.append(f"{label} {short(value)}")
    folder = summary.get("folder") or progress.facts.get("folder")
    if folder:
        parts.append(clean(str(folder), 300))
    return ", ".join(parts)


def _speed(timings: Mapping[str, Any]) -> float | None:
    sampled = finite(timings, "tokens_per_second")
    return finite(timings, "learner_tokens_per_second") if sampled is None else sampled


# ----------------------------------------------------------------------------------------------------------- live panel
def panel(progress: Progress, width: int) -> RenderableType:
    """The live panel of a run, for a terminal ``width`` cells wide."""
    inner = max(width - 4, 24)
    rows = Table.grid(padding=(0, 1))
    rows.add_column(width=LABEL, style=DIM, no_wrap=True)
    rows.add_column(overflow="fold")
    for label, content in _rows(progress, inner - LABEL - 1):
        rows.add_row(label, content)
    body = Group(_head(progress, inner), Text(), rows)
    edge = WARNING if progress.findings else "cyan"
    title = Text(clean(_title(progress.facts), max(width - 8, 8)), style=STRONG)
    return Panel(body, title=title, title_align="left", border_style=edge, width=width if width >= 28 else None)


def _head(progress: Progress, width: int) -> Text:
    """Step, bar, share, elapsed, left."""
    steps = progress.steps
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"step {progress.step}" + (f"/{steps}" if steps else ""), style=STRONG)
    tail = f"  {duration(progress.elapsed)} elapsed"
    if steps:
        share = min(progress.step / steps, 1.0)
        tail = f"  {percent(share):>5}" + tail + f", {duration(progress.left)} left"
        room = max(min(width - len(text) - len(tail) - 2, 40), 0)
        filled = round(share * room)
        text.append("  ").append("━" * filled, style="cyan").append("─" * (room - filled), style="bright_black")
    return text.append(tail)


def _rows(progress: Progress, width: int) -> list[tuple[str, Text]]:
    """The label and content of each line of the panel."""
    rows = [("now", _now(progress))]
    spark = max(min(width - 44, 40), 8)

    def curve(label: str, name: str, note: str = "", sparse: bool = False) -> None:
        if progress.seen(name):
            value = progress.last(name) if sparse else progress.now(name)
            text = Text(no_wrap=True, overflow="ellipsis").append(f"{short(value):>8}  ", style=STRONG)
            text.append(sparkline(progress.course(name, sparse), spark), style="cyan")
            rows.append((label, text.append(f"  {note}" if note else "", style=DIM)))

    best = max((value for value in progress.course("reward") if value is not None), default=None)
    curve("reward", "reward", f"std {short(progress.now('reward_std'))}, best {short(best)}")
    curve("held-out", "eval/accuracy", "accuracy", sparse=True)
    curve("", "eval/reward", "reward, held-out", sparse=True)
    if not progress.seen("reward"):
        curve("loss", "loss")
    curve("held-out", "eval_loss", "loss", sparse=True)
    curve("accuracy", "mean_token_accuracy", "of the next token")
    for name in ("accuracy", "rewards/accuracies"):
        curve("accuracy", name, "of the pairs of a step")
    curve("", "eval/rewards/accuracies", "held-out pairs", sparse=True)
    curve("critic", "explained_variance", f"explained variance, loss {short(progress.now('value_loss'))}")
    curve("kl", "kl", "nats to the reference")
    curve("entropy", "entropy", "nats a token")
    shortest, longest = (whole(progress.now(f"completions/{end}_length")) for end in ("min", "max"))
    cut = percent(progress.now("completions/clipped_ratio"))
    curve("length", "completions/mean_length", f"{shortest} to {longest} tokens, {cut} cut")
    if progress.seen("reward"):
        curve("loss", "loss")
    if progress.timings:
        rows.append(("time", _times(progress)))
    rows.append(("health", _health(progress)))
    if progress.sample is not None:
        sample = progress.sample
        reward = f", reward {short(sample.reward)}" if sample.reward is not None else ""
        rows.append(("sample", Text(f"step {sample.step}{reward}", style=DIM)))
        rows.append(("  prompt", Text(clean(sample.prompt, max(width, 1)), no_wrap=True, overflow="ellipsis")))
        rows.append(("  answer", Text(clean(sample.completion, max(2 * width, 1)), style=STRONG)))
    return rows


def _now(progress: Progress) -> Text:
    phase = progress.phase
    if phase is None:
        return Text("ended" if progress.summary is not None else "between steps", style=DIM)
    text = Text(clean(phase.name, 30), style="cyan")
    if phase.total > 0:
        text.append(f" {phase.done}/{phase.total}")
    where = f"  step {phase.step}," if phase.step else " "
    return text.append(f"{where} {duration(progress.clock() - phase.since)}", style=DIM)


def _times(progress: Progress) -> Text:
    """Seconds and shares of the last step's phases, and tokens a second."""
    step = finite(progress.timings, "time/step")
    times = progress.phase_times()
    text = Text(f"{duration(step)} a step" if step is not None else "")
    total = step or sum(seconds for _, seconds in times)
    for name, seconds in times:
        text.append(" · " if text.plain else "", style=DIM)
        text.append(f"{name} {percent(seconds / total)}")
    for label, name in (("sampled", "tokens_per_second"), ("learned", "learner_tokens_per_second")):
        speed = finite(progress.timings, name)
        if speed is not None:
            text.append(" · " if text.plain else "", style=DIM).append(f"{short(speed)} tok/s {label}")
    return text


def _health(progress: Progress) -> Text:
    if not progress.history:
        return Text("no step yet", style=DIM)
    if not progress.findings:
        return Text("nothing wrong", style=GOOD)
    return Text("\n".join(f"! {finding.text}" for finding in progress.findings), style=WARNING)
