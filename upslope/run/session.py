"""The session: what a recipe talks to while it trains.

A recipe registers its stateful parts, reports phases, metrics and rollouts, and calls ``boundary`` after every
optimizer step. Saving, stopping, resuming and telling the listeners (views, trackers) happen here, and the recipe's
loop stays the algorithm.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from upslope.errors import InputError, MachineError, Stopped
from upslope.run import checkpoint, machine
from upslope.run.checkpoint import Checkpoint, Order
from upslope.run.folder import RunFolder
from upslope.run.metrics import MetricsStream, Number
from upslope.run.signals import StopSignals
from upslope.types import State, Stateful

STOP_AFTER = "UPSLOPE_STOP_AFTER"
"""Environment variable ``k:i``: ``boundary((k, i))`` acts as if SIGTERM had arrived. For tests and for schedulers."""


@runtime_checkable
class Listener(Protocol):
    """Hears what happens in a run. An exception here is reported once and the listener dropped; the run goes on."""

    def on_start(self, facts: dict[str, Any]) -> None: ...

    def on_phase(self, step: int, phase: str, done: int, total: int) -> None: ...

    def on_step(self, step: int, metrics: dict[str, Any], timings: dict[str, float]) -> None: ...

    def on_notice(self, text: str) -> None: ...

    def on_sample(self, step: int, prompt: str, completion: str, reward: float | None) -> None: ...

    def on_end(self, summary: dict[str, Any]) -> None: ...


class Run:
    """One run of a recipe in its folder. A context manager that sets the folder's final status and gives up its lock.

    ``resumed`` is the checkpoint that the run goes on from, or None; ``attach`` restores it. Order (k, i) names the
    point inside step k after its i-th optimizer step, (k, 0) the end of step k. Listeners' ``on_end`` is called
    once in every case, with ``status`` finished, stopped or failed.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        save_every: int,
        keep: int = 1,
        listeners: Sequence[Listener] = (),
        stop: StopSignals | None = None,
    ) -> None:
        self.folder = folder
        self.metrics = MetricsStream(folder.path, notice=self.notice)
        self.listeners: list[Listener] = list(listeners)
        self.resumed: Checkpoint | None = None
        self.notices: list[str] = []
        self._save_every, self._keep = save_every, keep
        self._stop = stop or StopSignals()
        self._parts: dict[str, Stateful] = {}
        self._pending = list(folder.notices)
        self._order: Order | None = None
        self._saved: Order | None = None
        self._summary: dict[str, Any] | None = None
        self._told_signal = False
        try:
            self._stop_after = _stop_after(os.environ.get(STOP_AFTER, ""))
            if folder.resuming:
                self.resumed = self._find_checkpoint()
        except BaseException:
            folder.close("failed", int(folder.record().get("step", 0)))
            raise
        if self.resumed:
            self._order = self._saved = self.resumed.order

    # ------------------------------------------------------------------------------------------------ life of the run
    def __enter__(self) -> Run:
        self._stop.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        finished = error is None and self._summary is not None
        stopped = isinstance(error, Stopped | KeyboardInterrupt) or (error is None and not finished)
        status = "finished" if finished else "stopped" if stopped else "failed"
        try:
            self._tell("on_end", {**(self._summary or {}), "status": status, "step": self._step()})
        finally:
            self._stop.__exit__(kind, error, trace)
            self._close(status)

    def attach(self, **parts: Stateful) -> None:
        """Register all stateful parts, once, before training; when resuming, restore every one of them now."""
        if self._parts:
            raise ValueError(
                "attach() was called before: give all parts in one call, so that a checkpoint holds them all"
            )
        if "metrics" in parts:
            raise ValueError("'metrics' is the metrics stream's own name: give the part another one")
        self._parts = {**parts, "metrics": self.metrics}
        if self.resumed:
            self.resumed.restore(self._parts)
        elif self.folder.resuming:
            self.metrics.restore(State(values={"bytes": 0, "lines": 0, "rollouts_step": -1}))

    def start(self, facts: Mapping[str, Any]) -> None:
        """Tell the listeners that the run begins; adds ``folder``, ``run``, ``id``, ``resumed``, ``resumed_step``."""
        own = {"folder": str(self.folder.path), "run": self.folder.path.name, "id": self.folder.id}
        self._tell("on_start", {**own, "resumed": self.folder.resuming, "resumed_step": self._step(), **facts})
        pending, self._pending = self._pending, []
        for text in pending:
            self.notice(text)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Mark the run as finished. Saves its last state if checkpoints are on; ``MachineError`` if that fails."""
        if self._save_every > 0 and self._order is not None and self._saved != self._order:
            self._save(self._order)
        self._summary = dict(summary)

    # -------------------------------------------------------------------------------------------------- what it reports
    def phase(self, step: int, phase: str, done: int = 0, total: int = 0) -> None:
        """``phase`` of ``step`` is at ``done`` of ``total``.

        Phases are loading, sampling, reward, reference, learning, evaluation and saving.
        """
        self._mention_signal()
        self._tell("on_phase", step, phase, done, total)

    def notice(self, text: str) -> None:
        """One line in plain words for whoever watches; kept in ``notices``."""
        self.notices.append(text)
        self._tell("on_notice", text)

    def sample(self, step: int, prompt: str, completion: str, reward: float | None) -> None:
        """One completion of this step, to look at."""
        self._tell("on_sample", step, prompt, completion, reward)

    def log(self, step: int, metrics: Mapping[str, Number], timings: Mapping[str, float]) -> None:
        """Metrics and timings (seconds) of a step: to the stream first, then to the listeners."""
        self.metrics.write(step, metrics, timings)
        self._tell("on_step", step, dict(metrics), dict(timings))

    def rollouts(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the rollouts of a step to the folder."""
        self.metrics.write_rollouts(step, rows)

    # ------------------------------------------------------------------------------------------------ saving, stopping
    def boundary(self, order: Order) -> None:
        """To be called after every optimizer step: the only place where a run is saved or stopped.

        Saves at the end of every ``save_every``-th step; a save that fails is a notice, for the next may succeed.
        If a stop was asked for: saves, and raises ``Stopped`` with the command that resumes; ``MachineError`` if
        that save fails.
        """
        self._order = order
        number = signal.SIGTERM if order == self._stop_after else self._stop.requested
        if number is not None:
            self._mention_signal()
            if self._saved != order:
                self._save(order)
            # the exit codes of a resumable stop are two: 130 for Ctrl-C, 143 for every other signal
            number = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
            place = f"step {order[0]}" + (f", optimizer step {order[1]}" if order[1] else "")
            raise Stopped(
                int(number), f"stopped after {place}, saved in {self.folder.path}. Resume: {self.resume_command()}"
            )
        if order[1] == 0 and self._save_every > 0 and order[0] % self._save_every == 0 and self._saved != order:
            try:
                self._save(order)
            except MachineError as error:
                self.notice(f"training goes on without this checkpoint: {error}")

    def resume_command(self) -> str:
        """What the user types to go on with this run."""
        program, *arguments = sys.argv or [""]
        name = Path(program)
        if name.stem != "upslope" and name.parts[-2:] != ("upslope", "__main__.py"):
            return f"run the same call again with resume on, for {self.folder.path}"
        if arguments[:1] == ["demo"]:
            return "none, `upslope demo` starts anew"
        kept = [argument for argument in machine.masked(arguments) if argument not in ("--resume", "--overwrite")]
        return shlex.join(["upslope", *kept, "--resume"])

    def _save(self, order: Order) -> None:
        if not self._parts:
            raise ValueError("boundary() before attach(): the run has no parts to save")
        facts = {
            "run": self.folder.id,
            "recipe_sha256": hashlib.sha256(self.folder.recipe_text.encode("utf-8", "backslashreplace")).hexdigest(),
            "versions": machine.versions(),
        }
        checkpoint.save(self.folder.checkpoints, order, self._parts, facts, self._keep)
        self._saved = order
        try:
            self.folder.update(step=self._step())
        except OSError as error:
            self.notice(f"run.json could not be written ({error.strerror or error})")

    def _find_checkpoint(self) -> Checkpoint | None:
        directory = self.folder.checkpoints
        checkpoint.sweep(directory)
        found, faults = checkpoint.latest(directory)
        if faults and found is None:
            raise InputError(
                str(self.folder.path),
                "no checkpoint can be used: " + "; ".join(faults),
                "put an intact copy back, or start again with --overwrite",
            )
        self._pending += faults
        if found is None and self.folder.earlier_status == "finished":
            raise InputError(
                str(self.folder.path),
                "the finished run kept no checkpoint to go on from (train.save_every was 0)",
                "start a new run in another folder, with train.save_every above 0",
            )
        if found is None:
            self._pending.append("nothing was saved before the run ended: it starts again from its first step")
        elif faults:
            self._pending.append(f"resuming from the older checkpoint {found.path}")
        return found

    def _step(self) -> int:
        """Number of whole steps done."""
        if self._order is None:
            return 0
        return self._order[0] if self._order[1] == 0 else self._order[0] - 1

    def _close(self, status: Any) -> None:
        try:
            summary = {} if self._summary is None else {"summary": self._summary}
            self.folder.close(status, self._step(), **summary)
        except OSError as error:  # a full disk must not hide what ended the run; the lock is free in any case
            self.notices.append(f"run.json could not be written ({error.strerror or error})")

    def _mention_signal(self) -> None:
        # told from here, not from the signal handler: a view may have been in the midst of printing
        if self._stop.requested is not None and not self._told_signal:
            self._told_signal = True
            name = signal.Signals(self._stop.requested).name
            self.notice(f"{name} received: stopping after this optimizer step; a second Ctrl-C stops at once, unsaved")

    def _tell(self, event: str, *arguments: Any) -> None:
        for listener in list(self.listeners):
            handler: Callable[..., None] = getattr(listener, event)
            try:
                handler(*arguments)
            except Exception as error:  # a broken view or a tracker without network must not cost the run
                self.listeners = [other for other in self.listeners if other is not listener]
                self.notice(
                    f"{type(listener).__name__} failed in {event} and was dropped: {type(error).__name__}: {error}"
                )


def _stop_after(text: str) -> Order | None:
    if not text:
        return None
    step, colon, inner = text.partition(":")
    if not step.isdecimal() or (colon and not inner.isdecimal()):
        raise InputError(STOP_AFTER, f"{text!r} is not of the form step:optimizer_step", "set it to, for example, 10:0")
    return int(step), int(inner or 0)
