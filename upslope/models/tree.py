"""A tree of texts through a model in one forward pass: what it says after each of them.

All texts share their beginnings, so the prompt and one token a node lie in one sequence in which a token attends to its
own text alone. The numbers are those of a plain causal pass over each text, to rounding, for a fraction of the work.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from upslope.models.attention import attend


@runtime_checkable
class TokenTree(Protocol):
    """What a forward pass needs of a tree (``worlds.prefix_tree.PrefixTree`` has it). Node i's text ends at token
    ``prompt_length - 1 + i``; ``support`` are the ids that may follow it, padded with -1."""

    @property
    def prompt_length(self) -> int: ...
    @property
    def token_ids(self) -> Int[Tensor, " tokens"]: ...
    @property
    def position_ids(self) -> Int[Tensor, " tokens"]: ...
    @property
    def seen(self) -> Bool[Tensor, "tokens tokens"]: ...
    @property
    def support(self) -> Int[Tensor, "nodes choices"]: ...


class TreeRows:
    """An attention layout in which token i sees the tokens ``seen[i]``, inside a sliding window where there is one."""

    def __init__(self, seen: Bool[Tensor, "tokens tokens"], position_ids: Int[Tensor, " tokens"]) -> None:
        self.seen, self.gap = seen, position_ids[:, None] - position_ids

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None
    ) -> Tensor:
        seen = self.seen if window is None else self.seen & (self.gap < window)
        return attend(query, key, value, seen[None, None], scaling).transpose(1, 2)


def node_states(decoder: Any, tree: TokenTree) -> Float[Tensor, "nodes width"]:
    """The decoder's hidden state after each node's text. The model has upslope's attention (``models.loading``)."""
    device = next(decoder.parameters()).device
    ids, positions = tree.token_ids.to(device), tree.position_ids.to(device)
    layout = TreeRows(tree.seen.to(device), positions)
    out = decoder(input_ids=ids[None], position_ids=positions[None], use_cache=False, layout=layout)
    return out.last_hidden_state[0, tree.prompt_length - 1 :]


def tree_logprobs(model: Any, tree: TokenTree, temperature: float = 1.0) -> Float[Tensor, "nodes choices"]:
    """log pi(token | node) of the ids in ``tree.support``, in nats, normalised over them; -inf in padding.

    Differentiable. The softmax is in float64 whatever the model's dtype is, so that probabilities sum to 1.
    """
    support = tree.support.to(model.get_output_embeddings().weight.device)
    logits = node_states(model.get_decoder(), tree) @ model.get_output_embeddings().weight.T
    chosen = logits.gather(1, support.clamp(min=0)).to(torch.float64) / temperature
    return chosen.masked_fill(support < 0, -torch.inf).log_softmax(1)


def tree_values(network: Any, tree: TokenTree) -> Float[Tensor, " nodes"]:
    """What a critic (``networks.ValueNetwork``) predicts after each node's text."""
    hidden = node_states(network.decoder, tree)
    return network.head(hidden.to(network.head.weight.dtype))[:, 0]  # type: ignore[no-any-return]
