"""Built-in tasks by name, rows as a task, and the split of rows."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope.errors import InputError
from upslope.types import Example, Prompt
from upslope.worlds.task import load_task, split_rows


def test_load_task_passes_its_options() -> None:
    task = load_task("arithmetic", {"operation": "mul", "digits": 1, "heldout": 20})
    assert task.name == "arithmetic"
    assert len(task.prompts("heldout")) in (20, 21)
    assert all("*" in str(prompt.content) for prompt in task.prompts("train"))


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        (
            "arithmetics",
            {},
            r"no built-in task 'arithmetics'. Tasks: .*reasoning-gym, .*. Fix: did you mean data.task: arithmetic",
        ),
        ("chess", {}, r"no built-in task 'chess'. Tasks: arithmetic, .* Fix: use one of arithmetic, calculator,"),
        ("arithmetic", {"digit": 2}, r"data.options.digit: .*no option 'digit'.*did you mean data.options.digits"),
        ("arithmetic", {"digits": 9}, "found 9, expected 1, 2 or 3"),
        ("arithmetic", {"digits": "2"}, "data.options.digits: found '2', expected int"),
        ("arithmetic", {"digits": True}, "data.options.digits: found True, expected int"),
        ("arithmetic", {"heldout": 0.5}, "data.options.heldout: found 0.5, expected int"),
    ],
)
def test_load_task_names_what_is_wrong(name: str, options: dict, text: str) -> None:
    with pytest.raises(InputError, match=text):
        load_task(name, options)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=5, max_size=60), st.integers(1, 20), st.integers(0, 5), st.randoms())
def test_split_is_a_partition_by_prompt_in_order(keys: list[int], heldout: int, seed: int, shuffle: object) -> None:
    rows = [{"prompt": f"q{key}", "row": number} for number, key in enumerate(keys)]
    try:
        train, held = split_rows(rows, heldout, seed)
    except InputError:
        counts = [keys.count(key) for key in set(keys)]
        assert heldout >= len(keys) or len(counts) < 2 or min(counts) > heldout
        return
    assert sorted(row["row"] for row in train + held) == list(range(len(rows)))
    assert [row["row"] for row in train] == sorted(row["row"] for row in train)
    assert [row["row"] for row in held] == sorted(row["row"] for row in held)
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held}
    assert 1 <= len(held) <= heldout
    assert train
    mixed = list(rows)
    shuffle.shuffle(mixed)  # type: ignore[attr-defined]
    assert {row["prompt"] for row in split_rows(mixed, heldout, seed)[1]} == {row["prompt"] for row in held}


def test_split_without_repeats_is_exact() -> None:
    rows = [Prompt(str(i), f"question {i}") for i in range(1000)]
    for heldout, count in ((128, 128), (128.0, 128), (0.1, 100), (0.0001, 1), (0, 0)):
        train, held = split_rows(rows, heldout, 0)
        assert (len(train), len(held)) == (1000 - count, count)
    first, second = ({item.id for item in split_rows(rows, 100, seed)[1]} for seed in (0, 1))
    assert first != second
    assert first == {item.id for item in split_rows(rows, 100, 0)[1]}


def test_split_keeps_conversations_with_the_same_question_together() -> None:
    question = {"role": "user", "content": "why"}
    rows = [{"messages": [question, {"role": "assistant", "content": f"because {i}"}]} for i in range(5)] + [
        {"messages": [{"role": "user", "content": f"who {i}"}, {"role": "assistant", "content": "me"}]}
        for i in range(20)
    ]
    for seed in range(10):
        train, held = split_rows(rows, 8, seed)
        assert sum(row["messages"][0] == question for row in held) in (0, 5)
        assert len(train) + len(held) == 25
    examples = [Example(str(i), (question, {"role": "assistant", "content": str(i)}), None) for i in range(3)]
    examples += [Example(str(i), f"other {i}", "x") for i in range(3, 9)]
    for seed in range(10):
        assert len({e.id for e in split_rows(examples, 4, seed)[1]} & {"0", "1", "2"}) in (0, 3)


@pytest.mark.parametrize("heldout", [-1, 1.5, 10, 11, 0.99])
def test_split_refuses_what_leaves_nothing(heldout: float) -> None:
    with pytest.raises(InputError, match=r"data\.heldout"):
        split_rows([{"prompt": str(i)} for i in range(10)], heldout, 0)
