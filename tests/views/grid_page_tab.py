"""What the tests of the live page do and read in a browser's tab."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tests.browser import Page
from upslope.errors import InputError
from upslope.maths.bellman import action_values, greedy_policy, optimal_values
from upslope.worlds.gridworld import Gridworld, parse

TOLERANCE = 1e-9


def opened(tab: Page, file: Path) -> Iterator[Page]:
    tab.size(1280, 1500)
    tab.events.clear()
    tab.open(file)
    yield tab
    tab.evaluate("new Promise(requestAnimationFrame)")
    assert tab.complaints() == []
    assert tab.requests() == []


def state(page: Page) -> dict[str, Any]:
    return page.evaluate("upslopeGrid.state()")


def as_number(text: str) -> float:
    return float(text.replace("−", "-").replace("∞", "inf"))


def check(page: Page) -> dict[str, Any]:
    """The page's numbers, best moves and written texts against the Python solver's, for the page's own map."""
    now = state(page)
    try:
        world = parse(now["text"], now["stepCost"], now["slip"], now["blocked"])
    except InputError as error:
        assert now["problem"], f"Python refuses the map ({error}), the page does not"
        assert page.evaluate("!document.getElementById('problem').hidden")
        return now
    assert not now["problem"] and now["converged"]
    assert [divmod(at, now["columns"]) for at in now["cells"]] == list(world.cells)
    mdp = world.mdp()
    exact = optimal_values(mdp, now["discount"])
    found = torch.tensor([-torch.inf if value == "-inf" else value for value in now["values"]], dtype=torch.float64)
    lost = torch.isneginf(exact)
    assert torch.equal(torch.isneginf(found), lost), now
    assert float((found - exact).masked_fill(lost, 0.0).abs().max()) <= TOLERANCE, now
    greedy = greedy_policy(action_values(mdp, exact, now["discount"])) > 0
    for cell, row, moves in zip(world.cells, greedy.tolist(), now["best"], strict=True):
        assert moves == ([] if cell in world.terminals else [move for move in range(4) if row[move]]), (cell, now)
    mean = statistics.fmean(float(exact[world.index[cell]]) for cell in world.starts)
    assert float(now["mean"]) == mean or abs(float(now["mean"]) - mean) <= TOLERANCE
    check_texts(now, world, found)
    return now


def check_texts(now: dict[str, Any], world: Gridworld, found: torch.Tensor) -> None:
    half = 0.5 * 10.0 ** -now["decimals"] + 1e-12
    for at, text in enumerate(now["shown"]):
        cell = divmod(at, now["columns"])
        if cell in world.walls:
            assert text == ""
        elif cell in world.terminals:
            assert abs(as_number(text) - world.terminals[cell]) <= 5.1e-5
        else:
            value = float(found[world.index[cell]])
            shown = as_number(text)
            assert shown == value or abs(shown - value) <= half, (cell, text, value)
            assert len(text.partition(".")[2]) == (now["decimals"] if abs(value) != float("inf") else 0)


def cell_middle(page: Page, at: int) -> tuple[float, float]:
    """The middle of cell ``at`` of the editor's map, in pixels of the viewport."""
    left, top, width, height = page.box("#editor-map")
    now = state(page)
    row, column = divmod(at, now["columns"])
    return left + (column + 0.5) * width / now["columns"], top + (row + 0.5) * height / now["rows"]


def enter(page: Page, field: str, value: float | str) -> None:
    page.evaluate(
        f"(() => {{ const f = document.getElementById('{field}'); f.focus(); f.value = {json.dumps(str(value))}; "
        "f.dispatchEvent(new Event('input', {bubbles: true})); f.dispatchEvent(new Event('change')); f.blur(); })()"
    )


def read_text(page: Page, text: str) -> None:
    page.evaluate(f"document.getElementById('text').value = {json.dumps(text)}")
    page.evaluate("document.getElementById('read').click()")


def choose(page: Page, field: str, value: str) -> None:
    page.evaluate(
        f"(() => {{ const s = document.getElementById('{field}'); s.value = '{value}'; "
        "s.dispatchEvent(new Event('change')); })()"
    )


def said(page: Page, field: str) -> str:
    return page.evaluate(f"document.getElementById('{field}').textContent")


def named(page: Page, name: str) -> dict[str, str]:
    """The texts of the elements that carry ``data-name``, by its value."""
    every = f"[...document.querySelectorAll('[data-{name}]')]"
    return page.evaluate(f"Object.fromEntries({every}.map(e => [e.dataset.{name}, e.textContent]))")


def figures(page: Page) -> dict[str, str]:
    return named(page, "figure")


def numbers(page: Page) -> dict[str, str]:
    return named(page, "number")
