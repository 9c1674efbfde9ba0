"""`upslope check`: the words of the run, numbers by hand, what is on show, and the kind of a recipe."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests import tiny
from tests.checkup.support import found, tidy, write
from tests.inputs.bad_inputs import INPUTS
from tests.inputs.desk import Desk, desk, models
from tests.recipes.support import one_thread
from upslope.checkup import gather
from upslope.checkup.gather import check as check_loaded
from upslope.checkup.kinds import kind_of
from upslope.checkup.show import show
from upslope.errors import InputError
from upslope.recipes.configs import RECIPES
from upslope.run.recipe import load

__all__ = ["desk", "models", "one_thread", "tidy"]
ROOT = Path(__file__).parents[2]


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


@pytest.mark.parametrize(("dtype", "sums"), [("float32", 0), ("bfloat16", 4)])
def test_float32_sums_count_where_an_update_takes_several_micro_batches(tidy: Desk, dtype: str, sums: int) -> None:
    # 8 completions of 40 tokens at most: together, in pieces, and in pieces of minibatches
    gradients = {}
    for tokens, minibatches in ((4096, 1), (64, 1), (160, 1), (160, 2)):
        keys = (f"train.micro_batch_tokens={tokens}", f"train.minibatches={minibatches}", f"model.dtype={dtype}")
        checkup = found(tidy, *keys)
        assert checkup.memory is not None and checkup.rows.prompt is not None
        assert 160 < 8 * (checkup.rows.prompt.longest + 6) <= 320
        gradients[tokens, minibatches] = checkup.memory.parts["gradients"]
    weights = sum(p.numel() for p in tiny.model("llama").parameters())
    together, pieces = gradients[4096, 1], gradients[64, 1]
    assert pieces - together == sums * weights
    assert gradients[160, 1] == pieces and gradients[160, 2] == together


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
