"""The memory bill against what is really held: parameters, optimizer, saved activations."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests import tiny
from upslope.learner.learner import Learner
from upslope.learner.optimizer import OptimizerSettings
from upslope.models import adapters, attention, head, memory
from upslope.models.adapters import Lora
from upslope.models.decode import DecodeStep
from upslope.models.memory import LINEAR, Adapter, Shape, activation_bytes, bill, shape_of
from upslope.models.networks import PolicyNetwork
from upslope.types import Batch

QWEN = {"model_type": "qwen2", "vocab_size": 151_936, "tie_word_embeddings": True}
SIZES: dict[str, tuple[dict[str, Any], int]] = {
    "0.5B": (
        {"hidden_size": 896, "num_hidden_layers": 24, "intermediate_size": 4864, "num_attention_heads": 14,
         "num_key_value_heads": 2}, 494_032_768,
    ),
    "1.5B": (
        {"hidden_size": 1536, "num_hidden_layers": 28, "intermediate_size": 8960, "num_attention_heads": 12,
         "num_key_value_heads": 2}, 1_543_714_304,
    ),
    "3B": (
        {"hidden_size": 2048, "num_hidden_layers": 36, "intermediate_size": 11_008, "num_attention_heads": 16,
         "num_key_value_heads": 2}, 3_085_938_688,
    ),
}  # fmt: skip
"""Qwen2.5's sizes and its published numbers of parameters."""


@pytest.mark.parametrize("name", list(SIZES))
def test_parameters_of_published_models(name: str) -> None:
    sizes, published = SIZES[name]
    assert shape_of({**QWEN, **sizes}).parameters == published


@pytest.mark.parametrize("kind", list(tiny.KINDS))
def test_parameters_are_those_of_the_model(kind: str) -> None:
    model = tiny.model(kind)
    assert shape_of(model.config.to_dict()).parameters == sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("targets", [(), ("q_proj", "v_proj"), ("down_proj",)])
def test_an_adapter_s_parameters_are_counted(targets: tuple[str, ...]) -> None:
    model = tiny.served("smollm")
    shape = shape_of(model.config.to_dict())
    adapters.add(model, Lora(3, 6.0, targets), 0)
    held = sum(weight.numel() for weight in adapters.adapter_parameters(model).values())
    assert Adapter(3, targets or LINEAR).parameters(shape) == held


def test_the_constants_are_those_of_the_rooms_that_they_speak_of() -> None:
    assert (memory.SHORT, memory.CHUNK) == (attention.SHORT, head.CHUNK)


# -------------------------------------------------------------------------------------------------- activations
WIDE: dict[str, Any] = {
    "hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 256,
    "max_position_embeddings": 1024,
}  # fmt: skip


def kept(layers: int, dtype: torch.dtype, rows: int, longest: int, rank: int | None) -> int:
    """Bytes that autograd keeps of a forward pass, weights apart."""
    model = tiny.served("llama", dtype=dtype, num_hidden_layers=layers, **WIDE)
    if rank is not None:
        adapters.add(model, Lora(rank, 2.0 * rank), 0)
    standing = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    found: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in standing:
            found[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    ids = torch.randint(4, 50, (rows, longest + 1), generator=torch.Generator().manual_seed(0))
    batch = Batch(
        ids, torch.full((rows,), longest + 1), torch.ones(rows, longest, dtype=torch.bool), torch.arange(rows)
    )
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        PolicyNetwork(model)(batch)
    return sum(storage.nbytes() for storage in found.values())


@pytest.mark.parametrize("rank", [None, 8])
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_the_activations_of_a_block_are_what_autograd_keeps(dtype: torch.dtype, size: int, rank: int | None) -> None:
    rows, longest = 3, 48
    measured = kept(3, dtype, rows, longest, rank) - kept(2, dtype, rows, longest, rank)
    shape = shape_of(tiny.model("llama", **WIDE).config.to_dict())
    stated = rows * longest * activation_bytes(shape, size, longest, None if rank is None else Adapter(rank))
    assert abs(stated / measured - 1) < 0.02


# --------------------------------------------------------------------------------------------------------- the bill
@pytest.mark.parametrize("rank", [None, 4])
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2), (torch.float64, 8)])
def test_weights_gradients_and_optimizer_are_what_a_learner_holds(
    dtype: torch.dtype, size: int, rank: int | None
) -> None:
    model = tiny.served("llama", dtype=dtype)
    if rank is not None:
        adapters.add(model, Lora(rank, 2.0 * rank), 0)
    learner: Learner[Any] = Learner(PolicyNetwork(model), OptimizerSettings(1e-3, 1))
    shape = shape_of(model.config.to_dict())
    stated = bill(shape, dtype_bytes=size, adapter=None if rank is None else Adapter(rank), several=True)
    weights = {weight.data_ptr(): weight.nbytes for weight in model.parameters()}
    assert stated["weights"] + stated["adapter"] == sum(weights.values())
    optimizer = learner.optimizer
    for weight in optimizer.compute.values():
        weight.grad = torch.ones_like(weight)
    gradients = sum(weight.nbytes for weight in optimizer.compute.values())
    sums = optimizer.gradients()
    own = [name for name, weight in optimizer.master.items() if weight is not optimizer.compute[name]]
    assert stated["gradients"] == gradients + sum(sums[name].nbytes for name in own)
    learner.step()
    tensors = learner.state().tensors
    moments = sum(tensor.nbytes for name, tensor in tensors.items() if name.startswith("exp_avg"))
    masters = sum(optimizer.master[name].nbytes for name in own)
    assert stated["optimizer"] == moments + masters


