"""The two networks of the language recipes, over a stock decoder: a policy and a critic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from upslope.models.exact import chosen_in_tiles, is_exact
from upslope.models.head import chosen
from upslope.models.shared import SharedRows
from upslope.types import Batch, PolicyEvaluation, ValueEvaluation


def _hidden(decoder: Any, batch: Batch, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states [tokens, width] of the rows' first ``ends`` tokens, packed, and where each token lies in them."""
    layout = SharedRows(batch.token_ids, ends, batch.unit, tiled=is_exact(decoder))
    out = decoder(input_ids=layout.token_ids, position_ids=layout.position_ids, use_cache=False, layout=layout)
    return out.last_hidden_state[0], layout.source


class PolicyNetwork(nn.Module):
    """pi(token | text so far), of a causal language model; scores the masked targets of a batch."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> PolicyEvaluation:
        """``logprobs`` and ``entropy`` [batch, time] in nats, at the batch's temperature and support.

        Both are 0 where ``batch.mask`` is False.
        """
        # The last token of a row predicts nothing.
        decoder = self.model.get_decoder()
        hidden, source = _hidden(decoder, batch, batch.lengths - 1)
        rows, positions = batch.mask.nonzero(as_tuple=True)
        logprob, entropy = (chosen_in_tiles if is_exact(decoder) else chosen)(
            hidden[source[rows, positions]],
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
        """``values[b, t]`` before target t (0 where not ``batch.mask``), and the value after each row's last token."""
        hidden, source = _hidden(self.decoder, batch, batch.lengths)
        flat = self.head(hidden.to(self.head.weight.dtype))[:, 0]
        rows, positions = batch.mask.nonzero(as_tuple=True)
        values = flat.new_zeros(batch.mask.shape).index_put((rows, positions), flat[source[rows, positions]])
        everyone = torch.arange(len(batch), device=source.device)
        return ValueEvaluation(values, flat[source[everyone, batch.lengths - 1]])
