"""Derivation of every random number from the run's seed.

A number depends on the run seed and on what it is for (a purpose and indices such as step, prompt, sample), never on a
worker, a clock, a batch or a global generator. So a resumed run, a run with other batch sizes and a run on several
processes draw the same numbers.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for ``purpose``, by BLAKE2b of the run seed and the purpose.

    ``derive(0, "rollout", step, prompt)`` and ``derive(0, "shuffle", epoch)`` are unrelated streams.
    """
    text = "\x1f".join([str(int(seed)), *(f"{type(part).__name__}:{part}" for part in purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A counter-based generator (Philox) for ``purpose``."""
    return np.random.Generator(np.random.Philox(key=derive(seed, *purpose)))


def uniforms(seed: int, count: int, *purpose: str | int) -> np.ndarray:
    """``count`` numbers in [0, 1), float64: number ``t`` belongs to position ``t`` whatever ``count`` is."""
    return generator(seed, *purpose).random(count)


def permutation(seed: int, size: int, *purpose: str | int) -> list[int]:
    """A permutation of ``range(size)``."""
    return [int(index) for index in generator(seed, *purpose).permutation(size)]
