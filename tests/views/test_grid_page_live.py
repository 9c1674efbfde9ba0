"""The live page's editor in a real browser: its numbers are the Python solver's after every edit."""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import NONE_FOUND, Page, browser, find_browser
from tests.views.grid_page_records import record
from tests.views.grid_page_tab import cell_middle, check, enter, opened, read_text, said, state
from upslope.errors import InputError
from upslope.maths.bellman import value_iteration_sweeps
from upslope.types import GridTraining
from upslope.views.grid_page import write_grid_page
from upslope.worlds.gridworld import SIX_BY_SIX, Blocked, Gridworld, parse

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


KINDS = ["click"] * 6 + ["key"] * 5 + ["slip", "cost"] * 2
KINDS += ["digits", "nudge", "drag", "discount", "blocked", "size", "undo", "paste", "slider key", "points"]


class Hand:
    """Makes one random edit through the page's own controls, mostly by real mouse and key events."""

    def __init__(self, page: Page, seed: int) -> None:
        self.page, self.dice, self.done = page, random.Random(seed), dict[str, int]()

    def edit(self) -> str:
        kind = self.dice.choice(KINDS)
        getattr(self, kind.replace(" ", "_"))()
        self.done[kind] = self.done.get(kind, 0) + 1
        return kind

    def _cell(self) -> int:
        now = state(self.page)
        return self.dice.randrange(now["rows"] * now["columns"])

    def _go(self) -> None:
        """Moves the cursor to some cell by arrow keys."""
        self.page.evaluate("document.getElementById('editor-map').focus()")
        now = state(self.page)
        there, columns = self._cell(), now["columns"]
        down, right = there // columns - now["cursor"] // columns, there % columns - now["cursor"] % columns
        for _ in range(abs(down)):
            self.page.key("ArrowDown" if down > 0 else "ArrowUp")
        for _ in range(abs(right)):
            self.page.key("ArrowRight" if right > 0 else "ArrowLeft")
        assert state(self.page)["cursor"] == there

    def _tool(self) -> None:
        tool = self.dice.choice(["wall", "wall", "free", "free", "start", "terminal", "cost"])
        self.page.click_on(f"[data-tool={tool}]")

    def click(self) -> None:
        self._tool()
        before, at = state(self.page), self._cell()
        self.page.click(*cell_middle(self.page, at))
        after = state(self.page)
        assert after["cursor"] == at and after["edits"] >= before["edits"]

    def drag(self) -> None:
        self._tool()
        x, y = cell_middle(self.page, self._cell())
        to_x, to_y = cell_middle(self.page, self._cell())
        self.page.mouse("mousePressed", x, y, down=True)
        for part in (0.25, 0.5, 0.75, 1.0):
            self.page.mouse("mouseMoved", x + (to_x - x) * part, y + (to_y - y) * part, down=True)
        self.page.mouse("mouseReleased", to_x, to_y)

    def key(self) -> None:
        self._go()
        self.page.key(self.dice.choice(["w", " ", "f", "f", "s", "t", "c", "Enter"]))

    def digits(self) -> None:
        self._go()
        self.page.key("t")
        for digit in self.dice.choice(["7", "12", "0"]):
            self.page.key(digit)

    def nudge(self) -> None:
        self._go()
        self.page.key(self.dice.choice("tc"))
        for _ in range(self.dice.randint(1, 8)):
            self.page.key(self.dice.choice(["-", "-", "+"]))

    def points(self) -> None:
        enter(self.page, "points", self.dice.choice([-7.5, -1, 0, 0.25, 3, 1e-3, 40]))
        enter(self.page, "cost", self.dice.choice([0, 0.5, 3, 7.25]))
        self.page.click_on("[data-tool=terminal]")
        self.page.click(*cell_middle(self.page, self._cell()))

    def cost(self) -> None:
        field = self.dice.choice(["step-cost", "step-cost-number"])
        enter(self.page, field, self.dice.choice([0, 0, 0, 0.05, 0.5, 1, 2.95]))

    def discount(self) -> None:
        field = self.dice.choice(["discount", "discount-number"])
        enter(self.page, field, self.dice.choice([1, 1, 1, 1, 1, 1, 0.5, 0.77, 0.9, 0.96]))

    def slip(self) -> None:
        field = self.dice.choice(["slip", "slip-number"])
        enter(self.page, field, self.dice.choice([0, 0, 0.1, 0.2, 0.5, 0.85, 1]))

    def slider_key(self) -> None:
        """The slider itself, by real keys."""
        slider = self.dice.choice(["step-cost", "slip", "slip", "discount"])
        self.page.evaluate(f"document.getElementById('{slider}').focus()")
        for _ in range(3):
            self.page.key(self.dice.choice(["ArrowRight", "ArrowLeft"]))
        self.page.evaluate("document.activeElement.blur()")

    def blocked(self) -> None:
        self.page.click_on(f"input[value={self.dice.choice(['mask', 'bump'])}]")

    def size(self) -> None:
        self.page.click_on(f"[data-size='{self.dice.choice(['row', 'column'])}{self.dice.choice('+-')}']")

    def undo(self) -> None:
        for _ in range(self.dice.randint(1, 3)):
            self.page.click_on("#undo")

    def paste(self) -> None:
        rows, columns = self.dice.randint(2, 7), self.dice.randint(2, 7)
        kinds, weights = ["#", ".", "~3", "S", "S~0.5", "+5", "-1.5", "+0.125"], [7, 12, 1, 1, 1, 1, 1, 1]
        tokens = self.dice.choices(kinds, weights, k=rows * columns)
        text = "\n".join(" ".join(tokens[row * columns : (row + 1) * columns]) for row in range(rows))
        self.page.evaluate("document.getElementById('text-box').open = true")
        self.page.evaluate(f"document.getElementById('text').value = {json.dumps(text)}")
        self.page.click_on("#read")
        assert state(self.page)["text"].split() == text.split()


