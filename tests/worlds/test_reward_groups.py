"""Reward functions over groups: one call for all, and which group a failure is of."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.worlds.reward_support import Write, values, write
from upslope.errors import RewardError
from upslope.types import Prompt
from upslope.worlds.rewards import Group, RewardProcess, Score, score_groups

__all__ = ["write"]
GROUPS = [Group(Prompt(str(index), f"prompt {index}", {"index": index}), ("a", "bb")) for index in range(4)]
GROUP_SOURCE = """
    import pathlib, time
    calls = pathlib.Path(__file__).with_name("calls")
    def log(index):
        with calls.open("a") as file:
            print(len(index), file=file)
    def fine(completions, index):
        log(index)
        return [10.0 * i + len(c) for c, i in zip(completions, index)]
    def raises(completions, index):
        return [10.0 * i + (len(c) if i != 2 or c == "a" else 1 / 0) for c, i in zip(completions, index)]
    def hangs(completions, index):
        if 1 in index:
            time.sleep(60)
        return fine(completions, index)
    def shy(completions, index):
        if 3 in index and len(set(index)) > 1:
            raise RuntimeError("not together")
        return [None if i == 0 else 1.0 for i in index]
    def never(completions, index):
        return [None] * len(index)
"""


def group_values(result: list[list[Score] | None]) -> list[list[float | None] | None]:
    return [None if scores is None else values(scores) for scores in result]


def test_healthy_groups_take_one_call(write: Write, tmp_path: Path) -> None:
    path = write(GROUP_SOURCE)
    with RewardProcess(f"{path}:fine", 5) as process:
        result, dropped = score_groups(process, GROUPS, "stop")
    assert group_values(result) == [[1.0, 2.0], [11.0, 12.0], [21.0, 22.0], [31.0, 32.0]]
    assert dropped == []
    assert (tmp_path / "calls").read_text().split() == ["8"]


def test_a_raising_group_stops_with_its_row_or_is_dropped_alone(write: Write) -> None:
    path = write(GROUP_SOURCE)
    with RewardProcess(f"{path}:raises", 5) as process:
        result, dropped = score_groups(process, GROUPS, "drop_group")
        assert group_values(result) == [[1.0, 2.0], [11.0, 12.0], None, [31.0, 32.0]]
        assert [index for index, _ in dropped] == [2]
        assert "ZeroDivisionError" in dropped[0][1] and "(row 2#1)" in dropped[0][1]
        with pytest.raises(RewardError, match=r"division by zero, at rewards.py:11 in .*\(row 2#1\)"):
            score_groups(process, GROUPS, "stop")


def test_a_hanging_group_is_found_in_a_fresh_process(write: Write) -> None:
    path = write(GROUP_SOURCE)
    with RewardProcess(f"{path}:hangs", 0.4) as process:
        started = time.monotonic()
        result, dropped = score_groups(process, GROUPS, "drop_group")
        assert time.monotonic() - started < 2 * (0.4 + 1) + 1
        assert group_values(result) == [[1.0, 2.0], None, [21.0, 22.0], [31.0, 32.0]]
        assert [index for index, _ in dropped] == [1]
        assert "no answer within 0.4 s, at rewards.py:14 in hangs" in dropped[0][1] and "1#0, 1#1" in dropped[0][1]
        with pytest.raises(RewardError, match=r"no answer within 0.4 s.*\(rows 1#0, 1#1\)"):
            score_groups(process, GROUPS, "stop")


def test_a_group_that_the_function_does_not_apply_to_is_no_culprit(write: Write) -> None:
    path = write(GROUP_SOURCE)
    with RewardProcess(f"{path}:shy", 5) as process:
        for groups in (GROUPS[:3], GROUPS):  # in one call; and one by one, since four together raise
            result, dropped = score_groups(process, groups, "stop")
            assert group_values(result) == [[None, None], *[[1.0, 1.0]] * (len(groups) - 1)]
            assert dropped == []


def test_a_function_that_never_applies_drops_or_stops(write: Write) -> None:
    path = write(GROUP_SOURCE)
    with RewardProcess(f"{path}:never", 5) as process:
        result, dropped = score_groups(process, GROUPS, "drop_group")
        assert result == [None] * 4
        assert [index for index, _ in dropped] == [0, 1, 2, 3]
        assert all("returned None for every completion" in reason for _, reason in dropped)
        with pytest.raises(RewardError, match="returned None for every completion"):
            score_groups(process, GROUPS, "stop")
        assert score_groups(process, [], "stop") == ([], [])
