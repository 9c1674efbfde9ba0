"""Bad inputs 14 to 23: what a user's rows may be."""

from __future__ import annotations

import json
import os
from typing import Any

from tests.inputs.desk import Desk, suggested
from tests.inputs.table import Mend, Table, override

TABLE = Table()
bad = TABLE.bad
GOOD = [{"prompt": f"say {n}", "answer": str(n)} for n in range(8)]
HUB = "the hub is not asked: the datasets library raises what it raises then"


def repaired(rows: list[Any] | None = None) -> Mend:
    """The rows put right by hand, for a message that says which one and how."""

    def mend(desk: Desk, said: str) -> list[str]:
        desk.rows(GOOD if rows is None else rows)
        return []

    return mend


def one_bad(desk: Desk, row: Any, place: int = 2) -> Mend:
    """Good rows but for one."""
    desk.rows([*GOOD[: place - 1], row, *GOOD[place - 1 :]])
    return repaired()


def talk(*turns: str, text: str = "say 1") -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role in turns]


def hub(desk: Desk, error: Exception, cured: str = "org/rows") -> None:
    """The hub as the datasets library shows it: only ``cured`` can be loaded, everything else raises."""
    import datasets

    def load(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name != cured or (cured == "org/gated" and not os.environ.get("HF_TOKEN")):
            raise error
        return datasets.Dataset.from_list(GOOD)

    desk.patch.setattr(datasets, "load_dataset", load)
    desk.patch.delenv("HF_TOKEN", raising=False)


# ---------------------------------------------------------------------------------------------------------- the source
@bad(14, "no such data file", r"row\.jsonl: no such file or folder", r"did you mean rows\.jsonl\?")
def missing_file(desk: Desk) -> Mend:
    desk.recipe["data"]["path"] = "row.jsonl"
    return lambda desk, said: [f"data.path={suggested(r'did you mean ([^ ?]*rows.jsonl)', said)}"]


@bad(
    14,
    "no such dataset on the hub",
    "org/rowz: no such dataset or revision on the hub, and no such file",
    "check the spelling of org/name",
    note=HUB,
)
def no_such_dataset(desk: Desk) -> Mend:
    from datasets.exceptions import DatasetNotFoundError

    hub(desk, DatasetNotFoundError("Dataset 'org/rowz' doesn't exist on the Hub or cannot be accessed."))
    desk.recipe["data"]["path"] = "org/rowz"
    return lambda desk, said: ["data.path=org/rows"]


@bad(14, "a gated dataset", r"org/gated: is gated", "accept its terms on the hub and set HF_TOKEN", note=HUB)
def gated_dataset(desk: Desk) -> Mend:
    from datasets.exceptions import DatasetNotFoundError

    hub(
        desk,
        DatasetNotFoundError("Dataset 'org/gated' is a gated dataset on the Hub. You must be authenticated."),
        "org/gated",
    )
    desk.recipe["data"]["path"] = "org/gated"

    def mend(desk: Desk, said: str) -> list[str]:
        desk.patch.setenv(suggested(r"set (HF_TOKEN)", said), "hf_abcdefghijklmnopqrstuvwxyz")
        return []

    return mend


@bad(
    14,
    "offline, and not in the cache",
    "org/rows: the hub cannot be reached and it is not in the cache",
    "unset HF_HUB_OFFLINE, or give a file",
    note=HUB,
)
def offline(desk: Desk) -> Mend:
    hub(desk, ConnectionError("Couldn't reach 'org/rows' on the Hub (OfflineModeIsEnabled)"), "none")
    desk.recipe["data"]["path"] = "org/rows"
    return lambda desk, said: ["data.path=rows.jsonl"]


@bad(
    14,
    "a kind of file that is not read",
    r"rows\.txt: files of type '\.txt' are not read, expected \.jsonl, \.json, "
    r"\.csv, \.parquet",
    "convert it to one of",
)
def text_file(desk: Desk) -> Mend:
    desk.rows(GOOD, "rows.txt")
    desk.recipe["data"]["path"] = "rows.txt"

    def mend(desk: Desk, said: str) -> list[str]:
        (desk.folder / "converted.jsonl").write_text((desk.folder / "rows.txt").read_text())
        return ["data.path=converted" + suggested(r"convert it to one of (\.jsonl)", said)]

    return mend


@bad(14, "a folder that is no dataset", r"mine: is a folder, but not one that the datasets library saved")
def some_folder(desk: Desk) -> Mend:
    (desk.folder / "mine").mkdir()
    desk.rows(GOOD, "mine/rows.jsonl")
    desk.recipe["data"]["path"] = "mine"
    return lambda desk, said: [f"data.path={suggested('give the file: (mine/rows.jsonl)', said)}"]


@bad(
    14, "a pipe, which would be waited for", r"pipe\.jsonl: is not a regular file", "give a file or a folder with rows"
)
def pipe(desk: Desk) -> Mend:
    os.mkfifo(desk.folder / "pipe.jsonl")
    desk.recipe["data"]["path"] = "pipe.jsonl"
    return lambda desk, said: ["data.path=rows.jsonl"]


@bad(15, "an empty dataset", r"rows\.jsonl: 0 rows, nothing to train on", "give a source with rows")
def empty_data(desk: Desk) -> Mend:
    desk.rows([])
    return repaired()


@bad(
    15,
    "no row left after the filters",
    r"data\.path: 0 training prompts are left \(read 8, too long 8\)",
    "set data.too_long: truncate",
)
def all_filtered(desk: Desk) -> Mend:
    desk.rows([{"prompt": "!" * 300 + str(n)} for n in range(8)])
    desk.recipe["data"] |= {"too_long": "drop", "heldout": 0}
    return override(r"set (data\.too_long: truncate)")


# --------------------------------------------------------------------------------------------------------- the columns
@bad(
    16,
    "a missing column",
    r"rows\.jsonl: column 'prompt' not in rows\.jsonl\. Columns: question",
    "map it: data.columns.prompt: question",
)
def missing_column(desk: Desk) -> Mend:
    desk.rows([{"question": f"say {n}"} for n in range(8)])
    return override(r"map it: (data\.columns\.prompt: question)")


@bad(
    16,
    "a mapping to a column that is not there",
    r"data\.columns\.prompt: column 'qestion' not in rows\.jsonl\. "
    "Columns: question, answer",
)
def misspelt_mapping(desk: Desk) -> Mend:
    desk.rows([{"question": f"say {n}", "answer": str(n)} for n in range(8)])
    desk.recipe["data"]["columns"] = {"prompt": "qestion"}
    return override(r"did you mean (data\.columns\.prompt: question)\?")


@bad(
    17,
    "prompts alone for SFT",
    r"rows\.jsonl: column 'completion' not in rows\.jsonl\. Columns: prompt, answer",
    "map it: data.columns.completion: answer",
    command="sft recipe.yaml",
)
def prompts_for_sft(desk: Desk) -> Mend:
    desk.supervised(GOOD)
    return override(r"map it: (data\.columns\.completion: answer)")


@bad(
    17,
    "preferences without a prompt for GRPO",
    r"rows\.jsonl: column 'prompt' not in rows\.jsonl\. Columns: chosen, "
    "rejected",
    "preference rows without a prompt",
    "put the shared start into a column prompt",
)
def preferences_for_grpo(desk: Desk) -> Mend:
    desk.rows([{"chosen": f"say {n}: yes", "rejected": f"say {n}: no"} for n in range(8)])
    return repaired([{"prompt": f"say {n}:", "chosen": "yes", "rejected": "no"} for n in range(8)])


# --------------------------------------------------------------------------------------------------------- single rows
@bad(18, "a bad line of JSON", r"rows\.jsonl:3: Expecting ',' delimiter at char 20, near", "correct the JSON of that")
def bad_json_line(desk: Desk) -> Mend:
    lines = [json.dumps(row) for row in GOOD]
    lines[2] = '{"prompt": "say 3" "answer": "3"}'
    (desk.folder / "rows.jsonl").write_text("\n".join(lines))
    return repaired()


@bad(18, "a number of five thousand digits", r"rows\.jsonl:2: holds a number of thousands of digits")
def long_number(desk: Desk) -> Mend:
    (desk.folder / "rows.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "n": ' + "1" * 5000 + "}\n")
    return repaired()


@bad(
    18,
    "cells that do not fit the head of a CSV file",
    r"rows\.csv:3: 3 cells, expected 2 \(prompt, answer\)",
    "quote cells that hold commas",
)
def ragged_csv(desk: Desk) -> Mend:
    lines = ["prompt,answer", *(f"say {n},{n}" for n in range(8))]
    wrong = [*lines[:2], "say 1, please,1", *lines[3:]]
    (desk.folder / "rows.csv").write_text("\n".join(wrong))
    desk.recipe["data"]["path"] = "rows.csv"

    def mend(desk: Desk, said: str) -> list[str]:
        (desk.folder / "rows.csv").write_text("\n".join(wrong).replace("say 1, please", '"say 1, please"'))
        return []

    return mend


@bad(18, "a Parquet file that is none", r"rows\.parquet: not a readable Parquet file", "write the file again")
def broken_parquet(desk: Desk) -> Mend:
    import pyarrow
    import pyarrow.parquet

    (desk.folder / "rows.parquet").write_bytes(b"PAR1" + bytes(64))
    desk.recipe["data"]["path"] = "rows.parquet"

    def mend(desk: Desk, said: str) -> list[str]:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(GOOD), desk.folder / "rows.parquet")
        return []

    return mend


