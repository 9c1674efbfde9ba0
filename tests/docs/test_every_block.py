"""Blocks of the docs that no other test runs: parts of recipes, and commands that need files of a reader's own."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import tiny
from tests.docs.pages import ROOT, blocks, names, source
from tests.docs.shell import Shell
from tests.recipes.support import one_thread
from upslope.errors import InputError, InputErrors
from upslope.recipes.configs import RECIPES
from upslope.run.recipe import build, load

__all__ = ["one_thread"]
KINDS = {"python", "py", "text", "bash", "sh", "yaml", "console", ""}
"""Python is run or, as py, a quotation; text is what something prints, console that with its command. Without a kind:
commands of docs/truth.md that take minutes."""
PARTS = [
    (name, block.text)
    for name in names()
    for block in blocks(source(name))
    if block.kind == "yaml" and name != "from-trl.md"  # one there is TRL's own; test_from_trl runs both
]


def test_blocks_are_of_the_kinds_that_tests_know() -> None:
    assert {block.kind for name in names() for block in blocks(source(name))} == KINDS


@pytest.mark.parametrize(("name", "text"), PARTS, ids=[f"{name}-{number}" for number, (name, _) in enumerate(PARTS)])
def test_a_part_of_a_recipe_is_read_by_some_command(name: str, text: str) -> None:
    part: dict[str, Any] = yaml.safe_load(text) or {}  # of an editor's line at the top of a file nothing is read
    refused = []
    for kind, schema in RECIPES.items():
        try:
            build({"data": {"path": "rows.jsonl"}, **part}, schema, name)
            return
        except (InputError, InputErrors) as error:
            refused.append(f"{kind}: {error}")
    raise AssertionError("\n".join(refused))


def test_a_part_with_a_wrong_key_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"grpo: .*lora\.rnak: unknown key"):
        test_a_part_of_a_recipe_is_read_by_some_command("x", "lora: {rnak: 4}")


def test_commands_that_take_long_name_recipes_that_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    lines = [
        line
        for name in names()
        for block in blocks(source(name))
        if block.kind == "sh"
        for line in block.text.splitlines()
    ]
    assert lines
    for line in lines:
        _, kind, file, *overrides = line.split()
        assert load(file, RECIPES[kind], overrides)


@pytest.mark.parametrize("name", ["reward-models.md", "dpo.md"])
def test_commands_on_preferences_run(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a tiny model that has learned to stop, short runs, and files of the names that stand there."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    rows = [{"prompt": f"say {n}", "completion": str(n % 10), "answer": str(n)} for n in range(40)]
    for file in ("rows.jsonl", "prompts.jsonl"):
        (tmp_path / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": "no"} for row in rows]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (tmp_path / "rewards.py").write_text(
        "def better(prompts, completions, **columns):\n    return [len(set(text)) for text in completions]\n"
    )
    tiny.directory(tmp_path / "tiny")
    common = "model.name=tiny model.dtype=float32 device=cpu train.steps=2 train.prompts=4 train.eval_prompts=4"

    def short(line: str) -> str:
        if line.startswith("upslope pairs "):
            return f"{line} --overwrite --device cpu --max-new-tokens 24 --samples 16"
        return f"{line} {common}" + (" sampling.max_new_tokens=8" if " ppo " in line else "")

    shell = Shell(tmp_path, capsys, monkeypatch, short)
    monkeypatch.setattr(
        shell, "shorter", lambda line: f"{line} train.steps=4 train.prompts=8 optim.lr=0.01 {common.split(' train')[0]}"
    )
    shell.run("upslope sft recipes/sft-own-data.yaml out=runs/sft train.eval_prompts=0")
    monkeypatch.setattr(shell, "shorter", short)
    commands = [block.text for block in blocks(source(name)) if block.kind == "bash"]
    for command in commands:
        said = shell.run(command)
        assert re.search(r"^model +runs/|pairs from \d+ answers", said, re.MULTILINE), said
    assert len(commands) == {"reward-models.md": 2, "dpo.md": 1}[name]
