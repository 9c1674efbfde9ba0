"""What a run needs in memory, by arithmetic: weights, gradients, optimizer, activations, the sampler's cache. No torch.

Bytes, for compute weights of b bytes a number (bfloat16 2, float32 4, float64 8), w = max(b, 4), P parameters of the
model and T trained ones:

    all weights trained   weights b P    gradients b P and, where b < 4, their float32 sums 4 P (at the update; from the
                          second micro-batch of a step on also before)
                          optimizer: two moments 2 w P and, where b < 4, the float32 master 4 P
    LoRA                  weights b P    adapter w T    gradients w T    optimizer 2 w T
    reference             b P, or nothing: it shares the frozen base      (w T if training began from an adapter)
    critic                as the policy, or as its adapter; gradients of one of the two are held at a time

Activations are those that the backward pass of a Llama-like block keeps (``activation_bytes``), for the tokens of one
micro-batch. The sampler's cache, the gradients with the activations, and the gradients with their sums are held at
different times: ``peak`` counts the largest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a Llama-like block, as transformers names them."""
SHORT = 384
"""Up to rows of so many tokens the CPU keeps the attention's probabilities (``models.attention.SHORT``)."""
CHUNK = 512
"""Rows of logits that exist at once (``models.head.CHUNK``)."""
PROCESS = 600_000_000
"""Python, torch, transformers and peft before any model: about so much resident memory on Linux."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a decoder-only model. ``parameters`` counts a tied embedding once."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    parameters: int

    def linear(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of the linear layers of one block."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        sizes = {"q_proj": (self.hidden, queries), "k_proj": (self.hidden, keys), "v_proj": (self.hidden, keys)}
        sizes |= {"o_proj": (queries, self.hidden), "down_proj": (self.intermediate, self.hidden)}
        return sizes | dict.fromkeys(("gate_proj", "up_proj"), (self.hidden, self.intermediate))


@dataclass(frozen=True, slots=True)
class Adapter:
    """LoRA of ``rank`` on the linear layers of each block whose names are in ``targets``."""

    rank: int
    targets: tuple[str, ...] = LINEAR

    def parameters(self, shape: Shape) -> int:
        """rank x (inputs + outputs), summed over the layers."""
        sizes = shape.linear()
        return shape.layers * sum(self.rank * sum(sizes[name]) for name in self.targets if name in sizes)


def shape_of(config: Mapping[str, Any], parameters: int | None = None) -> Shape:
    """The sizes in a config.json of the Llama, Mistral, Qwen2, Qwen3, SmolLM or Gemma 3 kind.

    ``parameters`` is counted from the sizes unless it is known (``models.weights.parameters``).
    """
    text = config.get("text_config") or config
    hidden, layers, heads = text["hidden_size"], text["num_hidden_layers"], text["num_attention_heads"]
    shape = Shape(
        hidden, layers, text["intermediate_size"], heads, text.get("num_key_value_heads") or heads,
        text.get("head_dim") or hidden // heads, text["vocab_size"], parameters or 0,
    )  # fmt: skip
    if parameters is not None:
        return shape
    kind = str(text.get("model_type", ""))
    tied = text.get("tie_word_embeddings", kind.startswith("gemma"))
    block = sum(rows * columns for rows, columns in shape.linear().values())
    block += (4 if kind.startswith("gemma3") else 2) * hidden  # norms
    if kind.startswith(("gemma3", "qwen3")):
        block += 2 * shape.head_dim  # norms of queries and keys
    if kind == "qwen2" or text.get("attention_bias"):
        block += (heads + 2 * shape.kv_heads) * shape.head_dim + (0 if kind == "qwen2" else hidden)
    return replace(shape, parameters=shape.vocab * hidden * (1 if tied else 2) + layers * block + hidden)


# ------------------------------------------------------------------------------------------------------- linear layers
def linear_layers(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names (without ``.weight``) of the matrices inside the blocks of a model, from its tensors' names and shapes."""
    return [
        name.removesuffix(".weight")
        for name, shape in shapes.items()
        if len(shape) == 2 and name.endswith(".weight") and re.search(r"(^|\.)(layers|h|blocks)\.\d+\.", name)
    ]


def matching(layers: Iterable[str], target: str) -> list[str]:
    """The layers that a target names: all of its name, or the end of it from a dot on."""
    return [name for name in layers if name == target or name.endswith(f".{target}")]


