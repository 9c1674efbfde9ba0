"""Each kind of model through our attention against plain transformers: greedy tokens and a policy gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests import tiny
from upslope.models.networks import PolicyNetwork
from upslope.rollout.sampler import InProcessSampler
from upslope.types import Batch, Sampling

LENGTHS = [5, 27, 1, 14]
"""Ragged prompts; one is longer than the sliding windows (12 and 8)."""
Gradient = dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=list(tiny.KINDS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.directory(tmp_path_factory.mktemp(request.param), request.param)


def stock(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def rows_and_factors(dtype: torch.dtype) -> tuple[Batch, torch.Tensor]:
    """Ragged rows, a mask with holes, and for each target its loss weight times its advantage."""
    rows = tiny.prompts([23, 31, 9, 2], seed=3)
    longest = max(map(len, rows))
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    time = torch.arange(longest - 1)
    mask = (time >= torch.tensor([4, 0, 3, 0])[:, None]) & (time < lengths[:, None] - 1) & (time != 6)
    source = torch.Generator().manual_seed(5)
    advantages = torch.randn(mask.shape, generator=source, dtype=torch.float64)
    weights = torch.rand(mask.shape, generator=source, dtype=torch.float64) * mask
    return Batch(ids, lengths, mask, torch.arange(4)), (weights / weights.sum() * advantages).to(dtype)


def packed_gradient(model: Any, dtype: torch.dtype) -> Gradient:
    batch, factors = rows_and_factors(dtype)
    loss = -(factors * PolicyNetwork(model)(batch).logprobs).sum()
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def stock_gradient(model: Any, dtype: torch.dtype) -> Gradient:
    batch, factors = rows_and_factors(dtype)
    loss = torch.zeros((), dtype=dtype)
    for ids, length, mask, factor in zip(batch.token_ids, batch.lengths, batch.mask, factors, strict=True):
        row = ids[: int(length)]
        logprobs = tiny.stock_log_probs(model, row).gather(-1, row[1:, None])[:, 0]
        chosen = mask[: len(logprobs)]
        loss = loss - (factor[: len(logprobs)] * logprobs)[chosen].sum()
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def assert_same(ours: Gradient, expected: Gradient, tolerance: float) -> None:
    assert ours.keys() == expected.keys()
    assert max(float(grad.abs().max()) for grad in expected.values()) > 0.05  # the comparison is not of zeros
    for name, grad in expected.items():
        gap = (ours[name] - grad).abs() - tolerance * grad.abs()
        assert float(gap.max()) <= tolerance, f"{name}: off by {float(gap.max()):.2e}"


def test_greedy_tokens_equal_generate(folder: Path) -> None:
    served = tiny.load(folder)
    prompts = tiny.prompts(LENGTHS, seed=1)
    sampler = InProcessSampler(served.model, served.card.context, slots=3)
    answers = sampler.sample(prompts, 1, Sampling(20, (2,), temperature=0.0), [0] * len(prompts))
    plain = stock(folder)
    for prompt, (answer,) in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt])
        whole = plain.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, eos_token_id=2
        )
        assert list(answer.token_ids) == whole[0, len(prompt) :].tolist()


def test_policy_gradient_equals_stock_autograd(folder: Path) -> None:
    ours = packed_gradient(tiny.load(folder).model, torch.float32)
    assert_same(ours, stock_gradient(stock(folder), torch.float32), 1e-5)


def test_policy_gradient_in_float64_equals_stock_autograd(folder: Path) -> None:
    ours = packed_gradient(tiny.load(folder, torch.float64).model, torch.float64)
    # Gemma's norms and embedding scale compute in float32 whatever the model's dtype.
    tolerance = 1e-7 if folder.name.startswith("gemma") else 1e-12
    assert_same(ours, stock_gradient(stock(folder, torch.float64), torch.float64), tolerance)


def test_gradient_checkpointing_gives_the_same_gradient_and_runs_layers_twice(folder: Path) -> None:
    plain = packed_gradient(tiny.load(folder).model, torch.float32)
    model = tiny.load(folder, gradient_checkpointing=True).model
    passes = []
    model.get_decoder().layers[0].mlp.register_forward_pre_hook(lambda *_: passes.append(1))
    checkpointed = packed_gradient(model, torch.float32)
    assert len(passes) == 2
    assert_same(checkpointed, plain, 1e-6)


def test_a_row_of_a_pack_does_not_see_its_neighbours(folder: Path) -> None:
    model = tiny.load(folder).model
    batch, _ = rows_and_factors(torch.float32)
    whole = PolicyNetwork(model)(batch)
    for row in range(len(batch)):
        alone = PolicyNetwork(model)(batch.take([row]))
        torch.testing.assert_close(alone.logprobs[0], whole.logprobs[row], atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(alone.entropy[0], whole.entropy[row], atol=2e-6, rtol=1e-5)
