"""The grid as text for a terminal."""

from __future__ import annotations

import io

import torch
from rich.console import Console

from tests.views import grid_records as eyes
from tests.views.test_grid_picture import solved, world_and_policy
from upslope.views.grid_canvas import color_of, scale_of
from upslope.views.grid_text import grid_text
from upslope.worlds.gridworld import parse

PLAIN = """\
┌──────┬──────┬──────┐
│  3   │  4   │  +5  │
│  →↓  │  →   │      │
├──────┼──────┼──────┤
│  2   │▒▒▒▒▒▒│  4   │
│  ↑   │▒▒▒▒▒▒│  ↑   │
├──────┼──────┼──────┤
│  -1  │  2   │  3   │
│      │  →   │  ↑   │
└──────┴──────┴──────┘"""


def test_plain_text_of_the_grid() -> None:
    text = grid_text(*world_and_policy(), color=False)
    assert str(text) == PLAIN
    assert not text.spans


def test_coloured_text_has_the_same_characters_and_backgrounds_by_value() -> None:
    world, values, policy = world_and_policy()
    text = grid_text(world, values, policy, color=True)
    assert str(text) == PLAIN
    file = io.StringIO()
    Console(file=file, force_terminal=True, color_system="truecolor", width=80, _environ={}).print(text)
    red, green, blue = (round(255 * part) for part in color_of(4.0, scale_of(values.tolist())))
    assert f"48;2;{red};{green};{blue}" in file.getvalue()


def test_text_shows_near_ties_together_in_a_fixed_order() -> None:
    world, values, policy = world_and_policy()
    policy[0] = torch.tensor([0.26, 0.25, 0.25, 0.24], dtype=torch.float64)  # up, right, down, left
    policy[1] = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64)
    row = str(grid_text(world, values, policy, color=False)).splitlines()[2]
    assert row == "│ ↑→↓  │  ↑   │      │"


MARKED = """\
┌───────┬───────┬───────┬───────┐
│   0   │   1   │   2   │   +5  │
│  S →  │   →   │  ~3 → │       │
├───────┼───────┼───────┼───────┤
│   -1  │▒▒▒▒▒▒▒│   1   │   4   │
│   ↑   │▒▒▒▒▒▒▒│  ~3 → │   ↑   │
├───────┼───────┼───────┼───────┤
│   -5  │   -2  │▒▒▒▒▒▒▒│   3   │
│ S~4 ↑ │   ↓   │▒▒▒▒▒▒▒│   ↑   │
├───────┼───────┼───────┼───────┤
│   -2  │   -1  │▒▒▒▒▒▒▒│  +2.5 │
│   →   │       │▒▒▒▒▒▒▒│       │
└───────┴───────┴───────┴───────┘
S: episodes start here   ~3: a move from here costs 3   ~4: a move from here costs 4"""


def test_starts_and_costs_stand_before_the_arrows_and_are_explained() -> None:
    world = parse(eyes.MARKED)
    text = str(grid_text(world, *solved(world), color=False))
    assert text == MARKED


def test_states_that_never_end_have_a_sign_and_an_explanation() -> None:
    world = parse(eyes.LOST)
    lines = str(grid_text(world, *solved(world), color=False)).splitlines()
    assert lines[7] == "│  -∞  │▒▒▒▒▒▒│  -∞  │" and lines[8] == "│      │▒▒▒▒▒▒│      │"
    assert lines[-1] == "-∞: from here it may never end"
