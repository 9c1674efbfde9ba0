"""The pages of docs/: their examples, run in order, print what stands under them; quoted lines and links are real."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("gridworld.md", "ladder.md", "long-answers.md", "lora.md", "rewards.md", "tasks.md", "tools.md")
RUNGS = ("sft", "ppo", "grpo", "grid_ppo", "grid_grpo")
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
DRIVER = """
import contextlib, io, json, sys
names, printed = {"__name__": "__main__"}, []
for number, source in enumerate(json.load(sys.stdin)):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(source, f"example {number + 1}", "exec"), names)
    printed.append(out.getvalue())
json.dump(printed, sys.stdout)
"""
"""Runs the examples of a page in one process, in order, and tells what each printed."""


@dataclass(frozen=True)
class Example:
    """A block of Python and the text block that follows it at once ('' where none does)."""

    source: str
    shown: str


def page(name: str) -> str:
    """The page without its comments."""
    return re.sub(r"<!--.*?-->", "", (ROOT / "docs" / name).read_text("utf-8"), flags=re.DOTALL)


def examples(name: str) -> list[Example]:
    """The ```python blocks of a page. Those marked ```py are quotations and not run."""
    text, found = page(name), []
    blocks = list(FENCE.finditer(text))
    for number, block in enumerate(blocks):
        if block[1] != "python":
            continue
        after = blocks[number + 1] if number + 1 < len(blocks) else None
        follows = after is not None and after[1] == "text" and text[block.end() : after.start()].isspace()
        found.append(Example(block[2], after[2] if after is not None and follows else ""))
    return found


@cache
def printed(name: str) -> list[str]:
    """What each example of the page prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    sources = json.dumps([example.source for example in examples(name)])
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], input=sources, env=environment, cwd=ROOT, capture_output=True,
        encoding="utf-8", timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


CASES = [(name, number) for name in PAGES for number in range(len(examples(name)))]


@pytest.mark.parametrize(("name", "number"), CASES)
def test_an_example_prints_what_stands_under_it(name: str, number: int) -> None:
    assert printed(name)[number] == examples(name)[number].shown


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_examples_with_output(name: str) -> None:
    assert sum(bool(example.shown) for example in examples(name)) >= 6


def quotations(name: str) -> list[tuple[str, str]]:
    """File and lines of the ```py blocks of a page; the file is named at the end of the sentence before."""
    text, found = page(name), []
    for block in FENCE.finditer(text):
        if block[1] == "py":
            named = re.search(r"`([\w./-]+\.py)`:\s*$", text[: block.start()])
            assert named is not None, f"{name} does not name the file of {block[2]}"
            found.append((named[1], block[2]))
    return found


def test_every_quoted_line_stands_in_its_file() -> None:
    quoted = [quotation for name in PAGES for quotation in quotations(name)]
    for where, code in quoted:
        source = [line.strip() for line in (ROOT / where).read_text("utf-8").splitlines()]
        lines = [line.strip() for line in code.splitlines()]
        assert lines in [source[start : start + len(lines)] for start in range(len(source))], f"{where}: {code}"
    assert {where for where, _ in quoted} >= {f"upslope/recipes/{rung}.py" for rung in RUNGS}


@pytest.mark.parametrize("name", PAGES)
def test_links_and_pictures_of_a_page_exist(name: str) -> None:
    local = [link for link in LINK.findall(page(name)) if "://" not in link and not link.startswith("#")]
    assert local
    missing = [link for link in local if not (ROOT / "docs" / link.partition("#")[0]).is_file()]
    assert not missing


def pictures_made() -> set[str]:
    """File names that docs/pictures.py says it makes, read without running it."""
    named: dict[str, ast.expr] = {}
    for node in ast.parse((ROOT / "docs" / "pictures.py").read_text("utf-8")).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            named[ast.unparse(target)] = node.value
    table, film = named["PICTURES"], named["FILM"]
    assert isinstance(table, ast.Dict) and isinstance(film, ast.Constant)
    names = [str(key.value) for key in table.keys if isinstance(key, ast.Constant)]
    return {f"{name}.png" for name in names} | {f"{film.value!s}.gif"}


def test_every_picture_that_is_made_is_there_and_shown() -> None:
    shown = {Path(link).name for name in PAGES for link in LINK.findall(page(name)) if link.startswith("images/")}
    assert pictures_made() <= shown
    assert shown - pictures_made() <= {"grid-page.png"}
    for picture in pictures_made():
        assert (ROOT / "docs" / "images" / picture).stat().st_size > 10_000, picture
