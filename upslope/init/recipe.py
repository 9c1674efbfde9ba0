"""A commented recipe from what was asked for: the keys that one changes first, with what documents them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upslope.errors import InputError
from upslope.recipes.configs import PAIRED, RECIPES, Recipe, SftRecipe
from upslope.run.recipe_errors import keys
from upslope.run.recipe_yaml import flow_text
from upslope.text import rows as reading
from upslope.text.preferences import peek_pairs
from upslope.text.row_sources import READERS, kind_of

BUNDLED = "smollm2-135m-instruct"
READY = ("exact", "numeric", "math")
"""Built-in rewards that need nothing but a column `answer`."""
COLUMN = 30
LONGEST_COMMENT = 84
COUNTED = 10_000
"""Rows that are looked at, at most, to see how many there are."""
OWN_KEYS = {
    "sft": ("sft.max_tokens",),
    "ppo": ("ppo.critic_lr", "ppo.kl_coef"),
    "grpo": ("grpo.group", "grpo.kl_coef"),
    "reward": ("reward_model.max_tokens",),
    "dpo": ("dpo.loss", "dpo.beta", "dpo.max_tokens"),
}
"""Keys of an algorithm's own section that a first recipe shows."""
SAMPLING_KEYS = ("sampling.max_new_tokens", "sampling.temperature")
SHORTER = {
    "optim.decay": "constant, linear or cosine; the last two fall to a tenth at the last step",
    "lora.rank": "of the adapter; more learns more and takes more memory",
}
PREFERENCE = ("prompt", "chosen", "rejected")
TRAIN_KEYS = ("train.steps", "train.prompts", "train.eval_every", "train.save_every")
PPO_TRAIN_KEYS = (*TRAIN_KEYS[:2], "train.epochs", "train.minibatches", *TRAIN_KEYS[2:])


@dataclass(frozen=True, slots=True)
class Wish:
    """What the recipe should say. None: not said yet."""

    kind: str | None = None
    model: str | None = None
    data: str | None = None
    task: str | None = None
    reward: str | None = None
    lora: bool = False
    steps: int | None = None
    out: Path | None = None

    @property
    def needs_reward(self) -> bool:
        """Whether rows of one's own need a reward function."""
        return self.kind in ("ppo", "grpo") and self.data is not None


def recipe_text(wish: Wish) -> str:
    """The recipe as commented YAML: what was said, and the keys that one changes first with their defaults."""
    kind = str(wish.kind)
    schema = RECIPES[kind]
    name = wish.out or Path(f"{kind}.yaml")
    lines = [
        f"# {schema.__doc__ or kind}".splitlines()[0].replace("`", ""),
        "#",
        f"#   upslope check {shlex.quote(str(name))}",
        f"#   upslope {kind} {shlex.quote(str(name))}",
        "#",
        "# Any key can be changed for one run: optim.lr=1e-5 train.steps=20. Every key with its default is in",
        "# recipe.yaml of a run's folder.",
        "",
        _line("model", wish.model or BUNDLED, "a model directory, a hub id, or the bundled model"),
    ]
    if wish.lora:
        lines += [
            "",
            "lora:",
            _line("  rank", _value_of(_usual(wish, schema), "lora.rank"), _comment(schema, "lora.rank")),
        ]
    lines += ["", "data:", *_data_lines(wish, schema)]
    if wish.reward is not None and "reward" in schema.model_fields:
        built_in = wish.reward in READY
        about = "built in; it compares with" if built_in else "file:function; it gets"
        what = " the column answer" if built_in else " every column of the rows as a list"
        lines += ["", _line("reward", {"builtin": wish.reward} if built_in else wish.reward, about + what)]
    counted = _count(wish)
    usual = _usual(wish, schema)
    given = {**({"train.steps": wish.steps} if wish.steps else {}), **_prompts(schema, counted)}
    groups: list[tuple[str, Sequence[str]]] = [
        ("sampling", SAMPLING_KEYS if kind in ("ppo", "grpo") else ()),
        ("optim", ("optim.lr", "optim.decay")),
        ("train", PPO_TRAIN_KEYS if kind == "ppo" else TRAIN_KEYS),
        ("reward_model" if kind == "reward" else kind, OWN_KEYS.get(kind, ())),
    ]
    for section, names in groups:
        shown = [key for key in names if key in keys(schema)]
        if shown:
            lines += ["", f"{section}:"]
        for key in shown:
            value = given.get(key, _value_of(usual, key))
            lines.append(_line(f"  {key.partition('.')[2]}", value, _comment(schema, key)))
    return "\n".join(lines) + "\n"


