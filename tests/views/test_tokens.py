"""Tokens and their numbers in the report: what is read, how it is coloured, and that hostile text stays text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.views.conftest import HOSTILE
from tests.views.test_report import Reader
from tests.views.token_records import LINE, record
from upslope.errors import InputError
from upslope.views import tokens
from upslope.views.report import write_report
from upslope.views.tokens import read_token_rows, scale_end, signed, token_row, tokens_section


def spans(html: str) -> list[tuple[str, str, str]]:
    """(style, numbers, markup of the text) of each token."""
    return re.findall(r'<span class="t" tabindex="-?\d" data-n="([^"]*)"(?: style="([^"]*)")?>(.*?)</span>', html, re.S)


# ------------------------------------------------------------------------------------------------------------- reading
def test_a_column_of_another_length_is_left_out() -> None:
    found = token_row(LINE | {"entropies": [1.0], "gaps": "x", "logprobs": [1, None, float("nan"), True]})
    assert found is not None
    assert set(found.columns) == {"advantages", "logprobs"}
    assert found.columns["logprobs"] == (1.0, None, None, None)
    assert found.number("entropies", 0) is None and found.number("advantages", 2) == 2.0


def test_advantages_that_are_not_listed_are_those_of_the_row() -> None:
    line = {name: value for name, value in LINE.items() if name != "advantages"}
    found, broken = token_row(line), token_row(LINE | {"advantages": [1.0]})
    assert found is not None and found.columns["advantages"] == (0.25,) * 4
    assert broken is not None and "advantages" not in broken.columns


@pytest.mark.parametrize("pieces", [None, [], "text", [1, 2], ["a", None]])
def test_a_line_without_token_texts_is_no_token_row(pieces: Any) -> None:
    assert token_row(LINE | {"pieces": pieces}) is None


def test_the_scale_ends_before_outliers() -> None:
    assert scale_end([]) == scale_end([None, 0.0]) == 0.0
    assert scale_end([0.5, -2.0, None, 1.0]) == 2.0
    values = [0.01 * place for place in range(1, 100)] + [1000.0]
    assert scale_end(values) == pytest.approx(0.98)  # the 98th of 100


def test_signs_are_true_signs() -> None:
    assert [signed(value) for value in (1.5, -0.25, 0.0, None, -1.2e-5)] == ["+1.500", "−0.250", "0", "-", "−1.2e-05"]


# ------------------------------------------------------------------------------------------------------------- section
def test_colours_are_shares_of_the_scale_and_numbers_stand_beside(tmp_path: Path) -> None:
    """Scales by hand: advantage 2, entropy 2, difference 0.02."""
    html = tokens_section(record(tmp_path / "a", {1: [LINE]})).html
    found = spans(html)
    assert [text for _, _, text in found] == ["It", " is", " 4", "&lt;|im_end|&gt;"]
    assert [style for _, style, _ in found] == [
        "--a:0.25;--e:0.5",
        "--a:-0.5;--e:0.25;--g:0.5",
        "--a:1;--g:-1",
        "--e:1",
    ]
    assert found[1][0] == "−1.000|0.500|+0.010|−0.250|"
    assert "≤ −2.000" in html and "≥ +2.000</span>" in html and "≥ 2.000 nats" in html and "≥ +0.020 nats" in html
    assert html.count('class="t" tabindex="0"') == 1 and html.count('tabindex="-1"') == 3
    assert re.findall(r'class="by-(\w)" name="[^"]+"( checked)?', html) == [("a", " checked"), ("e", ""), ("g", "")]


def test_rounding_of_the_sampler_does_not_look_like_a_finding(tmp_path: Path) -> None:
    html = tokens_section(record(tmp_path / "a", {1: [LINE | {"gaps": [1e-5, 0.0, -2e-6, 0.0]}]})).html
    assert "≥ +0.001 nats" in html and "--g:0.01" in html


def test_the_first_measure_that_says_something_is_chosen(tmp_path: Path) -> None:
    html = tokens_section(record(tmp_path / "a", {1: [LINE | {"advantages": [0.0] * 4, "gaps": [0.0] * 4}]})).html
    assert re.findall(r'class="by-(\w)" name="[^"]+"( checked)?', html) == [("a", ""), ("e", " checked"), ("g", "")]
    assert html.count("0 at every token shown") == 2


def test_steps_with_entropies_are_chosen_where_there_are_any(tmp_path: Path) -> None:
    less = {name: value for name, value in LINE.items() if name not in ("entropies", "gaps")}
    steps = {step: [LINE if step in (1, 10, 12) else less] for step in range(1, 13)}
    assert list(read_token_rows(record(tmp_path / "a", steps))) == [1, 10, 12]
    assert list(read_token_rows(record(tmp_path / "b", {step: [less] for step in range(1, 4)}))) == [1, 2, 3]


def test_a_measure_that_no_row_has_is_not_offered(tmp_path: Path) -> None:
    line = {name: value for name, value in LINE.items() if name not in ("entropies", "gaps")}
    html = tokens_section(record(tmp_path / "a", {1: [line]})).html
    assert re.findall(r'class="by-(\w)"', html) == ["a"] and "of-e" not in html


def test_invisible_tokens_are_seen(tmp_path: Path) -> None:
    line = LINE | {"pieces": ["", "\n\n", "\t", "\x1b\u202e"]}
    found = [text for _, _, text in spans(tokens_section(record(tmp_path / "a", {1: [line]})).html)]
    assert found == [
        '<i class="ws">·</i>', 2 * '<i class="ws">↵</i>\n', '<i class="ws">⇥</i>\t', '<i class="ws">·</i>',
    ]  # fmt: skip


def test_a_prompt_stands_once_above_its_group(tmp_path: Path) -> None:
    other = LINE | {"group": 1, "prompt": "Another?"}
    html = tokens_section(record(tmp_path / "a", {1: [LINE, LINE | {"sample": 1}, other]})).html
    assert html.count("What is 2 + 2?") == 1 and html.count("Another?") == 1
    assert html.count('class="token-row"') == 3


def test_long_completions_and_many_rows_are_cut_with_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "LONGEST", 3)
    monkeypatch.setattr(tokens, "MOST_TOKENS", 7)
    html = tokens_section(record(tmp_path / "a", {4: [LINE] * 5})).html
    assert len(spans(html)) == 6 and html.count("… 1 more tokens") == 2
    assert "Shown: 2 of 5 rows of step 4." in html


def test_six_steps_spread_over_the_run_with_a_choice_among_them(tmp_path: Path) -> None:
    run = record(tmp_path / "a", {step: [LINE] for step in range(1, 21)})
    html = tokens_section(run).html
    steps = ["1", "5", "9", "12", "16", "20"]
    assert re.findall(r'<div class="token-step" data-step="(\d+)"', html) == steps
    assert re.findall(r'<option value="(\d+)"( selected)?>', html) == [
        (s, " selected" if s == "20" else "") for s in steps
    ]


def test_hostile_token_texts_are_text(tmp_path: Path) -> None:
    line = LINE | {
        "pieces": [HOSTILE, '"><script>x</script>', "' onerror=x", "&"],
        "prompt": [HOSTILE],
        "sample": HOSTILE,
    }
    run = record(tmp_path / "a", {1: [line], 2: [line | {"reward": HOSTILE, "advantage": [1], "terminated": HOSTILE}]})
    for markup in (tokens_section(run).html, write_report(run).read_text("utf-8")):
        read = Reader(markup)
        assert read.balanced and len(read.all("script")) == ("<html" in markup) and not read.all("img")
        assert "</script><img src=x onerror=alert(1)>" in read.text
        assert not [name for _, found in read.elements for name in found if name.startswith("on")]
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", markup)


def test_the_report_has_the_section_where_there_is_something_to_show(
    tmp_path: Path, make_run: Callable[..., Path]
) -> None:
    assert "Token by token" in write_report(record(tmp_path / "a", {1: [LINE]})).read_text("utf-8")
    old = make_run(steps=20)  # rows as they were before tokens had numbers
    assert "Token by token" not in write_report(old).read_text("utf-8")
    assert "No row of rollouts/ has the numbers" in tokens_section(old).html
    with pytest.raises(InputError, match="no such folder"):
        tokens_section(tmp_path / "none")


def test_torn_lines_are_passed_over(tmp_path: Path) -> None:
    run = record(tmp_path / "a", {1: [LINE]})
    path = run / "rollouts" / "step-00001.jsonl"
    path.write_text('{"torn\n[1]\n' + json.dumps(LINE) + "\n" + json.dumps(LINE)[:50])
    assert [len(rows) for rows in read_token_rows(run).values()] == [1]
