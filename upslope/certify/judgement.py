"""A verdict on a user's function: findings in plain words and the numbers behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from upslope.certify.lines import number


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was seen. A ``bias`` denies the certificate, a ``note`` does not. ``name`` is for programs."""

    kind: Literal["bias", "note"]
    name: str
    text: str


def bias(name: str, text: str) -> Finding:
    return Finding("bias", name, text)


def note(name: str, text: str) -> Finding:
    return Finding("note", name, text)


@dataclass(frozen=True, slots=True)
class Measure:
    """A number of the report: what was measured, what is right or what to compare with, what was found."""

    checked: str
    wanted: float | str
    found: float | str


@dataclass(frozen=True, slots=True)
class Judgement:
    """``weights`` says which weights were put on what the function returned."""

    function: str
    signature: str
    weights: str
    findings: tuple[Finding, ...]
    measures: tuple[Measure, ...]

    @property
    def certified(self) -> bool:
        return not any(finding.kind == "bias" for finding in self.findings)

    @property
    def biases(self) -> tuple[str, ...]:
        """Names of the biases."""
        return tuple(finding.name for finding in self.findings if finding.kind == "bias")

    def as_json(self) -> dict[str, Any]:
        plain = lambda x: x if isinstance(x, str) or math.isfinite(x) else str(x)  # noqa: E731
        return {
            "function": self.function, "signature": self.signature, "weights": self.weights,
            "certified": self.certified,
            "findings": [{"kind": f.kind, "name": f.name, "text": f.text} for f in self.findings],
            "measures": [
                {"checked": m.checked, "wanted": plain(m.wanted), "found": plain(m.found)} for m in self.measures
            ],
        }  # fmt: skip


def print_judgement(judgement: Judgement, console: Console) -> None:
    """The verdict, the findings, the numbers."""
    console.print(f"{judgement.function}: {judgement.signature}", markup=False, soft_wrap=True)
    style, word = ("bold green", "CERTIFIED") if judgement.certified else ("bold red", "NOT CERTIFIED")
    console.print(Text(word, style))
    for finding in _ordered(judgement.findings):
        mark = "-" if finding.kind == "bias" else "note:"
        console.print(f"  {mark} {finding.text}", markup=False, soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(("measured exactly", "right", "yours")):
        table.add_column(column, justify="left" if place == 0 else "right", overflow="fold")
    for measure in judgement.measures:
        table.add_row(Text(measure.checked), Text(number(measure.wanted)), Text(number(measure.found)))
    console.print(table)
    console.print(f"weights: {judgement.weights}", markup=False, soft_wrap=True)


def _ordered(findings: Sequence[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: finding.kind != "bias")
