"""Tokens in a real browser: the switch paints, pointer and keys tell the numbers, nothing overflows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import NONE_FOUND, Page, browser, find_browser
from tests.views.token_records import LINE, WALK, record, walks
from upslope.views.report import write_report

BROWSER = find_browser()
pytestmark = pytest.mark.skipif(BROWSER is None, reason=NONE_FOUND)
PLUS, MINUS = (33, 113, 181), (217, 95, 14)  # of the light page
FULL = 0.62


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    assert BROWSER is not None
    with browser(BROWSER) as page:
        yield page


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    long = LINE | {"sample": 1, "pieces": [" word"] * 200, "token_ids": [1] * 200, "advantages": [0.1] * 200}
    other = LINE | {"group": 1, "prompt": "Another?", "pieces": ["A", "\n", "c"], "advantages": [1.0, -1.0, 0.0]}
    folder = tmp_path_factory.mktemp("runs") / "language"
    return write_report(record(folder, {1: [LINE], 2: [LINE, long, other]}))


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    columns = {name: [*value[:4], *value[3:]] for name, value in WALK.items() if isinstance(value, list)}
    five = WALK | columns | {"estimates": [-4.25] * 6, "true_advantages": [-3.25] * 5 + [None]}
    return write_report(
        walks(tmp_path_factory.mktemp("runs") / "grid", {1: [WALK], 2: [WALK, five | {"values": [-2.5] * 6}]})
    )


@pytest.fixture
def page(tab: Page, language: Path) -> Iterator[Page]:
    tab.events.clear()
    tab.size(1200, 900)
    tab.open(language)
    yield tab
    assert tab.complaints() == [] and tab.requests() == []


SHOWN = ".token-step:not([hidden]) .t"


def color(page: Page, place: int, selector: str = SHOWN) -> dict[str, float]:
    """Opacity of the two layers under a token: plus and minus."""
    found = page.evaluate(f"getComputedStyle(document.querySelectorAll('{selector}')[{place}]).backgroundImage")
    layers = re.findall(r"rgba?\((\d+), (\d+), (\d+)(?:, ([\d.]+))?\)", found)
    shares: dict[str, float] = {}
    for red, green, blue, alpha in layers:
        name = {PLUS: "plus", MINUS: "minus"}[int(red), int(green), int(blue)]
        share = float(alpha) if alpha else 1.0
        assert shares.setdefault(name, share) == share  # even from edge to edge
    assert set(shares) == {"plus", "minus"}, found
    return shares


def told(page: Page) -> str:
    return page.evaluate("document.querySelector('.token-read').innerText.replace(/\\s+/g, ' ')")


def test_the_switch_paints_tokens_by_the_chosen_measure(page: Page) -> None:
    """Advantage .5, -1, 2, 0 on a scale of 1, for one 2 among 400 tokens is an outlier; entropy 1, .5, 0, 2 of 2;
    difference 0, .01, -.02, 0 of .02."""
    wanted = {"a": [0.5, -1.0, 1.0, 0.0], "e": [0.5, 0.25, 0.0, 1.0], "g": [0.0, 0.5, -1.0, 0.0]}
    # The browser's own click, so that the label and the radio button under it are tried too.
    for place, (key, shares) in enumerate(wanted.items(), 1):
        page.click_on(f".switch label:nth-child({place}) span")
        assert page.evaluate(f"getComputedStyle(document.querySelector('.of-{key}')).display") == "block"
        for token, share in enumerate(shares):
            found = color(page, token)
            assert found["plus"] == pytest.approx(FULL * max(share, 0.0), abs=0.01), (key, token)
            assert found["minus"] == pytest.approx(FULL * max(-share, 0.0), abs=0.01), (key, token)


def test_the_switch_works_without_the_mouse(page: Page) -> None:
    page.evaluate("document.querySelector('.by-a').focus()")
    page.key("ArrowRight")
    assert page.evaluate("document.querySelector('.by-e').checked") and color(page, 3)["plus"] == pytest.approx(FULL)


def test_the_pointer_tells_a_tokens_numbers_and_leaving_ends_it(page: Page) -> None:
    left, top, width, height = page.box(f"{SHOWN}:nth-child(2)")
    page.mouse("mouseMoved", left + width / 2, top + height / 2)
    assert told(page) == (
        '" is" token 2 of 4 advantage −1.000 entropy 0.500 learner − sampler +0.010 log-prob of the sampler −0.250'
    )
    page.mouse("mouseMoved", 2, 2)
    assert told(page).startswith("Point at a token")


def test_arrow_keys_go_from_token_to_token(page: Page) -> None:
    page.evaluate(f"document.querySelector('{SHOWN}').focus()")
    seen = []
    for key in ("ArrowRight", "ArrowRight", "End", "ArrowRight", "Home", "ArrowDown", "End", "ArrowDown", "ArrowUp"):
        page.key(key)
        seen.append(re.match(r'"(.*)" token (\d+ of \d+)', told(page)).groups())  # type: ignore[union-attr]
    assert seen == [
        (" is", "2 of 4"), (" 4", "3 of 4"), ("<|im_end|>", "4 of 4"), ("<|im_end|>", "4 of 4"), ("It", "1 of 4"),
        (" word", "1 of 200"), (" word", "200 of 200"), ("c", "3 of 3"), (" word", "3 of 200"),
    ]  # fmt: skip
    stops = "[...document.querySelectorAll('.token-text')].map(e => e.querySelectorAll('[tabindex=\"0\"]').length)"
    assert page.evaluate(stops) == [1, 1, 1, 1]  # one Tab stop a completion


def test_a_line_break_is_told_as_one(page: Page) -> None:
    page.evaluate(f"[...document.querySelectorAll('{SHOWN}')].find(t => t.textContent.includes('↵')).focus()")
    assert told(page).startswith('"\\n" token 2 of 3')


def test_the_picker_changes_the_step_of_its_own_section(page: Page) -> None:
    assert page.evaluate(f"document.querySelectorAll('{SHOWN}').length") == 4 + 200 + 3
    page.click_on(".tokens .picker button:first-child")
    assert page.evaluate(f"document.querySelectorAll('{SHOWN}').length") == 4
    assert page.evaluate("document.querySelector('.rollouts tbody:not([hidden])').dataset.step") == "2"


@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_wider_than_the_window_and_text_stands_out(
    tab: Page, language: Path, grid: Path, width: int, dark: bool
) -> None:
    tab.events.clear()
    tab.size(width, 900, dark=dark)
    for file in (language, grid):
        tab.open(file)
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    boxes = tab.evaluate(
        "[...document.querySelectorAll('.truths [data-step]:not([hidden]) .truth-scroll')]"
        ".map(e => e.scrollWidth - e.clientWidth)"
    )
    assert boxes == [0, 0]  # walks of four and five moves fit
    ratio = tab.evaluate(CONTRAST)
    assert ratio > 4.5
    assert tab.complaints() == [] and tab.requests() == []


# The worst contrast (WCAG 2) of the text on the strongest colour of either sign, laid over the card.
CONTRAST = """(() => {
  const style = getComputedStyle(document.documentElement), of = name => style.getPropertyValue(name).trim();
  const hex = text => [1, 3, 5].map(i => parseInt(text.slice(i, i + 2), 16));
  const light = rgb => rgb.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ink = light(hex(of("--ink"))), card = hex(of("--card"));
  return Math.min(...["--plus", "--minus"].map(name => {
    const paint = of(name).split(" ").map(Number), back = light(card.map((v, i) => v + of("--depth") * (paint[i] - v)));
    return (Math.max(ink, back) + 0.05) / (Math.min(ink, back) + 0.05);
  }));
})()"""
