"""The one attention function of sampler and learner, registered with stock Hugging Face models.

A model loaded with ``attn_implementation="upslope"`` calls ``attention`` in every layer with rotated queries and keys,
and with the ``layout`` that its caller passed to ``model(...)``. The layout knows how the tokens lie:

- ``PackedRows``: ragged rows packed into one sequence without padding;
- ``SharedRows`` (``models.shared``): the same with common beginnings held once (training, evaluation, prefill);
- ``SlotStep``: one new token for each running completion, whose keys and values lie in slots (``SlotCache``).

Queries, keys and values are padded only inside attention, on the right, where a causal mask hides the padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from upslope.models.exact import attend_in_tiles

NAME = "upslope"

UNSUPPORTED = ("softcap", "s_aux", "logits_soft_cap")
"""Keyword arguments of attentions that compute something else (soft caps, sinks)."""


@runtime_checkable
class Layout(Protocol):
    """How the tokens of a forward pass lie, and so what each may attend to."""

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "1 heads tokens width"],
        key: Float[Tensor, "1 kv_heads tokens width"],
        value: Float[Tensor, "1 kv_heads tokens width"],
        scaling: float,
        window: int | None,
    ) -> Float[Tensor, "1 tokens heads width"]: ...


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    layout: Layout | None = None,
    **other: Any,
) -> tuple[Tensor, None]:
    """Entry point for ``AttentionInterface``: hands over to the layout. Dropout is off by design and ignored."""
    unknown = [name for name in UNSUPPORTED if other.get(name) is not None]
    if unknown:
        raise NotImplementedError(f"attention with {', '.join(unknown)} is not served")
    if layout is None or attention_mask is not None:
        raise ValueError("a model with upslope's attention is called with layout= and without a mask")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return layout.attend(int(module.layer_idx), query, key, value, scale, sliding_window), None  # type: ignore[arg-type]


AttentionInterface.register(NAME, attention)

SHORT = 384
"""Up to so many keys (and for a single new token always), plain matrix products beat the CPU's flash kernel, whose
backward pass takes 10 to 30 times as long on a few dozen bfloat16 tokens."""


def attend(
    query: Float[Tensor, "rows heads new width"],
    key: Float[Tensor, "rows kv_heads span width"],
    value: Float[Tensor, "rows kv_heads span width"],
    seen: Bool[Tensor, "#rows 1 new span"] | None,
    scaling: float,
) -> Float[Tensor, "rows heads new width"]:
    """softmax(q k^T scaling) v over the keys that are ``seen`` (None: causal), scores in at least float32.

    The query heads that share a key head become rows of one product, so keys and values are not repeated.
    """
    rows, heads, new, width = query.shape
    shared = heads // key.shape[1]
    short = query.device.type == "cpu" and (new == 1 or key.shape[2] <= SHORT)
    if seen is None and not short:
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    if seen is None:
        seen = torch.ones(1, 1, new, new, dtype=torch.bool, device=query.device).tril()
    folded = query.reshape(rows, key.shape[1], shared * new, width)
    seen = seen.repeat(1, 1, shared, 1)
    if short:
        wide = torch.promote_types(query.dtype, torch.float32)
        scores = (folded.to(wide) * scaling) @ key.to(wide).transpose(-1, -2)
        out = scores.masked_fill(~seen, float("-inf")).softmax(-1).to(value.dtype) @ value
    else:
        out = scaled_dot_product_attention(folded, key, value, attn_mask=seen, scale=scaling)
    return out.reshape(rows, heads, new, width)


@dataclass(eq=False)
class SlotCache:
    """Keys and values of running completions: one tensor [slots, kv_heads, capacity, width] each a layer."""

    keys: list[Tensor]
    values: list[Tensor]

    @classmethod
    def allocate(cls, config: Any, slots: int, capacity: int, dtype: torch.dtype, device: torch.device) -> SlotCache:
        """Room for ``slots`` rows of ``capacity`` tokens."""
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (slots, heads, capacity, width)
        # Zeros, not garbage: a masked score times NaN would still be NaN.
        make = lambda kind: [torch.zeros(shape, dtype=kind, device=device) for _ in range(config.num_hidden_layers)]  # noqa: E731
        # Scores are computed in float32, so keys are read as such: on a CPU they are kept so, converted once.
        return cls(make(torch.promote_types(dtype, torch.float32) if device.type == "cpu" else dtype), make(dtype))

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` positions of one slot over another."""
        for tensor in (*self.keys, *self.values):
            tensor[target, :, :length] = tensor[source, :, :length]


