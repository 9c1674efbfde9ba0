"""Batches, networks and stock forward passes that the learner's tests compare with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from tests import tiny
from upslope.learner.learner import Learner
from upslope.learner.optimizer import OptimizerSettings
from upslope.models import attention, head, networks
from upslope.types import Batch

LENGTHS = (9, 17, 5, 30, 23, 12)
UNITS = (4, 4, 0, 0, 7, 7)


def batch(
    lengths: Sequence[int] = LENGTHS, units: Sequence[int] | None = UNITS, seed: int = 0, vocab: int = tiny.VOCAB
) -> Batch:
    """Ragged random rows. Rows of a unit share a prompt of 4 tokens; then targets, some rows with a hole in them."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    mask = torch.zeros(len(lengths), max(lengths) - 1, dtype=torch.bool)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(0, vocab, (length,), generator=draw)
        mask[row, 3 : length - 1] = True
        mask[row, 4 : 4 + (row % 2)] = False
        if units is not None:
            first = list(units).index(units[row])
            ids[row, : min(4, length)] = ids[first, : min(4, length)]
    unit = torch.arange(len(lengths)) if units is None else torch.tensor(units)
    return Batch(ids, torch.tensor(lengths), mask, unit, temperature=0.7)


def ours(model: Any) -> Any:
    """The model as a run prepares it."""
    model.set_attn_implementation(attention.NAME)
    return model


def policy(model: Any, tokens: int = 4096, **settings: Any) -> Learner[Any]:
    return Learner(
        networks.PolicyNetwork(ours(model)), OptimizerSettings(**{"lr": 1e-2, "steps": 10, **settings}), tokens
    )


def gradients(learner: Learner[Any]) -> dict[str, Tensor]:
    """The accumulated gradient, by name."""
    return {name: found.clone() for name, found in learner.optimizer.gradients().items()}


def distance(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Largest relative difference of a parameter's gradient."""
    assert found.keys() == wanted.keys() and found
    return max(float((found[name] - wanted[name]).norm() / wanted[name].norm()) for name in wanted)


def stock_rows(model: Any, rows: Batch) -> list[tuple[int, Tensor]]:
    """(row, log-probabilities [time, vocab] at the batch's temperature) by the stock model, one plain forward a row."""
    found = []
    for row, length in enumerate(rows.lengths.tolist()):
        logits = model(input_ids=rows.token_ids[row : row + 1, :length], use_cache=False).logits[0, :-1]
        found.append((row, (logits / rows.temperature).log_softmax(-1)))
    return found


def stock_gradients(network: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Autograd's gradient, by name."""
    named = dict(network.named_parameters())
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: grad for name, grad in zip(named, grads, strict=True) if grad is not None}


def patch_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' RMSNorm computes in float32 even in a double model; from here on it stays in the model's dtype."""

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        scale = torch.rsqrt(hidden_states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * (hidden_states * scale)

    for norm in (LlamaRMSNorm, MistralRMSNorm, Qwen3RMSNorm):
        monkeypatch.setattr(norm, "forward", forward)


@pytest.fixture
def native_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every RMSNorm computes in the model's dtype."""
    patch_norms(monkeypatch)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head works in chunks of 7 rows, so that a tiny batch has many."""
    monkeypatch.setattr(networks, "chosen", partial(head.chosen, chunk=7))
