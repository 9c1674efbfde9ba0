"""The rows of a run: read and split, then fitted to the model's context; what a task lets a completion hold.

Reading needs neither torch nor the tokenizer; what is fitted is rendered first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from upslope.errors import InputError
from upslope.recipes.configs import DataSection, SamplingSection
from upslope.recipes.pairs import paired_task, questions, read_pairs, table_facts
from upslope.recipes.scoring import task_part
from upslope.text import rows as reading
from upslope.worlds.reasoning import Climb
from upslope.worlds.rewards import Part
from upslope.worlds.task import load_task, split_rows

if TYPE_CHECKING:
    from upslope.text.rendering import Renderer
    from upslope.types import Confined, Encoded, Example, Pair, Prompt, Sampling

LONGEST_TOKEN = 256
"""Characters: more than any token of a vocabulary in use stands for."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a run: prompts and, for SFT, examples, each split into train and held-out; facts for run.json."""

    train: Sequence[Prompt]
    heldout: Sequence[Prompt]
    examples: Sequence[Example] = ()
    heldout_examples: Sequence[Example] = ()
    reward: tuple[Part, ...] = ()
    facts: dict[str, Any] | None = None
    confined: Confined | None = None
    """The task, where it says which tokens a completion may hold."""
    climb: Climb | None = None
    """When the prompts get harder, where the task has a curriculum."""
    pairs: Sequence[Pair] = ()
    heldout_pairs: Sequence[Pair] = ()


def load_rows(
    data: DataSection, reward: tuple[Part, ...], seed: int, supervised: bool = False, own_reward: bool = True,
    paired: bool = False,
) -> Rows:  # fmt: skip
    """Prompts (and examples, or pairs) of a built-in task or of the user's rows, split by their content; with the
    reward's parts, which are the task's own where there are none and ``own_reward``."""
    if paired:
        found = read_pairs(data, seed)
        prompts = questions(found.heldout)
        if data.task is not None and own_reward:
            known = paired_task(data)
            prompts, reward = known.prompts("heldout"), reward or (task_part(known),)
        return Rows((), prompts, reward=reward, facts=found.facts, pairs=found.train, heldout_pairs=found.heldout)
    if data.task is not None:
        task: Any = load_task(data.task, data.options)
        examples = {split: task.examples(split) if supervised else () for split in ("train", "heldout")}
        return Rows(
            task.prompts("train"), task.prompts("heldout"), examples["train"], examples["heldout"],
            reward or ((task_part(task),) if own_reward else ()), {"task": data.task, "options": data.options},
            confined(task),
            getattr(task, "climb", None),
        )  # fmt: skip
    table = reading.read_rows(str(data.path), columns=data.columns)
    left_out: list[int] | None = [] if data.on_bad_row == "skip" else None
    if not supervised:
        train, heldout = split_rows(reading.to_prompts(table.rows, table.where, left_out), data.heldout, seed)
        return Rows(train, heldout, reward=reward, facts=table_facts(data, table, left_out))
    learn, keep = split_rows(reading.to_examples(table.rows, table.where, left_out), data.heldout, seed)
    asked = [_question(row, table.rows[int(row.id) - 1]) for row in keep]
    return Rows((), asked, learn, keep, reward, table_facts(data, table, left_out))


def _question(row: Example, columns: Mapping[str, Any]) -> Prompt:
    """A supervised row as a prompt to be answered: what comes before its (last) answer, and before the calls for it."""
    from upslope.types import Prompt

    content = row.prompt
    if row.completion is None:
        asked = [place for place, message in enumerate(row.prompt) if message["role"] == "user"]  # type: ignore[index,call-overload]
        content = row.prompt[: asked[-1] + 1]
    return Prompt(
        row.id, content, {name: columns[name] for name in columns if name not in ("prompt", "input", "messages")}
    )


