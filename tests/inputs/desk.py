"""A user's desk: a folder with rows, a reward, tiny models and a recipe, in which the command line is run."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import tiny
from upslope import cli

REWARD = "def score(prompts, completions, **columns):\n    return [len(set(str(text))) / 9 for text in completions]\n"


class Desk:
    """``recipe`` is what the recipe file will hold; ``text`` holds its bytes where they are not what YAML makes of it.

    ``upslope`` runs the command line in this process, in the folder.
    """

    def __init__(self, folder: Path, models: Path, capsys: Any, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.capsys, self.patch = folder, capsys, patch
        self.recipe: dict[str, Any] = {
            "model": {"name": str(models / "chat"), "dtype": "float32"}, "device": "cpu",
            "data": {"path": "rows.jsonl"},
            "reward": "rewards.py:score", "sampling": {"max_new_tokens": 4}, "out": "out",
            "train": {"steps": 1, "prompts": 2, "eval_prompts": 0}, "grpo": {"group": 2},
        }  # fmt: skip
        self.text: bytes | None = None
        self.models = models
        self.rows([{"prompt": f"say {n}", "answer": str(n)} for n in range(8)])
        (folder / "rewards.py").write_text(REWARD)
        patch.chdir(folder)

    def rows(self, rows: list[Any], name: str = "rows.jsonl") -> None:
        (self.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def supervised(self, rows: list[Any] | None = None) -> None:
        """The recipe as one for ``upslope sft``."""
        del self.recipe["grpo"], self.recipe["reward"]
        self.rows(rows or [{"prompt": f"say {n}", "completion": str(n)} for n in range(8)])

    def model(self, name: str = "mine", **changes: Any) -> Path:
        """A model directory of the user's own, to spoil; the recipe names it."""
        place = tiny.directory(self.folder / name, **changes)
        self.recipe["model"]["name"] = name
        return place

    def write(self) -> None:
        content = yaml.safe_dump(self.recipe).encode() if self.text is None else self.text
        (self.folder / "recipe.yaml").write_bytes(content)

    def upslope(self, *arguments: str) -> tuple[int, str, str]:
        """(exit code, stdout, stderr) of the command, in this process."""
        self.patch.setattr(sys, "argv", ["upslope", *arguments])
        self.capsys.readouterr()  # what making the desk printed: progress bars of transformers
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = self.capsys.readouterr()
        return code, out, err

    def train(self, *arguments: str) -> tuple[int, str, str]:
        self.write()
        return self.upslope("grpo", "recipe.yaml", *arguments)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny.directory(root / "chat")
    tiny.directory(root / "plain", chat=False)
    return root


@pytest.fixture
def desk(tmp_path: Path, models: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("COLUMNS", "500")
    return Desk(tmp_path, models, capsys, monkeypatch)


def suggested(pattern: str, message: str) -> str:
    """What the message names: the pattern's first group."""
    found = re.search(pattern, message)
    assert found, f"no fix of the form {pattern} in: {message}"
    return found.group(1)


def edit_json(file: Path, **changes: Any) -> None:
    """Set keys of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
