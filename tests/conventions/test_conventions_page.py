"""docs/conventions.md: its examples print what stands under them, and the files that it names are there."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.test_docs import ROOT, examples, page, printed

NAME = "conventions.md"
TASKS = ROOT / "docs" / "examples" / "lm_eval"


@pytest.mark.parametrize("number", range(len(examples(NAME))))
def test_an_example_prints_what_stands_under_it(number: int) -> None:
    assert printed(NAME)[number] == examples(NAME)[number].shown


def test_the_tasks_for_lm_eval_are_those_that_the_page_names() -> None:
    found = {yaml.safe_load(path.read_text("utf-8"))["task"]: path for path in TASKS.glob("*.yaml")}
    assert set(found) == {"upslope_sums", "upslope_choices"}
    assert "upslope_sums,upslope_choices" in page(NAME)
    rows = [json.loads(line) for line in (TASKS / "sums.jsonl").read_text("utf-8").splitlines()]
    assert all(row["choices"][row["right"]].strip() == row["answer"] for row in rows)
    sums = [row["prompt"].removeprefix("What is ").removesuffix("?").split(" + ") for row in rows]
    assert all(int(a) + int(b) == int(row["answer"]) for (a, b), row in zip(sums, rows, strict=True))
