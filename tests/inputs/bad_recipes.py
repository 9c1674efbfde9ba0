"""Bad inputs 1 to 13: what a recipe file and the command line may hold."""

from __future__ import annotations

from typing import Any

import yaml

from tests.inputs.desk import Desk, suggested
from tests.inputs.table import Mend, Table, key, override

TABLE = Table()
bad = TABLE.bad


def text_of(desk: Desk) -> str:
    return yaml.safe_dump(desk.recipe)


def text(desk: Desk, wrong: str, right: str = "") -> Mend:
    """The recipe's text with something wrong at its end, which the fix replaces."""
    whole = text_of(desk)
    desk.text = (whole + wrong).encode()

    def mend(desk: Desk, said: str) -> list[str]:
        desk.text = (whole + right).encode()
        return []

    return mend


# ---------------------------------------------------------------------------------------------------------------- keys
@bad(
    1,
    "unknown key",
    r"recipe\.yaml:\d+ grpo\.bassline: unknown key",
    r"Did you mean grpo\.baseline\?",
    r"Keys here: group, baseline, scale",
)
def unknown_key(desk: Desk) -> Mend:
    desk.recipe["grpo"]["bassline"] = "mean"

    def mend(desk: Desk, said: str) -> list[str]:
        desk.recipe["grpo"][suggested(r"Fix: write grpo\.(\w+)", said)] = desk.recipe["grpo"].pop("bassline")
        return []

    return mend


@bad(
    1,
    "unknown key: another library's",
    r"recipe\.yaml:\d+ num_generations: unknown key",
    r"num_generations is called grpo\.group here",
)
def foreign_key(desk: Desk) -> Mend:
    desk.recipe["num_generations"] = 3

    def mend(desk: Desk, said: str) -> list[str]:
        return [f"{suggested('Fix: write ([a-z.]+[a-z])', said)}={desk.recipe.pop('num_generations')}"]

    return mend


@bad(2, "duplicate key", r"recipe\.yaml:\d+ optim\.lr: given twice \(line \d+: 1e-5, line \d+: 3e-4\)", "Fix: keep one")
def duplicate_key(desk: Desk) -> Mend:
    return text(desk, "optim:\n  lr: 1e-5\n  lr: 3e-4\n", "optim:\n  lr: 3e-4\n")


@bad(3, "lr: 1e-5, a number in YAML 1.2 and text in PyYAML", "finished at step 1", code=0)
def a_float_without_a_point(desk: Desk) -> None:
    text(desk, "optim:\n  lr: 1e-5\n")


@bad(3, "lr: fast", r"recipe\.yaml:\d+ optim\.lr: 'fast' is not a number", "give a number, such as lr: ")
def a_word_for_a_number(desk: Desk) -> Mend:
    desk.recipe["optim"] = {"lr": "fast"}
    return key("optim.lr", r"such as lr: ([\d.e-]+\d)")


@bad(4, "negative learning rate", r"recipe\.yaml:\d+ optim\.lr: must be > 0 \(got -1\.0e-05\)")
def negative_rate(desk: Desk) -> Mend:
    desk.recipe["optim"] = {"lr": -1e-5}
    return lambda desk, said: [f"optim.lr={float(suggested(r'give a number > (0)', said)) + 1e-5}"]


@bad(4, "huge learning rate", r"recipe\.yaml:\d+ optim\.lr: 0\.5 is very high", "usually takes 1e-6 to 1e-4", code=0)
def huge_rate(desk: Desk) -> None:
    desk.recipe["optim"] = {"lr": 0.5}


@bad(
    4,
    "a whole number beyond 64 bits",
    r"recipe\.yaml:\d+ train\.steps: is too large",
    "give a number within 64 bits",
)
def endless_steps(desk: Desk) -> Mend:
    desk.recipe["train"]["steps"] = 10**400
    return lambda desk, said: [f"train.steps={int(suggested('within ([0-9]+) bits', said)) // 64}"]


