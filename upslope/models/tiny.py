"""A tiny Llama with words for tokens, made on the spot: the model of the text gridworld, small enough to be exact.

``text-grid-tiny`` is the one of seed 0, ``text-grid-tiny-7`` that of seed 7. It is written once into the cache as a
plain model directory with random weights, and read like any other.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upslope.models.bundled import cache_root
from upslope.models.quiet import quiet
from upslope.seeds import generator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NAME = "text-grid-tiny"
FORM = 1
"""Part of the folder's name: raise it when anything below changes, so that no old folder is taken."""
SPECIAL = ("<pad>", "<unk>", "<bos>", "<eos>", "<sep>")
WORDS = ("U", "R", "D", "L", *map(str, range(20)), ".", "#", "@", "/", "+", "-", "~")
WIDTH = 0.1
"""Standard deviation of the weights at the start: at Llama's .02 so narrow a network says the same of every cell."""
_NAMED = re.compile(rf"{NAME}(?:-(\d{{1,9}}))?")


def seed_of(name: str) -> int | None:
    """The seed in a model's name; None if it does not name this model."""
    found = _NAMED.fullmatch(name)
    return None if found is None else int(found[1] or 0)


def directory(seed: int) -> Path:
    """The model directory, made at the first call (well under a second)."""
    target = cache_root() / f"{NAME}-{seed}-form{FORM}"
    if (target / "config.json").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".tmp-") as scratch:
        plain = Path(scratch) / "plain"
        _write(seed, plain)
        try:
            plain.rename(target)
        except OSError:  # another process was faster: its directory is the same
            if not (target / "config.json").is_file():
                raise
    return target


@quiet()
def _write(seed: int, target: Path) -> None:
    network(seed).save_pretrained(target)
    tokenizer().save_pretrained(target)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word between spaces; a prompt begins with ``<bos>``, a completion ends with ``<eos>``."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", bos_token="<bos>", eos_token="<eos>",
        sep_token="<sep>",
    )  # fmt: skip


def network(seed: int) -> Any:
    """A Llama of 2 layers and width 32: normal weights drawn from the seed, in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    size = len(SPECIAL) + len(WORDS)
    config = LlamaConfig(
        vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, head_dim=8, max_position_embeddings=1024, initializer_range=WIDTH,
        tie_word_embeddings=False, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):  # its own start is thrown away
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:  # norms stay at 1
                drawn = generator(seed, NAME, name).standard_normal(tuple(weight.shape))
                weight.copy_(WIDTH * torch.from_numpy(drawn))
    return model
