from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from upslope.errors import InputError, MachineError, Stopped
from upslope.run import checkpoint
from upslope.run.folder import RunFolder, read_record
from upslope.run.metrics import read_metrics
from upslope.run.session import Listener, Run
from upslope.run.signals import StopSignals
from upslope.seeds import generator
from upslope.types import State

STEPS, INNER = 4, 3


@pytest.fixture(autouse=True)
def known_surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("UPSLOPE_STOP_AFTER", raising=False)
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # nothing here cuts the power, and disks are slow
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


# --------------------------------------------------------------------------------- a small training loop, and its parts
class Weights:
    """A tensor with momentum, updated from the buffered rollouts: where it is wrong once it stays wrong."""

    def __init__(self) -> None:
        self.w = torch.zeros(3, dtype=torch.float64)
        self.momentum = torch.zeros(3, dtype=torch.float64)
        self.version = 0

    def update(self, row: list[float]) -> None:
        self.momentum = 0.9 * self.momentum + torch.tensor(row, dtype=torch.float64)
        self.w = self.w + 0.1 * self.momentum
        self.version += 1

    def state(self) -> State:
        return State(tensors={"w": self.w, "momentum": self.momentum}, values={"version": self.version})

    def restore(self, state: State) -> None:
        self.w, self.momentum = state.tensors["w"], state.tensors["momentum"]
        self.version = state.values["version"]


class Buffer:
    """Rollouts of the step in progress."""

    def __init__(self) -> None:
        self.rows: list[list[float]] = []

    def state(self) -> State:
        return State(values={"rows": self.rows})

    def restore(self, state: State) -> None:
        self.rows = state.values["rows"]


class Kill(BaseException):
    """Ends the loop where a SIGKILL would: whatever was written since the last checkpoint is still in the folder."""


def recipe(steps: int = STEPS, save_every: int = 2, seed: int = 5) -> str:
    return yaml.safe_dump({"train": {"steps": steps, "save_every": save_every, "seed": seed}})


def train(
    path: Path,
    mode: Any = "new",
    *,
    steps: int = STEPS,
    save_every: int = 2,
    listeners: list[Any] | None = None,
    stop: StopSignals | None = None,
    hook: Any = None,
    keep: int = 1,
) -> Run:
    """Draw rollouts, take INNER optimizer steps on them, log; resumable after each of them."""
    folder = RunFolder.open(path, recipe(steps, save_every), {}, mode)
    weights, buffer = Weights(), Buffer()
    with Run(folder, save_every=save_every, keep=keep, listeners=listeners or [], stop=stop) as run:
        run.attach(weights=weights, buffer=buffer)
        run.start({"recipe": "counter"})
        begun, done = run.resumed.order if run.resumed else (0, 0)
        for step in range(begun if done else begun + 1, steps + 1):
            if done == 0:
                run.phase(step, "sampling")
                draws = generator(5, "rollout", step).standard_normal((INNER, 3)) + weights.w.numpy()
                buffer.rows = draws.tolist()
                run.rollouts(step, [{"row": row} for row in buffer.rows])
                run.sample(step, "p", str(buffer.rows[0]), 0.5)
            for inner in range(done + 1, INNER + 1):
                if hook:
                    hook(run, step, inner)
                weights.update(buffer.rows[inner - 1])
                run.boundary((step, inner))
            run.log(step, {"norm": float(weights.w.norm()), "version": weights.version}, {"update": 0.5})
            done = 0
            run.boundary((step, 0))
        run.finish({"version": weights.version})
    return run


def outcome(path: Path) -> dict[str, bytes]:
    """Everything a run decides, byte for byte: metrics, rollouts, and the parts of its last checkpoint."""
    found, notices = checkpoint.latest(path / "checkpoints")
    assert found is not None and notices == []
    assert found.order == (STEPS, 0)
    files = [path / "metrics.jsonl", *sorted((path / "rollouts").iterdir())]
    files += [file for file in sorted(found.path.iterdir()) if file.name != "manifest.json"]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("whole") / "run"
    train(path)
    return outcome(path)


BOUNDARIES = [(step, inner) for step in range(1, STEPS + 1) for inner in (*range(1, INNER + 1), 0)]


