"""What a row of the table of bad inputs is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.inputs.desk import Desk, suggested

Mend = Callable[[Desk, str], Sequence[str]]
"""Applies what the message says to the desk; returns further arguments for the command, which must then succeed."""


@dataclass(frozen=True)
class Bad:
    """A bad input.

    ``number`` is its place among the 46. ``make`` puts it on a desk and returns how the message's fix is applied; None
    where the input is accepted and ``says`` is all that is to be seen. ``says`` are regular expressions that what is
    printed must hold: where, what was found, what was expected. ``then`` is the command after the fix, if it
    is another.
    ``note`` says what stands for a machine that is not at hand.
    """

    number: int
    name: str
    make: Callable[[Desk], Mend | None]
    says: tuple[str, ...]
    code: int
    command: str
    then: str
    note: str


class Table:
    """Collects rows: ``@table.bad(1, "unknown key", "where", "found")`` over the function that makes the input."""

    def __init__(self) -> None:
        self.rows: list[Bad] = []

    def bad(
        self,
        number: int,
        name: str,
        *says: str,
        code: int = 2,
        command: str = "grpo recipe.yaml",
        then: str = "",
        note: str = "",
    ) -> Callable[[Callable[[Desk], Mend | None]], Callable[[Desk], Mend | None]]:
        def keep(make: Callable[[Desk], Mend | None]) -> Callable[[Desk], Mend | None]:
            self.rows.append(Bad(number, name, make, says, code, command, then or command, note))
            return make

        return keep


def override(pattern: str) -> Mend:
    """The message's own ``key: value`` (the pattern's first group) as an override of the command line."""
    return lambda desk, said: [suggested(pattern, said).replace(": ", "=")]


def key(name: str, pattern: str) -> Mend:
    """The value that the message names, for a key."""
    return lambda desk, said: [f"{name}={suggested(pattern, said)}"]
