"""`upslope check`: what looks wrong, each on a desk otherwise tidy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests import tiny
from tests.checkup.support import found, kinds, tidy, write
from tests.inputs.desk import Desk, desk, models
from tests.recipes.support import one_thread
from upslope.checkup.facts import Bill
from upslope.checkup.findings import findings, rate
from upslope.recipes.configs import RECIPES
from upslope.run.recipe import load

__all__ = ["desk", "models", "one_thread", "tidy"]


def reward(desk: Desk, body: str, head: str = "") -> None:
    text = f"import re, os, time\n{head}\ndef score(prompts, completions, answer=None, **columns):\n    return {body}\n"
    (desk.folder / "rewards.py").write_text(text)


def equal_reward(desk: Desk) -> str:
    reward(desk, "[0.25 for _ in completions]")
    return "earn the same, 0.25, on 8 rows"


def wrong_way_round(desk: Desk) -> str:
    reward(desk, "[float(c != a) for c, a in zip(completions, answer)]")
    return "wrong answers earn more (1) than right ones (0)"


def wants_a_form(desk: Desk) -> str:
    reward(desk, "[float(c == f'<answer>{a}</answer>') for c, a in zip(completions, answer)]")
    return "Written as <answer>...</answer>"


def looks_elsewhere(desk: Desk) -> str:
    reward(desk, "[float('know' in c) for c in completions]")
    return "no more than other rows' answers (both 0 on average"


def empty_fails(desk: Desk) -> str:
    reward(desk, "[float(c == a) + 0 * ord(c[0]) for c, a in zip(completions, answer)]")
    return "fails on an empty completion (IndexError: string index out of range, at rewards.py:4"


def varies(desk: Desk) -> str:
    reward(desk, "[float(c == a) + int.from_bytes(os.urandom(4), 'big') * 1e-12 for c, a in zip(completions, answer)]")
    return "other rewards at a second call"


def slow(desk: Desk) -> str:
    reward(desk, "[time.sleep(0.01) or float(c == a) for c, a in zip(completions, answer)]")
    desk.recipe["grpo"]["group"] = 15
    desk.recipe["reward"] = {"function": "rewards.py:score", "timeout": 1.0}
    return "60 of them in one call"


def cut_answers(desk: Desk) -> str:
    desk.recipe["sampling"]["max_new_tokens"] = 3
    return "found 3, but 50 of 60 right answers in column 'answer' need more: the longest takes 4 tokens"


def system_is_dropped(desk: Desk) -> str:
    (desk.folder / "bare.jinja").write_text(
        "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
    )
    desk.recipe["model"]["chat_template"] = "bare.jinja"
    desk.recipe["data"]["system_prompt"] = "Be brief."
    return "the chat template drops the system message"


def no_template(desk: Desk) -> str:
    desk.recipe["model"]["name"] = str(desk.models / "plain")
    return "has no chat template"


def ends_in_space(desk: Desk) -> str:
    desk.rows([{"prompt": f"say {n} ", "answer": f"{n}!"[:3]} for n in range(60)])
    desk.recipe["data"]["chat"] = "never"
    return "40 of 40 prompts end in white space"


def repeated(desk: Desk) -> str:
    rows = [{"prompt": f"say {n % 50}", "answer": str(n % 50)} for n in range(60)]
    desk.rows(rows)
    desk.recipe["data"]["heldout"] = 0
    desk.recipe["train"]["eval_prompts"] = 0
    return "10 of 60 training rows (17 %) repeat an earlier row"


def contradicting(desk: Desk) -> str:
    desk.rows([{"prompt": f"say {n % 50}", "answer": str(n)} for n in range(60)])
    desk.recipe["data"]["heldout"] = 0
    desk.recipe["train"]["eval_prompts"] = 0
    return "10 training rows have the prompt of an earlier row and other columns"


def leaked(desk: Desk) -> str:
    desk.rows([{"prompt": f"{'say' if n % 2 else 'SAY '} {n // 2}", "answer": str(n // 2)} for n in range(60)])
    return "held-out prompts are training prompts but for case and spaces"


def nothing_held_out(desk: Desk) -> str:
    desk.recipe["data"]["heldout"] = 0
    return "no row is held out"


def few_held_out(desk: Desk) -> str:
    desk.recipe["data"]["heldout"] = 3
    return "only 3 held-out rows"


def many_passes(desk: Desk) -> str:
    desk.recipe["train"]["steps"] = 600
    return "60 passes over 40 rows: the model will know them by heart. 500 steps are 50 passes"


def folder_taken(desk: Desk) -> str:
    (desk.folder / "out").mkdir()
    (desk.folder / "out" / "notes.txt").write_text("x")
    return "exists and is not a run folder (it holds notes.txt)"


LOOKS_WRONG: dict[str, Callable[[Desk], str]] = {
    "reward pays": equal_reward, "reward pays ": wrong_way_round, "reward pays  ": wants_a_form,
    "reward pays   ": looks_elsewhere, "reward fails": empty_fails, "reward varies": varies, "reward slow": slow,
    "answers cut": cut_answers, "system dropped": system_is_dropped, "no template": no_template,
    "ends in space": ends_in_space, "repeated rows": repeated, "contradicting rows": contradicting,
    "leaked rows": leaked, "nothing held out": nothing_held_out, "few held out": few_held_out,
    "many passes": many_passes, "folder": folder_taken,
}  # fmt: skip


@pytest.mark.parametrize("kind", LOOKS_WRONG, ids=[spoil.__name__ for spoil in LOOKS_WRONG.values()])
def test_what_looks_wrong_is_said_and_nothing_else(tidy: Desk, kind: str) -> None:
    wanted = LOOKS_WRONG[kind](tidy)
    told = found(tidy)
    assert kinds(told) == [kind.strip()]
    assert wanted in told.findings[0].text


def test_nothing_looks_wrong_on_a_tidy_desk(tidy: Desk) -> None:
    assert kinds(found(tidy)) == [] and found(tidy).notices == ()


def test_completions_that_follow_without_a_space_are_found(tidy: Desk) -> None:
    del tidy.recipe["grpo"], tidy.recipe["reward"]
    tidy.rows([{"prompt": f"say {n}", "completion": str(n)} for n in range(60)])
    told = found(tidy, "data.chat=never", kind="sft")
    assert kinds(told) == ["joined"] and told.findings[0].text.startswith("40 completions follow")
    tidy.rows([{"prompt": f"say {n}", "completion": f" {n}"} for n in range(60)])
    assert kinds(found(tidy, "data.chat=never", kind="sft")) == []


def test_rows_cut_before_their_end_token_are_counted(tidy: Desk) -> None:
    del tidy.recipe["grpo"], tidy.recipe["reward"]
    tidy.rows([{"prompt": "say it", "completion": "7" * (3 if n % 4 else 30)} for n in range(60)])
    tidy.recipe["data"]["heldout"] = 0
    told = found(tidy, "sft.max_tokens=40", "train.eval_prompts=0", kind="sft")
    assert "no end token" in kinds(told) and told.rows.lost_stop == 15
    assert any("15 of 60 rows (25 %) are cut" in finding.text for finding in told.findings)
    assert any("15 of 60 rows were cut to 40 tokens" in notice for notice in told.notices)


def test_two_start_tokens_are_found(tidy: Desk) -> None:
    place = tidy.folder / "double"
    tiny.directory(place)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(place)
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.chat_template = "<|im_start|><|im_start|>" + tokenizer.chat_template
    tokenizer.save_pretrained(place)
    tidy.recipe["model"]["name"] = str(place)
    assert "double start" in kinds(found(tidy))


def test_a_rate_far_from_the_usual_range_is_said_of_large_models_only(tidy: Desk) -> None:
    told = found(tidy)

    class Seen:
        class card:
            adapter = None

    for kind, lr, side in (
        ("grpo", 1e-3, "above"), ("grpo", 1e-5, ""), ("grpo", 1e-9, "below"), ("sft", 5e-5, ""), ("sft", 1e-3, "above"),
    ):  # fmt: skip
        large = replace(told, kind=kind, model=replace(told.model, parameters=500_000_000))
        recipe = load(write(tidy), RECIPES["grpo"], [f"optim.lr={lr}"]).recipe
        said = [finding.text for finding in rate(large, recipe, Seen())]  # type: ignore[arg-type]
        assert len(said) == bool(side) and (not side or side in said[0])
        assert list(rate(told, recipe, Seen())) == []  # type: ignore[arg-type]


def test_an_adapter_takes_a_higher_rate(tidy: Desk) -> None:
    told = found(tidy)
    large = replace(told, model=replace(told.model, parameters=500_000_000))

    class Seen:
        class card:
            adapter = None

    for lr, adapter, count in ((5e-4, "lora.rank=4", 0), (5e-4, "seed=0", 1), (5e-3, "lora.rank=4", 1)):
        recipe = load(write(tidy), RECIPES["grpo"], [f"optim.lr={lr}", adapter]).recipe
        assert len(list(rate(large, recipe, Seen()))) == count  # type: ignore[arg-type]


def test_a_bill_beyond_what_is_there_is_said_with_what_saves_most(tidy: Desk) -> None:
    told = found(tidy)
    recipe = load(write(tidy), RECIPES["grpo"]).recipe
    big = Bill({"activations": 9 * 10**9, "weights": 10**9}, 10 * 10**9, 8 * 10**9, "free in main memory")
    disk = Bill({"model": 5 * 10**9}, 5 * 10**9, 10**9, "free at out")

    class Seen:
        class card:
            adapter = None

        class rows:
            examples = ()
            pairs = ()
            train = ()
            confined = None

        class renderer:
            wraps = has_template = True
            tokenizer = None

            @staticmethod
            def prompt(content: Any) -> list[int]:
                return []

        reward = None
        examples = ()
        pairs = ()
        train: tuple[Any, ...] = (type("P", (), {"content": "x"}),)

    said = findings(replace(told, memory=big, disk=disk), recipe, Seen())  # type: ignore[arg-type]
    texts = {finding.kind: finding.text for finding in said}
    assert texts["memory"].startswith("about 10.0 GB are needed, 8.0 GB are free in main memory")
    assert "train.micro_batch_tokens" in texts["memory"] and texts["disk"].startswith("about 5.0 GB are needed")
    assert "memory" not in {finding.kind for finding in findings(told, recipe, Seen())}  # type: ignore[arg-type]


def test_a_function_that_is_only_logged_need_not_pay(tidy: Desk) -> None:
    tidy.recipe["reward"] = [{"function": "rewards.py:score", "weight": 0}]
    assert "reward pays" not in kinds(found(tidy))
    (tidy.folder / "rewards.py").write_text("def score(completions, **columns):\n    return [0.0] * len(completions)\n")
    assert "reward pays" in kinds(found(tidy))


def test_a_mapped_column_is_there_for_the_reward_under_its_own_name(tidy: Desk) -> None:
    tidy.rows([{"question": f"say {n}", "solution": str(n)} for n in range(60)])
    lines = [
        "def score(completions, solution, **columns):",
        "    return [float(a == b) for a, b in zip(completions, solution)]",
    ]
    (tidy.folder / "rewards.py").write_text("\n".join(lines))
    del tidy.recipe["grpo"]
    tidy.recipe["data"]["columns"] = {"prompt": "question", "completion": "solution"}
    told = found(tidy, kind="sft")
    assert told.reward is not None and told.reward.right == 1 and "reward pays" not in kinds(told)
