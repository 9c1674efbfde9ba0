from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from upslope.errors import InputError
from upslope.run import folder as module
from upslope.run import machine
from upslope.run.folder import ENTRIES, RunFolder, plain, read_record

RECIPE = yaml.safe_dump(
    {"train": {"steps": 200, "save_every": 10, "seed": 7}, "optim": {"lr": 1e-5, "betas": [0.9, 0.99]}, "report_to": []}
)


def edited(**changes: Any) -> str:
    recipe = yaml.safe_load(RECIPE)
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            recipe[section][name] = value
        else:
            recipe[section] = value
    return yaml.safe_dump(recipe)


def finished(path: Path, status: Any = "finished", step: int = 200) -> Path:
    RunFolder.open(path, RECIPE, {}, "new").close(status, step)
    return path


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", ""])
    child.wait()
    return child.pid


def test_a_run_that_failed_before_it_began_is_no_obstacle(tmp_path: Path) -> None:
    path = finished(tmp_path / "a", "failed", step=0)
    RunFolder.open(path, RECIPE, {}, "new").close("failed", 0)
    (path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="exists"):
        RunFolder.open(path, RECIPE, {}, "new")


# ------------------------------------------------------------------------------------------------------- what it writes
def test_a_new_run_writes_its_recipe_and_its_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["upslope", "grpo", "r.yaml", "--hub-token", "abc", "--out=x"])
    path = tmp_path / "runs" / "a run with spaces, \u00e9"
    folder = RunFolder.open(path, RECIPE, {"kind": "grpo", "nan": float("nan")}, "new")
    assert (path / "recipe.yaml").read_text() == RECIPE
    record = json.loads((path / "run.json").read_text())
    assert record["kind"] == "grpo" and record["nan"] is None
    assert record["command"] == ["upslope", "grpo", "r.yaml", "--hub-token", "***", "--out=x"]
    assert record["seed"] == 7 and record["status"] == "running" and record["step"] == 0
    assert record["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(record["versions"]) >= {"upslope", "torch", "transformers"}
    assert record["cores"] >= 1 and record["memory_bytes"] > 1e8 and record["platform"] and record["cpu"]
    assert record["started"].endswith("+00:00") and record["id"] == folder.id
    assert not folder.resuming and folder.checkpoints == path / "checkpoints"
    folder.update(step=30)
    assert read_record(path)["step"] == 30
    folder.close("finished", 200, summary={"reward": 1.0})
    record = read_record(path)
    assert (record["status"], record["step"], record["summary"]) == ("finished", 200, {"reward": 1.0})
    assert sorted(item.name for item in path.iterdir()) == ["recipe.yaml", "run.json"]


def test_git_commit_and_dirty_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert machine.describe()["git"] is None
    git("init")
    (tmp_path / "f").write_text("1")
    git("add", "f")
    git("commit", "-m", "m")
    clean = machine.describe()["git"]
    assert len(clean["commit"]) == 40 and clean["dirty"] is False
    marker = tmp_path / "marker"
    hook = tmp_path / "hook.sh"
    hook.write_text(f"#!/bin/sh\ntouch '{marker}'\n")
    hook.chmod(0o755)
    git("config", "core.fsmonitor", str(hook))
    (tmp_path / "f").write_text("2")
    assert machine.describe()["git"] == {"commit": clean["commit"], "dirty": True}
    assert not marker.exists()  # a program named by the repository was not run


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--api-key=abc"], ["--api-key=***"]),
        (["model.hub_token=abc", "x=1"], ["model.hub_token=***", "x=1"]),
        (["--password", "abc", "def"], ["--password", "***", "def"]),
        (["--token", "--resume"], ["--token", "--resume"]),
        (["note=see hf_abcdefgh12345 there"], ["note=see *** there"]),
        (["sk-abcdefgh12345678"], ["***"]),
        (["train.max_new_tokens=9", "task-risk-analysis=1"], ["train.max_new_tokens=9", "task-risk-analysis=1"]),
    ],
)
def test_secrets_on_the_command_line_are_masked(arguments: list[str], expected: list[str]) -> None:
    assert machine.masked(arguments) == expected