def fit_prompts(
    prompts: Sequence[Prompt], renderer: Renderer, data: DataSection, context: int, new_tokens: int, what: str,
    notice: Callable[[str], None], key: str = "sampling.max_new_tokens",
) -> list[Prompt]:  # fmt: skip
    """Prompts that leave room for ``new_tokens`` in the context; the others by ``data.too_long``, with the count said.
    ``key`` is what sets ``new_tokens``.

    Raises:
        InputError: with ``error``, naming the rows; always if nothing is left.
    """
    limit = context - new_tokens
    if limit < 1:
        problem = f"{new_tokens} new tokens leave no room for a prompt in a context of {context}"
        raise InputError(key, problem, f"lower it below {context}")
    kept: list[Prompt] = []
    long: list[tuple[str, int]] = []
    for prompt in prompts:
        length = _length(prompt.content, renderer, limit)
        if length <= limit:
            kept.append(prompt)
            continue
        long.append((prompt.id, length))
        if data.too_long == "truncate":
            kept.append(prompt)  # rollouts.harvest cuts its beginning off
    if long:
        shown = ", ".join(f"{name} ({length})" for name, length in long[:5]) + (", ..." if len(long) > 5 else "")
        room = f"{limit} tokens (context {context} less {new_tokens} new ones)"
        text = f"{len(long)} of {len(prompts)} {what} prompts exceed {room}"
        if data.too_long == "error":
            room_left = context - max(length for _, length in long)
            lower = f", or lower {key} to {room_left}" if room_left > 0 else ""
            raise InputError("data.path", f"{text}: rows {shown}", f"set data.too_long: drop or truncate{lower}")
        notice(f"{text}: {'dropped' if data.too_long == 'drop' else 'their beginnings cut off'} ({shown})")
    if prompts and not kept:
        raise InputError("data.path", f"0 {what} prompts are left (read {len(prompts)}, too long {len(long)})",
                         f"lower {key}, or set data.too_long: truncate")  # fmt: skip
    return kept


def _length(content: Any, renderer: Renderer, limit: int) -> int:
    """Tokens of a prompt. A text that no vocabulary brings near ``limit`` is not cut into tokens, which takes seconds
    for some megabytes: what is told is the least that it can have."""
    parts = [content] if isinstance(content, str) else [part.get("content") for part in content if hasattr(part, "get")]
    least = sum(len(text) for text in parts if isinstance(text, str)) // LONGEST_TOKEN
    return least if least > limit else len(renderer.prompt(content))


def fit_examples(
    rows: Sequence[Example], renderer: Renderer, limit: int, notice: Callable[[str], None]
) -> list[Encoded]:
    """Rendered rows, cut to ``limit`` tokens; rows with nothing left to train on are dropped and counted.

    Raises:
        InputError: no row has a trainable token within the limit.
    """
    from upslope.types import Encoded

    encoded = [renderer.example(row) for row in rows]
    cut = [Encoded(row.id, row.token_ids[:limit], row.trainable[:limit]) for row in encoded]
    kept = [row for row in cut if any(row.trainable[1:])]
    if rows and not kept:
        raise InputError(
            "sft.max_tokens",
            f"none of {len(rows)} rows has a trainable token within {limit} tokens",
            "raise sft.max_tokens",
        )
    shortened = sum(len(row.token_ids) > limit for row in encoded)
    if shortened:
        notice(
            f"{shortened} of {len(rows)} rows were cut to {limit} tokens; "
            f"{len(cut) - len(kept)} had nothing left to train on"
        )
    return kept


def confined(task: Any, max_new_tokens: int | None = None) -> Confined | None:
    """The task if it says which tokens a completion may hold, else None.

    Raises:
        InputError: its completions need more room than ``max_new_tokens``: one that is cut would be no text of it.
    """
    if not hasattr(task, "allowed"):  # not isinstance: that needs types, and so torch
        return None
    if max_new_tokens is not None and max_new_tokens < task.longest:
        problem = f"found {max_new_tokens}, but completions of task {task.name} take up to {task.longest} tokens"
        raise InputError("sampling.max_new_tokens", problem, f"set it to {task.longest}")
    return task  # type: ignore[no-any-return]


def sampling_of(settings: SamplingSection, renderer: Renderer, task: Confined | None) -> Sampling:
    """How completions are drawn: the recipe's settings, the model's end tokens, and what the task allows."""
    from upslope.types import Sampling

    confined(task, settings.max_new_tokens)
    allowed = None if task is None else task.allowed(renderer)
    return Sampling(settings.max_new_tokens, renderer.stop_ids, settings.temperature, settings.stop, allowed)
