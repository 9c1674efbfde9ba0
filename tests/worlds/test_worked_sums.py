"""Worked sums: the rule by hand, pairs that follow it, and a reward that the rule does not see."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from upslope.worlds.arithmetic import Arithmetic
from upslope.worlds.task import load_task
from upslope.worlds.worked_sums import STEPS, WorkedSums, faults, question, right_sum, work

RIGHT = "7 + 8 = 15, 40 + 30 = 70, 70 + 15 = 85"


def test_the_work_by_hand() -> None:
    assert work(47, 38) == RIGHT and question(47, 38) == "What is 47 + 38? Show your work."
    assert work(20, 11) == "0 + 1 = 1, 20 + 10 = 30, 30 + 1 = 31"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (RIGHT, 0),
        ("So: 8 + 7 = 15, 30 + 40 = 70, and 15 + 70 = 85.", 0),  # words around it and the other order are no faults
        ("7 + 8 = 16, 40 + 30 = 70, 70 + 16 = 86", 1),  # a false sum; what follows is reckoned from it
        ("7 + 8 = 15, 40 + 30 = 60, 60 + 15 = 75", 1),
        ("7 + 8 = 15, 40 + 30 = 70, 70 + 15 = 86", 1),
        ("6 + 8 = 14, 40 + 30 = 70, 70 + 14 = 84", 1),  # misread, then right
        ("6 + 8 = 15, 40 + 30 = 70, 70 + 15 = 85", 2),  # misread and false: though the end is right
        ("7 + 8 = 15, 40 + 30 = 70", 1),
        ("7 + 8 = 15", 2),
        ("85", 3),
        ("", 3),
        (RIGHT + ", 1 + 1 = 2", 1),
        ("1 + 1 = 2, 1 + 1 = 2, 1 + 1 = 2", 3),
    ],
)
def test_faults_by_hand(text: str, count: int) -> None:
    assert faults(text, 47, 38) == count


def test_the_rule_does_not_see_the_sum_and_the_reward_sees_nothing_else() -> None:
    bare, slip = "85", "7 + 8 = 16, 40 + 30 = 70, 70 + 16 = 86"
    assert faults(slip, 47, 38) < faults(bare, 47, 38)
    assert right_sum([], [bare, slip, RIGHT, "none"], ["85"] * 4) == [1.0, 0.0, 1.0, 0.0]


def test_every_pair_prefers_fewer_faults_and_every_prompt_has_one() -> None:
    task = WorkedSums()
    numbers = Arithmetic().numbers("train")
    pairs = task.pairs("train")
    assert [pair.prompt for pair in pairs] == [question(a, b) for a, b in numbers] == [
        prompt.content for prompt in task.prompts("train")
    ]  # fmt: skip
    slips: Counter[int] = Counter()
    for pair, (a, b) in zip(pairs, numbers, strict=True):
        assert faults(pair.chosen, a, b) < faults(pair.rejected, a, b), pair
        assert pair.columns == {"answer": str(a + b)}
        slips[faults(pair.chosen, a, b)] += 1
    assert slips[0] > 0.5 * len(pairs) and slips[1] > 0.05 * len(pairs)
    wrong = sum(right_sum([], [pair.chosen], [str(a + b)])[0] == 0 for pair, (a, b) in zip(pairs, numbers, strict=True))
    bare = sum(pair.rejected == str(a + b) for pair, (a, b) in zip(pairs, numbers, strict=True))
    assert wrong > 100 and bare > 500  # the rule and the sum disagree often enough to be told apart


def test_answers_that_go_on_are_among_the_pairs_each_step_true_and_a_fault() -> None:
    """A reward model that never saw one would leave a policy free to fill its answers with steps."""
    long = 0
    for pair, (a, b) in zip(WorkedSums().pairs("train"), Arithmetic().numbers("train"), strict=True):
        steps = re.split(", |\n", pair.rejected)
        for step in steps[STEPS:]:
            left, right, said = map(int, re.findall(r"\d+", step))
            assert left + right == said
        if len(steps) > STEPS:
            assert faults(pair.rejected, a, b) >= len(steps) - STEPS
            long += 1
            assert len(steps) <= STEPS + 3
    assert long > 500


def test_pairs_depend_on_the_seed_alone_and_splits_share_no_prompt() -> None:
    assert WorkedSums(seed=3).pairs("heldout") == WorkedSums(seed=3).pairs("heldout")
    assert WorkedSums(seed=3).pairs("heldout") != WorkedSums(seed=4).pairs("heldout")
    task = WorkedSums(heldout=100)
    train, heldout = ({pair.prompt for pair in task.pairs(split)} for split in ("train", "heldout"))
    assert not train & heldout and len(heldout) in (100, 101)
    first = Arithmetic(heldout=100).numbers("heldout")[0]
    assert task.examples("heldout")[0].completion == work(*first)


def test_it_is_a_built_in_task() -> None:
    assert isinstance(load_task("worked-sums", {"heldout": 50}), WorkedSums)
