"""docs/commands.md: its commands run, in order, in one folder, and what it shows is what they print."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.recipes.support import one_thread
from tests.test_cli import Desk, models
from upslope import cli_tools
from upslope.cli import app

__all__ = ["models", "one_thread"]
ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "commands.md").read_text("utf-8")
BLOCK = re.compile(r"^```bash\n(.*?)^```\n(?:```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


def test_every_command_prints_what_stands_under_it(
    tmp_path: Path, models: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(tmp_path, models, capsys, monkeypatch)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    monkeypatch.setenv("COLUMNS", "80")
    blocks = BLOCK.findall(PAGE)
    assert len(blocks) == PAGE.count("```bash") >= 6
    for commands, shown in blocks:
        printed = ""
        for line in commands.splitlines():
            words, _, target = line.partition(" > ")
            program, *arguments = shlex.split(words)
            assert program == "upslope"
            code, out, err = desk.upslope(*arguments)
            assert code == 0, err
            printed += out
            if target:
                (tmp_path / target).write_text(out)
        lines = iter(printed.splitlines())
        for wanted in shown.splitlines():  # in this order; a shown line may be the beginning of a longer one
            assert any(line.startswith(wanted) for line in lines), f"{wanted!r} is not printed, or not here:\n{printed}"
    assert '"$schema"' in (tmp_path / "grpo.schema.json").read_text()


def test_the_table_lists_every_command_of_the_tools() -> None:
    registered = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    tools = {name for name in registered if hasattr(cli_tools, name)}
    assert tools >= {"init", "check", "doctor", "watch", "rollouts", "schema"}
    assert all(re.search(rf"^\| `upslope {name}\b", PAGE, re.MULTILINE) for name in tools)


def test_the_keys_listed_are_the_browsers() -> None:
    from upslope.views.browser import _KEYS, SORT_KEYS

    words = {"q", "escape", "left", "right", "up", "down", "/", "d", "g", "?", "b"}
    assert words <= set(_KEYS) and all(name in PAGE for name in words)
    assert " ".join(SORT_KEYS) in PAGE
