"""Runs that are stopped, killed or damaged and go on the same; what is saved when, and how a run ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.run.session_support import INNER, STEPS, Weights, known_surroundings, outcome, recipe, train, uninterrupted
from upslope.errors import InputError, MachineError, Stopped
from upslope.run import checkpoint
from upslope.run.folder import RunFolder, read_record
from upslope.run.session import Run

__all__ = ["known_surroundings", "uninterrupted"]
BOUNDARIES = [(step, inner) for step in range(1, STEPS + 1) for inner in (*range(1, INNER + 1), 0)]


class Kill(BaseException):
    """Ends the loop where a SIGKILL would: whatever was written since the last checkpoint is still in the folder."""


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
