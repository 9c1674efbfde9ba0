"""Sampled frequencies against the exact distribution: every sequence of a tiny vocabulary, enumerated."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import pytest
import torch

from tests import tiny
from upslope.maths import distributions
from upslope.rollout.sampler import InProcessSampler
from upslope.types import Sampling

STOP, PROMPT, COUNT = 2, [3, 1, 4], 3000


def exact(sampling: Sampling, vocab: int) -> dict[tuple[int, ...], float]:
    """Probability of each complete sequence, by stock forwards in float64."""
    plain = tiny.model("llama", dtype=torch.float64, vocab_size=vocab)
    found: dict[tuple[int, ...], float] = {}

    def grow(so_far: tuple[int, ...], mass: float) -> None:
        if so_far and (so_far[-1] in sampling.stop_ids or len(so_far) == sampling.max_new_tokens):
            found[so_far] = mass
            return
        logits = plain(input_ids=torch.tensor([[*PROMPT, *so_far]]), use_cache=False).logits[0, -1].detach()
        ids = sampling.allowed(PROMPT, so_far) if callable(sampling.allowed) else sampling.allowed or range(vocab)
        blocked = torch.ones(vocab, dtype=torch.bool)
        blocked[list(ids)] = False
        log_p = distributions.log_probs(logits.masked_fill(blocked, -torch.inf), sampling.temperature, sampling.top_k)
        for token, p in enumerate(log_p.exp().tolist()):
            if p > 0:
                grow((*so_far, token), mass * p)

    grow((), 1.0)
    assert math.isclose(sum(found.values()), 1.0, abs_tol=1e-9)
    return found


def surprise(counts: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float], total: int) -> float:
    """z of Pearson's chi-square; sequences that are expected less than five times are one cell."""
    cells: list[tuple[float, float]] = []
    rare, rare_p = 0, 0.0
    for sequence, p in expected.items():
        if p * total < 5:
            rare, rare_p = rare + counts[sequence], rare_p + p
        else:
            cells.append((counts[sequence], p * total))
    if rare_p * total > 1:
        cells.append((rare, rare_p * total))
    chi = sum((seen - mean) ** 2 / mean for seen, mean in cells)
    freedom = len(cells) - 1
    assert freedom >= 3
    return (chi - freedom) / math.sqrt(2 * freedom)


def rule(prompt: Sequence[int], so_far: Sequence[int]) -> list[int]:
    return [STOP, 4, 5] if len(so_far) % 2 == 0 else [STOP, 6, 7, 8]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(3, (STOP,)),
        Sampling(3, (STOP,), temperature=0.6),
        Sampling(3, (STOP,), top_k=3),
        Sampling(3, (STOP,), allowed=[STOP, 4, 6, 9]),
        Sampling(3, (STOP,), temperature=1.5, allowed=rule),
    ],
    ids=["plain", "temperature", "top_k", "list", "function"],
)
def test_frequencies_match_the_exact_distribution(sampling: Sampling) -> None:
    expected = exact(sampling, vocab=10)
    sampler = InProcessSampler(tiny.served("llama", vocab_size=10), 128, slots=600)
    (found,) = sampler.sample([PROMPT], COUNT, sampling, [11])
    counts = Counter(completion.token_ids for completion in found)
    assert set(counts) <= set(expected)
    assert abs(surprise(counts, expected, COUNT)) < 4
    for completion in found[:50]:
        assert sum(completion.logprobs) == pytest.approx(math.log(expected[completion.token_ids]), abs=1e-4)


def test_the_test_notices_a_slightly_wrong_temperature() -> None:
    wrong = exact(Sampling(3, (STOP,), temperature=1.25), vocab=10)
    sampler = InProcessSampler(tiny.served("llama", vocab_size=10), 128, slots=600)
    (found,) = sampler.sample([PROMPT], COUNT, Sampling(3, (STOP,)), [11])
    assert surprise(Counter(completion.token_ids for completion in found), wrong, COUNT) > 4
