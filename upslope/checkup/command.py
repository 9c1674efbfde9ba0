"""`upslope check RECIPE`: what a run would do and need, and what looks wrong, before anything is trained."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from upslope.checkup.kinds import kind_of
from upslope.errors import InputErrors, UpslopeError
from upslope.recipes.configs import RECIPES
from upslope.run.recipe import load


def check_command(recipe: Path, overrides: Sequence[str], kind: str | None, as_json: bool) -> None:
    """Print what was found. Raises what the run would raise; with ``as_json`` the errors are printed too."""
    try:
        loaded = load(recipe, RECIPES[kind or kind_of(recipe, overrides)], overrides)
        from upslope.checkup.gather import check
        from upslope.models.quiet import quiet

        with quiet():
            found = check(loaded)
    except UpslopeError as error:
        if as_json:
            sys.stdout.write(_errors(error) + "\n")
        raise
    if as_json:
        sys.stdout.write(found.json() + "\n")
        return
    from upslope.checkup.show import show

    show(found, Console(emoji=False, highlight=False, markup=False))


def _errors(error: UpslopeError) -> str:
    """The errors as one JSON object with where, problem and fix of each."""
    all_of_them = error.errors if isinstance(error, InputErrors) else (error,)
    told = [
        {name: getattr(one, name) for name in ("where", "problem", "fix")} if hasattr(one, "where") else {
            "problem": str(one)
        }
        for one in all_of_them
    ]  # fmt: skip
    return json.dumps({"ok": False, "errors": told}, indent=1)
