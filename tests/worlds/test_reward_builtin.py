"""Built-in rewards against numbers worked out by hand, and the check of their options."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from upslope.errors import InputError, MachineError
from upslope.types import Prompt
from upslope.worlds import reward_builtin as builtin
from upslope.worlds import reward_menu
from upslope.worlds.isolation import isolation
from upslope.worlds.reward_menu import BUILTINS, builtin_part
from upslope.worlds.rewards import Group, RewardPanel, score_groups


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


# ------------------------------------------------------------------------------------------------------------- numbers
@pytest.mark.parametrize(
    ("text", "number", "percent"),
    [
        ("60", 60, False),
        ("16 + 44 = 60.", 60, False),
        ("= -28", -28, False),
        ("5-3", 3, False),  # a minus between two terms is no sign
        ("(2+1)-4", 4, False),
        ("\u22123 degrees", -3, False),
        ("it costs $1,234,567.50!", Fraction(2469135, 2), False),
        ("a loss of -$3.50", Fraction(-7, 2), False),
        ("12,345,67", 67, False),  # not thousands
        (".5", Fraction(1, 2), False),
        ("-1/2", Fraction(-1, 2), False),
        ("3 / 4 of it", Fraction(3, 4), False),
        ("1 1/2 cups", Fraction(3, 2), False),
        (r"\boxed{\frac{3}{4}}", Fraction(3, 4), False),
        (r"-\dfrac{10}{4}", Fraction(-5, 2), False),
        ("2.5e3", 2500, False),
        ("6e-2 m", Fraction(3, 50), False),
        ("45%", Fraction(9, 20), True),
        (r"0.5 \%", Fraction(1, 200), True),
        ("first 7, then 1/0", 7, False),  # 1/0 is no number
        ("so 3 apples\n#### 72", 72, False),
    ],
)
def test_the_last_number_of_a_text(text: str, number: Any, percent: bool) -> None:
    assert builtin.last_number(text) == (Fraction(number), percent)


@pytest.mark.parametrize("text", ["", "none", "1/0", "--", "."])
def test_no_number(text: str) -> None:
    assert builtin.last_number(text) is None


def test_a_number_of_a_million_digits_takes_no_time() -> None:
    assert builtin.last_number("7 and " + "1" * 1_000_000) == (7, False)


def test_numeric_compares_exactly_or_within_a_tolerance() -> None:
    exact, near, share = builtin.numeric(), builtin.numeric(tolerance=0.5), builtin.numeric(relative=0.01)
    completions = ["it is 100", "100.0", "100.4", "101", "none", "1e2"]
    assert exact(completions, answer=["100"] * 6) == [1, 1, 0, 0, 0, 1]
    assert near(completions, answer=["#### 100"] * 6) == [1, 1, 1, 0, 0, 1]
    assert share(completions, answer=[100] * 6) == [1, 1, 1, 1, 0, 1]
    assert builtin.numeric(tolerance=0.1)(["0.3"], answer=["0.2"]) == [1.0]  # 0.1 in binary is a bit more
    assert exact(["0.1"], answer=["1/10"]) == [1.0]


def test_numeric_reads_a_percent_sign_on_one_side_both_ways() -> None:
    reward = builtin.numeric()
    assert reward(["45%", "0.45", "45", "4500%", "0.45%"], answer=["45%"] * 5) == [1, 1, 1, 0, 0]
    assert reward(["45%", "0.45", "45"], answer=["45"] * 3) == [1, 0, 1]
    assert reward(["45%", "0.45", "45"], answer=["0.45"] * 3) == [1, 1, 0]


def test_an_answer_may_be_null_a_list_or_under_another_name() -> None:
    reward = builtin.numeric("result")
    assert reward(["3", "3", said("4"), "3"], result=[None, ["1", "3"], [5, 4], []]) == [None, 1.0, 1.0, None]
    with pytest.raises(ValueError, match="the answer 'none' holds no number"):
        reward(["3"], result=["none"])
    with pytest.raises(KeyError, match=r"no column 'result' \(columns: answer\); name yours by the option answer"):
        reward(["3"], answer=["3"], log_metric=print)


def test_a_tag_bounds_what_is_read() -> None:
    reward = builtin.numeric(tag="answer")
    completions = ["<answer>7</answer> or 8", "7", "<answer>6</answer><answer> 7 </answer>", "<answer>7", "7</answer>"]
    assert reward(completions, answer=["7"] * 5) == [1, 0, 1, 0, 0]


# --------------------------------------------------------------------------------------------------------------- exact
def test_exact_compares_stripped_texts() -> None:
    assert builtin.exact()([" Paris\n", "paris", "Paris.", said("Paris")], answer=["Paris"] * 4) == [1, 0, 0, 1]
    folded = builtin.exact(ignore_case=True, tag="a")
    assert folded(["<a>STRASSE</a>", "strasse"], answer=["stra\u00dfe"] * 2) == [1, 0]
    assert builtin.exact()(["5", "True"], answer=[5, [True, "yes"]]) == [1, 1]


# ---------------------------------------------------------------------------------------------------------------- form
GOOD = "<think>why</think>\n<answer>42</answer>"


@pytest.mark.parametrize(
    ("text", "strict", "soft"),
    [
        (GOOD, 1.0, 1.0),
        (f"  {GOOD}\n", 1.0, 1.0),
        (f"well {GOOD}", 0.0, 1.0),
        (f"{GOOD} bye", 0.0, 1.0),
        ("<think>why</think> so <answer>42</answer>", 0.0, 1.0),
        ("<answer>42</answer><think>why</think>", 0.0, 1.0),
        ("<think> </think><answer>42</answer>", 0.0, 1.0),
        ("<think>a</think><think>b</think><answer>42</answer>", 0.0, 0.5),
        ("<think>why<answer>42</answer>", 0.0, 0.75),
        ("<answer>42", 0.0, 0.25),
        ("42", 0.0, 0.0),
    ],
)
def test_format_is_all_or_nothing_or_the_share_of_tags(text: str, strict: float, soft: float) -> None:
    assert builtin.format_tags()([text, said(text)]) == [strict, strict]
    assert builtin.format_tags(strict=False)([text]) == [soft]


def test_format_of_a_completion_that_begins_inside_and_with_own_tags() -> None:
    opened = builtin.format_tags(opened=True)
    assert opened(["why</think><answer>4</answer>", GOOD]) == [1.0, 0.0]
    assert builtin.format_tags(["plan", "do", "done"])(["<plan>a</plan><do>b</do><done>c</done>"]) == [1.0]


def test_regex_searches_matches_whole_or_compares_a_group() -> None:
    assert builtin.regex(r"^b.c$")(["a\nb\nc", "xbc"]) == [1.0, 0.0]  # ^, $ at lines, . over them
    assert builtin.regex(r"\d+", full=True)([" 12 ", "12 a"]) == [1.0, 0.0]
    assert builtin.regex("yes", ignore_case=True)(["YES!", "no"]) == [1.0, 0.0]
    group = builtin.regex(r"answer: (\w+)?", answer="answer")
    completions = ["answer: a", "answer: b", "a", "answer: ", "answer: a"]
    assert group(completions, answer=["a", "a", "a", "a", None]) == [1, 0, 0, 0, None]


def test_a_catastrophic_pattern_is_ended_by_the_deadline() -> None:
    part = builtin_part("regex", {"pattern": "(a+)+$"})
    groups = [Group(Prompt("1", "p"), ("aaa",)), Group(Prompt("2", "p"), ("a" * 60 + "b",))]
    with RewardPanel([part], timeout=0.5) as panel:
        scores, failed = score_groups(panel, groups, "drop_group")
    assert [found and found[0].value for found in scores] == [1.0, None]
    assert failed[0][0] == 1 and "no answer within 0.5 s, at reward_builtin.py:" in failed[0][1]


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


def test_json_schema_accepts_what_fits(tmp_path: Path) -> None:
    pytest.importorskip("jsonschema")
    completions = [
        '{"name": "Ada", "age": 36}',
        '```json\n{"name": "Ada"}\n```',
        '{"age": 3}',
        '{"name": "Ada", "age": -1}',
        '{"name": "Ada"} and more',
        '{"name": NaN}',
        "",
        "[" * 100_000,
        '{"name": "Ada", "age": ' + "9" * 5000 + "}",
    ]
    wanted = [1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert builtin.json_schema(SCHEMA)(completions) == wanted
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    assert builtin.json_schema(str(tmp_path / "schema.json"))(completions) == wanted
    assert builtin.json_schema(SCHEMA, fence=False)(completions[:2]) == [1, 0]
    assert builtin.json_schema(SCHEMA, tag="out")(['hm <out>{"name": "x"}</out>', '{"name": "x"}']) == [1, 0]
    each = builtin.json_schema(column="shape")
    assert each(["3", "3", '"a"', "3"], shape=[{"type": "integer"}, '{"type": "string"}', None, {}]) == [1, 0, None, 1]


# -------------------------------------------------------------------------------------------------------------- length
def test_length_near_a_target_or_within_a_limit() -> None:
    ids = [[1] * 10, [1] * 15, [1] * 5, [1] * 20, [1] * 30, []]
    texts = [""] * 6
    assert builtin.length(target=10)(texts, completion_ids=ids) == [1.0, 0.5, 0.5, 0.0, 0.0, 0.0]
    assert builtin.length(limit=10)(texts, completion_ids=ids) == [1, 0, 1, 0, 0, 1]
    assert builtin.length(target=4, unit="words")(["a b c", "a  b\nc d", said("")]) == [0.75, 1.0, 0.0]
    assert builtin.length(limit=3, unit="characters")(["abc", "abcd"]) == [1, 0]
    with pytest.raises(ValueError, match="without token ids"):
        builtin.length(limit=3)(["abc"])


def test_overlong_is_equation_13_of_dapo() -> None:
    sizes = [0, 80, 81, 90, 99, 100, 101, 500]
    found = builtin.overlong(limit=100, buffer=20)([""] * 8, completion_ids=[[1] * size for size in sizes])
    assert found == [0.0, 0.0, -0.05, -0.5, -0.95, -1.0, -1.0, -1.0]


# ----------------------------------------------------------------------------------------------------------------- math
def test_math_equals_mathematically_and_runs_in_the_sandbox() -> None:
    pytest.importorskip("math_verify")
    if isolation().sandbox and "does not hold" not in isolation().sandbox:
        pytest.skip(isolation().sandbox)
    part = builtin_part("math")
    assert part.sandbox
    answers: list[Any] = [r"$\frac{1}{2}$", r"$x^2+2x+1$", r"\boxed{3}", "no mathematics at all", None]
    completions = [r"so $0.5$", r"\boxed{(x+1)^2}", "4", "4", "4"]
    groups = [
        Group(Prompt(str(i), "p", {"answer": a}), (c,)) for i, a, c in zip(range(5), answers, completions, strict=True)
    ]
    with RewardPanel([part], timeout=60) as panel:
        scores, failed = score_groups(panel, groups, "stop")
    assert [found and found[0].value for found in scores] == [1.0, 1.0, 0.0, None, None] and not failed


# -------------------------------------------------------------------------------------------------------------- options
@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("numerik", {}, r"reward.builtin: no built-in reward 'numerik'. Built in: exact, .*did you mean numeric"),
        ("numeric", {"tolerence": 1}, r"reward.tolerence: .* has no option 'tolerence'.*did you mean tolerance\?"),
        ("numeric", {"tolerance": "x"}, r"reward.tolerance: found 'x', expected a number"),
        ("numeric", {"tolerance": -1}, r"reward numeric: tolerance and relative must not be negative"),
        ("numeric", {"tolerance": True}, r"found True, expected a number"),
        ("exact", {"tag": 3}, r"reward.tag: found 3, expected text"),
        ("format", {"tags": "think"}, r"expected a list of text"),
        ("format", {"tags": ["a b"]}, r"tags must be names"),
        ("regex", {}, r"reward.pattern: is missing. Fix: give pattern: text"),
        ("regex", {"pattern": "("}, r"is not a regular expression"),
        ("regex", {"pattern": "a", "answer": "answer"}, r"has no group to compare"),
        ("length", {}, r"give target or limit, one of them"),
        ("length", {"target": 3, "limit": 3}, r"give target or limit, one of them"),
        ("length", {"target": 0}, r"found 0 tokens"),
        ("length", {"limit": 5, "unit": "lines"}, r"expected a number from 1 on of tokens, characters, words"),
        ("overlong", {"limit": 5, "buffer": 6}, r"1 <= buffer <= limit"),
        ("json-schema", {}, r"give schema or column"),
        ("json-schema", {"schema": {"type": "nothing"}}, r"not a JSON schema"),
        ("json-schema", {"schema": "no/such.json"}, r"No such file"),
    ],
)  # fmt: skip
def test_wrong_options_are_told_before_a_run(name: str, options: dict[str, Any], text: str) -> None:
    if name == "json-schema":
        pytest.importorskip("jsonschema")
    with pytest.raises(InputError, match=text):
        builtin_part(name, options)


def test_every_builtin_is_there_documented_and_named() -> None:
    for name, entry in BUILTINS.items():
        maker = getattr(builtin, entry.maker)
        assert maker.__doc__ and "Args:" in maker.__doc__, name
    part = builtin_part("exact", {"answer": "right"}, 0.5, "hit")
    assert (part.source, part.name, part.weight) == ("upslope.worlds.reward_builtin:exact", "hit", 0.5)
    assert part.options == {"answer": "right"} and not part.sandbox


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_menu.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r"math-verify is not installed. Fix: pip install 'upslope\[tasks\]'"):
        builtin_part("math")
