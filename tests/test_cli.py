"""The command line: commands, exit codes, signals. What is said of bad inputs is in ``tests/inputs``."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests import talk_support as talk
from tests import tools_for_tests
from tests.inputs.desk import Desk, desk, models, suggested
from tests.recipes.support import one_thread
from upslope.cli import app
from upslope.recipes.configs import RECIPES

__all__ = ["Desk", "desk", "models", "one_thread"]


# ------------------------------------------------------------------------------------------------------------ commands
COMMANDS = sorted(command.name or command.callback.__name__ for command in app.registered_commands if command.callback)


def test_help_lists_every_command(desk: Desk) -> None:
    code, out, _ = desk.upslope("--help")
    assert code == 0 and all(re.search(rf"^\W*{name}\b", out, re.MULTILINE) for name in COMMANDS)
    assert len(COMMANDS) >= 18 and {*RECIPES, "pairs", "eval", "certify"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(desk: Desk, command: str) -> None:
    code, out, _ = desk.upslope(command, "--help")
    assert code == 0 and "Usage: " in out and len(out.splitlines()) > 4


@pytest.mark.parametrize(
    "arguments",
    [["gprpo", "recipe.yaml"], ["eval"], ["eval", "m", "--taks", "arithmetic"], ["chat", "m", "--seed", "minus"],
     ["eval", "m"], ["eval", "m", "--task", "arithmetic", "--data", "rows.jsonl"], ["pairs", "m", "p.jsonl"],
     ["pairs", "m", "--task", "arithmetic"], ["grpo", "nowhere.yaml"],
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
    arguments[arguments.index("--split") : arguments.index("--split") + 2] = ["--heldout", "3"]
    code, out, err = desk.upslope("eval", str(desk.models / "chat"), *arguments)
    assert code == 0 and re.findall(r"^(?:greedy|sampled) .* (\d+)$", out, re.MULTILINE) == ["3", "3"], out + err


@pytest.mark.parametrize(
    ("rewards", "wanted"),
    [(["{builtin: length, target: 4}"], lambda size, kinds: size),
     (["[rewards.py:score, {builtin: length, target: 4, weight: 0.5}]"], lambda size, kinds: kinds + 0.5 * size),
     (["rewards.py:score", "{builtin: length, target: 4, weight: 2}"], lambda size, kinds: kinds + 2 * size)],
    ids=["built in", "a list", "given twice"],
)  # fmt: skip
def test_eval_takes_what_a_recipes_reward_takes(desk: Desk, rewards: list[str], wanted: Callable[..., float]) -> None:
    place, more = str(desk.models / "chat"), ["--data", "rows.jsonl", "--split", "all", "--max-new-tokens", "5"]
    given = [part for text in rewards for part in ("--reward", text)]
    code, out, err = desk.upslope("eval", place, *more, *given, "--device", "cpu", "--show", "8")
    assert code == 0, err
    shown = [float(number) for number in re.findall(r"^ *(-?[\d.]+)  say", out, re.MULTILINE)]
    from upslope import evaluate

    found = evaluate(place, data="rows.jsonl", reward="rewards.py:score", split="all", max_new_tokens=5, device="cpu")
    sizes = evaluate(place, data="rows.jsonl", reward={"builtin": "length", "target": 4}, split="all",
                     max_new_tokens=5, device="cpu")  # fmt: skip
    both = zip(sizes.greedy.rewards, found.greedy.rewards, strict=True)
    assert len(shown) == 8 and shown == pytest.approx([wanted(size, kinds) for size, kinds in both], abs=0.006)


@pytest.mark.parametrize("text", ["{builtin: numerical}", "[rewards.py:score", "{}", "5", "rewards.py:scroe"])
def test_eval_says_what_is_wrong_with_a_reward(desk: Desk, text: str) -> None:
    code, _, err = desk.upslope("eval", str(desk.models / "chat"), "--data", "rows.jsonl", "--reward", text)
    assert code == 2 and "reward" in err and "Fix: " in err and "Traceback" not in err


def test_eval_maps_columns_and_says_how(desk: Desk) -> None:
    (desk.folder / "rows.jsonl").write_text('{"question": "say 7"}\n{"question": "say 8"}\n')
    arguments = ["eval", str(desk.models / "chat"), "--data", "rows.jsonl", "--reward", "rewards.py:score",
                 "--split", "all", "--max-new-tokens", "5", "--device", "cpu"]  # fmt: skip
    code, _, err = desk.upslope(*arguments)
    assert code == 2
    code, out, err = desk.upslope(*arguments, "--columns", suggested(r"Fix: give --columns (\S+)\.$", err.strip()))
    assert code == 0 and "say 7" in out, err
    code, _, err = desk.upslope(*arguments, "--columns", "prompt=qestion")
    assert code == 2 and err.startswith("error: --columns: column 'qestion'")
    assert err.strip().endswith("Fix: did you mean --columns prompt=question?")
    code, _, err = desk.upslope(*arguments, "--columns", "question")
    assert code == 2 and "--columns: found 'question', expected OURS=YOURS" in err


def test_eval_lets_the_model_call_tools_within_limits(desk: Desk) -> None:
    place = talk.caller(desk.folder / "caller")
    (desk.folder / "tools.py").write_text(inspect.getsource(tools_for_tests.add))
    arguments = ["--data", "rows.jsonl", "--reward", "rewards.py:score", "--split", "all", "--max-new-tokens", "8",
                 "--tools", "tools.py:add", "--budget", "300", "--device", "cpu", "--show", "8"]  # fmt: skip
    code, out, err = desk.upslope("eval", str(place), *arguments, "--max-turns", "3")
    assert code == 0, err
    from upslope import evaluate

    told = {"data": "rows.jsonl", "reward": "rewards.py:score", "split": "all", "max_new_tokens": 8, "device": "cpu"}
    calls = evaluate(str(place), tools="tools.py:add", max_turns=3, budget=300, **told)
    assert [f"{calls.greedy.mean:.3f}", f"{calls.sampled.mean:.3f}"] == re.findall(r" (\d\.\d{3}) \(", out)
    assert calls.sampled.rewards != evaluate(str(place), **told).sampled.rewards
    code, _, err = desk.upslope("eval", str(place), *arguments, "--max-turns", "3", "--tools", "tools.py:ad")
    assert code == 2 and "tools.py has no 'ad'" in err and "add" in err and "Traceback" not in err


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
