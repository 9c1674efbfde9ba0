"""gallery.md and recipes/: every ready recipe is there, says what it is and how it is run, resolves as it stands."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, blocks, maker, source
from tests.docs.shell import Shell
from tests.recipes.support import one_thread
from upslope.recipes.configs import RECIPES
from upslope.recipes.setup import precheck
from upslope.run.recipe import load

__all__ = ["one_thread"]
FILES = sorted((ROOT / "recipes").glob("*.yaml"))
ROWS = "".join(
    f'{{"prompt": "{ask}?", "completion": "{said}", "answer": "{said}", "chosen": "{said}", "rejected": "no"}}\n'
    for ask, said in (("Capital of France", "Paris"), ("Capital of Italy", "Rome"))
)
REWARD = "def correct(prompts, completions, answer, **columns):\n    return [1.0] * len(completions)\n"


def test_every_ready_recipe_is_in_the_gallery_once() -> None:
    text = source("gallery.md")
    for path in FILES:
        links = re.findall(rf"\]\(\.\./recipes/{re.escape(path.name)}\)", text)
        assert len(links) == 1, f"{path.name}: run `python docs/tables.py`"
    assert len(FILES) >= 11


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_says_what_it_is_and_its_command_loads_it(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = maker().ready(path)
    assert found.kind in RECIPES and len(found.about) > 20
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    needed = re.findall(r"`([^`]+)`", found.needs)
    for name in needed:
        if Path(name).suffix:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(REWARD if name.endswith(".py") else ROWS)
    monkeypatch.chdir(tmp_path)
    for line in path.read_text("utf-8").splitlines():
        command = re.match(rf"#\s+upslope (\w+) (recipes/{re.escape(path.name)}[^#]*)", line)
        if command:
            file, *overrides = shlex.split(command[2])
            assert load(file, RECIPES[command[1]], overrides).name == path.stem
    alone = load(f"recipes/{path.name}", RECIPES[found.kind])
    if "upslope[" not in found.needs and all(
        Path(name).suffix for name in needed
    ):  # no package, no model of another run
        precheck(alone.recipe)


def test_what_a_recipe_needs_is_read_from_it(tmp_path: Path) -> None:
    tables = maker()
    assert tables.ready(ROOT / "recipes" / "grpo-own-data.yaml").needs == "`rows.jsonl`, `rewards.py`"
    assert tables.ready(ROOT / "recipes" / "grpo-text-grid.yaml").needs == "nothing"
    path = tmp_path / "x.yaml"
    path.write_text("# What it does. Needs: a moon\n#\n#   upslope grpo recipes/x.yaml\n\nmodel: runs/sft/model\n")
    found = tables.ready(path)
    assert (found.about, found.needs) == ("What it does.", "a moon, `runs/sft/model`")
    path.write_text("# What it does.\nmodel: m\n")
    with pytest.raises(ValueError, match=r"x\.yaml: its first lines should say"):
        tables.ready(path)


def test_the_first_chain_of_the_page_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    shell = Shell(
        tmp_path, capsys, monkeypatch, lambda line: f"{line} train.steps=2 train.prompts=22 train.eval_prompts=0"
    )
    chains = [block.text for block in blocks(source("gallery.md")) if block.kind == "bash"]
    assert "runs/ppo-text-grid/model" in shell.run(chains[0])
    assert (tmp_path / "runs" / "sft-text-grid" / "model" / "model.safetensors").is_file()
    for line in "\n".join(chains[1:]).splitlines():
        _, kind, file, *overrides = line.split()
        load(file, RECIPES[kind], overrides)