def test_after_each_of_200_random_edits_the_numbers_are_the_python_solvers(page: Page) -> None:
    hand, seen = Hand(page, seed=0), [check(page)]
    while len(seen) <= 200:
        before = seen[-1]["edits"]
        hand.edit()
        now = check(page)
        if now["edits"] > before:  # an undo with nothing to undo is no edit
            seen.append(now)
    assert set(hand.done) == set(KINDS)
    # It went where it is hard: slip at discount 1, cells without an end in reach, free moves, bumps, costs.
    solved = [now for now in seen if not now["problem"]]
    assert len(solved) > 150
    assert sum(now["slip"] > 0 and now["discount"] == 1 for now in solved) >= 20
    assert sum("-inf" in now["values"] for now in solved) >= 10
    assert any(now["stepCost"] == 0 for now in solved) and any(now["blocked"] == "bump" for now in solved)
    assert any("~" in now["text"] for now in solved)


HARD: list[tuple[str, float, float, Blocked, float]] = [
    ("+1 . . .\n. # . -1\n. . . .", 0.04, 0.2, "bump", 1.0),  # the end is never certain within a bounded time
    ("+5 . # .\n. . # .", 1.0, 0.0, "mask", 1.0),  # two cells without an end in reach
    ("+5 . # .\n. . # .", 1.0, 0.0, "mask", 0.9),
    ("+5 . # .\n. . # #", 1.0, 0.1, "mask", 1.0),  # walled in, and slippery elsewhere
    ("+5 . # .\n. . # #", 1.0, 0.0, "mask", 0.9),  # walled in, where staying for ever costs 10
    ("-1 . . -1\n. . . .", 0.0, 0.5, "bump", 1.0),  # free moves and only losses
    ("+2 . . -3\n. . . .", 0.0, 0.0, "mask", 1.0),
    ("+2 ~0 . -3\n. ~0 S~0.5 .", 0.5, 0.3, "bump", 1.0),
    (". . +4 . .", 1.0, 1.0, "mask", 1.0),  # every move slips
    ("+0.001 . .\n. . .", 0.0, 0.9, "bump", 0.5),
    ("+40 . . . . -100\n. . . . . .", 1.0, 0.2, "mask", 0.99),
]


def test_hard_worlds_are_solved_as_in_python(page: Page) -> None:
    for text, step_cost, slip, blocked, discount in HARD:
        read_text(page, text)
        enter(page, "step-cost-number", step_cost)
        enter(page, "slip", slip)
        enter(page, "discount-number", discount)
        page.evaluate(f"document.querySelector('input[value={blocked}]').click()")
        now = check(page)
        assert (now["stepCost"], now["slip"], now["discount"], now["blocked"]) == (step_cost, slip, discount, blocked)
        assert not now["problem"]
        world = parse(text, step_cost, slip, blocked)
        sweeps = len(value_iteration_sweeps(world.mdp(), discount)) - 1
        assert abs(now["sweeps"] - sweeps) <= (0 if slip == 0 else max(4, 0.02 * sweeps)), text
        assert f"{now['sweeps']:,} sweep" in said(page, "result")


def test_a_cell_that_never_ends_is_hatched_and_said(page: Page) -> None:
    read_text(page, "+5 . # .")
    now = check(page)
    assert now["values"] == [0, 4, "-inf"] and now["shown"] == ["+5", "4", "", "−∞"]
    cells = page.evaluate("[...document.querySelectorAll('#editor-map .cell')].map(e => e.getAttribute('fill'))")
    assert [bool(fill) and fill.startswith("url(#hatch") for fill in cells] == [False, False, False, True]
    assert "from 1 of 2 starts no policy is sure to end" in said(page, "result")


def test_a_map_without_an_end_or_a_free_cell_is_named_as_refused(page: Page) -> None:
    for text, expected in ((". .\n. #", "No end"), ("+5 #\n-1 #", "No free cell")):
        read_text(page, text)
        with pytest.raises(InputError):
            parse(state(page)["text"])
        check(page)
        told = said(page, "problem")
        assert expected in told and "Python refuses" in told


