"""LoRA on a loaded model: against stock peft, against the bare base, and in how little memory it shares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from tests.models.adapter_support import adapted, disturb, logprobs, plain, rows, saved, storages, with_peft
from tests.models.adapter_support import stock_logprobs as stock
from upslope.errors import InputError
from upslope.models import adapters
from upslope.models.adapters import Lora
from upslope.models.networks import PolicyNetwork, ValueNetwork
from upslope.rollout.sampler import InProcessSampler
from upslope.types import Sampling

BLOCK = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.directory(tmp_path_factory.mktemp("base") / "model", "smollm")


def gradient(model: Any, score: Any = logprobs) -> dict[str, torch.Tensor]:
    """Gradient of a weighted sum of log-probabilities to the adapter, by its name in the model."""
    batch = rows()
    factors = torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    own = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    loss = -(factors.to(torch.float64) * score(model, batch).to(torch.float64)).sum()
    return dict(zip(own, torch.autograd.grad(loss, list(own.values())), strict=True))


def ours(model: Any, batch: Any) -> torch.Tensor:
    return PolicyNetwork(model)(batch).logprobs  # type: ignore[no-any-return]


# -------------------------------------------------------------------------------------------------- against stock peft
@pytest.mark.parametrize("kind", list(tiny.KINDS))
def test_the_gradient_in_float64_is_that_of_stock_peft(kind: str, tmp_path: Path) -> None:
    base = tiny.directory(tmp_path / "base", kind)
    loaded = adapted(base, torch.float64)
    found = gradient(loaded.model, ours)
    peft = with_peft(base, saved(loaded, tmp_path / "adapter"), torch.float64, trainable=True)
    assert {weight.dtype for name, weight in peft.named_parameters() if "lora_" in name} == {torch.float64}
    expected = {name.removeprefix("base_model.model."): grad for name, grad in gradient(peft, stock).items()}
    assert found.keys() == expected.keys() and len(found) == 2 * 7 * 2
    tolerance = 1e-6 if kind == "gemma3" else 1e-8  # Gemma's norms compute in float32 whatever the model's dtype
    for name, grad in expected.items():
        assert float(grad.abs().max()) > 1e-3
        assert float((found[name] - grad).abs().max()) < tolerance, name


def test_gradient_checkpointing_gives_the_same_gradient(folder: Path) -> None:
    expected = gradient(adapted(folder).model, ours)
    model = adapted(folder, checkpointing=True).model
    passes: list[int] = []
    model.get_decoder().layers[0].mlp.register_forward_pre_hook(lambda *_: passes.append(1))
    found = gradient(model, ours)
    assert len(passes) == 2
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, atol=1e-6, rtol=1e-5)


def test_under_a_bfloat16_base_the_adapter_is_float32_and_its_output_is_peft_s(folder: Path, tmp_path: Path) -> None:
    loaded = adapted(folder, torch.bfloat16)
    kinds = {name: weight.dtype for name, weight in loaded.model.named_parameters()}
    assert {kind for name, kind in kinds.items() if ".lora_" in name} == {torch.float32}
    assert {kind for name, kind in kinds.items() if ".lora_" not in name} == {torch.bfloat16}
    peft = with_peft(folder, saved(loaded, tmp_path / "adapter"), torch.bfloat16)
    gap = (logprobs(loaded.model, rows()) - stock(peft, rows()).detach()).abs()
    apart = (logprobs(loaded.model, rows()) - stock(plain(folder, torch.bfloat16), rows()).detach()).abs()
    assert float(gap.mean()) < 0.02 < 0.2 < float(apart.mean())


def test_the_sampler_speaks_with_the_adapter(folder: Path, tmp_path: Path) -> None:
    loaded = adapted(folder)
    prompts = tiny.prompts([5, 14], seed=1)
    answers = InProcessSampler(loaded.model, 128).sample(prompts, 1, Sampling(12, (2,), temperature=0.0), [0, 0])
    peft = with_peft(folder, saved(loaded, tmp_path / "adapter"))
    bare = plain(folder)
    differ = False
    for prompt, (answer,) in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt])
        make = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 12, "do_sample": False, "eos_token_id": 2}
        assert list(answer.token_ids) == peft.generate(input_ids=ids, **make)[0, len(prompt) :].tolist()
        differ |= list(answer.token_ids) != bare.generate(ids, **make)[0, len(prompt) :].tolist()
    assert differ


# ------------------------------------------------------------------------------------------------------- a new adapter
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_new_adapter_changes_no_bit_and_freezes_the_base(folder: Path, dtype: torch.dtype) -> None:
    before = logprobs(tiny.load(folder, dtype).model, rows())
    model = tiny.load(folder, dtype).model
    adapters.add(model, Lora(4, 8.0), seed=0)
    assert torch.equal(logprobs(model, rows()), before)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == set(adapters.adapter_parameters(model)) and len(trained) == 2 * 7 * 2


def test_a_is_uniform_and_drawn_from_the_seed_alone(folder: Path) -> None:
    def start(seed: int) -> dict[str, torch.Tensor]:
        model = tiny.load(folder).model
        adapters.add(model, Lora(64, 128.0), seed)
        return {name: weight.detach() for name, weight in adapters.adapter_parameters(model).items()}

    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = start(1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    again, other = start(1), start(2)
    for name, weight in first.items():
        assert torch.equal(weight, again[name])
        if "lora_B" in name:
            assert not weight.any()
            continue
        bound = weight.shape[1] ** -0.5  # what peft draws: Kaiming's rule with a = sqrt(5)
        assert not torch.equal(weight, other[name])
        assert 0.97 * bound < float(weight.abs().max()) <= bound
        assert abs(float(weight.std()) / (bound / 3**0.5) - 1) < 0.05
    matrices = [weight.flatten()[:8].tolist() for name, weight in first.items() if "lora_A" in name]
    assert len({tuple(values) for values in matrices}) == len(matrices)  # no two layers start alike


def test_the_update_is_scaled_by_alpha_over_rank(folder: Path) -> None:
    model = adapted(folder, torch.float64, rank=4, alpha=6.0, targets=("q_proj",)).model
    bare = tiny.load(folder, torch.float64).model
    x = torch.randn(3, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layer = model.get_decoder().layers[1].self_attn.q_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = bare.get_decoder().layers[1].self_attn.q_proj(x) + 1.5 * x @ a.T @ b.T
    torch.testing.assert_close(layer(x), expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    ("targets", "count"),
    [((), 14), (("q_proj", "v_proj"), 4), (("self_attn.o_proj",), 2), (("model.layers.1.mlp.up_proj",), 1),
     (("layers.0.self_attn.k_proj", "down_proj"), 3)],
)  # fmt: skip
def test_targets_are_names_or_ends_of_names(folder: Path, targets: tuple[str, ...], count: int) -> None:
    model = tiny.load(folder).model
    adapters.add(model, Lora(2, 4.0, targets), 0)
    assert len(adapters.layers(model)) == count
    ends = targets or BLOCK
    assert all(any(name == end or name.endswith(f".{end}") for end in ends) for name in adapters.layers(model))


@pytest.mark.parametrize("targets", [("c_attn",), ("q_proj", "c_attn"), ("proj",), ("lm_head",), ("embed_tokens",)])
def test_a_target_that_matches_nothing_is_refused_with_the_names_seen(folder: Path, targets: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        adapters.add(tiny.load(folder).model, Lora(2, 4.0, targets), 0)
    assert caught.value.where == "lora.targets"
    assert f"'{targets[-1]}' matches 0 of the 14 linear layers" in str(caught.value)
    assert "Names seen: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj" in str(caught.value)


# ------------------------------------------------------------------------------------------------- copies that share
def test_reference_and_critic_share_the_frozen_base(folder: Path) -> None:
    loaded = adapted(folder)
    policy = loaded.model
    own = sum(weight.numel() * 4 for weight in adapters.adapter_parameters(policy).values())
    base = sum(storages(tiny.load(folder).model).values())
    assert sum(storages(policy).values()) == base + own
    reference, critic = adapters.reference(policy), ValueNetwork(adapters.twin(policy.get_decoder()))
    assert sum(storages(policy, reference).values()) == base + 2 * own
    head = sum(weight.numel() * 4 for weight in critic.head.parameters())
    assert sum(storages(policy, reference, critic).values()) == base + 3 * own + head
    assert {name for name, weight in critic.named_parameters() if weight.requires_grad} == {
        "head.weight", "head.bias",
        *("decoder." + name.removeprefix("model.") for name in adapters.adapter_parameters(policy)),
    }  # fmt: skip
    assert not any(weight.requires_grad for weight in reference.parameters())


def test_the_reference_of_a_new_adapter_is_the_bare_base_at_no_memory(folder: Path) -> None:
    model = tiny.load(folder).model
    adapters.add(model, Lora(4, 8.0), 0)
    reference = adapters.reference(model)
    assert storages(reference).keys() < storages(model).keys() and not adapters.layers(reference)
    disturb(model)
    torch.testing.assert_close(logprobs(reference, rows()), logprobs(tiny.load(folder).model, rows()), atol=0, rtol=0)
    assert float((logprobs(model, rows()) - logprobs(reference, rows())).abs().max()) > 0.1


def test_the_reference_of_a_trained_adapter_stays_where_it_is(folder: Path) -> None:
    model = adapted(folder).model
    before, reference = logprobs(model, rows()), adapters.reference(model)
    disturb(model, seed=8)
    assert torch.equal(logprobs(reference, rows()), before)
    assert not torch.equal(logprobs(model, rows()), before)


def test_a_twin_of_a_fully_trained_model_shares_nothing(folder: Path) -> None:
    model = tiny.load(folder).model
    twin = adapters.twin(model)
    assert not storages(model).keys() & storages(twin).keys()
    assert twin.get_output_embeddings().weight is twin.get_input_embeddings().weight  # tied, as it was
    assert torch.equal(logprobs(twin, rows()), logprobs(model, rows()))


# --------------------------------------------------------------------------------------------------------- dropout
def test_dropout_is_on_in_its_context_alone_and_comes_from_the_seed(folder: Path) -> None:
    model = adapted(folder, dropout=0.5).model
    bare = logprobs(adapted(folder).model, rows())
    assert torch.equal(logprobs(model, rows()), bare)
    model.train()  # as the sampler and gradient checkpointing leave it
    assert torch.equal(logprobs(model, rows()), bare)
    state = torch.get_rng_state()
    found = []
    for seed in (1, 1, 2):
        with adapters.dropping(model, seed):
            found.append(logprobs(model, rows()))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert float((found[0] - bare).abs().max()) > 0.05
    assert torch.equal(logprobs(model, rows()), bare)


def test_dropout_zeroes_its_share_and_scales_the_rest() -> None:
    gate = adapters.Dropout(0.25)
    x = torch.ones(100_000)
    assert torch.equal(gate(x), x)
    gate.on = True
    torch.manual_seed(0)
    values, counts = gate(x).unique(return_counts=True)
    torch.testing.assert_close(values, torch.tensor([0.0, 1 / 0.75]))
    assert abs(int(counts[0]) / 100_000 - 0.25) < 0.01


def test_recomputed_layers_drop_the_same_inputs(folder: Path) -> None:
    found = []
    for checkpointing in (False, True):
        model = adapted(folder, checkpointing=checkpointing, dropout=0.5).model
        with adapters.dropping(model, 4):
            found.append(gradient(model, ours))
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, atol=1e-6, rtol=1e-5)


# ------------------------------------------------------------------------------------------------ going on with one
def test_an_attached_adapter_is_compared_with_what_is_asked_for(folder: Path) -> None:
    model = adapted(folder, rank=4, alpha=8.0, targets=("q_proj", "v_proj")).model
    for same in (None, Lora(4, 8.0, ("q_proj", "v_proj")), Lora(4, 8.0, ("self_attn.v_proj", "q_proj"), dropout=0.1)):
        adapters.go_on(model, same, "runs/a/model")
    for other in (Lora(8, 8.0, ("q_proj", "v_proj")), Lora(4, 4.0, ("q_proj", "v_proj")), Lora(4, 8.0)):
        with pytest.raises(InputError) as caught:
            adapters.go_on(model, other, "runs/a/model")
        words = str(caught.value)
        assert "runs/a/model is an adapter of rank 4, alpha 8 on q_proj, v_proj" in words
        assert f"asks for rank {other.rank}, alpha {other.alpha:g}" in words and "leave lora out" in caught.value.fix