@bad(8, "NUL in a name", r"recipe\.yaml:\d+ out: holds a NUL character", "Fix: remove it")
def nul_in_a_name(desk: Desk) -> Mend:
    desk.recipe["out"] = "o\0ut"
    return lambda desk, said: ["out=out"]


@bad(5, "wrong dtype", r"recipe\.yaml:\d+ model\.dtype: 'bf17' is not one of auto, float32, bfloat16, float64")
def wrong_dtype(desk: Desk) -> Mend:
    desk.recipe["model"]["dtype"] = "bf17"
    return key("model.dtype", r"not one of auto, (\w+)")


@bad(
    6,
    "bfloat16 on a device without it",
    "model.dtype: bfloat16 is not supported on cuda",
    r"sm_75",
    "Fix: set model.dtype: float32",
    code=3,
    command="check recipe.yaml --kind grpo",
    note="no such GPU here: torch is told that there is one of compute capability 7.5",
)
def no_bfloat16(desk: Desk) -> Mend:
    import torch

    for name, answer in {
        "is_available": True,
        "device_count": 1,
        "is_bf16_supported": False,
        "get_device_capability": (7, 5),
        "mem_get_info": (8 * 10**9, 16 * 10**9),
    }.items():
        desk.patch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    desk.recipe["device"] = "cuda"
    desk.recipe["model"]["dtype"] = "bfloat16"
    return override(r"Fix: set (model\.dtype: float32)")


# --------------------------------------------------------------------------------------------------------------- shape
@bad(
    7,
    "a scalar for a section",
    r"recipe\.yaml:\d+ optim: 5 was given for a section, expected keys under it",
    r"write, for example,\n    optim:\n      lr: ",
)
def scalar_for_a_section(desk: Desk) -> Mend:
    whole = text_of(desk)
    desk.text = (whole + "optim: 5\n").encode()

    def mend(desk: Desk, said: str) -> list[str]:  # the example of two lines, as it stands
        desk.text = (whole + suggested(r"(    optim:\n      lr: .*\n)", said).replace("    ", "", 1)).encode()
        return []

    return mend


@bad(7, "a list for a number", r"recipe\.yaml:\d+ optim\.lr: \[1\.0e-05\] is not a number", "give a number, such as")
def list_for_a_number(desk: Desk) -> Mend:
    desk.recipe["optim"] = {"lr": [1e-5]}
    return key("optim.lr", r"such as lr: ([\d.e-]+\d)")


@bad(
    7,
    "indented with a tab",
    r"recipe\.yaml:\d+: a line is indented with a tab, expected spaces",
    "put two spaces in place of each tab",
)
def tab(desk: Desk) -> Mend:
    return text(desk, "optim:\n\tlr: 1e-5\n", "optim:\n  lr: 1e-5\n")


@bad(7, "not a mapping", r"recipe\.yaml:1: holds a list, expected a mapping of keys", r"train:\n      steps: 40")
def a_list_for_a_recipe(desk: Desk) -> Mend:
    mend = text(desk, "")
    desk.text = b"- model\n- data\n"
    return mend


@bad(7, "an empty file", r"recipe\.yaml: is empty, expected a mapping of keys", r"train:\n      steps: 40")
def empty_recipe(desk: Desk) -> Mend:
    mend = text(desk, "")
    desk.text = b""
    return mend


@bad(
    8,
    "no such recipe",
    r"recipe\.yml: no such file recipe\.yml\. Near: recipe\.yaml",
    command="grpo recipe.yml",
    then="grpo",
)
def no_recipe(desk: Desk) -> Mend:
    return lambda desk, said: [suggested(r"Fix: give (\S+?)\.?\n", said)]


@bad(8, "a folder for a recipe", r"error: \.: is a directory, expected a recipe file", command="grpo .", then="grpo")
def folder_for_a_recipe(desk: Desk) -> Mend:
    return lambda desk, said: [suggested(r"give one of its files: (recipe\.yaml)", said)]


