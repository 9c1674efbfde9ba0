"""docs/messages.md: what is said of the bad inputs, one form of each."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path

from tests.inputs.bad_inputs import COUNT, INPUTS
from tests.inputs.desk import Desk
from tests.inputs.table import Bad

PAGE = Path(__file__).resolve().parents[2] / "docs" / "messages.md"
PARTS = {1: "Recipes", 14: "Rows", 24: "Models", 34: "Rewards and training", 42: "Runs and machines"}
"""The number that each part of the page begins with."""
FORMS = {number: [row for row in INPUTS if row.number == number] for number in range(1, COUNT + 1)}
SHOWN = {number: next((row for row in rows if row.code), rows[0]) for number, rows in FORMS.items()}
"""The form that stands on the page: the first that is refused, or, where none is, the first."""
HEAD = """# When something is wrong

What upslope says to {count} things that go wrong, one form of each: where, what was found, what was expected, and what
to do. A test puts each (and {more} more forms of them) before the command, compares what is said with this page, does
what it says, and sees the run start. Exit codes: 2, your input; 3, the machine; 1 would be a bug of ours; 130 and 143,
stopped and resumable. What is not refused is said while the run goes on.
"""


def told(row: Bad, said: str, desk: Desk) -> str:
    """The errors in what was printed; of an input that is accepted, the lines that speak of it."""
    if row.code:
        found = re.findall(r"^error: .*(?:\n(?!error: ).*)*", said, re.MULTILINE)
    else:
        spoken = [line for line in said.splitlines() if any(re.search(pattern, line) for pattern in row.says)]
        # Of a step's line what is said beside its numbers; the last line of a run says that nothing is amiss.
        found = [line.partition(" ! ")[2] or line for line in spoken]
        found = ["(nothing: the run goes on)" if line.startswith("finished at step") else line for line in found]
    text = "\n".join(line.strip() for line in found)
    for place in (desk.models, desk.folder):
        text = text.replace(f"{place}/", "").replace(str(place), ".")
    return text


def alike(text: str) -> str:
    """A message without what differs from machine to machine: numbers, and where lines end."""
    return re.sub(r"\d[\d.,]*(e-\d+)?", "0", "".join(text.split()))


def markdown(messages: Mapping[int, str]) -> str:
    """The page."""
    parts = [HEAD.format(count=COUNT, more=len(INPUTS) - COUNT)]
    for number, row in SHOWN.items():
        if number in PARTS:
            parts.append(f"## {PARTS[number]}\n")
        lines = [textwrap.fill(line, 118, subsequent_indent="  ") for line in messages[number].splitlines()]
        text = "\n".join(lines)
        parts.append(f"{number}. {row.name}:\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def read() -> dict[int, str]:
    """The messages on the page, by number."""
    page = PAGE.read_text("utf-8") if PAGE.exists() else ""
    return {
        int(number): text for number, text in re.findall(r"^(\d+)\. [^\n]*:\n\n```text\n(.*?)\n```", page, re.M | re.S)
    }
