"""The text of each token of a completion, for the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

LONGEST = 4
"""Bytes of a character in UTF-8: so many tokens may pass before it is whole."""
BROKEN = "\ufffd"


def pieces(tokenizer: Any, token_ids: Sequence[int]) -> list[str]:
    """What each token adds to the text, special tokens by their names.

    A character whose bytes are spread over several tokens belongs to the last of them; the others add "". Each token is
    decoded behind the one before it, since many tokenizers write a word differently at the beginning of a text. The
    time grows with the length, not with its square.
    """
    found: list[str] = []
    context, begin = 0, 0  # the token(s) before, and the first that has not been told
    for end in range(1, len(token_ids) + 1):
        before, after = (_decode(tokenizer, token_ids[context:place]) for place in (begin, end))
        if after.endswith(BROKEN) and end < len(token_ids) and end - begin < LONGEST:
            found.append("")
            continue
        found.append(after[len(before) :])
        context, begin = begin, end
    return found


def _decode(tokenizer: Any, token_ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