@bad(8, "not UTF-8", r"recipe\.yaml:1: is not UTF-8 text \(byte 0xe9\)", "save the file as UTF-8")
def latin_recipe(desk: Desk) -> Mend:
    comment = "# caf\xe9\n"
    desk.text = (comment + text_of(desk)).encode("latin-1")

    def mend(desk: Desk, said: str) -> list[str]:
        desk.text = (comment + text_of(desk)).encode()
        return []

    return mend


@bad(8, "a byte order mark", "finished at step 1", code=0)
def byte_order_mark(desk: Desk) -> None:
    desk.text = text_of(desk).encode("utf-8-sig")


# -------------------------------------------------------------------------------------------------------- command line
@bad(
    9,
    "a misspelt override",
    r"command line optim\.lrr: unknown key",
    r"Did you mean optim\.lr\?",
    command="grpo recipe.yaml --optim.lrr 1e-5",
    then="grpo recipe.yaml",
)
def misspelt_override(desk: Desk) -> Mend:
    return lambda desk, said: [f"--{suggested('Fix: write ([a-z.]+[a-z])', said)}", "1e-5"]


@bad(
    9,
    "an override without a value",
    r"command line optim\.lr: has no value",
    "write optim.lr=value",
    command="grpo recipe.yaml optim.lr=",
    then="grpo recipe.yaml",
)
def override_without_a_value(desk: Desk) -> Mend:
    return lambda desk, said: [suggested(r"Fix: write (optim\.lr=)value", said) + "1e-5"]


# ---------------------------------------------------------------------------------------------- keys that do not agree
@bad(
    10,
    "a batch that cannot be cut as asked",
    r"recipe\.yaml:\d+ train\.minibatches: .*\(3\) is more than "
    r"train\.prompts \(2\)",
    "the completions of one prompt stay together",
    r"Fix: change train\.minibatches",
)
def too_many_minibatches(desk: Desk) -> Mend:
    desk.recipe["train"]["minibatches"] = 3
    return key("train.minibatches", r"more than train\.prompts \((\d)\)")


@bad(
    11,
    "a group of one",
    r"recipe\.yaml:\d+ grpo\.group: must be at least 2: GRPO compares completions of one prompt "
    r"\(got 1\)",
)
def group_of_one(desk: Desk) -> Mend:
    desk.recipe["grpo"]["group"] = 1
    return key("grpo.group", r"at least (2)")


@bad(
    12,
    "prompt and answer beyond the context",
    r"data\.path: 8 of 8 training prompts exceed 8 tokens "
    r"\(context 128 less 120 new ones\): rows \d \(24\)",
    r"or lower sampling\.max_new_tokens to 104",
)
def answer_beyond_the_context(desk: Desk) -> Mend:
    desk.recipe["sampling"]["max_new_tokens"] = 120
    desk.recipe["data"]["heldout"] = 0
    return lambda desk, said: ["sampling.max_new_tokens=" + suggested(r"lower sampling\.max_new_tokens to (\d+)", said)]


@bad(
    12,
    "no room for any prompt",
    r"sampling\.max_new_tokens: 500 new tokens leave no room for a prompt in a context of "
    "128",
)
def answer_longer_than_the_context(desk: Desk) -> Mend:
    desk.recipe["sampling"]["max_new_tokens"] = 500
    return lambda desk, said: [f"sampling.max_new_tokens={int(suggested('lower it below ([0-9]+)', said)) // 4}"]


@bad(
    13,
    "some prompts longer than the context",
    r"data\.path: \d of \d training prompts exceed 124 tokens",
    r"rows (\d \(224\)(, )?)+",
    "set data.too_long: drop or truncate",
)
def prompt_beyond_context(desk: Desk) -> Mend:
    desk.rows([{"prompt": f"say {n}" + "!" * (200 * (n in (2, 3, 4)))} for n in range(8)])
    return override(r"set (data\.too_long: drop)")


ALL: list[Any] = TABLE.rows
