"""Which models are served, and which are refused by name because our attention would not compute what they do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from tests import tiny
from upslope.errors import InputError
from upslope.models import verify as module
from upslope.models.verify import difference, verify

DTYPES = [torch.float32, torch.bfloat16]


def build(cls: Any, config: Any, **changes: Any) -> Any:
    torch.manual_seed(0)
    return cls(config(**{**tiny.SIZE, **changes})).eval()


class Overruled:
    """A config seen by one module, with another sliding window."""

    def __init__(self, config: Any, window: int | None) -> None:
        self.config, self.sliding_window = config, window

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)


def pass_on(model: Any, window: int | None) -> None:
    """Let the layers tell the attention function another window than the one that the model's masks are made of."""
    for layer in model.get_decoder().layers:
        if hasattr(layer.self_attn, "sliding_window"):  # Gemma 3
            layer.self_attn.sliding_window = window
        else:  # Mistral reads it from the config
            layer.self_attn.config = Overruled(layer.self_attn.config, window)


REFUSED = {
    "Gemma2": lambda: build(Gemma2ForCausalLM, Gemma2Config, query_pre_attn_scalar=8, attn_logit_softcapping=1.0),
    "Gemma2 with capped logits alone": lambda: build(
        Gemma2ForCausalLM, Gemma2Config, attn_logit_softcapping=None, final_logit_softcapping=1.0
    ),
    "Granite": lambda: build(GraniteForCausalLM, GraniteConfig, logits_scaling=8.0),
    "Cohere": lambda: build(CohereForCausalLM, CohereConfig, logit_scale=0.1),
    "Mamba": lambda: build(MambaForCausalLM, MambaConfig, state_size=4),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", list(tiny.KINDS))
def test_served_kinds_are_accepted(kind: str, dtype: torch.dtype) -> None:
    model = tiny.model(kind, dtype=dtype)
    verify(model, "tiny")
    assert model.config._attn_implementation == "sdpa"  # left as it was


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("what", list(REFUSED))
def test_models_that_compute_something_else_are_refused_by_name(what: str, dtype: torch.dtype) -> None:
    with pytest.raises(InputError) as caught:
        verify(REFUSED[what]().to(dtype), "someone/model")
    assert caught.value.where == "model.name"
    assert "someone/model" in str(caught.value) and f"{what.split()[0]}ForCausalLM" in str(caught.value)
    assert "Fix: use a Llama" in str(caught.value)


def test_an_output_head_with_a_bias_is_refused() -> None:
    model = tiny.model("llama")
    model.lm_head = torch.nn.Linear(32, tiny.VOCAB)
    with pytest.raises(InputError, match="head with a bias"):
        verify(model, "biased")


@pytest.mark.parametrize("kind", ["mistral", "gemma3"])
def test_the_comparison_reaches_beyond_the_sliding_window(kind: str) -> None:
    assert module.window_of(tiny.model(kind).config) == {"mistral": 12, "gemma3": 8}[kind]
    assert module.window_of(tiny.model("llama").config) == 0
    assert module.window_of(tiny.model("qwen2", sliding_window=16, use_sliding_window=False).config) == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kind", "window"), [("mistral", 12), ("mistral", 60), ("gemma3", 8)])
def test_a_window_that_is_not_passed_on_is_refused(kind: str, window: int, dtype: torch.dtype) -> None:
    """Stock masks still have the window (they read the config); our attention reads what the layer passes to it."""
    model = tiny.model(kind, dtype=dtype, sliding_window=window)
    verify(model, "whole")
    pass_on(model, None)
    with pytest.raises(InputError, match="computes something that upslope's attention does not"):
        verify(model, "hacked")


def test_a_window_off_by_one_is_refused() -> None:
    model = tiny.model("mistral")
    pass_on(model, 13)
    with pytest.raises(InputError, match="log-probabilities differ"):
        verify(model, "hacked")


def test_parallel_residuals_and_partial_rotation_are_served_where_the_attention_is_plain() -> None:
    """Not on the list, but nothing of GPT-NeoX lies outside what the comparison covers: it decides, not the name."""
    config = {key: value for key, value in tiny.SIZE.items() if key not in ("head_dim", "num_key_value_heads")}
    torch.manual_seed(0)
    verify(GPTNeoXForCausalLM(GPTNeoXConfig(**config)).eval(), "neox")


def test_the_difference_of_a_good_model_is_rounding_and_of_a_bad_one_is_not() -> None:
    ours, noise = difference(tiny.model("qwen3"))
    assert ours < 1e-6 and noise < 1e-6
    ours, _ = difference(REFUSED["Granite"]())
    assert ours > 0.1


def test_load_verifies(tmp_path: Path) -> None:
    REFUSED["Granite"]().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="GraniteForCausalLM"):
        tiny.load(tmp_path)