# ------------------------------------------------------------------------------------------------------------ the bill
def activation_bytes(
    shape: Shape, dtype_bytes: int, longest: int, adapter: Adapter | None = None, cpu: bool = True
) -> int:
    """Bytes a token that one block keeps for its backward pass, in rows of ``longest`` tokens.

    Both norms keep their input in w bytes; attention its queries and keys in w bytes, its values, and on a CPU up to
    ``SHORT`` tokens its probabilities (in w bytes and, where b < w, in b bytes; a fused kernel keeps queries, keys,
    values and output instead); the MLP gate, activated gate and up. Training all weights keeps, too, the normalised
    inputs and the inputs of every linear layer. LoRA keeps inputs of its targets (each its own copy in w bytes where
    b < w, else one for those that share an input) and rank numbers for each target.
    """
    b, w = dtype_bytes, max(dtype_bytes, 4)
    hidden, queries, keys = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    norms, mlp = 2 * w * hidden, 3 * b * shape.intermediate
    if cpu and longest <= SHORT:
        attention = w * (queries + keys) + b * keys + shape.heads * longest * (w + (b if b < w else 0))
    else:
        attention = 4 * b * queries + 4 * shape.heads
    if adapter is None:
        return norms + attention + mlp + 4 * b * hidden + b * queries + b * shape.intermediate
    sizes = shape.linear()
    targets = [name for name in LINEAR if name in adapter.targets]
    inputs = {name: name if b < w else _source(name) for name in targets}
    kept = {source: sizes[name][0] for name, source in inputs.items()}
    return norms + attention + mlp + w * (sum(kept.values()) + adapter.rank * len(targets))


def _source(name: str) -> str:
    """Layers with the same input have the same source."""
    return {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}.get(name, name)


def bill(
    shape: Shape,
    *,
    dtype_bytes: int = 2,
    adapter: Adapter | None = None,
    tokens: int = 4096,
    longest: int = 512,
    reference: bool = False,
    critic: bool = False,
    checkpointing: bool = False,
    slots: int = 0,
    capacity: int = 0,
    continued: bool = False,
    several: bool = False,
    cpu: bool = True,
) -> dict[str, int]:
    """Bytes that training needs, by what they are for; ``peak`` is the most that is held at once.

    ``tokens`` go through the network at once (``train.micro_batch_tokens``, or what a step has if that is less), in
    rows of up to ``longest``; ``several``: an optimizer step has more of them. ``slots`` completions of up to
    ``capacity`` tokens, prompts included, run at once in the sampler. ``continued``: training began from an adapter, of
    which the reference keeps a copy. ``head`` is the working space of the chunked output head, ``packed`` the sampler's
    copy of the weights on a ``cpu``.
    """
    b, w = dtype_bytes, max(dtype_bytes, 4)
    small = b < 4
    trained = shape.parameters if adapter is None else adapter.parameters(shape)
    if adapter is None:
        gradients, optimizer = b * trained, (2 * w + (4 if small else 0)) * trained
        wide = 4 * trained if small else 0
    else:
        gradients, optimizer, wide = w * trained, 2 * w * trained, 0
    own = b * trained if adapter is None else w * trained
    copy = own if adapter is None or continued else 0
    block = activation_bytes(shape, b, longest, adapter, cpu)
    kept = shape.layers * b * shape.hidden + block if checkpointing else shape.layers * block
    rows = min(CHUNK, tokens)
    # The head's own gradient; of several chunks their sum, the newest product, and the rounded sum at the end.
    sums = (b if tokens <= CHUNK else w + b) * shape.hidden
    parts = {
        "weights": b * shape.parameters,
        "adapter": 0 if adapter is None else own,
        "gradients": gradients + (wide if several else 0),
        "optimizer": optimizer,
        "reference": copy if reference else 0,
        "critic": own + optimizer if critic else 0,
        "activations": tokens * (kept + (w + 3 * b) * shape.hidden),
        "head": rows * shape.vocab * (2 * w + (b if small else 0)) + (sums * shape.vocab if adapter is None else 0),
        "packed": _packed(shape, b) if cpu else 0,
        "cache": ((w if cpu else b) + b) * slots * capacity * shape.layers * shape.kv_heads * shape.head_dim,
        "process": PROCESS,
    }
    passing = ("gradients", "activations", "head", "cache")
    held = sum(size for name, size in parts.items() if name not in passing)
    learning = parts["gradients"] + parts["activations"] + parts["head"]
    return {**parts, "peak": held + max(learning, gradients + wide, parts["cache"])}


def _packed(shape: Shape, dtype_bytes: int) -> int:
    """bfloat16: every product of a decode step. float32: those of several layers side by side. float64: none."""
    sizes = {name: rows * columns for name, (rows, columns) in shape.linear().items()}
    if dtype_bytes == 2:
        return 2 * (shape.layers * sum(sizes.values()) + shape.vocab * shape.hidden)
    joined = sum(sizes[name] for name in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"))
    return 4 * shape.layers * joined if dtype_bytes == 4 else 0
