"""The table of bad inputs: 46 of them, most in several forms. ``test_bad_inputs`` runs each, applies its fix, and runs
again.

    python -m tests.inputs.bad_inputs

prints it as Markdown.
"""

from __future__ import annotations

import sys

from tests.inputs import bad_models, bad_preferences, bad_recipes, bad_rewards, bad_rows, bad_runs
from tests.inputs.table import Bad

TABLES = (bad_recipes, bad_rows, bad_models, bad_rewards, bad_runs, bad_preferences)
INPUTS: list[Bad] = sorted((row for table in TABLES for row in table.ALL), key=lambda row: row.number)
COUNT = 46


def ident(row: Bad) -> str:
    return f"{row.number}-{row.make.__name__}"


def markdown() -> str:
    """Number, what is wrong, exit code, what the message must hold, and what stands for a machine that is not here."""
    lines = ["| # | input | exit | must be said | simulated |", "|---|---|---|---|---|"]
    for row in INPUTS:
        said = "; ".join(f"`{pattern}`" for pattern in row.says).replace("|", "\\|").replace("\n", "\\n")
        lines.append(f"| {row.number} | {row.name} | {row.code} | {said} | {row.note} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
