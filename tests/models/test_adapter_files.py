"""Adapters in PEFT's layout: both ways through plain peft and transformers, and what is refused with which words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import tiny
from tests.models.adapter_support import adapted, logprobs, plain, rows, saved, stock_logprobs, with_peft
from upslope.errors import InputError
from upslope.models import adapter_files, adapters, bundled, loading

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.directory(tmp_path_factory.mktemp("base") / "model", "smollm")


@pytest.fixture(scope="module")
def original(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(adapted(base), tmp_path_factory.mktemp("adapter") / "model")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """An adapter to be spoiled."""
    return Path(shutil.copytree(original, tmp_path / "adapter"))


def edit(folder: Path, **changes: Any) -> None:
    file = folder / CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def peft_adapter(base: Path, out: Path, config: Any) -> Path:
    """An adapter as peft itself makes and saves it, with weights that say something."""
    torch.manual_seed(0)
    model = get_peft_model(plain(base), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3)
    model.save_pretrained(out)
    return out


def assert_refused(folder: Path | str, *words: str) -> InputError:
    """The error of the whole way: the card, then the weights."""
    with pytest.raises(InputError) as caught:
        loading.load(loading.read_card(str(folder)), torch.device("cpu"), torch.float32)
    assert caught.value.where == "model.name" and caught.value.fix and "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), f"{word!r} not in {caught.value}"
    return caught.value


# ------------------------------------------------------------------------------------------------------------ both ways
def test_plain_peft_and_plain_transformers_open_it_with_our_numbers(base: Path, tmp_path: Path) -> None:
    loaded = adapted(base)
    adapter = saved(loaded, tmp_path / "adapter")
    found = logprobs(loaded.model, rows())
    for opened in (with_peft(base, adapter), AutoModelForCausalLM.from_pretrained(adapter).eval()):
        torch.testing.assert_close(stock_logprobs(opened, rows()).detach(), found, atol=1e-5, rtol=1e-5)
    bare = stock_logprobs(plain(base), rows()).detach()
    assert float((bare - found).abs().max()) > 0.1
    assert sorted(file.name for file in adapter.iterdir()) == [
        "README.md", CONFIG, WEIGHTS, "chat_template.jinja", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert AutoTokenizer.from_pretrained(adapter)("a+1")["input_ids"] == tiny.tokenizer()("a+1")["input_ids"]


def test_its_config_says_what_peft_needs_in_the_same_bytes_each_time(base: Path, tmp_path: Path) -> None:
    folders = [saved(adapted(base, targets=("v_proj", "q_proj")), tmp_path / name) for name in "ab"]
    config = json.loads((folders[0] / CONFIG).read_text())
    assert config["base_model_name_or_path"] == str(base.resolve()) and config["task_type"] == "CAUSAL_LM"
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 8, "LORA")
    assert config["target_modules"] == ["q_proj", "v_proj"] and config["inference_mode"] is True
    for name in (CONFIG, WEIGHTS):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    parts = adapters.exported(adapted(base).model)
    seen = set()
    for _ in range(8):  # the safetensors library alone writes two notes in an order of chance
        adapter_files.write(tmp_path, *parts, str(base))
        seen.add((tmp_path / WEIGHTS).read_bytes())
    assert len(seen) == 1
    tensors = load_file(folders[0] / WEIGHTS)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32} and len(tensors) == 8
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in tensors


@pytest.mark.parametrize(
    "changes",
    [{"target_modules": ["q_proj", "down_proj"]}, {"target_modules": "all-linear"}, {"use_rslora": True},
     {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 32}}, {"layers_to_transform": [1]},
     {"target_modules": r".*\.(k|o)_proj", "init_lora_weights": "gaussian"}],
)  # fmt: skip
def test_an_adapter_of_peft_s_own_is_read_with_its_numbers(base: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    settings = {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM", **changes}
    adapter = peft_adapter(base, tmp_path / "adapter", LoraConfig(**settings))
    assert not (adapter / "tokenizer.json").exists()  # the base's is taken
    loaded = tiny.load(adapter)
    expected = stock_logprobs(with_peft(base, adapter), rows()).detach()
    torch.testing.assert_close(logprobs(loaded.model, rows()), expected, atol=1e-5, rtol=1e-5)
    assert loaded.card.name == str(adapter) and loaded.card.base == str(base) and loaded.card.stop_ids == (2,)
    again = saved(loaded, tmp_path / "again")  # what came in goes out
    torch.testing.assert_close(stock_logprobs(with_peft(base, again), rows()).detach(), expected, atol=1e-6, rtol=1e-6)


def test_read_again_it_is_bit_for_bit_the_same(base: Path, original: Path, tmp_path: Path) -> None:
    again = saved(tiny.load(original), tmp_path / "again")
    assert (again / WEIGHTS).read_bytes() == (original / WEIGHTS).read_bytes()
    assert (again / CONFIG).read_bytes() == (original / CONFIG).read_bytes()


def test_its_own_tokenizer_and_chat_template_come_before_the_base_s(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}?")
    tokenizer = loading.read_card(str(folder)).tokenizer
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi?"


def test_an_adapter_on_the_hub_is_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(loading, "find_adapter_config_file", lambda name: asked.append(name) or str(folder / CONFIG))
    monkeypatch.setattr(loading, "snapshot_download", lambda name, allow_patterns: str(folder))
    card = loading.read_card("someone/lora")
    assert asked == ["someone/lora"] and card.name == "someone/lora" and card.adapter is not None
    assert adapters.layers(loading.load(card, torch.device("cpu"), torch.float32).model)


@pytest.mark.parametrize("name", [bundled.NAME, "text-grid-tiny-5"])
def test_a_base_of_ours_is_known_again_on_another_machine(folder: Path, name: str) -> None:
    path = {"text-grid-tiny-5": "/home/else/.cache/upslope/text-grid-tiny-5-form1"}.get(name, f"/home/else/{name}")
    edit(folder, base_model_name_or_path=path)
    assert adapter_files.read(folder).base == name


# ------------------------------------------------------------------------------------------------------------- refusals
def test_pickle_weights(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    assert_refused(folder, "only adapter_model.bin", "pickle runs code", "save it again")


def test_no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert_refused(folder, "has no weights")


def test_a_whole_model_and_an_adapter_in_one_folder(folder: Path, base: Path) -> None:
    shutil.copy(base / "model.safetensors", folder)
    shutil.copy(base / "config.json", folder)
    assert_refused(folder, "a whole model (model.safetensors) and an adapter", "move adapter_config.json away")


def test_a_git_lfs_pointer(folder: Path) -> None:
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n")
    assert_refused(folder, "git-lfs pointer", "git lfs pull")


def test_a_file_that_is_cut_short(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    assert_refused(folder, "cut short")


@pytest.mark.parametrize(("text", "words"), [("{", "is not JSON"), ("[]", "is not a JSON object")])
def test_a_broken_config(folder: Path, text: str, words: str) -> None:
    (folder / CONFIG).write_text(text)
    assert_refused(folder, words)


@pytest.mark.parametrize("named", [None, "", 7])
def test_no_base_named(folder: Path, named: Any) -> None:
    edit(folder, base_model_name_or_path=named)
    assert_refused(folder, "names no base model", "set base_model_name_or_path in")


def test_a_base_that_moved(folder: Path) -> None:
    edit(folder, base_model_name_or_path="/models/gone")
    error = assert_refused(folder, str(folder), "not at /models/gone")
    assert f"set base_model_name_or_path in {folder / CONFIG}" in error.fix


def test_a_base_that_is_an_adapter(folder: Path, original: Path) -> None:
    edit(folder, base_model_name_or_path=str(original))
    assert_refused(folder, f"is an adapter itself: {original}", f"upslope merge {original} OUT")


def test_a_base_of_other_shapes_names_both_and_the_shapes(folder: Path, tmp_path: Path) -> None:
    other = tiny.directory(tmp_path / "other", "smollm", intermediate_size=80)
    tensors = load_file(folder / WEIGHTS)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})  # as peft writes it: nothing is noted of the base
    edit(folder, base_model_name_or_path=str(other))
    assert_refused(
        folder, f"the adapter {folder} does not fit its base model {other}",
        "gate_proj.lora_B.weight has shape (64, 4), the base needs (80, 4)",
    )  # fmt: skip


def test_a_base_with_fewer_layers(folder: Path, tmp_path: Path) -> None:
    other = tiny.directory(tmp_path / "other", "smollm", num_hidden_layers=1)
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, {"format": "pt"})
    edit(folder, base_model_name_or_path=str(other))
    assert_refused(folder, str(other), "the base has no model.layers.1.mlp.down_proj.lora_A.weight and 13 more")


def test_tensors_that_are_missing(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"]
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    assert_refused(folder, "the adapter has no model.layers.0.self_attn.q_proj.lora_A.weight")


def test_a_base_with_other_weights_of_the_same_shape(folder: Path, tmp_path: Path, base: Path) -> None:
    other = tiny.directory(tmp_path / "other", "smollm", seed=1)
    edit(folder, base_model_name_or_path=str(other))
    assert_refused(folder, f"{other} holds other weights", str(folder), "put that model back")
    edit(folder, base_model_name_or_path=str(base))
    tiny.load(folder)


def test_targets_that_the_base_has_not(folder: Path) -> None:
    edit(folder, target_modules=["c_attn"])
    assert_refused(folder, "does not fit", "c_attn")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (LoraConfig(r=2, target_modules=["q_proj"], use_dora=True), "use_dora: True"),
        (LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]), "modules_to_save: ['lm_head']"),
        (LoraConfig(r=2, target_modules=["q_proj"], bias="all"), "bias: all"),
        (LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa"), "init_lora_weights: pissa"),
        (IA3Config(target_modules=["k_proj"], feedforward_modules=[]), "adapter of type IA3"),
        (LoraConfig(r=2, target_modules=["q_proj", "lm_head"]), "lm_head"),
        (LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"]), "embed_tokens"),
    ],
)
def test_kinds_that_are_not_served_are_named_and_may_be_merged(
    base: Path, tmp_path: Path, config: Any, words: str
) -> None:
    adapter = peft_adapter(base, tmp_path / "adapter", config)
    error = assert_refused(adapter, str(adapter), words)
    assert error.fix == f"merge it first: upslope merge {adapter} OUT"


# ------------------------------------------------------------------------------------------------------- fingerprints
def test_the_fingerprint_does_not_depend_on_files_and_sees_any_tensor(base: Path, tmp_path: Path) -> None:
    known = adapter_files.fingerprint(base)
    sharded = tmp_path / "sharded"
    tiny.model("smollm").save_pretrained(sharded, max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert adapter_files.fingerprint(sharded) == known
    tensors = load_file(base / "model.safetensors")
    seen = {known}
    for name in tensors:
        changed = {**tensors, name: tensors[name] + 0.01}
        save_file(changed, tmp_path / "model.safetensors", {"format": "pt"})
        seen.add(adapter_files.fingerprint(tmp_path))
    assert len(seen) == len(tensors) + 1
    assert adapter_files.fingerprint(tmp_path / "sharded" / "nothing") is None


def test_the_note_of_the_base_stands_in_the_weights_file(original: Path, base: Path) -> None:
    with safe_open(original / WEIGHTS, "pt") as opened:
        assert opened.metadata() == {
            "format": "pt", adapter_files.FINGERPRINT: adapter_files.fingerprint(base),
        }  # fmt: skip
