"""Estimated above true advantages of a walk, and the walk on its map."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.views.conftest import HOSTILE
from tests.views.test_report import Reader
from tests.views.token_records import LINE, WALK, record, walks
from upslope.views.report import write_report
from upslope.views.token_truth import SIDE, truth_section


def rows(html: str) -> list[dict[str, list[str]]]:
    """The tables of the walks: the texts of each row's cells by its head."""
    found = []
    for table in re.findall(r'<table class="truth">(.*?)</table>', html, re.S):
        body = re.findall(r'<tr[^>]*><th scope="row">([^<]*)</th>(.*?)</tr>', table)
        found.append({name: re.findall(r">([^<>]+)</td>", cells) for name, cells in body})
    return found


def polygons(html: str) -> list[tuple[float, float]]:
    """Where the arrows of the first map point to, in cells (column, row)."""
    drawing = re.search(r'<svg class="walk-map".*?</svg>', html, re.S)
    assert drawing is not None
    tips = []
    for points in re.findall(r'<polygon class="way" points="([^"]+)"', drawing[0]):
        x, y = points.split()[3].split(",")  # the fourth corner is the tip
        tips.append((float(x) / SIDE, float(y) / SIDE))
    return tips


def test_two_rows_above_one_another_on_one_scale(tmp_path: Path) -> None:
    """The largest number of both rows, 2, ends the scale; the forced stop token has no column."""
    html = truth_section(walks(tmp_path / "a", {1: [WALK]})).html
    (table,) = rows(html)
    assert table == {
        "estimated": ["+1.00", "−2.00", "+2.00", "0"], "true A": ["+0.50", "−1.00", "−0.25", "0"],
        "critic": ["+1.00", "+2.00", "0", "+2.00"], "true V": ["+1.75", "+2.25", "+1.25", "+1.00"],
    }  # fmt: skip
    shares = re.findall(r'<td class="v" style="--v:([^"]+)"', html)
    assert shares == ["0.5", "-1", "1", "0", "0.25", "-0.5", "-0.12", "0.0005"]
    assert re.findall(r'<th scope="col">(\d)<b>(.)</b></th>', html) == [("1", "↑"), ("2", "↓"), ("3", "↑"), ("4", "←")]
    assert "<span>−2.00</span>" in html and "+2.00 points" in html
    assert "4 moves, score <b>+1</b>; expected from this start: +1.75" in html


def test_how_often_the_sign_was_right_is_counted(tmp_path: Path) -> None:
    """Three of four true advantages are beyond 0.01; the estimate is right at two; distances .5, 1, 2.25, .001."""
    html = truth_section(walks(tmp_path / "a", {1: [WALK]})).html
    assert "1 walk solved. At 3 of 4 moves the choice mattered; the estimate had the right sign at 2 of them." in html
    assert "Mean distance from the truth: 0.938 points." in html
    sure = WALK | {"true_advantages": [0.0, 0.0, 0.0, 0.0, None]}
    assert "at no move did the choice matter" in truth_section(walks(tmp_path / "b", {1: [sure]})).html


def test_grpos_one_number_is_one_cell_over_all_moves(tmp_path: Path) -> None:
    line = {name: value for name, value in WALK.items() if name not in ("values", "estimates", "advantages")}
    html = truth_section(walks(tmp_path / "a", {1: [line]}, "grpo")).html
    (table,) = rows(html)
    assert table["estimated"] == ["+0.50"] and len(table["true A"]) == 4 and set(table) == {"estimated", "true A"}
    assert 'colspan="4">+0.50</td>' in html
    assert "GRPO has one number for a walk" in html and "GAE" not in html


def test_the_caption_says_what_ppo_estimates(tmp_path: Path) -> None:
    html = truth_section(walks(tmp_path / "a", {1: [WALK]})).html
    assert "GAE" in html and "GRPO has" not in html and "A(h, a) = Q(h, a) − V(h)" in html


