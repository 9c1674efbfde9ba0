"""The texts of single tokens: together they are the text, whatever a character is made of."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests import tiny
from upslope.models import tiny as words
from upslope.text.pieces import BROKEN, pieces


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, as byte-level BPE has without merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<end>": 0, **{letter: index for index, letter in enumerate(alphabet, 1)}}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """A space at the beginning of a text is dropped, as sentencepiece models do."""
    inner = Tokenizer(models.WordLevel({"<unk>": 0, "▁a": 1, "▁b": 2, "c": 3}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("text", ["plain", "naïve", "日本", "a🙂b", "e\u0301", "🙂", "two\n\tlines  "])
def test_together_they_are_the_text(text: str) -> None:
    tokenizer = bytes_tokenizer()
    found = pieces(tokenizer, ids(tokenizer, text))
    assert "".join(found) == text and len(found) == len(text.encode())
    assert BROKEN not in "".join(found)


def test_a_character_belongs_to_its_last_token() -> None:
    tokenizer = bytes_tokenizer()
    assert pieces(tokenizer, ids(tokenizer, "a🙂é")) == ["a", "", "", "", "🙂", "", "é"]


def test_bytes_that_are_no_text_do_not_pile_up() -> None:
    """Lone continuation bytes: after four of them something is told, and what follows is read rightly."""
    tokenizer = bytes_tokenizer()
    broken = [ids(tokenizer, "é")[1]] * 8
    found = pieces(tokenizer, [*broken, *ids(tokenizer, "ok")])
    assert found == ["", "", "", 4 * BROKEN] * 2 + ["o", "k"]


def test_special_tokens_have_their_names_and_spaces_stay() -> None:
    grid, chat, meta = words.tokenizer(), tiny.tokenizer(), metaspace_tokenizer()
    assert pieces(grid, [*ids(grid, "U R U"), grid.eos_token_id]) == ["U", " R", " U", " <eos>"]
    assert pieces(chat, [*ids(chat, "a b"), chat.eos_token_id]) == ["a", " ", "b", "<|im_end|>"]
    assert pieces(meta, [1, 2, 3, 1]) == ["a", " b", "c", " a"]
    assert pieces(chat, []) == []
