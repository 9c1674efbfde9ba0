"""The two networks of the language recipes, over a stock decoder: a policy and a critic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from upslope.models.attention import PackedRows
from upslope.models.head import chosen
from upslope.types import Batch, PolicyEvaluation, ValueEvaluation


def _hidden(decoder: Any, batch: Batch, drop_last: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states of the packed rows: [tokens, width], and each token's row and position."""
    lengths = batch.lengths - 1 if drop_last else batch.lengths
    layout = PackedRows(lengths.tolist(), batch.token_ids.device)
    rows = torch.repeat_interleave(torch.arange(len(batch), device=lengths.device), lengths)
    positions = layout.position_ids[0]
    out = decoder(
        input_ids=batch.token_ids[rows, positions][None],
        position_ids=layout.position_ids,
        use_cache=False,
        layout=layout,
    )
    return out.last_hidden_state[0], rows, positions


class PolicyNetwork(nn.Module):
    """pi(token | text so far), of a causal language model; scores the masked targets of a batch."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> PolicyEvaluation:
        """``logprobs`` and ``entropy`` [batch, time] in nats, at the batch's temperature and support; 0 where masked."""
        # The last token of a row predicts nothing.
        hidden, rows, positions = _hidden(self.model.get_decoder(), batch, drop_last=True)
        wanted = batch.mask[rows, positions]
        rows, positions = rows[wanted], positions[wanted]
        logprob, entropy = chosen(
            hidden[wanted],
            self.model.get_output_embeddings().weight,
            batch.targets[rows, positions],
            None if batch.support is None else batch.support[rows, positions],
            batch.temperature,
        )
        empty = logprob.new_zeros(batch.mask.shape)
        place = (rows, positions)
        return PolicyEvaluation(empty.index_put(place, logprob), empty.index_put(place, entropy))


class ValueNetwork(nn.Module):
    """V(text so far): a decoder and a scalar head in float32, zero at the start (so V = 0 before training)."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.decoder = decoder
        weight = next(decoder.parameters())
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.head = nn.Linear(decoder.config.hidden_size, 1, dtype=dtype, device=weight.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: Batch) -> ValueEvaluation:
        """``values[b, t]`` before target t, and the value after each row's last token."""
        hidden, rows, positions = _hidden(self.decoder, batch, drop_last=False)
        flat = self.head(hidden.to(self.head.weight.dtype))[:, 0]
        last = positions == batch.lengths[rows] - 1
        wanted = ~last
        wanted[~last] = batch.mask[rows[~last], positions[~last]]
        values = flat.new_zeros(batch.mask.shape).index_put((rows[wanted], positions[wanted]), flat[wanted])
        return ValueEvaluation(values, flat[last])
