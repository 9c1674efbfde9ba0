"""What `upslope check` says of preferences: their lengths, which answer is longer how often, and what looks wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from upslope.checkup.facts import Checkup, Finding, Lengths, PairFacts
from upslope.recipes.configs import DpoRecipe
from upslope.views.numbers import percent
from upslope.views.rendered import Segment, segments

if TYPE_CHECKING:
    from upslope.recipes.setup import Survey
    from upslope.types import EncodedPair, Pair

LOPSIDED = 0.8
"""From such a share on, the longer answer is nearly always the better (or worse) one: length alone tells them."""
FEW = 20
"""Below so many pairs of unequal length, shares say nothing."""


def pair_facts(seen: Survey) -> PairFacts | None:
    """The training pairs; None where the recipe has none."""
    if not seen.pairs:
        return None
    chosen, rejected = [[_answer(side) for side in sides] for sides in zip(*map(_sides, seen.pairs), strict=True)]
    facts = seen.rows.facts or {}
    rows = int(facts.get("rows") or len(seen.rows.pairs) + len(seen.rows.heldout_pairs))
    return PairFacts(
        int(facts.get("equal_pairs") or 0), rows,
        Lengths.of(chosen), Lengths.of(rejected),
        sum(a > b for a, b in zip(chosen, rejected, strict=True)),
        sum(a < b for a, b in zip(chosen, rejected, strict=True)),
        _contradictions([*seen.rows.pairs, *seen.rows.heldout_pairs]),
        sum(pair.joined for pair in seen.rows.pairs), sum(pair.margin != 0 for pair in seen.pairs),
    )  # fmt: skip


def _sides(pair: EncodedPair) -> tuple[Any, Any]:
    return pair.chosen, pair.rejected


def _answer(side: Any) -> int:
    return sum(side.trainable)


def _contradictions(pairs: Sequence[Pair]) -> int:
    """Pairs that stand against an earlier one: the same two answers to the same prompt, the other way round."""
    met: set[str] = set()
    count = 0
    for pair in pairs:
        prompt = json.dumps(pair.prompt, sort_keys=True, default=str)
        count += json.dumps([prompt, pair.rejected, pair.chosen]) in met
        met.add(json.dumps([prompt, pair.chosen, pair.rejected]))
    return count


def rendered_pair(seen: Survey) -> tuple[str, tuple[Segment, ...], tuple[Segment, ...]]:
    """The first training pair: its id, prompt and chosen answer, and the rejected answer."""
    from upslope.text.pieces import pieces

    pair, renderer = seen.pairs[0], seen.renderer
    told = []
    for side in _sides(pair):
        ids = list(side.token_ids)
        told.append(segments(pieces(renderer.tokenizer, ids), ids, list(side.trainable), renderer.stop_ids))
    return pair.id, tuple(told[0]), tuple(segment for segment in told[1] if segment.kind != "prompt")


# ------------------------------------------------------------------------------------------------------------ findings
def length_tells(found: Checkup, recipe: Any, seen: Survey) -> Iterator[Finding]:
    """The longer answer is nearly always the better one, or the worse one."""
    pairs = found.pairs
    if pairs is None or pairs.chosen_longer + pairs.rejected_longer < FEW:
        return
    share = pairs.chosen_longer / (pairs.chosen_longer + pairs.rejected_longer)
    which = "longer" if share >= LOPSIDED else "shorter" if share <= 1 - LOPSIDED else None
    if which is not None:
        part = percent(share if which == "longer" else 1 - share)
        text = (
            f"the {which} answer is the chosen one in {part} of the pairs whose lengths differ: length alone nearly "
            f"tells them apart, and may be all that is learned. Look at the lengths of answers after training, or give "
            "pairs of more equal length"
        )
        yield Finding("length tells", "data.path" if found.rows.own else "data.task", text)


def pairs_against(found: Checkup, recipe: Any, seen: Survey) -> Iterator[Finding]:
    """The same pair stands both ways round."""
    if found.pairs is not None and found.pairs.contradicting:
        text = (
            f"{found.pairs.contradicting} pairs have the two answers of an earlier pair the other way round. If people "
            "disagreed, that is how it should be; if not, one of the two is wrong"
        )
        yield Finding("contradicting pairs", "data.path", text)


def pairs_equal(found: Checkup, recipe: Any, seen: Survey) -> Iterator[Finding]:
    """Many rows prefer nothing."""
    if found.pairs is not None and found.pairs.equal:
        share = percent(found.pairs.equal / max(found.pairs.rows, 1))
        text = f"in {found.pairs.equal} of {found.pairs.rows} rows ({share}) chosen and rejected are equal: left out"
        yield Finding("equal pairs", "data.path", text)


def beginnings_cut(found: Checkup, recipe: Any, seen: Survey) -> Iterator[Finding]:
    """Texts without a prompt were cut where they begin to differ."""
    if found.pairs is not None and found.pairs.joined:
        text = (
            f"{found.pairs.joined} rows have no prompt: it is taken to be what chosen and rejected begin with, up to "
            "the last white space. A column prompt would say it for certain"
        )
        yield Finding("no prompt", "data.path", text)


def margins_unused(found: Checkup, recipe: Any, seen: Survey) -> Iterator[Finding]:
    """DPO takes no margin."""
    if found.pairs is not None and found.pairs.margins and isinstance(recipe, DpoRecipe):
        text = f"{found.pairs.margins} pairs have a margin, which DPO does not use (upslope reward does)"
        yield Finding("margin", "data.path", text)


PAIR_CHECKS = (pairs_equal, beginnings_cut, length_tells, pairs_against, margins_unused)