@bad(19, "a prompt that is null", r"rows\.jsonl row 2: prompt is null, expected text")
def null_prompt(desk: Desk) -> Mend:
    return one_bad(desk, {"prompt": None})


@bad(19, "an empty prompt far down the file", r"rows\.jsonl row 40: prompt is empty, expected text")
def empty_prompt(desk: Desk) -> Mend:
    desk.rows([*GOOD * 4, *GOOD[:7], {"prompt": "  \n"}])
    return override(r"or set (data\.on_bad_row: skip)")


@bad(19, "bad rows that are to be skipped", r"2 of 10 rows are bad and left out \(1, 4\)", code=0)
def skipped_rows(desk: Desk) -> None:
    desk.rows([{"prompt": 7}, *GOOD[:2], {"prompt": None}, *GOOD[2:]])
    desk.recipe["data"]["on_bad_row"] = "skip"


@bad(19, "rows of which none is good", r"row 1: prompt is null, expected text \(3 bad rows: 1, 2, 3\)", "correct or")
def no_good_row(desk: Desk) -> Mend:
    desk.rows([{"prompt": None}] * 3)
    desk.recipe["data"]["on_bad_row"] = "skip"
    return repaired()


@bad(
    19,
    "a prompt that is a number, and more bad rows",
    r"rows\.jsonl row 2: prompt is int '7', expected text",
    r"\(2 bad rows: 2, 4\)",
)
def number_prompt(desk: Desk) -> Mend:
    desk.rows([GOOD[0], {"prompt": 7}, GOOD[1], {"prompt": {"a": 1}}, *GOOD[2:]])
    return repaired()


