"""From logits to the distribution that is sampled from: the one code for sampler, learner and reference."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from upslope.maths.numeric import promoted


def scores(
    logits: Float[Tensor, "*shape vocab"], temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> Float[Tensor, "*shape vocab"]:
    """Unnormalised log-probabilities, in nats, of the distribution that is actually sampled from.

    In this order: divide by ``temperature``; keep the ``top_k`` most probable (0: all); of what is left, renormalised,
    keep the smallest set of most probable ids whose mass reaches ``top_p`` (1: all), never less than one. What is not
    kept is -inf. Among equals the lower id goes first, so ``top_k=1`` and greedy choose the same id.
    ``temperature=0`` is greedy: 0 at the first largest logit, -inf elsewhere. Logits of -inf stay -inf; a row must have
    one finite logit. Promoted to at least float32. Gradients flow through what is kept.
    Nucleus: Holtzman et al., arXiv 1904.09751. Deviation from common top-k code: ties at the k-th place do not add ids.
    Raises ValueError for a temperature that is negative or not finite, ``top_k < 0``, or ``top_p`` outside (0, 1].
    """
    if not (math.isfinite(temperature) and temperature >= 0.0):
        raise ValueError(f"temperature is {temperature}; it must be finite and not negative")
    if top_k < 0:
        raise ValueError(f"top_k is {top_k}; it must not be negative (0 keeps all)")
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p is {top_p}; it must lie in (0, 1]")
    scores = promoted(logits)
    if temperature == 0.0:
        best = scores.argmax(dim=-1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter(-1, best, 0.0)
    if temperature != 1.0:
        # Shifted first: dividing large logits by a small temperature would overflow.
        scores = (scores - scores.amax(dim=-1, keepdim=True).detach()) / temperature
    if 0 < top_k < scores.shape[-1] or top_p < 1.0:
        scores = scores.masked_fill(~_kept(scores.detach(), top_k, top_p), -torch.inf)
    return scores


def log_probs(
    logits: Float[Tensor, "*shape vocab"], temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> Float[Tensor, "*shape vocab"]:
    """``scores``, normalised: log-probabilities in nats of the distribution that is actually sampled from."""
    return scores(logits, temperature, top_k, top_p).log_softmax(dim=-1)


def _kept(scores: Tensor, top_k: int, top_p: float) -> Tensor:
    ordered, ids = scores.sort(dim=-1, descending=True, stable=True)
    kept = torch.ones_like(ordered, dtype=torch.bool)
    if top_k:
        kept[..., top_k:] = False
    if top_p < 1.0:
        mass = ordered.masked_fill(~kept, -torch.inf).softmax(dim=-1)
        kept &= mass.cumsum(dim=-1) - mass < top_p
        kept[..., 0] = True
    return torch.zeros_like(kept).scatter(-1, ids, kept)


def entropy(log_probs: Float[Tensor, "*shape vocab"]) -> Float[Tensor, "*shape"]:
    """``-sum_x p(x) log p(x)`` in nats, of normalised log-probabilities; entries of -inf add 0, with 0 gradient."""
    log_probs = promoted(log_probs)
    finite = log_probs.masked_fill(torch.isneginf(log_probs), 0.0)
    return -(log_probs.exp() * finite).sum(dim=-1)


def chosen(log_probs: Float[Tensor, "*shape vocab"], ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``log_probs[..., ids]``: the log-probability in nats of the id chosen at each place."""
    return log_probs.gather(-1, ids.long().unsqueeze(-1)).squeeze(-1)


BLOCK = 256
"""Ids whose masses are summed before the sums are looked through: a vocabulary is read once, not summed id by id."""
AT_ONCE = 1 << 19
"""Numbers that are worked on together: they stay in the processor's cache."""


def draw(log_probs: Float[Tensor, "batch vocab"], uniforms: Float[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """One id a row by the inverse of the cumulative distribution: the first id whose cumulative mass exceeds ``u``.

    ``log_probs`` may be ``scores``: mass is relative to the row's total. ``uniforms`` lie in [0, 1], in float64 if the
    result is to be exact. The same row and number give the same id, whatever the other rows are. An id without
    probability is never returned: u = 0 gives the first id that has some, u up to and including 1 the last one that
    counts. Sums are in float64. Raises ValueError if a row has no probability at all (all -inf) or holds NaN or +inf.
    """
    return sample(log_probs, uniforms)[0]


def sample(
    scores: Float[Tensor, "batch vocab"], uniforms: Float[Tensor, " batch"]
) -> tuple[Int[Tensor, " batch"], Float[Tensor, " batch"]]:
    """``draw``, with the log-probability of each drawn id in nats (in the dtype of the promoted scores)."""
    scores = promoted(scores.detach())
    if len(scores) == 0:
        return scores.new_zeros(0, dtype=torch.long), scores.new_zeros(0)
    rows = max(1, AT_ONCE // scores.shape[-1])
    parts = [_sample(part, u) for part, u in zip(scores.split(rows), uniforms.split(rows), strict=True)]
    return torch.cat([ids for ids, _ in parts]), torch.cat([logprobs for _, logprobs in parts])


def _sample(scores: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    top = scores.amax(dim=-1, keepdim=True)
    if not bool(torch.isfinite(top).all()):
        raise ValueError("draw: a row of log-probabilities is all -inf, or holds NaN or +inf")
    mass = (scores - top).exp_()
    width = BLOCK if mass.shape[-1] > 2 * BLOCK else mass.shape[-1]
    blocks = torch.nn.functional.pad(mass, (0, -mass.shape[-1] % width)).view(len(mass), -1, width)
    ends = _cumulative(blocks.sum(dim=-1, dtype=torch.float64))
    total = ends[:, -1:]
    wanted = uniforms.to(torch.float64).unsqueeze(-1) * total
    block = _first_above(ends, wanted)
    inside = _cumulative(blocks.gather(1, block[..., None].expand(-1, 1, width))[:, 0])
    # What is wanted of this block: less the mass before it, rescaled to its own sum (equal but for rounding).
    before = torch.where(block > 0, ends.gather(1, (block - 1).clamp(min=0)), 0.0)
    share = inside[:, -1:] / (ends.gather(1, block) - before)
    ids = block * width + _first_above(inside, (wanted - before) * share)
    logprobs = scores.gather(-1, ids) - top - total.log().to(scores.dtype)
    return ids.squeeze(-1), logprobs.squeeze(-1)


def _cumulative(mass: Tensor) -> Tensor:
    found = mass.cumsum(dim=-1, dtype=torch.float64)
    if found.device.type != "cpu":
        # A parallel sum may wobble in its last bit; entries without mass must repeat their predecessor's sum exactly.
        found = found.masked_fill(mass == 0, 0.0).cummax(dim=-1).values
    return found


def _first_above(cumulative: Tensor, wanted: Tensor) -> Tensor:
    """[batch, 1]: the first entry above ``wanted``, which is kept below the last one; so an entry that has mass."""
    total = cumulative[:, -1:]
    wanted = torch.minimum(wanted, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, wanted, right=True)
