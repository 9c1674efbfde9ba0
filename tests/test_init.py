"""`upslope init`: recipes that load and mean what was asked, rewards that run, nothing overwritten unasked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from tests.recipes.support import one_thread
from tests.test_cli import Desk, desk, models
from tests.views.test_browser import Terminal
from upslope.errors import InputError
from upslope.init.command import complete, init_command
from upslope.init.recipe import Wish, column_map, recipe_text
from upslope.init.rewards import reward_text
from upslope.recipes.configs import RECIPES
from upslope.run.recipe import read_text
from upslope.worlds.rewards import RewardProcess

__all__ = ["desk", "models", "one_thread"]
RL = ("grpo", "ppo")


def rows(path: Path, *given: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return str(path)


def console() -> Console:
    import io

    return Console(file=io.StringIO(), width=200, markup=False)


def answers(*given: str) -> Callable[[str], str]:
    left = list(given)
    return lambda question: left.pop(0)


# -------------------------------------------------------------------------------------------------------------- recipe
@pytest.mark.parametrize("kind", list(RECIPES))
@pytest.mark.parametrize("lora", [False, True])
def test_a_recipe_for_a_task_is_the_defaults(kind: str, lora: bool) -> None:
    text = recipe_text(Wish(kind, task="arithmetic", lora=lora))
    found = read_text(text, RECIPES[kind])
    wanted = {"data": {"task": "arithmetic"}, **({"lora": {}} if lora else {})}
    assert found == RECIPES[kind].model_validate(wanted)
    assert "#   upslope check" in text and max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("kind", list(RECIPES))
def test_every_line_has_its_comment_or_none_and_few_keys_are_set(kind: str) -> None:
    text = recipe_text(Wish(kind, task="arithmetic", steps=7))
    data = yaml.safe_load(text)
    assert data["train"]["steps"] == 7
    assert sum(len(value) if isinstance(value, dict) else 1 for value in data.values()) <= 20


def test_rows_columns_and_numbers_are_taken_from_the_file(tmp_path: Path) -> None:
    path = rows(tmp_path / "r.jsonl", *({"question": f"q{n}", "response": "a"} for n in range(6)))
    sft = read_text(recipe_text(Wish("sft", data=path)), RECIPES["sft"])
    assert sft.data.columns == {"prompt": "question", "completion": "response"}
    assert sft.train.prompts == 5  # six rows, one of them held out
    many = rows(tmp_path / "many.jsonl", *({"prompt": f"q{n}", "completion": "a"} for n in range(60)))
    plain = read_text(recipe_text(Wish("sft", data=many)), RECIPES["sft"])
    assert plain.data.columns == {} and plain.train.prompts == RECIPES["sft"].model_fields["train"].default.prompts


def test_columns_that_nobody_can_guess_are_left_to_the_run(tmp_path: Path) -> None:
    path = rows(tmp_path / "r.jsonl", {"x": "q", "y": "a"})
    assert column_map(path, RECIPES["grpo"]) == {}


@pytest.mark.parametrize("reward", ["exact", "numeric"])
def test_a_built_in_reward(tmp_path: Path, reward: str) -> None:
    path = rows(tmp_path / "r.jsonl", {"prompt": "q", "answer": "1"})
    found: Any = read_text(recipe_text(Wish("grpo", data=path, reward=reward)), RECIPES["grpo"])
    assert [entry.builtin for entry in found.reward.entries] == [reward]


# ------------------------------------------------------------------------------------------------------------- rewards
def run_reward(path: Path, text: str, completions: list[Any], columns: dict[str, list[Any]]) -> list[float | None]:
    path.write_text(text)
    ids = [str(n) for n in range(len(completions))]
    with RewardProcess(f"{path}:good") as process:
        return [score.value for score in process.score(["p"] * len(ids), completions, None, columns, ids)]


def test_the_answer_reward_by_hand(tmp_path: Path) -> None:
    said = ["Red", " red. ", "It is red, I think", "It is reddish", "blue", "", "a+b is 3.5"]
    right = ["red", "red", "red", "red", "red", "red", "a+b"]
    found = run_reward(tmp_path / "r.py", reward_text("good", "colour"), said, {"colour": right})
    assert found == [1.0, 1.0, 0.5, 0.0, 0.0, 0.0, 0.5]


def test_the_answer_reward_takes_numbers_and_conversations(tmp_path: Path) -> None:
    said = [[{"role": "assistant", "content": "60"}], [{"role": "assistant", "content": "It is 60."}]]
    assert run_reward(tmp_path / "r.py", reward_text("good", "answer"), said, {"answer": [60, 60]}) == [1.0, 0.5]


def test_the_form_reward_by_hand(tmp_path: Path) -> None:
    words = "a " * 89 + "b."
    said = ["Short and done.", "cut off in the mid", "", words, "a " * 200 + "."]
    assert run_reward(tmp_path / "r.py", reward_text("good", None), said, {}) == [1.0, 0.5, 0.0, 0.5, 0.0]


# --------------------------------------------------------------------------------------------------------------- files
def test_check_and_a_run_start_from_what_was_written(desk: Desk) -> None:
    arguments = ["--kind", "grpo", "--model", str(desk.models / "chat"), "--data", "rows.jsonl", "--steps", "1"]
    code, out, err = desk.upslope("init", "mine.yaml", *arguments, "--reward", "new.py:good")
    assert code == 0, err
    assert "wrote mine.yaml" in out and "wrote new.py" in out and "upslope check mine.yaml" in out
    code, out, err = desk.upslope("check", "mine.yaml", "device=cpu")
    assert code == 0, err
    assert "right answers earn 1, wrong ones 0" in out
    extra = [
        "train.prompts=2",
        "grpo.group=2",
        "sampling.max_new_tokens=4",
        "train.eval_prompts=0",
        "model.dtype=float32",
    ]
    code, _, err = desk.upslope("grpo", "mine.yaml", "device=cpu", *extra)
    assert code == 0, err


def test_nothing_is_overwritten_unasked(desk: Desk) -> None:
    (desk.folder / "grpo.yaml").write_text("mine")
    asked = ["init", "--kind", "grpo", "--data", "rows.jsonl", "--reward", "rewards.py:score"]
    code, _, err = desk.upslope(*asked)
    assert code == 2 and "grpo.yaml: is there already" in err and (desk.folder / "grpo.yaml").read_text() == "mine"
    before = (desk.folder / "rewards.py").read_text()
    assert desk.upslope(*asked, "--force")[0] == 0
    assert (desk.folder / "grpo.yaml").read_text() != "mine" and (desk.folder / "rewards.py").read_text() == before


def test_a_question_before_overwriting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sft.yaml").write_text("mine")
    wish = Wish("sft", task="arithmetic")
    with pytest.raises(InputError, match="is there already"):
        init_command(wish, False, console(), answers("n"))
    assert Path("sft.yaml").read_text() == "mine"
    init_command(wish, False, console(), answers("y"))
    assert "arithmetic" in Path("sft.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--kind is missing, and there is no terminal to ask on"),
        (["--kind", "grpo"], "--data or --task is missing"),
        (["--kind", "gprpo", "--task", "arithmetic"], "'gprpo' is unknown"),
        (["--kind", "grpo", "--task", "arithmetic", "--data", "rows.jsonl"], "exclude each other"),
        (["--kind", "grpo", "--data", "rowz.jsonl"], "no such file or folder. Fix: did you mean rows.jsonl"),
        (["--kind", "grpo", "--data", "rows.jsonl", "--reward", "rewards.py:scoer"], "did you mean rewards.py:score"),
        (["--kind", "grpo", "--data", "rows.jsonl", "--reward", "rewards"], "not of the form file.py:function"),
    ],
)
def test_what_cannot_be_is_said(desk: Desk, arguments: list[str], said: str) -> None:
    code, _, err = desk.upslope("init", *arguments)
    assert code == 2 and said in err and "Fix: " in err
    assert not list(desk.folder.glob("*.yaml"))


# ----------------------------------------------------------------------------------------------------------- questions
def test_questions_until_all_is_known(desk: Desk) -> None:
    given = answers("nonsense", "grpo", "", "rowz.jsonl", "rows.jsonl", "no colon", "new.py:good", "mine.yaml")
    found = complete(Wish(), console(), given)
    assert found == Wish("grpo", "smollm2-135m-instruct", "rows.jsonl", None, "new.py:good", out=Path("mine.yaml"))


def test_what_was_said_is_not_asked(desk: Desk) -> None:
    def refuse(question: str) -> str:
        raise AssertionError(question)

    wish = Wish("grpo", "m", "rows.jsonl", None, "rewards.py:score")
    assert complete(wish, console(), refuse) == wish
    assert complete(Wish("sft", task="arithmetic"), console(), refuse).model == "smollm2-135m-instruct"


def test_questions_in_a_terminal(desk: Desk) -> None:
    terminal = Terminal("init")
    for question, answer in (
        ("One of them", "sft"), ("Which model", ""), ("Which rows", "arithmetic"), ("Where should", "t.yaml"),
    ):  # fmt: skip
        terminal.wait(rf"{question}[^:]*: $")
        terminal.type(f"{answer}\n")
    terminal.wait("upslope sft t.yaml")
    assert terminal.end() == 0
    assert read_text((desk.folder / "t.yaml").read_text(), RECIPES["sft"]).data.task == "arithmetic"
