"""`upslope watch`: a run followed from its files, while they grow, when it ends, is resumed or killed."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.views.conftest import HOSTILE
from upslope.errors import InputError
from upslope.run import machine
from upslope.views.watch import Follower, Tail, watch

MakeRun = Callable[..., Path]
NOW = 1_790_000_000.0


class Run:
    """A run folder that is written step by step, as a training command does it."""

    def __init__(self, folder: Path, steps: int = 5, holder: dict[str, Any] | None = None) -> None:
        self.folder, self.steps = folder, steps
        (folder / "rollouts").mkdir(parents=True)
        (folder / "run.lock").write_text(json.dumps(holder or machine.me()))
        self.status("running")

    def status(self, status: str, **more: Any) -> None:
        begun = datetime.fromtimestamp(NOW - 100, UTC).isoformat()
        facts = {"recipe": "grpo", "model": "m", "device": "cpu", "steps": self.steps, "status": status, **more}
        (self.folder / "run.json").write_text(json.dumps({**facts, "attempts": [{"started": begun}]}))

    def step(self, number: int, reward: float, seconds: float = 10.0, **metrics: Any) -> None:
        self.line("timings.jsonl", {"step": number, "time/step": seconds, "time/sampling": seconds / 2})
        self.line("metrics.jsonl", {"step": number, "reward": reward, "kl": 0.01, **metrics})

    def line(self, name: str, row: dict[str, Any], end: str = "\n") -> None:
        with (self.folder / name).open("a") as file:
            file.write(json.dumps(row) + end)
        os.utime(self.folder / name, (NOW, NOW))

    def sample(self, step: int, completion: str) -> None:
        row = {"prompt": "P", "completion": completion, "reward": 0.5}
        (self.folder / "rollouts" / f"step-{step:05d}.jsonl").write_text(json.dumps(row) + "\n")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "live")


def follower(run: Run) -> Follower:
    return Follower(run.folder, clock=lambda: NOW)


# ---------------------------------------------------------------------------------------------------------------- files
def test_a_line_counts_when_it_is_whole(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "metrics.jsonl")
    assert tail.rows() == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2')
    assert tail.rows() == [{"step": 1}]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('}\nnot json\n[1]\n{"no": "step"}\n')
    assert tail.rows() == [{"step": 2}] and tail.rows() == [] and not tail.cut
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    assert tail.rows() == [{"step": 1}] and tail.cut


def test_each_step_is_told_once(run: Run) -> None:
    found = follower(run)
    assert found.look() == []
    run.step(1, 0.25)
    run.step(2, 0.75)
    lines = found.look()
    assert [line.split()[1] for line in lines] == ["1/5", "2/5"] and "reward  0.750" in lines[1]
    assert found.look() == []


def test_times_are_the_runs_own(run: Run) -> None:
    found = follower(run)
    for number in (1, 2):
        run.step(number, 0.5, seconds=10.0 + 10 * number)
    found.look()
    progress = found.progress
    assert progress.elapsed == pytest.approx(100.0)  # since the attempt began
    assert progress.left == pytest.approx(3 * 25.0)  # three steps of (20 + 30) / 2 seconds; the last one ended now
    assert progress.phase is not None and progress.phase.step == 3


def test_the_newest_sample_is_shown(run: Run) -> None:
    found = follower(run)
    run.sample(1, "old")
    run.sample(2, "new")
    run.step(2, 0.5)
    found.look()
    assert found.progress.sample is not None
    assert (found.progress.sample.step, found.progress.sample.completion) == (2, "new")


def test_health_is_said_once_in_full(run: Run) -> None:
    found = follower(run)
    dead = {"frac_reward_zero_std": 1.0, "groups": 4.0}
    for number in (1, 2):
        run.step(number, 0.0, **dead)
    first, second = found.look()
    assert "4/4 groups have equal rewards" in first
    assert "! (equal groups)" in second and "4/4" not in second


def test_a_resumed_run_begins_again_where_it_was_cut_back(run: Run) -> None:
    found = follower(run)
    for number in (1, 2, 3):
        run.step(number, number / 10)
    found.look()
    for name in ("metrics.jsonl", "timings.jsonl"):
        lines = (run.folder / name).read_text().splitlines(keepends=True)
        (run.folder / name).write_text(lines[0])
    found.look()
    assert [row["step"] for row in found.progress.history] == [1]
    run.step(2, 0.9)
    assert ["2/5" in line for line in found.look()] == [True] and found.progress.now("reward") == 0.9


@pytest.mark.parametrize("status", ["finished", "stopped", "failed"])
def test_the_end_is_the_runs_own_word(run: Run, status: str) -> None:
    found = follower(run)
    run.step(1, 0.5)
    run.status(status, ended=datetime.fromtimestamp(NOW - 40, UTC).isoformat())
    found.look()
    assert found.ended and found.progress.summary == {"status": status, "folder": str(run.folder)}
    assert found.progress.elapsed == pytest.approx(60.0)


def test_a_run_whose_process_is_gone_was_killed(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    holder = {**machine.me(), "pid": child.pid, "start": "1"}
    found = follower(Run(tmp_path / "dead", holder=holder))
    found.look()
    assert found.ended and found.status == "killed"
    other = follower(Run(tmp_path / "elsewhere", holder={**holder, "host": "another-machine"}))
    other.look()
    assert not other.ended


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        watch(tmp_path / "nothing", Console(file=io.StringIO()))


# --------------------------------------------------------------------------------------------------------------- output
def output(run: Path, terminal: bool, width: int = 100, **options: Any) -> str:
    file = io.StringIO()
    console = Console(
        file=file, width=width, height=40, force_terminal=terminal, color_system=None, legacy_windows=False
    )
    watch(run, console, clock=lambda: NOW, **options)
    return file.getvalue()


def test_in_a_log_one_line_a_step_until_the_end(run: Run) -> None:
    run.step(1, 0.25)
    looked = []

    def sleep(seconds: float) -> None:
        looked.append(seconds)
        run.step(len(looked) + 1, 0.5)
        if len(looked) == 2:
            run.status("finished", ended=datetime.fromtimestamp(NOW, UTC).isoformat())

    lines = output(run.folder, terminal=False, sleep=sleep).splitlines()
    assert [line.split()[1] for line in lines[:3]] == ["1/5", "2/5", "3/5"] and len(lines) == 4
    assert lines[3].startswith("finished at step 3 of 5, in 1:40, reward 0.500")


def test_once_says_how_it_stands(run: Run) -> None:
    run.step(1, 0.25)
    assert output(run.folder, terminal=False, once=True).count("\n") == 1
    panel = output(run.folder, terminal=True, once=True)
    assert "step 1/5" in panel and re.search(r"reward +0\.250", panel) and "nothing wrong" in panel


def test_ctrl_c_leaves_the_run_alone(run: Run) -> None:
    def sleep(seconds: float) -> None:
        raise KeyboardInterrupt

    before = {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()}
    out = output(run.folder, terminal=False, sleep=sleep)
    assert out == f"no longer watching {run.folder}; the run goes on\n"
    assert {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()} == before


def test_hostile_samples_and_facts_are_shown_as_text(run: Run) -> None:
    run.status("running", run=HOSTILE, model=HOSTILE)
    run.sample(1, HOSTILE)
    run.step(1, 0.5)
    for width in (40, 100):
        panel = output(run.folder, terminal=True, width=width, once=True)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", panel))
        assert max(map(len, panel.splitlines())) <= width


@pytest.mark.parametrize("kind", ["grpo", "ppo", "sft"])
def test_a_finished_run_of_every_kind(make_run: MakeRun, kind: str) -> None:
    lines = output(make_run(kind, steps=12), terminal=False).splitlines()
    assert len(lines) == 13 and lines[-1].startswith("finished at step 12 of 12, in 4:00")


def test_the_command_follows_a_process_and_is_ended_by_sigint(run: Run) -> None:
    run.step(1, 0.25)
    command = [sys.executable, "-m", "upslope", "watch", str(run.folder)]
    heard = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    assert watching.stdout is not None
    assert "step 1/5" in watching.stdout.readline()
    run.step(2, 0.75)
    assert "step 2/5" in watching.stdout.readline()
    time.sleep(0.1)
    watching.send_signal(signal.SIGINT)
    out, err = watching.communicate(timeout=60)
    assert watching.returncode == 0 and "the run goes on" in out and err == ""
