"""The calculator: exact, and safe against whatever a model writes."""

from __future__ import annotations

import re
import time
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope.errors import InputError
from upslope.worlds.calculator import LONGEST, calculate, value_of
from upslope.worlds.calculator_task import Calculator
from upslope.worlds.task import load_task


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("347 * 682", "236654"), ("2 + 3 * 4", "14"), ("(2 + 3) * 4", "20"), ("8 - 3 - 2", "3"), ("8 / 4 / 2", "1"),
        ("-2 ** 2", "-4"), ("(-2) ** 2", "4"), ("2 ** 3 ** 2", "512"), ("2 ** -1", "0.5"), ("2^10", "1024"),
        ("1 / 3", "0.333333333333"), ("0.1 + 0.2", "0.3"), ("7 // 2", "3"), ("-7 // 2", "-4"), ("-7 % 3", "2"),
        ("3 \u00d7 4 \u00f7 2", "6"), ("5 \u2212 7", "-2"), (" .5 + 1. ", "1.5"), ("--3", "3"), ("+4", "4"),
        ("999999 * 999999", "999998000001"), ("1 / 8 * 8", "1"), ("10 ** 30 + 1", "1" + "0" * 29 + "1"),
    ],
)  # fmt: skip
def test_results_by_hand(expression: str, result: str) -> None:
    assert calculate(expression) == result


@st.composite
def expressions(draw: Any, depth: int = 0) -> str:
    if depth == 3 or draw(st.booleans()):
        return str(draw(st.integers(0, 99)))
    left, right = draw(expressions(depth + 1)), draw(expressions(depth + 1))
    sign = draw(st.sampled_from(["+", "-", "*", "/", "//", "%"]))
    text = f"{left} {sign} {right}"
    return f"({text})" if draw(st.booleans()) else draw(st.sampled_from(["", "-"])) + text


@given(expressions())
@settings(max_examples=150, deadline=None)
def test_values_are_pythons_own_in_exact_fractions(expression: str) -> None:
    exact = re.sub(r"[0-9]+", lambda number: f"Fraction({number[0]})", expression)
    try:
        wanted = Fraction(eval(exact, {"Fraction": Fraction}))  # an expression that was made above
    except ZeroDivisionError:
        with pytest.raises(ZeroDivisionError):
            value_of(expression)
        return
    assert value_of(expression) == wanted


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("", "empty"), ("2 +", "too early"), ("2 3", "expected an operator, found '3'"), ("(2", "not closed"),
        ("2)", "found '\\)'"), ("__import__('os')", "'_' is no part"), ("2 + a", "'a' is no part"),
        ("1e5", "'e' is no"),
        ("1,000", "',' is no part"), ("9 ** 9 ** 9", "exponent 387420489"), ("2 ** 0.5", "exponent 0.5"),
        ("9999999999 ** 200", "too large"), ("(10 ** 200) * (10 ** 200)", "too large"),
        ("(" * 30 + "1" + ")" * 30, "levels"),
        ("-" * 100 + "1", "levels"), ("1+" * LONGEST + "1", "characters"), ("0 ** -1", "division by 0"),
        ("5 // 0", "by 0"),
        ("9" * 199, None), ("*", "expected a number"), ("()", "expected a number"), ("..", "no part"),
    ],
)  # fmt: skip
def test_what_is_refused_is_refused_at_once_with_the_reason(expression: str, why: str | None) -> None:
    begun = time.perf_counter()
    if why is None:
        assert calculate(expression) == expression
    else:
        with pytest.raises((ValueError, ZeroDivisionError), match=why):
            calculate(expression)
    assert time.perf_counter() - begun < 0.2


@given(st.text(alphabet="0123456789.+-*/%^() ", max_size=60))
@settings(max_examples=300, deadline=500)
def test_no_text_makes_it_slow_or_fail_otherwise(expression: str) -> None:
    try:
        assert calculate(expression)
    except (ValueError, ZeroDivisionError) as error:
        assert str(error)


def test_the_tasks_questions_are_different_and_its_splits_apart() -> None:
    task: Any = load_task("calculator", {"digits": 2, "size": 300, "heldout": 60, "seed": 3})
    train, heldout = task.prompts("train"), task.prompts("heldout")
    assert (len(train), len(heldout)) == (300, 60)
    sets = [{frozenset(prompt.id.split("-")[1:]) for prompt in part} for part in (train, heldout)]
    assert len(sets[0] | sets[1]) == 360 and not sets[0] & sets[1]
    for prompt in [*train, *heldout]:
        left, right = map(int, prompt.id.split("-")[1:])
        assert prompt.content == f"What is {left} * {right}?" and prompt.columns == {"answer": str(left * right)}
        assert 10 <= left <= 99 and 10 <= right <= 99
    again = Calculator(digits=2, size=300, heldout=60, seed=3)
    assert [p.id for p in again.prompts("train")] == [p.id for p in train]
    assert [p.id for p in Calculator(digits=2, size=300, heldout=60).prompts("train")] != [p.id for p in train]


def test_an_example_calls_is_answered_and_says_the_result() -> None:
    task = Calculator(size=5, heldout=2, operation="sub")
    for row, prompt in zip(task.examples("train"), task.prompts("train"), strict=True):
        question, call, result, answer = row.prompt
        assert question["content"] == prompt.content and row.completion is None  # type: ignore[index]
        given = call["tool_calls"][0]["function"]  # type: ignore[index]
        assert given["name"] == result["name"] == "calculate"  # type: ignore[index]
        assert calculate(given["arguments"]["expression"]) == result["content"] == answer["content"]  # type: ignore[index]
        assert answer["content"] == prompt.columns["answer"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("options", "where"),
    [({"operation": "div"}, "operation"), ({"digits": 7}, "digits"), ({"digits": 1, "size": 40}, "size")],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], where: str) -> None:
    with pytest.raises(InputError, match=rf"data\.options\.{where}"):
        Calculator(**options)
