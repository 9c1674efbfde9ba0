"""Exact mode: what is computed for a token does not depend, to the last bit, on what is computed beside it.

A matrix product rounds differently for another number of rows. So a sampler, which works on one token of each row at a
time, and a learner, which works on all tokens of some rows, give log-probabilities that differ by rounding. Here every
product is made of tiles of one shape, filled up with zeros: linear layers of 64 rows; attention of a block of 64
positions over the keys up to the end of that block. A row of a tile has the same bits whatever stands in the others,
and sampler and learner agree exactly in float32 and float64, at about twice the time: a mode for checking. Measured on
CPUs; nothing is promised of other devices.

Source: batch-invariant inference (He et al., "Defeating Nondeterminism in LLM Inference", 2025), here by fixed tiles.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from upslope.models.head import chosen

TILE = 64
"""Rows of a product."""


class TiledLinear(nn.Linear):
    """``nn.Linear`` in products of ``TILE`` rows."""

    def forward(self, input: Tensor) -> Tensor:
        """x W^T + b"""
        rows = input.reshape(-1, input.shape[-1])
        parts = [linear(part, self.weight, self.bias) for part in tiles(rows)]
        return torch.cat(parts)[: len(rows)].reshape(*input.shape[:-1], -1)


def tiles(rows: Float[Tensor, "rows width"]) -> tuple[Tensor, ...]:
    """The rows in pieces of ``TILE``, zeros at the end of the last."""
    return pad(rows, (0, 0, 0, -len(rows) % TILE)).split(TILE)


def make_exact(model: Any) -> None:
    """Let the model, and copies that are made of it, compute in tiles: its linear layers and our attention."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = TiledLinear
    model.get_decoder().tiled = True


def chosen_in_tiles(
    hidden: Float[Tensor, "n width"], weight: Float[Tensor, "vocab width"], ids: Int[Tensor, " n"],
    support: Int[Tensor, "n choices"] | None = None, temperature: float = 1.0,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:  # fmt: skip
    """``head.chosen`` in products of ``TILE`` rows."""
    more = -len(ids) % TILE
    support = None if support is None else pad(support, (0, 0, 0, more), value=-1)
    filled = pad(hidden, (0, 0, 0, more)), weight, pad(ids, (0, more))
    logprob, entropy = chosen(*filled, support, temperature, TILE)
    return logprob[: len(ids)], entropy[: len(ids)]


def is_exact(decoder: Any) -> bool:
    """Whether ``make_exact`` was called on the decoder's model."""
    return bool(getattr(decoder, "tiled", False))


def attend_in_tiles(
    query: Float[Tensor, "heads new width"],
    key: Float[Tensor, "kv_heads span width"],
    value: Float[Tensor, "kv_heads span width"],
    position: Int[Tensor, " new"],
    scaling: float,
    window: int | None = None,
) -> Float[Tensor, "heads new width"]:
    """softmax(q k^T scaling) v of one row: queries at ``position`` over the row's tokens from its first on.

    What a query of a block of 64 positions sees lies in the keys up to the end of its block; a product has the queries
    of one block, each at its place, of all heads that share a key head.
    """
    heads, _, width = query.shape
    shared = heads // len(key)
    out = torch.zeros_like(query)
    for block in (position // TILE).unique().tolist():
        asked = (position // TILE == block).nonzero()[:, 0]
        slots = position[asked] % TILE
        span = (block + 1) * TILE
        place = block * TILE + torch.arange(TILE, device=query.device)
        gap = place[:, None] - torch.arange(span, device=query.device)
        hidden = (gap < 0) if window is None else (gap < 0) | (gap >= window)
        filled = query.new_zeros(heads, TILE, width).index_copy(1, slots, query[:, asked])
        keys, values = (pad(kept[:, :span], (0, 0, 0, max(0, span - kept.shape[1]))) for kept in (key, value))
        answers = []
        for head, (own_keys, own_values) in enumerate(zip(keys.contiguous(), values.contiguous(), strict=True)):
            folded = filled[head * shared : (head + 1) * shared].reshape(-1, width)
            scores = ((folded * scaling) @ own_keys.T).view(shared, TILE, span)
            weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
            answers.append((weights.view(-1, span) @ own_values).view(shared, TILE, width))
        out = out.index_copy(1, asked, torch.cat(answers)[:, slots])
    return out