def test_the_path_is_the_walks(tmp_path: Path) -> None:
    """From row 1, column 3 (from 0): up, down, up, left into the +5 at row 0, column 2. Up is gone twice."""
    html = truth_section(walks(tmp_path / "a", {1: [WALK]})).html
    tips = polygons(html)
    assert len(tips) == 3
    (up_x, up_y), (down_x, down_y), (left_x, left_y) = tips
    assert 3 < up_x < 4 and 0 < up_y < 1  # into the cell above
    assert 3 < down_x < 4 and 1 < down_y < 2 and abs(up_x - down_x) > 0.2  # and back beside it
    assert 2 < left_x < 3 and 0 < left_y < 1
    assert re.findall(r'<text class="bt(?: bs)?"[^>]*>([^<]+)</text>', html) == ["1,3", "2", "4"]
    dot = re.search(r'<circle class="first" cx="([^"]+)" cy="([^"]+)"', html)
    assert dot is not None and (float(dot[1]) / SIDE, float(dot[2]) / SIDE) == (3.5, 1.5)
    symbol = re.search(r'<symbol id="([^"]+)"(.*?)</symbol>', html, re.S)
    assert symbol is not None and f'<use href="#{symbol[1]}"' in html
    assert symbol[2].count('class="mw"') == 2 and symbol[2].count('class="mc"') == 16
    assert re.findall(r'<text class="mt"[^>]*>([^<]+)<', symbol[2]) == ["+5", "+2", "−1"]


def test_a_token_that_is_no_legal_move_ends_the_path(tmp_path: Path) -> None:
    words = {"pieces": ["U", " #", " <eos>"], "token_ids": [5, 30, 3], "true_advantages": [0.5, -9.0, None]}
    line = {"prompt_id": "1-3", "reward": -9.0, "advantage": -5.0, "prompt": "1 3 <sep>", **words}
    html = truth_section(walks(tmp_path / "a", {1: [line]}, "grpo", vocabulary="full")).html
    assert len(polygons(html)) == 1 and rows(html)[0]["true A"] == ["+0.50", "−9.00"]
    assert '<th scope="col">2<b>#</b></th>' in html


def test_a_bump_into_a_wall_is_a_short_arrow(tmp_path: Path) -> None:
    words = {"pieces": [" D", " <eos>"], "token_ids": [7, 3], "true_advantages": [-0.5, None]}
    line = {"prompt_id": "3-0", "reward": -1.0, "advantage": -0.5, "prompt": "3 0 <sep>", **words}
    ((x, y),) = polygons(truth_section(walks(tmp_path / "a", {1: [line]}, "grpo", walls="bump")).html)
    assert 0 < x < 1 and 3.5 < y < 4


def test_equal_walks_are_shown_once_and_six_of_a_step(tmp_path: Path) -> None:
    several = [WALK, WALK | {"sample": 1}] + [WALK | {"prompt": f"{n}"} for n in range(8)]
    html = truth_section(walks(tmp_path / "a", {1: several})).html
    assert html.count('<figure class="walk">') == 6 and "10 walks solved" in html


def test_a_map_that_is_gone_is_said_and_the_numbers_stay(tmp_path: Path) -> None:
    html = truth_section(walks(tmp_path / "a", {1: [WALK]}, map=str(tmp_path / "gone.txt"))).html
    assert "The map cannot be drawn" in html and "<symbol" not in html and "walk-map" not in html
    assert rows(html)[0]["true A"] == ["+0.50", "−1.00", "−0.25", "0"]


@pytest.mark.parametrize("place", ["9-9", "x", None, "1-3-4", HOSTILE])
def test_a_start_that_the_map_has_not_has_no_path(tmp_path: Path, place: Any) -> None:
    html = truth_section(walks(tmp_path / "a", {1: [WALK | {"prompt_id": place}]})).html
    assert "walk-map" not in html and len(rows(html)) == 1


def test_only_reports_of_the_text_gridworld_have_the_section(tmp_path: Path) -> None:
    title = "Estimated and true advantage"
    assert title in write_report(walks(tmp_path / "a", {1: [WALK]})).read_text("utf-8")
    assert title not in write_report(record(tmp_path / "b", {1: [LINE]})).read_text("utf-8")
    unsolved = walks(tmp_path / "c", {1: [LINE]})
    assert "No row of rollouts/ has exact advantages" in write_report(unsolved).read_text("utf-8")


def test_hostile_walks_are_text(tmp_path: Path) -> None:
    line = WALK | {"pieces": [HOSTILE] * 5, "prompt": HOSTILE, "prompt_id": "1-3", "reward": HOSTILE}
    run = walks(tmp_path / "a", {1: [line]}, map=HOSTILE)
    markup = write_report(run).read_text("utf-8")
    read = Reader(markup)
    assert read.balanced and len(read.all("script")) == 1 and not read.all("img")
    assert not [name for _, found in read.elements for name in found if name.startswith("on")]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", markup)