def test_plain_is_strict_json() -> None:
    import numpy as np

    row = {1: [float("inf"), np.float32(0.5), np.int64(3), np.array([1.0, np.nan])], "p": Path("x"), "t": (True, None)}
    assert plain(row) == {"1": [None, 0.5, 3, [1.0, None]], "p": "x", "t": [True, None]}
    json.dumps(plain(row), allow_nan=False)


# ----------------------------------------------------------------------------------------------------- existing folders
@pytest.mark.parametrize(("status", "shown"), [("finished", "finished"), ("stopped", "stopped"), ("failed", "failed")])
def test_an_existing_run_is_not_written_over(tmp_path: Path, status: str, shown: str) -> None:
    path = finished(tmp_path / "a", status)
    before = (path / "run.json").read_bytes()
    with pytest.raises(InputError) as raised:
        RunFolder.open(path, RECIPE, {}, "new")
    expected = f"{path}: exists ({shown}, step 200). Fix: use --resume, --overwrite or another name."
    assert str(raised.value) == expected and raised.value.exit_code == 2
    assert (path / "run.json").read_bytes() == before and not (path / "run.lock").exists()


def test_a_killed_run_is_called_interrupted(tmp_path: Path) -> None:
    path = tmp_path / "a"
    RunFolder.open(path, RECIPE, {}, "new").update(step=5)
    (path / "run.lock").unlink()
    with pytest.raises(InputError, match=r"exists \(interrupted, step 5\)"):
        RunFolder.open(path, RECIPE, {}, "new")
    assert RunFolder.open(path, RECIPE, {}, "resume").earlier_status == "running"


def test_an_empty_folder_is_fine(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, RECIPE, {}, "new").close("finished", 1)
    assert read_record(tmp_path)["status"] == "finished"


@pytest.mark.parametrize("mode", ["new", "overwrite", "resume"])
def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path, mode: Any) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "precious").write_text("1")
    (tmp_path / "run.json").write_text('{"scripts": {"test": "x"}}')
    with pytest.raises(InputError, match=r"not a run folder|no run here to resume"):
        RunFolder.open(tmp_path, RECIPE, {}, mode)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["model", "run.json"]
    assert (tmp_path / "model" / "precious").exists()


def test_overwrite_deletes_what_a_run_holds_and_nothing_else(tmp_path: Path) -> None:
    path = finished(tmp_path / "a")
    first = read_record(path)["id"]
    for name in ENTRIES:
        if "." not in name:
            (path / name).mkdir()
            (path / name / "old").write_text("1")
        elif not (path / name).exists():
            (path / name).write_text("old")
    (path / "notes.txt").write_text("mine")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("1")
    (path / "model" / "old").unlink()
    (path / "model").rmdir()
    (path / "model").symlink_to(outside)
    folder = RunFolder.open(path, edited(optim__lr=1.0), {}, "overwrite")
    assert sorted(item.name for item in path.iterdir()) == ["notes.txt", "recipe.yaml", "run.json", "run.lock"]
    assert (outside / "precious").exists()
    assert folder.id != first and not folder.resuming and read_record(path)["step"] == 0


@pytest.mark.parametrize("mode", ["new", "overwrite", "resume"])
def test_a_file_in_the_way(tmp_path: Path, mode: Any) -> None:
    (tmp_path / "f").write_text("x")
    for path in (tmp_path / "f", tmp_path / "f" / "below"):
        with pytest.raises(InputError, match=r"f is a file\. Fix"):
            RunFolder.open(path, RECIPE, {}, mode)
    assert (tmp_path / "f").read_text() == "x"


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, data: bytes, sync: bool = True) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "replace_file", refuse)
    with pytest.raises(InputError, match=r"cannot be written \(Permission denied\)"):
        RunFolder.open(tmp_path / "a", RECIPE, {}, "new")
    monkeypatch.undo()
    with pytest.raises(InputError, match="cannot be written"):
        RunFolder.open(tmp_path / ("x" * 300), RECIPE, {}, "new")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="Permission denied"):
        RunFolder.open(tmp_path / "a", RECIPE, {}, "new")


