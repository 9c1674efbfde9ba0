"""Several reward functions: their weighted sum, what is logged, and how the failure of one is told."""

from __future__ import annotations

import textwrap
import time
from pathlib import Path

import pytest

from upslope.errors import InputError, RewardError
from upslope.types import Prompt
from upslope.worlds.rewards import Group, Part, RewardPanel, Score, combine, score_groups


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "rewards.py"
    path.write_text(
        textwrap.dedent("""
        import time
        def length(completions):
            return [len(c) for c in completions]
        def only_a(completions, log_extra, log_metric):
            log_extra("seen", [c.upper() for c in completions])
            log_metric("share", 0.5)
            return [1.0 if "a" in c else None for c in completions]
        def never(completions):
            return [None] * len(completions)
        def breaks_on_x(completions):
            return [1 / (c != "x") for c in completions]
        def breaks_on_y(completions):
            return [{"y": {}}.get(c, 2.0) for c in completions]
        def sleeps(completions):
            time.sleep(0.6)
            return [0.0] * len(completions)
        def says_seen(completions, log_extra):
            log_extra("seen", [1] * len(completions))
            return [0.0] * len(completions)
        def state(completions, trainer_state):
            return [trainer_state.global_step + 0.001 * trainer_state.max_steps] * len(completions)
        """)
    )
    return str(path)


def groups(*texts: tuple[str, ...]) -> list[Group]:
    return [Group(Prompt(str(index), "p"), group) for index, group in enumerate(texts)]


def test_the_reward_is_the_weighted_sum_over_the_functions_that_apply(file: str) -> None:
    parts = [Part(f"{file}:length", weight=0.5), Part(f"{file}:only_a", weight=-2.0), Part(f"{file}:never")]
    with RewardPanel(parts) as panel:
        scores, failed = score_groups(panel, groups(("a", "bb"), ("aaaa", "")), "stop")
        metrics = panel.take_metrics()
    assert failed == []
    assert [[score.value for score in group or ()] for group in scores] == [[0.5 - 2.0, 1.0], [2.0 - 2.0, 0.0]]
    assert scores[0] is not None and scores[0][0].parts == {"length": 1.0, "only_a": 1.0}  # unweighted
    assert scores[0][1] == Score(1.0, {"length": 2.0}, {"seen": "BB"})
    assert metrics == {"share": 0.5}


def test_a_completion_to_which_none_applies_has_no_reward_and_all_of_them_are_an_error(file: str) -> None:
    parts = [Part(f"{file}:only_a"), Part(f"{file}:never")]
    with RewardPanel(parts) as panel:
        scores, _ = score_groups(panel, groups(("a", "b")), "stop")
        assert [score.value for score in scores[0] or ()] == [1.0, None]
        text = r"reward rewards.py:only_a, rewards.py:never: all returned None for every completion"
        with pytest.raises(RewardError, match=text + r", so nothing is rewarded \(rows 0#0, 0#1\)"):
            score_groups(panel, groups(("b", "c")), "stop")
        scores, failed = score_groups(panel, groups(("b",), ("c",)), "drop_group")
        assert scores == [None, None] and [index for index, _ in failed] == [0, 1]


def test_the_failure_of_one_function_names_it_and_its_row(file: str) -> None:
    with RewardPanel([Part(f"{file}:length"), Part(f"{file}:breaks_on_x")]) as panel:
        with pytest.raises(RewardError, match=r"^reward rewards.py:breaks_on_x: ZeroDivisionError: .*\(row 1#1\)"):
            score_groups(panel, groups(("a", "b"), ("c", "x")), "stop")
        scores, failed = score_groups(panel, groups(("a", "b"), ("c", "x"), ("d", "e")), "drop_group")
    assert [group and [score.value for score in group] for group in scores] == [[2.0, 2.0], None, [2.0, 2.0]]
    assert [(index, "breaks_on_x" in reason) for index, reason in failed] == [(1, True)]


def test_two_functions_that_fail_on_different_groups_drop_both(file: str) -> None:
    with RewardPanel([Part(f"{file}:breaks_on_x"), Part(f"{file}:breaks_on_y")]) as panel:
        scores, failed = score_groups(panel, groups(("x",), ("y",), ("z",)), "drop_group")
    assert [group and group[0].value for group in scores] == [None, None, 3.0]
    assert "breaks_on_x" in failed[0][1] and "breaks_on_y: returned dict" in failed[1][1]


def test_a_function_that_cannot_be_loaded_stops_the_run_even_where_groups_are_dropped(file: str) -> None:
    panel = RewardPanel([Part(f"{file}:length"), Part(f"{file}:length", name="again", options={"bad": 1})])
    with pytest.raises(RewardError, match="reward again: cannot be loaded: TypeError"), panel:
        pass
    with pytest.raises(RewardError, match="cannot be loaded"):
        score_groups(panel, groups(("a",)), "drop_group")
    panel.close()


def test_functions_work_at_the_same_time(file: str) -> None:
    parts = [Part(f"{file}:sleeps", name=f"s{index}") for index in range(4)]
    with RewardPanel(parts) as panel:
        started = time.monotonic()
        score_groups(panel, groups(("a",)), "stop")
        assert 0.6 <= time.monotonic() - started < 1.8  # one after the other: 2.4


def test_one_that_hangs_leaves_the_others_scores(file: str) -> None:
    with RewardPanel([Part(f"{file}:sleeps"), Part(f"{file}:length")], timeout=0.3) as panel:
        scores, failed = score_groups(panel, groups(("abc",)), "drop_group")
    assert scores == [None] and "rewards.py:sleeps: no answer within 0.3 s" in failed[0][1]


def test_names_must_differ_and_columns_that_two_log_are_kept_apart(file: str) -> None:
    with pytest.raises(InputError, match="two functions are called 'length'"):
        RewardPanel([Part(f"{file}:length"), Part(f"{file}:length")])
    with RewardPanel([Part(f"{file}:only_a"), Part(f"{file}:says_seen")]) as panel:
        scores, _ = score_groups(panel, groups(("a",)), "stop")
    assert scores[0] is not None and scores[0][0].extra == {"seen": "A", "says_seen/seen": 1}


def test_python_functions_and_their_state(file: str) -> None:
    captured = 3.0

    def own(completions: list[str], **columns: object) -> list[float]:
        return [captured] * len(completions)

    with RewardPanel([Part(own, weight=2.0), Part(f"{file}:state")], max_steps=40) as panel:
        scores, _ = score_groups(panel, groups(("a",)), "stop", step=7)
    assert scores[0] is not None and scores[0][0].parts == {"own": 3.0, "state": 7.04}
    assert scores[0][0].value == 6.0 + 7.04


def test_combine_is_the_plain_score_of_a_single_function() -> None:
    alone = Score(0.1, {"f": 0.1}, {"x": 1})
    assert combine([alone], [1.0]) is alone
    assert combine([alone], [3.0]).value == 3.0 * 0.1
    assert combine([Score(None), Score(None)], [1.0, 1.0]).value is None
    assert combine([alone, Score(5.0, {"g": 5.0})], [1.0, 0.0]) == Score(0.1, {"f": 0.1, "g": 5.0}, {"x": 1})
