"""Runs the shell blocks of a page, in order, in one folder. `upslope` runs in this process, all else in bash."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from upslope import cli

HEREDOC = re.compile(r"^(?P<line>.*<<\s*'?(?P<end>\w+)'?.*)\n(?P<body>.*?\n)(?P=end)$", re.MULTILINE | re.DOTALL)
Shorter = Callable[[str], str]


def commands(block: str) -> list[str]:
    """The commands of a block: a line each, joined where it ends with a backslash; a heredoc with its body is one."""
    held: list[str] = []

    def put_away(found: re.Match[str]) -> str:
        held.append(found[0])
        return f"\0{len(held) - 1}"

    lines = HEREDOC.sub(put_away, block).replace("\\\n", " ").splitlines()
    whole = [re.sub(r"\0(\d+)", lambda found: held[int(found[1])], line.strip()) for line in lines]
    return [line for line in whole if line and not line.startswith("#")]


class Shell:
    """A folder. ``shorter`` may change a command before it is run: fewer steps, say."""

    def __init__(
        self, folder: Path, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch,
        shorter: Shorter = lambda line: line,
    ) -> None:  # fmt: skip
        self.folder, self.capsys, self.patch, self.shorter = folder, capsys, patch, shorter
        patch.chdir(folder)
        patch.setenv("COLUMNS", "100")
        patch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")

    def run(self, block: str) -> str:
        """What the block prints. A command that fails is an error of the test."""
        return "".join(self._command(line) for line in commands(block))

    def upslope(self, arguments: list[str], typed: str = "") -> tuple[int, str, str]:
        """(exit code, stdout, stderr) of the command line, in this process."""
        self.patch.setattr(sys, "argv", ["upslope", *arguments])
        self.patch.setattr(sys, "stdin", io.StringIO(typed))
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = self.capsys.readouterr()
        return code, out, err

    def _command(self, line: str) -> str:
        line = self.shorter(line)
        said, pipe, rest = line.partition(" | ")
        typed = ""
        if pipe and rest.startswith("upslope ") and re.match(r"(echo|printf) ", said):
            typed, line = self._bash(said), rest
        if not line.startswith("upslope "):
            return self._bash(line)
        words, _, target = line.partition(" > ")
        code, out, err = self.upslope(shlex.split(words)[1:], typed)
        assert code == 0, f"{line}: exit {code}\n{out}{err}"
        if target:
            (self.folder / target.strip()).write_text(out)
            return ""
        return out

    def _bash(self, line: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line], cwd=self.folder, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout


def shown_in(shown: str, printed: str) -> list[Any]:
    """Lines of ``shown`` that ``printed`` has not, in this order; a shown line may be the beginning of a longer one."""
    lines = iter(printed.splitlines())
    return [wanted for wanted in shown.splitlines() if not any(line.startswith(wanted) for line in lines)]
