"""Preferences in a recipe: read, split, rendered within their limit, batched; and their numbers on held-out pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from upslope.errors import InputError
from upslope.recipes.configs import DataSection, DpoRecipe, Recipe, RewardRecipe
from upslope.text import preferences
from upslope.text import rows as reading
from upslope.worlds.task import load_task, split_rows

if TYPE_CHECKING:
    from upslope.text.rendering import Renderer
    from upslope.types import Encoded, EncodedPair, Pair, Prompt


@dataclass(frozen=True, eq=False)
class Preferences:
    """Pairs to learn from and held-out ones, and facts for run.json."""

    train: Sequence[Pair]
    heldout: Sequence[Pair]
    facts: dict[str, Any]


def paired_task(data: DataSection) -> Any:
    """The built-in task, which must bring preferences.

    Raises:
        InputError: no such task, or it brings none.
    """
    task: Any = load_task(str(data.task), data.options)
    if not hasattr(task, "pairs"):
        problem = f"task {data.task} brings no preferences (pairs of a better and a worse answer)"
        raise InputError("data.task", problem, "use worked-sums, or give your own rows as data.path")
    return task


def read_pairs(data: DataSection, seed: int) -> Preferences:
    """The preferences of a built-in task or of the user's rows, split by their prompts."""
    if data.task is not None:
        task = paired_task(data)
        return Preferences(task.pairs("train"), task.pairs("heldout"), {"task": data.task, "options": data.options})
    table = reading.read_rows(str(data.path), columns=data.columns)
    left_out: list[int] | None = [] if data.on_bad_row == "skip" else None
    found, equal = preferences.to_pairs(table.rows, table.where, left_out)
    train, heldout = split_rows(found, data.heldout, seed)
    return Preferences(train, heldout, {**table_facts(data, table, left_out), "equal_pairs": equal})


def table_facts(data: DataSection, table: reading.Table, left_out: Sequence[int] | None) -> dict[str, Any]:
    """What run.json says of the user's rows: a run that is resumed must meet the same."""
    facts = {"path": data.path, "rows": len(table), "sha256": table.content_hash, "revision": table.revision}
    return {**facts, "bad_rows": list(left_out)} if left_out else facts


def questions(pairs: Sequence[Pair]) -> list[Prompt]:
    """The different prompts of pairs, to be answered."""
    from upslope.types import Prompt

    found: dict[str, Prompt] = {}
    for pair in pairs:
        found.setdefault(repr(pair.prompt), Prompt(pair.id, pair.prompt, pair.columns))
    return list(found.values())


def longest_row(recipe: Recipe, context: int) -> int:
    """Tokens that a row may have: the recipe's limit or the model's context, whichever is less."""
    if isinstance(recipe, RewardRecipe):
        return min(recipe.reward_model.max_tokens, context)
    return min(recipe.dpo.max_tokens, context) if isinstance(recipe, DpoRecipe) else context


def fit_pairs(
    pairs: Sequence[Pair], renderer: Renderer, limit: int, data: DataSection, where: str,
    notice: Callable[[str], None], what: str,
) -> list[EncodedPair]:  # fmt: skip
    """Rendered pairs of at most ``limit`` tokens a side; longer ones by ``data.too_long``, with the count said.

    ``truncate`` cuts the beginning of the prompt, alike on both sides. An answer is never cut: its end is where a score
    is read.

    Raises:
        InputError: with ``error``, naming the rows; where nothing is left; a text without a prompt that would be
            rendered as a chat.
    """
    from upslope.types import EncodedPair, Example

    joined = [pair for pair in pairs if pair.joined]
    if joined and renderer.wraps:
        problem = f"{len(joined)} rows have no prompt, only chosen and rejected as whole texts, which are no chat"
        raise InputError("data.path", problem, "give a column prompt, or set data.chat: never to take them as they are")
    kept: list[EncodedPair] = []
    long: list[str] = []
    lost = 0
    for pair in pairs:
        sides = [renderer.example(Example(pair.id, pair.prompt, text)) for text in (pair.chosen, pair.rejected)]
        over = max(len(side.token_ids) for side in sides) - limit
        if over > 0:
            long.append(f"{pair.id} ({over + limit})")
            room = sides[0].trainable.index(True)
            if data.too_long != "truncate" or over >= room:
                lost += 1
                continue
            sides = [_without(side, over) for side in sides]
        kept.append(EncodedPair(pair.id, sides[0], sides[1], pair.margin))
    if long:
        shown = ", ".join(long[:5]) + (", ..." if len(long) > 5 else "")
        text = f"{len(long)} of {len(pairs)} {what} pairs exceed {limit} tokens"
        if data.too_long == "error":
            fix = f"set data.too_long: drop or truncate, or raise {where}"
            raise InputError("data.path", f"{text}: rows {shown}", fix)
        cut = f", {len(long) - lost} with the beginning of the prompt cut off" if lost < len(long) else ""
        notice(f"{text}: {lost} left out{cut} ({shown})")
    if pairs and not kept:
        raise InputError("data.path", f"0 {what} pairs are left (read {len(pairs)}, too long {len(long)})",
                         f"raise {where}, or set data.too_long: truncate")  # fmt: skip
    return kept


def _without(row: Encoded, count: int) -> Encoded:
    from upslope.types import Encoded

    return Encoded(row.id, row.token_ids[count:], row.trainable[count:])
