"""The reference sampler: a plain loop over the stock forward pass, one completion at a time, no cache.

Slow and obvious, it is the oracle of the fast sampler and stays for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from upslope.rollout.drawing import allowed_ids, draw, randomness, room
from upslope.types import Completion, Sampling


class ReferenceSampler:
    """Samples with ``model(input_ids).logits`` of a stock model (any attention implementation of transformers)."""

    def __init__(self, model: Any, context: int, decode: Callable[[Sequence[int]], str] | None = None) -> None:
        self.model, self.context, self.decode, self.version = model, context, decode, 0

    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copy weights by name and take their version."""
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, tensor in weights:
                own[name].copy_(tensor)
        self.version = version

    def sample(
        self, prompts: Sequence[Sequence[int]], samples: int, sampling: Sampling, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        """``samples`` completions of each prompt."""
        pairs = zip(prompts, seeds, strict=True)
        return [[self._one(prompt, sampling, seed, sample) for sample in range(samples)] for prompt, seed in pairs]

    @torch.no_grad()
    def _one(self, prompt: Sequence[int], sampling: Sampling, seed: int, sample: int) -> Completion:
        limit = room(prompt, sampling, self.context)
        random = randomness(seed, sample, limit)
        device = next(self.model.parameters()).device
        ids: list[int] = []
        logprobs: list[float] = []
        support: list[tuple[int, ...]] = []
        stopped = False
        while len(ids) < limit and not stopped:
            allowed = allowed_ids(sampling, prompt, ids)
            logits = self.model(input_ids=torch.tensor([[*prompt, *ids]], device=device), use_cache=False).logits[:, -1]
            token, logprob = draw(logits, random[len(ids), None], sampling, None if allowed is None else [allowed])
            ids.append(int(token))
            logprobs.append(float(logprob))
            if allowed is not None:
                support.append(allowed)
            stopped = ids[-1] in sampling.stop_ids or holds_stop_string(ids, sampling, self.decode)
        return Completion(tuple(ids), tuple(logprobs), stopped, self.version, tuple(support) if support else None)


def holds_stop_string(ids: Sequence[int], sampling: Sampling, decode: Callable[[Sequence[int]], str] | None) -> bool:
    """Whether the text so far contains one of the stop strings."""
    if not sampling.stop_strings:
        return False
    if decode is None:
        raise ValueError("stop strings need a sampler that was given decode=")
    text = decode(ids)
    return any(stop in text for stop in sampling.stop_strings)
