"""How one token is drawn: shared by every sampler, so that they can only differ in their logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from upslope.maths import distributions
from upslope.seeds import uniforms
from upslope.types import Sampling


def randomness(seed: int, sample: int, count: int) -> Tensor:
    """[count] float64 in [0, 1): the number at a position depends on (seed, sample, position) alone."""
    return torch.from_numpy(uniforms(seed, count, "token", sample))


def draw(
    logits: Float[Tensor, "rows vocab"],
    random: Float[Tensor, " rows"],
    sampling: Sampling,
    support: Sequence[Sequence[int] | None] | None = None,
) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Token ids and their log-probabilities under the very distribution that they were drawn from."""
    if logits.device.type == "mps":
        logits = logits.cpu()  # Metal has no float64, which the random numbers are
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if support is not None:
        logits = _restrict(logits, support)
    scores = distributions.scores(logits, sampling.temperature, sampling.top_k, sampling.top_p)
    return distributions.sample(scores, random.to(scores.device))


def _restrict(logits: Tensor, support: Sequence[Sequence[int] | None]) -> Tensor:
    blocked = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
    for row, ids in enumerate(support):
        if ids is not None:
            if min(ids) < 0 or max(ids) >= logits.shape[1]:
                raise ValueError(
                    f"allowed ids {min(ids)} to {max(ids)} lie outside the vocabulary of {logits.shape[1]}"
                )
            blocked[row] = True
            blocked[row, torch.as_tensor(list(ids), device=logits.device)] = False
    return logits.masked_fill(blocked, float("-inf"))


def allowed_ids(sampling: Sampling, prompt: Sequence[int], so_far: Sequence[int]) -> tuple[int, ...] | None:
    """The ids that may be drawn next; ``None``: all of them."""
    if sampling.allowed is None:
        return None
    ids = sampling.allowed(prompt, so_far) if callable(sampling.allowed) else sampling.allowed
    if not ids:
        raise ValueError(f"sampling.allowed gave no token after {list(so_far)}")
    return tuple(sorted({int(token) for token in ids}))


def listed(support: Sequence[Sequence[int] | None], device: torch.device) -> Int[Tensor, "rows choices"] | None:
    """The allowed ids of each row, padded with -1; ``None``: every row may have all."""
    if all(ids is None for ids in support):
        return None
    rows = [torch.as_tensor(ids or [-1], device=device) for ids in support]
    return pad_sequence(rows, batch_first=True, padding_value=-1)


def room(prompt: Sequence[int], sampling: Sampling, context: int) -> int:
    """How many tokens a completion of this prompt may have: ``max_new_tokens``, or what the context leaves."""
    left = min(sampling.max_new_tokens, context - len(prompt))
    if not prompt:
        raise ValueError("an empty prompt: a completion needs at least one token before it")
    if left < 1:
        raise ValueError(f"a prompt of {len(prompt)} tokens leaves no room in a context of {context}")
    return left
