"""sft.md, ppo.md, grpo.md: the formula is the source's, examples print what they show, tables name real things."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, blocks, maker, names, prose, source, table_under
from tests.docs.shell import Shell
from tests.recipes.support import one_thread
from tests.test_docs import DRIVER, examples, quotations
from upslope.recipes.configs import RECIPES
from upslope.run.recipe_errors import keys
from upslope.views.health import CHECKS

__all__ = ["one_thread"]
PAGES = ("sft", "ppo", "grpo")
KEYS = {key for schema in RECIPES.values() for key in keys(schema)}
OPTIMS = {"sft": 5e-5, "ppo": 1e-5, "grpo": 1e-5}
OWN = {
    "sft": ("token_mean", "sft.weighting"), "ppo": ("0.95", "ppo.trace"), "grpo": ("leave_one_out", "grpo.baseline"),
}  # fmt: skip
"""One default of each, as it must stand in the table."""


def words(text: str) -> str:
    return " ".join(text.replace("``", "").split())


@pytest.mark.parametrize("kind", PAGES)
def test_the_formula_is_that_of_the_source(kind: str) -> None:
    docstring = ast.get_docstring(ast.parse((ROOT / "upslope" / "recipes" / f"{kind}.py").read_text("utf-8"))) or ""
    part = source(f"{kind}.md").split("## What it computes", 1)[1].split("\n## ", 1)[0]
    (formula,) = [block.text for block in blocks(part) if block.kind == "text"]
    assert words(formula) in words(docstring)


@pytest.mark.parametrize("kind", PAGES)
def test_quoted_lines_stand_in_the_recipe(kind: str) -> None:
    quoted = quotations(f"{kind}.md")
    assert quoted
    for where, code in quoted:
        assert where == f"upslope/recipes/{kind}.py"
        lines = [line.strip() for line in (ROOT / where).read_text("utf-8").splitlines()]
        wanted = [line.strip() for line in code.splitlines()]
        assert any(lines[start : start + len(wanted)] == wanted for start in range(len(lines))), code


FORGET = "for name in [name for name in globals() if not name.startswith('__')]:\n    del globals()[name]\n"
"""Between two pages: none may live on what another has imported."""


@pytest.fixture(scope="module")
def printed() -> dict[str, list[str]]:
    """What the examples of each page print; one process for all of them, for torch takes long to import."""
    sources = {kind: [example.source for example in examples(f"{kind}.md")] for kind in PAGES}
    together = [source for found in sources.values() for source in [*found, FORGET]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], input=json.dumps(together), env=environment, cwd=ROOT, capture_output=True,
        encoding="utf-8", timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = iter(json.loads(done.stdout))
    return {kind: [next(said) for _ in [*found, FORGET]][:-1] for kind, found in sources.items()}


@pytest.mark.parametrize("kind", PAGES)
def test_the_example_prints_what_stands_under_it(kind: str, printed: dict[str, list[str]]) -> None:
    found = examples(f"{kind}.md")
    assert found and all(example.shown for example in found)
    assert printed[kind] == [example.shown for example in found]


@pytest.mark.parametrize("kind", PAGES)
def test_the_command_of_the_page_runs(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    shell = Shell(tmp_path, capsys, monkeypatch)
    commands = [block.text for block in blocks(source(f"{kind}.md")) if block.kind == "bash"]
    assert commands
    for command in commands:
        assert f"runs/{kind}-text-grid/model" in shell.run(command)
    assert (tmp_path / "runs" / f"{kind}-text-grid" / "report.html").is_file()


def test_every_kind_of_recipe_has_its_keys_on_a_page() -> None:
    shown = set(re.findall(r"<!-- table: keys (\w+) -->", "".join(source(name) for name in names())))
    assert shown >= set(PAGES) and shown <= set(RECIPES)


@pytest.mark.parametrize("kind", PAGES)
def test_the_keys_table_has_every_key_and_its_default(kind: str) -> None:
    rows = {row[0].strip("`"): row for row in table_under(source(f"{kind}.md"), "## Every key")}
    assert set(rows) == set(maker().leaves(RECIPES[kind]))
    assert float(rows["optim.lr"][1].strip("`")) == OPTIMS[kind]
    value, key = OWN[kind]
    assert rows[key][1] == f"`{value}`" and next(iter(rows)).startswith(f"{kind}.")
    assert all(len(row) == 3 and row[2] for row in rows.values())


@pytest.mark.parametrize("name", [f"{kind}.md" for kind in PAGES])
def test_keys_and_values_that_the_text_names_are_real(name: str) -> None:
    """`optim.decay: linear` in the text: such a key, and such a value."""
    kind, text = name.removesuffix(".md"), prose(source(name))
    leaves = maker().leaves(RECIPES[kind])
    named = re.findall(r"`([a-z_]+\.[a-z_]+)(?:: ([^`]+))?`", text.split("## Every key")[0])
    assert len(named) > 10
    for key, value in named:
        if key.endswith((".py", ".md", ".yaml", ".jsonl", ".html")):
            continue
        assert key in leaves, key
        if value and re.fullmatch(r"[\d.e-]+", value):
            float(value)
        elif value:
            assert value in [*map(str, maker().choices(leaves[key])), "true", "null"], f"{key}: {value}"


@pytest.mark.parametrize("name", [*(f"{kind}.md" for kind in PAGES), "reward-models.md", "dpo.md"])
def test_defaults_that_the_text_gives_are_the_defaults(name: str) -> None:
    """In the section on defaults a bold `key: value` is one; the table of keys is where they come from."""
    section = source(name).split("## The defaults, and why", 1)[1].split("\n## ", 1)[0]
    usual = {row[0].strip("`"): row[1].strip("`") for row in table_under(source(name), "## Every key")}
    given = re.findall(r"`([a-z_]+\.[a-z_]+): ([^`]+)`", " ".join(re.findall(r"\*\*(.*?)\*\*", section)))
    assert len(given) >= 3
    for key, value in given:
        same = usual[key] == value or (re.fullmatch(r"[\d.e+-]+", value) and float(usual[key]) == float(value))
        assert same, f"{key} is {usual[key]}, the page says {value}"


@pytest.mark.parametrize("name", [f"{kind}.md" for kind in PAGES])
def test_health_lines_that_the_table_names_exist(name: str) -> None:
    rows = table_under(source(name), "## When it does not learn")
    named = {found for row in rows for found in re.findall(r"\*([a-z][a-z 0-9]+)\*", row[0])}
    assert named and named <= set(CHECKS)
    assert len(rows) >= 8 and all(len(row) == 3 and all(row) for row in rows)
