"""Recipes with tools: what is learned from, what is logged, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import upslope
from tests import talk_support as talk
from tests import tools_for_tests as mine
from tests.recipes.support import digests, metrics, one_thread, stopped_at
from upslope.api import FinishedRun
from upslope.errors import InputError, InputErrors
from upslope.models import loading
from upslope.recipes.configs import GrpoRecipe
from upslope.run.recipe import build
from upslope.text.rendering import Renderer

__all__ = ["one_thread"]
FILE = f"{mine.__file__}:add"


def fives(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """How often the last message says 5; a conversation comes as its messages."""
    assert all(isinstance(said, list) and said[0]["role"] == said[-1]["role"] == "assistant" for said in completions)
    for said in completions:
        assert {message["role"] for message in said} <= {"tool", "assistant"}
    return [
        said[-1]["content"].count("5") + 0.25 * sum(bool(m.get("tool_calls")) for m in said) for said in completions
    ]


def fives_in_text(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """Rows of plain text: the text of the last message, calls left out."""
    assert all(isinstance(said, str) and "tool_call" not in said.replace(talk.BROKEN, "") for said in completions)
    return [float(said.count("5")) for said in completions]


class Bench:
    def __init__(self, root: Path) -> None:
        self.root, self.model = root, talk.caller(root / "start")
        self.rows, self.plain, self.talks = root / "rows.jsonl", root / "plain.jsonl", root / "talks.jsonl"
        asked = [[{"role": "user", "content": f"{n % 7} a"}] for n in range(12)]
        self.rows.write_text("".join(json.dumps({"prompt": prompt, "answer": "5"}) + "\n" for prompt in asked))
        self.plain.write_text("".join(json.dumps({"prompt": p[0]["content"], "answer": "5"}) + "\n" for p in asked))
        call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}
        said = [{"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "name": "add", "content": "5"}, {"role": "assistant", "content": "5 a"}]  # fmt: skip
        self.talks.write_text("".join(json.dumps({"messages": [*prompt, *said]}) + "\n" for prompt in asked))

    def run(self, kind: str, out: str, **keywords: Any) -> FinishedRun:
        sizes = {"grpo": {"group": 3}, "ppo": {"samples": 2}, "sft": {}}[kind]
        base: dict[str, Any] = {
            "model": str(self.model), "data": str(self.rows), "out": str(self.root / out), "max_new_tokens": 8,
            "budget": 300, "max_turns": 3, "lr": 1e-2, "warmup": 0, "dtype": "float32", "device": "cpu",
            "eval_prompts": 2, "eval_every": 2, "listeners": [], "reward": fives, "steps": 2, "prompts": 4,
            "tools": [FILE], **sizes,
        }  # fmt: skip
        return getattr(upslope, kind)(**{**base, **keywords})


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("talks"))


@pytest.fixture(scope="module")
def run(bench: Bench) -> FinishedRun:
    return bench.run("grpo", "grpo", epochs=2, minibatches=2, save_every=100, kl_coef=0.1)


def lines(run: FinishedRun, step: int = 1) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "rollouts" / f"step-{step:05d}.jsonl").read_text().splitlines()]


def test_calls_and_failures_are_counted_as_the_log_shows_them(run: FinishedRun) -> None:
    for step, row in enumerate(metrics(run), start=1):
        shown = [line["completion"] for line in lines(run, step)]
        results = sum(text.count("<|im_end|>\n<|im_start|>tool\n") for text in shown)
        assert row["tools/call_frequency"] * len(shown) >= results > 0
        assert 0 < row["tools/failure_frequency"] < 1 and 1 < row["tools/mean_turns"] < 3
    assert {"eval/tools/call_frequency", "eval/tools/failure_frequency"} <= set(metrics(run)[-1])
    times = [json.loads(line) for line in (run.folder / "timings.jsonl").read_text().splitlines()]
    assert all(row["time/tools"] > 0 and row["time/sampling"] > 0 for row in times if row["step"] > 0)


def test_only_the_models_own_tokens_are_logged_as_its_own(run: FinishedRun) -> None:
    card = loading.read_card(str(run.model))
    words = Renderer(card.tokenizer, card.stop_ids)
    several = 0
    for line in lines(run):
        own = words.tokenizer.decode(line["token_ids"], skip_special_tokens=False)
        results = line["completion"].split("<|im_end|>\n<|im_start|>tool\n")
        several += len(results) > 1
        told = [part.partition("<|im_start|>assistant\n") for part in results[1:]]
        assert own == results[0] + "".join("<|im_end|>" * bool(turn) + said for _, turn, said in told)
        assert len(line["token_ids"]) == len(line["logprobs"])
        if "entropies" in line:
            assert len(line["entropies"]) == len(line["gaps"]) == len(line["token_ids"])
            assert max(map(abs, line["gaps"])) < 1e-4
    assert several


def test_metrics_of_the_loss_are_over_the_models_tokens(run: FinishedRun) -> None:
    row = metrics(run)[0]
    rows = lines(run)
    chosen = [len(line["token_ids"]) for line in rows]
    assert row["completions/mean_length"] == pytest.approx(sum(chosen) / len(chosen))
    assert row["num_tokens"] > sum(chosen) + sum(line["completion"].count("<|im_start|>tool") for line in rows)
    assert row["sampler_gap/max"] < 1e-4 and 0 < row["entropy"] < 3 and row["kl"] >= 0
    assert row["completions/clipped_ratio"] == pytest.approx(1 - sum(line["terminated"] for line in rows) / len(rows))


def test_a_run_with_tools_is_reproducible_and_resumes_bit_for_bit(
    bench: Bench, run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stopped_at("1:2", monkeypatch):
        bench.run("grpo", "stopped", epochs=2, minibatches=2, save_every=100, kl_coef=0.1)
    again = bench.run("grpo", "stopped", epochs=2, minibatches=2, save_every=100, kl_coef=0.1, resume=True)
    assert digests(again.folder) == digests(run.folder)


def test_ppo_runs_with_a_python_function_as_its_tool_and_plain_rows(bench: Bench) -> None:
    found = bench.run(
        "ppo", "ppo", tools=[mine.add], data=str(bench.plain), reward=fives_in_text, epochs=1, minibatches=1
    )
    row = metrics(found)[-1]
    assert row["tools/call_frequency"] > 0 and abs(row["value/mean"]) < 10
    assert row["sampler_gap/max"] < 1e-4 and row["ratio/mean"] == pytest.approx(1.0, abs=1e-3)
    recipe = (found.folder / "recipe.yaml").read_text()
    assert 'tools: ["python:tool add"]' in recipe or "python:tool add" in recipe
    with pytest.raises((InputError, InputErrors), match="was a function of the Python call that started this run"):
        bench.run("ppo", "ppo-again", tools=["python:tool add"], data=str(bench.plain), reward=fives_in_text)


def test_supervised_rows_with_calls_are_learned_and_their_questions_answered_with_tools(bench: Bench) -> None:
    found = bench.run("sft", "sft", data=str(bench.talks), steps=40, prompts=4, eval_every=0, reward=fives_of_anything)
    first, last = found.metrics[0], found.metrics[-1]
    assert last["eval_loss"] < 0.3 * first["eval_loss"]
    assert {"eval/reward", "eval/tools/call_frequency"} <= set(last)


def test_python_keywords_and_the_recipe_say_the_same() -> None:
    recipe = build({"data": {"task": "calculator"}, "tools": "a.py:f", "max_turns": 5}, GrpoRecipe).recipe
    assert recipe.episode is not None and recipe.episode.tools == ("a.py:f",)
    assert recipe.episode.room(64) == 5 * 64 and recipe.episode.model_copy(update={"budget": 9}).room(64) == 9


@pytest.mark.parametrize(
    ("keywords", "problem"),
    [
        ({"tools": ["nowhere.py:f"]}, r"episode\.tools nowhere\.py: no such file"),
        ({"tools": [f"{mine.__file__}:ad"]}, r"episode\.tools: .*did you mean .*:add"),
        ({"tools": []}, "found no tools. Fix: give"),
        ({"tools": [f"{mine.__file__}:untyped"]}, r"episode\.tools untyped: .*missing a type hint"),
        ({"max_turns": 1}, r"episode\.max_turns"),
        ({"budget": 600}, r"episode\.budget: 600 new tokens leave no room for a prompt in a context of 512"),
        ({"budget": 500}, r"exceed 12 tokens .*lower episode\.budget to \d+"),
        ({"chat": "never"}, r"data\.chat: never, but tools|chat template"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_sampled(
    bench: Bench, keywords: dict[str, Any], problem: str
) -> None:
    with pytest.raises((InputError, InputErrors), match=problem):
        bench.run("grpo", f"refused-{abs(hash(problem))}", **keywords)


def test_check_shows_the_tools_in_the_prompt(bench: Bench) -> None:
    found = upslope.check(
        "grpo", model=str(bench.model), data=str(bench.rows), reward=fives_of_anything, tools=[FILE], max_new_tokens=6,
        budget=200, show=False, device="cpu",
    )  # fmt: skip
    assert "add" in "".join(segment.text for segment in found.rendered)
    assert found.step.longest_completion == 200


def fives_of_anything(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    return [float(str(said).count("5")) for said in completions]


# ---------------------------------------------------------------------------------------------------------- evaluation
def test_evaluate_holds_the_conversations_that_a_run_holds(bench: Bench, run: FinishedRun) -> None:
    settings: dict[str, Any] = {
        "data": str(bench.rows), "reward": fives, "max_new_tokens": 8, "budget": 300, "max_turns": 3,
        "device": "cpu", "dtype": "float32", "prompts": 2,
    }  # fmt: skip
    found = upslope.evaluate(str(run.folder / "model"), tools=[FILE], **settings)
    assert found.greedy.mean == pytest.approx(metrics(run)[-1]["eval/reward"])
    every = upslope.evaluate(str(bench.model), tools=mine.add, split="all", **{**settings, "prompts": 12})
    results = [text.count("<|im_end|>\n<|im_start|>tool\n") for text in every.sampled.completions]
    assert sum(results) > 0  # calls were made and answered
    called = [reward % 1 > 0 for reward, count in zip(every.sampled.rewards, results, strict=True) if count]
    assert all(called)  # the reward saw the whole conversation, calls among its messages
    plain = {**settings, "data": str(bench.plain), "reward": {"builtin": "exact"}, "prompts": 12}
    alone = upslope.evaluate(str(bench.model), split="all", **plain)
    assert not any("<|im_start|>tool" in text for text in alone.sampled.completions)


def test_evaluate_keeps_to_its_budget(bench: Bench) -> None:
    settings: dict[str, Any] = {
        "data": str(bench.rows), "reward": fives, "max_new_tokens": 8, "max_turns": 3, "device": "cpu",
        "dtype": "float32", "prompts": 12, "split": "all", "tools": [FILE],
    }  # fmt: skip
    tokenizer = loading.read_card(str(bench.model)).tokenizer
    longest = {}
    for budget in (300, 30):
        found = upslope.evaluate(str(bench.model), budget=budget, **settings)
        longest[budget] = max(len(tokenizer.encode(text)) for text in found.sampled.completions)
    assert longest[30] <= 30 < longest[300] <= 300


@pytest.mark.parametrize(
    ("keywords", "said"),
    [({"tools": []}, "found no tools"), ({"tools": "nowhere.py:add"}, "nowhere.py"),
     ({"tools": FILE, "max_turns": 1}, "max_turns")],
)  # fmt: skip
def test_evaluate_says_what_is_wrong_with_tools(bench: Bench, keywords: dict[str, Any], said: str) -> None:
    with pytest.raises((InputError, InputErrors), match=said):
        upslope.evaluate(str(bench.model), data=str(bench.rows), reward=fives, **keywords)
