"""From a name to a model: what is refused, with which words; what is collected; what is saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForSequenceClassification

from tests import tiny
from upslope.errors import InputError, MachineError
from upslope.models import loading
from upslope.rollout.sampler import InProcessSampler
from upslope.types import Sampling


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.directory(tmp_path / "model")


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def assert_refused(folder: Path | str, *words: str, template: str | None = None) -> InputError:
    """The error of the whole way (card, then weights), which must name the key, the words, and an action."""
    with pytest.raises(InputError) as caught:
        card = loading.read_card(str(folder), template)
        loading.load(card, torch.device("cpu"), torch.float32)
    error = caught.value
    assert error.where.startswith("model.")
    assert error.fix and "Fix: " in str(error)
    assert "\n" not in str(error)
    for word in words:
        assert word in str(error), f"{word!r} not in {error}"
    return error


# ------------------------------------------------------------------------------------------------------------ refusals
def test_missing_directory() -> None:
    assert_refused("./no/such/place", "no such directory './no/such/place'", "hub id")


def test_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert_refused(tmp_path / "model.gguf", "a GGUF file", "directory of the unquantised model")


def test_some_other_file(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"")
    assert_refused(tmp_path / "weights.safetensors", "is a file", "config.json")


def test_no_config_names_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    assert_refused(tmp_path, "no config.json", "notes.txt", "give a model directory")


def test_empty_directory(tmp_path: Path) -> None:
    assert_refused(tmp_path, "no config.json (found: nothing)")


def test_adapter_folder_whose_weights_are_empty(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    assert_refused(tmp_path, "adapter_model.safetensors", "no whole safetensors file")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickle_weights(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    assert_refused(folder, f"only {name}", "safetensors only", "pickle runs code", "convert")


def test_no_weights_at_all(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert_refused(folder, "no weights")


def test_remote_code_of_the_model(folder: Path) -> None:
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Evil"})
    (folder / "modeling.py").write_text("raise SystemExit('remote code ran')")
    assert_refused(folder, "auto_map", "remote code is never run")


def test_remote_code_of_the_tokenizer_does_not_run(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tok.Evil", None]}, tokenizer_class="Evil")
    (folder / "tok.py").write_text("raise SystemExit('remote code ran')")
    assert_refused(folder, "custom code")


def test_git_lfs_pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n")
    assert_refused(folder, "git-lfs pointer", "git lfs pull")


def test_truncated_weights(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert_refused(folder, str(folder))


def test_missing_shard(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(folder, "model-00002-of-00002")


def test_missing_tensors_are_never_initialised_at_random(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert_refused(folder, "model.layers.1.mlp.up_proj.weight")


def test_a_classifier_is_no_language_model(folder: Path) -> None:
    config = tiny.model("llama").config
    LlamaForSequenceClassification(config).save_pretrained(folder)
    assert_refused(folder, "is a reward model (LlamaForSequenceClassification)")


def test_tensors_of_another_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(5)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert_refused(folder, str(folder), "model.norm.weight")


@pytest.mark.parametrize("text", ["{not json", "[]"])
def test_broken_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert_refused(folder, "config.json")


def test_unknown_architecture(folder: Path) -> None:
    edit(folder / "config.json", model_type="nonesuch")
    assert_refused(folder, "nonesuch")


def test_not_a_causal_model(folder: Path) -> None:
    edit(folder / "config.json", model_type="t5", architectures=["T5ForConditionalGeneration"])
    assert_refused(folder, str(folder))


def test_tokenizer_missing(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert_refused(folder, "tokenizer")


def test_tokenizer_larger_than_embedding(tmp_path: Path) -> None:
    folder = tiny.directory(tmp_path, vocab_size=tiny.VOCAB - 3)
    assert_refused(folder, f"tokenizer has {tiny.VOCAB} ids", f"{tiny.VOCAB - 3} rows", "resize the embedding")


def test_an_embedding_larger_than_the_tokenizer_is_common_and_fine(tmp_path: Path) -> None:
    tiny.load(tiny.directory(tmp_path, vocab_size=tiny.VOCAB + 6))


def test_no_such_chat_template(folder: Path) -> None:
    error = assert_refused(folder, "no such file ./nowhere.jinja", "chatml", template="./nowhere.jinja")
    assert error.where == "model.chat_template"


def test_chat_template_that_is_no_jinja(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jinja").write_text("line one\n{% for message in messages %}{{ message")
    error = assert_refused(folder, "bad.jinja", "line 2", template=str(tmp_path / "bad.jinja"))
    assert error.where == "model.chat_template"


# ------------------------------------------------------------------------------------------------------------- the card
def test_chat_template_of_the_recipe_replaces_the_model_s(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("{{ messages[0]['content'] }}!")
    card = loading.read_card(str(folder), str(tmp_path / "own.jinja"))
    shown = card.tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert shown == "hi!"
    chatml = loading.read_card(str(folder), "chatml").tokenizer
    shown = chatml.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
    assert shown == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_every_end_token_is_collected(folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=[7, 2, 9])
    assert loading.read_card(str(folder)).stop_ids == (7, 2, 9)  # and the tokenizer's 2, once
    edit(folder / "generation_config.json", eos_token_id=9)
    assert loading.read_card(str(folder)).stop_ids == (9, 2)
    (folder / "generation_config.json").unlink()
    edit(folder / "config.json", eos_token_id=[5, 6])
    assert loading.read_card(str(folder)).stop_ids == (5, 6, 2)
    edit(folder / "config.json", eos_token_id=None)
    assert loading.read_card(str(folder)).stop_ids == (2,)


def test_context_is_the_number_of_positions(folder: Path) -> None:
    assert loading.read_card(str(folder)).context == 128


# ------------------------------------------------------------------------------------ the weights
def test_dropout_is_forced_to_zero_in_training_mode_too(tmp_path: Path) -> None:
    folder = tiny.directory(tmp_path, attention_dropout=0.5)
    assert json.loads((folder / "config.json").read_text())["attention_dropout"] == 0.5
    model = tiny.load(folder, gradient_checkpointing=True).model
    assert model.training and model.config.attention_dropout == 0.0
    assert [layer.self_attn.attention_dropout for layer in model.get_decoder().layers] == [0.0, 0.0]


def test_a_loaded_model_has_upslope_s_attention_and_the_wanted_dtype(folder: Path) -> None:
    loaded = tiny.load(folder, torch.bfloat16)
    assert loaded.model.config._attn_implementation == "upslope"
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    assert not loaded.model.training


def test_no_file_is_read_by_pickle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("torch.load was called")

    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    monkeypatch.setattr(torch, "load", forbidden)
    tiny.load(folder)


# --------------------------------------------------------------------------------------------------------------- saving
@pytest.mark.parametrize("kind", list(tiny.KINDS))
def test_a_saved_model_loads_in_plain_transformers_with_our_numbers(kind: str, tmp_path: Path) -> None:
    source = tiny.directory(tmp_path / "source", kind)
    edit(source / "generation_config.json", eos_token_id=[2, 9])
    loaded = tiny.load(source)
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight.mul_(1.1)  # as after training
    loading.save(loaded, tmp_path / "out", "# A card\n")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert plain.config._attn_implementation != "upslope"
    assert not [file.name for file in (tmp_path / "out").iterdir() if file.suffix in (".bin", ".pt", ".pth")]
    (prompt,) = tiny.prompts([19])
    answer = InProcessSampler(loaded.model, 128).sample([prompt], 1, Sampling(6, (2,)), [3])[0][0]
    log_p = tiny.stock_log_probs(plain, [*prompt, *answer.token_ids])[len(prompt) - 1 :]
    expected = log_p.gather(-1, torch.tensor(answer.token_ids)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(answer.logprobs), expected, atol=1e-5, rtol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (
        tokenizer.chat_template == loading.CHATML
        and tokenizer("a+1")["input_ids"] == tiny.tokenizer()("a+1")["input_ids"]
    )
    assert plain.generation_config.eos_token_id == [2, 9]
    assert (tmp_path / "out" / "README.md").read_text() == "# A card\n"


def test_a_generation_config_that_transformers_finds_odd_does_not_lose_the_run(folder: Path, tmp_path: Path) -> None:
    """Published models have them (a temperature without sampling); saving after hours of training must not fail."""
    edit(folder / "generation_config.json", do_sample=False, temperature=0.6, top_p=0.9)
    loading.save(tiny.load(folder), tmp_path / "out", "card")
    assert loading.read_card(str(tmp_path / "out")).stop_ids == (2,)
    tiny.load(tmp_path / "out")


# --------------------------------------------------------------------------------------------------- devices and dtypes
def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert loading.choose_device("auto") == torch.device("cpu")
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.raises(MachineError, match="Fix: set device: cpu"):
            loading.choose_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert loading.choose_device("auto") == torch.device("cuda")
    with pytest.raises(MachineError, match="there are 1 CUDA devices"):
        loading.choose_device("cuda:1")


def test_dtype_is_what_was_asked_for_and_auto_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert [loading.choose_dtype(name, cpu) for name in loading.DTYPES] == list(loading.DTYPES.values())
    for bf16, amx, wanted in [
        (True, False, torch.bfloat16),
        (False, True, torch.bfloat16),
        (False, False, torch.float32),
    ]:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda answer=bf16: answer)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda answer=amx: answer)
        assert loading.choose_dtype("auto", cpu) == wanted
