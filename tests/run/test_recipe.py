"""Loading, overriding, building and writing recipes; the ready recipes of the repository."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import BaseModel

from upslope.errors import InputErrors
from upslope.recipes.configs import RECIPES, GrpoRecipe, GrpoSection, OptimSection, PpoRecipe, SftRecipe
from upslope.run.recipe import Loaded, build, dump, load, read_text

ROOT = Path(__file__).resolve().parents[2]
OWN = "data: rows.jsonl\nreward: rewards.py:correct\n"
TASK = "model: dir\ndata:\n  task: arithmetic\n  options: {digits: 2}\noptim:\n  lr: 1e-5\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "r.yaml"
    path.write_text(text)
    return path


def refused(call: Any) -> list[str]:
    with pytest.raises(InputErrors) as caught:
        call()
    return [str(error) for error in caught.value.errors]


# ----------------------------------------------------------------------------------------------------------------- load
def test_load_gives_the_recipe_its_name_and_where_each_key_was_given(tmp_path: Path) -> None:
    path = write(tmp_path, TASK)
    loaded = load(path, GrpoRecipe, ["grpo.group=4", "optim.lr=2E-5"])
    assert loaded.name == "r"
    assert loaded.recipe.data.options == {"digits": 2}
    assert (loaded.recipe.model.name, loaded.recipe.grpo.group, loaded.recipe.optim.lr) == ("dir", 4, 2e-5)
    assert loaded.where["data.task"] == f"{path}:3"
    assert loaded.where["model.name"] == f"{path}:1"
    assert loaded.where["grpo.group"] == loaded.where["optim.lr"] == "command line"
    assert loaded.notices == ()
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.name = "x"  # type: ignore[misc]


def test_an_empty_section_takes_its_defaults(tmp_path: Path) -> None:
    recipe = load(write(tmp_path, OWN + "optim:\n  # lr: 1\ngrpo:\n"), GrpoRecipe).recipe
    assert (recipe.optim, recipe.grpo) == (OptimSection(), GrpoSection())


def test_a_recipes_own_defaults_hold_beside_keys_that_are_given(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("data: {task: arithmetic}\ntrain: {steps: 7}\noptim: {warmup: 2}\n")
    ppo = load(file, RECIPES["ppo"]).recipe
    assert (ppo.train.steps, ppo.train.prompts, ppo.train.epochs, ppo.train.minibatches) == (7, 64, 2, 2)
    assert (ppo.optim.warmup, ppo.optim.decay) == (2, "linear")
    sft = load(file, RECIPES["sft"]).recipe
    assert (sft.train.prompts, sft.optim.lr) == (16, 5e-5)
    assert load(file, RECIPES["ppo"], ["train.prompts=8", "optim.decay=constant"]).recipe.train.prompts == 8


def test_yaml_1_1_surprises_do_not_reach_the_recipe(tmp_path: Path) -> None:
    recipe = load(
        write(tmp_path, OWN + "out: on\ndevice: cpu\nmodel:\n  gradient_checkpointing: yes\n"), GrpoRecipe
    ).recipe
    assert recipe.out == "on"
    assert recipe.model.gradient_checkpointing is True


# ------------------------------------------------------------------------------------------------------------ overrides
@pytest.mark.parametrize(
    ("tokens", "key", "value"),
    [
        (["optim.lr=3e-5"], "optim.lr", 3e-5),
        (["--optim.lr=3e-5"], "optim.lr", 3e-5),
        (["--optim.lr", "3e-5"], "optim.lr", 3e-5),
        (["--optim.clip-norm", ".5"], "optim.clip_norm", 0.5),
        (["optim.lr=1e-4", "--optim.lr", "2e-4", "optim.lr=3e-4"], "optim.lr", 3e-4),
        (["optim={lr: 3e-4, warmup: 0}", "optim.warmup=2"], "optim.lr", 3e-4),
        (["seed=7"], "seed", 7),
        (["--out", "runs/a b"], "out", "runs/a b"),
        (["out=null"], "out", None),
        (["out=a=b"], "out", "a=b"),
        (["model=other"], "model.name", "other"),
        (["model.dtype=float64"], "model.name", "dir"),
        (["data.options.digits=3"], "data.options", {"digits": 3}),
        (["data.options={operation: mul}"], "data.options", {"operation": "mul"}),
        (['sampling.stop=["\\n", on]'], "sampling.stop", ("\n", "on")),
        (["data.system_prompt=Answer: yes # no"], "data.system_prompt", "Answer: yes # no"),
        (['data.system_prompt=""'], "data.system_prompt", ""),
        (["--reward", "rewards.py:correct"], "reward.function", "rewards.py:correct"),
        (["train.save_every=5", "--train.steps=40"], "train.steps", 40),
    ],
)
def test_overrides(tmp_path: Path, tokens: list[str], key: str, value: Any) -> None:
    read: Any = load(write(tmp_path, TASK), GrpoRecipe, tokens).recipe
    for part in key.split("."):
        read = getattr(read, part)
    assert read == value


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["--optim.lrr", "1"], "command line optim.lrr: unknown key. Did you mean optim.lr?"),
        (["optm.lr=1e-5"], "command line optm.lr: unknown key. Did you mean optim.lr?"),
        (["lr=1e-5"], "command line lr: unknown key. Did you mean optim.lr?"),
        (["--learning_rate=1e-5"], "command line learning_rate: unknown key. learning_rate is called optim.lr here"),
        (["--optim.lr"], "command line optim.lr: has no value"),
        (["--optim.lr", ""], "command line optim.lr: has no value"),
        (["optim.lr="], "command line optim.lr: has no value"),
        (["--optim.lr", "--seed=1"], "command line optim.lr: has no value"),
        (["--model.gradient_checkpointing", "seed=1"], "command line model.gradient_checkpointing: has no value"),
        (["--optim.lrr"], "command line optim.lrr: unknown key without a value. Did you mean optim.lr?"),
        (
            ["train.steps"],
            "command line: 'train.steps' is not understood, expected section.key=value. Fix: write train.",
        ),
        (["lrr"], "command line: 'lrr' is not understood, expected section.key=value. Fix: write optim.lr=value."),
        (["=5"], "command line: '=5' is not understood"),
        (["optim..lr=5"], "command line: 'optim..lr=5' is not understood"),
        (["train.steps.x=5"], "command line train.steps: {x: 5} is not a whole number"),
        (["optim.lr.x=5"], "command line optim.lr.x: optim.lr is a single value, not a section"),
        (["sampling.stop=[1"], "command line sampling.stop: "),
        (["optim.lr=-1"], "command line optim.lr: must be > 0 (got -1)"),
        (["optim=fast"], "command line optim: 'fast' was given for a section"),
    ],
)
def test_overrides_that_are_refused(tmp_path: Path, tokens: list[str], message: str) -> None:
    errors = refused(lambda: load(write(tmp_path, TASK), GrpoRecipe, tokens))
    assert len(errors) == 1
    assert errors[0].startswith(message)


def test_an_override_of_one_source_of_rows_takes_the_other_out(tmp_path: Path) -> None:
    path = write(tmp_path, TASK)
    loaded = load(path, GrpoRecipe, ["data=rows.jsonl", "reward=r.py:f"])
    assert (loaded.recipe.data.path, loaded.recipe.data.task, loaded.recipe.data.options) == ("rows.jsonl", None, {})
    assert loaded.notices == (
        f"{path}:3 data.task: 'arithmetic' is left out, because the command line gives data.path",
        f"{path}:4 data.options: {{digits: 2}} is left out, because the command line gives data.path",
    )
    path = write(tmp_path, "data: {path: a.jsonl, columns: {prompt: q}}\n")
    loaded = load(path, GrpoRecipe, ["data={task: arithmetic}"])
    assert (loaded.recipe.data.path, loaded.recipe.data.task, loaded.recipe.data.columns) == (None, "arithmetic", {})
    (error,) = refused(lambda: load(path, GrpoRecipe, ["data.task=arithmetic", "data.path=b", "reward=r.py:f"]))
    assert "command line data: exactly one of" in error or f"{path}:1 data: exactly one of" in error
    assert load(path, GrpoRecipe, ["data.task=null", "reward=r.py:f"]).recipe.data.path == "a.jsonl"


# ---------------------------------------------------------------------------------------------------------------- build
def test_keywords_of_a_python_call() -> None:
    loaded = build(
        {
            "model": Path("some") / "dir",
            "data": "rows.jsonl",
            "reward": "r.py:f",
            "optim": {"warmup": np.int64(3)},
            "optim__clip_norm": np.float32(0.5),
            "sampling.stop": ("a", "b"),
            "steps": 40,
            "lr": 1e-4,
            "group": 4,
            "seed": 3,
        },
        GrpoRecipe,
    )
    recipe = loaded.recipe
    assert (recipe.model.name, recipe.data.path, recipe.reward.function) == ("some/dir", "rows.jsonl", "r.py:f")
    assert (recipe.optim.warmup, recipe.optim.clip_norm, recipe.optim.lr) == (3, 0.5, 1e-4)
    assert (recipe.train.steps, recipe.grpo.group, recipe.seed) == (40, 4, 3)
    assert recipe.sampling.stop == ("a", "b")
    assert loaded.name == "grpo"
    assert loaded.where["optim.lr"] == "upslope.grpo()"
    assert read_text(loaded.text, GrpoRecipe) == recipe


def test_keywords_that_are_refused() -> None:
    errors = refused(
        lambda: build(
            {
                "data": "rows.jsonl",
                "steps": 40,
                "train": {"steps": 41},
                "lrr": 1.0,
                "learning_rate": 1.0,
                "reward": lambda prompts, completions: [],
                "optim__lr": -1.0,
                "options": {1: 2},
                "__": 1,
            },
            GrpoRecipe,
        )
    )
    expected = [
        "upslope.grpo() train.steps: given twice (as steps and as train)",
        "upslope.grpo() reward: a function cannot be written into a recipe",
        "upslope.grpo() data.options: the key 1 is not text",
        "upslope.grpo(): '.' is not a key",
        "upslope.grpo() optim.lr: must be > 0 (got -1.0)",
        "upslope.grpo() lrr: unknown key. Did you mean optim.lr?",
        "upslope.grpo() learning_rate: unknown key. learning_rate is called optim.lr here",
    ]
    assert sorted(errors) == sorted(error for start in expected for error in errors if error.startswith(start))
    assert len(errors) == len(expected)


class Left(BaseModel):
    rate: float = 0.5


class Right(BaseModel):
    rate: float = 0.25
    size: int = 3


class Twins(BaseModel):
    left: Left = Left()
    right: Right = Right()


def test_an_ambiguous_last_name_lists_its_candidates() -> None:
    assert refused(lambda: build({"rate": 1.0}, Twins, "upslope.twins()")) == [
        "upslope.twins() rate: may mean any of left.rate, right.rate. Fix: write one of left__rate, right__rate."
    ]
    assert build({"size": 4}, Twins).recipe.right.size == 4


# ----------------------------------------------------------------------------------------------------------------- dump
def test_dump_has_every_key_in_order_and_reads_back_exactly() -> None:
    recipe = PpoRecipe.model_validate(
        {
            "out": "runs/a b: c",
            "report_to": ["tensorboard", "wandb"],
            "data": {
                "path": "rows.jsonl",
                "columns": {"prompt": "on", "x y": "~"},
                "options": {"a": [1, 2.5, None, {"b": True}]},
            },
            "reward": "rewards.py:correct",
            "optim": {"lr": 0.1 + 0.2 - 0.2},
            "ppo": {"critic_lr": math.nextafter(1e-4, 1), "target_kl": None, "kl_coef": 1e16},
            "sampling": {"stop": ["\n", "#", "yes", "1e5", "\u2028\U0001f600"]},
        }
    )
    text = dump(recipe)
    assert read_text(text, PpoRecipe) == recipe
    assert dump(read_text(text, PpoRecipe)) == text
    flat = yaml.safe_load(text)
    assert list(flat) == list(PpoRecipe.model_fields)
    assert list(flat["ppo"]) == list(type(recipe.ppo).model_fields)
    assert "  group" not in text and "  # gamma, a token" in text


def test_dump_reads_back_for_every_recipe_of_the_repository() -> None:
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        loaded = load(path, RECIPES[path.stem.partition("-")[0]])
        assert read_text(loaded.text, type(loaded.recipe)) == loaded.recipe


# -------------------------------------------------------------------------------------------------------------- notices
@pytest.mark.parametrize(
    ("text", "notice"),
    [
        ("optim:\n  lr: 0.02\n", ":4 optim.lr: 0.02 is very high"),
        ("optim:\n  warmup: 200\n", ":4 optim.warmup: 200 steps of warm-up in a run of 100 optimizer steps"),
        ("sampling:\n  temperature: 0.1\n", ":4 sampling.temperature: 0.1 is low"),
        ("optim:\n  lr: 0.01\n  warmup: 100\nsampling:\n  temperature: 0.3\n", None),
    ],
)
def test_notices_are_returned_and_not_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, notice: str | None
) -> None:
    path = write(tmp_path, OWN + text)
    notices = load(path, GrpoRecipe).notices
    assert [item.startswith(f"{path}{notice}") for item in notices] == ([] if notice is None else [True])
    assert capsys.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------------------- ready recipes
EXPECTED: dict[str, dict[str, Any]] = {
    "sft-arithmetic": {"data.task": "arithmetic", "optim.decay": "linear", "sampling.max_new_tokens": 8},
    "grpo-arithmetic": {"data.task": "arithmetic", "sampling.max_new_tokens": 8, "reward.function": None},
    "grpo-lora-arithmetic": {"data.task": "arithmetic", "lora.rank": 16, "lora.targets": ()},
    "ppo-arithmetic": {"data.task": "arithmetic", "sampling.max_new_tokens": 8, "reward.function": None},
    "sft-own-data": {"data.path": "rows.jsonl", "reward.function": None},
    "grpo-own-data": {"data.path": "rows.jsonl", "reward.function": "rewards.py:correct"},
    "ppo-own-data": {"data.path": "rows.jsonl", "reward.function": "rewards.py:correct"},
}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_ready_recipe_loads_as_it_stands(name: str) -> None:
    loaded: Loaded[Any] = load(ROOT / "recipes" / f"{name}.yaml", RECIPES[name.partition("-")[0]])
    assert loaded.name == name
    assert loaded.notices == ()
    for key, value in EXPECTED[name].items():
        read = loaded.recipe
        for part in key.split("."):
            read = getattr(read, part)
        assert read == value, key


def test_ready_recipes_show_the_command_that_runs_them_in_narrow_lines() -> None:
    for name in EXPECTED:
        text = (ROOT / "recipes" / f"{name}.yaml").read_text()
        assert f"upslope {name.partition('-')[0]} recipes/{name}.yaml" in text
        assert all(len(line) <= 120 for line in text.splitlines())


# ---------------------------------------------------------------------------------------------------------------- torch
def test_recipe_errors_come_without_torch(tmp_path: Path) -> None:
    path = write(tmp_path, "data: rows.jsonl\ngrpo:\n  group_sise: 8\n")
    code = (
        "import sys\n"
        "from upslope.errors import InputErrors\n"
        "from upslope.recipes.configs import GrpoRecipe\n"
        "from upslope.run import recipe\n"
        "try:\n"
        "    recipe.load(sys.argv[1], GrpoRecipe)\n"
        "except InputErrors as error:\n"
        "    print(error)\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{path}:3 grpo.group_sise: unknown key. Did you mean grpo.group?")
    assert lines[-1] == "False False"


def test_sft_needs_no_reward(tmp_path: Path) -> None:
    assert load(write(tmp_path, "data: rows.jsonl\n"), SftRecipe).recipe.reward.function is None


# ------------------------------------------------------------------------------------------------ a recipe stays small
def leaves(value: Any) -> int:
    return sum(map(leaves, value.values())) if isinstance(value, dict) else 1


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_ready_recipe_sets_at_most_20_keys(path: Path) -> None:
    assert leaves(yaml.safe_load(path.read_text())) <= 20


@pytest.mark.parametrize("kind", sorted(RECIPES))
def test_an_algorithm_has_about_20_fields_of_its_own(kind: str) -> None:
    """Its section and ``train``; what the other sections say means the same in each recipe. PPO has a critic too."""
    fields = RECIPES[kind].model_fields
    section = {"reward": "reward_model"}.get(kind, kind)
    own = [fields[name].annotation.model_fields for name in (section, "train")]  # type: ignore[union-attr]
    assert sum(map(len, own)) <= (22 if kind == "ppo" else 21)


@pytest.mark.parametrize("given", ["rewards.py:score", "{function: rewards.py:score, weight: 2}", "[rewards.py:score]"])
def test_a_reward_given_as_a_mapping_takes_the_place_of_the_files(tmp_path: Path, given: str) -> None:
    text = f"data: rows.jsonl\nreward: {given}\n"
    found = load(write(tmp_path, text), PpoRecipe, ["reward={model: runs/judge/model, missing_eos_penalty: 1}"]).recipe
    assert found == read_text(
        "data: rows.jsonl\nreward: {model: runs/judge/model, missing_eos_penalty: 1}\n", PpoRecipe
    )
    assert [part.model for _, part in found.reward.models] == ["runs/judge/model"]
    kept = load(write(tmp_path, text), PpoRecipe, ["reward={timeout: 7}"]).recipe if given[0] != "[" else None
    assert kept is None or (kept.reward.timeout == 7 and not kept.reward.models)
