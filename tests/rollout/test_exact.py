"""Exact mode: sampler and learner give the same log-probabilities, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests import tiny
from tests.recipes.support import Bench, bench, metrics
from upslope.errors import InputError
from upslope.learner.learner import FrozenScorer
from upslope.maths import losses
from upslope.models import exact
from upslope.models.networks import PolicyNetwork
from upslope.rollout.sampler import InProcessSampler
from upslope.text.collation import collate_rollouts
from upslope.types import Completion, PolicyEvaluation, Rollout, Sampling

__all__ = ["bench"]
CONTEXT = 256
LENGTHS = (6, 61, 19, 100)
"""Ragged; one prompt ends just before a block of 64 positions does, one lies in the second."""


def served(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    model = tiny.served(kind, dtype=dtype, max_position_embeddings=CONTEXT)
    exact.make_exact(model)
    return model


def rollouts(prompts: list[list[int]], found: list[list[Completion]], temperature: float) -> list[Rollout]:
    rows = []
    for group, (prompt, several) in enumerate(zip(prompts, found, strict=True)):
        for sample, one in enumerate(several):
            before, count = len(prompt), len(one.token_ids)
            support = None if one.support is None else (None,) * before + one.support
            rows.append(
                Rollout(
                    str(group), group, sample, (*prompt, *one.token_ids), (False,) * before + (True,) * count,
                    (0.0,) * before + one.logprobs, (0.0,) * (before + count), one.stopped, 0, temperature, support,
                )
            )  # fmt: skip
    return rows


def gap(model: Any, budget: int, sampling: Sampling, slots: int = 5) -> float:
    """The largest difference of a sampled token's log-probability, sampler against learner, in nats."""
    prompts = tiny.prompts(LENGTHS)
    found = InProcessSampler(model, CONTEXT, slots).sample(prompts, 3, sampling, range(40, 44))
    rows = rollouts(prompts, found, sampling.temperature)
    batch = collate_rollouts(rows)
    learner = FrozenScorer[PolicyEvaluation](PolicyNetwork(model), budget)
    scored = learner.evaluate(batch).logprobs
    dtype = scored.dtype
    sampled = torch.zeros_like(scored)
    for row, rollout in enumerate(rows):
        sampled[row, : len(rollout.token_ids) - 1] = torch.tensor(rollout.logprobs[1:], dtype=dtype)
    assert batch.mask.sum() > 200 and bool((sampled[batch.mask] < 0).any())
    return float((scored - sampled)[batch.mask].abs().max())


ENDLESS = Sampling(30, (), 0.8)


@pytest.mark.parametrize("kind", list(tiny.KINDS))
@pytest.mark.parametrize("budget", [4096, 150, 1])
def test_sampler_and_learner_agree_to_the_last_bit(kind: str, budget: int) -> None:
    assert gap(served(kind), budget, ENDLESS) == 0.0


def test_they_agree_in_float64_and_with_some_ids_allowed() -> None:
    assert gap(served("llama", torch.float64), 300, ENDLESS) == 0.0
    assert gap(served("llama"), 300, Sampling(30, (), 0.8, allowed=(5, 9, 11, 17, 40))) == 0.0


def test_without_it_they_differ_by_rounding() -> None:
    """What the checks above would say of a mode that does nothing."""
    difference = gap(tiny.served("llama", max_position_embeddings=CONTEXT), 4096, ENDLESS)
    assert 0.0 < difference < 1e-4


def test_tiles_are_the_product_and_so_is_its_gradient() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(24, 7, dtype=torch.float64)
    model = nn.Module()
    model.inner, model.get_decoder = layer, lambda: model  # type: ignore[assignment]
    x = torch.randn(3, 50, 24, dtype=torch.float64, requires_grad=True)
    plain = layer(x)
    (wanted,) = torch.autograd.grad(plain.square().sum(), x)
    exact.make_exact(model)
    assert type(layer) is exact.TiledLinear and exact.is_exact(model)
    torch.testing.assert_close(layer(x), plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(layer(x).square().sum(), x)[0], wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_the_gradient_is_the_ordinary_one(kind: str) -> None:
    grads = []
    for tiled in (False, True):
        model = tiny.served(kind, dtype=torch.float64, max_position_embeddings=CONTEXT)
        if tiled:
            exact.make_exact(model)
        rows = rollouts(tiny.prompts(LENGTHS), [[Completion((7, 8, 9), (0.0,) * 3, True, 0)] * 2] * 4, 0.8)
        batch = collate_rollouts(rows)
        losses.nll(PolicyNetwork(model)(batch).logprobs)[batch.mask].sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_an_exact_run_has_no_sampler_gap(bench: Bench, kind: str) -> None:
    exactly, usually = (bench.run(kind, f"exact-{mode}-{kind}", exact=mode, steps=3, lr=1e-2) for mode in (True, False))
    assert all(row["sampler_gap/max"] == 0.0 and row["sampler_gap/mean"] == 0.0 for row in metrics(exactly))
    assert any(row["sampler_gap/max"] > 0.0 for row in metrics(usually))
    assert metrics(exactly)[0]["reward"] == pytest.approx(metrics(usually)[0]["reward"], abs=0.1)


def test_adapters_are_tiled_too(bench: Bench) -> None:
    rows = metrics(bench.run("grpo", "exact-lora", exact=True, steps=3, lora={"rank": 4}, lr=1e-2, kl_coef=0.1))
    assert all(row["sampler_gap/max"] == 0.0 for row in rows) and rows[-1]["kl"] != 0.0


def test_bfloat16_is_refused_in_words(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.exact: found bfloat16.*set model\.dtype: float32"):
        bench.run("grpo", str(tmp_path / "no"), exact=True, dtype="bfloat16")
