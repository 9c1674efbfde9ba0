"""Tiny models with an adapter that says something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests import tiny
from upslope.models import adapters, loading
from upslope.models.adapters import Lora
from upslope.models.loading import LanguageModel
from upslope.models.networks import PolicyNetwork
from upslope.types import Batch


def disturb(model: Any, seed: int = 7) -> None:
    """B is 0 at the start, and so is A's gradient: as after some training."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in adapters.layers(model).values():
            weight = layer.lora_B[adapters.NAME].weight
            weight.copy_(0.3 * torch.randn(weight.shape, generator=source))


def adapted(
    folder: Path, dtype: torch.dtype = torch.float32, checkpointing: bool = False, **lora: Any
) -> LanguageModel:
    """The model of a directory with an adapter of rank 4 that changes what it says."""
    loaded = tiny.load(folder, dtype, checkpointing)
    adapters.add(loaded.model, Lora(**{"rank": 4, "alpha": 8.0, **lora}), seed=3)
    disturb(loaded.model)
    return loaded


def plain(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """A directory as plain transformers opens it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def with_peft(base: Path, adapter: Path, dtype: torch.dtype = torch.float32, trainable: bool = False) -> Any:
    """A base and an adapter as plain peft opens them."""
    return PeftModel.from_pretrained(plain(base, dtype), str(adapter), is_trainable=trainable).eval()


def saved(loaded: LanguageModel, folder: Path) -> Path:
    loading.save(loaded, folder, "# card\n")
    return folder


def rows(seed: int = 3) -> Batch:
    """Ragged rows, everything but the beginnings scored."""
    found = tiny.prompts([23, 31, 9, 12], seed=seed)
    longest = max(map(len, found))
    lengths = torch.tensor([len(row) for row in found])
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in found])
    time = torch.arange(longest - 1)
    mask = (time >= 3) & (time < lengths[:, None] - 1)
    return Batch(ids, lengths, mask, torch.arange(4))


def stock_logprobs(model: Any, batch: Batch) -> torch.Tensor:
    """What plain modules say of the batch's targets, row by row; 0 where nothing is scored."""
    out = torch.zeros(batch.mask.shape, dtype=torch.promote_types(next(model.parameters()).dtype, torch.float32))
    for index, (ids, length) in enumerate(zip(batch.token_ids, batch.lengths.tolist(), strict=True)):
        row = ids[:length]
        out[index, : length - 1] = tiny.stock_log_probs(model, row).gather(-1, row[1:, None])[:, 0]
    return out * batch.mask


def logprobs(model: Any, batch: Batch) -> torch.Tensor:
    """What our forward pass says of them."""
    with torch.no_grad():
        return PolicyNetwork(model)(batch).logprobs


def storages(*modules: Any) -> dict[int, int]:
    """Bytes of every distinct piece of memory that these modules' parameters lie in."""
    return {
        weight.untyped_storage().data_ptr(): weight.untyped_storage().nbytes()
        for module in modules
        for weight in module.parameters()
    }