def test_the_uninterrupted_run_holds_what_the_comparisons_compare(uninterrupted: dict[str, bytes]) -> None:
    assert list(uninterrupted) == [
        "metrics.jsonl",
        *(f"rollouts/step-0000{step}.jsonl" for step in range(1, STEPS + 1)),
        *(f"checkpoints/step-00004/{name}" for name in ("buffer.json", "buffer.safetensors", "metrics.json")),
        *(f"checkpoints/step-00004/{name}" for name in ("metrics.safetensors", "weights.json", "weights.safetensors")),
    ]
    rows = [json.loads(line) for line in uninterrupted["metrics.jsonl"].splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and rows[-1]["version"] == STEPS * INNER
    assert len({row["norm"] for row in rows}) == STEPS


@pytest.mark.parametrize("order", BOUNDARIES)
def test_a_run_stopped_after_any_boundary_and_resumed_equals_one_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, bytes], order: tuple[int, int]
) -> None:
    monkeypatch.setenv("UPSLOPE_STOP_AFTER", f"{order[0]}:{order[1]}")
    with pytest.raises(Stopped) as raised:
        train(tmp_path / "run")
    assert raised.value.exit_code == 143
    found, _ = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert found is not None and found.order == order
    run = train(tmp_path / "run", "resume")  # the variable is still set: a boundary already passed must not stop again
    assert run.resumed is not None and run.resumed.order == order
    assert outcome(tmp_path / "run") == uninterrupted


def test_a_run_stopped_after_every_boundary_equals_one_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, bytes]
) -> None:
    for count, order in enumerate(BOUNDARIES):
        monkeypatch.setenv("UPSLOPE_STOP_AFTER", f"{order[0]}:{order[1]}")
        with pytest.raises(Stopped):
            train(tmp_path / "run", "resume" if count else "new")
    record = read_record(tmp_path / "run")
    assert (record["status"], record["step"], len(record["attempts"])) == ("stopped", STEPS, len(BOUNDARIES))
    assert outcome(tmp_path / "run") == uninterrupted


@pytest.mark.parametrize("at", [(step, inner) for step in range(1, STEPS + 1) for inner in range(1, INNER + 1)])
def test_a_run_killed_anywhere_goes_on_from_its_last_checkpoint_and_ends_the_same(
    tmp_path: Path, uninterrupted: dict[str, bytes], at: tuple[int, int]
) -> None:
    path = tmp_path / "run"

    def kill(run: Run, step: int, inner: int) -> None:
        if (step, inner) == at:
            with (path / "metrics.jsonl").open("ab") as file:
                file.write(b'{"step": 9')  # a torn line
            shutil.copytree(path, tmp_path / "killed")  # the folder as a SIGKILL leaves it, lock and all
            raise Kill

    with pytest.raises(Kill):
        train(path, hook=kill)
    lock = tmp_path / "killed" / "run.lock"
    lock.write_text(json.dumps({**json.loads(lock.read_text()), "pid": 2**22 + 1}))
    run = train(tmp_path / "killed", "resume")
    saved = (at[0] - 1) // 2 * 2
    assert (run.resumed.order if run.resumed else None) == ((saved, 0) if saved else None)
    assert any("starts again from its first step" in text for text in run.notices) == (saved == 0)
    assert outcome(tmp_path / "killed") == uninterrupted


def test_a_damaged_checkpoint_falls_back_and_still_ends_the_same(
    tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    path = tmp_path / "run"
    train(path, keep=2)
    record = read_record(path)
    (path / "run.json").write_text(json.dumps({**record, "status": "failed"}))
    newest = path / "checkpoints" / "step-00004" / "weights.safetensors"
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    run = train(path, "resume", keep=2)
    assert run.resumed is not None and run.resumed.order == (2, 0)
    assert any("step-00004" in text and "weights.safetensors is damaged" in text for text in run.notices)
    assert outcome(path) == uninterrupted


def test_a_resumed_run_first_undoes_what_a_crash_left_in_its_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, bytes]
) -> None:
    monkeypatch.setenv("UPSLOPE_STOP_AFTER", "3:2")
    with pytest.raises(Stopped):
        train(tmp_path / "run")
    place = tmp_path / "run" / "checkpoints"
    (place / "step-00003-002").rename(place / ".displaced-step-00003-002")  # killed between the two renames of a save
    (place / ".tmp-step-00003-002.77").mkdir()
    run = train(tmp_path / "run", "resume")
    assert run.resumed is not None and run.resumed.order == (3, 2)
    assert outcome(tmp_path / "run") == uninterrupted


