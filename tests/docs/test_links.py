"""The docs as a whole: all pages are in the nav, links, anchors and pictures lead somewhere, tables are of today."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.pages import DOCS, ROOT, anchors, links, maker, names, source

SITE: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
TEXTS = ("README.md", "CONTRIBUTING.md", "bench/README.md", *(f"docs/{name}" for name in names()))


def entries(nav: Any) -> list[tuple[str, str]]:
    """(title, page) of everything in a nav, sections unfolded."""
    if isinstance(nav, list):
        return [found for item in nav for found in entries(item)]
    ((title, inner),) = nav.items()
    return entries(inner) if isinstance(inner, list) else [(str(title), str(inner))]


def test_every_page_is_in_the_nav_once_and_every_entry_is_a_page() -> None:
    listed = [page for _, page in entries(SITE["nav"])]
    missing = set(names()) - set(listed)
    assert not missing, f"add to the nav of mkdocs.yml: {sorted(missing)}"
    assert set(listed) <= set(names()), f"in the nav of mkdocs.yml, and no page: {sorted(set(listed) - set(names()))}"
    assert len(listed) == len(set(listed))
    assert listed[0] == "index.md"


def test_the_site_needs_no_plugins_and_no_network() -> None:
    assert "plugins" not in SITE and "hooks" not in SITE
    assert SITE["docs_dir"] == "docs" and SITE["theme"]["font"] is False
    assert not any("://" in str(SITE.get(key, "")) for key in ("extra_javascript", "extra_css"))


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name: str) -> None:
    path = ROOT / name
    text = path.read_text("utf-8")
    wrong = []
    for link in links(text):
        if "://" in link or link.startswith("mailto:"):
            continue
        target, _, anchor = link.partition("#")
        place = (path.parent / target).resolve() if target else path
        there = place.exists() and ROOT in (place, *place.parents)
        if there and anchor:
            there = place.suffix == ".md" and anchor in anchors(place.read_text("utf-8"))
        if not there:
            wrong.append(link)
    assert not wrong, f"{name}: {wrong}"


def test_every_page_can_be_reached_from_the_first_one() -> None:
    seen: set[str] = set()
    waiting = ["index.md"]
    while waiting:
        name = waiting.pop()
        if name in seen or name not in names():
            continue
        seen.add(name)
        for link in links(source(name)):
            target = link.partition("#")[0]
            if target.endswith(".md") and "/" not in target:
                waiting.append(target)
    assert set(names()) <= seen, f"no way from docs/index.md to {sorted(set(names()) - seen)}"


def test_every_page_begins_with_one_title() -> None:
    for name in names():
        lines = source(name).splitlines()
        assert lines[0].startswith("# "), name


def test_nothing_in_the_docs_names_a_machine() -> None:
    for name in TEXTS:
        text = (ROOT / name).read_text("utf-8")
        assert str(ROOT.parent) + "/" not in text and f"{Path.home()}/" not in text, name


def test_the_tables_made_from_the_source_are_those_of_today() -> None:
    tables = maker()
    behind = [path.name for path in tables.pages() if tables.renewed(source(path.name)) != source(path.name)]
    assert not behind, f"run `python docs/tables.py`: {behind} are behind the source"
    assert {path.name for path in tables.pages()} >= {"sft.md", "ppo.md", "grpo.md", "gallery.md", "from-trl.md"}


def test_a_table_that_is_behind_is_noticed() -> None:
    tables = maker()
    text = source("grpo.md").replace("| `grpo.group` | `8` |", "| `grpo.group` | `4` |")
    assert text != source("grpo.md") and tables.renewed(text) == source("grpo.md")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[a](b.md) ![c](d.png)", ["b.md", "d.png"]),
        ("[`code`](e.py) and `[f](g)`", ["e.py"]),
        ("```text\n[h](i)\n```\n[j](k#l)", ["k#l"]),
        ("<!-- [m](n) --> [![o](p.png)](q.md)", ["q.md"]),
    ],
)
def test_links_are_found(text: str, found: list[str]) -> None:
    assert links(text) == found


def test_anchors_are_those_of_github_and_mkdocs() -> None:
    text = "# One two\n\n## `upslope sft`: A\n\n## A & B\n\n## Same\n\n## Same\n\n```\n# none\n```\n"
    # "A & B" is a--b on GitHub and a-b in mkdocs, the second "Same" is same-1 and same_1: neither can be linked to
    assert anchors(text) == {"one-two", "upslope-sft-a", "same"}


def test_pages_are_where_they_are_looked_for() -> None:
    assert DOCS.is_dir() and len(names()) >= 12