class PackedRows:
    """Rows of ``lengths`` tokens packed one after the other; token i of a row sees tokens 0..i of that row."""

    def __init__(self, lengths: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.lengths = list(lengths)
        self.longest = max(self.lengths)
        self.even = all(length == self.longest for length in self.lengths)
        starts = [row * self.longest for row in range(len(self.lengths))]
        places = [torch.arange(length) + start for length, start in zip(self.lengths, starts, strict=True)]
        self.place = torch.cat(places).to(device)
        """[tokens]: where packed token i lies in the padded grid, row-major [rows, longest]."""
        self.position_ids: Int[Tensor, "1 tokens"] = torch.cat([torch.arange(n) for n in self.lengths])[None].to(device)

    def _pad(self, packed: Float[Tensor, "1 heads tokens width"]) -> Float[Tensor, "rows heads longest width"]:
        tokens = packed[0].transpose(0, 1)
        if not self.even:
            grid = tokens.new_zeros(len(self.lengths) * self.longest, *tokens.shape[1:])
            tokens = grid.index_copy(0, self.place, tokens)
        return tokens.reshape(len(self.lengths), self.longest, *tokens.shape[1:]).transpose(1, 2)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None
    ) -> Tensor:
        q, k, v = self._pad(query), self._pad(key), self._pad(value)
        seen = None
        if window is not None and window < self.longest:
            position = torch.arange(self.longest, device=q.device)
            gap = position[:, None] - position
            seen = ((gap >= 0) & (gap < window))[None, None]
        out = attend(q, k, v, seen, scaling)
        tokens = out.transpose(1, 2).reshape(-1, *out.shape[1:2], out.shape[-1])
        return (tokens if self.even else tokens.index_select(0, self.place))[None]


class SlotStep:
    """One new token for each of the first ``len(positions)`` slots; row b has ``positions[b]`` tokens before it."""

    def __init__(self, cache: SlotCache, positions: Int[Tensor, " rows"], tiled: bool = False) -> None:
        self.cache, self.positions, self.tiled = cache, positions, tiled
        self.rows = torch.arange(len(positions), device=positions.device)
        self.span = int(positions.max()) + 1
        self._masks: dict[int | None, Tensor] = {}

    @property
    def position_ids(self) -> Int[Tensor, "rows 1"]:
        return self.positions[:, None]

    def _mask(self, window: int | None) -> Tensor:
        if window not in self._masks:
            gap = self.positions[:, None] - torch.arange(self.span, device=self.positions.device)[None]
            seen = gap >= 0 if window is None else (gap >= 0) & (gap < window)
            self._masks[window] = seen[:, None, None, :]
        return self._masks[window]

    def places(self) -> Int[Tensor, " rows_x_kv_heads"]:
        """Where each new token lies, head by head, in a layer's keys seen as [slots x heads x capacity, width]."""
        _, heads, capacity, _ = self.cache.keys[0].shape
        own = (self.rows[:, None] * heads + torch.arange(heads, device=self.rows.device)) * capacity
        return (own + self.positions[:, None]).flatten()

    def bias(self) -> Float[Tensor, "rows_x_kv_heads 1 span"]:
        """What is added to the scores: 0 at the tokens up to the new one, -inf behind it."""
        heads, dtype = self.cache.keys[0].shape[1], self.cache.keys[0].dtype
        bias = torch.zeros(len(self.rows), 1, self.span, dtype=dtype, device=self.rows.device)
        return bias.masked_fill_(~self._mask(None)[:, 0], float("-inf")).repeat_interleave(heads, 0)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None
    ) -> Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self.rows, :, self.positions] = key[:, :, 0].to(keys.dtype)
        values[self.rows, :, self.positions] = value[:, :, 0]
        count = len(self.rows)
        k, v = keys[:count, :, : self.span], values[:count, :, : self.span]
        if self.tiled:
            each = zip(query, k, v, self.positions[:, None], strict=True)
            return torch.stack([attend_in_tiles(*row, scaling, window) for row in each]).transpose(1, 2)
        return attend(query, k, v, self._mask(window), scaling).transpose(1, 2)
