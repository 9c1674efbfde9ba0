"""The JSON Schema accepts what the loader accepts and refuses what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from upslope.checkup.kinds import kind_of, own_sections
from upslope.errors import InputErrors
from upslope.recipes.configs import RECIPES
from upslope.run.recipe import load
from upslope.run.recipe_errors import keys
from upslope.run.recipe_schema import any_of, json_schema
from upslope.run.recipe_yaml import parse

jsonschema = pytest.importorskip("jsonschema")
READY = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
WHOLE = any_of(RECIPES, {kind: own_sections(kind) for kind in RECIPES})


def valid(schema: dict[str, Any], value: Any) -> bool:
    return not list(jsonschema.Draft202012Validator(schema).iter_errors(value))


@pytest.mark.parametrize("kind", RECIPES)
def test_the_schema_is_one(kind: str) -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema(RECIPES[kind], kind))
    jsonschema.Draft202012Validator.check_schema(WHOLE)


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_every_ready_recipe_is_valid(path: Path) -> None:
    data = parse(path.read_text("utf-8"), path.name).data
    assert valid(json_schema(RECIPES[kind_of(path)], "x"), data) and valid(WHOLE, data)
    assert not valid(json_schema(RECIPES[kind_of(path)], "x"), {**data, "tarin": {"steps": 3}})
    assert not valid(WHOLE, {**data, "tarin": {"steps": 3}})


CASES: list[tuple[str, dict[str, Any]]] = [
    ("grpo", {"data": {"task": "arithmetic"}}),
    ("grpo", {"data": "rows.jsonl", "reward": "rewards.py:correct", "model": "some/where"}),
    ("grpo", {"data": "rows.jsonl", "reward": ["a.py:f", {"function": "b.py:g", "weight": 0.5}]}),
    ("grpo", {"data": "rows.jsonl", "reward": {"builtin": "numeric"}}),
    ("grpo", {"data": "rows.jsonl", "reward": {"builtin": "length", "target": 30, "weight": 0.5}}),
    ("ppo", {"data": {"task": "arithmetic"}, "optim": None, "lora": {"rank": 4}}),
    ("sft", {"data": {"path": "r.jsonl", "columns": {"prompt": "q"}}, "lora": None}),
    ("ppo", {"data": {"task": "arithmetic"}, "ppo": {"value_clip": None}}),
    ("grpo", {}),
    ("grpo", {"data": 3}),
    ("grpo", {"data": {"task": "arithmetic"}, "optim": {"lr": -1}}),
    ("grpo", {"data": {"task": "arithmetic"}, "optim": {"lr": "fast"}}),
    ("grpo", {"data": {"task": "arithmetic"}, "optim": {"lrr": 1e-5}}),
    ("grpo", {"data": {"task": "arithmetic"}, "grpo": {"baseline": "median"}}),
    ("grpo", {"data": {"task": "arithmetic"}, "ppo": {"clip": 0.2}}),
    ("sft", {"data": {"task": "arithmetic"}, "optim": "fast"}),
    ("sft", {"data": {"task": "arithmetic"}, "model": ["a"]}),
    ("sft", {"data": {"task": "arithmetic"}, "train": {"steps": 0}}),
]


@pytest.mark.parametrize(("kind", "data"), CASES)
def test_schema_and_loader_agree(tmp_path: Path, kind: str, data: dict[str, Any]) -> None:
    import yaml

    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(data))
    try:
        load(path, RECIPES[kind])
        accepted = True
    except InputErrors:
        accepted = False
    assert valid(json_schema(RECIPES[kind], kind), data) == accepted


@pytest.mark.parametrize("kind", RECIPES)
def test_every_key_is_there_with_what_documents_it(kind: str) -> None:
    schema = json_schema(RECIPES[kind], kind)

    def described(node: dict[str, Any], path: list[str]) -> str | None:
        """The description of a dotted key, through references and alternatives."""
        if "$ref" in node:
            node = {**schema["$defs"][node["$ref"].rpartition("/")[2]], **node}
            node.pop("$ref")
        if not path:
            return node.get("description")
        for option in [node, *node.get("anyOf", ())]:
            inner = {**schema["$defs"][option["$ref"].rpartition("/")[2]]} if "$ref" in option else option
            if path[0] in inner.get("properties", {}):
                return described(inner["properties"][path[0]], path[1:])
        return None

    checked = 0
    for key, info in keys(RECIPES[kind]).items():
        if info.description:
            found = described(schema, key.split("."))
            assert found is not None and found.split() == info.description.split(), key
            checked += 1
    assert checked > 30


def test_the_section_says_which_kind_an_error_is_about() -> None:
    data = {"data": {"task": "arithmetic"}, "grpo": {"group": "eight"}}
    (error,) = jsonschema.Draft202012Validator(WHOLE).iter_errors(data)
    assert list(error.absolute_path) == ["grpo"]
    inner = [(list(one.absolute_path), one.message) for one in error.context]
    assert (["grpo", "group"], "'eight' is not of type 'integer'") in inner
