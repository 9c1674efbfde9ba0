"""Headers of safetensors files: what they say, against the library; and files that are broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from tests import tiny
from upslope.errors import InputError
from upslope.models.weights import Stored, find, parameters, stored_tensors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.directory(tmp_path / "model", "qwen2")


def test_names_types_and_shapes_are_the_librarys(folder: Path) -> None:
    with safe_open(folder / "model.safetensors", "pt") as file:
        slices = {name: file.get_slice(name) for name in list(file.keys())}
        wanted = {name: (one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in stored_tensors(folder).items()} == wanted


@pytest.mark.parametrize("kind", ["llama", "smollm", "qwen2", "gemma3"])
def test_parameters_are_those_of_the_loaded_model(tmp_path: Path, kind: str) -> None:
    place = tiny.directory(tmp_path / kind, kind)
    model = AutoModelForCausalLM.from_pretrained(place)
    stored = find(str(place))
    assert stored is not None
    tied = bool(model.config.tie_word_embeddings)
    assert parameters(stored, tied) == sum(weight.numel() for weight in model.parameters())


def test_a_stored_copy_of_a_tied_head_does_not_count() -> None:
    stored = {"model.embed_tokens.weight": Stored("F32", (5, 2)), "lm_head.weight": Stored("F32", (5, 2))}
    assert (parameters(stored, tied=True), parameters(stored)) == (10, 20)


def test_shards_are_read_by_the_index(tmp_path: Path) -> None:
    whole = tiny.directory(tmp_path / "whole")
    tiny.model("llama").save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
    assert stored_tensors(tmp_path / "shards") == stored_tensors(whole)
    missing = sorted((tmp_path / "shards").glob("*.safetensors"))[1]
    missing.unlink()
    with pytest.raises(InputError, match=f"lacks 1 of .* weight files: {missing.name}"):
        stored_tensors(tmp_path / "shards")


def test_broken_files_are_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    broken = {
        whole[:-1]: "is cut short",
        whole[:40]: "its header is cut short",
        b"": "its header is cut short",
        b"\xff" * 64: "no header",
        whole[:8] + b"{" * length + whole[8 + length :]: "no whole safetensors file",
        (2).to_bytes(8, "little") + b"[]": "no whole safetensors file",
    }
    for data, words in broken.items():
        file.write_bytes(data)
        with pytest.raises(InputError, match=words) as caught:
            stored_tensors(folder)
        assert str(file) in str(caught.value) and caught.value.fix == "fetch the model again"


def test_an_index_that_is_none(folder: Path) -> None:
    for text in ("{", "[]", json.dumps({"weight_map": 3})):
        (folder / "model.safetensors.index.json").write_text(text)
        with pytest.raises(InputError, match="no index of shards"):
            stored_tensors(folder)


def test_a_hub_that_cannot_be_reached_gives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(name: str) -> None:
        raise ConnectionError(name)

    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", unreachable)
    assert find("nobody/no-such-model-of-tests") is None
