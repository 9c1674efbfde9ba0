"""The table of bad inputs: 46 of them, most in several forms. ``test_bad_inputs`` runs each, applies its fix, and runs
again. docs/messages.md shows one form of each with what is said of it; the tests hold the page against it, and
``UPSLOPE_MESSAGES=write`` in their environment makes the page anew.
"""

from __future__ import annotations

from tests.inputs import bad_models, bad_preferences, bad_recipes, bad_rewards, bad_rows, bad_runs
from tests.inputs.table import Bad

TABLES = (bad_recipes, bad_rows, bad_models, bad_rewards, bad_runs, bad_preferences)
INPUTS: list[Bad] = sorted((row for table in TABLES for row in table.ALL), key=lambda row: row.number)
COUNT = 46


def ident(row: Bad) -> str:
    return f"{row.number}-{row.make.__name__}"