def _data_lines(wish: Wish, schema: type[Recipe]) -> list[str]:
    if wish.task is not None:
        return [_line("  task", wish.task, "built in, with its own reward; nothing to download")]
    columns = column_map(str(wish.data), schema)
    lines = [_line("  path", wish.data, "or .json, .csv, .parquet, a datasets folder, a hub id")]
    if columns:
        lines.append(_line("  columns", columns, "our name: yours"))
    lines.append(_line("  heldout", _default(schema, "data.heldout"), _comment(schema, "data.heldout")))
    return lines


def column_map(source: str, schema: type[Recipe]) -> dict[str, str]:
    """Which of the user's columns are meant, by their usual names, where the rows do not have ours.

    Empty where the rows are a hub's, or nothing fits: the run says what is missing.
    """
    paired = schema in PAIRED
    need = PREFERENCE if paired else ("prompt", "completion") if schema is SftRecipe else ("prompt",)
    found: dict[str, str] = {}
    for _ in need:
        try:
            peek_pairs(source, found) if paired else reading.peek(source, found, need=need)
        except InputError as error:
            mapped = re.fullmatch(r"map it: data\.columns\.(\w+): (\S+)", error.fix)
            if mapped is None or mapped[2] == "NAME_OF_YOUR_COLUMN":
                return found
            found[mapped[1]] = mapped[2]
    return found


def _count(wish: Wish) -> int | None:
    """Rows of a local file; None where that is not known, or they are many."""
    if wish.data is None:
        return None
    kind, _ = kind_of(wish.data)
    if kind not in READERS:
        return None
    count = 0
    for count, _ in enumerate(READERS[kind](Path(wish.data).expanduser()), start=1):
        if count >= COUNTED:
            return None
    return count


def _prompts(schema: type[Recipe], rows: int | None) -> dict[str, int]:
    """Rows of a step: the default, or as many as there are to train on."""
    usual = int(_default(schema, "train.prompts"))
    if rows is None:
        return {}
    left = max(rows - max(1, round(float(_default(schema, "data.heldout")) * rows)), 1)
    return {"train.prompts": left} if left < usual else {}


def _usual(wish: Wish, schema: type[Recipe]) -> Recipe:
    """The recipe with nothing but what it must have: its values are the defaults, those that go with an adapter too."""
    return schema.model_validate({"data": {"task": "arithmetic"}, **({"lora": {}} if wish.lora else {})})


def _value_of(recipe: Any, key: str) -> Any:
    for name in key.split("."):
        recipe = getattr(recipe, name)
    return recipe


def _default(schema: type[Recipe], key: str) -> Any:
    return _value_of(_usual(Wish(), schema), key)


def _comment(schema: type[Recipe], key: str) -> str:
    """The first sentence that documents the key, or a shorter one."""
    if key in SHORTER:
        return SHORTER[key]
    text = " ".join((keys(schema)[key].description or "").split())
    return re.split(r"(?<!\bDr)\.(?:\s+(?=[A-Z])|$)", text)[0]


def _line(key: str, value: Any, comment: str) -> str:
    line = f"{key}: {_value(value)}"
    if not comment or len(comment) > LONGEST_COMMENT:
        return line
    first = comment.partition(" ")[0]
    usual = first[:1].isupper() and not any(letter.isupper() for letter in first[1:])
    return f"{line:<{COLUMN - 2}}  # {comment[0].lower() + comment[1:] if usual else comment}"


def _value(value: Any) -> str:
    if isinstance(value, float) and value != 0 and abs(value) < 1e-3:
        return f"{value:g}"
    return flow_text(value)
