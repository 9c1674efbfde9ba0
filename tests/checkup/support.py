"""A desk on which nothing looks wrong, and what the checkup finds there."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.inputs.desk import Desk
from upslope.checkup.facts import Checkup
from upslope.checkup.gather import check as check_loaded
from upslope.recipes.configs import RECIPES
from upslope.run.recipe import load

RIGHT = """
def score(prompts, completions, answer=None, **columns):
    return [1.0 if said == right else 0.0 for said, right in zip(completions, answer or completions)]
"""


def write(desk: Desk) -> Path:
    path = desk.folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(desk.recipe))
    return path


@pytest.fixture
def tidy(desk: Desk) -> Desk:
    """A desk on which nothing looks wrong: enough rows, a reward that pays for the answer."""
    desk.rows([{"prompt": f"say {n}", "answer": f"{n}!"[:3]} for n in range(60)])
    (desk.folder / "rewards.py").write_text(RIGHT)
    desk.recipe["sampling"]["max_new_tokens"] = 6
    desk.recipe["train"] = {"steps": 5, "prompts": 4, "eval_prompts": 4}
    desk.recipe["data"]["heldout"] = 20
    return desk


def found(desk: Desk, *overrides: str, kind: str = "grpo") -> Checkup:
    return check_loaded(load(write(desk), RECIPES[kind], overrides))


def kinds(checkup: Checkup) -> list[str]:
    return [finding.kind for finding in checkup.findings]
