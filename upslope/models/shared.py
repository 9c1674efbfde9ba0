"""Rows with a common beginning are run once over it: a prompt once for its whole group.

The rows of a unit (``Batch.unit``) share a prefix: their longest common beginning. Causal attention makes its hidden
states the same in every row, so the packed sequence holds each prefix once and then the rest of each row ("tail").
Gradients add up where they flow together. With G completions of c tokens after a prompt of p tokens, G (p + c) tokens
become p + G c.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from upslope.models.attention import PackedRows, attend


def common_prefixes(token_ids: Tensor, lengths: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row: the number of its unit (0, 1, ...) and how many tokens all rows of the unit begin with.

    A row that is alone in its unit is all prefix.
    """
    _, number = torch.unique(unit, return_inverse=True)
    units = int(number.max()) + 1
    first = torch.full((units,), len(unit), device=unit.device).scatter_reduce(
        0, number, torch.arange(len(unit), device=unit.device), "amin"
    )
    same = token_ids == token_ids[first[number]]
    agreed = same.int().cumprod(1).sum(1).minimum(lengths)
    prefix = torch.full((units,), token_ids.shape[1], device=unit.device).scatter_reduce(0, number, agreed, "amin")
    return number, prefix[number]


class SharedRows:
    """Layout of packed rows with shared prefixes: first the prefix of every unit, then the tail of every row.

    ``source[row, position]`` is where a row's token lies in the packed sequence, so ``hidden[source[row, position]]``
    are the hidden states of the rows as if each had been run alone.
    """

    def __init__(
        self, token_ids: Int[Tensor, "rows longest"], lengths: Int[Tensor, " rows"], unit: Int[Tensor, " rows"]
    ) -> None:
        device, longest = token_ids.device, int(lengths.max())
        number, prefix = common_prefixes(token_ids, lengths, unit)
        owners = torch.unique(number, return_inverse=False)
        leader = torch.stack([(number == owner).nonzero()[0, 0] for owner in owners])
        self.prefixes = PackedRows(prefix[leader].tolist(), device)
        begun = int(prefix[leader].sum())
        tails = lengths - prefix
        position = torch.arange(longest, device=device)
        prefix_start = (prefix[leader].cumsum(0) - prefix[leader])[number]
        tail_start = begun + tails.cumsum(0) - tails
        place = torch.where(
            position < prefix[:, None],
            prefix_start[:, None] + position,
            tail_start[:, None] + position - prefix[:, None],
        )
        self.source = torch.where(position < lengths[:, None], place, 0)
        """[rows, longest]; positions beyond a row's end point at token 0, which no token of the row can see."""
        tail_rows = torch.repeat_interleave(torch.arange(len(lengths), device=device), tails)
        tail_positions = torch.cat([self.prefixes.position_ids[0][:0], *self._ranges(prefix, lengths)])
        self.position_ids = torch.cat([self.prefixes.position_ids[0], tail_positions])[None]
        leaders = torch.repeat_interleave(leader, prefix[leader])
        rows = torch.cat([leaders, tail_rows])
        self.token_ids = token_ids[rows, self.position_ids[0]][None]
        self.begun, self.rows_with_tail = begun, (tails > 0).nonzero()[:, 0]
        self._tail_grid(prefix, tails)

    @staticmethod
    def _ranges(prefix: Tensor, lengths: Tensor) -> list[Tensor]:
        return [
            torch.arange(a, b, device=prefix.device) for a, b in zip(prefix.tolist(), lengths.tolist(), strict=True)
        ]

    def _tail_grid(self, prefix: Tensor, tails: Tensor) -> None:
        """Queries of the tails as a padded grid [rows with a tail, longest tail], and what each of them may see."""
        kept = self.rows_with_tail
        self.longest_tail = int(tails.max()) if len(kept) else 0
        offset = torch.arange(self.longest_tail, device=prefix.device)
        real = offset < tails[kept, None]
        starts = (tails.cumsum(0) - tails)[kept]
        self.query_place = torch.where(real, starts[:, None] + offset, 0).reshape(-1)
        self.answer_place = real.reshape(-1).nonzero()[:, 0]
        at = (prefix[kept, None] + offset)[:, :, None]
        self.gap = at - torch.arange(self.source.shape[1], device=prefix.device)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None
    ) -> Tensor:
        q, k, v = query[:, :, : self.begun], key[:, :, : self.begun], value[:, :, : self.begun]
        begun = self.prefixes.attend(layer, q, k, v, scaling, window)
        if not len(self.rows_with_tail):
            return begun
        places = self.source[self.rows_with_tail].reshape(-1)
        count, width = len(self.rows_with_tail), query.shape[-1]

        def grid(packed: Tensor, index: Tensor) -> Tensor:
            return packed[0].index_select(1, index).reshape(packed.shape[1], count, -1, width).transpose(0, 1)

        tail = grid(query[:, :, self.begun :], self.query_place)
        keys, values = grid(key, places), grid(value, places)
        seen = self.gap >= 0 if window is None else (self.gap >= 0) & (self.gap < window)
        out = attend(tail, keys, values, seen[:, None], scaling)
        ended = out.transpose(1, 2).reshape(-1, tail.shape[1], width).index_select(0, self.answer_place)
        return torch.cat([begun, ended[None]], 1)
