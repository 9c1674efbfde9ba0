"""Tiny models and a character tokenizer: small fakes that are real Hugging Face directories."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from upslope.models import attention, loading
from upslope.models.loading import CHATML, LanguageModel

SPECIAL = ["<pad>", "<|im_start|>", "<|im_end|>", "<unk>"]
CHARACTERS = string.digits + string.ascii_letters + " +-*/=?.,:;!\n<>|_[]()'\""


def tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    """One token a character; chatml's markers are special tokens; the end token is <|im_end|>, padding is its own."""
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *CHARACTERS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>", eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )  # fmt: skip
    if chat:
        fast.chat_template = CHATML
    return fast


VOCAB = len(SPECIAL) + len(CHARACTERS)
SIZE: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "initializer_range": 0.2,
    "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "smollm": (
        LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True, "hidden_size": 48, "num_attention_heads": 6},
    ),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": 12}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {}),
    "gemma3": (
        Gemma3ForCausalLM, Gemma3TextConfig,
        {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
}  # fmt: skip


def model(kind: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A randomly initialised stock model of that kind."""
    cls, config, own = KINDS[kind]
    torch.manual_seed(seed)
    return cls(config(**{**SIZE, **own, **changes})).to(dtype).eval()


def directory(path: Path, kind: str = "llama", seed: int = 0, chat: bool = True, **changes: Any) -> Path:
    """A model directory, as a user would have one."""
    model(kind, seed, **changes).save_pretrained(path)
    tokenizer(chat).save_pretrained(path)
    return path


def load(path: Path, dtype: torch.dtype = torch.float32, gradient_checkpointing: bool = False) -> LanguageModel:
    """The model of a directory, the way a recipe loads it."""
    return loading.load(loading.read_card(str(path)), torch.device("cpu"), dtype, gradient_checkpointing)


def served(kind: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """The model of ``model`` with upslope's attention, without a directory."""
    out = model(kind, seed, dtype, **changes)
    out.set_attn_implementation(attention.NAME)
    return out


def stock_log_probs(stock: Any, row: Sequence[int] | torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """[len(row) - 1, vocab]: what plain transformers says of each next token of one row, without padding or packing."""
    ids = torch.as_tensor(row)
    logits = stock(input_ids=ids[None], use_cache=False).logits[0, :-1]
    return (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(-1)


def prompts(lengths: Sequence[int], seed: int = 0, first: int = 4, vocab: int = VOCAB) -> list[list[int]]:
    """Random prompts of those lengths, of ids ``first`` and above."""
    source = torch.Generator().manual_seed(seed)
    return [torch.randint(first, vocab, (length,), generator=source).tolist() for length in lengths]
