"""A curriculum: when it rises, what it draws, and that a stopped run climbs as it would have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.recipes.support import Bench, bench, digests, one_thread, stopped_at  # noqa: F401
from upslope.errors import InputError
from upslope.recipes.curriculum import Curriculum
from upslope.recipes.rollouts import rows_of_step
from upslope.types import Prompt, Stateful
from upslope.worlds.reasoning import Climb


def prompts(sizes: dict[int, int]) -> list[Prompt]:
    return [Prompt(f"{level}-{i}", "p", {"level": level}) for level, size in sizes.items() for i in range(size)]


def test_it_rises_once_the_mean_of_the_last_steps_is_high_enough() -> None:
    course = Curriculum(prompts({2: 3, 3: 4, 5: 6}), Climb((2, 3, 5), 0.5, 2), 3)
    assert isinstance(course, Sequence) and isinstance(course, Stateful) and len(course) == 3
    assert course.hear([1.0, 1.0]) == {"curriculum/level": 2.0, "curriculum/reward": 1.0}  # one step is not yet two
    assert course.level == 2
    assert course.hear([0.0, -0.5]) == {"curriculum/level": 2.0, "curriculum/reward": 0.375}
    assert course.hear([1.0]) == {"curriculum/level": 2.0, "curriculum/reward": 0.375}  # of the last two only
    assert course.hear([0.0]) == {"curriculum/level": 2.0, "curriculum/reward": 0.5}
    assert (course.level, len(course), course[0].id, course.recent) == (3, 4, "3-0", [])
    assert {row.id for row in rows_of_step(course, 4, 7, 0)} == {"3-0", "3-1", "3-2", "3-3"}
    for reward in (1.0, 1.0, 1.0, 1.0):
        course.hear([reward])
    assert course.level == 5 and [row.id for row in course] == [f"5-{i}" for i in range(6)]  # and there it stays


def test_its_state_is_its_place_and_the_rewards_that_count() -> None:
    rows, climb = prompts({0: 2, 1: 2}), Climb((0, 1), 0.5, 2)
    first = Curriculum(rows, climb, 2)
    for value in (0.1, 0.2):
        first.hear([value])
    second = Curriculum(rows, climb, 2)
    second.restore(first.state())
    assert second.recent == [0.1, 0.2]
    assert [first.hear([0.8]), first.level, first.recent] == [second.hear([0.8]), second.level, second.recent]
    assert second.level == 1


def test_a_level_too_small_for_a_step_is_refused() -> None:
    with pytest.raises(InputError, match="a step takes 3 prompts, level 1 has 2"):
        Curriculum(prompts({0: 3, 1: 2}), Climb((0, 1), 0.5, 2), 3)


def by_level(completions: list[str], level: list[int], **columns: Any) -> list[float]:
    return [float(at) + 0.01 * len(text) for at, text in zip(level, completions, strict=True)]


OPTIONS = {
    "name": "chain_sum",
    "size": 8,
    "heldout": 4,
    "difficulty": 0,
    "rise_to": 2,
    "rise_at": 0.01,
    "rise_after": 1,
}


@pytest.mark.parametrize("kind", ["grpo", pytest.param("ppo", marks=pytest.mark.slow)])
def test_a_run_climbs_and_a_stopped_one_climbs_alike(
    bench: Bench, kind: str, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    pytest.importorskip("reasoning_gym")
    keywords = {
        "data": {"task": "reasoning-gym", "options": OPTIONS},
        "reward": by_level,
        "steps": 4,
        "eval_prompts": 2,
    }
    whole = bench.run(kind, f"climbs-{kind}", **keywords)
    with stopped_at("2:1", monkeypatch):
        bench.run(kind, f"stopped-{kind}", **keywords)
    resumed = bench.run(kind, f"stopped-{kind}", resume=True, **keywords)
    names = ("reward", "curriculum/level", "curriculum/reward")
    course = [[line[name] for name in names] for line in whole.metrics if "curriculum/level" in line]
    assert [level for _, level, _ in course] == [0.0, 1.0, 2.0, 2.0]
    assert [int(reward) for reward, _, _ in course] == [0, 1, 2, 2]  # the prompts were of that level
    same = ("metrics.jsonl", "rollouts", "model", "best")
    assert digests(resumed.folder, same) == digests(whole.folder, same)  # bit for bit
