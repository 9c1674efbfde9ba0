"""The task text-grid: prompts, rules, scores, what may be said, supervised walks."""

from __future__ import annotations

import itertools
import json
import math
import random
import subprocess
import sys
from collections import deque
from typing import Any

import pytest

from upslope.errors import InputError
from upslope.models import tiny
from upslope.text.rendering import Renderer
from upslope.types import Confined, Rendering
from upslope.worlds import gridworld, text_walks
from upslope.worlds.task import load_task
from upslope.worlds.text_gridworld import TextGrid, move_ids, rules_of

MIXED = "S ~3 +2\n. # -4\n. . +7"
"""Costs of their own, a wall, points below 0."""


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    words = tiny.tokenizer()
    return Renderer(words, (words.eos_token_id,))


def hand_score(text: str, start: tuple[int, int], words: list[str], horizon: int, walls: str, penalty: Any) -> float:
    """The score by a walk on the map's own text, without ``Rules``."""
    rows = [line.split() for line in text.split("\n") if line.strip()]
    (row, column), total = start, 0.0
    for depth in range(horizon):
        here = rows[row][column]
        step = {"U": (-1, 0), "D": (1, 0), "L": (0, -1), "R": (0, 1)}.get(words[depth] if depth < len(words) else "")
        if step is None:
            return total + penalty(depth)
        there = (row + step[0], column + step[1])
        inside = 0 <= there[0] < len(rows) and 0 <= there[1] < len(rows[0]) and rows[there[0]][there[1]] != "#"
        if not inside and walls == "mask":
            return total + penalty(depth)
        total -= float(here.split("~")[1]) if "~" in here else 1.0
        if inside:
            row, column = there
            if rows[row][column][0] in "+-":
                return total + float(rows[row][column])
    return total


@pytest.mark.parametrize("walls", ["mask", "bump"])
def test_the_score_is_that_of_a_walk_on_the_map(walls: str) -> None:
    task = TextGrid(MIXED, horizon=4, walls=walls, vocabulary="full")
    draw = random.Random(0)
    for _ in range(400):
        start = draw.choice(task.starts)
        words = draw.choices(["U", "R", "D", "L", "7", "<sep>"], [8, 8, 8, 8, 1, 1], k=draw.randrange(7))
        found = task.rules.score(task.grid.index[start], words)
        assert found == hand_score(MIXED, start, words, 4, walls, task.rules.penalty), (start, words)


def test_scores_by_hand() -> None:
    rules = TextGrid(MIXED, horizon=4).rules
    start = 0  # row 0, column 0
    assert rules.score(start, ["R", "R"]) == -1 - 3 + 2
    assert rules.score(start, ["D", "D", "R", "R"]) == -4 + 7
    assert rules.score(start, ["D", "U", "D", "U"]) == -4  # the cap is an end, without a penalty
    assert rules.score(start, ["D", "U", "D", "U", "R", "R"]) == -4  # what follows the end does not count
    # 3 moves are left, the dearest costs 3; +2 is entered from there for 3 - 2; nothing can enter -4.
    assert rules.penalty(1) == min(3 * -3, 2 * -3 - 1) - 3 == -12
    assert rules.score(start, ["D"]) == rules.score(start, ["D", "R"]) == -1 - 12
    assert TextGrid("S . -9", horizon=4).rules.penalty(1) == min(3 * -1, 2 * -1 - 10) - 3 == -15
    assert TextGrid("S . +5", horizon=5).rules.penalty(2) == -(5 - 2) - 3  # points above 0, cost 1: -(H - depth) - 3


@pytest.mark.parametrize("text", [MIXED, "S . -9\n. . +1", "S +1"])
def test_an_early_end_is_worse_than_every_way_of_walking_on(text: str) -> None:
    rules = TextGrid(text, horizon=4, vocabulary="full", walls="bump").rules
    for words in itertools.product("URDL", repeat=4):
        for depth in range(4):
            if all(not rules.ends(s, n) for n, s in enumerate(states(rules, words[:depth]))):
                ended = rules.score(0, words[:depth])
                assert ended + text_walks.MARGIN <= rules.score(0, words)


