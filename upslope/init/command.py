"""`upslope init`: writes a commented recipe, and a reward function to begin with, from flags or a few questions."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from upslope.errors import InputError
from upslope.init.recipe import BUNDLED, READY, Wish, recipe_text
from upslope.init.rewards import reward_text
from upslope.recipes.configs import RECIPES, Recipe
from upslope.run.recipe import read_text
from upslope.text import rows as reading
from upslope.text.row_sources import READERS, kind_of
from upslope.views.safe_text import clean
from upslope.worlds.reward_source import check_source
from upslope.worlds.task import TASKS

WHAT = {
    "sft": "imitate the completions of rows",
    "grpo": "learn from a reward, by comparing completions of one prompt",
    "ppo": "learn from a reward, beside a network that says what to expect",
    "reward": "learn to score completions, from pairs of a better and a worse one",
    "dpo": "learn from pairs of a better and a worse completion, without a reward",
}
REWARD = "rewards.py:correct"
PAIRED_TASK = "worked-sums"
"""A built-in task that brings preferences."""


def init_command(wish: Wish, force: bool, console: Console, ask: Callable[[str], str] | None) -> None:
    """Write the files and say what to do next.

    ``ask`` puts a question and returns the answer; None where nobody can answer.

    Raises:
        InputError: something is not said and cannot be asked, a file is there already, or what was said does not go
            together (told as a run would tell it).
    """
    wish = complete(wish, console, ask)
    path = wish.out or Path(f"{wish.kind}.yaml")
    text = recipe_text(wish)
    recipe = read_text(text, RECIPES[str(wish.kind)], str(path))
    _write(path, text, force, console, ask)
    if wish.reward is not None and wish.reward.partition(":")[0].endswith(".py"):
        _write_reward(wish, recipe, console)
    name = shlex.quote(str(path))
    console.print("\nNext:")
    console.print(f"  upslope check {name}    what it does and needs, and what looks wrong")
    console.print(f"  upslope {wish.kind} {name}")


# ----------------------------------------------------------------------------------------------------------- questions
def complete(wish: Wish, console: Console, ask: Callable[[str], str] | None) -> Wish:
    """The wish with everything that a recipe needs: what is not said is asked, or has a default.

    Raises InputError where it can be neither.
    """
    said_nothing = wish == Wish(out=wish.out)
    if wish.data is not None and wish.task is not None:
        raise InputError("command line", "--data and --task exclude each other", "give one of them")
    if wish.kind is None:
        lines = "".join(f"\n  {name:<7} {WHAT.get(name, '')}" for name in RECIPES)
        kind = _asked(ask, f"What should it do?{lines}\nOne of them", "grpo", "--kind", _kind)
        wish = replace(wish, kind=kind)
    _kind(str(wish.kind))
    if wish.model is None:
        model = _asked(ask, "Which model? A directory, a hub id, or the bundled one", BUNDLED, "", str) if (
            ask and said_nothing
        ) else BUNDLED  # fmt: skip
        wish = replace(wish, model=model)
    usual_task = PAIRED_TASK if wish.kind in ("reward", "dpo") else "arithmetic"
    if wish.data is None and wish.task is None:
        tasks = ", ".join(TASKS)
        source = _asked(ask, f"Which rows? A file of yours, a hub dataset, or a built-in task ({tasks})", usual_task,
                        "--data or --task", _source)  # fmt: skip
        wish = replace(wish, task=source) if source in TASKS else replace(wish, data=source)
    if wish.data is not None:
        kind_of(wish.data)
    if wish.needs_reward and wish.reward is None:
        ready = ", ".join(READY)
        question = f"Which reward? file.py:function (a file that is not there is written, as an example), or {ready}"
        wish = replace(wish, reward=_asked(ask, question, REWARD, "--reward", _reward) if ask else REWARD)
    if wish.reward is not None:
        _reward(wish.reward)
    if wish.out is None and ask and said_nothing:
        wish = replace(wish, out=Path(_asked(ask, "Where should the recipe go?", f"{wish.kind}.yaml", "", str)))
    return wish


def _asked(ask: Callable[[str], str] | None, question: str, usual: str, flag: str, read: Callable[[str], str]) -> str:
    """The answer to a question, asked again until ``read`` takes it; the usual one where it is empty."""
    if ask is None:
        raise InputError("command line", f"{flag} is missing, and there is no terminal to ask on", f"give {flag}")
    again = question.rpartition("\n")[2]
    while True:
        try:
            return read(ask(f"{question} [{usual}]: ").strip() or usual)
        except InputError as error:
            question = f"  {error}\n{again}"


def _kind(text: str) -> str:
    if text not in RECIPES:
        raise InputError("kind", f"{text!r} is unknown", f"use one of {', '.join(RECIPES)}")
    return text


def _source(text: str) -> str:
    if text not in TASKS:
        kind_of(text)
    return text


def _reward(text: str) -> str:
    if text in READY:
        return text
    file, colon, function = text.rpartition(":")
    if not colon or not file.endswith(".py") or not function.isidentifier():
        fix = f"write file and function, or one of {', '.join(READY)}"
        raise InputError("reward", f"{text!r} is not of the form file.py:function", fix)
    if Path(file).expanduser().exists():
        check_source(text)
    return text


# --------------------------------------------------------------------------------------------------------------- files
def _write(path: Path, text: str, force: bool, console: Console, ask: Callable[[str], str] | None) -> None:
    if path.exists() and not force:
        if ask is None or path.is_dir():
            raise InputError(str(path), "is there already", "give another name, or --force to overwrite it")
        if ask(f"{path} is there already. Overwrite it? [n]: ").strip().lower() not in ("y", "yes"):
            raise InputError(str(path), "is there already", "give another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    except OSError as error:
        raise InputError(str(path), f"cannot be written ({error.strerror})", "give another name") from error
    console.print(f"wrote {clean(str(path), 300)}")


def _write_reward(wish: Wish, recipe: Recipe, console: Console) -> None:
    """The example, where the file is not there yet; else see that the function is in it."""
    file, _, function = str(wish.reward).rpartition(":")
    path = Path(file).expanduser()
    if path.exists():
        check_source(str(wish.reward))
        return
    answer = answer_column(wish, recipe)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(reward_text(function, answer), "utf-8")
    console.print(f"wrote {clean(file, 300)}: an example to change")


def answer_column(wish: Wish, recipe: Recipe) -> str | None:
    """The column with the right answers in the first row; None where there is none."""
    if wish.data is None:
        return "answer"
    kind, _ = kind_of(wish.data)
    if kind not in READERS:
        return "answer"
    first: dict[str, Any] = next(iter(READERS[kind](Path(wish.data).expanduser())), {})
    row = reading.rename([first], recipe.data.columns, wish.data)[0]
    names = ("answer", "completion", "output", "solution", "target")
    return next((name for name in names if isinstance(row.get(name), str | int | float)), None)


def ask_on_terminal(console: Console) -> Callable[[str], str] | None:
    """Questions on standard input and output, where both are a terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return None

    def ask(question: str) -> str:
        try:
            return console.input(question, markup=False)
        except EOFError:
            raise typer.Abort from None

    return ask
