"""The table of trainings against the exact answers."""

from __future__ import annotations

import io
import math
import re
from dataclasses import replace

from rich.console import Console

from tests.views import grid_records as eyes
from upslope.types import GridTraining, GridTruth
from upslope.views.grid_table import COLUMNS, critic_passes, policy_passes, truth_rows, truth_table, truth_text
from upslope.worlds.gridworld import parse

TRUTH = GridTruth(1.0, 0.99, 0.04, 1.0, 0.02, 0.05)


def run(seed: int, truth: GridTruth, algorithm: str = "ppo", seconds: float = 2.0) -> GridTraining:
    """A run whose last snapshot says ``truth``."""
    made = eyes.training_of(parse(eyes.SMALL), algorithm, seed, snapshots=2)
    return replace(made, snapshots=(made.snapshots[0], replace(made.last, truth=truth)), seconds=seconds)


def row(*trainings: GridTraining) -> dict[str, str]:
    (only,) = truth_rows(trainings)
    return dict(zip(COLUMNS, only, strict=True))


def test_a_row_has_the_mean_and_the_worst_of_the_seeds() -> None:
    worse = replace(TRUTH, expected_return=0.93, value_gap=0.2, optimal_share=0.5, critic_rmse=0.12)
    assert row(run(0, TRUTH), run(1, worse, seconds=4.0)) == {
        "algorithm": "ppo", "seeds": "2", "J* - J": "0.040 (0.070)", "max V* - V^pi": "0.120 (0.200)",
        "critic rmse": "0.070 (0.120)", "optimal starts": "75 % (50 %)", "moves": "1 k", "time": "3.00 s",
        "policy passes": "1 of 2", "critic passes": "1 of 2",
    }  # fmt: skip


def test_a_single_seed_has_no_brackets_and_algorithms_have_a_row_each_in_order() -> None:
    rows = truth_rows([run(0, TRUTH, "ppo"), run(0, TRUTH, "grpo"), run(1, TRUTH, "ppo")])
    assert [found[:2] for found in rows] == [("ppo", "2"), ("grpo", "1")]
    assert rows[1][2] == "0.010" and rows[1][-2] == "1 of 1"


def test_without_critic_there_is_no_error_and_no_gate_for_it() -> None:
    blind = replace(TRUTH, critic_rmse=None, critic_worst=None)
    found = row(run(0, blind))
    assert found["critic rmse"] == found["critic passes"] == "-" and found["policy passes"] == "1 of 1"


def test_a_policy_that_was_held_fixed_is_not_judged() -> None:
    made = run(0, TRUTH, "values")
    fixed = replace(made, snapshots=(replace(made.snapshots[0], policy=made.last.policy), made.last))
    assert row(fixed)["policy passes"] == "-" and row(fixed)["critic passes"] == "1 of 1"


def test_a_policy_that_may_never_end_is_infinitely_far() -> None:
    endless = replace(TRUTH, expected_return=-math.inf, value_gap=math.inf)
    found = row(run(0, endless), run(1, TRUTH))
    assert found["J* - J"] == found["max V* - V^pi"] == "infinite" and found["policy passes"] == "1 of 2"


def test_the_gates() -> None:
    assert policy_passes(TRUTH) and critic_passes(TRUTH)
    assert not policy_passes(replace(TRUTH, optimal_share=0.99)) and not policy_passes(
        replace(TRUTH, expected_return=0.95)
    )
    assert not critic_passes(replace(TRUTH, critic_rmse=0.1)) and not critic_passes(replace(TRUTH, critic_rmse=None))


def printed(trainings: list[GridTraining], color: bool) -> str:
    file = io.StringIO()
    shown = Console(file=file, width=200, force_terminal=color, color_system="standard" if color else None, _environ={})
    shown.print(truth_table(trainings))
    return file.getvalue()


def test_the_table_and_the_plain_text_hold_the_same_rows() -> None:
    trainings = [run(0, TRUTH), run(1, TRUTH), run(0, replace(TRUTH, expected_return=0.5), "grpo")]
    colored = printed(trainings, color=True)
    assert re.search(r"\x1b\[32m *2 of 2", colored) and re.search(r"\x1b\[31m *0 of 1", colored)
    plain = truth_text(trainings)
    table = printed(trainings, color=False)
    assert "\x1b" not in plain + table
    for found in truth_rows(trainings):
        assert " ".join(found).split() in [line.split() for line in plain.splitlines()]
        first = [cell.partition(" (")[0] for cell in found]  # the table writes the worst below the mean
        assert " ".join(first).split() in [line.split() for line in table.splitlines()]
        assert all(cell.partition(" ")[2] in table for cell in found if "(" in cell)
    head, *rows, _ = plain.splitlines()
    assert len({len(line) for line in (head, *rows)}) == 1  # aligned


def test_a_name_cannot_write_markup_or_escape_codes() -> None:
    assert "\x1b" not in truth_text([run(0, TRUTH, "\x1b[31mppo")])
    assert "ppo[bold red]x" in printed([run(0, TRUTH, "ppo[bold red]x")], color=True)
