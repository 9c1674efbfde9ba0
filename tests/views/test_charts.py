"""Line charts: where points land, what is smoothed, what is left out."""

from __future__ import annotations

import html
import json
import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upslope.views.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MOST_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    Series,
    line_chart,
    moving_mean,
    smoothing,
    thin,
    ticks,
)

POINTS = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=60).map(
    lambda ys: tuple((float(x), y) for x, y in enumerate(ys, start=1))
)


def parsed(chart: str) -> ElementTree.Element:
    return ElementTree.fromstring(chart)


def paths(chart: str, kind: str) -> list[list[tuple[float, float]]]:
    """Pixel points of the paths whose class begins with ``kind``."""
    found = [path.get("d", "") for path in parsed(chart).iter("path") if path.get("class", "").split()[0] == kind]
    return [[(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+),(-?[\d.]+)", path)] for path in found]


def labels(chart: str) -> list[tuple[float, float, str]]:
    """(x, y, text) of the tick labels."""
    return [(float(t.get("x", "")), float(t.get("y", "")), t.text or "") for t in parsed(chart).iter("text")]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0]),
        (0.0, 60.0, [0.0, 20.0, 40.0, 60.0]),
        (-0.13, 0.11, [-0.1, -0.05, 0.0, 0.05, 0.1]),
        (3.0, 3.0, [3.0]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_points_land_where_the_axis_says() -> None:
    chart = line_chart("T", "", [Series("a", ((1.0, 0.0), (2.0, 5.0), (3.0, 10.0)))])
    (line,) = paths(chart, "line")
    heights = {float(text): y - 4 for x, y, text in labels(chart) if x < LEFT}
    assert [x for x, _ in line] == [LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT]
    assert line[0][1] == pytest.approx(heights[0], abs=0.2)
    assert line[2][1] == pytest.approx(heights[10], abs=0.2)
    assert line[1][1] == pytest.approx((heights[0] + heights[10]) / 2, abs=0.2)


def test_step_labels_stand_under_their_points() -> None:
    chart = line_chart("T", "", [Series("a", tuple((float(x), 1.0 * x) for x in range(1, 7)))])
    (line,) = paths(chart, "line")
    across = {text: x for x, y, text in labels(chart) if y == HEIGHT - 8}
    assert all(across[str(step)] == pytest.approx(x, abs=0.2) for step, (x, _) in enumerate(line, start=1))


def test_only_whole_steps_are_labelled() -> None:
    chart = line_chart("T", "", [Series("a", tuple((float(x), 1.0 * x) for x in range(16)))])
    assert [text for _, y, text in labels(chart) if y == HEIGHT - 8] == ["0", "5", "10", "15"]
    one = line_chart("T", "", [Series("a", ((3.0, 1.0),))])
    assert [text for _, y, text in labels(one) if y == HEIGHT - 8] == ["3"]


def test_a_short_line_is_drawn_as_it_is_and_a_long_one_with_its_mean() -> None:
    short = line_chart("T", "", [Series("a", tuple((float(x), float(x % 2)) for x in range(39)))])
    long = line_chart("T", "", [Series("a", tuple((float(x), float(x % 2)) for x in range(40)))])
    assert (len(paths(short, "line")), len(paths(short, "raw"))) == (1, 0)
    assert (len(paths(long, "line")), len(paths(long, "raw"))) == (1, 1)
    heights = [[y for _, y in paths(long, kind)[0]] for kind in ("raw", "line")]
    assert max(heights[1]) - min(heights[1]) < 0.8 * (max(heights[0]) - min(heights[0]))


def test_moving_mean_is_centred_and_shrinks_at_the_ends() -> None:
    points = [(float(x), float(x * x)) for x in range(5)]
    assert [y for _, y in moving_mean(points, 3)] == pytest.approx([0.5, 5 / 3, 14 / 3, 29 / 3, 12.5])


@given(POINTS, st.sampled_from([1, 3, 5, 9]))
def test_moving_mean_equals_the_plain_mean(points: tuple[tuple[float, float], ...], window: int) -> None:
    scaled = [(x, math.tanh(y)) for x, y in points]
    half = window // 2
    for index, (_, mean) in enumerate(moving_mean(scaled, window)):
        part = [y for _, y in scaled[max(index - half, 0) : index + half + 1]]
        assert mean == pytest.approx(sum(part) / len(part), abs=1e-12)


def test_smoothing_is_odd_and_a_tenth() -> None:
    assert [smoothing(n) for n in (1, 39, 40, 100, 400)] == [1, 1, 5, 11, 41]


def test_thinning_keeps_the_mean_and_the_limit() -> None:
    points = [(float(x), float(x % 7)) for x in range(10 * MOST_POINTS)]
    thinned = thin(points)
    assert len(thinned) == MOST_POINTS
    assert sum(y for _, y in thinned) / MOST_POINTS == pytest.approx(sum(y for _, y in points) / len(points))
    assert thin(points[:5]) == points[:5]


def test_measured_now_and_then_means_rings_and_dashes() -> None:
    chart = line_chart("T", "", [Series("a", ((1.0, 0.0), (5.0, 1.0)), marked=True)])
    assert chart.count("<circle") == 2 and "stroke-dasharray" in chart


def test_one_point_is_a_dot() -> None:
    chart = line_chart("T", "", [Series("a", ((3.0, 0.5),))])
    assert chart.count("<circle") == 1 and not paths(chart, "line")


def test_a_band_goes_up_and_comes_back() -> None:
    band = ((1.0, 0.0, 2.0), (2.0, 1.0, 3.0))
    chart = line_chart("T", "", [Series("a", ((1.0, 1.0), (2.0, 2.0)), band=band)])
    (edge,) = paths(chart, "band")
    assert [x for x, _ in edge] == [LEFT, WIDTH - RIGHT, WIDTH - RIGHT, LEFT]
    assert edge[0][1] < edge[3][1] and edge[1][1] < edge[2][1]  # the upper edge first


def test_no_point_no_chart() -> None:
    assert line_chart("T", "", [Series("a", ())]) == ""
    assert line_chart("T", "", [Series("a", ((1.0, 1e301),))]) == ""


def test_a_share_is_seen_from_zero() -> None:
    points = ((1.0, 0.4), (2.0, 0.5))
    assert "0" in [text for x, _, text in labels(line_chart("T", "", [Series("a", points)], share=True)) if x < LEFT]
    assert "0" not in [text for x, _, text in labels(line_chart("T", "", [Series("a", points)])) if x < LEFT]


def test_the_axis_reaches_the_given_steps() -> None:
    (line,) = paths(line_chart("T", "", [Series("a", ((5.0, 0.0), (10.0, 1.0)))], steps=(0.0, 20.0)), "line")
    assert [x for x, _ in line] == pytest.approx(
        [LEFT + 0.25 * (WIDTH - LEFT - RIGHT), LEFT + 0.5 * (WIDTH - LEFT - RIGHT)]
    )


def test_the_pointer_can_read_every_line() -> None:
    chart = line_chart("T", "", [Series("a", ((1.0, 0.5), (2.0, 0.25))), Series("<b>", ((1.0, 9.0),), 1)])
    data = json.loads(html.unescape(re.search(r'data-chart="([^"]*)"', chart)[1]))  # type: ignore[index]
    assert data["x"] == [1.0, 2.0]
    assert [line[0] for line in data["lines"]] == ["a", "<b>"]
    assert data["lines"][0][2] == [[1.0, "0.500"], [2.0, "0.250"]]


@given(POINTS, st.booleans())
def test_any_finite_numbers_give_well_formed_markup_inside_the_frame(
    points: tuple[tuple[float, float], ...], share: bool
) -> None:
    chart = line_chart('T "&<', "note", [Series("</svg>\x00", points)], share=share)
    if not chart:
        assert all(abs(y) >= 1e300 for _, y in points)
        return
    parsed(chart)
    for line in paths(chart, "line") + paths(chart, "raw"):
        assert all(LEFT - 1 <= x <= WIDTH - RIGHT + 1 and TOP - 1 <= y <= HEIGHT - BOTTOM + 1 for x, y in line)