def test_lora_needs_a_fraction_and_sums_are_right() -> None:
    shape = shape_of({**QWEN, **SIZES["0.5B"][0]})
    common: dict[str, Any] = {"tokens": 4096, "longest": 512, "slots": 64, "capacity": 512, "reference": True}
    full, lora = bill(shape, critic=True, **common), bill(shape, adapter=Adapter(16), critic=True, **common)
    assert full["weights"] == lora["weights"] == 2 * 494_032_768
    # 2 bytes of gradient (and 4 of its sum, where there is more than one), 8 of moments and 4 of master a weight
    assert full["gradients"] == 2 * 494_032_768 and full["optimizer"] == 12 * 494_032_768
    assert bill(shape, several=True, **common)["gradients"] == 6 * 494_032_768
    assert full["reference"] == full["weights"] and full["critic"] == 14 * 494_032_768
    trained = 24 * 16 * (2 * (896 + 896) + 2 * (896 + 128) + 3 * (896 + 4864))
    assert lora["adapter"] == 4 * trained and lora["critic"] == 12 * trained and lora["reference"] == 0
    assert bill(shape, adapter=Adapter(16), continued=True, **common)["reference"] == 4 * trained
    assert lora["peak"] < full["peak"] / 2
    for found in (full, lora):
        parts = {name: size for name, size in found.items() if name != "peak"}
        learning = parts["gradients"] + parts["activations"] + parts["head"]
        assert found["peak"] == sum(parts.values()) - min(learning, parts["cache"])
    # One pass over few tokens: the most is held at the update, when gradients and their float32 sums are there.
    tiny_step = bill(shape, tokens=1, longest=1)
    assert tiny_step["activations"] + tiny_step["head"] < 4 * 494_032_768
    held = sum(tiny_step[name] for name in ("weights", "optimizer", "packed", "process"))
    assert tiny_step["peak"] == held + 6 * 494_032_768


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_the_sampler_s_cache_and_its_copy_of_the_weights_are_stated(dtype: torch.dtype, size: int) -> None:
    model = tiny.served("smollm", dtype=dtype)
    stated = bill(shape_of(model.config.to_dict()), dtype_bytes=size, slots=5, capacity=20)
    cache = attention.SlotCache.allocate(model.config, 5, 20, dtype, torch.device("cpu"))
    assert stated["cache"] == sum(tensor.nbytes for tensor in (*cache.keys, *cache.values))
    step = DecodeStep.of(model)
    if step is None:
        pytest.skip("this build of torch has no packed products")
    products = [product for layer in step.layers for product in layer.products] + [step.head]
    standing = {weight.data_ptr() for weight in model.parameters()}
    numbers = [sum(layer.weight.numel() for layer in product.layers) for product in products]
    copied = [
        count * size for count, product in zip(numbers, products, strict=True)
        if size == 2 or product.weight.data_ptr() not in standing
    ]  # fmt: skip
    assert stated["packed"] == sum(copied)


def test_checkpointing_keeps_one_block_and_the_inputs_of_the_others() -> None:
    shape = Shape(64, 10, 160, 4, 2, 16, 100, 0)
    block = activation_bytes(shape, 2, 32)
    less = bill(shape, tokens=100, longest=32, checkpointing=True)["activations"]
    more = bill(shape, tokens=100, longest=32)["activations"]
    assert more - less == 100 * (10 * block - (10 * 2 * 64 + block))


def test_names_of_linear_layers_come_from_headers() -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (100, 64), "model.layers.0.self_attn.q_proj.weight": (64, 64),
        "model.layers.0.self_attn.q_proj.bias": (64,), "model.layers.0.input_layernorm.weight": (64,),
        "lm_head.weight": (100, 64), "transformer.h.3.mlp.c_fc.weight": (64, 256),
    }  # fmt: skip
    names = memory.linear_layers(shapes)
    assert names == ["model.layers.0.self_attn.q_proj", "transformer.h.3.mlp.c_fc"]
    assert memory.matching(names, "q_proj") == names[:1] and memory.matching(names, "proj") == []
