"""Sets of reasoning-gym: rows that are the same everywhere, right answers that score, and answers that are no code."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("reasoning_gym")

from upslope.errors import InputError, MachineError
from upslope.worlds import reasoning
from upslope.worlds.isolation import isolation
from upslope.worlds.reasoning import EVALUATES, VETTED, Climb, ReasoningGym
from upslope.worlds.rewards import Group, RewardPanel, Score, score_groups
from upslope.worlds.task import load_task

MISSING = "" if "does not hold" in isolation().sandbox else isolation().sandbox  # a wall with a hole is no wall missing
needs_sandbox = pytest.mark.skipif(bool(MISSING), reason=MISSING)
vetted = pytest.mark.skipif(importlib.metadata.version("reasoning-gym") != VETTED, reason=f"sets of {VETTED}")


@pytest.fixture(scope="module")
def sums() -> ReasoningGym:
    options = {"name": "chain_sum", "size": 30, "heldout": 10, "difficulty": 0, "rise_to": 2, "tag": "answer"}
    return load_task("reasoning-gym", options)  # type: ignore[return-value]


def scores(task: ReasoningGym, *answers: str, rows: int = 1) -> tuple[list[list[Score] | None], dict[str, float]]:
    groups = [
        Group(prompt, tuple(answer.replace("RIGHT", str(prompt.columns["answer"])) for answer in answers))
        for prompt in task.prompts("train")[:rows]
    ]
    with RewardPanel([task.reward_part], timeout=120) as panel:
        return score_groups(panel, groups, "stop")[0], panel.take_metrics()


def values(found: list[list[Score] | None]) -> list[list[float | None]]:
    return [[score.value for score in group or ()] for group in found]


def test_rows_have_levels_answers_and_ids_and_no_heldout_question_is_trained_on(sums: ReasoningGym) -> None:
    train, heldout = sums.prompts("train"), sums.prompts("heldout")
    assert (len(train), len(heldout)) == (90, 12)  # 30 at each of three levels; 10 held out, rounded up to 4 a level
    assert [row.columns["level"] for row in train] == [0] * 30 + [1] * 30 + [2] * 30
    questions = [row.content for row in heldout]
    assert len(set(questions)) == 12 and not set(questions) & {row.content for row in train}
    assert len({row.id for row in [*train, *heldout]}) == 102
    first, last = train[0], train[-1]
    assert first.content == f"State the final answer to the following arithmetic problem: {_sum(first)} ="
    assert eval(_sum(first)) == int(first.columns["answer"]) and eval(_sum(last)) == int(last.columns["answer"])
    terms = {
        level: {len(_sum(r).split()) // 2 + 1 for r in train if r.columns["level"] == level} for level in (0, 1, 2)
    }
    assert terms[0] == {2} and max(terms[1]) == 3 and max(terms[2]) == 4  # it gets harder
    assert sums.climb == Climb((0, 1, 2), 0.8, 4)
    examples = sums.examples("train")
    assert (
        examples[0].completion == f"<answer>{first.columns['answer']}</answer>" and examples[0].prompt == first.content
    )


def _sum(prompt: Any) -> str:
    return str(prompt.columns["entry"]["metadata"]["expression"])


def test_the_sets_own_scorer_judges_what_stands_in_the_tag(sums: ReasoningGym) -> None:
    found, metrics = scores(
        sums, "so <answer> RIGHT </answer>", "RIGHT", "<answer>x</answer>", "<answer></answer>", rows=2
    )
    assert values(found) == [[1.0, 0.0, 0.0, 0.0]] * 2 and metrics == {"reasoning/unreadable": 0.0}
    assert found[0] is not None and found[0][0].parts == {"chain_sum": 1.0}


def judge(name: str, partial: bool, *answers: str) -> tuple[list[float | None], dict[str, float]]:
    """The scorer itself, in this process, on the first row of the set."""
    from upslope.worlds import reasoning_sets

    row = reasoning_sets.make_rows(name, {}, [None], 3, 1, 1)[0]["train"][0]
    logged: dict[str, float] = {}
    reward = reasoning_sets.score(name, {}, [None], None, partial)
    completions = [answer.replace("RIGHT", row["answer"]) for answer in answers]
    count = len(completions)
    return reward(completions, [row] * count, [None] * count, logged.__setitem__), logged


def test_partial_scores_only_where_asked_for() -> None:
    assert judge("spell_backward", False, "RIGHT", "it is RIGHT of course")[0] == [1.0, 0.0]
    whole, part = judge("spell_backward", True, "RIGHT", "RIGHT!")[0]
    assert whole == 1.0 and part is not None and 0 < part < 1


def test_an_answer_at_which_a_scorer_breaks_is_wrong_and_counted() -> None:
    assert judge("prime_factorization", False, "RIGHT", "two times x") == ([1.0, 0.0], {"reasoning/unreadable": 0.5})


def test_a_scorer_that_is_broken_itself_is_an_error_and_not_a_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    from reasoning_gym.arithmetic import prime_factorization

    def broken(self: Any, answer: str, entry: Any) -> float:
        raise RuntimeError("broken")

    monkeypatch.setattr(prime_factorization.PrimeFactorizationDataset, "score_answer", broken)
    with pytest.raises(RuntimeError, match="broken"):
        judge("prime_factorization", False, "7")


def test_rows_do_not_depend_on_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"name": "isomorphic_strings", "size": 4, "heldout": 2, "seed": 5}
    rows = []  # this set draws by a walk through a Python set
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        reasoning._make_rows.cache_clear()
        rows.append([prompt.content for prompt in load_task("reasoning-gym", options).prompts("train")])
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("options", "where", "text", "fix"),
    [
        ({"name": "chain_sun"}, "name", "reasoning-gym has no set 'chain_sun'", "did you mean chain_sum?"),
        ({"config": {"min_term": 2}}, "config.min_term", "set chain_sum has no option 'min_term'", "did you mean min_"),
        ({"config": {"min_terms": 9}}, "config", "set chain_sum refuses it: max_terms must be >= min_terms", "correct"),
        ({"config": {"min_terms": "a"}}, "config", "set chain_sum refuses it", "correct that option"),
        ({"name": "acre", "levels": [1]}, "difficulty", "set acre has no levels of difficulty", "use config instead"),
        ({"name": "composite"}, "config", "Must specify at least one dataset", "correct that option"),
        ({"name": "coin_flip", "heldout": 99, "config": {"min_trials": 1, "max_trials": 2}}, "heldout",
         "99 questions to hold out, but set coin_flip gave 10 different ones in 500", "lower it"),
    ],
)  # fmt: skip
def test_wrong_options_of_a_set_say_what_is_right(options: dict[str, Any], where: str, text: str, fix: str) -> None:
    from upslope.worlds.reasoning_sets import BadOption, make_rows

    usual: dict[str, Any] = {"name": "chain_sum", "config": {}, "levels": [None], "seed": 0, "size": 1, "heldout": 1}
    with pytest.raises(BadOption) as caught:
        make_rows(**{**usual, **options})
    assert caught.value.where == where and text in str(caught.value) and fix in caught.value.fix


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, r"data.options.name: is missing. Fix: name a set"),
        ({"name": "chain_sun"}, r"data.options.name: .* has no set 'chain_sun'. Fix: did you mean chain_sum\?"),
        ({"name": "chain_sum", "size": "many"}, r"data.options.size: found 'many', expected int"),
        ({"name": "chain_sum", "size": 0}, r"data.options.size: found 0, expected at least 1"),
        ({"name": "chain_sum", "difficulty": 2, "rise_to": 2}, r"found difficulty 2 and rise_to 2, .*set rise_to to 3"),
    ],
)
def test_wrong_options_name_their_key(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        load_task("reasoning-gym", options)


def test_a_set_without_answers_cannot_be_imitated() -> None:
    task: Any = load_task("reasoning-gym", {"name": "propositional_logic", "size": 2, "heldout": 1})
    assert task.prompts("train")[0].columns["answer"] is None
    with pytest.raises(InputError, match="gives questions without answers"):
        task.examples("train")


def test_without_the_package_the_machine_is_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reasoning.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r"reasoning-gym is not installed. Fix: pip install 'upslope\[tasks\]'"):
        load_task("reasoning-gym", {"name": "chain_sum"})


# ---------------------------------------------------------------------------------------- sets that evaluate the answer
@vetted
def test_sets_that_evaluate_answers_and_unknown_versions_are_sandboxed(
    sums: ReasoningGym, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [{"name": "gcd"}, {"name": "countdown"}]
    mixed = {"name": "composite", "size": 6, "heldout": 2, "config": {"datasets": parts}}
    assert not sums.reward_part.sandbox
    both: Any = load_task("reasoning-gym", mixed)
    assert both.reward_part.sandbox
    assert {row.columns["entry"]["metadata"]["source_dataset"] for row in both.prompts("train")} == {
        "gcd",
        "countdown",
    }
    monkeypatch.setattr(reasoning, "VETTED", "0.0.0")
    assert sums.reward_part.sandbox


PAYLOADS = (
    "[__import__('pathlib').Path({marker!r}).touch()]",
    "__import__('pathlib').Path({marker!r}).touch()",
    "__import__('os').system('touch {marker}')",
)


@needs_sandbox
@pytest.mark.parametrize("name", ["countdown", pytest.param("string_insertion", marks=pytest.mark.slow)])
def test_a_payload_in_an_answer_touches_nothing_and_scores_nothing(name: str, tmp_path: Path) -> None:
    """By sympy's parse_expr in the one, by eval in the other."""
    task: Any = load_task("reasoning-gym", {"name": name, "size": 2, "heldout": 1})
    marker = tmp_path / "marker"
    found, _ = scores(task, "RIGHT", *(payload.format(marker=str(marker)) for payload in PAYLOADS))
    assert values(found) == [[1.0, 0.0, 0.0, 0.0]]
    assert not marker.exists()


