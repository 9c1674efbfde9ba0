"""One more token for every running completion, on a CPU: the stock decoder's arithmetic in fewer and larger operations.

A decode step works on a handful of rows, so a stock forward spends its time on reading weights in an order that suits
training, and on about 2,000 small operations. Here the projections of a layer that read the same input are one product,
on weights packed for the machine's bfloat16 units (oneDNN) and packed anew when the learner has changed them; keys and
values are written and read where they lie. Each rounding is where the stock layers round.

``DecodeStep.of(model)`` gives None for what it does not serve (other devices and types, layers of another kind,
sliding windows): then the stock modules do the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils.rnn import pad_sequence

from upslope.models.attention import SlotCache, SlotStep
from upslope.models.shared import SharedRows
from upslope.models.verify import window_of

LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")
DTYPES = (torch.bfloat16, torch.float32)
PACKED_FOR = 64
"""Rows that packed weights are laid out for; other numbers of rows work on the same layout."""


class Product:
    """x -> x W^T + b of several linear layers with one input, side by side; with their LoRA adapters, if they have any.

    The weights are a copy, which ``pack`` renews; adapters are read where they lie.
    """

    def __init__(self, layers: Sequence[nn.Module], packed: bool) -> None:
        self.layers = list(layers)
        self.bases: list[Any] = [getattr(layer, "base_layer", layer) for layer in layers]
        # Looked up here: a build of torch without oneDNN does not have it, and what is looked up once is called faster.
        self.packed = torch.ops.mkldnn._linear_pointwise.default if packed else None
        """The product with packed weights; None: they are not packed."""
        self.adapted = any(layer is not base for layer, base in zip(self.layers, self.bases, strict=True))
        self.pack()

    @property
    def frozen(self) -> bool:
        """Whether nobody trains these weights, as under LoRA."""
        return not any(parameter.requires_grad for base in self.bases for parameter in base.parameters())

    def pack(self) -> None:
        """Take over the weights as they are now."""
        weights = [base.weight.detach() for base in self.bases]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR) if self.packed else weight
        biases = [base.weight.new_zeros(len(base.weight)) if base.bias is None else base.bias for base in self.bases]
        bare = all(base.bias is None for base in self.bases)
        self.bias = None if bare else torch.cat(biases).detach()

    def __call__(self, x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows out"]:
        if self.packed is not None:
            out: Tensor = self.packed(x, self.weight, self.bias, "none", [], "")
        else:
            out = linear(x, self.weight, self.bias)
        return self._adapt(x, out) if self.adapted else out

    def _adapt(self, x: Tensor, out: Tensor) -> Tensor:
        start = 0
        for layer, base in zip(self.layers, self.bases, strict=True):
            stretch = out[:, start : start + base.out_features]
            start += base.out_features
            for name in getattr(layer, "active_adapters", ()) if layer is not base else ():
                down, up = layer.lora_A[name].weight, layer.lora_B[name].weight  # type: ignore[index, union-attr]
                scale = layer.scaling[name]  # type: ignore[index]
                stretch.copy_(stretch + linear(linear(x.to(down.dtype), down), up) * scale)
        return out


class Layer:
    """One decoder layer: the products and norms of its stock module."""

    def __init__(self, layer: Any, packed: bool) -> None:
        heads, mlp = layer.self_attn, layer.mlp
        self.index, self.width, self.scaling = int(heads.layer_idx), int(heads.head_dim), float(heads.scaling)
        self.qkv = Product([heads.q_proj, heads.k_proj, heads.v_proj], packed)
        self.out = Product([heads.o_proj], packed)
        self.gate_up = Product([mlp.gate_proj, mlp.up_proj], packed)
        self.down = Product([mlp.down_proj], packed)
        self.activation = mlp.act_fn
        self.before, self.after = layer.input_layernorm, layer.post_attention_layernorm
        self.query_norm, self.key_norm = getattr(heads, "q_norm", None), getattr(heads, "k_norm", None)
        self.queries = int(heads.q_proj.out_features) // self.width
        self.keys = int(heads.k_proj.out_features) // self.width

    @property
    def products(self) -> list[Product]:
        return [self.qkv, self.out, self.gate_up, self.down]

    def __call__(self, x: Tensor, turn: tuple[Tensor, Tensor], step: SlotStep, place: Tensor, bias: Tensor) -> Tensor:
        """``turn``: cos and signed sin [rows, 1, width]; ``place``: see ``SlotStep.places``; ``bias``: 0 or -inf."""
        rows, span = len(x), bias.shape[-1]
        mixed = self.qkv(self._normed(self.before, x)).view(rows, -1, self.width)
        turned = self.queries + self.keys
        both = mixed[:, :turned]
        if self.query_norm is not None:
            parts = both[:, : self.queries], both[:, self.queries :]
            both = torch.cat([self._normed(self.query_norm, parts[0]), self._normed(self.key_norm, parts[1])], 1)
        both = rotated(both, *turn)
        keys, values = step.cache.keys[self.index], step.cache.values[self.index]
        keys.view(-1, self.width).index_copy_(0, place, both[:, self.queries :].reshape(-1, self.width).to(keys.dtype))
        values.view(-1, self.width).index_copy_(0, place, mixed[:, turned:].reshape(-1, self.width))
        groups = rows * self.keys
        # The query heads that share a key head are rows of one product.
        query = both[:, : self.queries].reshape(groups, -1, self.width).to(keys.dtype)
        past = keys.view(-1, keys.shape[2], self.width)[:groups, :span]
        scores = torch.baddbmm(bias, query, past.transpose(1, 2), alpha=self.scaling)
        weights = scores.softmax(-1).to(values.dtype)
        seen = torch.bmm(weights, values.view(-1, values.shape[2], self.width)[:groups, :span])
        x = x + self.out(seen.view(rows, -1))
        gate, up = self.gate_up(self._normed(self.after, x)).chunk(2, dim=-1)
        return x + self.down(self.activation(gate).mul_(up))

    @staticmethod
    def _normed(norm: Any, x: Tensor) -> Tensor:
        """RMSNorm: x / sqrt(mean x^2 + eps) in float32, rounded, times the weight."""
        wide = x.to(torch.float32)
        inverse = torch.linalg.vecdot(wide, wide).div_(wide.shape[-1]).add_(norm.variance_epsilon).rsqrt_()
        return (wide * inverse[..., None]).to(x.dtype).mul_(norm.weight)


def rotated(x: Float[Tensor, "rows heads width"], cos: Tensor, sin: Tensor) -> Float[Tensor, "rows heads width"]:
    """Rotary positions; ``sin`` carries the sign of the half that is turned to the front."""
    half = x.shape[-1] // 2
    swapped = torch.cat((x[..., half:], x[..., :half]), dim=-1)
    return (x * cos).add_(swapped.mul_(sin))


class DecodeStep:
    """The decode step of one model. ``pack`` after its weights were written to, then call it."""

    def __init__(self, model: Any) -> None:
        decoder = model.get_decoder()
        packed = model.dtype == torch.bfloat16
        self.embed, self.rotary, self.norm = decoder.embed_tokens, decoder.rotary_emb, decoder.norm
        self.layers = [Layer(layer, packed) for layer in decoder.layers]
        self.head = Product([model.get_output_embeddings()], packed)

    @classmethod
    @torch.no_grad()
    def of(cls, model: Any) -> DecodeStep | None:
        """The decode step of a model, or None where the stock modules must do it.

        It is compared with the stock modules on a few tokens first, so a model that only looks alike is not served.
        """
        if not _served(model):
            return None
        try:
            found = cls(model)
            return found if _agrees(found, model) else None
        except (AttributeError, RuntimeError):  # another inner structure, or no packed products in this build of torch
            return None

    def pack(self, everything: bool = True) -> None:
        """Take the weights as they are now; unless ``everything``, only those that are trained."""
        for product in (*(product for layer in self.layers for product in layer.products), self.head):
            if everything or not product.frozen:
                product.pack()

    def __call__(self, ids: Int[Tensor, " rows"], step: SlotStep) -> Float[Tensor, "rows width"]:
        """Hidden states of the new tokens ``ids``, whose keys and values go into the slots of ``step``."""
        x = self.embed(ids)
        cos, sin = self.rotary(x[:, None], step.position_ids)
        half = sin.shape[-1] // 2
        turn = cos, torch.cat((-sin[..., :half], sin[..., half:]), -1)
        place, bias = step.places(), step.bias()
        for layer in self.layers:
            x = layer(x, turn, step, place, bias)
        return Layer._normed(self.norm, x)

    def logits(self, hidden: Float[Tensor, "rows width"]) -> Float[Tensor, "rows vocab"]:
        """The head's product, in the type of the weights."""
        return self.head(hidden)


