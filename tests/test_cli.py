"""The command line: commands, exit codes, signals, and messages whose fix works."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import tiny
from tests.recipes.support import one_thread
from upslope import cli

__all__ = ["one_thread"]
REWARD = "def score(prompts, completions, **columns):\n    return [len(set(str(text))) / 9 for text in completions]\n"


class Desk:
    """A folder with rows, a reward, models and a recipe, as a user has one; ``upslope`` runs the command line in it."""

    def __init__(self, folder: Path, models: Path, capsys: Any, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.capsys, self.patch = folder, capsys, patch
        self.recipe: dict[str, Any] = {
            "model": {"name": str(models / "chat"), "dtype": "float32"}, "device": "cpu",
            "data": {"path": "rows.jsonl"},
            "reward": "rewards.py:score", "sampling": {"max_new_tokens": 4}, "out": "out",
            "train": {"steps": 1, "prompts": 2, "eval_prompts": 0}, "grpo": {"group": 2},
        }  # fmt: skip
        self.models = models
        self.rows([{"prompt": f"say {n}", "answer": str(n)} for n in range(8)])
        (folder / "rewards.py").write_text(REWARD)
        patch.chdir(folder)

    def rows(self, rows: list[Any], name: str = "rows.jsonl") -> None:
        (self.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def upslope(self, *arguments: str) -> tuple[int, str, str]:
        """(exit code, stdout, stderr) of the command, in this process."""
        self.patch.setattr(sys, "argv", ["upslope", *arguments])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = self.capsys.readouterr()
        return code, out, err

    def train(self, *arguments: str) -> tuple[int, str, str]:
        (self.folder / "recipe.yaml").write_text(yaml.safe_dump(self.recipe))
        return self.upslope("grpo", "recipe.yaml", *arguments)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny.directory(root / "chat")
    tiny.directory(root / "plain", chat=False)
    return root


@pytest.fixture
def desk(tmp_path: Path, models: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("COLUMNS", "500")
    return Desk(tmp_path, models, capsys, monkeypatch)


# ---------------------------------------------------------------------------------------------------------- bad inputs
Fix = Callable[[Desk, str], list[str]]
"""Applies what the message says; returns further arguments for the command."""


def suggested(pattern: str, message: str) -> str:
    found = re.search(pattern, message)
    assert found, f"no fix of the form {pattern} in: {message}"
    return found.group(1)


def unknown_key(desk: Desk) -> Fix:
    desk.recipe["grpo"]["bassline"] = "mean"
    return lambda desk, said: (
        desk.recipe["grpo"].update({suggested(r"Fix: write grpo\.(\w+)", said): desk.recipe["grpo"].pop("bassline")}),
        [],
    )[1]


def negative_rate(desk: Desk) -> Fix:
    desk.recipe["optim"] = {"lr": -1e-5}
    return lambda desk, said: [f"optim.lr={float(suggested(r'(?:above|greater than|>) ?(0)', said)) + 1e-5}"]


def missing_column(desk: Desk) -> Fix:
    desk.rows([{"question": f"say {n}"} for n in range(8)])
    return lambda desk, said: [suggested(r"map it: (data\.columns\.prompt: question)", said).replace(": ", "=")]


def missing_file(desk: Desk) -> Fix:
    desk.recipe["data"]["path"] = "row.jsonl"
    return lambda desk, said: [f"data.path={suggested(r'did you mean ([^ ?]*rows.jsonl)', said)}"]


def empty_data(desk: Desk) -> Fix:
    desk.rows([])
    return lambda desk, said: (
        suggested(r"(give a source with rows)", said),
        desk.rows([{"prompt": f"say {n}"} for n in range(8)]),
        [],
    )[2]


def no_chat_template(desk: Desk) -> Fix:
    desk.rows([{"prompt": [{"role": "user", "content": f"say {n}"}]} for n in range(8)])
    desk.recipe["model"]["name"] = str(desk.models / "plain")
    return lambda desk, said: [suggested(r"set (model\.chat_template: chatml)", said).replace(": ", "=")]


def group_of_one(desk: Desk) -> Fix:
    desk.recipe["grpo"]["group"] = 1
    return lambda desk, said: [f"grpo.group={suggested(r'at least (2)', said)}"]


def prompt_beyond_context(desk: Desk) -> Fix:
    desk.rows([{"prompt": f"say {n}" + "!" * (200 * (n in (2, 3, 4)))} for n in range(8)])
    return lambda desk, said: [suggested(r"set (data\.too_long: drop)", said).replace(": ", "=")]


def reward_raises(desk: Desk) -> Fix:
    (desk.folder / "rewards.py").write_text(REWARD.replace("len(set(str(text))) / 9", "1 / 0"))

    def mend(desk: Desk, said: str) -> list[str]:
        line = int(suggested(r"at rewards\.py:(\d+)", said)) - 1
        text = (desk.folder / "rewards.py").read_text().splitlines()
        assert "1 / 0" in text[line] and "ZeroDivisionError" in said
        (desk.folder / "rewards.py").write_text(REWARD)
        return []

    return mend


def folder_in_use(desk: Desk) -> Fix:
    assert desk.train()[0] == 0
    return lambda desk, said: [suggested(r"(--overwrite)", said)]


BAD = [unknown_key, negative_rate, missing_column, missing_file, empty_data, no_chat_template, group_of_one,
       prompt_beyond_context, reward_raises, folder_in_use]  # fmt: skip
NAMES = ["grpo.bassline", "optim.lr", "rows.jsonl", "row.jsonl", "rows.jsonl", "model.chat_template", "grpo.group",
         "data.path", "rewards.py", "out"]  # fmt: skip


@pytest.mark.parametrize(("spoil", "where"), zip(BAD, NAMES, strict=True), ids=[spoil.__name__ for spoil in BAD])
def test_a_bad_input_is_named_and_its_fix_works(desk: Desk, spoil: Callable[[Desk], Fix], where: str) -> None:
    mend = spoil(desk)
    code, _, said = desk.train()
    assert code == 2
    assert where in said and "Fix: " in said and re.search(r"^error: ", said.replace("\r", "\n"), re.MULTILINE)
    assert "Traceback" not in said and str(tiny.__file__) not in said
    extra = mend(desk, said)
    code, _, said = desk.train(*extra)
    if code == 2 and "--overwrite" in said:  # the failed attempt left its folder; the message says what to do
        code, _, said = desk.train(*extra, "--overwrite")
    assert code == 0, said
    assert (desk.folder / "out" / "model" / "model.safetensors").is_file()


# ------------------------------------------------------------------------------------------------------------ commands
COMMANDS = [
    "check",
    "init",
    "doctor",
    "watch",
    "rollouts",
    "schema",
    "sft",
    "ppo",
    "grpo",
    "eval",
    "chat",
    "report",
    "grid",
    "demo",
]


def test_help_lists_every_command(desk: Desk) -> None:
    code, out, _ = desk.upslope("--help")
    assert code == 0 and all(re.search(rf"^\W*{name}\b", out, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(desk: Desk, command: str) -> None:
    code, out, _ = desk.upslope(command, "--help")
    assert code == 0 and "Usage: " in out and len(out.splitlines()) > 4


@pytest.mark.parametrize(
    "arguments",
    [["gprpo", "recipe.yaml"], ["eval"], ["eval", "m", "--taks", "arithmetic"], ["chat", "m", "--seed", "minus"],
     ["eval", "m"], ["eval", "m", "--task", "arithmetic", "--data", "rows.jsonl"], ["grpo", "nowhere.yaml"],
     ["grpo", "recipe.yaml", "--resume", "--overwrite"], ["report", "nowhere"], ["chat", "nowhere"]],
    ids=" ".join,
)  # fmt: skip
def test_a_wrong_command_or_option_is_the_users_input(desk: Desk, arguments: list[str]) -> None:
    (desk.folder / "recipe.yaml").write_text(yaml.safe_dump(desk.recipe))
    code, _, err = desk.upslope(*arguments)
    assert code == 2
    assert "error: " in err and "Fix: " in err and "Traceback" not in err


def test_no_command_shows_the_help(desk: Desk) -> None:
    code, out, err = desk.upslope()
    assert code in (0, 2) and "grpo" in out + err and "Traceback" not in err


def test_training_prints_where_model_and_report_are(desk: Desk) -> None:
    code, out, _ = desk.train("train.steps=2", "--grpo.group", "3")
    assert code == 0
    assert re.search(r"^model +out/model$", out, re.MULTILINE) and re.search(
        r"^report +out/report\.html$", out, re.MULTILINE
    )
    assert yaml.safe_load((desk.folder / "out" / "recipe.yaml").read_text())["grpo"]["group"] == 3
    os.remove(desk.folder / "out" / "report.html")
    code, out, _ = desk.upslope("report", "out")
    assert code == 0 and (desk.folder / "out" / "report.html").is_file() and "report.html" in out


def test_eval_scores_and_shows_answers(desk: Desk) -> None:
    arguments = [
        "--data",
        "rows.jsonl",
        "--reward",
        "rewards.py:score",
        "--split",
        "all",
        "--max-new-tokens",
        "5",
        "--device",
        "cpu",
    ]
    code, out, err = desk.upslope("eval", str(desk.models / "chat"), *arguments, "--show", "2")
    assert code == 0, err
    assert "greedy" in out and "sampled" in out and "say " in out


def test_chat_answers_lines_until_an_empty_one(desk: Desk) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "upslope", "chat", str(desk.models / "chat"), "--max-new-tokens", "6",
         "--device", "cpu"],
        input="say 7\nagain\n\nnever read\n", capture_output=True, text=True, timeout=120, cwd=desk.folder, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("you") == 3 and "Traceback" not in done.stderr


def test_debug_shows_the_traceback_and_keeps_the_exit_code(desk: Desk) -> None:
    desk.recipe["grpo"]["group"] = 1
    assert "Traceback" not in desk.train()[2]
    code, _, err = desk.train("--debug")
    assert code == 2 and "Traceback (most recent call last)" in err and "InputError" in err


def test_a_bug_of_ours_is_exit_1_and_leaves_its_traceback_in_a_file(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    from upslope.rollout.sampler import InProcessSampler

    monkeypatch.setattr(InProcessSampler, "load", lambda *arguments: 1 / 0)
    code, _, err = desk.train()
    assert code == 1 and "bug in upslope" in err and "Traceback" not in err
    file = Path(suggested(r"report it with (\S+\.txt)", err))
    assert "ZeroDivisionError" in file.read_text()
    file.unlink()


# ------------------------------------------------------------------------------------------------------------- signals
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_resumably(desk: Desk, number: signal.Signals, code: int) -> None:
    desk.recipe["train"] |= {"steps": 4000}
    desk.recipe["optim"] = {"lr": 1e-6}
    (desk.folder / "recipe.yaml").write_text(yaml.safe_dump(desk.recipe))
    command = [sys.executable, "-m", "upslope", "grpo", "recipe.yaml"]
    # A shell's background job inherits an ignored SIGINT, and so would the run, which respects it as under nohup.
    heard = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=desk.folder, preexec_fn=heard, **pipes)
    metrics = desk.folder / "out" / "metrics.jsonl"
    until = time.monotonic() + 100
    while (not metrics.is_file() or len(metrics.read_text().splitlines()) < 3) and time.monotonic() < until:
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()[1]
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Resume: upslope grpo recipe.yaml --resume" in err and "Traceback" not in err
    done = len(metrics.read_text().splitlines()) - 1
    assert json.loads((desk.folder / "out" / "run.json").read_text())["status"] == "stopped"
    again, _, said = desk.train("--resume", f"train.steps={done + 1}")
    assert again == 0, said
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == list(range(done + 2))
