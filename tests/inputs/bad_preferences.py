"""Bad inputs 17, 21 and 29: preferences, and reward models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests import tiny
from tests.inputs.desk import Desk, suggested
from tests.inputs.table import Mend, Table

TABLE = Table()
bad = TABLE.bad


def preferences(desk: Desk, rows: list[dict[str, Any]]) -> None:
    """The recipe as one for ``upslope reward``."""
    desk.supervised(rows)
    del desk.recipe["sampling"]


def pairs(equal: int, count: int = 8) -> list[dict[str, Any]]:
    return [
        {"prompt": f"say {n}", "chosen": str(n), "rejected": str(n) if n < equal else f"{n}!"} for n in range(count)
    ]


def judge(desk: Desk) -> Path:
    """A reward model's directory."""
    from transformers import LlamaForSequenceClassification

    config = tiny.model("llama").config
    config.num_labels = 1
    LlamaForSequenceClassification(config).save_pretrained(desk.folder / "judge")
    tiny.tokenizer().save_pretrained(desk.folder / "judge")
    return desk.folder / "judge"


@bad(
    17,
    "answered rows for a reward model",
    r"rows\.jsonl: preferences need the columns chosen and rejected; found .*completion.*, rows for upslope sft",
    "give pairs of a better and a worse answer, or run upslope sft",
    command="reward recipe.yaml",
    then="sft recipe.yaml",
)
def answers_for_a_reward_model(desk: Desk) -> Mend:
    preferences(desk, [{"prompt": f"say {n}", "completion": str(n)} for n in range(8)])
    return lambda desk, said: [] if suggested("or run upslope (sft)", said) else ["nothing"]


@bad(21, "pairs to skip", r"1 of 9 rows are bad and left out \(1\)", code=0, command="reward recipe.yaml")
def skipped_pairs(desk: Desk) -> None:
    preferences(desk, [{"prompt": "say 9", "chosen": None, "rejected": "8"}, *pairs(equal=0)])
    desk.recipe["data"]["on_bad_row"] = "skip"


@bad(
    21,
    "some pairs whose two answers are equal",
    r"2 of 8 rows have equal chosen and rejected answers: left out, they prefer nothing",
    code=0,
    command="reward recipe.yaml",
)
def some_equal_pairs(desk: Desk) -> None:
    preferences(desk, pairs(2))


@bad(
    21,
    "all pairs have two equal answers",
    r"rows\.jsonl: in all 8 rows chosen and rejected are equal: nothing is preferred",
    command="reward recipe.yaml",
)
def all_equal_pairs(desk: Desk) -> Mend:
    preferences(desk, pairs(8))

    def mend(desk: Desk, said: str) -> list[str]:
        desk.rows(pairs(0))
        return []

    return mend


@bad(
    29,
    "a reward model with another tokenizer",
    r"judge reads texts in another way than the policy \(another tokenizer\): completions are rendered anew for it",
    "finished at step 1",
    code=0,
)
def other_tokenizer(desk: Desk) -> None:
    file = judge(desk) / "tokenizer.json"
    content = json.loads(file.read_text())
    known = content["model"]["vocab"]
    known["a"], known["b"] = known["b"], known["a"]
    file.write_text(json.dumps(content))
    desk.recipe["reward"] = {"model": "judge"}


@bad(
    29,
    "a language model for a reward model",
    r"reward\S*\.model: \S*chat is a LlamaForCausalLM, a sequence classifier with one label was expected",
    "train a reward model with upslope reward",
)
def language_model_for_a_judge(desk: Desk) -> Mend:
    desk.recipe["reward"] = {"model": str(desk.models / "chat")}

    def mend(desk: Desk, said: str) -> list[str]:
        judge(desk)
        desk.recipe["reward"] = {"model": "judge"}
        return []

    return mend


ALL: list[Any] = TABLE.rows
