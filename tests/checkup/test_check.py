"""`upslope check`: the words of the run, numbers by hand, and what looks wrong, each on a desk otherwise tidy."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from tests import tiny
from tests.inputs.bad_inputs import INPUTS
from tests.inputs.desk import Desk, desk, models
from tests.recipes.support import one_thread
from upslope.checkup import gather
from upslope.checkup.facts import Bill, Checkup
from upslope.checkup.findings import findings, rate
from upslope.checkup.gather import check as check_loaded
from upslope.checkup.kinds import kind_of
from upslope.checkup.show import show
from upslope.errors import InputError
from upslope.recipes.configs import RECIPES
from upslope.run.recipe import load

__all__ = ["desk", "models", "one_thread"]
ROOT = Path(__file__).parents[2]
RIGHT = """
def score(prompts, completions, answer=None, **columns):
    return [1.0 if said == right else 0.0 for said, right in zip(completions, answer or completions)]
"""


def write(desk: Desk) -> Path:
    path = desk.folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(desk.recipe))
    return path


@pytest.fixture
def tidy(desk: Desk) -> Desk:
    """A desk on which nothing looks wrong: enough rows, a reward that pays for the answer."""
    desk.rows([{"prompt": f"say {n}", "answer": f"{n}!"[:3]} for n in range(60)])
    (desk.folder / "rewards.py").write_text(RIGHT)
    desk.recipe["sampling"]["max_new_tokens"] = 6
    desk.recipe["train"] = {"steps": 5, "prompts": 4, "eval_prompts": 4}
    desk.recipe["data"]["heldout"] = 20
    return desk


def found(desk: Desk, *overrides: str, kind: str = "grpo") -> Checkup:
    return check_loaded(load(write(desk), RECIPES[kind], overrides))


def kinds(checkup: Checkup) -> list[str]:
    return [finding.kind for finding in checkup.findings]


# ------------------------------------------------------------------------------------------------ the words of the run
SAME = (
    "unknown_key", "negative_rate", "missing_column", "missing_file", "empty_data", "no_chat_template", "group_of_one",
    "prompt_beyond_context", "reward_raises",
)  # fmt: skip
STOPS = [row.make for row in INPUTS if row.make.__name__ in SAME]


@pytest.mark.parametrize("spoil", STOPS, ids=[spoil.__name__ for spoil in STOPS])
def test_what_stops_the_run_stops_the_check_in_the_same_words(desk: Desk, spoil: Callable[[Desk], Any]) -> None:
    spoil(desk)
    write(desk)
    code, _, told = desk.upslope("check", "recipe.yaml", "--kind", "grpo")
    assert code == 2 and not (desk.folder / "out").exists()
    code, _, said = desk.train()
    assert code == 2
    rows = re.compile(r"\(rows? [\d#, and more]*\)")  # a reward that fails: the run scores other rows first
    assert rows.sub("", told) == rows.sub("", said)


def test_the_check_leaves_no_folder_and_reads_no_weights(tidy: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch
    from transformers import AutoModelForCausalLM

    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    monkeypatch.setattr(safetensors.torch, "load_file", refuse)
    write(tidy)
    before = sorted(path.name for path in tidy.folder.iterdir())
    code, out, err = tidy.upslope("check", "recipe.yaml")
    assert code == 0, err
    assert "Nothing looks wrong." in out
    assert sorted(path.name for path in tidy.folder.iterdir() if path.name != "__pycache__") == before


def test_errors_as_json_name_where_problem_and_fix(desk: Desk) -> None:
    desk.recipe["grpo"] = {"group": 1}
    desk.recipe["optim"] = {"lr": -1}
    write(desk)
    code, out, err = desk.upslope("check", "recipe.yaml", "--json")
    told = json.loads(out)
    assert code == 2 and told["ok"] is False and "optim.lr" in err
    assert all(set(error) == {"where", "problem", "fix"} for error in told["errors"])
    assert any("optim.lr" in error["where"] for error in told["errors"])


# ------------------------------------------------------------------------------------------------------ numbers by hand
def test_numbers_of_a_grpo_recipe(tidy: Desk) -> None:
    write(tidy)
    code, out, err = tidy.upslope("check", "recipe.yaml", "train.minibatches=2", "train.epochs=3", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["kind"] == "grpo" and told["folder"] == "out" and told["ok"] is True
    rows, step, model = told["rows"], told["step"], told["model"]
    assert (rows["train"], rows["heldout"], rows["evaluated"]) == (40, 20, 4)
    # <|im_start|> user \n say 7 <|im_end|> \n <|im_start|> assistant \n, a token a character
    short = 1 + len("user\nsay 7") + 1 + 1 + 1 + len("assistant\n")
    assert (rows["prompt"]["shortest"], rows["prompt"]["longest"]) == (short, short + 1)
    assert rows["answers"]["longest"] == len("10!") + 1 and rows["answers_cut"] == 0
    assert rows["answer_column"] == "answer"
    assert step == {
        "steps": 5, "prompts": 4, "completions": 8, "longest_completion": 6, "optimizer_steps": 6, "passes": 0.5,
        "steps_a_pass": 10.0,
    }  # fmt: skip
    network = tiny.model("llama")
    assert model["parameters"] == model["trained"] == sum(p.numel() for p in network.parameters())
    assert model["stop_tokens"] == ["<|im_end|>"] and model["context"] == 128 and model["vocabulary"] == tiny.VOCAB
    assert told["memory"]["parts"]["weights"] == 4 * model["parameters"]
    assert told["disk"]["parts"]["model"] == 4 * model["parameters"]
    assert told["disk"]["parts"]["checkpoints"] == 3 * 4 * model["parameters"]


def test_a_tied_head_counts_once(tidy: Desk) -> None:
    place = tiny.directory(tidy.folder / "tied", "smollm")
    tidy.recipe["model"]["name"] = str(place)
    network = tiny.model("smollm")
    assert found(tidy).model.parameters == sum(p.numel() for p in network.parameters())


def test_an_adapter_trains_rank_times_inputs_and_outputs(tidy: Desk) -> None:
    tidy.recipe["lora"] = {"rank": 3, "targets": ["q_proj", "down_proj"]}
    size = tiny.SIZE
    a_block = 3 * (size["hidden_size"] + 4 * size["head_dim"]) + 3 * (size["intermediate_size"] + size["hidden_size"])
    assert found(tidy).model.trained == size["num_hidden_layers"] * a_block


def test_the_rendered_prompt_is_the_template_by_hand(tidy: Desk) -> None:
    told = found(tidy)
    assert [segment.kind for segment in told.rendered] == ["prompt"]
    number = int(told.rendered_row) - 1
    assert told.rendered[0].text == f"<|im_start|>user\nsay {number}<|im_end|>\n<|im_start|>assistant\n"


def test_a_supervised_row_shows_what_is_trained_and_the_end_token(tidy: Desk) -> None:
    del tidy.recipe["grpo"], tidy.recipe["reward"]
    tidy.rows([{"prompt": f"say {n}", "completion": f"{n:03d}"} for n in range(40)])
    told = found(tidy, kind="sft")
    assert [(segment.kind, segment.tokens) for segment in told.rendered][1:] == [("trained", 3), ("stop", 1)]
    assert told.rendered[1].text == f"{int(told.rendered_row) - 1:03d}" and told.rendered[2].text == "<|im_end|>"
    assert told.rows.trained is not None and told.rows.trained.total == 4 * told.rows.train
    assert told.step.completions == 0 and told.step.optimizer_steps == 1


def test_of_a_conversation_every_answer_is_shown_as_trained(tidy: Desk) -> None:
    del tidy.recipe["grpo"], tidy.recipe["reward"]
    talk = [("user", "a"), ("assistant", "bc"), ("user", "d"), ("assistant", "e")]
    messages = [{"role": role, "content": text} for role, text in talk]
    told = [{"role": "assistant", "content": "e"}]
    tidy.rows([{"messages": [{"role": "user", "content": f"a{n}"}, *messages[1:3], *told]} for n in range(40)])
    shown = found(tidy, kind="sft").rendered
    assert [segment.kind for segment in shown] == ["prompt", "trained", "stop", "prompt", "trained", "stop"]
    assert (shown[1].text, shown[4].text) == ("bc", "e")


def test_the_reward_is_tried_on_right_wrong_and_empty_completions(tidy: Desk) -> None:
    told = found(tidy).reward
    assert told is not None and (told.right, told.wrong, told.compared) == (1.0, 0.0, 8)
    by_kind = {what: [t for t in told.trials if t.what == what] for what in ("answer", "other", "made-up", "empty")}
    assert {t.reward for t in by_kind["answer"]} == {1.0} and len(by_kind["answer"]) == 8
    assert {t.reward for what in ("other", "made-up", "empty") for t in by_kind[what]} == {0.0}
    answers = {t.prompt_id: t.completion for t in by_kind["answer"]}
    assert all(t.completion != answers[t.prompt_id] for t in by_kind["other"])
    assert [t.completion for t in by_kind["empty"]] == [""]


# ---------------------------------------------------------------------------------------------------- what looks wrong
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


# ------------------------------------------------------------------------------------------------------------- on show
HOSTILE = "[/INST] [red]x[/red] \x1b]52;c;aGVsbG8=\x07 \u202egnp.exe \x9b31m </script>"


def test_hostile_rows_come_out_as_plain_text(tidy: Desk) -> None:
    tidy.rows([{"prompt": f"{HOSTILE} {n}", "answer": f"{HOSTILE}{n}"} for n in range(60)])
    tidy.recipe["sampling"]["max_new_tokens"] = 40
    tidy.recipe["data"]["too_long"] = "truncate"
    write(tidy)
    code, out, err = tidy.upslope("check", "recipe.yaml")
    assert code == 0, err
    assert "[red]x[/red]" in out and not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", out)
    code, out, _ = tidy.upslope("check", "recipe.yaml", "--json")
    assert code == 0 and "\x1b" not in out and json.loads(out)["ok"]


def test_the_page_keeps_to_the_width(tidy: Desk) -> None:
    tidy.recipe["train"]["steps"] = 600
    told = found(tidy)
    for width in (60, 80, 120):
        console = Console(file=io.StringIO(), width=width, markup=False, highlight=False)
        show(told, console)
        lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert max(map(len, lines)) <= width and all(line == line.rstrip() for line in lines)
        for label in ("model", "rows", "a step", "the run", "rendered", "reward", "memory", "disk", "1 thing looks"):
            assert any(line.startswith(label) for line in lines), label


def test_a_kind_that_is_not_checked_is_said(tidy: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "CHECKED", ("sft",))
    with pytest.raises(InputError, match="upslope grpo are not checked, only those for sft"):
        found(tidy)


# --------------------------------------------------------------------------------------------------------------- kinds
@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_kind_of_every_ready_recipe_is_told(path: Path) -> None:
    first = path.stem.partition("-")[0]
    assert kind_of(path) == first if first in RECIPES else kind_of(path) in RECIPES


def test_a_kind_is_told_by_section_override_comment_and_name(tmp_path: Path) -> None:
    def told(name: str, text: str, *overrides: str) -> str:
        (tmp_path / name).write_text(text)
        return kind_of(tmp_path / name, overrides)

    assert told("x.yaml", "data: rows.jsonl\nppo: {kl_coef: 0}\n") == "ppo"
    assert told("grpo.yaml", "data: rows.jsonl\nppo: {kl_coef: 0}\n") == "ppo"
    assert told("x.yaml", "data: rows.jsonl\n", "--grpo.group=4") == "grpo"
    assert told("x.yaml", "# run it by upslope sft x.yaml\ndata: rows.jsonl\n") == "sft"
    assert told("ppo_mine.yaml", "data: rows.jsonl\n") == "ppo"
    with pytest.raises(InputError, match="nothing in it says which command"):
        told("x.yaml", "data: rows.jsonl\n")
    with pytest.raises(InputError, match="sections grpo and ppo"):
        told("x.yaml", "grpo: {}\nppo: {}\n")


@pytest.mark.parametrize("name", ["sft-arithmetic", "grpo-text-grid"])
def test_nothing_looks_wrong_about_a_ready_recipe(name: str, models: Path, tmp_path: Path) -> None:
    tiny_model = [f"model.name={models / 'chat'}", "model.dtype=float32", "data.options={digits: 1, heldout: 20}"]
    own = [] if "grid" in name else [*tiny_model, "train.steps=5"]
    loaded = load(ROOT / "recipes" / f"{name}.yaml", RECIPES[name.partition("-")[0]],
                  [*own, f"out={tmp_path / 'out'}", "device=cpu"])  # fmt: skip
    told = check_loaded(loaded)
    assert told.findings == () and told.notices == ()
    assert told.reward is None or told.reward.right is None or told.reward.right > (told.reward.wrong or 0)