def test_a_finished_run_goes_on_when_steps_are_raised(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    train(tmp_path / "run", steps=3)  # 3 is no multiple of save_every: finish saves it
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00003"]
    run = train(tmp_path / "run", "resume", steps=STEPS)
    assert run.resumed is not None and run.resumed.order == (3, 0)
    assert outcome(tmp_path / "run") == uninterrupted


def test_when_no_checkpoint_is_intact_nothing_is_thrown_away(tmp_path: Path) -> None:
    path = tmp_path / "run"
    train(path, steps=2)
    (path / "checkpoints" / "step-00002" / "manifest.json").unlink()
    metrics = (path / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"no checkpoint can be used.*manifest\.json is missing"):
        train(path, "resume", steps=3)
    assert (path / "metrics.jsonl").read_bytes() == metrics and not (path / "run.lock").exists()


def test_a_finished_run_without_checkpoints_is_not_started_over(tmp_path: Path) -> None:
    train(tmp_path / "run", save_every=0)
    assert not (tmp_path / "run" / "checkpoints").exists()
    metrics = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match="kept no checkpoint"):
        train(tmp_path / "run", "resume", save_every=0, steps=9)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics


def test_restoring_other_parts_than_were_saved_is_refused_and_frees_the_folder(tmp_path: Path) -> None:
    train(tmp_path / "run", steps=2)
    folder = RunFolder.open(tmp_path / "run", recipe(4), {}, "resume")
    with (
        pytest.raises(InputError, match="holds no critic and it holds buffer"),
        Run(folder, save_every=2) as run,
    ):
        run.attach(weights=Weights(), critic=Weights())
    assert read_record(tmp_path / "run")["status"] == "failed" and not (tmp_path / "run" / "run.lock").exists()


# ----------------------------------------------------------------------------------------------------- saving, stopping
def test_saves_at_the_end_of_every_save_every_th_step_only(tmp_path: Path) -> None:
    seen: list[list[str]] = []
    place = tmp_path / "run" / "checkpoints"

    def look(run: Run, step: int, inner: int) -> None:
        names = sorted(path.name for path in place.iterdir()) if place.exists() else []
        if not seen or seen[-1] != names:
            seen.append(names)

    train(tmp_path / "run", hook=look, keep=2, steps=5)
    assert seen == [[], ["step-00002"], ["step-00002", "step-00004"]]
    assert sorted(path.name for path in place.iterdir()) == ["step-00004", "step-00005"]
    manifest = json.loads((place / "step-00005" / "manifest.json").read_text())
    assert manifest["facts"]["versions"]["torch"] and len(manifest["facts"]["recipe_sha256"]) == 64


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)],
    ids=["int", "term", "usr1"],
)
def test_a_signal_saves_after_the_optimizer_step_in_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, bytes], number: int, code: int
) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/bin/upslope", "grpo", "my recipe.yaml", "--overwrite", "--token=abc"])

    def send(run: Run, step: int, inner: int) -> None:
        if (step, inner) == (3, 2):
            os.kill(os.getpid(), number)

    with pytest.raises(Stopped) as raised:
        train(tmp_path / "run", hook=send, save_every=0)
    assert raised.value.exit_code == code
    assert "stopped after step 3, optimizer step 2" in str(raised.value)
    assert str(raised.value).endswith("Resume: upslope grpo 'my recipe.yaml' '--token=***' --resume")
    record = read_record(tmp_path / "run")
    assert (record["status"], record["step"]) == ("stopped", 2)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00003-002"]
    assert not (tmp_path / "run" / "run.lock").exists()
    train(tmp_path / "run", "resume")
    assert outcome(tmp_path / "run") == uninterrupted


def test_a_second_interrupt_ends_the_run_at_once_as_stopped(tmp_path: Path) -> None:
    def twice(run: Run, step: int, inner: int) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", hook=twice)
    assert read_record(tmp_path / "run")["status"] == "stopped" and not (tmp_path / "run" / "run.lock").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_resume_hint_of_a_python_call_is_no_shell_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--x"])
    monkeypatch.setenv("UPSLOPE_STOP_AFTER", "1")
    with pytest.raises(Stopped, match=r"run the same call again with resume on, for .*run"):
        train(tmp_path / "run")


