"""Bad inputs in processes of their own: what comes before torch, what the shell sees, a disk that is really full."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from tests.inputs import bad_recipes, bad_rewards, bad_rows
from tests.inputs.desk import Desk, desk, models
from tests.inputs.table import Bad

__all__ = ["desk", "models"]
NEEDS_TOKENIZER = {"answer_beyond_the_context", "answer_longer_than_the_context", "prompt_beyond_context"}
WITHOUT_TORCH = {
    "missing_file", "text_file", "some_folder", "pipe", "empty_data", "missing_column", "misspelt_mapping",
    "prompts_for_sft", "preferences_for_grpo", "bad_json_line", "long_number", "ragged_csv", "null_prompt",
    "number_prompt", "unknown_role", "two_users", "answered_prompt", "empty_message", "share_gpt", "empty_completion",
    "lone_surrogate", "latin_rows", "no_such_function", "no_such_file", "no_function", "not_python", "no_such_builtin",
}  # fmt: skip
EARLY: list[Bad] = [row for row in bad_recipes.ALL if row.code == 2 and row.make.__name__ not in NEEDS_TOKENIZER]
EARLY += [row for row in [*bad_rows.ALL, *bad_rewards.ALL] if row.make.__name__ in WITHOUT_TORCH]
RUN_ALL = """
import json, os, sys, time
from upslope import cli
for folder, arguments in json.load(sys.stdin):
    os.chdir(folder)
    sys.argv = ["upslope", *arguments]
    begun = time.perf_counter()
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code
    print(json.dumps([os.path.basename(folder), code, time.perf_counter() - begun]))
print(json.dumps(sorted({"torch", "transformers", "datasets"} & set(sys.modules))))
"""


def fresh(code: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, **more
    )


def upslope(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "upslope", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **more)


def test_recipe_rows_and_reward_are_checked_before_torch_is_imported(
    tmp_path: Path, models: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = []
    for row in EARLY:
        folder = tmp_path / row.make.__name__
        folder.mkdir()
        place = Desk(folder, models, capsys, monkeypatch)
        row.make(place)
        place.write()
        tasks.append((str(folder), row.command.split()))
    assert len(tasks) >= 45
    done = fresh(RUN_ALL, input=json.dumps(tasks))
    *told, heavy = [json.loads(line) for line in done.stdout.splitlines()]
    assert heavy == []
    assert {name: code for name, code, _ in told} == {row.make.__name__: 2 for row in EARLY}
    slow = {name: seconds for name, _, seconds in told if seconds > 1.0}
    assert not slow  # hundredths of a second each, once the process stands


def test_the_shell_sees_the_exit_code_and_one_line_on_stderr(desk: Desk) -> None:
    desk.recipe["grpo"]["bassline"] = "mean"
    desk.write()
    begun = time.monotonic()
    done = upslope("grpo", "recipe.yaml", cwd=desk.folder)
    assert time.monotonic() - begun < 20
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: recipe.yaml:") and "Fix: write grpo.baseline." in line


def test_offline_is_said_for_real(desk: Desk) -> None:
    desk.recipe["data"]["path"] = "org/rows"
    desk.write()
    place = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(desk.folder / "cache")}
    done = upslope("grpo", "recipe.yaml", cwd=desk.folder, env=place)
    assert done.returncode == 2, done.stderr
    assert "org/rows: the hub cannot be reached and it is not in the cache" in done.stderr
    assert "unset HF_HUB_OFFLINE" in done.stderr and "Traceback" not in done.stderr


def mounts() -> bool:
    """Whether a process may have a small disk of its own, as most Linux users may."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not mounts(), reason="this system lets no user mount a small disk (unshare -Urm)")
@pytest.mark.parametrize(("room", "says"), [
    ("200k", "out/model: the model could not be saved"), ("64k", "out"),
], ids=["enough for the log", "not even for the log"])  # fmt: skip
def test_a_disk_that_is_full(desk: Desk, room: str, says: str) -> None:
    """Numbers of steps fit, the model does not: exit 3, in words, and what was written stays."""
    place = desk.folder / "disk"
    place.mkdir()
    desk.recipe["out"] = "disk/out"
    desk.recipe["model"]["name"] = str(desk.folder / "big")
    from tests import tiny

    tiny.directory(desk.folder / "big", hidden_size=64, num_attention_heads=8)
    desk.write()
    script = f"mount -t tmpfs -o size={room} tmpfs {place} && {sys.executable} -m upslope grpo recipe.yaml; code=$?; "
    script += f"cp -r {place}/out {desk.folder}/kept; exit $code"
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script], capture_output=True, text=True, timeout=120, check=False,
        cwd=desk.folder,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert says in done.stderr and "Fix: free some space" in done.stderr and "Traceback" not in done.stderr
    record = json.loads((desk.folder / "kept" / "run.json").read_text())
    assert record["status"] in ("failed", "running")


def test_a_reader_that_leaves_is_no_bug(desk: Desk) -> None:
    code = "import sys; sys.argv = ['upslope', 'schema']; from upslope import cli; cli.main()"
    script = f"{sys.executable} -c {json.dumps(code)} | (exec <&-; sleep 5); echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert "bug" not in done.stderr and "Traceback" not in done.stderr
    assert done.stdout.split()[-1] == "1"  # as click has it: not all was printed


def test_a_terminal_of_ascii_is_served(desk: Desk) -> None:
    """The locale C, where Python cannot print what is not ASCII unless it is told how."""
    place = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "200"}
    name = "r\u00e9cipe.yaml"
    (desk.folder / name).write_text(
        textwrap.dedent("""\
        data: rows.jsonl
        reward: rewards.py:score
        modell: x
        """)
    )
    done = subprocess.run(
        [sys.executable, "-m", "upslope", "grpo", name], capture_output=True, timeout=60, check=False, cwd=desk.folder,
        env=place,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert b"modell: unknown key" in done.stderr and b"Traceback" not in done.stderr
