"""Preferences from a model's own answers: several to each prompt, scored; the best and the worst of them are a pair.

A reward model knows its way where its pairs lie. Pairs of the answers that a policy gives show it the mistakes that
this policy makes (Ouyang et al., arXiv:2203.02155, collect them so; Stiennon et al., arXiv:2009.01325).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import IO, Any

from upslope.errors import InputError
from upslope.recipes.answering import Answer, answering
from upslope.text.preferences import OWN

AT_ONCE = 64
"""Prompts that are answered, scored and written together: what is lost if the machine stops."""


@dataclass(frozen=True, slots=True)
class SampledPairs:
    """What ``sample_pairs`` wrote to ``path``: so many ``pairs`` from ``answers`` to ``prompts``.

    ``equal`` prompts gave no pair, for their answers were worth the same, or fewer than two of them could be used.
    ``left_out`` answers could not: the length limit cut them, they are empty, or have no reward. ``mean``, ``chosen``
    and ``rejected`` are mean rewards: of all answers that could be used, and of the two sides of the pairs. ``longer``
    is the share of pairs whose chosen answer has more characters. ``first`` are the first few rows.
    """

    path: Path
    prompts: int
    answers: int
    pairs: int
    equal: int
    left_out: int
    mean: float
    chosen: float
    rejected: float
    longer: float
    first: tuple[Mapping[str, Any], ...]


def sample_pairs(
    model: str,
    out: str | Path,
    task: str | None = None,
    data: str | None = None,
    reward: Any = None,
    prompts: int = 1024,
    samples: int = 4,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    options: dict[str, Any] | None = None,
    columns: dict[str, str] | None = None,
    system_prompt: str | None = None,
    chat: str = "auto",
    split: str = "train",
    heldout: float = 0.1,
    on_bad_row: str = "error",
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SampledPairs:
    """Answer up to ``prompts`` prompts ``samples`` times each and write the best and the worst answer of each, by the
    reward, to ``out``: rows for ``upslope.reward_model`` and ``upslope.dpo``.

    A row has ``prompt``, ``chosen``, ``rejected``, ``chosen_reward``, ``rejected_reward``, and the prompt's columns.
    Among equals the first answer counts; answers that the length limit cut, and empty ones, are left out. ``prompts``
    are drawn from the split by chance, with ``seed``. Rows are written as they come: an interrupted call leaves what it
    has. The rest is as of ``upslope.evaluate``; ``progress`` is called with (prompts done, all).

    Raises:
        InputError: ``out`` exists and ``overwrite`` is not set, or no prompt gave a pair; and as ``evaluate``.
    """
    from upslope.seeds import derive

    path = Path(out)
    if samples < 2:
        raise InputError("sample_pairs() samples", f"found {samples}, expected at least 2", "give samples=4")
    if path.exists() and not overwrite:
        raise InputError(str(path), "exists already", "give another file, or overwrite")
    found: list[Answer] = []
    rows: list[dict[str, Any]] = []
    with answering(
        "sample_pairs()", model, task=task, data=data, reward=reward, prompts=prompts, max_new_tokens=max_new_tokens,
        temperature=temperature, seed=seed, device=device, dtype=dtype, options=options, columns=columns,
        system_prompt=system_prompt, chat=chat, split=split, heldout=heldout, on_bad_row=on_bad_row, progress=None,
        drawn=True,
    ) as asked:  # fmt: skip
        total = len(asked.prompts)
        if not all(isinstance(part, str | Mapping) for prompt in asked.prompts for part in prompt.content):
            raise InputError("sample_pairs() task", f"{task} asks in token ids, expected text", "use another task")
        with _opened(path) as file:
            for begin in range(0, total, AT_ONCE):
                part = asked.prompts[begin : begin + AT_ONCE]
                seeds = [derive(seed, "pairs", begin + place) for place in range(len(part))]
                for prompt, answers in zip(part, asked.answer(part, seeds, samples), strict=True):
                    found += answers
                    if (pair := best_and_worst(answers)) is not None:
                        rows.append(row_of(prompt, *pair))
                        file.write(json.dumps(rows[-1], ensure_ascii=False, default=str) + "\n")
                file.flush()
                progress(begin + len(part), total)
    used = [reward for reward, _ in usable(found)]
    left_out = len(found) - len(used)
    if not rows:
        path.unlink()
        why = f"all answers to each of {total} prompts are worth the same ({left_out} of {len(found)} cut or empty)"
        raise InputError("sample_pairs() reward", f"no pair: {why}",
                         "give a reward that tells answers apart, more samples, or more new tokens")  # fmt: skip
    chosen, rejected = (fmean(row[f"{side}_reward"] for row in rows) for side in ("chosen", "rejected"))
    longer = fmean(len(row["chosen"]) > len(row["rejected"]) for row in rows)
    return SampledPairs(
        path, total, len(found), len(rows), total - len(rows), left_out, fmean(used), chosen, rejected, longer,
        tuple(rows[:5]),
    )  # fmt: skip


def usable(answers: Sequence[Answer]) -> list[tuple[float, Answer]]:
    """Rewards and answers; without those that a reward model would read as finished and are not, and empty ones."""
    return [
        (answer.reward, answer)
        for answer in answers
        if answer.stopped and answer.text.strip() and answer.reward is not None
    ]


def best_and_worst(answers: Sequence[Answer]) -> tuple[Answer, Answer] | None:
    """Of the usable answers the first one with the highest reward and the first one with the lowest; None where these
    are worth the same, or say the same."""
    scored = usable(answers)
    if not scored:
        return None
    (high, best), (low, worst) = (extreme(scored, key=lambda one: one[0]) for extreme in (max, min))
    return (best, worst) if high > low and best.text != worst.text else None


def row_of(prompt: Any, best: Answer, worst: Answer) -> dict[str, Any]:
    """A preference as a row of ``text.preferences``."""
    told = {name: value for name, value in prompt.columns.items() if name not in OWN}
    return {
        **told, "prompt": prompt.content, "chosen": best.text, "rejected": worst.text,
        "chosen_reward": best.reward, "rejected_reward": worst.reward,
    }  # fmt: skip


def _opened(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w", encoding="utf-8")
    except OSError as error:
        problem = f"cannot be written: {error.strerror or error}"
        raise InputError(str(path), problem, "give another file") from None