@pytest.mark.parametrize("text", ["x", "3:", "3:b", "-1:0", "1:2:3"])
def test_a_malformed_stop_after_is_an_input_error_and_frees_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("UPSLOPE_STOP_AFTER", text)
    with pytest.raises(InputError, match="UPSLOPE_STOP_AFTER"):
        train(tmp_path / "run")
    assert not (tmp_path / "run" / "run.lock").exists()


def full_disk(monkeypatch: pytest.MonkeyPatch, since: int, until: int = 99) -> None:
    real = checkpoint._require_space

    def check(directory: Path, states: Any) -> None:
        step = int(states["weights"].values["version"]) // INNER
        if since <= step < until:
            raise OSError(28, "No space left on device")
        real(directory, states)

    monkeypatch.setattr(checkpoint, "_require_space", check)


def test_a_full_disk_at_a_periodic_save_is_told_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, bytes]
) -> None:
    full_disk(monkeypatch, since=2, until=3)
    run = train(tmp_path / "run")
    assert len(run.notices) == 1 and "training goes on without this checkpoint" in run.notices[0]
    assert "No space left" in run.notices[0]
    assert outcome(tmp_path / "run") == uninterrupted


def test_a_full_disk_at_the_final_save_is_exit_3_with_the_older_checkpoint_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_disk(monkeypatch, since=4)
    with pytest.raises(MachineError) as raised:
        train(tmp_path / "run")
    assert raised.value.exit_code == 3
    found, _ = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert found is not None and found.order == (2, 0)
    assert read_record(tmp_path / "run")["status"] == "failed" and not (tmp_path / "run" / "run.lock").exists()


def test_a_full_disk_at_a_stop_is_exit_3_not_a_resumable_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_disk(monkeypatch, since=3)
    monkeypatch.setenv("UPSLOPE_STOP_AFTER", "3:3")
    with pytest.raises(MachineError):
        train(tmp_path / "run")
    found, _ = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert found is not None and found.order == (2, 0)


def test_run_json_that_cannot_be_written_hides_nothing_and_frees_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: RunFolder, **facts: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunFolder, "update", fail)
    monkeypatch.setenv("UPSLOPE_STOP_AFTER", "1:1")
    with pytest.raises(Stopped):
        train(tmp_path / "run")
    assert not (tmp_path / "run" / "run.lock").exists()


# --------------------------------------------------------------------------------------------------------------- status
def test_status_and_lock_after_each_way_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(run: Run, step: int, inner: int) -> None:
        if step == 3:
            assert (tmp_path / "failed" / "run.lock").exists()
            raise ZeroDivisionError

    train(tmp_path / "finished")
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "failed", hook=fail)
    monkeypatch.setenv("UPSLOPE_STOP_AFTER", "2:0")
    with pytest.raises(Stopped):
        train(tmp_path / "stopped")
    for status, step in (("finished", 4), ("failed", 2), ("stopped", 2)):
        record = read_record(tmp_path / status)
        assert (record["status"], record["step"]) == (status, step)
        assert not (tmp_path / status / "run.lock").exists()
    assert read_record(tmp_path / "finished")["summary"] == {"version": 12}


def test_attach_takes_all_parts_in_one_call(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path / "run", recipe(), {}, "new")
    with Run(folder, save_every=1) as run:
        with pytest.raises(ValueError, match="own name"):
            run.attach(metrics=Weights())
        with pytest.raises(ValueError, match="before attach"):
            run.boundary((1, 0))
        run.attach(weights=Weights())
        with pytest.raises(ValueError, match="all parts in one call"):
            run.attach(more=Weights())
    assert read_record(tmp_path / "run")["status"] == "stopped"  # finish() was not called


def test_a_run_off_the_main_thread_works(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    thread = threading.Thread(target=train, args=(tmp_path / "run",))
    thread.start()
    thread.join()
    assert outcome(tmp_path / "run") == uninterrupted


# ------------------------------------------------------------------------------------------------------------ listeners
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