@bad(20, "an unknown role", r"rows\.jsonl row 2: prompt\[0\] has role 'human', expected one of system, user, assistant")
def unknown_role(desk: Desk) -> Mend:
    return one_bad(desk, {"prompt": talk("human")})


@bad(20, "two turns of the user running", r"row 2: prompt\[1\] is user and follows user, expected assistant there")
def two_users(desk: Desk) -> Mend:
    return one_bad(desk, {"prompt": talk("user", "user")})


@bad(
    20,
    "a prompt of RL that ends with an answer",
    r"row 2: prompt ends with the turn of assistant, expected user: a "
    "prompt of RL ends with the user's turn",
)
def answered_prompt(desk: Desk) -> Mend:
    return one_bad(desk, {"prompt": talk("user", "assistant")})


@bad(20, "an empty message", r"row 2: prompt\[0\]\.content is empty, expected text")
def empty_message(desk: Desk) -> Mend:
    return one_bad(desk, {"prompt": talk("user", text=" ")})


@bad(
    20,
    "ShareGPT's names for roles",
    r"row 2: prompt\[0\] is dict .*expected an object with role and content",
    "ShareGPT's from/value must be turned into role/content",
)
def share_gpt(desk: Desk) -> Mend:
    return one_bad(desk, {"prompt": [{"from": "human", "value": "say 1"}]})


