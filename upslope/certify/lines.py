"""What a certificate says: one line a check, with the exact answer, ours, their difference and a verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

COLUMNS = ("algorithm", "checked", "exact", "ours", "difference", "verdict")


@dataclass(frozen=True, slots=True)
class Line:
    """One check. It passes where ``difference`` is at most ``tolerance`` (NaN never passes).

    ``exact`` and ``ours`` are what is shown: numbers or words. For gradients they are norms, and ``difference`` is the
    norm of the difference relative to the exact one. ``note`` is what the theory says where the right answer is a bias.
    """

    algorithm: str
    checked: str
    exact: float | str
    ours: float | str
    difference: float
    tolerance: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.difference <= self.tolerance

    @property
    def verdict(self) -> str:
        """``exact`` up to rounding, ``certified`` within a bound, ``as stated`` for a known bias, ``FAILED``."""
        if not self.passed:
            return f"FAILED: above {self.tolerance:g}"
        if self.note:
            return f"as stated: {self.note}"
        return "exact" if self.tolerance <= 1e-6 else f"certified: below {self.tolerance:g}"

    def as_json(self) -> dict[str, Any]:
        """Plain values; numbers that are not finite as words, since JSON has none."""
        return {
            "algorithm": self.algorithm, "checked": self.checked, "exact": _plain(self.exact),
            "ours": _plain(self.ours), "difference": _plain(self.difference), "tolerance": self.tolerance,
            "passed": self.passed, "verdict": self.verdict,
        }  # fmt: skip


def _plain(value: float | str) -> float | str:
    return value if isinstance(value, str) or math.isfinite(value) else str(value)


def number(value: float | str) -> str:
    """Six significant digits; words as they are."""
    if isinstance(value, str):
        return value
    return "0" if value == 0 else f"{value:.6g}"


def print_lines(lines: Sequence[Line], console: Console) -> None:
    """The table, and a last line that counts."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    for place, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if 2 <= place <= 4 else "left", overflow="fold")
    for line in lines:
        style = "green" if line.passed else "bold red"
        table.add_row(
            line.algorithm, Text(line.checked), Text(number(line.exact)), Text(number(line.ours)),
            Text(f"{line.difference:.1e}"), Text(line.verdict, style),
        )  # fmt: skip
    console.print(table)
    console.print(summary(lines), markup=False, soft_wrap=True)


def summary(lines: Iterable[Line]) -> str:
    """``38 of 38 lines hold.``, or which do not."""
    every = list(lines)
    failed = [f"{line.algorithm}: {line.checked}" for line in every if not line.passed]
    told = f"{len(every) - len(failed)} of {len(every)} lines hold."
    return told if not failed else f"{told} Not: {'; '.join(failed)}."
