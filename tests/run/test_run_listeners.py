"""Listeners of a run: what they hear and in what order; one that fails is dropped and ends nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.run.session_support import STEPS, known_surroundings, outcome, train, uninterrupted
from upslope.errors import Stopped
from upslope.run.folder import read_record
from upslope.run.metrics import read_metrics
from upslope.run.session import Listener, Run
from upslope.run.signals import StopSignals

__all__ = ["known_surroundings", "uninterrupted"]


class Recorder:
    """Notes every event; raises in the one named."""

    def __init__(self, fail_in: str = "") -> None:
        self.events: list[tuple[str, Any]] = []
        self.fail_in = fail_in

    def note(self, name: str, *arguments: Any) -> None:
        self.events.append((name, arguments))
        if name == self.fail_in:
            raise ConnectionError("no network")

    def on_start(self, facts: dict[str, Any]) -> None:
        self.note("start", facts)

    def on_phase(self, step: int, phase: str, done: int, total: int) -> None:
        self.note("phase", step, phase, done, total)

    def on_step(self, step: int, metrics: dict[str, Any], timings: dict[str, float]) -> None:
        self.note("step", step, metrics, timings)

    def on_notice(self, text: str) -> None:
        self.note("notice", text)

    def on_sample(self, step: int, prompt: str, completion: str, reward: float | None) -> None:
        self.note("sample", step, prompt, completion, reward)

    def on_end(self, summary: dict[str, Any]) -> None:
        self.note("end", summary)

    def of(self, name: str) -> list[Any]:
        return [arguments for event, arguments in self.events if event == name]


def test_listeners_hear_a_run_in_order(tmp_path: Path) -> None:
    recorder = Recorder()
    assert isinstance(recorder, Listener)
    train(tmp_path / "run", steps=2, listeners=[recorder])
    assert [name for name, _ in recorder.events] == ["start", *["phase", "sample", "step"] * 2, "end"]
    (facts,) = recorder.of("start")[0]
    assert facts["recipe"] == "counter" and facts["folder"] == str(tmp_path / "run") and facts["run"] == "run"
    assert facts["resumed"] is False and facts["resumed_step"] == 0
    assert facts["id"] == read_record(tmp_path / "run")["id"]
    rows = read_metrics(tmp_path / "run")
    assert [{"step": step, **metrics} for step, metrics, _ in recorder.of("step")] == rows
    assert recorder.of("step")[0][2] == {"update": 0.5}
    assert recorder.of("end") == [({"version": 6, "status": "finished", "step": 2},)]


def test_listeners_hear_where_a_run_goes_on_and_how_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSLOPE_STOP_AFTER", "3:1")
    recorder = Recorder()
    with pytest.raises(Stopped):
        train(tmp_path / "run", listeners=[recorder])
    assert recorder.of("end") == [({"status": "stopped", "step": 2},)]
    recorder = Recorder()
    train(tmp_path / "run", "resume", listeners=[recorder])
    (facts,) = recorder.of("start")[0]
    assert facts["resumed"] is True and facts["resumed_step"] == 2
    recorder = Recorder()
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "b", listeners=[recorder], hook=lambda *_: 1 // 0)
    assert recorder.of("end") == [({"status": "failed", "step": 0},)]


@pytest.mark.parametrize("event", ["start", "phase", "step", "sample", "end", "notice"])
def test_a_failing_listener_is_dropped_once_told_and_never_ends_the_run(
    tmp_path: Path, uninterrupted: dict[str, bytes], event: str
) -> None:
    bad, good = Recorder(fail_in=event), Recorder()

    def say(run: Run, step: int, inner: int) -> None:
        if inner == 1:
            run.notice(f"step {step}")

    run = train(tmp_path / "run", listeners=[bad, good], hook=say)
    assert len(bad.of(event)) == 1 and bad.events[-1][0] == event
    told = [text for (text,) in good.of("notice") if "dropped" in text]
    assert told == [f"Recorder failed in on_{event} and was dropped: ConnectionError: no network"]
    assert run.listeners == [good] and len(good.of("step")) == STEPS and len(good.of("end")) == 1
    assert outcome(tmp_path / "run") == uninterrupted


def test_a_signal_is_mentioned_once_and_not_from_the_handler(tmp_path: Path) -> None:
    recorder = Recorder()
    inside: list[int] = []

    def send(run: Run, step: int, inner: int) -> None:
        if (step, inner) == (1, 1):
            os.kill(os.getpid(), signal.SIGTERM)
            inside.append(len(recorder.of("notice")))
            run.phase(1, "update", 1, 3)
            inside.append(len(recorder.of("notice")))

    with pytest.raises(Stopped):
        train(tmp_path / "run", listeners=[recorder], hook=send)
    assert inside == [0, 1]
    assert recorder.of("notice") == [
        ("SIGTERM received: stopping after this optimizer step; a second Ctrl-C stops at once, unsaved",)
    ]


def test_a_stop_that_the_caller_holds_is_obeyed(tmp_path: Path) -> None:
    stop = StopSignals()

    def ask(run: Run, step: int, inner: int) -> None:
        stop.requested = signal.SIGTERM

    with pytest.raises(Stopped, match="step 1, optimizer step 1"):
        train(tmp_path / "run", stop=stop, hook=ask)


def test_lost_log_lines_are_a_notice(tmp_path: Path) -> None:
    recorder = Recorder()

    def fill(run: Run, step: int, inner: int) -> None:
        if (step, inner) == (1, 1):
            (tmp_path / "run" / "metrics.jsonl").symlink_to("/dev/full")

    run = train(tmp_path / "run", listeners=[recorder], hook=fill)
    assert run.metrics.lost == STEPS
    assert [text for (text,) in recorder.of("notice") if "training goes on" in text] == run.notices
    assert read_record(tmp_path / "run")["status"] == "finished"
