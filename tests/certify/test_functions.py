"""A user's file: found, recognised by parameters, and every mistake told with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.certify.losses_for_tests import group_mean, ppo, user
from upslope import cli
from upslope.certify.functions import read_function, recognised
from upslope.errors import InputError

LOSS = "def loss(logprobs, old_logprobs, advantages, mask{more}):\n    {body}\n"
PLAIN = LOSS.format(more="", body="return -(logprobs - old_logprobs).exp() * advantages * mask")


def read(folder: Path, text: str, name: str = "loss") -> Any:
    (folder / "mine.py").write_text(text)
    return read_function(f"{folder / 'mine.py'}:{name}")


def call(function: Any) -> torch.Tensor:
    shape, mask = torch.zeros(2, 3, dtype=torch.float64), torch.ones(2, 3, dtype=torch.bool)
    return function(logprobs=shape, old_logprobs=shape, advantages=shape, mask=mask)  # type: ignore[no-any-return]


def test_functions_are_recognised_by_their_parameters(tmp_path: Path) -> None:
    assert read(tmp_path, PLAIN).kind == "loss"
    assert recognised(ppo, "x") == "loss"  # clips with defaults
    assert recognised(group_mean, "x") == "advantage"
    assert recognised(lambda mask, advantages, old_logprobs, logprobs: None, "x") == "loss"


@pytest.mark.parametrize(
    "text",
    ["def loss(logits, labels): pass", "def loss(logprobs, advantages, mask): pass", "def loss(): pass",
     "def loss(logprobs, old_logprobs, advantages, mask, clip): pass", "def loss(*tensors): pass",
     "def loss(rewards, group): pass", "def loss(rewards, /): pass", "loss = max"],
)  # fmt: skip
def test_other_parameters_are_refused_with_the_signature(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"loss\(logprobs, old_logprobs, advantages, mask\) -> \[B, T\]") as caught:
        read(tmp_path, text)
    assert "advantage(rewards) -> [P, G]" in str(caught.value) and "mine.py:loss" in str(caught.value)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("return (advantages * mask).mean()", r"returned shape \[\], expected \[2, 3\]"),
        ("return (logprobs * mask).sum(1)", r"returned shape \[2\], expected \[2, 3\]"),
        ("return logprobs, {}", r"returned tuple, expected a tensor of shape \[2, 3\]"),
        ("return mask", r"returned torch.bool, expected floating-point"),
    ],
)
def test_an_answer_of_another_shape_is_refused(body: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=problem) as caught:
        call(read(tmp_path, LOSS.format(more="", body=body)))
    assert "Fix:" in str(caught.value)


def test_an_error_in_the_users_function_names_its_last_own_line(tmp_path: Path) -> None:
    body = "return helper(logprobs)\n\ndef helper(x):\n    return x @ x"
    with pytest.raises(InputError, match=r"mine\.py:5 in helper: RuntimeError.*logprobs \[2, 3\] float64"):
        call(read(tmp_path, LOSS.format(more="", body=body)))
    with pytest.raises(InputError, match=r"mine\.py:2 in <module>: ZeroDivisionError.*while the file was loaded"):
        read(tmp_path, "import math\nx = 1 / 0\n" + PLAIN)
    with pytest.raises(InputError, match="SystemExit"):
        call(read(tmp_path, LOSS.format(more="", body="raise SystemExit(0)")))


@pytest.mark.parametrize(
    ("source", "problem"),
    [("mine.py", "not of the form path/to/file.py:function"), ("none.py:loss", "no such file"),
     ("mine.py:lost", "did you mean .*mine.py:loss")],
)  # fmt: skip
def test_what_is_not_there_is_told_under_the_commands_name(
    source: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(PLAIN)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=problem) as caught:
        read_function(source)
    assert str(caught.value).startswith("certify") and "reward" not in str(caught.value)


def test_inputs_are_copies_and_prints_go_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = "print('hello'); logprobs += 5; return logprobs"
    function, given = read(tmp_path, LOSS.format(more="", body=body)), torch.zeros(1, 1, dtype=torch.float64)
    function(logprobs=given, old_logprobs=given, advantages=given, mask=given.bool())
    out, err = capsys.readouterr()
    assert float(given) == 0 and out == "" and "hello" in err


def upslope(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["upslope", *arguments])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_command_exits_0_1_and_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(PLAIN + "def wrong(logprobs, old_logprobs, advantages, mask):\n    print(1)\n    return "
                    "-loss(logprobs, old_logprobs, advantages, mask)\n")  # fmt: skip
    assert upslope(monkeypatch, "certify", f"{file}:loss") == 0
    assert "CERTIFIED" in capsys.readouterr().out
    assert upslope(monkeypatch, "certify", f"{file}:wrong", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["certified"] and found["findings"][0]["name"] == "sign"
    assert upslope(monkeypatch, "certify", f"{file}:nothing") == 2
    assert "Fix:" in capsys.readouterr().err


def test_a_user_function_knows_its_kind() -> None:
    assert user(ppo, "loss").kind == "loss" and user(ppo, "loss").shown == "ppo"
