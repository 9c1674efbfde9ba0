"""from-trl.md: every field of TRL's configs has an answer, that of an error in a recipe; both scripts say the same."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import upslope
from tests import tiny
from tests.docs.pages import blocks, maker, source
from tests.docs.shell import Shell
from tests.recipes.support import one_thread
from upslope.recipes.configs import RECIPES, GrpoRecipe
from upslope.run.recipe import build, load
from upslope.run.recipe_errors import keys
from upslope.run.recipe_hints import FOREIGN

__all__ = ["one_thread"]
PAGE = source("from-trl.md")
BLOCKS = blocks(PAGE)
TRL: dict[str, dict[str, Any]] = maker().TRL
CONFIGS = {"SFTConfig": "sft", "GRPOConfig": "grpo", "PPOConfig": "ppo", "RewardConfig": "reward", "DPOConfig": "dpo"}


def of(kind: str) -> list[str]:
    return [block.text for block in BLOCKS if block.kind == kind]


@pytest.mark.parametrize("config", [*CONFIGS, "TrainingArguments"])
def test_every_field_of_a_config_has_one_place_on_the_page(config: str) -> None:
    section = re.search(rf"<!-- table: trl {config} (\w+) -->\n(.*?)<!-- end of table -->", PAGE, re.DOTALL)
    assert section is not None and section[1] == CONFIGS.get(config, "grpo")
    first = [row.split("|")[1] for row in section[2].splitlines() if row.startswith("| `")]
    named = [name for cell in first for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(named) == sorted(TRL[config])


def test_the_fields_are_as_many_as_trl_has() -> None:
    """Counted in TRL 1.16.0's own source, PPOConfig's in 1.12.0's, TrainingArguments' in transformers 5.23.0's."""
    counts = {"SFTConfig": 22, "GRPOConfig": 79, "PPOConfig": 33, "RewardConfig": 12, "DPOConfig": 26}
    assert {config: len(fields) for config, fields in TRL.items()} == {**counts, "TrainingArguments": 113}
    assert TRL["GRPOConfig"]["num_generations"] == 8 and TRL["PPOConfig"]["kl_coef"] == 0.05


@pytest.mark.parametrize("config", [*CONFIGS, "TrainingArguments"])
@pytest.mark.parametrize("kind", sorted(RECIPES))
def test_a_field_leads_to_a_key_of_the_recipe_or_says_why_not(config: str, kind: str) -> None:
    """In every kind of recipe: a field may be written into any."""
    for name in TRL[config]:
        found = maker().answer(name, kind)
        assert found is not None, f"{config}.{name}: run/recipe_hints.py says nothing of it"
        assert (found.ours in keys(RECIPES[kind])) if found.ours else len(found.why) > 8, (name, found)


@pytest.mark.parametrize(
    ("config", "name", "ours", "default"),
    [
        ("GRPOConfig", "scale_rewards", "grpo.scale", "none"),
        ("GRPOConfig", "beta", "grpo.kl_coef", "0.0"),
        ("PPOConfig", "lam", "ppo.trace", "0.95"),
        ("SFTConfig", "max_length", "sft.max_tokens", "2048"),
        ("DPOConfig", "beta", "dpo.beta", "0.1"),
        ("RewardConfig", "center_rewards_coefficient", "reward_model.center", "0.01"),
    ],
)
def test_the_page_gives_the_key_and_its_default(config: str, name: str, ours: str, default: str) -> None:
    section = PAGE.split(f"<!-- table: trl {config} ", 1)[1].split("<!-- end of table -->", 1)[0]
    (row,) = [line for line in section.splitlines() if line.startswith(f"| `{name}` |")]
    cells = [cell.strip().strip("`") for cell in row.split("|")[1:-1]]
    assert cells[2:4] == [ours, default]


def test_no_hint_is_left_over() -> None:
    """Each name that the hints know and TRL has is on the page; the others are of transformers' or other tools'."""
    known = {name for fields in TRL.values() for name in fields}
    assert len(known & set(FOREIGN)) > 100


# ------------------------------------------------------------------------------------------------------------- scripts
def test_the_page_shows_what_a_recipe_with_trls_keys_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = next(text for text in of("yaml") if "num_generations" in text)
    (tmp_path / "grpo.yaml").write_text(recipe)
    shell = Shell(tmp_path, capsys, monkeypatch)
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = shell.upslope(["check", "grpo.yaml"])
    assert code == 2
    assert (out + err).strip().splitlines() == of("text")[0].strip().splitlines()


def test_the_script_for_trl_uses_fields_that_trl_has() -> None:
    (script,) = of("py")
    calls = {ast.unparse(node.func): node for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Call)}
    used = {word.arg for word in calls["GRPOConfig"].keywords}
    assert used <= set(TRL["GRPOConfig"]) | set(TRL["TrainingArguments"]) and len(used) > 8


def test_the_reward_function_is_the_same_in_both_scripts() -> None:
    functions = [
        ast.dump(node)
        for script in (*of("py"), *of("python"))
        for node in ast.parse(script).body
        if isinstance(node, ast.FunctionDef)
    ]
    assert len(functions) == 2 and functions[0] == functions[1]


def test_our_script_runs_and_the_recipe_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.directory(tmp_path / "my-model")
    rows = [{"prompt": f"say {n}", "answer": str(n)} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (script,) = of("python")
    seen: dict[str, Any] = {}
    original = upslope.grpo

    def noted(**keywords: Any) -> Any:
        seen.update(keywords)
        return original(**keywords)

    monkeypatch.setattr(upslope, "grpo", noted)
    exec(compile(script, "from-trl.md", "exec"), {"__name__": "__main__"})
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()
    assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["grpo"]["group"] == 8

    text = next(text for text in of("yaml") if "num_generations" not in text)
    (tmp_path / "recipe.yaml").write_text(text)
    ours = load(tmp_path / "recipe.yaml", GrpoRecipe).recipe
    given = build({**seen, "reward": "rewards.py:correct"}, GrpoRecipe).recipe
    assert ours.model_copy(update={"out": "out"}) == given
