"""Built-in task: sums of two whole numbers, scored by exact match. Small models start near 0 and can learn it in
minutes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from upslope.errors import InputError

if TYPE_CHECKING:
    from upslope.types import Example, Prompt

OPERATIONS: dict[str, tuple[str, Callable[[int, int], int]]] = {
    "add": ("+", lambda a, b: a + b),
    "sub": ("-", lambda a, b: a - b),
    "mul": ("*", lambda a, b: a * b),
}
_NUMBER = re.compile(r"(?:(?<![0-9.])-)?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?")


class Arithmetic:
    """``What is 16 + 44?`` -> ``60``, for every pair of numbers of ``digits`` digits, split into train and heldout.

    A pair and its mirror image (16 + 44, 44 + 16) are always in the same split, and for subtraction the larger number
    comes first. ``heldout`` is the least number of held-out prompts (one more where a mirrored pair fills it up). The
    split depends only on the parameters. Three digits make 810,000 prompts, some hundred megabytes.

    Raises:
        InputError: unknown operation, digits outside 1 to 3, or a heldout that leaves nothing to train on.
    """

    reward_source = "upslope.worlds.arithmetic:exact_match"

    def __init__(self, operation: str = "add", digits: int = 2, heldout: int = 512, seed: int = 0) -> None:
        from upslope.seeds import permutation  # here: numpy is not needed in the reward's process

        if operation not in OPERATIONS:
            allowed = ", ".join(OPERATIONS)
            raise InputError(
                "arithmetic operation", f"{operation!r} is unknown, expected one of {allowed}", f"use one of {allowed}"
            )
        if digits not in (1, 2, 3):
            raise InputError("arithmetic digits", f"found {digits!r}, expected 1, 2 or 3", "set digits to 1, 2 or 3")
        low, high = (10 ** (digits - 1) if digits > 1 else 0), 10**digits
        unordered = [(a, b) for a in range(low, high) for b in range(low, a + 1)]
        both_ways = operation != "sub"
        pool = sum(2 if both_ways and a != b else 1 for a, b in unordered)
        if not 1 <= heldout < pool - 1:
            problem = (
                f"found {heldout!r}, expected 1 to {pool - 2} ({operation} with {digits} digits has {pool} prompts)"
            )
            raise InputError("arithmetic heldout", problem, "lower heldout or raise digits")
        self.name = "arithmetic"
        self.operation, self.digits, self.heldout, self.seed = operation, digits, heldout, seed
        self._pairs: dict[str, list[tuple[int, int]]] = {"train": [], "heldout": []}
        for index in permutation(seed, len(unordered), "arithmetic", operation, digits):
            a, b = unordered[index]
            side = self._pairs["heldout" if len(self._pairs["heldout"]) < heldout else "train"]
            side.extend([(a, b), (b, a)] if both_ways and a != b else [(a, b)])
        for pairs in self._pairs.values():
            order = permutation(seed, len(pairs), "arithmetic order", operation, digits)  # mirrored pairs apart
            pairs[:] = [pairs[index] for index in order]

    def __repr__(self) -> str:
        return f"Arithmetic({self.operation!r}, digits={self.digits}, heldout={self.heldout}, seed={self.seed})"

    def numbers(self, split: str) -> list[tuple[int, int]]:
        """The pairs of numbers of ``train`` or ``heldout``, in an order drawn from the seed."""
        if split not in self._pairs:
            raise InputError(
                "arithmetic split", f"{split!r} is unknown, expected train or heldout", "use train or heldout"
            )
        return list(self._pairs[split])

    def _rows(self, split: str) -> list[tuple[str, str, str]]:
        numbers = self.numbers(split)
        sign, compute = OPERATIONS[self.operation]
        return [(f"{self.operation}-{a}-{b}", f"What is {a} {sign} {b}?", str(compute(a, b))) for a, b in numbers]

    def prompts(self, split: str) -> list[Prompt]:
        """The prompts of ``train`` or ``heldout``, each with its ``answer`` column, in an order drawn from the seed."""
        from upslope.types import Prompt

        return [Prompt(name, question, {"answer": answer}) for name, question, answer in self._rows(split)]

    def examples(self, split: str) -> list[Example]:
        """The same rows for supervised learning: the completion is the bare number."""
        from upslope.types import Example

        return [Example(name, question, answer) for name, question, answer in self._rows(split)]

    def reward(self, prompts: list[Any], completions: list[Any], **columns: list[Any]) -> list[float | None]:
        """1.0 where the stripped completion is the answer, else 0.0."""
        return exact_match(prompts, completions, **columns)


def exact_match(
    prompts: list[Any], completions: list[Any], answer: list[Any], **columns: list[Any]
) -> list[float | None]:
    """1.0 where the completion, stripped of white space around it, is the answer's text; else 0.0."""
    return [float(_text(found).strip() == right) for found, right in zip(completions, answer, strict=True)]


def lenient(completions: Sequence[Any], answer: Sequence[str]) -> list[float]:
    """1.0 where the last number in the completion equals the answer: counts ``16 + 44 = 60.`` as right.

    Shown beside the strict score of a model before training, whose 0 is mostly a matter of form.
    """
    scores = []
    for found, right in zip(completions, answer, strict=True):
        numbers = _NUMBER.findall(_text(found))
        scores.append(float(bool(numbers) and Decimal(numbers[-1].replace(",", "")) == Decimal(right)))
    return scores


def _text(completion: Any) -> str:
    """A completion's text; of a conversational one the last message's."""
    return completion if isinstance(completion, str) else completion[-1]["content"]
