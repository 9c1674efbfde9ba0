"""Rows of tokens to a ``Batch``: padded on the right and shifted once, here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from upslope.types import Batch, Encoded, EncodedPair, Rollout


def pad(rows: Sequence[Sequence[float | int | bool]], dtype: torch.dtype, length: int | None = None) -> Tensor:
    """[rows, longest]: right-padded with zeros."""
    out = torch.zeros(len(rows), max(map(len, rows), default=0) if length is None else length, dtype=dtype)
    for index, row in enumerate(rows):
        out[index, : len(row)] = torch.as_tensor(row, dtype=dtype)
    return out


def collate_examples(rows: Sequence[Encoded]) -> Batch:
    """Supervised rows: the mask is what is trainable; each row is a unit of its own."""
    return Batch(
        token_ids=pad([row.token_ids for row in rows], torch.long),
        lengths=torch.tensor([len(row.token_ids) for row in rows]),
        mask=pad([row.trainable for row in rows], torch.bool)[:, 1:],
        unit=torch.arange(len(rows)),
    )


def collate_pairs(pairs: Sequence[EncodedPair]) -> Batch:
    """Preferences: rows 2i and 2i + 1 are the chosen and the rejected answer of pair i, which is a unit."""
    batch = collate_examples([row for pair in pairs for row in (pair.chosen, pair.rejected)])
    return replace(batch, unit=batch.unit // 2)


def collate_texts(texts: Sequence[Sequence[int]], unit: Sequence[int]) -> Batch:
    """Whole texts to be scored: no token of them is a target."""
    token_ids = pad(texts, torch.long)
    return Batch(
        token_ids=token_ids,
        lengths=torch.tensor([len(row) for row in texts]),
        mask=torch.zeros(len(texts), token_ids.shape[1] - 1, dtype=torch.bool),
        unit=torch.tensor(list(unit)),
    )


def collate_rollouts(rollouts: Sequence[Rollout]) -> Batch:
    """Episodes: the mask is what the policy chose; a group is a unit. All must have been sampled at one temperature."""
    temperatures = {rollout.temperature for rollout in rollouts}
    if len(temperatures) != 1:
        raise ValueError(f"a batch has one sampling temperature, got {sorted(temperatures)}")
    token_ids = pad([rollout.token_ids for rollout in rollouts], torch.long)
    return Batch(
        token_ids=token_ids,
        lengths=torch.tensor([len(rollout.token_ids) for rollout in rollouts]),
        mask=pad([rollout.action_mask for rollout in rollouts], torch.bool)[:, 1:],
        unit=torch.tensor([rollout.group for rollout in rollouts]),
        temperature=temperatures.pop(),
        support=_support(rollouts, token_ids.shape[1] - 1),
    )


def _support(rollouts: Sequence[Rollout], time: int) -> Tensor | None:
    if all(rollout.support is None for rollout in rollouts):
        return None
    listed = [row.support or () for row in rollouts]
    choices = max((len(ids) for row in listed for ids in row if ids), default=0)
    if not choices:
        return None
    out = torch.full((len(rollouts), time, choices), -1, dtype=torch.long)
    for row, places in enumerate(listed):
        for place, ids in enumerate(places):
            if ids is not None and place > 0:
                out[row, place - 1, : len(ids)] = torch.tensor(ids)
    return out


def per_target(rows: Sequence[Sequence[float]], time: int) -> Float[Tensor, "batch time"]:
    """Numbers a token ([L], as in ``Rollout``) to numbers a target ([batch, time]): shifted like the batch."""
    return pad([row[1:] for row in rows], torch.float32, time)