def test_a_disk_that_fills_up_while_opening_gives_the_lock_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.replace_file

    def full(path: Path, data: bytes, sync: bool = True) -> None:
        if path.name == "recipe.yaml":
            raise OSError(28, "No space left on device")
        real(path, data, sync)

    monkeypatch.setattr(module, "replace_file", full)
    with pytest.raises(InputError, match="No space left"):
        RunFolder.open(tmp_path / "a", RECIPE, {}, "new")
    assert not (tmp_path / "a" / "run.lock").exists()


def test_replace_file_keeps_the_old_content_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "f"
    module.replace_file(file, b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        module.replace_file(file, b"new")
    assert file.read_bytes() == b"old" and [item.name for item in tmp_path.iterdir()] == ["f"]


# ------------------------------------------------------------------------------------------------------------- the lock
@pytest.mark.parametrize("mode", ["new", "overwrite", "resume"])
def test_a_folder_in_use_is_refused_with_pid_and_host(tmp_path: Path, mode: Any) -> None:
    folder = RunFolder.open(tmp_path / "a", RECIPE, {}, "new")
    with pytest.raises(InputError, match=f"in use by pid {os.getpid()} on host {socket.gethostname()}"):
        RunFolder.open(tmp_path / "a", RECIPE, {}, mode)
    folder.close("stopped", 3)
    RunFolder.open(tmp_path / "a", RECIPE, {}, "resume").close("stopped", 3)


def lock(path: Path, **changes: Any) -> None:
    (path / "run.lock").write_text(json.dumps({**machine.me(), **changes}))


def test_a_lock_of_a_dead_process_on_this_host_is_taken_over(tmp_path: Path) -> None:
    path = finished(tmp_path / "a", "failed")
    lock(path, pid=dead_pid())
    RunFolder.open(path, RECIPE, {}, "resume")
    assert json.loads((path / "run.lock").read_text()) == machine.me()


def test_a_lock_whose_pid_is_now_another_process_is_taken_over(tmp_path: Path) -> None:
    path = finished(tmp_path / "a", "failed")
    if machine.me()["start"] is None:
        pytest.skip("this system does not tell when a process began")
    lock(path, start="1")
    RunFolder.open(path, RECIPE, {}, "resume").close("stopped", 1)


def test_a_lock_of_a_killed_child_that_nobody_waited_for_is_taken_over(tmp_path: Path) -> None:
    path = finished(tmp_path / "a", "failed")
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # it has ended and stays a zombie
    try:
        lock(path, pid=child, start=None)
        RunFolder.open(path, RECIPE, {}, "resume").close("stopped", 1)
    finally:
        os.waitpid(child, 0)


@pytest.mark.parametrize("content", ['{"pid": 1, "host": "elsewhere"}', "torn"])
def test_a_lock_of_another_host_or_one_that_cannot_be_read_is_respected(tmp_path: Path, content: str) -> None:
    path = finished(tmp_path / "a")
    (path / "run.lock").write_text(content)
    with pytest.raises(InputError, match=r"in use by pid .* on host .*run\.lock"):
        RunFolder.open(path, RECIPE, {}, "resume")
    assert (path / "run.lock").read_text() == content


def test_of_many_processes_that_find_a_stale_lock_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = machine.is_dead

    def slow(holder: dict[str, Any]) -> bool:
        dead = real(holder)
        time.sleep(0.02)  # so that all of them would have looked before the first one acts
        return dead

    monkeypatch.setattr(machine, "is_dead", slow)
    path = finished(tmp_path / "a", "failed")
    lock(path, pid=dead_pid())
    go, told, counted = os.pipe(), os.pipe(), os.pipe()
    children = []
    for _ in range(8):
        child = os.fork()
        if child == 0:
            try:
                os.close(counted[1])
                os.read(go[0], 1)
                try:
                    module._lock(path)
                    os.write(told[1], b"w")
                except InputError:
                    os.write(told[1], b"l")
                except BaseException:
                    os.write(told[1], b"e")
                os.read(counted[0], 1)  # alive until all have tried: a dead winner's lock may be taken
            finally:
                os._exit(0)
        children.append(child)
    os.close(told[1])
    os.write(go[1], b"12345678")
    results = b"".join(os.read(told[0], 1) for _ in children)
    os.close(counted[1])
    for child in children:
        os.waitpid(child, 0)
    for handle in (*go, told[0], counted[0]):
        os.close(handle)
    assert sorted(results) == sorted(b"wlllllll")


# --------------------------------------------------------------------------------------------------------------- resume
def test_resume_keeps_identity_and_history(tmp_path: Path) -> None:
    path = finished(tmp_path / "a", "stopped", 20)
    first = read_record(path)
    text = edited(train__steps=400, train__save_every=5, report_to=["tensorboard"])
    folder = RunFolder.open(path, text, {}, "resume")
    record = read_record(path)
    assert folder.resuming and folder.earlier_status == "stopped" and folder.notices == ()
    assert (record["id"], record["started"]) == (first["id"], first["started"])
    assert len(record["attempts"]) == 2 and record["status"] == "running" and record["step"] == 20
    assert "ended" not in record and (path / "recipe.yaml").read_text() == text


def test_resume_with_another_recipe_shows_what_differs(tmp_path: Path) -> None:
    path = finished(tmp_path / "a", "stopped", 20)
    text = edited(optim__lr=3e-4, optim__betas=[0.9, 0.95], optim__wd=0.1, train__steps=300)
    with pytest.raises(InputError) as raised:
        RunFolder.open(path, text, {}, "resume")
    lines = str(raised.value).splitlines()
    assert [line.split(maxsplit=1) for line in lines[1:5]] == [
        ["key", "old          new"],
        ["optim.betas", "[0.9, 0.99]  [0.9, 0.95]"],
        ["optim.lr", "1e-05        0.0003"],
        ["optim.wd", "(absent)     0.1"],
    ]
    assert "--allow-change optim.betas --allow-change optim.lr --allow-change optim.wd" in lines[-1]
    assert "train.steps" not in str(raised.value)
    assert (path / "recipe.yaml").read_text() == RECIPE and not (path / "run.lock").exists()
    with pytest.raises(InputError, match=r"optim\.wd"):
        RunFolder.open(path, text, {}, "resume", allow_change=["optim.lr", "optim.betas"])
    RunFolder.open(path, text, {}, "resume", allow_change=["optim"]).close("stopped", 20)


def test_allowing_one_key_does_not_allow_another_that_begins_alike(tmp_path: Path) -> None:
    path = finished(tmp_path / "a", "stopped", 20)
    with pytest.raises(InputError, match=r"train\.steps_per_epoch"):
        RunFolder.open(path, edited(train__steps_per_epoch=3), {}, "resume")


def test_resume_of_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such run to resume"):
        RunFolder.open(tmp_path / "a", RECIPE, {}, "resume")
    assert not (tmp_path / "a").exists()


def test_resume_of_a_finished_run_asks_for_more_steps(tmp_path: Path) -> None:
    path = finished(tmp_path / "a")
    with pytest.raises(InputError, match=r"finished: it is at step 200 of 200\. Fix: raise train\.steps"):
        RunFolder.open(path, RECIPE, {}, "resume")
    RunFolder.open(path, edited(train__steps=201), {}, "resume").close("stopped", 200)


def test_resume_with_an_unreadable_recipe(tmp_path: Path) -> None:
    path = finished(tmp_path / "a", "stopped")
    (path / "recipe.yaml").write_text("a: [")
    with pytest.raises(InputError, match=r"recipe\.yaml.*cannot be read"):
        RunFolder.open(path, RECIPE, {}, "resume")


def test_resume_under_other_versions_is_told(tmp_path: Path) -> None:
    path = finished(tmp_path / "a", "stopped")
    record = read_record(path)
    record["versions"]["torch"] = "1.0"
    (path / "run.json").write_text(json.dumps(record))
    folder = RunFolder.open(path, RECIPE, {}, "resume")
    assert len(folder.notices) == 1 and "torch 1.0 -> " in folder.notices[0]