def test_the_keyboard_alone_edits_the_map(page: Page) -> None:
    page.evaluate("document.querySelector('[data-tool=cost]').focus()")
    page.key("Enter")
    for _ in range(2):  # past the field of the cost, into the map
        page.key("Tab")
    assert page.evaluate("document.activeElement.id") == "editor-map"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    for keys, at, token in (
        (["w"], 0, "#"), ([" "], 0, "."), (["ArrowRight", "t"], 1, "+5"), (["-", "-"], 1, "+3"), (["1", "2"], 1, "+12"),
        (["f"], 1, "."), (["ArrowDown", "ArrowLeft", "c"], 6, "~3"), (["+"], 6, "~4"), (["s"], 6, "S~4"),
        (["c", "2"], 6, "S~2"), (["u"], 6, "S~3"), (["ArrowUp", "Enter"], 0, "~3"),
    ):  # fmt: skip
        for key in keys:
            page.key(key)
        now = check(page)
        assert now["cursor"] == at and now["text"].split()[at] == token, keys
        assert f"Row {at // 6 + 1}, column {at % 6 + 1}" in said(page, "cell")


def test_each_tool_makes_its_cell_and_clears_it_again(page: Page) -> None:
    enter(page, "points", -2.5)
    enter(page, "cost", 7)
    for tool, tokens in (
        ("wall", "# ."), ("start", "S ."), ("cost", "~7 ."), ("terminal", "-2.5 ."), ("wall", "#"), ("start", "S"),
        ("cost", "S~7 S"), ("cost", "S~7"), ("start", "~7 S~7"), ("wall", "# ."), ("terminal", "-2.5"), ("free", ". ."),
    ):  # fmt: skip
        page.click_on(f"[data-tool={tool}]")
        assert page.evaluate(f"document.querySelector('[data-tool={tool}]').ariaPressed") == "true"
        for token in tokens.split():
            page.click(*cell_middle(page, 14))
            assert check(page)["text"].split()[14] == token, tool


def test_what_is_painted_is_undone_in_one_go_and_reset_brings_the_recorded_map(page: Page, world: Gridworld) -> None:
    before = state(page)["text"]
    page.click_on("[data-tool=wall]")
    x, y = cell_middle(page, 0)
    end, _ = cell_middle(page, 4)
    page.mouse("mousePressed", x, y, down=True)
    for step in range(1, 9):
        page.mouse("mouseMoved", x + (end - x) * step / 8, y, down=True)
    page.mouse("mouseReleased", end, y)
    assert check(page)["text"].split()[:6] == ["#", "#", "#", "#", "#", "+5"]
    assert page.evaluate("!document.getElementById('edited-note').hidden")
    page.click_on("#undo")
    assert check(page)["text"] == before and before.split() == world.text.split()
    page.click_on("[data-size='row+']")
    page.click_on("[data-size='column-']")
    enter(page, "slip", 0.3)
    now = check(page)
    assert (now["rows"], now["columns"], now["slip"]) == (7, 5, 0.3)
    page.click_on("#reset")
    assert check(page)["text"] == before and state(page)["slip"] == 0
    assert page.evaluate("document.getElementById('edited-note').hidden")


def test_the_map_as_text_goes_through_pythons_parse_and_back(page: Page) -> None:
    made = parse("S . ~2.5 # +1.25\n. S~0 -3 . ~0.000001\n# # # # -0.5")
    read_text(page, made.text)
    found = parse(page.evaluate("document.getElementById('text').value"))
    for name in ("cells", "walls", "terminals", "costs", "starts", "starts_given"):
        assert getattr(found, name) == getattr(made, name), name
    before = state(page)["text"]
    for text, expected in (
        (". .\n. . .", "Row 2 has 3 tokens, row 1 has 2"),
        (". ?\n+5 .", "Row 1, column 2: found '?'"),
        ("", "empty"),
    ):
        read_text(page, text)
        assert expected in said(page, "text-said")
        assert state(page)["text"] == before


def test_an_edit_of_a_ten_by_ten_map_is_soon_on_the_screen(page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    dice = random.Random(3)
    tokens = dice.choices([".", "#", "+5", "-1"], [70, 20, 2, 2], k=100)
    text = "\n".join(" ".join(tokens[10 * row : 10 * row + 10]) for row in range(10))
    read_text(page, text)
    page.click_on("[data-tool=wall]")
    medians = {}
    for slip in (0, 0.2):
        enter(page, "slip", slip)
        page.evaluate("new Promise(done => setTimeout(done, 60))")
        begun = len(page.evaluate("upslopeGrid.timings().repaints"))
        for _ in range(40):
            page.click(*cell_middle(page, dice.randrange(100)))
        page.evaluate("new Promise(done => setTimeout(done, 300))")
        timings = page.evaluate("upslopeGrid.timings()")
        medians[slip] = [round(statistics.median(timings[name][begun:]), 1) for name in ("computes", "repaints")]
        assert len(timings["repaints"]) - begun >= 40
        check(page)
    with capsys.disabled():
        print(f"\n10x10, median ms (solve and draw, edit to repaint): {medians}")
    assert max(repaint for _, repaint in medians.values()) < 500  # 50 on a machine that does nothing else