def states(rules: text_walks.Rules, words: Any) -> list[int]:
    found = [0]
    for word in words:
        there = rules.following[found[-1]][text_walks.MOVES.index(word)] if rules.following[found[-1]] else None
        found.append(found[-1] if there is None else there)
    return found


def test_optimal_values_are_those_of_a_breadth_first_search() -> None:
    """With cost 1 and no other: the best of points - distance over the terminals within reach, or -left."""
    for walls in ("mask", "bump"):
        task = TextGrid("6x6", horizon=7, walls=walls)
        table, grid = task.rules.optimal_values(), task.grid
        for start in task.starts:
            far, queue = {start: 0}, deque([start])
            while queue:
                cell = queue.popleft()
                for move in range(4):
                    there = grid.neighbour(cell, move)
                    if there is not None and there not in far:
                        far[there] = far[cell] + 1
                        queue.append(there)
            for left in range(8):
                ends = [points - far[end] for end, points in grid.terminals.items() if far.get(end, 99) <= left]
                assert table[left][grid.index[start]] == max([*ends, -left])


def test_the_map_has_eleven_starts_and_the_best_score_that_the_recipes_name() -> None:
    task = TextGrid()
    values = [task.rules.optimal_values()[5][task.grid.index[start]] for start in task.starts]
    assert len(values) == 11
    assert math.isclose(sum(values) / 11, 24 / 11, rel_tol=1e-12)


def test_rewards_come_through_the_ordinary_reward_function() -> None:
    task = load_task("text-grid", {"horizon": 3, "repeats": 2})
    prompts = task.prompts("train")
    assert len(prompts) == 22 and len(task.prompts("heldout")) == 11
    first = next(prompt for prompt in prompts if prompt.id == "0-1")
    columns = {name: [value] * 3 for name, value in first.columns.items()}
    assert task.reward([first.content] * 3, ["R", "L R R", " R  "], **columns) == [4.0, 2.0, 4.0]
    talk = [[{"role": "assistant", "content": "R"}]]
    assert task.reward([first.content], talk, **{name: [value] for name, value in first.columns.items()}) == [4.0]


