"""The Python interface: one function a recipe, errors before torch, a light import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

import upslope
from tests.recipes.support import Bench, bench, letters, one_thread
from upslope.errors import InputError, InputErrors
from upslope.recipes.evaluation import interval

__all__ = ["bench", "one_thread"]


def python(code: str, folder: Path) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_grpo_from_python_gives_metrics_model_and_report(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    calls = {"model": str(bench.model), "data": bench.rows, "reward": letters, "steps": 2, "prompts": 2, "group": 3,
             "max_new_tokens": 5, "dtype": "float32", "device": "cpu", "eval_prompts": 2, "listeners": []}  # fmt: skip
    run = upslope.grpo(**calls)
    assert run.folder == Path("runs/grpo-1") and upslope.grpo(**calls).folder == Path("runs/grpo-2")
    assert [row["step"] for row in run.metrics] == [0, 1, 2]
    assert AutoModelForCausalLM.from_pretrained(run.model).config.vocab_size > 0
    assert run.report.read_text("utf-8").startswith("<!doctype html>") or "<html" in run.report.read_text("utf-8")
    assert run.best.is_dir()
    with pytest.raises(InputError, match=r"give out='runs/grpo-2'"):
        upslope.grpo(**calls, resume=True)


def test_importing_upslope_imports_no_torch(tmp_path: Path) -> None:
    heavy = ("torch", "transformers", "datasets")
    code = f"import sys, upslope, upslope.cli; print([name for name in {heavy} if name in sys.modules])"
    assert python(code, tmp_path) == "[]"


@pytest.mark.parametrize(
    ("kind", "keywords", "said"),
    [
        ("grpo", {"data": "rows.jsonl", "reward": "r.py:f", "gruop": 8}, "gruop"),
        ("grpo", {"data": "rows.jsonl", "reward": "r.py:f", "lr": -1e-5}, "optim.lr"),
        ("grpo", {"data": "rows.jsonl", "reward": "r.py:g"}, "reward.function"),
        ("ppo", {"data": "nowhere.jsonl", "reward": "r.py:f"}, "nowhere.jsonl"),
        ("sft", {"data": "rows.jsonl"}, "completion"),
        ("grpo", {"data": {"task": "arithmetics"}}, "arithmetic"),
    ],
)
def test_recipe_errors_come_before_torch_is_imported(
    tmp_path: Path, kind: str, keywords: dict[str, Any], said: str
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    (tmp_path / "r.py").write_text("def f(prompts, completions, **columns):\n    return [0.0 for _ in completions]\n")
    code = (
        "import sys, upslope\nfrom upslope.errors import UpslopeError\n"
        f"try:\n    upslope.{kind}(model='m', **{keywords!r})\n"
        "except UpslopeError as error:\n    print(error)\nprint('torch' in sys.modules)"
    )
    found = python(code, tmp_path)
    assert said in found and "Fix: " in found and found.endswith("False")
    assert not (tmp_path / "runs").exists()


def test_all_errors_of_a_recipe_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputErrors) as caught:
        upslope.grpo(
            model="m", data={"path": str(tmp_path / "no.jsonl")}, reward=str(tmp_path / "no.py") + ":f", steps=3
        )
    assert {"no.jsonl", "no.py"} <= {
        name for error in caught.value.errors for name in ("no.jsonl", "no.py") if name in str(error)
    }


# --------------------------------------------------------------------------------------------------------------- check
def test_check_finds_what_the_command_finds(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings: dict[str, Any] = {"model": str(bench.model), "data": bench.rows, "max_new_tokens": 6, "group": 2,
                                "dtype": "float32", "device": "cpu", "prompts": 2, "steps": 3, "eval_prompts": 0,
                                "out": str(tmp_path / "out")}  # fmt: skip
    found = upslope.check("grpo", reward=letters, **settings)
    assert "letters" in capsys.readouterr().out and found.kind == "grpo" and found.step.completions == 4
    assert found.reward is not None and not (tmp_path / "out").exists()
    file = tmp_path / "grpo.yaml"
    file.write_text(
        f"model: {{name: {bench.model}, dtype: float32}}\ndevice: cpu\ndata: {bench.rows}\n"
        f"reward: {{builtin: exact}}\nout: {tmp_path / 'out'}\ntrain: {{prompts: 2, eval_prompts: 0}}\n"
    )
    again = upslope.check(file, "grpo.group=2", "train.steps=3", "sampling.max_new_tokens=6", show=False)
    assert capsys.readouterr().out == ""
    assert (again.step, again.rows, again.model) == (found.step, found.rows, found.model)
    assert upslope.check(str(file), kind="grpo", show=False).kind == "grpo"


@pytest.mark.parametrize(
    ("arguments", "keywords", "said"),
    [(("grpo",), {"data": "nowhere.jsonl", "reward": "r.py:f", "lr": -1}, "optim.lr"), (("grpo", "lr=1"), {"data": {
        "task": "arithmetic"}}, "overrides are for a recipe's file"), (("nowhere.yaml",), {}, "no such file"),
     (("recipe.yaml",), {"steps": 4}, "steps is not understood"), (("recipe.yaml",), {"kind": "q"}, "kind 'q'")],
)  # fmt: skip
def test_check_says_what_is_wrong(arguments: tuple[str, ...], keywords: dict[str, Any], said: str) -> None:
    with pytest.raises((InputError, InputErrors), match=said):
        upslope.check(*arguments, **keywords)


# ---------------------------------------------------------------------------------------------------------- evaluation
def test_evaluate_scores_the_rows_that_a_training_run_kept(bench: Bench) -> None:
    function = bench.root / "letters.py"
    function.write_text(
        "def letters(prompts, completions, **columns):\n"
        "    return [sum(c.islower() for c in text) / max(1, len(text)) for text in completions]\n"
    )
    settings: dict[str, Any] = {
        "data": bench.rows,
        "reward": f"{function}:letters",
        "max_new_tokens": 6,
        "device": "cpu",
        "dtype": "float32",
    }
    found = upslope.evaluate(str(bench.model), split="heldout", heldout=0.25, **settings)
    assert found.greedy.n == found.sampled.n == 3 == len(found.prompts)
    assert found.greedy.rewards == tuple(letters([], list(found.greedy.completions)))
    assert found.greedy.low <= found.greedy.mean <= found.greedy.high
    run = bench.run("grpo", "kept", heldout=0.25, steps=1, eval_prompts=99)
    assert run.metrics[0]["eval/reward"] == pytest.approx(found.greedy.mean)
    every = upslope.evaluate(str(bench.model), split="all", **settings)
    assert every.greedy.n == 12 and every == upslope.evaluate(str(bench.model), split="all", **settings)


def test_evaluate_leaves_bad_rows_out_where_a_training_run_would(bench: Bench, tmp_path: Path) -> None:
    lines = Path(bench.rows).read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines[:3], '{"answer": "3"}', *lines[3:]]) + "\n")
    settings: dict[str, Any] = {
        "data": str(tmp_path / "rows.jsonl"), "reward": letters, "max_new_tokens": 4, "device": "cpu",
        "dtype": "float32", "split": "all",
    }  # fmt: skip
    with pytest.raises(InputError, match=r"data\.on_bad_row: skip"):
        upslope.evaluate(str(bench.model), **settings)
    found = upslope.evaluate(str(bench.model), on_bad_row="skip", **settings)
    assert sorted(found.prompts) == sorted(json.loads(line)["prompt"] for line in lines)


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({}, "data.task"),
        ({"task": "arithmetic", "split": "test"}, "split"),
        ({"task": "arithmetic", "max_new_tokens": 0}, "max_new_tokens"),
        ({"task": "arithmetic", "chat": "perhaps"}, "chat"),
        ({"data": "ROWS"}, "reward"),
    ],
)
def test_evaluations_of_nothing_are_input_errors(bench: Bench, keywords: dict[str, Any], said: str) -> None:
    keywords = {name: bench.rows if value == "ROWS" else value for name, value in keywords.items()}
    with pytest.raises((InputError, InputErrors), match=said):
        upslope.evaluate(str(bench.model), **keywords)


def test_intervals_are_wilsons_for_shares_and_normal_for_numbers() -> None:
    low, high = interval([1.0] * 8 + [0.0] * 2)  # Wilson, 8 of 10: 0.490 to 0.943
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert interval([0.0] * 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    low, high = interval([1.0, 2.0, 3.0])  # 2 +- 1.959964 / sqrt(3)
    assert (low, high) == pytest.approx((2 - 1.13159, 2 + 1.13159), abs=1e-4)
    assert json.dumps(interval([0.5])) == "[-Infinity, Infinity]"
