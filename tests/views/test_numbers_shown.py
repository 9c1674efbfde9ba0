"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upslope.views.numbers import BLOCKS, buckets, duration, finite, percent, short, sparkline, whole


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (math.nan, "-"),
        (math.inf, "-"),
        (0.0, "0"),
        (0.4123, "0.412"),
        (9.9996, "10.0"),
        (-0.5, "-0.500"),
        (12.34, "12.3"),
        (999.96, "1,000"),
        (1234.5, "1,234"),
        (0.0000123, "1.2e-05"),
        (3e12, "3.00e+12"),
    ],
)
def test_short_numbers(value: float | None, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (-1.0, "-"),
        (0.0042, "4 ms"),
        (0.4, "0.40 s"),
        (12.34, "12.3 s"),
        (59.97, "1:00"),
        (151.0, "2:31"),
        (3751.0, "1:02:31"),
        (273_600.0, "3 d 4 h"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_percent_and_whole() -> None:
    assert (percent(0.123), percent(None), whole(1234.0), whole(None)) == ("12 %", "-", "1,234", "-")


@pytest.mark.parametrize("value", [None, "1", True, math.nan, -math.inf, 10**400, [1.0]])
def test_finite_refuses_what_is_not_a_finite_number(value: object) -> None:
    assert finite({"x": value}, "x") is None


def test_finite_reads_numbers() -> None:
    assert (finite({"x": 2}, "x"), finite({"x": 0.5}, "x"), finite({}, "x")) == (2.0, 0.5, None)


def test_sparkline_goes_from_the_lowest_to_the_highest_block() -> None:
    assert sparkline([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]) == BLOCKS


def test_sparkline_of_a_constant_sits_in_the_middle_and_gaps_are_blank() -> None:
    assert sparkline([2.0, None, 2.0]) == "▄ ▄"
    assert sparkline([]) == "" and sparkline([None, math.nan]) == ""


def test_sparkline_survives_huge_numbers() -> None:
    assert sparkline([-1.7e308, 1.7e308]) == "▁█"


def test_buckets_are_means_of_equal_runs() -> None:
    assert buckets([1.0, 3.0, None, None, 5.0, None], 3) == [2.0, None, 5.0]


@given(st.lists(st.none() | st.floats(), max_size=200), st.integers(1, 30))
def test_sparkline_never_exceeds_its_width(values: list[float | None], width: int) -> None:
    assert len(sparkline(values, width)) <= width
