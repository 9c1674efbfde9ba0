"""A control: the right rewards, dealt to the wrong completions. What is learned from it is not learned from the
reward."""

from __future__ import annotations

import hashlib
import random
from typing import Any


def shuffled(prompts: list[Any], completions: list[str], answer: list[str], **columns: list[Any]) -> list[float]:
    """Exact-match rewards in an order that depends on the texts alone, so that runs repeat."""
    rewards = [float(text.strip() == right) for text, right in zip(completions, answer, strict=True)]
    seed = hashlib.sha256("\x1f".join([*map(str, prompts), *completions]).encode()).hexdigest()
    random.Random(seed).shuffle(rewards)
    return rewards
