"""The packed decode step against the stock modules: every kind it serves, after a learner's steps, with adapters."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from tests import tiny
from upslope.learner.learner import Learner
from upslope.learner.optimizer import OptimizerSettings
from upslope.maths.weighting import token_mean
from upslope.models import adapters
from upslope.models.attention import SlotCache, SlotStep
from upslope.models.decode import DecodeStep
from upslope.models.networks import PolicyNetwork
from upslope.models.shared import SharedRows
from upslope.recipes.sft import SftTargets, loss
from upslope.rollout.sampler import InProcessSampler
from upslope.text.collation import collate_examples
from upslope.types import Completion, Encoded, Sampling

CONTEXT = 128
JOB = Sampling(12, (2,))


def tokens(found: list[list[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[completion.token_ids for completion in group] for group in found]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_learners_own_step_reaches_the_packed_weights(kind: str, dtype: torch.dtype) -> None:
    """The fused AdamW writes to the weights without raising their version counters."""
    model = tiny.served(kind, dtype=dtype)
    sampler, learner = InProcessSampler(model, CONTEXT), Learner(PolicyNetwork(model), OptimizerSettings(0.01, 9))
    assert sampler.fast is not None
    prompts = tiny.prompts([6, 3])
    for number in range(2):
        batch = collate_examples([Encoded("a", (5, 6, 7, 8 + number), (False, True, True, True))])
        learner.gradient(batch, SftTargets(batch.mask), token_mean(batch.mask), loss)
        learner.step()
        sampler.load(learner.weights(), learner.version)
        found = sampler.sample(prompts, 3, JOB, [40, 41])
        sampler.fast, packed = None, sampler.fast  # by the stock modules
        plain = sampler.sample(prompts, 3, JOB, [40, 41])
        sampler.fast = packed
        gap = max(
            abs(a - b)
            for ours, theirs in zip(found, plain, strict=True)
            for one, other in zip(ours, theirs, strict=True)
            if one.token_ids == other.token_ids
            for a, b in zip(one.logprobs, other.logprobs, strict=True)
        )
        assert gap < (1e-5 if dtype == torch.float32 else 0.1)
        assert dtype != torch.float32 or tokens(found) == tokens(plain)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_every_kind_of_layer_that_is_packed_gives_the_stock_modules_logits(kind: str) -> None:
    options = {"sliding_window": None} if kind == "mistral" else {}
    model = tiny.served(kind, **options)
    step = DecodeStep.of(model)
    assert step is not None
    caches = [SlotCache.allocate(model.config, 3, 12, torch.float32, torch.device("cpu")) for _ in range(2)]
    rows = [[7, 3, 9, 4], [5, 6], [8, 2, 2]]
    with torch.no_grad():
        for cache in caches:
            ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
            lengths = torch.tensor([len(row) for row in rows])
            layout = SharedRows(ids, lengths, torch.arange(3), cache, [[0], [1], [2]])
            model.get_decoder()(
                input_ids=layout.token_ids, position_ids=layout.position_ids, layout=layout, use_cache=False
            )
        for number in range(4):
            positions = torch.tensor([len(row) + number for row in rows])
            ids = torch.tensor([11 + number, 4, 9 - number])
            own, stock = (SlotStep(cache, positions) for cache in caches)
            logits = step.logits(step(ids, own))
            hidden = model.get_decoder()(
                input_ids=ids[:, None], position_ids=stock.position_ids, layout=stock, use_cache=False
            ).last_hidden_state[:, 0]
            torch.testing.assert_close(logits, model.lm_head(hidden), atol=2e-5, rtol=1e-4)


def test_what_the_packed_step_does_not_serve_is_left_to_the_stock_modules() -> None:
    assert DecodeStep.of(tiny.served("gemma3")) is None
    assert DecodeStep.of(tiny.served("llama", dtype=torch.float64)) is None
    assert DecodeStep.of(tiny.served("mistral")) is None  # its window hides old tokens


def test_a_model_that_only_looks_alike_is_left_to_the_stock_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.served("llama")
    layer = model.get_decoder().layers[1]
    stock = layer.mlp.forward
    monkeypatch.setattr(layer.mlp, "forward", lambda x: 1.5 * stock(x))
    assert DecodeStep.of(model) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_are_part_of_the_packed_step_and_the_frozen_weights_are_packed_once(dtype: torch.dtype) -> None:
    model = tiny.served("llama", dtype=dtype)
    adapters.add(model, adapters.Lora(rank=3, alpha=6.0), seed=1)
    sampler = InProcessSampler(model, CONTEXT)
    assert sampler.fast is not None
    packed = sampler.fast.layers[0].qkv.weight
    with torch.no_grad():
        for parameter in adapters.adapter_parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)), alpha=0.05)
    sampler.load([], 1)
    prompts = tiny.prompts([6, 3])
    found = sampler.sample(prompts, 3, JOB, [40, 41])
    assert sampler.fast.layers[0].qkv.weight is packed
    sampler.fast = None
    plain = sampler.sample(prompts, 3, JOB, [40, 41])
    if dtype == torch.float32:
        assert tokens(found) == tokens(plain)
    else:  # the log-probability of a first token that both drew
        first = [(a[0], b[0]) for a, b in zip(found, plain, strict=True)]
        assert all(abs(a.logprobs[0] - b.logprobs[0]) < 0.1 for a, b in first if a.token_ids[0] == b.token_ids[0])
