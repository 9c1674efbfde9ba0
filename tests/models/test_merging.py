"""`upslope merge`: a plain directory that says what the adapter said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

import upslope
from tests import tiny
from tests.models.adapter_support import adapted, logprobs, plain, rows, saved, stock_logprobs, with_peft
from tests.models.test_adapter_files import peft_adapter
from upslope.errors import InputError
from upslope.models import adapters

NAME = adapters.NAME


@pytest.mark.parametrize("kind", ["smollm", "qwen2", "gemma3"])
def test_the_merged_model_says_what_the_adapter_said(kind: str, tmp_path: Path) -> None:
    base = tiny.directory(tmp_path / "base", kind)
    loaded = adapted(base)
    out = upslope.merge(saved(loaded, tmp_path / "adapter"), tmp_path / "merged")
    expected = logprobs(loaded.model, rows())
    torch.testing.assert_close(stock_logprobs(plain(out), rows()).detach(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logprobs(tiny.load(out).model, rows()), expected, atol=1e-5, rtol=1e-5)
    assert float((logprobs(tiny.load(base).model, rows()) - expected).abs().max()) > 0.1
    assert not (out / "adapter_config.json").exists() and (out / "chat_template.jinja").exists()
    assert tiny.load(out).card.stop_ids == tiny.load(base).card.stop_ids


def test_a_bfloat16_base_is_merged_in_float32_and_rounded_once(tmp_path: Path) -> None:
    tiny.model("smollm", dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    loaded = adapted(tmp_path / "base", torch.bfloat16)
    out = upslope.merge(saved(loaded, tmp_path / "adapter"), tmp_path / "merged")
    found = load_file(out / "model.safetensors")
    for name, layer in adapters.layers(loaded.model).items():
        delta = 2.0 * layer.lora_B[NAME].weight @ layer.lora_A[NAME].weight
        expected = (layer.base_layer.weight.to(torch.float32) + delta).to(torch.bfloat16)
        torch.testing.assert_close(found[f"{name}.weight"], expected, atol=0, rtol=0)
    wide = upslope.merge(tmp_path / "adapter", tmp_path / "wide", dtype="float32")
    assert {tensor.dtype for tensor in load_file(wide / "model.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize(
    "changes",
    [{"use_dora": True}, {"use_rslora": True}, {"modules_to_save": ["lm_head"]}, {"init_lora_weights": "olora"}],
)
def test_what_is_not_trained_here_is_merged_by_peft(tmp_path: Path, changes: dict[str, Any]) -> None:
    base = tiny.directory(tmp_path / "base", "llama")  # its head is not tied
    config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM", **changes)
    adapter = peft_adapter(base, tmp_path / "adapter", config)
    expected = stock_logprobs(with_peft(base, adapter), rows()).detach()
    out = upslope.merge(adapter, tmp_path / "merged")
    torch.testing.assert_close(stock_logprobs(plain(out), rows()).detach(), expected, atol=1e-5, rtol=1e-5)


def test_a_head_that_is_not_tied_may_be_adapted_and_a_tied_one_not(tmp_path: Path) -> None:
    config = {"r": 2, "target_modules": ["q_proj", "lm_head"], "task_type": "CAUSAL_LM"}
    free = tiny.directory(tmp_path / "free", "llama")
    adapter = peft_adapter(free, tmp_path / "free-adapter", LoraConfig(**config))
    expected = stock_logprobs(with_peft(free, adapter), rows()).detach()
    out = upslope.merge(adapter, tmp_path / "merged")
    torch.testing.assert_close(stock_logprobs(plain(out), rows()).detach(), expected, atol=1e-5, rtol=1e-5)
    tied = tiny.directory(tmp_path / "tied", "smollm")
    with pytest.raises(InputError, match="it changes lm_head, whose weights are another layer's too"):
        upslope.merge(peft_adapter(tied, tmp_path / "tied-adapter", LoraConfig(**config)), tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_what_cannot_be_merged_is_refused(tmp_path: Path) -> None:
    base = tiny.directory(tmp_path / "base")
    adapter = saved(adapted(base), tmp_path / "adapter")
    with pytest.raises(InputError, match=r"base is no adapter \(it has no adapter_config.json\)"):
        upslope.merge(base, tmp_path / "out")
    with pytest.raises(InputError, match="'int8' is unknown"):
        upslope.merge(adapter, tmp_path / "out", dtype="int8")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"there is something already\. Fix: give another folder"):
        upslope.merge(adapter, tmp_path / "full")
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"
