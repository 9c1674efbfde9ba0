"""Reads ``survivors.md``: the mutants that no test kills, each with a judgement."""

from __future__ import annotations

import re
from pathlib import Path

LINE = re.compile(r"- `(?P<name>.+)`: (?P<verdict>equivalent|accepted), (?P<why>.+)")


def judged() -> dict[str, str]:
    """Judgement by ``Mutant.name``. Raises ValueError for a list item that is no judgement."""
    found = {}
    for line in Path(__file__).with_name("survivors.md").read_text("utf-8").splitlines():
        if line.startswith("- `"):
            match = LINE.fullmatch(line)
            if match is None:
                raise ValueError(f"survivors.md: not `name`: equivalent|accepted, why:\n{line}")
            found[match["name"]] = f"{match['verdict']}, {match['why']}"
    return found
