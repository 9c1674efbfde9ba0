"""The live page's recorded training in a real browser: time, views, the microscope; and pages of other kinds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import NONE_FOUND, Page, browser, find_browser
from tests.views.grid_page_records import record
from tests.views.grid_page_tab import as_number, check, choose, enter, figures, numbers, opened, said
from upslope.maths.bellman import optimal_values, policy_values
from upslope.types import GridTraining
from upslope.views.grid_page import write_grid_page
from upslope.worlds.gridworld import SIX_BY_SIX, Gridworld, parse

BROWSER = find_browser()
pytestmark = pytest.mark.skipif(BROWSER is None, reason=NONE_FOUND)


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    assert BROWSER is not None
    with browser(BROWSER) as page:
        yield page


@pytest.fixture(scope="module")
def world() -> Gridworld:
    return parse(SIX_BY_SIX)


@pytest.fixture(scope="module")
def trainings(world: Gridworld) -> list[GridTraining]:
    return [record(world, count=12), record(world, "grpo", seed=3, critic=False, clip=0.3, count=5)]


@pytest.fixture(scope="module")
def file(world: Gridworld, trainings: list[GridTraining], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_grid_page(tmp_path_factory.mktemp("page") / "grid.html", world, trainings, 1.0)


@pytest.fixture
def page(tab: Page, file: Path) -> Iterator[Page]:
    """The page with two recorded trainings, freshly opened. It must not complain, ask the network, or be blocked."""
    yield from opened(tab, file)


def test_the_time_slider_shows_the_records_numbers(page: Page, world: Gridworld, trainings: list[GridTraining]) -> None:
    for at in (0, 4, 11):
        enter(page, "time", at)
        snapshot = trainings[0].snapshots[at]
        truth, shown = snapshot.truth, numbers(page)
        assert truth.critic_rmse is not None
        for name, value in (("J*", truth.optimal_return), ("J(π)", truth.expected_return), ("J* − J(π)", truth.gap),
                            ("max V* − V^π", truth.value_gap), ("critic RMSE", truth.critic_rmse)):  # fmt: skip
            assert abs(as_number(shown[name]) - value) <= 5.1e-4 + 1e-5 * abs(value), name
        assert shown["starts solved"] == f"{100 * truth.optimal_share:.0f} %"
        assert f"{snapshot.moves:,} moves" in said(page, "when")
        assert snapshot.values is not None
        now = page.evaluate("upslopeGrid.training()")
        assert now["at"] == at and now["view"] == "learned"
        for cell, state_ in world.index.items():
            if cell not in world.terminals:
                assert abs(as_number(now["shown"][cell[0] * 6 + cell[1]]) - float(snapshot.values[state_])) <= 0.0051


def test_each_view_shows_its_own_table(page: Page, world: Gridworld, trainings: list[GridTraining]) -> None:
    mdp = world.mdp()
    enter(page, "time", 3)
    snapshot = trainings[0].snapshots[3]
    assert snapshot.values is not None
    real = policy_values(mdp, snapshot.policy, 1.0)
    tables = {
        "learned": snapshot.values,
        "exact": real,
        "error": snapshot.values - real,
        "lost": optimal_values(mdp, 1.0) - real,
        "visits": trainings[0].visits,
    }
    for view, table in tables.items():
        choose(page, "view", view)
        shown = page.evaluate("upslopeGrid.training()")["shown"]
        for cell, at in world.index.items():
            if cell not in world.terminals:
                text, value = shown[cell[0] * 6 + cell[1]], float(table[at])
                decimals = len(text.partition(".")[2])
                assert decimals == 2 or view == "visits" or abs(value) >= 10, (view, text)
                assert abs(as_number(text) - value) <= 0.51 * 10.0**-decimals + 1e-4, (view, cell)


def test_the_microscope_shows_each_recorded_move_in_words_and_numbers(
    page: Page, trainings: list[GridTraining]
) -> None:
    seen = set[str]()
    for at in (0, 3, 4, 5, 6, 10):
        enter(page, "time", at)
        walk = trainings[0].snapshots[at].walk
        page.evaluate("document.getElementById('microscope').focus()")
        for step, move in enumerate(walk):
            if step:
                page.key("ArrowRight")
            assert page.evaluate("upslopeGrid.training().step") == step
            shown, words = figures(page), said(page, "words")
            for name, value in (
                ("predicted", move.value),
                ("return", move.outcome),
                ("gain", move.gain),
                ("ratio", move.ratio),
            ):
                assert value is not None and abs(as_number(shown[name]) - value) <= 5.1e-4 + 1e-5 * abs(value), name
            assert move.gain is not None and move.ratio is not None
            assert shown["clip"] == ("clipped" if move.clipped else "no")
            if abs(move.gain) >= 0.005:
                push = "becomes likelier" if move.gain > 0 else "becomes less likely"
                value_goes = "the value goes up" if move.gain > 0 else "the value goes down"
                assert push in words and value_goes in words
                seen.add(push)
            if move.clipped:
                bound = "above 1.2" if move.ratio > 1 else "below 0.8"
                assert f"{bound}: clipped, no further push" in words
                seen.add(bound)
            else:
                assert "clipped, no further push" not in words
                inside = 0.8 <= move.ratio <= 1.2
                assert ("inside 0.8 to 1.2" in words) == inside
                seen.add("inside" if inside else "outside")
            row = page.evaluate("[...document.querySelectorAll('#walk tr.is-now td')].map(e => e.textContent)")
            assert row[0] == str(step + 1)
            assert page.evaluate("document.querySelectorAll('#learned-map .here').length") == 1
        page.key("ArrowLeft")
        assert page.evaluate("upslopeGrid.training().step") == max(len(walk) - 2, 0)
    assert {"becomes likelier", "becomes less likely", "above 1.2", "below 0.8", "inside"} <= seen


def test_a_learner_without_a_critic_says_so(page: Page, world: Gridworld, trainings: list[GridTraining]) -> None:
    choose(page, "run", "1")
    enter(page, "time", 0)
    assert page.evaluate("upslopeGrid.training().view") == "exact"
    off = "[...document.getElementById('view').options].filter(o => o.disabled).map(o => o.value)"
    assert page.evaluate(off) == ["learned", "error"]
    assert "no critic" in said(page, "no-critic")
    assert "no critic" in said(page, "words")
    assert figures(page)["predicted"] == "–" and numbers(page)["critic RMSE"] == "–"
    move = trainings[1].snapshots[0].walk[0]
    assert abs(as_number(figures(page)["return"]) - move.outcome) <= 5.1e-4


def test_play_runs_to_the_end_and_stops(page: Page) -> None:
    page.click_on("#play")
    assert page.evaluate("upslopeGrid.training().at") == 0  # it stood at the end, so it begins anew
    waiting = "const look = () => upslopeGrid.training().playing ? setTimeout(look, 20) : done(); look();"
    page.evaluate(f"new Promise(done => {{ {waiting} }})")
    assert page.evaluate("upslopeGrid.training().at") == 11


def test_without_trainings_the_editor_stands_alone(tab: Page, tmp_path: Path, world: Gridworld) -> None:
    for page in opened(tab, write_grid_page(tmp_path / "alone.html", world, [], 0.9)):
        assert check(page)["discount"] == 0.9
        assert page.evaluate("['training', 'standing', 'walk-box'].every(id => document.getElementById(id).hidden)")


def test_a_map_too_large_to_edit_says_so_and_shows_its_training(tab: Page, tmp_path: Path) -> None:
    large = parse("\n".join([" ".join(["+5", *["."] * 31])] * 2))
    for page in opened(tab, write_grid_page(tmp_path / "large.html", large, [record(large, count=3)], 1.0)):
        assert "stops at 30 x 30" in said(page, "editor")
        assert page.evaluate("upslopeGrid.training().at") == 2


def test_a_narrow_page_does_not_scroll_sideways(page: Page) -> None:
    for width in (420, 800, 1280):
        page.size(width, 900)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
