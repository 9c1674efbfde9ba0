"""A cell of a notebook shows one panel that is redrawn in place, as text that nothing in it can break."""

from __future__ import annotations

import html
import json
import re
import sys
import types
from typing import Any

import pytest

import upslope
from tests.inputs.test_bad_inputs import UNSAFE
from tests.recipes.support import Bench, bench, one_thread
from tests.views.conftest import HOSTILE
from upslope.run.session import Listener
from upslope.views.notebook import PAUSE, NotebookView, in_notebook

__all__ = ["bench", "one_thread"]


class Cell:
    """Stands for ``IPython.display.display`` and the handle that it gives."""

    def __init__(self) -> None:
        self.shown: list[dict[str, str]] = []
        self.outputs = 0

    def __call__(self, bundle: dict[str, str], raw: bool, display_id: bool) -> Cell:
        assert raw and display_id
        self.outputs += 1
        self.shown.append(bundle)
        return self

    def update(self, bundle: dict[str, str], raw: bool) -> None:
        assert raw
        self.shown.append(bundle)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def cell() -> Cell:
    return Cell()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def ipython(shell: Any, display: Any = None) -> types.ModuleType:
    module: Any = types.ModuleType("IPython")
    module.get_ipython = lambda: shell
    module.display = types.SimpleNamespace(display=display)
    return module


@pytest.mark.parametrize(
    ("shell", "answer"),
    [(None, False), (types.SimpleNamespace(), False), (types.SimpleNamespace(kernel=None), False),
     (types.SimpleNamespace(kernel=object()), True)],
    ids=["imported only", "ipython in a terminal", "no kernel yet", "a kernel"],
)  # fmt: skip
def test_a_notebook_is_told_by_its_kernel(monkeypatch: pytest.MonkeyPatch, shell: Any, answer: bool) -> None:
    monkeypatch.setitem(sys.modules, "IPython", ipython(shell))
    assert in_notebook() is answer


def test_without_ipython_there_is_no_notebook_and_it_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert in_notebook() is False and "IPython" not in sys.modules


def steps(view: NotebookView, clock: Clock, count: int) -> None:
    view.on_start({"run": "grpo-1", "recipe": "grpo", "model": "m", "steps": count})
    for step in range(1, count + 1):
        for done in range(20):
            view.on_phase(step, "sampling", done, 20)
            clock.now += 0.01
        view.on_sample(step, "say 7", "seven", 0.5)
        view.on_step(step, {"reward": step / 10, "loss": 0.0}, {"time/step": 0.2})


def test_one_output_is_redrawn_and_not_too_often(cell: Cell, clock: Clock) -> None:
    view = NotebookView(cell, clock)
    assert isinstance(view, Listener)
    steps(view, clock, 10)
    view.on_end({"status": "finished", "folder": "runs/grpo-1"})
    assert cell.outputs == 1
    drawn = len(cell.shown)
    assert 12 <= drawn <= 12 + 10 * 0.2 / PAUSE + 1  # the start, ten steps, the end, and a few phases
    last = cell.shown[-1]["text/plain"]
    assert "step 10/10" in last and "finished at step 10 of 10" in last and "seven" in last and "runs/grpo-1" in last
    assert any("step 3/10" in bundle["text/plain"] for bundle in cell.shown)


def test_html_and_plain_text_say_the_same(cell: Cell, clock: Clock) -> None:
    view = NotebookView(cell, clock)
    steps(view, clock, 3)
    bundle = view.bundle()
    bare = html.unescape(re.sub(r"<[^>]+>", "", bundle["text/html"]))
    assert bare.split() == bundle["text/plain"].split()
    assert bundle["text/html"].startswith("<pre") and "\x1b" not in bundle["text/plain"]


def test_notices_and_warnings_stay_in_view(cell: Cell, clock: Clock) -> None:
    view = NotebookView(cell, clock)
    view.on_start({"run": "r", "steps": 2})
    view.on_notice("8 of 8 prompts dropped")
    view.on_step(1, {"frac_reward_zero_std": 1.0, "groups": 4.0, "reward": 0.0}, {})
    view.on_end({"status": "finished"})
    last = cell.shown[-1]["text/plain"]
    assert "8 of 8 prompts dropped" in last and "4/4 groups have equal rewards" in last


def test_hostile_text_is_text(cell: Cell, clock: Clock) -> None:
    view = NotebookView(cell, clock)
    view.on_start({"run": HOSTILE, "model": HOSTILE, "steps": 1})
    view.on_notice(HOSTILE)
    view.on_sample(1, HOSTILE, HOSTILE, 1.0)
    view.on_step(1, {"reward": 1.0}, {})
    view.on_end({"status": HOSTILE, "folder": HOSTILE})
    page = cell.shown[-1]["text/html"]
    tags = set(re.findall(r"<(/?[a-z]+)", page))
    assert tags <= {"pre", "/pre", "span", "/span"} and "&lt;img src=x" in page and "[/INST]" in page
    assert not UNSAFE.search(page) and not UNSAFE.search(cell.shown[-1]["text/plain"])
    json.dumps(cell.shown[-1]).encode()


def test_a_run_in_a_kernel_shows_itself_in_the_cell(
    bench: Bench, cell: Cell, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "IPython", ipython(types.SimpleNamespace(kernel=object()), cell))
    run = bench.run("grpo", "cell", listeners=None, eval_prompts=0)
    assert cell.outputs == 1 and f"finished at step {run.metrics[-1]['step']}" in cell.shown[-1]["text/plain"]
    assert capsys.readouterr().out == ""
    assert isinstance(run, upslope.FinishedRun)