def _served(model: Any) -> bool:
    weight = model.get_input_embeddings().weight
    layers = getattr(model.get_decoder(), "layers", ())
    return (
        weight.device.type == "cpu"
        and weight.dtype in DTYPES
        and len(layers) > 0
        and all(type(layer).__name__ in LAYERS for layer in layers)
        and window_of(model.config.get_text_config()) == 0
        and type(model.get_output_embeddings()) is nn.Linear
    )


def _agrees(found: DecodeStep, model: Any) -> bool:
    """Whether two decode steps of two rows give the stock modules' log-probabilities, but for rounding."""
    config = model.config.get_text_config()
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, config.vocab_size, (length,), generator=generator) for length in (5, 3)]
    training = model.training
    model.eval()
    try:
        answers = []
        for fast in (True, False):
            cache = SlotCache.allocate(config, 2, 8, model.dtype, rows[0].device)
            lengths = torch.tensor([len(row) for row in rows])
            layout = SharedRows(pad_sequence(rows, batch_first=True), lengths, torch.arange(2), cache, [[0], [1]])
            inputs = {"use_cache": False, "position_ids": layout.position_ids, "layout": layout}
            model.get_decoder()(input_ids=layout.token_ids, **inputs)
            for number in range(2):
                step = SlotStep(cache, torch.tensor([len(row) + number for row in rows]))
                ids = torch.stack([row[number] for row in rows])
                if fast:
                    logits = found.logits(found(ids, step))
                else:
                    inputs = {"use_cache": False, "position_ids": step.position_ids, "layout": step}
                    hidden = model.get_decoder()(input_ids=ids[:, None], **inputs).last_hidden_state[:, 0]
                    logits = hidden @ model.get_output_embeddings().weight.T
                answers.append(logits.to(torch.float32).log_softmax(-1))
    finally:
        model.train(training)
    ours, stock = torch.stack(answers[:2]), torch.stack(answers[2:])
    limit = max(8 * torch.finfo(model.dtype).eps, 1e-4)
    return bool((ours - stock).abs().mean() <= limit)
