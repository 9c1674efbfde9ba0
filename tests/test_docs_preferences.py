"""docs/reward-models.md and docs/dpo.md: their examples print what stands under them, quotations and links are real."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.test_docs import FENCE, LINK, ROOT, examples, page, printed, quotations
from upslope.recipes.configs import GrpoRecipe

PAGES = ("reward-models.md", "dpo.md")
CASES = [(name, number) for name in PAGES for number in range(len(examples(name)))]


@pytest.mark.parametrize(("name", "number"), CASES)
def test_an_example_prints_what_stands_under_it(name: str, number: int) -> None:
    assert printed(name)[number] == examples(name)[number].shown


def test_the_pages_have_examples() -> None:
    shown = [bool(example.shown) for name in PAGES for example in examples(name)]
    assert len(shown) >= 8 and all(shown)


def test_quoted_lines_stand_in_their_files() -> None:
    quoted = [quotation for name in PAGES for quotation in quotations(name)]
    assert {where for where, _ in quoted} == {"upslope/recipes/reward.py", "upslope/recipes/dpo.py"}
    for where, code in quoted:
        source = [line.strip() for line in (ROOT / where).read_text("utf-8").splitlines()]
        lines = [line.strip() for line in code.splitlines()]
        assert lines in [source[start : start + len(lines)] for start in range(len(source))], code


def test_the_parts_of_recipes_are_read() -> None:
    parts = [yaml.safe_load(block[2]) for block in FENCE.finditer(page("reward-models.md")) if block[1] == "yaml"]
    assert len(parts) == 2
    for part in parts:
        recipe = GrpoRecipe.model_validate({"data": {"path": "rows.jsonl"}, **part})
        assert [entry.model for _, entry in recipe.reward.models] == ["runs/reward/model"]


@pytest.mark.parametrize("name", PAGES)
def test_links_of_a_page_exist(name: str) -> None:
    local = [link.partition("#")[0] for link in LINK.findall(page(name)) if "://" not in link and link[0] != "#"]
    assert local and all((Path(ROOT) / "docs" / link).is_file() for link in local)
