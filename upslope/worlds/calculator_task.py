"""Built-in task: products that a small model cannot do in its head, and can look up with a calculator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from upslope.errors import InputError
from upslope.worlds.calculator import calculate
from upslope.worlds.rewards import Part

if TYPE_CHECKING:
    from upslope.types import Example, Prompt

SIGNS = {"add": "+", "sub": "-", "mul": "*"}


class Calculator:
    """``What is 347 * 682?``: right where the last number of the answer is the result. For recipes with ``tools``.

    Args:
        operation: add, sub or mul.
        digits: of both numbers, 1 to 6; the first digit is not 0.
        size: questions to train on.
        heldout: questions to evaluate on; none of them, nor its mirror image, is trained on.
        seed: of the questions.

    Raises:
        InputError: an unknown operation, digits outside 1 to 6, or more questions than there are.
    """

    def __init__(
        self, operation: str = "mul", digits: int = 3, size: int = 4000, heldout: int = 256, seed: int = 0
    ) -> None:
        from upslope.seeds import generator

        if operation not in SIGNS:
            known = ", ".join(SIGNS)
            raise InputError("data.options.operation", f"{operation!r} is unknown", f"use one of {known}")
        if not 1 <= digits <= 6:
            raise InputError("data.options.digits", f"found {digits}, expected 1 to 6", "set it so")
        low, high = 10 ** (digits - 1), 10**digits
        there = (high - low) * (high - low + 1) // 2
        if size < 1 or heldout < 1 or 2 * (size + heldout) > there:
            problem = f"found size {size} and heldout {heldout}, of {there} different questions"
            raise InputError("data.options.size", problem, f"let them be at least 1 and together at most {there // 2}")
        self.name, self.operation, self.digits = "calculator", operation, digits
        draw = generator(seed, "calculator", operation, digits)
        pairs: dict[frozenset[int], tuple[int, int]] = {}
        while len(pairs) < size + heldout:
            left, right = (int(number) for number in draw.integers(low, high, 2))
            pairs.setdefault(frozenset((left, right)), (left, right))
        found = list(pairs.values())
        self._pairs = {"train": found[heldout:], "heldout": found[:heldout]}

    @property
    def reward_part(self) -> Part:
        """1 where the last number of the last message is the result, else 0."""
        return Part("upslope.worlds.reward_builtin:numeric", "right", options={})

    def _rows(self, split: str) -> list[tuple[str, str, str]]:
        """(id, expression, result)."""
        if split not in self._pairs:
            raise InputError("calculator split", f"{split!r} is unknown", "use train or heldout")
        sign = SIGNS[self.operation]
        texts = [(f"{self.operation}-{a}-{b}", f"{a} {sign} {b}") for a, b in self._pairs[split]]
        return [(name, text, calculate(text)) for name, text in texts]

    def prompts(self, split: str) -> list[Prompt]:
        """The questions of ``train`` or ``heldout``, each with its ``answer`` column."""
        from upslope.types import Prompt

        return [Prompt(name, f"What is {text}?", {"answer": answer}) for name, text, answer in self._rows(split)]

    def examples(self, split: str) -> list[Example]:
        """The same rows for supervised learning: the call, its result, and the answer."""
        from upslope.types import Example

        return [Example(name, _talk(text, answer), None) for name, text, answer in self._rows(split)]


def _talk(text: str, answer: str) -> tuple[dict[str, Any], ...]:
    call = {"type": "function", "function": {"name": "calculate", "arguments": {"expression": text}}}
    return (
        {"role": "user", "content": f"What is {text}?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "calculate", "content": answer},
        {"role": "assistant", "content": answer},
    )
