"""Is our forward pass the model's own? Compared at load, on the model in hand, and refused by name where it is not.

A registered attention sees what a stock attention passes to it. What a model computes beside that (capped or scaled
logits, windows that are not passed on, linear attention, sinks) would be lost without an error; a comparison finds it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from upslope.errors import InputError
from upslope.models import attention
from upslope.models.attention import PackedRows
from upslope.models.head import chosen

SHORT = 24
"""Length of the comparison's rows, where no sliding window asks for more."""
BEYOND = 8
"""Tokens beyond the sliding window, compared on their own too: a difference would vanish among thousands of others."""


def window_of(config: Any) -> int:
    """Width of a model's sliding window; 0: it has none."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    used = kinds is None or "sliding_attention" in kinds
    return int(window) if window and used and getattr(config, "use_sliding_window", True) else 0


def _stock(model: Any, rows: list[Tensor], implementation: str) -> Tensor:
    model.set_attn_implementation(implementation)
    found = []
    for row in rows:
        logits = model(input_ids=row[None], use_cache=False).logits[0, :-1]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        found.append(logits.log_softmax(-1).gather(-1, row[1:, None])[:, 0])
    return torch.cat(found)


def _ours(model: Any, rows: list[Tensor]) -> Tensor:
    model.set_attn_implementation(attention.NAME)
    layout = PackedRows([len(row) for row in rows], rows[0].device)
    ids = torch.cat(rows)
    out = model.get_decoder()(input_ids=ids[None], position_ids=layout.position_ids, use_cache=False, layout=layout)
    wanted = torch.cat([torch.arange(len(row)) < len(row) - 1 for row in rows]).to(ids.device)
    targets = torch.cat([row[1:] for row in rows])
    return chosen(out.last_hidden_state[0][wanted], model.get_output_embeddings().weight, targets)[0]


@torch.no_grad()
def difference(model: Any) -> tuple[float, float]:
    """Mean |difference of log-probability| of random tokens, ours against stock, and stock's own (two kernels).

    Two ragged rows, one of them longer than any sliding window of the model. The mean is over all tokens or over the
    last ones, which lie beyond the window: whichever speaks more against us.
    """
    config = model.config.get_text_config()
    generator = torch.Generator().manual_seed(0)
    positions = int(getattr(config, "max_position_embeddings", 1 << 30))
    lengths = [SHORT - 7, min(max(SHORT, window_of(config) + BEYOND), positions)]
    device = model.get_input_embeddings().weight.device
    rows = [torch.randint(0, config.vocab_size, (length,), generator=generator).to(device) for length in lengths]
    before = model.config._attn_implementation
    try:
        stock = _stock(model, rows, "sdpa")
        noise = (_stock(model, rows, "eager") - stock).abs()
        ours = (_ours(model, rows) - stock).abs()
        parts = [slice(None), slice(-BEYOND, None)]
        return max(
            ((float(ours[part].mean()), float(noise[part].mean())) for part in parts),
            key=lambda pair: pair[0] - 2 * pair[1],
        )
    finally:
        model.set_attn_implementation(before)


def verify(model: Any, name: str) -> None:
    """Raise ``InputError`` where our forward differs from the stock one by more than rounding.

    The limit is twice the difference between two of transformers' own attention kernels, plus the resolution of the
    dtype: it needs no tuning by model or dtype.
    """
    kind = type(model).__name__
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        problem = f"{name} ({kind}) has an output head with a bias, which is not served"
        raise InputError("model.name", problem, _ALTERNATIVE)
    try:
        ours, noise = difference(model)
    except (NotImplementedError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        problem = f"{name} ({kind}) cannot be served by upslope's attention: {error}"
        raise InputError("model.name", problem, _ALTERNATIVE) from error
    limit = 2 * noise + 8 * torch.finfo(model.dtype).eps
    if not ours <= limit:
        raise InputError(
            "model.name",
            f"{name} ({kind}) computes something that upslope's attention does not: log-probabilities differ by "
            f"{ours:.2e} on average (limit {limit:.2e})",
            _ALTERNATIVE,
        )


_ALTERNATIVE = "use a Llama, Mistral, Qwen2, Qwen3, SmolLM or Gemma 3 kind of model"
