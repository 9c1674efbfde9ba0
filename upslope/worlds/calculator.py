"""A calculator for models: exact arithmetic on an expression's text, by a parser of its own. Needs only the standard
library.

The text comes from a model, so nothing of it is ever run: it is read character by character into numbers, operators and
parentheses, and everything else is refused. The length of the text, the nesting and the size of every number on the way
are limited, so no expression takes long.
"""

from __future__ import annotations

import re
from fractions import Fraction

LONGEST = 200
"""Characters of an expression."""
DEEPEST = 20
"""Parentheses, signs and powers inside each other."""
LARGEST_POWER = 256
BITS = 1024
"""Of the numerator and the denominator of every number on the way: about 300 digits."""
DIGITS = 12
"""Significant digits of a result that is not a whole number."""
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))|(?P<sign>\*\*|//|[-+*/%^()\u00d7\u00f7\u2212]))"
)
_SAME = {"^": "**", "\u00d7": "*", "\u00f7": "/", "\u2212": "-"}


def calculate(expression: str) -> str:
    """Calculate with numbers, exactly.

    Args:
        expression: Numbers with + - * / // % ** and parentheses, such as (12 + 7) * 3

    Returns:
        The result as a number.
    """
    return written(value_of(expression))


def value_of(expression: str) -> Fraction:
    """The exact value. ``//`` and ``%`` round down as Python's do; ``**`` binds closer than a sign before it.

    Raises:
        ValueError: not an expression, or too long, too deep or too large a one; the text says which.
        ZeroDivisionError: a division by 0.
    """
    if len(expression) > LONGEST:
        raise ValueError(f"the expression has {len(expression)} characters, at most {LONGEST} are read")
    reader = _Reader(_tokens(expression))
    found = reader.sum(0)
    if reader.rest:
        raise ValueError(f"expected an operator, found {reader.rest[0]!r}")
    return found


def written(value: Fraction) -> str:
    """A whole number with all its digits, another one with 12 significant ones."""
    if value.denominator == 1:
        return str(value.numerator)
    try:
        return f"{float(value):.{DIGITS}g}"
    except OverflowError:
        return str(round(value))


def _tokens(text: str) -> list[str]:
    found, place, text = [], 0, text.rstrip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise ValueError(f"{text[place:].lstrip()[:1]!r} is no part of an expression")
        token = match["number"] or match["sign"]
        found.append(_SAME.get(token, token))
        place = match.end()
    if not found:
        raise ValueError("the expression is empty")
    return found


class _Reader:
    """Recursive descent: sum, product, signed, power, atom. ``rest`` are the tokens that are still to be read."""

    def __init__(self, tokens: list[str]) -> None:
        self.rest = tokens

    def _next(self, *wanted: str) -> str | None:
        return self.rest.pop(0) if self.rest and self.rest[0] in wanted else None

    def sum(self, depth: int) -> Fraction:
        found = self.product(depth)
        while sign := self._next("+", "-"):
            other = self.product(depth)
            found = _checked(found + other if sign == "+" else found - other)
        return found

    def product(self, depth: int) -> Fraction:
        found = self.signed(depth)
        while sign := self._next("*", "/", "//", "%"):
            other = self.signed(depth)
            if sign != "*" and other == 0:
                raise ZeroDivisionError("division by 0")
            found = _checked(_DO[sign](found, other))
        return found

    def signed(self, depth: int) -> Fraction:
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} levels inside each other")
        if sign := self._next("+", "-"):
            inner = self.signed(depth + 1)
            return -inner if sign == "-" else inner
        return self.power(depth)

    def power(self, depth: int) -> Fraction:
        base = self.atom(depth)
        return _power(base, self.signed(depth + 1)) if self._next("**") else base

    def atom(self, depth: int) -> Fraction:
        if self._next("("):
            found = self.sum(depth + 1)
            if not self._next(")"):
                raise ValueError("a parenthesis is not closed")
            return found
        if not self.rest or not (self.rest[0][0].isdecimal() or self.rest[0][0] == "."):
            raise ValueError(f"expected a number, found {self.rest[0]!r}" if self.rest else "it ends too early")
        return _checked(Fraction(self.rest.pop(0).rstrip(".")))


_DO = {
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "//": lambda a, b: Fraction(a // b),
    "%": lambda a, b: a - b * (a // b),
}


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1 or abs(exponent) > LARGEST_POWER:
        most = LARGEST_POWER
        raise ValueError(f"the exponent {written(exponent)} is not a whole number from -{most} to {most}")
    if base == 0 and exponent < 0:
        raise ZeroDivisionError("division by 0")
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if size * abs(exponent) > 2 * BITS:  # before it is computed
        raise ValueError("a number on the way is too large")
    return _checked(Fraction(base ** int(exponent)))


def _checked(value: Fraction) -> Fraction:
    if max(abs(value.numerator), value.denominator).bit_length() > BITS:
        raise ValueError("a number on the way is too large")
    return value
