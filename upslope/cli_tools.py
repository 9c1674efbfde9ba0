"""The commands around training: check, init, doctor, watch, rollouts, schema."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from upslope.errors import InputError
from upslope.recipes.configs import RECIPES

EXTRA = {"ignore_unknown_options": True}
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Kind = Annotated[Optional[str], typer.Option(help=f"The command it is for: {', '.join(RECIPES)}; none: told from it.")]  # noqa: UP045


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(context_settings=EXTRA)(check)
    app.command()(init)
    app.command()(watch)
    app.command()(rollouts)
    app.command()(doctor)
    app.command()(schema)


def check(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file, e.g. recipes/grpo-arithmetic.yaml")],
    overrides: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(metavar="[KEY=VALUE]...", help="Override recipe keys, as for the run."),
    ] = None,
    kind: Kind = None,
    as_json: Json = False,
) -> None:
    """What a recipe would do and need, one row as the model sees it, the reward tried, and what looks wrong.

    Nothing is trained and no weights are read. Exit code 2 where the run would stop, with its words; else 0.
    """
    from upslope.checkup.command import check_command

    check_command(recipe, overrides or (), _known(kind), as_json)


def init(
    out: Annotated[Optional[Path], typer.Argument(metavar="[RECIPE]", help="Its file; none: grpo.yaml, say.")] = None,  # noqa: UP045
    kind: Annotated[Optional[str], typer.Option(help=f"One of {', '.join(RECIPES)}.")] = None,  # noqa: UP045
    model: Annotated[Optional[str], typer.Option(help="A model directory, a hub id; none: the bundled model.")] = None,  # noqa: UP045
    data: Annotated[Optional[str], typer.Option(help="Your rows: a file, a folder, a hub dataset.")] = None,  # noqa: UP045
    task: Annotated[Optional[str], typer.Option(help="In their place a built-in task, e.g. arithmetic.")] = None,  # noqa: UP045
    reward: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="file.py:function; a file that is not there is written, with an example."),
    ] = None,
    lora: Annotated[bool, typer.Option("--lora", help="Train an adapter, not all weights.")] = False,
    steps: Annotated[Optional[int], typer.Option(min=1, help="Training steps.")] = None,  # noqa: UP045
    force: Annotated[bool, typer.Option("--force", help="Overwrite the recipe's file.")] = False,
) -> None:
    """Write a commented recipe. Without options it asks a few questions."""
    from upslope.init.command import Wish, ask_on_terminal, init_command

    console = _console()
    init_command(Wish(kind, model, data, task, reward, lora, steps, out), force, console, ask_on_terminal(console))


def watch(
    run: Annotated[Path, typer.Argument(help="The folder of a run, going on or ended.")],
    once: Annotated[bool, typer.Option("--once", help="Print how it stands, and leave.")] = False,
) -> None:
    """Follow a run from its files, from another terminal: numbers, curves, time left, health, the last sample.

    Ctrl-C ends the watching, never the run.
    """
    from upslope.views.watch import watch as follow

    follow(run, _console(), once)


def rollouts(
    run: Annotated[Path, typer.Argument(help="The folder of a ppo or grpo run.")],
    step: Annotated[Optional[int], typer.Option(help="Training step; none: the last with rollouts.")] = None,  # noqa: UP045
    group: Annotated[Optional[int], typer.Option(help="One group of completions.")] = None,  # noqa: UP045
    sort: Annotated[str, typer.Option(help="written, reward, advantage or length: the largest first.")] = "written",
    ascending: Annotated[bool, typer.Option("--ascending", help="The smallest first.")] = False,
    search: Annotated[
        str, typer.Option(help="Text in prompt, completion or answer; without --step, in all steps.")
    ] = "",
    diff: Annotated[
        Optional[tuple[int, int]],  # noqa: UP045
        typer.Option(metavar="STEP STEP", help="The prompts that both steps have, side by side."),
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Rows shown; 0: all.")] = 20,
    as_json: Json = False,
    table: Annotated[bool, typer.Option("--table", help="Print a table on a terminal too.")] = False,
) -> None:
    """Browse the completions of a run: by step and group, sorted, searched, compared. Keys on a terminal (? for help).

    Into a pipe, or with any option but --step, a table.
    """
    from upslope.views.browser import browse
    from upslope.views.rollout_rows import ORDERS
    from upslope.views.rollouts_table import print_diff, print_rollouts

    if sort not in ORDERS:
        raise InputError("command line --sort", f"{sort!r} is unknown", f"use one of {', '.join(ORDERS)}")
    console = _console()
    chosen = group is not None or sort != "written" or ascending or search or limit != 20 or as_json or table
    if diff is not None:
        print_diff(run, console, *diff, limit, as_json)
    elif chosen or not (sys.stdin.isatty() and console.is_terminal and not console.is_dumb_terminal):
        order = next(name for name in ORDERS if name == sort)
        print_rollouts(run, console, step, group, order, ascending, search, limit, as_json)
    else:
        browse(run, console, sys.stdin.fileno(), step)


def doctor(as_json: Json = False) -> None:
    """What this machine can do: packages against what is needed, devices, memory, variables, what size of model fits.

    Exit code 3 where something that is needed is missing.
    """
    from upslope.doctor.command import doctor_command

    doctor_command(_console(), as_json)


def schema(
    kind: Annotated[
        str | None, typer.Argument(metavar="[KIND]", help=f"One of {', '.join(RECIPES)}; none: all.")
    ] = None,
) -> None:
    """JSON Schema of the recipes, for editors: upslope schema grpo > grpo.schema.json.

    An editor with the YAML language server takes it by a first line of the recipe:
    # yaml-language-server: $schema=grpo.schema.json
    """
    from upslope.checkup.kinds import own_sections
    from upslope.run.recipe_schema import any_of, json_schema

    known = _known(kind)
    if known is None:
        found = any_of(RECIPES, {name: own_sections(name) for name in RECIPES})
    else:
        found = json_schema(RECIPES[known], f"upslope {known}")
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


def _console() -> Console:
    """Standard output. What goes into a pipe or a file has no escape sequences, and lines of at least 160 cells."""
    terminal = sys.stdout.isatty()
    wide = None if terminal or os.environ.get("COLUMNS") else 160
    return Console(force_terminal=terminal, width=wide, markup=False, emoji=False, highlight=False)


def _known(kind: str | None) -> str | None:
    if kind is not None and kind not in RECIPES:
        raise InputError("command line", f"the kind {kind!r} is unknown", f"use one of {', '.join(RECIPES)}")
    return kind
