"""The lines of ``rollouts/step-N.jsonl``: a completion each, and for the first of them the numbers of every token.

    pieces             the text of each token
    advantages         what the loss multiplied; left out where it is the row's ``advantage`` at every token
    entropies          of the learner's distribution at the token, in nats, and
    gaps               log-probability of the learner minus that of the sampler, in nats; both in some steps only
    values             what the critic predicted before the token (PPO), and
    estimates          the advantage before it was whitened
    true_advantages    the exact ones, and
    true_values        what the critic should have said, where the task knows them (``types.Solved``)

They describe the policy that sampled, before the step's first update, to 4 significant digits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from upslope.models.tree import tree_logprobs
from upslope.recipes.rollouts import Harvest
from upslope.recipes.setup import Workshop
from upslope.text.pieces import pieces
from upslope.types import Batch, PolicyEvaluation, Rollout, Scorer

ROWS = 16
"""So many rows of a step carry the numbers of their tokens."""
SCORED_EVERY = 10
"""Steps from one pass of the learner for entropies and gaps to the next: it takes a tenth of a GRPO step."""
TRUE_PROMPTS = 4
"""Of so many of their prompts the exact numbers are computed: a forward pass of the prompt's whole tree each."""
LEAST_GAP = 1e-6
"""Nats; what is smaller is rounding of float32."""


def scored_in(step: int, steps: int) -> bool:
    """Whether entropies and gaps are told of this step (from 1): of the first, each tenth and the last."""
    return step in (1, steps) or step % SCORED_EVERY == 0


def log_rows(
    shop: Workshop, found: Harvest, step: int, policy: Scorer[PolicyEvaluation] | None, batch: Batch,
    advantages: Float[Tensor, "batch time"], trained: Bool[Tensor, "batch time"],
    more: Mapping[str, Tensor] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """A line a rollout, in their order; ``advantage`` is the mean over the completion's tokens.

    ``policy`` must still be the policy that sampled; None leaves entropies and gaps out. ``trained`` are the tokens
    that the loss looks at; ``more`` [batch, time] are a recipe's own numbers a token.
    """
    means = advantages.mul(batch.mask).sum(1).div(batch.mask.sum(1)).tolist()
    own = {"advantages": advantages * trained, **(more or {})}
    details = _details(shop, found.rollouts[:ROWS], policy, batch.take(range(min(ROWS, len(batch)))), own, means)
    rows = []
    for number, rollout in enumerate(found.rollouts):
        chosen = [place for place, wanted in enumerate(rollout.action_mask) if wanted]
        row = {
            "step": step, "prompt_id": rollout.prompt_id, "group": rollout.group, "sample": rollout.sample,
            "prompt": found.prompts[number], "completion": found.completions[number], "reward": rollout.score,
            "advantage": means[number], "parts": dict(rollout.parts), "extra": dict(rollout.extra),
            "terminated": rollout.terminated, "weights_version": rollout.weights_version,
            "token_ids": [rollout.token_ids[place] for place in chosen],
            "logprobs": [rollout.logprobs[place] for place in chosen],
        }  # fmt: skip
        rows.append(row | details[number] if number < len(details) else row)
    return rows


def _details(
    shop: Workshop, rollouts: Sequence[Rollout], policy: Scorer[PolicyEvaluation] | None, batch: Batch,
    own: Mapping[str, Tensor], means: Sequence[float],
) -> list[dict[str, Any]]:  # fmt: skip
    """The columns a token of these rollouts, which are the rows of ``batch``."""
    tables = dict(own)
    if policy is not None:
        scored = policy.evaluate(batch)
        tables |= {"entropies": scored.entropy, "learner": scored.logprobs}
    exact = _truth(shop, rollouts)
    found = []
    for row, rollout in enumerate(rollouts):
        mask = batch.mask[row]
        numbers = {name: table[row].cpu()[mask].tolist() for name, table in tables.items()}
        if all(_rounded(value) == _rounded(means[row]) for value in numbers["advantages"]):
            del numbers["advantages"]
        if "learner" in numbers:
            sampled = [value for value, chosen in zip(rollout.logprobs, rollout.action_mask, strict=True) if chosen]
            gaps = [ours - theirs for ours, theirs in zip(numbers.pop("learner"), sampled, strict=True)]
            numbers["gaps"] = [gap if abs(gap) >= LEAST_GAP else 0.0 for gap in gaps]
        numbers |= exact.get(row, {})
        columns = {name: [_rounded(value) for value in values] for name, values in numbers.items()}
        found.append({"pieces": pieces(shop.renderer.tokenizer, _answer(rollout)), **columns})
    return found


def _truth(shop: Workshop, rollouts: Sequence[Rollout]) -> dict[int, dict[str, list[float | None]]]:
    """The exact columns by row, of the first ``TRUE_PROMPTS`` prompts; empty for a task without them."""
    if shop.truth is None:
        return {}
    rows: dict[tuple[int, ...], list[int]] = {}
    for row, rollout in enumerate(rollouts):
        rows.setdefault(rollout.token_ids[: rollout.action_mask.index(True)], []).append(row)
    told: dict[int, dict[str, list[float | None]]] = {}
    for prompt, members in list(rows.items())[:TRUE_PROMPTS]:
        exact = shop.truth(
            prompt, [_answer(rollouts[row]) for row in members],
            lambda tree: tree_logprobs(shop.model.model, tree, shop.sampling.temperature),
        )  # fmt: skip
        told |= dict(zip(members, exact, strict=True))
    return told


def _answer(rollout: Rollout) -> list[int]:
    return [token for token, chosen in zip(rollout.token_ids, rollout.action_mask, strict=True) if chosen]


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