SWEEP = """
import json, os, pathlib, sys
from reasoning_gym.factory import DATASETS
from upslope.worlds.reasoning_sets import make_set, _item, _as_made
names, marker, payloads = json.load(sys.stdin)
report = {}
for name in names:
    made = make_set(name, {}, None, 5, 4)
    row = _item(made, 0)
    evaluated = False
    for payload in payloads:
        try:
            made.score_answer(payload, _as_made(row))
        except Exception:
            pass
        if os.path.exists(marker):
            evaluated = True
            os.remove(marker)
    right = None if row["answer"] is None else made.score_answer(row["answer"], _as_made(row))
    report[name] = [evaluated, right]
pathlib.Path(marker + ".json").write_text(json.dumps(report))
"""
"""Hands the payloads to the scorers themselves, with no walls around them."""


def sweep(names: list[str], tmp_path: Path) -> dict[str, list[Any]]:
    marker = str(tmp_path / "marker")
    request = json.dumps([names, marker, [payload.format(marker=marker) for payload in PAYLOADS]])
    subprocess.run(
        [sys.executable, "-c", SWEEP], input=request, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )  # fmt: skip
    found: dict[str, list[Any]] = json.loads(Path(f"{marker}.json").read_text())
    return found


@vetted
def test_the_list_of_evaluating_sets_is_true_of_some(tmp_path: Path) -> None:
    found = sweep(["binary_matrix", "puzzle24", "gcd", "rearc"], tmp_path)
    assert {name: evaluated for name, (evaluated, _) in found.items()} == {
        "binary_matrix": True, "puzzle24": True, "gcd": False, "rearc": False,
    }  # fmt: skip
    assert all(right == 1.0 for _, right in found.values())


@vetted
@pytest.mark.slow
def test_the_list_of_evaluating_sets_is_true_of_all(tmp_path: Path) -> None:
    from reasoning_gym.factory import DATASETS

    found = sweep(sorted(set(DATASETS) - {"composite"}), tmp_path)
    assert {name for name, (evaluated, _) in found.items() if evaluated} == EVALUATES
    answered = {name: right for name, (_, right) in found.items() if right is not None}
    assert len(found) == 105 and len(answered) == 100 and all(right == 1.0 for right in answered.values()), answered
