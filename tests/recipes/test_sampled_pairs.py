"""Pairs of a model's own answers: the best and the worst of each prompt, by the reward, and rows that can be read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import upslope
from tests.recipes.support import Bench, bench, letters, one_thread
from upslope.errors import InputError, InputErrors
from upslope.recipes import sampled_pairs
from upslope.recipes.answering import Answer
from upslope.recipes.sampled_pairs import best_and_worst
from upslope.text.preferences import to_pairs
from upslope.worlds.worked_sums import few_faults, question, work

__all__ = ["bench", "one_thread"]

SETTINGS: dict[str, Any] = {"reward": letters, "max_new_tokens": 24, "device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def model(bench: Bench) -> str:
    """One that has learned to stop, and little else."""
    return str(bench.run("sft", "stops", steps=4, prompts=8, eval_every=0).model)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def done(text: str, reward: float | None) -> Answer:
    return Answer(text, reward, True)


def test_the_best_and_the_worst_by_hand() -> None:
    low, high, top = done("a", 0.0), done("b", 1.0), done("c", 2.0)
    assert best_and_worst([high, low, top]) == (top, low)
    assert best_and_worst([high, done("other", 1.0), low, done("z", 0.0)]) == (high, low)  # the first among equals
    assert best_and_worst([high, done("c", 1.0)]) is None  # worth the same
    assert best_and_worst([done("b", 1.0), done("b", 0.0)]) is None  # a reward that changes its mind
    assert best_and_worst([Answer("cut", 9.0, False), high, low]) == (high, low)
    assert best_and_worst([done(" ", 9.0), high, low]) == (high, low)  # an empty row could not be read
    assert best_and_worst([done("free", None), high, low]) == (high, low)
    assert best_and_worst([high]) is None and best_and_worst([]) is None


def test_pairs_are_of_training_prompts_and_follow_the_reward(bench: Bench, model: str, tmp_path: Path) -> None:
    out = tmp_path / "new" / "pairs.jsonl"
    found = upslope.sample_pairs(model, out, data=bench.rows, heldout=0.25, samples=6, **SETTINGS)
    rows = rows_of(out)
    kept = upslope.evaluate(model, data=bench.rows, heldout=0.25, **SETTINGS).prompts
    asked = [row["prompt"] for row in rows]
    assert found.prompts == 9 and len(kept) == 3 and len(set(asked)) == len(asked) >= 5 and not set(asked) & set(kept)
    assert (found.pairs, found.pairs + found.equal, found.answers) == (len(rows), 9, 54)
    for row in rows:
        assert [row["chosen_reward"], row["rejected_reward"]] == letters([], [row["chosen"], row["rejected"]])
        assert row["chosen_reward"] > row["rejected_reward"] and row["answer"] == row["prompt"].split()[1]
    for side in ("chosen", "rejected"):
        assert getattr(found, side) == pytest.approx(sum(row[f"{side}_reward"] for row in rows) / len(rows))
    assert found.rejected < found.mean < found.chosen
    assert found.longer == sum(len(row["chosen"]) > len(row["rejected"]) for row in rows) / len(rows)
    assert list(found.first) == rows[:5]
    pairs, equal = to_pairs(rows, "pairs.jsonl")
    assert [(pair.prompt, pair.chosen, pair.margin) for pair in pairs] == [
        (r["prompt"], r["chosen"], 0.0) for r in rows
    ]
    assert equal == 0 and set(pairs[0].columns) == {"answer", "completion", "chosen_reward", "rejected_reward"}


def test_answers_derive_from_the_seed_and_more_of_them_only_widen_a_pair(
    bench: Bench, model: str, tmp_path: Path
) -> None:
    def sampled(name: str, **keywords: Any) -> dict[str, dict[str, Any]]:
        place = tmp_path / name
        upslope.sample_pairs(model, place, data=bench.rows, split="all", **{**SETTINGS, **keywords})
        return {row["prompt"]: row for row in rows_of(place)}

    few, again, many = sampled("a", samples=3), sampled("b", samples=3), sampled("c", samples=8)
    assert few == again and few != sampled("d", samples=3, seed=1)
    assert few.keys() <= many.keys()
    for prompt, row in few.items():
        assert many[prompt]["chosen_reward"] >= row["chosen_reward"]
        assert many[prompt]["rejected_reward"] <= row["rejected_reward"]
    assert many != few
    some = sampled("e", samples=8, prompts=4)
    assert len(some) <= 4 and list(some) != sorted(some, key=lambda prompt: int(prompt.split()[1]))  # drawn by chance


def test_what_was_cut_is_left_out_and_counted(bench: Bench, model: str, tmp_path: Path) -> None:
    def length(prompts: list[Any], completions: list[str], **columns: Any) -> list[float]:
        return [float(len(text)) for text in completions]

    out = tmp_path / "pairs.jsonl"
    settings = {**SETTINGS, "reward": length, "split": "all", "data": bench.rows, "samples": 8}
    whole = upslope.sample_pairs(model, out, **settings, overwrite=True)
    assert 0 < whole.left_out < whole.answers
    with pytest.raises(InputError, match=r"no pair: all answers to each of 12 prompts .*\(96 of 96 cut or empty\)"):
        upslope.sample_pairs(model, tmp_path / "none.jsonl", **{**settings, "max_new_tokens": 1, "seed": 3})
    assert not (tmp_path / "none.jsonl").exists()


def test_pairs_of_own_answers_train_a_reward_model(bench: Bench, model: str, tmp_path: Path) -> None:
    out = tmp_path / "pairs.jsonl"
    upslope.sample_pairs(model, out, data=bench.rows, split="all", samples=8, **SETTINGS)
    run = upslope.reward_model(
        model=model, data=str(out), steps=12, prompts=6, lr=1e-2, warmup=0, heldout=2, dtype="float32",
        device="cpu", listeners=[], out=tmp_path / "judge", eval_every=0,
    )  # fmt: skip
    assert run.metrics[-1]["loss"] < 0.5 < run.metrics[1]["loss"]


def test_what_was_written_stays_when_it_is_interrupted(
    bench: Bench, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SETTINGS, "data": bench.rows, "split": "all", "samples": 8}
    upslope.sample_pairs(model, tmp_path / "at once", **settings)
    monkeypatch.setattr(sampled_pairs, "AT_ONCE", 4)
    seen: list[tuple[int, int]] = []
    upslope.sample_pairs(model, tmp_path / "all", **settings, progress=lambda *at: seen.append(at))
    assert seen == [(4, 12), (8, 12), (12, 12)]

    def stop(done: int, total: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upslope.sample_pairs(model, tmp_path / "part", **settings, progress=stop)
    part, every = rows_of(tmp_path / "part"), rows_of(tmp_path / "all")
    assert every == rows_of(tmp_path / "at once") and 0 < len(part) < len(every) and part == every[: len(part)]


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"samples": 1}, "expected at least 2"),
        ({"out": "old.jsonl"}, "exists already"),
        ({"out": "file/pairs.jsonl", "samples": 2}, "cannot be written"),
        ({"data": "ROWS", "reward": None}, "need a reward"),
        ({"temperature": -1}, "sample_pairs\\(\\) temperature"),
        ({"data": None}, "data.task"),
    ],
)
def test_wrong_arguments_say_what_to_give(
    bench: Bench, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keywords: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old.jsonl").write_text("mine\n")
    Path("file").write_text("")
    given = {**SETTINGS, "data": bench.rows, "out": "pairs.jsonl", **keywords}
    with pytest.raises((InputError, InputErrors), match=said):
        upslope.sample_pairs(model, **{**given, "data": bench.rows if given["data"] == "ROWS" else given["data"]})
    assert Path("old.jsonl").read_text() == "mine\n" and not Path("pairs.jsonl").exists()


def test_the_command_asks_writes_and_shows(bench: Bench, model: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"question": "say {n}"}}\n' for n in range(6)))
    (tmp_path / "taste.py").write_text(
        "def taste(prompts, completions, **columns):\n    return [len(set(text)) for text in completions]\n"
    )

    def pairs(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "upslope", "pairs", model, "out.jsonl", "--data", "rows.jsonl"]
        settings = ["--reward", "taste.py:taste", "--heldout", "2", "--max-new-tokens", "24", "--device", "cpu"]
        return subprocess.run(
            [*command, *settings, *more], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )

    refused = pairs()
    assert refused.returncode == 2 and "give --columns prompt=question" in refused.stderr
    told = pairs("--columns", "prompt=question", "--samples", "8", "--show", "1")
    assert told.returncode == 0, told.stderr
    rows = rows_of(tmp_path / "out.jsonl")
    assert f"{len(rows)} pairs from 32 answers to 4 prompts" in told.stdout and rows[0]["prompt"] in told.stdout
    assert f"{rows[0]['chosen_reward']:.2f}" in told.stdout and "all answers" in told.stdout
    again = pairs("--columns", "prompt=question")
    assert again.returncode == 2 and "out.jsonl: exists already" in again.stderr and "overwrite" in again.stderr


def test_the_rule_of_worked_sums_as_a_reward() -> None:
    asked = [question(47, 38), question(12, 5)]
    assert few_faults(asked, [work(47, 38), "17"], answer=["85", "17"]) == [0.0, -3.0]
    assert few_faults(asked[:1], ["4 + 8 = 12, 40 + 30 = 70, 70 + 12 = 82"]) == [-1.0]
