"""Reward functions in the shapes that TRL's scripts have, unchanged: what TRL hands them, they get here."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from upslope.errors import RewardError
from upslope.types import Prompt
from upslope.worlds.rewards import Group, Part, RewardPanel, Score, score_groups

SCRIPT = '''
import asyncio
import re
from functools import partial

import numpy as np


def format_reward(completions, **kwargs):
    """Conversational rows: each completion is a list of one message."""
    pattern = r"^<think>(?!.*<think>)(.*?)</think>.*$"
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if re.match(pattern, content, re.DOTALL | re.MULTILINE) else 0.0 for content in contents]


def accuracy_reward(completions, solution, log_extra=None, **kwargs):
    """Rows of which some have no solution: None says that it does not apply to them."""
    rewards = []
    for completion, truth in zip(completions, solution):
        found = re.search(r"\\\\boxed\\{(.*?)\\}", completion[0]["content"])
        rewards.append(None if truth is None else float(found is not None and found.group(1) == truth))
    if log_extra is not None:
        log_extra("solution", list(solution))
    return rewards


def reward_len(completions, **kwargs):
    return [-abs(20 - len(completion)) for completion in completions]


def reward_num_unique_chars(prompts, completions):
    return [len(set(c)) for c in completions]


async def judge(prompts, completions, log_metric, **kwargs):
    """As calls of a judge by HTTP: one coroutine a completion, bounded by a semaphore."""
    bound = asyncio.Semaphore(4)

    async def ask(prompt, completion):
        async with bound:
            await asyncio.sleep(0.01)
            return 1.0 if len(completion) > len(prompt) else 0.5

    rewards = await asyncio.gather(*(ask(p, c) for p, c in zip(prompts, completions)))
    log_metric("judge/mean", np.mean(rewards))
    return rewards


class SoftOverlong:
    __name__ = "soft_overlong_punishment_reward"

    def __init__(self, max_completion_len, soft_punish_cache):
        self.longest, self.cache = max_completion_len, soft_punish_cache

    def __call__(self, completion_ids, **kwargs):
        rewards = []
        for ids in completion_ids:
            over = self.longest - self.cache - len(ids)
            rewards.append(0.0 if over >= 0 else max(-1.0, over / self.cache))
        return rewards


soft_overlong = SoftOverlong(10, 4)


def shaped(completions, trainer_state, scale=1.0, **kwargs):
    progress = trainer_state.global_step / trainer_state.max_steps
    return [scale * progress for _ in completions]


shaped_twice = partial(shaped, scale=2.0)


def by_numpy(prompts, completions, answer, **kwargs):
    return np.array([c == a for c, a in zip(completions, answer)], dtype=np.float32)
'''


@pytest.fixture
def trl(tmp_path: Path) -> Callable[..., list[list[Score] | None]]:
    path = tmp_path / "rewards.py"
    path.write_text(SCRIPT)

    def score(
        names: list[str], groups: list[Group], step: int = 0
    ) -> tuple[list[list[Score] | None], dict[str, float]]:
        with RewardPanel([Part(f"{path}:{name}") for name in names], max_steps=40) as panel:
            return score_groups(panel, groups, "stop", step)[0], panel.take_metrics()

    return score  # type: ignore[return-value]


def chat(text: str, solution: str | None, *answers: str) -> Group:
    return Group(Prompt(text, ({"role": "user", "content": text},), {"solution": solution}), answers)


def plain(text: str, *answers: str, **columns: Any) -> Group:
    return Group(Prompt(text, text, columns), answers, tuple(tuple(range(len(answer))) for answer in answers))


def values(scores: list[list[Score] | None]) -> list[list[float | None]]:
    return [[score.value for score in group or ()] for group in scores]


def test_conversational_format_and_accuracy_with_rows_that_have_no_solution(trl: Any) -> None:
    groups = [chat("q", "4", "<think>2+2</think> \\boxed{4}", "\\boxed{5}"), chat("r", None, "<think>a</think>", "b")]
    scores, _ = trl(["format_reward", "accuracy_reward"], groups)
    assert values(scores) == [[2.0, 0.0], [1.0, 0.0]]  # None is left out of the sum
    assert scores[0][0].parts == {"format_reward": 1.0, "accuracy_reward": 1.0}
    assert scores[1][0].parts == {"format_reward": 1.0} and scores[1][0].extra == {"solution": None}


def test_lengths_characters_and_token_ids(trl: Any) -> None:
    groups = [plain("p", "a" * 8, "ab")]
    scores, _ = trl(["reward_len", "reward_num_unique_chars", "soft_overlong"], groups)
    assert [score.parts for score in scores[0]] == [
        {"reward_len": -12.0, "reward_num_unique_chars": 1.0, "soft_overlong": -0.5},
        {"reward_len": -18.0, "reward_num_unique_chars": 2.0, "soft_overlong": 0.0},
    ]


def test_an_asynchronous_judge_is_awaited_and_its_metric_logged(trl: Any) -> None:
    scores, metrics = trl(["judge"], [plain("abc", "abcd", "a"), plain("x", "y", "zz")])
    assert values(scores) == [[1.0, 0.5], [0.5, 1.0]] and metrics == {"judge/mean": 0.75}


@pytest.mark.parametrize(("step", "progress"), [(0, 0.0), (10, 0.25), (40, 1.0)])
def test_the_trainers_state_tells_how_far_the_run_is(trl: Any, step: int, progress: float) -> None:
    scores, _ = trl(["shaped", "shaped_twice"], [plain("p", "a")], step)
    assert scores[0][0].parts == {"shaped": progress, "shaped_twice": 2 * progress}


def test_another_field_of_the_trainers_state_says_what_there_is(tmp_path: Path) -> None:
    path = tmp_path / "rewards.py"
    path.write_text(textwrap.dedent("def f(completions, trainer_state, **k):\n    return [trainer_state.epoch]\n"))
    with RewardPanel([Part(f"{path}:f")]) as panel, pytest.raises(RewardError) as caught:
        score_groups(panel, [plain("p", "a")], "stop")
    assert "trainer_state has no 'epoch' here; it has global_step and max_steps" in str(caught.value)


def test_an_array_is_as_good_as_a_list(trl: Any) -> None:
    scores, _ = trl(["by_numpy"], [plain("p", "a", "b", answer="b")])
    assert values(scores) == [[0.0, 1.0]]
