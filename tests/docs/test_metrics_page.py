"""metrics.md: every name that a run writes is explained there, and every name that is explained is written by a run."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import upslope
from tests import tiny
from tests.docs.pages import COMMENT, ROOT, source
from tests.recipes.support import Bench, bench, letters, one_thread
from upslope.api import FinishedRun
from upslope.recipes.configs import RECIPES
from upslope.run.metrics import MetricsStream
from upslope.views.health import CHECKS
from upslope.views.sections import CHARTS
from upslope.worlds import calculator

__all__ = ["bench", "one_thread"]
PAGE = COMMENT.sub("", source("metrics.md"))
OWN = "progress"
"""What the reward of these runs gives to log_metric."""
GYM = {"name": "chain_sum", "size": 8, "heldout": 4, "difficulty": 0, "rise_to": 1, "rise_at": 0.5, "rise_after": 1}


def glossary() -> dict[str, list[str]]:
    """The cells of each metric's row, of all tables whose first column is called metric."""
    found: dict[str, list[str]] = {}
    for table in re.findall(r"^\| metric \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE):
        for row in table.splitlines():
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
            name = cells[0].strip("`")
            assert name not in found, f"{name} stands there twice"
            found[name] = cells[1:]
    return found


def explained(name: str, own: set[str]) -> str | None:
    """The row of the glossary that explains ``name``."""
    rows = glossary()
    if name in rows:
        return name
    if name in own:
        return "NAME"
    logged = {*own, *(row for row in rows if row.startswith(("tools/", "reasoning/")))}
    if name.startswith("eval/") and name.removeprefix("eval/") in logged:
        return "eval/NAME"
    for row in rows:
        if "/NAME/" in row and re.fullmatch(re.escape(row).replace("NAME", r"[\w.<>-]+"), name):
            return row
    return None


def logging(completions: list[str], log_metric: Callable[[str, float], None], **columns: Any) -> list[float]:
    log_metric(OWN, 0.5)
    return letters([], completions)


def names(run: FinishedRun) -> set[str]:
    """Every name in both logs of a run."""
    lines = [json.loads(line) for file in ("metrics.jsonl", "timings.jsonl")
             for line in (run.folder / file).read_text().splitlines()]  # fmt: skip
    return {name for line in lines for name in line}


def ended(run: FinishedRun) -> bool:
    """Whether a completion ended by itself: these runs must hold one, for one metric needs it."""
    return any("completions/mean_terminated_length" in line for line in run.metrics)


def preferences(path: Path) -> str:
    """Pairs of answers that differ."""
    rows = [{"prompt": f"say {n}", "chosen": str(n), "rejected": f"no {n}"} for n in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


Runs = dict[str, set[str]]


@pytest.fixture(scope="module")
def written(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The names that short runs of every recipe write, with the options that add some."""
    folder = tmp_path_factory.mktemp("names")
    several = {"reward": [logging, {"builtin": "length", "target": 4}], "steps": 2}
    common: dict[str, Any] = {
        "model": str(bench.model), "dtype": "float32", "device": "cpu", "warmup": 0, "steps": 2, "prompts": 4,
        "eval_every": 1, "eval_prompts": 2, "listeners": [], "data": preferences(folder / "pairs.jsonl"),
    }  # fmt: skip
    runs = {
        "sft": bench.run("sft", "names-sft", reward=[logging], steps=2),
        "reward": upslope.reward_model(**common, out=str(folder / "reward")),
        "grpo": bench.run("grpo", "names-grpo", kl_coef=0.1, resample=1, **several),
        "ppo": bench.run("ppo", "names-ppo", **several),
        "dpo": upslope.dpo(**common, out=str(folder / "dpo"), reward=[logging], max_new_tokens=4),
    }
    assert ended(runs["grpo"]) or ended(runs["ppo"])
    roomy = tiny.directory(folder / "roomy", max_position_embeddings=4096)
    talk = {"tools": [calculator.calculate], "max_turns": 2}
    small = {"steps": 1, "prompts": 2, "group": 2, "epochs": 1, "minibatches": 1, "reward": letters}
    tools = bench.run("grpo", "names-tools", model=str(roomy), episode=talk, **small)
    judge = {"model": runs["reward"].model, "normalize": 4}
    judged = bench.run("grpo", "names-judged", **{**small, "reward": judge})
    more = {"grpo with tools": names(tools), "grpo from a reward model": names(judged)}
    return {**{kind: names(run) for kind, run in runs.items()}, **more}


def test_every_metric_that_a_run_writes_is_in_the_glossary(written: Runs) -> None:
    for kind, found in written.items():
        unknown = sorted(name for name in found if explained(name, {OWN}) is None)
        assert not unknown, f"docs/metrics.md says nothing of what {kind} writes: {unknown}"
        assert len(found) > 15


def test_every_metric_of_the_glossary_is_written_by_some_run(written: Runs, bench: Bench, tmp_path: Path) -> None:
    found = {explained(name, {OWN}) for names in written.values() for name in names}
    left = set(glossary()) - found
    stream = MetricsStream(tmp_path)
    stream.write(1, {"loss": math.nan}, {})
    found |= set(json.loads((tmp_path / "metrics.jsonl").read_text()))
    gym = {"curriculum/level", "curriculum/reward", "reasoning/unreadable"}
    assert gym <= left
    try:
        import reasoning_gym  # noqa: F401
    except ImportError:
        sources = "".join(path.read_text("utf-8") for path in (ROOT / "upslope").rglob("*.py"))
        found |= {name for name in gym if f'"{name}"' in sources}
    else:
        data = {"task": "reasoning-gym", "options": GYM}
        found |= names(bench.run("grpo", "names-gym", data=data, reward=None, steps=1))
    assert not set(glossary()) - found, f"no run writes {sorted(set(glossary()) - found)}"


def test_no_two_rows_explain_one_name_and_strangers_are_noticed() -> None:
    assert explained("rewards/my-own_1.x/mean", set()) == "rewards/NAME/mean"
    assert explained("eval/rewards/a/mean", set()) == "eval/rewards/NAME/mean"
    assert explained("rewards/a/median", set()) is None and explained("surprise", set()) is None
    assert explained("eval/surprise", set()) is None and explained("eval/mine", {"mine"}) == "eval/NAME"


def test_every_metric_has_a_unit_and_says_what_it_is() -> None:
    for name, cells in glossary().items():
        unit, text, healthy = cells
        assert unit and healthy and len(text) > 5, name


def test_every_health_line_is_explained_and_no_other() -> None:
    section = PAGE.split("\n## The health line\n", 1)[1].split("\n## ", 1)[0]
    assert re.findall(r"^\| \*([^*]+)\* \|", section, re.MULTILINE) == list(CHECKS)


def test_metrics_that_the_pages_of_the_recipes_name_are_in_the_glossary() -> None:
    known = set(glossary())
    for kind in ("sft", "ppo", "grpo"):
        section = source(f"{kind}.md").split("## When it does not learn", 1)[1].split("\n## ", 1)[0]
        first = [row.split("|")[1] for row in section.splitlines() if row.startswith("| ") and "`" in row.split("|")[1]]
        named = {name for cell in first for name in re.findall(r"`([a-z_/]+)`", cell)}
        assert named and named <= known, named - known


def test_metrics_that_the_report_and_the_health_checks_read_are_in_the_glossary() -> None:
    """But for one that a reward function may log under that name."""
    health = (ROOT / "upslope" / "views" / "health.py").read_text("utf-8")
    read = set(re.findall(r'finite\(\w+, "([\w/]+)"\)', health)) | {chart[1] for chart in CHARTS}
    assert len(read) > 12
    assert read - set(glossary()) <= {"mean_token_accuracy"}


def test_every_kind_of_recipe_has_a_short_run_here(written: Runs) -> None:
    assert set(RECIPES) <= set(written), "give it a short run in this file's fixture"
