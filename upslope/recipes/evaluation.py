"""Scoring a model on held-out prompts, greedy and sampled, with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from upslope.recipes.answering import Answering, answering

Z = 1.959964
"""Two-sided 95 % of the normal distribution."""


@dataclass(frozen=True, slots=True)
class Score:
    """Mean reward over ``n`` prompts with its 95 % interval; ``rewards`` one a prompt, in their order."""

    mean: float
    low: float
    high: float
    n: int
    rewards: tuple[float | None, ...]
    completions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """``greedy`` and ``sampled`` (temperature 1 unless told) scores of one model; ``prompts`` are the texts."""

    model: str
    prompts: tuple[str, ...]
    greedy: Score
    sampled: Score


def interval(rewards: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean: Wilson's for rewards of 0 and 1, else the normal one.

    Wilson (1927): (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n). It stays inside [0, 1] and is right near
    its ends.
    """
    n, mean = len(rewards), fmean(rewards)
    if set(rewards) <= {0.0, 1.0}:
        middle = mean + Z * Z / (2 * n)
        half = Z * math.sqrt(mean * (1 - mean) / n + Z * Z / (4 * n * n))
        return max(0.0, (middle - half) / (1 + Z * Z / n)), min(1.0, (middle + half) / (1 + Z * Z / n))
    half = Z * stdev(rewards) / math.sqrt(n) if n > 1 else math.inf
    return mean - half, mean + half


def evaluate(
    model: str,
    task: str | None = None,
    data: str | None = None,
    reward: Any = None,
    prompts: int = 512,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    options: dict[str, Any] | None = None,
    columns: dict[str, str] | None = None,
    system_prompt: str | None = None,
    chat: str = "auto",
    split: str = "heldout",
    heldout: float = 0.1,
    too_long: str = "error",
    on_bad_row: str = "error",
    tools: Any = None,
    max_turns: int = 4,
    budget: int | None = None,
    sandbox: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Answer up to ``prompts`` prompts of a split and score them with the task's or the user's reward: a function, a
    ``path/to/file.py:function``, or what else a recipe's ``reward`` may be (a list, built-in ones).

    Reward models (``{"model": directory}``) give their raw scores.

    ``split`` is ``heldout`` (the rows that a training run with this ``seed`` and ``heldout`` kept), ``train`` or
    ``all``. ``on_bad_row: skip`` and ``too_long`` (``drop``, ``truncate``) do with rows what a training run would do.

    With ``tools`` (functions, or ``path/to/file.py:function``) the model may call them, in up to ``max_turns`` messages
    of ``max_new_tokens`` each and ``budget`` tokens in all, as a recipe's ``episode`` says; its last message is scored.
    ``sandbox`` is for tools that run what the model writes.

    Raises:
        InputError: as a training run's rows, reward and model.
    """
    with answering(
        "evaluate()", model, task=task, data=data, reward=reward, prompts=prompts, max_new_tokens=max_new_tokens,
        temperature=temperature, seed=seed, device=device, dtype=dtype, options=options, columns=columns,
        system_prompt=system_prompt, chat=chat, split=split, heldout=heldout, too_long=too_long, on_bad_row=on_bad_row,
        progress=progress, tools=tools, max_turns=max_turns, budget=budget, sandbox=sandbox,
    ) as asked:  # fmt: skip
        greedy = score(asked, seed, greedy=True)
        sampled = score(asked, seed, greedy=False)
    from upslope.recipes.rollouts import shown_prompt

    return Evaluation(model, tuple(shown_prompt(prompt) for prompt in asked.prompts), greedy, sampled)


def score(asked: Answering, seed: int, greedy: bool) -> Score:
    """One completion of each prompt, or one conversation, scored."""
    from upslope.seeds import derive

    seeds = [derive(seed, "evaluation", index) for index in range(len(asked.prompts))]
    answers = [found[0] for found in asked.answer(asked.prompts, seeds, greedy=greedy)]
    rewards = tuple(answer.reward for answer in answers)
    counted = [value for value in rewards if value is not None]
    return Score(fmean(counted), *interval(counted), len(counted), rewards, tuple(answer.text for answer in answers))
