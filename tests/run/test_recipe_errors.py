"""Bad recipes and what is said about them, row by row; then random mutations."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from upslope.errors import InputError, InputErrors
from upslope.recipes.configs import RECIPES, GrpoRecipe, PpoRecipe, SftRecipe
from upslope.run.recipe import build, load, read_text
from upslope.run.recipe_errors import keys
from upslope.run.recipe_hints import FOREIGN

OWN = "data: rows.jsonl\nreward: rewards.py:correct\n"


def said(text: str, schema: type[BaseModel] = GrpoRecipe) -> list[str]:
    with pytest.raises((InputError, InputErrors)) as caught:
        read_text(text, schema, "r.yaml")
    error = caught.value
    return [str(item) for item in error.errors] if isinstance(error, InputErrors) else [str(error)]


# (text after OWN, whole beginning of the message); line 3 is the first after OWN
TABLE: list[tuple[str, str]] = [
    # unknown keys
    (
        "grpo:\n  group_sise: 8\n",
        "r.yaml:4 grpo.group_sise: unknown key. Did you mean grpo.group? Keys here: group, base",
    ),
    (
        "grop:\n  group: 8\n",
        "r.yaml:3 grop: unknown key. Did you mean grpo? Keys here: out, seed, device, report_to, mod",
    ),
    ("lr: 1e-5\n", "r.yaml:3 lr: unknown key. Did you mean optim.lr? Keys here:"),
    (
        "grpo:\n  temperature: 1\n",
        "r.yaml:4 grpo.temperature: unknown key. Did you mean sampling.temperature? Keys here",
    ),
    ("xyzzy: 1\n", "r.yaml:3 xyzzy: unknown key. Keys here: out, seed,"),
    (
        "ppo:\n  samples: 4\n",
        "r.yaml:3 ppo: unknown key: a section of PPO recipes, which `upslope ppo` runs. Fix: remove",
    ),
    (
        "optim.lr: 1e-5\n",
        "r.yaml:3 optim.lr: dotted keys are for the command line; a file has sections. Fix: write\n    op",
    ),
    ("optim: {lr: 1e-5, lr: 3e-4}\n", "r.yaml:3 optim.lr: given twice (line 3: 1e-5, line 3: 3e-4). Fix: keep one."),
    # numbers
    ("optim:\n  lr: fast\n", "r.yaml:4 optim.lr: 'fast' is not a number. Fix: give a number, such as lr: 1.0e-05."),
    ("optim:\n  lr: -1.0\n", "r.yaml:4 optim.lr: must be > 0 (got -1.0). Fix: give a number > 0."),
    ("optim:\n  lr: 1\n", "r.yaml:4 optim.lr: must be < 1 (got 1)."),
    ("optim:\n  lr: .nan\n", "r.yaml:4 optim.lr: .nan is not a finite number"),
    ("optim:\n  lr: [1e-5]\n", "r.yaml:4 optim.lr: [1.0e-05] is not a number."),
    ("optim:\n  lr: null\n", "r.yaml:4 optim.lr: null is not a number."),
    ("optim:\n  lr: true\n", "r.yaml:4 optim.lr: true is not a number."),
    (
        "train:\n  steps: true\n",
        "r.yaml:4 train.steps: true is not a whole number. Fix: give a whole number, such as st",
    ),
    ("train:\n  steps: 1.5\n", "r.yaml:4 train.steps: 1.5 is not a whole number."),
    ("train:\n  steps: 0\n", "r.yaml:4 train.steps: must be > 0 (got 0)."),
    ("train:\n  save_every: -1\n", "r.yaml:4 train.save_every: must be >= 0 (got -1)."),
    ("grpo:\n  clip_low: 1.5\n", "r.yaml:4 grpo.clip_low: must be <= 1 (got 1.5)."),
    # words, texts, lists
    (
        "model:\n  dtype: bf17\n",
        "r.yaml:4 model.dtype: 'bf17' is not one of auto, float32, bfloat16, float64. Fix: write",
    ),
    (
        "model:\n  dtype: flaot32\n",
        "r.yaml:4 model.dtype: 'flaot32' is not one of auto, float32, bfloat16, float64. Fix: ",
    ),
    ("model:\n  gradient_checkpointing: 7\n", "r.yaml:4 model.gradient_checkpointing: 7 is neither true nor false."),
    (
        "device: gpu\n",
        "r.yaml:3 device: 'gpu' is not one of auto, cpu, cuda, cuda:N, mps. Fix: write one of them, such a",
    ),
    ("out: 5\n", "r.yaml:3 out: 5 is not text. Fix: put it in quotes"),
    ("out: [a]\n", "r.yaml:3 out: ['a'] is not text."),
    ("sampling:\n  stop: x\n", "r.yaml:4 sampling.stop: 'x' is not a list. Fix: write a list: stop: [x]."),
    ("sampling:\n  stop: [a, 5]\n", "r.yaml:4 sampling.stop.1: 5 is not text."),
    (
        "report_to: [wandb, tensorbord]\n",
        "r.yaml:3 report_to.1: 'tensorbord' is not one of tensorboard, wandb, trackio.",
    ),
    # sections
    (
        "optim: 5\n",
        "r.yaml:3 optim: 5 was given for a section, expected keys under it. Fix: write, for example,\n    opti",
    ),
    ("optim: fast\n", "r.yaml:3 optim: 'fast' was given for a section, expected keys under it."),
    ("train: [steps, 40]\n", "r.yaml:3 train: ['steps', 'steps'] was".replace("'steps', 'steps'", "'steps', 40")),
    ("model: 5\n", "r.yaml:3 model: 5 was given for a section, expected keys under it."),
    ("model: {name: a, dtype: {x: 1}}\n", "r.yaml:3 model.dtype: {x: 1} is not one of auto,"),
    # rules between keys
    (
        "grpo:\n  group: 1\n",
        "r.yaml:4 grpo.group: must be at least 2: GRPO compares completions of one prompt (got 1). F",
    ),
    ("train:\n  minibatches: 9\n", "r.yaml:4 train.minibatches: train.minibatches (9) is more than train.prompts (8)"),
    # secrets
    (
        "hf_token: abcdef\n",
        "r.yaml:3 hf_token: looks like a secret, and recipes are copied into run folders. Fix: give se",
    ),
    ("model:\n  token: abcdef\n", "r.yaml:4 model.token: looks like a secret"),
    ("out: hf_abcdefghijklmnopqrstuvwxyz\n", "r.yaml:3 out: looks like a secret"),
]


@pytest.mark.parametrize(("text", "message"), TABLE)
def test_one_mistake_one_message(text: str, message: str) -> None:
    (found,) = said(OWN + text)
    assert found.startswith(message)
    assert "Fix: " in found
    assert "pydantic" not in found and "Input should" not in found and "Value error" not in found
    assert "abcdef" not in found


def test_a_fix_names_the_nearest_word() -> None:
    assert said(OWN + "model:\n  dtype: flaot32\n")[0].endswith("Fix: write dtype: float32.")


def test_an_example_of_two_lines_is_yaml_that_loads() -> None:
    for section in ("optim", "train", "sampling", "grpo", "model", "reward"):
        fix = said(f"data: rows.jsonl\nreward: r.py:f\n{section}: 5\n".replace("reward: r.py:f\nreward", "reward"))[0]
        example = re.search(r"example,\n    (\w+:\n)    (  .*\n)", fix)
        assert example is not None, fix
        head = OWN if section != "reward" else "data: rows.jsonl\n"
        assert read_text(head + example[1] + example[2], GrpoRecipe) is not None


@pytest.mark.parametrize(
    ("text", "schema", "message"),
    [
        ("seed: 1\n", GrpoRecipe, "r.yaml data: is missing. Fix: add\n    data:\n      path: rows.jsonl\n"),
        (
            "data:\n  heldout: 5\n",
            SftRecipe,
            "r.yaml:1 data: exactly one of data.task and data.path is needed, neither is",
        ),
        (
            "data:\n  task: arithmetic\n  path: rows.jsonl\n",
            SftRecipe,
            "r.yaml:1 data: exactly one of data.task and data.path is needed, both are given. "
            "Fix: change data.task (r.yaml:2) or data.path (r.yaml:3).",
        ),
        (
            "data: rows.jsonl\n",
            PpoRecipe,
            "r.yaml reward: is needed with data.path. Fix: give reward: path/to/file.py:fu",
        ),
        (
            "data:\n  task: arithmetic\ntrain:\n  prompts: 1\n  minibatches: 8\nppo:\n  samples: 4\n",
            PpoRecipe,
            "r.yaml:5 train.minibatches: train.minibatches (8) is more than train.prompts (1)",
        ),
    ],
)
def test_keys_that_are_missing_or_do_not_go_together(text: str, schema: type[BaseModel], message: str) -> None:
    (found,) = said(text, schema)
    assert found.startswith(message)


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file() -> None:
    text = (
        "data: rows.jsonl\n"  # no reward
        "optim:\n  lr: fast\n  lrr: 1\n  warmup: 1\n  warmup: 2\n"
        "learning_rate: 1\n"
        "api_key: abcdef\n"
        "model:\n  dtype: bf17\n"
        "train:\n  steps: true\n"
    )
    found = said(text)
    assert [message.split(": ")[0] for message in found] == [
        "r.yaml:3 optim.lr",
        "r.yaml:4 optim.lrr",
        "r.yaml:6 optim.warmup",
        "r.yaml:7 learning_rate",
        "r.yaml:8 api_key",
        "r.yaml:10 model.dtype",
        "r.yaml:12 train.steps",
        "r.yaml reward",
    ]


def test_a_rule_is_not_blamed_on_a_section_that_lost_a_key() -> None:
    (found,) = said("data: rows.jsonl\nrewrd: rewards.py:correct\n")
    assert found.startswith("r.yaml:2 rewrd: unknown key. Did you mean reward")
    (found,) = said(OWN + "train:\n  prompts: many\n  minibatches: 16\n")
    assert found.startswith("r.yaml:4 train.prompts: 'many' is not a whole number")
    assert "rewards_for" not in found


def test_a_flood_of_mistakes_is_cut_short() -> None:
    found = said(OWN + "".join(f"zz{index}: 1\n" for index in range(2000)))
    assert len(found) == 51
    assert "1950 more errors" in found[-1]


def test_a_rule_may_carry_its_own_fix() -> None:
    class Own(BaseModel):
        size: int = 1

        def model_post_init(self, context: Any) -> None:
            if self.size == 3:
                raise ValueError("size must not be 3. Fix: take 4")

    with pytest.raises(InputErrors) as caught:
        read_text("size: 3\n", Own, "r.yaml")
    assert str(caught.value) == "r.yaml:1 size: must not be 3. Fix: take 4."


# ------------------------------------------------------------------------------------------------------------ mutations
VALID = Path(__file__).resolve().parents[2] / "recipes"
SOURCES = {path.stem: path.read_text() for path in sorted(VALID.glob("*.yaml"))}
PIECES = [
    "\t",
    ": ",
    "- ",
    "[",
    "}",
    '"',
    "'",
    "&a ",
    "*a",
    "!!int ",
    "\n",
    "#",
    "1e5",
    "null",
    "\x00",
    "\ufeff",
    "%",
    "? ",
    "|",
]


def survives(name: str, text: str) -> None:
    schema = RECIPES[name.partition("-")[0]]
    try:
        recipe = read_text(text, schema)
    except (InputError, InputErrors) as error:
        assert "Fix: " in str(error)
        return
    assert isinstance(recipe, schema)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(SOURCES)), st.integers(0, 2**32), st.integers(1, 6))
def test_mutated_text_raises_input_errors_only(name: str, seed: int, edits: int) -> None:
    choose = random.Random(seed)
    text = SOURCES[name]
    for _ in range(edits):
        at, length = choose.randrange(len(text) + 1), choose.choice([0, 0, 1, 5, 40])
        text = (
            text[:at]
            + choose.choice([*PIECES, chr(choose.randrange(0x11000)), text[at : at + 30]])
            + text[at + length :]
        )
    survives(name, text)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(sorted(RECIPES)), st.data())
def test_mutated_values_raise_input_errors_only(name: str, data: st.DataObject) -> None:
    schema = RECIPES[name]
    known = st.sampled_from(sorted(keys(schema))) | st.sampled_from(sorted(FOREIGN)) | st.text(max_size=12)
    keywords = {"data": "rows.jsonl", "reward": "r.py:f", **data.draw(st.dictionaries(known, junk, max_size=4))}
    try:
        loaded = build(keywords, schema)
    except InputErrors as error:
        assert "Fix: " in str(error)
        return
    assert read_text(loaded.text, schema) == loaded.recipe or "nan" in loaded.text


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.text(max_size=10) | st.sampled_from(["--optim.lr", "train.steps=", "--", "-", "=", "1e-5"]), max_size=4
    ),
    st.data(),
)
def test_random_overrides_raise_input_errors_only(tokens: list[str], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(keys(GrpoRecipe))))
    tokens.insert(data.draw(st.integers(0, len(tokens))), f"{key}={data.draw(st.text(max_size=12))}")
    try:
        load(VALID / "grpo-own-data.yaml", GrpoRecipe, tokens)
    except (InputError, InputErrors) as error:
        assert "Fix: " in str(error)
