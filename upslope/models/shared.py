"""What rows begin with in common is run once: a prompt once for its group, the system's words once for the whole
batch; in training, and where a sampler reads its prompts.

Causal attention makes the hidden states of a common beginning the same in every row. So the packed sequence holds a
shallow tree: what all rows begin with (the root), then what the rows of each unit (``Batch.unit``) begin with, then
the rest of each row. A token attends to its own stretch up to itself and to the stretches above. Gradients add up
where they flow together. With G completions of c tokens after a prompt of p tokens, G (p + c) tokens become p + G c,
or fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from upslope.models.attention import SlotCache, attend
from upslope.models.exact import attend_in_tiles

SHORTEST_ROOT = 4
"""A common beginning of all rows is split off from so many tokens on: below that it saves less than it costs."""


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


@dataclass(frozen=True, eq=False)
class Level:
    """Stretches ``begin[i] .. end[i]`` of the rows ``rows[i]``, as a padded grid of queries over the keys of those
    rows.

    ``query_place`` (flat grid) are the packed places of the queries, ``answer_place`` the grid's real ones in packed
    order, ``key_place`` [stretches, span] the packed places of the rows' tokens, ``gap`` how far back each key lies.
    """

    query_place: Int[Tensor, " grid"]
    answer_place: Int[Tensor, " tokens"]
    key_place: Int[Tensor, "stretches span"]
    gap: Int[Tensor, "stretches new span"]
    plain: bool

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None, tiled: bool
    ) -> Tensor:
        """[tokens of this level, heads, width]"""
        count, width = len(self.key_place), query.shape[-1]

        def grid(packed: Tensor, places: Tensor) -> Tensor:
            chosen = packed[0].index_select(1, places.reshape(-1))
            return chosen.reshape(packed.shape[1], count, -1, width).transpose(0, 1)

        seen: Tensor | None = None
        if window is not None and window < self.key_place.shape[1]:
            seen = ((self.gap >= 0) & (self.gap < window))[:, None]
        elif not self.plain:
            seen = (self.gap >= 0)[:, None]
        keys, values = grid(key, self.key_place), grid(value, self.key_place)
        queries = grid(query, self.query_place)
        if tiled:
            each = zip(queries, keys, values, self.gap[:, :, 0], strict=True)
            out = torch.stack([attend_in_tiles(*row, scaling, window) for row in each])
        else:
            out = attend(queries, keys, values, seen, scaling)
        return out.transpose(1, 2).reshape(-1, out.shape[1], width).index_select(0, self.answer_place)


class SharedRows:
    """Layout of packed rows whose common beginnings are held once.

    ``source[row, position]`` is where a row's token lies in the packed sequence, so ``hidden[source[row,
    position]]`` are the hidden states of the rows as if each had been run alone. With ``cache``, the keys and values of
    row r are also written to the slots ``slots[r]``. ``tiled``: see ``models.exact``.
    """

    def __init__(
        self,
        token_ids: Int[Tensor, "rows longest"],
        lengths: Int[Tensor, " rows"],
        unit: Int[Tensor, " rows"],
        cache: SlotCache | None = None,
        slots: Sequence[Sequence[int]] = (),
        tiled: bool = False,
    ) -> None:
        device = token_ids.device
        everyone = torch.arange(len(lengths), device=device)
        number, prefix = common_prefixes(token_ids, lengths, unit)
        leader = torch.full((int(number.max()) + 1,), len(unit), device=device).scatter_reduce(
            0, number, everyone, "amin"
        )
        _, root = common_prefixes(token_ids, lengths, torch.zeros_like(unit))
        if len(leader) == 1 or int(root[0]) < SHORTEST_ROOT:
            root = torch.zeros_like(root)
        stretches = [
            (everyone[:1], root[:1] * 0, root[:1]),
            (leader, root[leader], prefix[leader]),
            (everyone, prefix, lengths),
        ]
        position = torch.arange(int(lengths.max()), device=device)
        self.source = torch.zeros(len(lengths), len(position), dtype=torch.long, device=device)
        """[rows, longest]; positions beyond a row's end point at token 0, which no token of the row can see."""
        start, order = 0, []
        for level, (rows, begin, end) in enumerate(stretches):
            sizes = end - begin
            place = (start + sizes.cumsum(0) - sizes - begin)[:, None] + position
            owner = [torch.zeros_like(number), number, everyone][level]
            inside = (position >= begin[owner, None]) & (position < end[owner, None])
            self.source = torch.where(inside, place[owner], self.source)
            real = (position >= begin[:, None]) & (position < end[:, None])
            order.append(torch.stack([rows[:, None].expand_as(real)[real], position.expand_as(real)[real]]))
            start += int(sizes.sum())
        taken, self.position_ids = torch.cat(order, 1)[0], torch.cat(order, 1)[1][None]
        self.token_ids = token_ids[taken, self.position_ids[0]][None]
        self.levels = [self._level(*stretch) for stretch in stretches if bool((stretch[2] > stretch[1]).any())]
        self.cache, self.tiled = cache, tiled
        self.slots = torch.tensor([slot for several in slots for slot in several], device=device)
        self.owner = torch.tensor([row for row, several in enumerate(slots) for _ in several], device=device)
        """[slots used]: the row whose keys and values a slot gets."""

    def _level(self, rows: Tensor, begin: Tensor, end: Tensor) -> Level:
        kept = end > begin
        rows, begin, end = rows[kept], begin[kept], end[kept]
        span = int(end.max())
        at = begin[:, None] + torch.arange(int((end - begin).max()), device=rows.device)
        real = at < end[:, None]
        query_place = torch.where(real, self.source[rows[:, None], at.clamp(max=self.source.shape[1] - 1)], 0)
        return Level(
            query_place.reshape(-1),
            real.reshape(-1).nonzero()[:, 0],
            self.source[rows, :span],
            at[:, :, None] - torch.arange(span, device=rows.device),
            plain=not bool(begin.any()),
        )

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None
    ) -> Tensor:
        if self.cache is not None:
            # Behind a row's end lies some token of another row, which nothing sees before it is overwritten.
            for kept, packed in ((self.cache.keys[layer], key[0]), (self.cache.values[layer], value[0])):
                grid = packed[:, self.source[self.owner]].transpose(0, 1).to(kept.dtype)
                kept[self.slots, :, : grid.shape[2]] = grid
        given = (query, key, value, scaling, window, self.tiled)
        return torch.cat([level.attend(*given) for level in self.levels])[None]
