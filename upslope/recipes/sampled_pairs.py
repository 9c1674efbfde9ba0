"""Preferences from a model's own answers: several to each prompt, scored; the best and the worst of them are a pair.

A reward model knows its way where its pairs lie. Pairs of the answers that a policy gives show it the mistakes that
this policy makes (Ouyang et al., arXiv:2203.02155, collect them so; Stiennon et al., arXiv:2009.01325).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import IO, Any, Literal

from upslope.errors import InputError, NothingRewarded
from upslope.recipes.answering import Answer, Answering, answering
from upslope.text.preferences import OWN
from upslope.worlds.reward_calls import plain

AT_ONCE = 64
"""Prompts that are answered, scored and written together: what is lost if the machine stops."""
SHOWN = 5
Use = Literal["usable", "cut", "empty", "unscored"]


@dataclass(frozen=True, slots=True)
class SampledPairs:
    """What ``sample_pairs`` wrote to ``path``: so many ``pairs`` from ``answers`` to ``prompts``.

    Left out were answers that the length limit ``cut``, ``empty`` ones, and ``unscored`` ones, to which no reward
    function applied. ``mean``, ``chosen`` and ``rejected`` are mean rewards: of the other answers, and of the two sides
    of the pairs. ``longer`` is the share of pairs whose chosen answer has more characters. ``first`` are the first rows
    of the file.
    """

    path: Path
    prompts: int
    answers: int
    pairs: int
    cut: int
    empty: int
    unscored: int
    mean: float
    chosen: float
    rejected: float
    longer: float
    first: tuple[dict[str, Any], ...]


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
    too_long: str = "error",
    on_bad_row: str = "error",
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SampledPairs:
    """Answer up to ``prompts`` prompts ``samples`` times each and write the best and the worst answer of each, by the
    reward, to ``out``, a .jsonl file: rows for ``upslope.reward_model`` and ``upslope.dpo``.

    A row has ``prompt``, ``chosen``, ``rejected``, ``chosen_reward``, ``rejected_reward``, and the prompt's columns.
    Among equals the first answer counts. A prompt gives no row if its usable answers are worth the same: without those
    that the length limit cut, for a reward model reads each answer as finished, and without empty ones. ``prompts`` are
    drawn from the split by chance, with ``seed``. An interrupted call leaves the rows that it has. The rest is as of
    ``upslope.evaluate``; ``progress`` is called with (answers given, all).

    Raises:
        InputError: ``out`` cannot be written, or is there and ``overwrite`` is not set, or no prompt gave a pair; and
            as ``evaluate``.
    """
    if samples < 2:
        raise InputError("sample_pairs() samples", f"found {samples}, expected at least 2", "give samples=4")
    rows: list[dict[str, Any]] = []
    found: list[Answer] = []
    path = _writable(out, data, overwrite)
    with _kept(path, rows) as file, answering(
        "sample_pairs()", model, task=task, data=data, reward=reward, prompts=prompts, max_new_tokens=max_new_tokens,
        temperature=temperature, seed=seed, device=device, dtype=dtype, options=options, columns=columns,
        system_prompt=system_prompt, chat=chat, split=split, heldout=heldout, too_long=too_long, on_bad_row=on_bad_row,
        drawn=True,
    ) as asked:  # fmt: skip
        total = len(asked.prompts)
        asked.sampler.progress = lambda done, _: progress(len(found) + done, total * samples)
        for begin in range(0, total, AT_ONCE):
            part = asked.prompts[begin : begin + AT_ONCE]
            for prompt, answers in zip(part, _answers(asked, part, seed, begin, samples), strict=True):
                found += answers
                if (pair := best_and_worst(answers)) is not None:
                    line = json.dumps(row_of(prompt, *pair), default=plain)
                    rows.append(json.loads(line))
                    file.write(line + "\n")
            file.flush()
    count = Counter(map(use, found))
    if not rows:
        raise _no_pair(total, count)
    chosen, rejected = (fmean(row[f"{side}_reward"] for row in rows) for side in ("chosen", "rejected"))
    return SampledPairs(
        path, total, len(found), len(rows), count["cut"], count["empty"], count["unscored"],
        fmean(answer.reward or 0.0 for answer in found if use(answer) == "usable"), chosen, rejected,
        fmean(len(row["chosen"]) > len(row["rejected"]) for row in rows), tuple(rows[:SHOWN]),
    )  # fmt: skip


def _answers(asked: Answering, part: Sequence[Any], seed: int, begin: int, samples: int) -> list[list[Answer]]:
    """The answers to some prompts; unscored where no reward function applies to any of these."""
    from upslope.seeds import derive

    seeds = [derive(seed, "pairs", begin + place) for place in range(len(part))]
    try:
        return asked.answer(part, seeds, samples)
    except NothingRewarded:
        return [[Answer("", None, True)] * samples for _ in part]


def use(answer: Answer) -> Use:
    """Whether an answer can stand in a pair, or why not."""
    if answer.reward is None:
        return "unscored"
    if not answer.stopped:
        return "cut"
    return "usable" if answer.text.strip() else "empty"


def best_and_worst(answers: Sequence[Answer]) -> tuple[Answer, Answer] | None:
    """Of the usable answers the first one with the highest reward and the first one with the lowest; None where these
    are worth the same, or say the same."""
    scored = [(answer.reward or 0.0, answer) for answer in answers if use(answer) == "usable"]
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


def _no_pair(prompts: int, count: Counter[Use]) -> InputError:
    """Why there is no pair: by what most answers are."""
    most, number = count.most_common(1)[0]
    why, fix = {
        "usable": (f"{number} of them are worth what the others to their prompt are worth",
                   "give a reward that tells answers apart, or more samples"),
        "cut": (f"the length limit cut {number} of them",
                "begin with a model that has learned to end its answers (SFT), or raise max_new_tokens"),
        "empty": (f"{number} of them are empty", "begin with a model that answers"),
        "unscored": (f"no reward function applies to {number} of them",
                     "return a number for the rows that it applies to"),
    }[most]  # fmt: skip
    return InputError("sample_pairs()", f"no pair from {count.total()} answers to {prompts} prompts: {why}", fix)


def _writable(out: str | Path, data: str | None, overwrite: bool) -> Path:
    path = Path(out).expanduser()
    if path.suffix != ".jsonl":
        raise InputError(str(out), "rows of JSON are written, so a name that ends in .jsonl is expected",
                         f"give {path.with_suffix('.jsonl')}")  # fmt: skip
    given = None if data is None else Path(data).expanduser()
    if given is not None and given.exists() and path.exists() and path.samefile(given):
        raise InputError(str(out), "these are the prompts themselves", "give another file for the pairs")
    if path.exists() and not (overwrite and path.is_file()):
        fix = "give another file, or overwrite it (--overwrite)" if path.is_file() else "give another file"
        raise InputError(str(out), "exists already", fix)
    return path


@contextmanager
def _kept(path: Path, rows: Sequence[Any]) -> Iterator[IO[str]]:
    """A file beside ``path`` that takes its place at the end, or where it is interrupted, if it has rows."""
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = part.open("w", encoding="utf-8")
    except OSError as error:
        problem = f"cannot be written: {error.strerror or error}"
        raise InputError(str(path), problem, "give another file") from None
    try:
        with file:
            yield file
    finally:
        if rows:
            os.replace(part, path)
        else:
            part.unlink(missing_ok=True)