def test_the_rewards_file_needs_no_torch() -> None:
    line = TextGrid("S +1").rules.to_json()
    code = (
        "import sys, json\nfrom upslope.worlds import text_walks\n"
        "print(text_walks.score(['?'], ['R'], [0], [sys.argv[1]]), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, line], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["[0.0]", "False"], done.stderr
    assert text_walks.from_json(line) == TextGrid("S +1").rules and json.loads(line)["horizon"] == 5


# ----------------------------------------------------------------------------------------------------- what may be said
@pytest.mark.parametrize("options", [{}, {"walls": "bump"}, {"vocabulary": "full"}, {"prompt": "map"}])
def test_allowed_says_the_legal_moves_and_then_only_the_stop_token(renderer: Renderer, options: dict[str, Any]) -> None:
    """Every text of up to H moves on a small map, against walking on the grid itself."""
    task = TextGrid("S . +5\n. # -1\nS . .", horizon=3, **options)
    allowed: Any = task.allowed(renderer)
    ids = dict(zip(move_ids(renderer), range(4), strict=True))
    for start in task.starts:
        prompt = renderer.prompt(task.content(start))
        for length in range(4):
            for text in itertools.product(ids, repeat=length):
                cell, over = start, False
                for token in text:
                    if over or not task.grid.exists(cell, ids[token]):
                        over = True
                        break
                    cell = task.grid.outcomes(cell, ids[token])[0][1]
                    over = cell in task.grid.terminals
                legal = {token for token in ids if task.grid.exists(cell, ids[token])}
                if over or length == 3:
                    wanted = {renderer.stop_id}
                else:
                    wanted = set(range(len(renderer.tokenizer))) if task.vocabulary == "full" else legal
                assert set(allowed(prompt, list(text))) == wanted, (start, text)
    assert isinstance(task, Confined) and isinstance(renderer, Rendering)
    assert task.longest == 4


def test_an_illegal_token_leaves_only_the_stop_token(renderer: Renderer) -> None:
    task = TextGrid("S . +5", vocabulary="full")
    allowed: Any = task.allowed(renderer)
    prompt = renderer.prompt("0 0 <sep>")
    up, right = move_ids(renderer)[:2]
    assert allowed(prompt, [up]) == (renderer.stop_id,) == allowed(prompt, [right, 0])
    assert len(allowed(prompt, [right])) == len(renderer.tokenizer)


def test_a_coordinate_prompt_has_four_tokens_and_a_map_shows_everything(renderer: Renderer) -> None:
    words = renderer.tokenizer
    assert words.convert_ids_to_tokens(renderer.prompt(TextGrid().content((2, 1)))) == ["<bos>", "2", "1", "<sep>"]
    drawn = TextGrid(MIXED, prompt="map").content((1, 0))
    assert drawn == ". . ~ 3 + 2 / @ # - 4 / . . + 7 <sep>"
    for task in (TextGrid("6x6", prompt="map"), TextGrid("6x6"), TextGrid(MIXED, prompt="map")):
        ids = [renderer.prompt(task.content(start)) for start in task.starts]
        assert all(words.unk_token_id not in row for row in ids)
        assert len({tuple(row) for row in ids}) == len(task.starts)


def test_a_tokenizer_that_has_no_token_for_a_move_is_refused(renderer: Renderer) -> None:
    from tests import tiny as characters

    other = characters.tokenizer(chat=False)
    with pytest.raises(InputError, match="no token of its own for each of U R D L"):
        TextGrid().allowed(Renderer(other, (other.eos_token_id,)))
    wide = " ".join(["S"] * 23) + " +1"
    with pytest.raises(InputError, match="gives 23 start cells only 21 different prompts"):
        TextGrid(wide).allowed(renderer)  # columns 20, 21 and 22 are no words


# ----------------------------------------------------------------------------------------------------- supervised walks
def test_optimal_examples_earn_the_optimum_and_meet_every_best_move() -> None:
    task = TextGrid("S . .\n. . .\n. . +9", horizon=5, repeats=60)
    rows = task.examples("train")
    best = task.rules.optimal_values()[5]
    corner = [row.completion for row in rows if row.id.startswith("0-0-")]
    assert len(corner) == 60 and set(map(str, corner)) == {
        " ".join(walk) for walk in set(itertools.permutations("RRDD"))
    }
    assert all(task.rules.score(0, str(walk).split()) == best[0] for walk in corner)
    assert task.examples("train") == rows and task.examples("heldout") != rows[:1]


def test_random_examples_are_legal_whole_walks() -> None:
    task = TextGrid(horizon=4, examples="random", repeats=20)
    for row in task.examples("train"):
        words = str(row.completion).split()
        row_number, column = map(int, row.id.split("-")[:2])
        start = task.grid.index[row_number, column]
        assert 1 <= len(words) <= 4
        reached = start
        for word in words:
            assert not task.rules.terminal[reached]
            reached = task.rules.following[reached][text_walks.MOVES.index(word)]  # type: ignore[assignment]
            assert reached is not None
        assert task.rules.ends(reached, len(words))


# --------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"walls": "none"}, "data.options.walls: found 'none', expected mask or bump"),
        ({"horizon": 0}, "data.options.horizon: found 0, expected at least 1"),
        ({"map": "5x5"}, "no map and no file is named '5x5'"),
        ({"map": "S . ?"}, "data.options, map row 1, column 3: found '\\?'"),
        ({"step_cost": -1}, "step_cost: found -1"),
        ({"walk": 3}, "no option 'walk'"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        load_task("text-grid", options)


def test_a_drawn_map_refuses_what_it_cannot_spell_and_rules_refuse_a_slippery_grid() -> None:
    with pytest.raises(InputError, match=r"whole numbers only, found 2\.5"):
        TextGrid("S +2.5", prompt="map").prompts("train")
    with pytest.raises(InputError, match=r"slip: found 0\.1"):
        rules_of(gridworld.parse("S +1", slip=0.1), 3)


def test_a_map_may_be_a_file(tmp_path: Any) -> None:
    (tmp_path / "a.txt").write_text("S . +3")
    assert TextGrid(str(tmp_path / "a.txt")).grid.terminals == {(0, 2): 3.0}
