"""Reads Markdown as GitHub and mkdocs do, as far as the tests of the docs need it: fences, headings, links, tables."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^(`{3,})([^\n`]*)\n(.*?)^\1[ ]*$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
HEADING = re.compile(r"^#{1,6} +(.+?)(?: +#+)?$", re.MULTILINE)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language and its text."""

    kind: str
    text: str


def names() -> list[str]:
    """The pages of docs/, whoever wrote them."""
    return sorted(path.name for path in DOCS.glob("*.md"))


def source(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


def blocks(text: str) -> list[Block]:
    return [Block(found[2].strip(), found[3]) for found in FENCE.finditer(COMMENT.sub("", text))]


def prose(text: str) -> str:
    """The page without its blocks and comments."""
    return FENCE.sub("", COMMENT.sub("", text))


def links(text: str) -> list[str]:
    """Targets of its links and pictures; what stands in code is none."""
    return LINK.findall(re.sub(r"`[^`\n]*`", lambda code: re.sub(r"[][()]", "", code[0]), prose(text)))


def headings(text: str) -> list[str]:
    return [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).strip() for title in HEADING.findall(prose(text))]


def anchors(text: str) -> set[str]:
    """What a link may name behind #, where GitHub and Python-Markdown (mkdocs) agree on it."""
    ours: list[set[str]] = []
    for slug in (_github, _markdown):
        seen: dict[str, int] = {}
        found = set()
        for title in headings(text):
            name = slug(title)
            count = seen[name] = seen.get(name, -1) + 1
            found.add(f"{name}{'-' if slug is _github else '_'}{count}" if count else name)
        ours.append(found)
    return ours[0] & ours[1]


def _github(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _markdown(title: str) -> str:
    """Python-Markdown's toc: ASCII only, runs of spaces and hyphens are one hyphen."""
    plain = title.encode("ascii", "ignore").decode().replace("`", "")
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def table_under(text: str, heading: str) -> list[list[str]]:
    """The cells of the rows of the first table under a heading, without its head. A bar in a cell is \\|."""
    after = text.split(f"\n{heading}\n", 1)[1]
    found = re.search(r"^\|.*\|\n\|[-| ]+\|\n((?:\|.*\|\n?)+)", after, re.MULTILINE)
    assert found is not None, f"no table under {heading}"
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in found[1].strip().splitlines()]


@cache
def maker() -> ModuleType:
    """docs/tables.py as a module."""
    spec = importlib.util.spec_from_file_location("docs_tables", DOCS / "tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["docs_tables"] = module
    spec.loader.exec_module(module)
    return module
