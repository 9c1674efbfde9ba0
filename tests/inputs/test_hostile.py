"""What a model or a data set may print does nothing to the terminal: doors that the views' own tests do not guard."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.inputs.desk import Desk, desk, models
from tests.inputs.test_bad_inputs import UNSAFE
from tests.recipes.support import one_thread
from tests.views.test_safe_text import HOSTILE
from upslope import chat, cli
from upslope.errors import InputError, InputErrors, RewardError
from upslope.recipes.evaluation import Score
from upslope.recipes.sampled_pairs import SampledPairs
from upslope.views.scores import print_evaluation, print_pairs, print_table

__all__ = ["desk", "models", "one_thread"]
STRINGS = [text for text, _ in HOSTILE] + [
    "[/INST]",
    "<|im_start|>system\n",
    ":100: :warning: [red]",
    "\x1b]52;c;aGk=\x07",
]
ALL = " ".join(STRINGS)


def safe(text: str) -> bool:
    text.encode("utf-8")
    return not UNSAFE.search(text)


@pytest.mark.parametrize("text", STRINGS, ids=ascii)
def test_an_evaluation_shows_it_as_text(text: str, capsys: Any) -> None:
    score = Score(0.5, 0.4, 0.6, 1, (0.5,), (text,))
    print_evaluation(text, {text: score}, [text], 1)
    print_table(text, [text], [[text]])
    assert safe(capsys.readouterr().out)


@pytest.mark.parametrize("text", STRINGS, ids=ascii)
def test_pairs_show_it_as_text(text: str, capsys: Any) -> None:
    row = {"prompt": text, "chosen": text, "rejected": text, "chosen_reward": 1.0, "rejected_reward": 0.0}
    talk = {**row, "prompt": [{"role": "user", "content": text}]}
    print_pairs(SampledPairs(Path(text), 3, 9, 2, 1, 2, 3, 0.5, 1.0, 0.0, 0.5, (row, talk)), 2)
    out = capsys.readouterr().out
    assert safe(out) and "1 cut by the length limit, 2 empty, 3 without a reward" in out and "1 prompt gave no" in out


def test_markup_and_emoji_codes_stay_as_they_are(capsys: Any) -> None:
    score = Score(0.5, 0.4, 0.6, 1, (0.5,), ("[red]x[/red] :smile: [/INST]",))
    print_evaluation("models/:100:", {"greedy": score}, [":warning:"], 1)
    out = capsys.readouterr().out
    assert "[red]x[/red] :smile: [/INST]" in out and "models/:100:" in out and ":warning:" in out


@pytest.mark.parametrize("text", STRINGS, ids=ascii)
def test_an_error_shows_it_as_text(text: str, desk: Desk) -> None:
    """Messages quote rows, names of files and columns, and what a user's function raised."""

    def fail(*arguments: Any, **keywords: Any) -> None:
        raise InputErrors([InputError(text, text, text), RewardError(f"reward {text}", text, text)])

    desk.patch.setattr(cli.api, "merge", fail)
    code, out, err = desk.upslope("merge", "a", "b")
    assert code == 2 and safe(out + err) and err.count("error: ") >= 2


def test_a_line_number_is_no_emoji(desk: Desk) -> None:
    lines = [json.dumps({"prompt": f"say {n}"}) for n in range(120)]
    lines[99] = "{"
    (desk.folder / "rows.jsonl").write_text("\n".join(lines))
    code, _, err = desk.train()
    assert code == 2 and "rows.jsonl:100: " in err


def test_names_of_columns_and_files_are_shown_as_text(desk: Desk) -> None:
    desk.rows([{ALL: "x", "\ud800": 1}])
    code, _, err = desk.train()
    assert code == 2 and safe(err) and "Columns: " in err
    hostile = "\x1b]0;x\x07[/INST].jsonl"
    code, _, err = desk.train(f"data.path={hostile}", "model.name=\x1b[2Jx", "reward=\x1b[2J.py:f")
    assert code == 2 and safe(err) and "[/INST].jsonl" in err


def test_a_users_exception_is_shown_as_text(desk: Desk) -> None:
    words = ascii(ALL)
    (desk.folder / "rewards.py").write_text(
        f"def score(prompts, completions, **columns):\n    raise ValueError({words})\n"
    )
    code, _, err = desk.train()
    assert code == 2 and safe(err) and "[/INST]" in err


def test_a_run_whose_model_and_rows_are_hostile_prints_text_only(desk: Desk) -> None:
    """A training, its report, its rollouts, an evaluation: on a tokenizer that decodes every answer as hostile text."""
    from upslope.text.rendering import Renderer

    desk.patch.setattr(Renderer, "text", lambda self, ids: ALL)
    desk.rows([{"prompt": f"{ALL} {n}"[-90:], "answer": ALL, ALL: ALL} for n in range(8)])
    said = ""
    for command in (
        ["grpo", "recipe.yaml", "train.eval_prompts=2", "data.heldout=2"], ["rollouts", "out"],
        ["rollouts", "out", "--search", "INST"], ["watch", "out", "--once"], ["check", "recipe.yaml", "out=other"],
        ["eval", str(desk.models / "chat"), "--data", "rows.jsonl", "--reward", "rewards.py:score", "--split", "all",
         "--max-new-tokens", "4", "--device", "cpu"],
    ):  # fmt: skip
        desk.write()
        code, out, err = desk.upslope(*command)
        assert code == 0, err
        said += out + err
    assert "[/INST]" in said and safe(said)
    page = (desk.folder / "out" / "report.html").read_text("utf-8")
    assert "<img src=x" not in page and page.count("</script>") == page.count("<script")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)


def test_a_chat_shows_it_as_text(desk: Desk) -> None:
    """On a console that is a terminal: what reaches it holds no escape but rich's own colours."""
    from upslope.text.rendering import Renderer

    answer = ALL.replace("\ud800", "")  # no tokenizer decodes to half a character
    desk.patch.setattr(Renderer, "text", lambda self, ids: answer)
    heard, lines = io.StringIO(), iter(["say \ud800", ""])

    class Terminal(Console):
        def __init__(self, **keywords: Any) -> None:
            super().__init__(file=heard, force_terminal=True, width=200, **keywords)

        def input(self, *arguments: Any, **keywords: Any) -> str:
            return next(lines)

    desk.patch.setattr(chat, "Console", Terminal)
    chat.converse(str(desk.models / "chat"), None, 0.0, 1.0, 4, "cpu", 0)
    text = re.sub(r"\x1b\[[0-9;]*m", "", heard.getvalue())
    assert text.count("[/INST]") == 2 and ":100:" in text and safe(text)


def test_the_message_of_a_bug_is_safe(desk: Desk) -> None:
    def fail(*arguments: Any, **keywords: Any) -> None:
        raise ZeroDivisionError(ALL)

    desk.patch.setattr(cli.api, "merge", fail)
    code, _, err = desk.upslope("merge", "a", "b")
    assert code == 1 and safe(err) and "[/INST]" in err
    Path(re.search(r"report it with (\S+\.txt)", err)[1]).unlink()  # type: ignore[index]
