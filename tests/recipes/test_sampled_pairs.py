"""Pairs of a model's own answers: the best and the worst of each prompt, by the reward, and rows that can be read."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

import upslope
from tests.recipes.support import Bench, bench, letters, one_thread
from upslope.errors import InputError, InputErrors
from upslope.recipes import sampled_pairs
from upslope.recipes.answering import Answer
from upslope.recipes.sampled_pairs import best_and_worst, use
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
    assert [use(one) for one in (low, Answer("cut", 9.0, False), done(" ", 9.0), done("free", None))] == [
        "usable", "cut", "empty", "unscored",
    ]  # fmt: skip


def test_pairs_are_of_training_prompts_and_follow_the_reward(bench: Bench, model: str, tmp_path: Path) -> None:
    out = tmp_path / "new" / "pairs.jsonl"
    found = upslope.sample_pairs(model, out, data=bench.rows, heldout=0.25, samples=6, **SETTINGS)
    rows = rows_of(out)
    kept = upslope.evaluate(model, data=bench.rows, heldout=0.25, **SETTINGS).prompts
    asked = [row["prompt"] for row in rows]
    assert found.prompts == 9 and len(kept) == 3 and len(set(asked)) == len(asked) >= 5 and not set(asked) & set(kept)
    assert (found.path, found.pairs, found.answers) == (out, len(rows), 54)
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
        place = tmp_path / f"{name}.jsonl"
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


def test_cut_answers_are_left_out_and_counted(bench: Bench, tmp_path: Path) -> None:
    def length(prompts: list[Any], completions: list[str], **columns: Any) -> list[float]:
        return [float(len(text)) for text in completions]

    out = tmp_path / "pairs.jsonl"
    settings = {**SETTINGS, "reward": length, "split": "all", "data": bench.rows, "samples": 16}
    found = upslope.sample_pairs(str(bench.model), out, **settings, seed=1)  # untrained: it hardly ever stops
    assert 0.8 * found.answers < found.cut <= found.answers - found.empty and found.unscored == 0
    # A cut answer has all 24 tokens, of a character each; these would be the longest, and so the chosen ones.
    assert all(len(row["chosen"]) < 24 for row in rows_of(out))
    with pytest.raises(
        InputError,
        match=r"no pair from 192 answers to 12 prompts: the length limit cut 18\d of them.*raise max_new_tokens",
    ):
        upslope.sample_pairs(str(bench.model), tmp_path / "none.jsonl", **{**settings, "max_new_tokens": 1, "seed": 3})
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_prompts_that_no_function_applies_to_give_no_pair(
    bench: Bench, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(prompts: list[Any], completions: list[str], answer: list[str], **columns: Any) -> list[float | None]:
        return [float(len(text)) if int(n) % 2 else None for text, n in zip(completions, answer, strict=True)]

    settings = {**SETTINGS, "reward": odd, "split": "all", "data": bench.rows, "samples": 8}
    found = upslope.sample_pairs(model, tmp_path / "a.jsonl", **settings)
    monkeypatch.setattr(sampled_pairs, "AT_ONCE", 1)  # nothing applies to every second batch
    assert upslope.sample_pairs(model, tmp_path / "b.jsonl", **settings).unscored == found.unscored == 48
    rows = rows_of(tmp_path / "b.jsonl")
    assert rows == rows_of(tmp_path / "a.jsonl") and {int(row["answer"]) % 2 for row in rows} == {1}
    with pytest.raises(InputError, match="no reward function applies to 96 of them"):
        nothing = {**settings, "reward": lambda prompts, completions, **columns: [None] * len(completions)}
        upslope.sample_pairs(model, tmp_path / "c.jsonl", **nothing)
    with pytest.raises(InputError, match=r"\d\d of them are worth what the others"):
        same = {**settings, "reward": lambda prompts, completions, **columns: [1.0] * len(completions)}
        upslope.sample_pairs(model, tmp_path / "c.jsonl", **same)


def test_conversations_and_odd_columns_become_rows_that_are_read(model: str, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"

    def said(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        return letters([], [completion[-1]["content"] for completion in completions])

    system, asked = ({"role": role, "content": f"{role} 7"} for role in ("system", "user"))
    lines = [
        json.dumps({"prompt": [system, {**asked, "content": f"say {n}"}], "note": "\ud800", "margin": n})
        for n in range(8)
    ]
    data.write_text("\n".join(lines))
    out = tmp_path / "pairs.jsonl"
    found = upslope.sample_pairs(model, out, data=str(data), split="all", samples=8, **{**SETTINGS, "reward": said})
    rows = rows_of(out)
    assert rows and list(found.first) == rows[:5] and {row["note"] for row in rows} == {"\ud800"}
    pairs, _ = to_pairs(rows, "pairs.jsonl")
    assert [list(pair.prompt) for pair in pairs] == [row["prompt"] for row in rows]
    assert pairs[0].margin == 0 and pairs[0].prompt[0] == system


def test_a_reward_model_may_judge(bench: Bench, model: str, tmp_path: Path) -> None:
    first = tmp_path / "pairs.jsonl"
    settings = {**SETTINGS, "data": bench.rows, "split": "all", "samples": 8}
    upslope.sample_pairs(model, first, **settings)
    judge = upslope.reward_model(
        model=model, data=str(first), steps=12, prompts=6, lr=1e-2, warmup=0, heldout=2, dtype="float32",
        device="cpu", listeners=[], out=tmp_path / "judge", eval_every=0,
    )  # fmt: skip
    assert judge.metrics[-1]["loss"] < 0.5 < judge.metrics[1]["loss"]
    found = upslope.sample_pairs(model, tmp_path / "next.jsonl", **{**settings, "reward": {"model": str(judge.model)}})
    taste = [letters([], [row["chosen"], row["rejected"]]) for row in rows_of(found.path)]
    assert sum(chosen for chosen, _ in taste) > sum(rejected for _, rejected in taste)


def test_what_was_written_stays_when_it_is_interrupted(
    bench: Bench, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SETTINGS, "data": bench.rows, "split": "all", "samples": 8}
    upslope.sample_pairs(model, tmp_path / "once.jsonl", **settings)
    monkeypatch.setattr(sampled_pairs, "AT_ONCE", 4)
    seen: list[tuple[int, int]] = []
    upslope.sample_pairs(model, tmp_path / "all.jsonl", **settings, progress=lambda *at: seen.append(at))
    assert seen == sorted(seen) and seen[-1][0] <= 96 and {total for _, total in seen} == {96}
    assert len({done // 32 for done, _ in seen}) >= 3  # in each of the three batches

    def stop(done: int, total: int) -> None:
        if done > 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upslope.sample_pairs(model, tmp_path / "part.jsonl", **settings, progress=stop)
    part, every = rows_of(tmp_path / "part.jsonl"), rows_of(tmp_path / "all.jsonl")
    assert every == rows_of(tmp_path / "once.jsonl") and 0 < len(part) < len(every) and part == every[: len(part)]


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"samples": 1}, "expected at least 2"),
        ({"out": "old.jsonl"}, r"old\.jsonl: exists already.*--overwrite"),
        ({"out": "folder.jsonl", "overwrite": True}, r"exists already\. Fix: give another file\.$"),
        ({"out": "rows.jsonl", "overwrite": True}, "these are the prompts themselves"),
        ({"out": "pairs.parquet"}, r"ends in \.jsonl is expected\. Fix: give pairs\.jsonl"),
        ({"out": "old.jsonl/pairs.jsonl"}, "cannot be written"),
        ({"out": "old.jsonl", "overwrite": True, "model": "nowhere"}, "nowhere"),
        ({"reward": None}, "need a reward"),
        ({"temperature": -1}, "sample_pairs\\(\\) temperature"),
        ({"data": None}, "data.task"),
    ],
)
def test_wrong_arguments_say_what_to_give_and_leave_everything_as_it_is(
    bench: Bench, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keywords: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old.jsonl").write_text("mine\n")
    Path("rows.jsonl").write_text(Path(bench.rows).read_text())
    Path("folder.jsonl").mkdir()
    given = {**SETTINGS, "model": model, "data": "rows.jsonl", "out": "pairs.jsonl", **keywords}
    with pytest.raises((InputError, InputErrors), match=said):
        upslope.sample_pairs(**given)
    assert Path("old.jsonl").read_text() == "mine\n" and Path("rows.jsonl").read_text() == Path(bench.rows).read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.jsonl", "old.jsonl", "rows.jsonl"]


@pytest.mark.parametrize("do", ["drop", "truncate"])
def test_long_prompts_are_dropped_or_lose_their_beginning(model: str, tmp_path: Path, do: str) -> None:
    rows = [{"prompt": "say " * size + str(size)} for size in (1, 2, 300)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {**SETTINGS, "data": str(tmp_path / "rows.jsonl"), "split": "all"}
    with pytest.raises(InputError, match=r"data\.too_long: drop or truncate"):
        upslope.evaluate(model, **settings)
    assert upslope.evaluate(model, **settings, too_long=do).greedy.n == {"drop": 2, "truncate": 3}[do]


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
    shown = [[float(part) for part in re.findall(r"^ +(-?[\d.]+)  ", told.stdout, re.MULTILINE)]]
    assert shown == [[rows[0]["chosen_reward"], rows[0]["rejected_reward"]]]  # of one pair, as asked
    assert f"chosen {fmean(row['chosen_reward'] for row in rows):.3f}" in told.stdout
    again = pairs("--columns", "prompt=question")
    assert again.returncode == 2 and "out.jsonl: exists already" in again.stderr and "--overwrite" in again.stderr
    (tmp_path / "rows.jsonl").write_text('{"prompt": "%s"}\n{"prompt": "say 1"}\n' % ("say " * 300))
    refused = pairs("--overwrite", "--heldout", "0")
    assert refused.returncode == 2 and "Fix: set --too-long drop or truncate." in refused.stderr


def test_the_rule_of_worked_sums_as_a_reward() -> None:
    asked = [question(47, 38), question(12, 5)]
    assert few_faults(asked, [work(47, 38), "17"], answer=["85", "17"]) == [0.0, -3.0]
    assert few_faults(asked[:1], ["4 + 8 = 12, 40 + 30 = 70, 70 + 12 = 82"]) == [-1.0]
