"""``upslope grid`` and the Python functions around it: what they print, write and refuse."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

import upslope
from upslope import gridrun
from upslope.errors import InputError, InputErrors
from upslope.worlds.gridworld import SIX_BY_SIX

SMALL = ". . +5\nS # -1\n. . ."


def run(out: Path, learners: tuple[str, ...], **settings: int) -> tuple[gridrun.GridOutcome, str]:
    text = io.StringIO()
    console = Console(file=text, width=120, highlight=False)
    recipes = [gridrun.recipe_of(name, {"iterations": 4, **settings}, "test") for name in learners]
    return gridrun.run_grid(upslope.gridworld(SMALL), recipes, out, console, "small"), text.getvalue()


def test_run_grid_solves_learns_draws_and_writes_the_page(tmp_path: Path) -> None:
    found, text = run(tmp_path / "a" / "b", gridrun.LEARNERS)
    assert [training.algorithm for training in found.trainings] == list(gridrun.LEARNERS)
    assert "J* = 2.000" in text  # from S: up, right, right: 5 - 3
    for name in gridrun.LEARNERS:
        assert re.search(rf"^{name}\s+seed 0 ", text, re.MULTILINE), name
    for name, path in found.pictures.items():
        assert path.parent == tmp_path / "a" / "b" and path.stem == name
        assert path.read_bytes()[:4] in (b"\x89PNG", b"GIF8")
    assert {"solution", "sweeps", "action-values", "values-error", "ppo", "ppo-walk", "ppo-clip", "ppo-networks",
            "ppo-film", "grpo", "curves"} <= found.pictures.keys()  # fmt: skip
    page = found.page.read_text(encoding="utf-8")
    assert all(f'"{name}"' in page for name in gridrun.LEARNERS)


def test_each_seed_is_trained_and_the_page_replays_the_first(tmp_path: Path) -> None:
    text = io.StringIO()
    recipes = [gridrun.recipe_of("reinforce", {"iterations": 2, "seed": seed}, "test") for seed in (3, 4)]
    found = gridrun.run_grid(upslope.gridworld(SMALL), recipes, tmp_path, Console(file=text, width=120), "small")
    assert [training.seed for training in found.trainings] == [3, 4]
    assert "seed 3" in text.getvalue() and "seed 4" in text.getvalue()


def test_an_unknown_learner_and_a_bad_setting_are_named_together() -> None:
    with pytest.raises(InputErrors) as caught:
        gridrun.recipe_of("sarsa", {"iterations": 0, "featurs": "xy"}, "upslope.grid()")
    text = str(caught.value)
    assert "learn" in text and "iterations" in text and "featurs" in text and "features" in text


def test_a_start_that_reaches_no_end_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"row 1, column 1.*no end"):
        upslope.grid(upslope.gridworld("S # +5 ."))


def test_gridworld_reads_text_and_files(tmp_path: Path) -> None:
    path = tmp_path / "map.txt"
    path.write_text(SMALL)
    assert upslope.gridworld(path).text == upslope.gridworld(str(path)).text == upslope.gridworld(SMALL).text
    assert upslope.gridworld().text == upslope.gridworld(SIX_BY_SIX).text
    assert upslope.gridworld(SMALL, step_cost=2.0, slip=0.5, blocked="bump").slip == 0.5
    with pytest.raises(InputError, match=r"nowhere\.txt"):
        upslope.gridworld("nowhere.txt")


def test_solve_and_draw(tmp_path: Path) -> None:
    world = upslope.gridworld(". . +5")
    exact = upslope.solve(world)
    assert exact.optimal_values.tolist() == [3, 4, 0] and exact.optimal_return == 3.5
    assert upslope.solve(world, discount=0.5).optimal_values.tolist() == [1, 4, 0]
    trained = upslope.grid(world, learn="reinforce", iterations=2, seed=1)
    assert trained.last.values is None and torch.isfinite(trained.last.policy).all()
    for name, what in (("exact.png", exact), ("trained.png", trained)):
        assert upslope.draw(world, what, tmp_path / name).read_bytes()[:4] == b"\x89PNG"


def test_a_map_wider_than_the_terminal_is_left_to_the_picture() -> None:
    world = upslope.gridworld(". " * 20 + "+5")
    for width, fits in ((60, False), (200, True)):
        text = io.StringIO()
        gridrun.show_solution(world, upslope.solve(world), Console(file=text, width=width), "a corridor")
        assert ("┌" in text.getvalue()) is fits and ("see the picture" in text.getvalue()) is not fits
        assert "20 free cells" in text.getvalue().replace("\n", " ")