@bad(
    21,
    "held-out prompts that are trained on",
    r"held-out prompts are training prompts but for case and spaces",
    code=0,
    command="check recipe.yaml --kind grpo",
)
def leaked(desk: Desk) -> None:
    desk.rows([{"prompt": f"{'say' if n % 2 else 'SAY '} {n // 2}", "answer": str(n // 2)} for n in range(60)])
    desk.recipe["data"]["heldout"] = 20
    desk.recipe["train"]["eval_prompts"] = 4


@bad(
    21,
    "rows given twice",
    r"10 of 60 training rows \(17 %\) repeat an earlier row",
    code=0,
    command="check recipe.yaml --kind grpo",
)
def repeated(desk: Desk) -> None:
    desk.rows([{"prompt": f"say {n % 50}", "answer": str(n % 50)} for n in range(60)])
    desk.recipe["data"]["heldout"] = 0


@bad(22, "completions to skip", r"1 of 9 rows are bad and left out \(1\)", code=0, command="sft recipe.yaml")
def skipped_completions(desk: Desk) -> None:
    desk.supervised([{"prompt": "say 9", "completion": None}, *({**row, "completion": "8"} for row in GOOD[:8])])
    desk.recipe["data"]["on_bad_row"] = "skip"


@bad(22, "an empty completion", r"rows\.jsonl row 1: completion is empty, expected text", command="sft recipe.yaml")
def empty_completion(desk: Desk) -> Mend:
    good = [{"prompt": f"say {n}", "completion": str(n)} for n in range(8)]
    desk.supervised([{"prompt": "a", "completion": ""}, *good])
    return repaired(good)


@bad(
    22,
    "nothing left to train on",
    r"sft\.max_tokens: none of 7 rows has a trainable token within 20 tokens",
    "raise sft.max_tokens",
    command="sft recipe.yaml",
)
def all_masked(desk: Desk) -> Mend:
    desk.supervised()
    desk.recipe["data"]["heldout"] = 1
    desk.recipe["sft"] = {"max_tokens": 20}
    return lambda desk, said: [suggested(r"raise (sft\.max_tokens)", said) + "=60"]


@bad(
    22,
    "some rows cut before their answer",
    r"4 of 8 rows were cut to 40 tokens; 4 had nothing left to train on",
    code=0,
    command="sft recipe.yaml",
)
def some_masked(desk: Desk) -> None:
    desk.supervised([{"prompt": "say it" + "!" * (40 * (n % 2)), "completion": str(n)} for n in range(8)])
    desk.recipe["data"]["heldout"] = 0
    desk.recipe["sft"] = {"max_tokens": 40}


# --------------------------------------------------------------------------------------------------------------- bytes
@bad(23, "line ends of Windows", "finished at step 1", code=0)
def windows_lines(desk: Desk) -> None:
    (desk.folder / "rows.jsonl").write_bytes(b"".join(json.dumps(row).encode() + b"\r\n" for row in GOOD))


@bad(23, "half a character in a prompt", r"row 2: prompt holds a lone surrogate at character 4, expected valid Unicode")
def lone_surrogate(desk: Desk) -> Mend:
    return one_bad(desk, {"prompt": "say \ud800"})


@bad(23, "half a character in another column, and NUL", "finished at step 1", code=0)
def strange_columns(desk: Desk) -> None:
    desk.rows([{"prompt": f"say {n}\x00", "answer": "\ud800\x00", "\ud801": 1} for n in range(8)])


@bad(23, "not UTF-8", r"rows\.jsonl:2: not UTF-8 text: invalid continuation byte at byte", "save it as UTF-8")
def latin_rows(desk: Desk) -> Mend:
    (desk.folder / "rows.jsonl").write_bytes('{"prompt": "a"}\n{"prompt": "\xe9t\xe9"}\n'.encode("latin-1"))
    return repaired()


@bad(23, "a line of 5 MB", r"data\.path: 1 of \d training prompts exceed 124 tokens", r"rows 9 \(19531\)")
def huge_line(desk: Desk) -> Mend:
    desk.recipe["data"]["heldout"] = 0
    desk.rows([*GOOD, {"prompt": "a" * 5_000_000}])
    return override(r"set (data\.too_long: drop)")


ALL: list[Any] = TABLE.rows
