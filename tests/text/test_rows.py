"""Rows: every source, every schema, every fault with its place."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.errors
import pytest

from upslope.errors import InputError
from upslope.text.rows import content_hash, peek, read_rows, to_examples, to_prompts

ROWS = [{"prompt": "What is 1 + 1?", "answer": "2"}, {"prompt": 'Say "ü", twice', "answer": "ü\nü"}]
USER, ASSISTANT, SYSTEM = ({"role": role, "content": role} for role in ("user", "assistant", "system"))


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_json(path: Path, rows: list[dict]) -> None:
    path.write_text(json.dumps(rows, indent=1))


def write_csv(path: Path, rows: list[dict]) -> None:
    lines = [list(rows[0]), *([row[name] for name in rows[0]] for row in rows)]
    quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in line) for line in lines]
    path.write_text("\n".join(quoted) + "\n", encoding="utf-8")


def write_parquet(path: Path, rows: list[dict]) -> None:
    datasets.Dataset.from_list(rows).to_parquet(str(path))


def failure(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


# -------------------------------------------------------------------------------------------------------------- sources
WRITERS = {"jsonl": write_jsonl, "json": write_json, "csv": write_csv, "parquet": write_parquet}


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_file_type_gives_the_same_rows_and_hash(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data.{suffix}"
    WRITERS[suffix](path, ROWS)
    table = read_rows(str(path))
    assert table.rows == ROWS
    assert (table.where, len(table), table.revision) == (path.name, 2, "")
    lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in ROWS)
    assert table.content_hash == hashlib.sha256(lines.encode()).hexdigest()
    peek(str(path))


def test_the_hash_sees_content_and_order_but_not_the_order_of_columns() -> None:
    assert content_hash(ROWS) == content_hash([dict(reversed(row.items())) for row in ROWS])
    assert content_hash(ROWS) != content_hash(ROWS[::-1])
    assert content_hash(ROWS) != content_hash([ROWS[0], {**ROWS[1], "answer": "u"}])


def test_jsonl_may_have_blank_lines_crlf_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n   \r\n{"prompt": "b"}')
    assert read_rows(str(path)).rows == [{"prompt": "a"}, {"prompt": "b"}]
    (tmp_path / "data.csv").write_bytes(b"\xef\xbb\xbfprompt,answer\r\na,b\r\n")
    assert read_rows(str(tmp_path / "data.csv")).rows == [{"prompt": "a", "answer": "b"}]


def test_json_may_be_lines_or_hold_its_rows_under_data(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "lines.json", ROWS)
    (tmp_path / "data.json").write_text(json.dumps({"version": 1, "data": ROWS}))
    assert read_rows(str(tmp_path / "lines.json")).rows == read_rows(str(tmp_path / "data.json")).rows == ROWS


def test_a_bad_json_line_is_named_with_sixty_characters_around_it(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    good = json.dumps({"prompt": "a"}) + "\n"
    bad = json.dumps({"prompt": "x" * 80, "answer": "y" * 80}).replace('", "answer', '" "answer')
    path.write_text(good * 1201 + "\n" + bad + "\n" + good)
    found = failure(read_rows, str(path))
    column = bad.index('"answer') + 1
    around = bad[column - 1 - 30 : column - 1 + 30]
    assert found.startswith(f"data.jsonl:1203: Expecting ',' delimiter at char {column}, near {around!r}. Fix: ")
    peek(str(path))  # only the first rows are looked at


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("d.jsonl", b"[1, 2]\n", "d.jsonl:1: found list, expected an object with columns"),
        ("d.jsonl", b'{"prompt": "a"}\n"b"\n', "d.jsonl:2: found str, expected an object"),
        (
            "d.jsonl",
            b'{"prompt": "a"}\n\n{"prompt": "\xff"}\n',
            "d.jsonl:3: not UTF-8 text: invalid start byte at byte 12",
        ),
        ("d.jsonl", b"[" * 100_000, "d.jsonl:1: is nested too deeply"),
        ("d.jsonl", b"", "d.jsonl: 0 rows, nothing to train on"),
        ("d.jsonl", b"\n \n", "d.jsonl: 0 rows"),
        ("d.json", b"", "d.json: 0 rows"),
        ("d.json", b"[]", "d.json: 0 rows"),
        ("d.json", b'[\n{"prompt": "a"},\n{"prompt" "b"}\n]', "d.json:3: Expecting ':' delimiter at char 11, near "),
        ("d.json", b'"text"', "d.json: holds one str, expected a list of rows"),
        ("d.json", b'[{"prompt": "a"}, 3]', "d.json row 2: found int, expected an object"),
        ("d.json", b"[" * 100_000, "d.json: is nested too deeply"),
        ("d.json", b'[{"prompt": "a"},\n{"prompt": "\xff"}]', "d.json:2: not UTF-8 text"),
        ("d.csv", b"prompt,answer\na,b\na,b,c\n", r"d.csv:3: 3 cells, expected 2 \(prompt, answer\)"),
        ("d.csv", b"prompt,answer\na\n", "d.csv:2: 1 cells, expected 2"),
        ("d.csv", b"prompt,prompt\na,b\n", "d.csv:1: column names repeat: prompt, prompt"),
        ("d.csv", b'prompt\n"a\n', "d.csv:2: not valid CSV: unexpected end of data"),
        ("d.csv", b"prompt,answer\n", "d.csv: 0 rows"),
        ("d.parquet", b"PAR1 not at all", "d.parquet: not a readable Parquet file"),
        ("d.txt", b"a", "files of type '.txt' are not read, expected .jsonl, .json, .csv, .parquet"),
        ("d", b"a", "files of type 'none' are not read"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, name: str, content: bytes, text: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=text):
        read_rows(str(tmp_path / name))
    with pytest.raises(InputError, match=text):  # the first rows show it too
        peek(str(tmp_path / name))


def test_what_is_not_there_is_said_with_what_is_near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    for call in (read_rows, peek):
        assert "trian.jsonl: no such file or folder. Fix: did you mean train.jsonl?" in failure(call, "trian.jsonl")
        assert "no such file or folder. Fix: did you mean train.jsonl?" in failure(call, str(tmp_path / "trian.jsonl"))
        assert "no such file or folder. Fix: give a .jsonl" in failure(call, "elsewhere/data.jsonl")
        assert "or a hub dataset as org/name" in failure(call, "gsm8k")
        assert f"is a folder, but not one that the datasets library saved. Fix: give the file: {tmp_path}" in failure(
            call, str(tmp_path)
        )
        assert "cannot be looked at: File name too long" in failure(call, "x" * 5000)


def test_a_saved_folder_is_read_by_its_split(tmp_path: Path) -> None:
    one = datasets.Dataset.from_list(ROWS)
    one.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": one, "test": one.select([1])}).save_to_disk(str(tmp_path / "two"))
    assert read_rows(str(tmp_path / "one")).rows == ROWS
    assert read_rows(str(tmp_path / "two"), "test").rows == ROWS[1:]
    assert "two: no split 'dev'. Splits: train, test" in failure(read_rows, str(tmp_path / "two"), "dev")
    peek(str(tmp_path / "one"))
    next((tmp_path / "one").glob("*.arrow")).unlink()
    assert "is not a readable saved dataset" in failure(read_rows, str(tmp_path / "one"))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("org/name", ("org/name", None, None)),
        ("openai/gsm8k:main", ("openai/gsm8k", "main", None)),
        ("a-b/c.d_e:x-1@v1.0", ("a-b/c.d_e", "x-1", "v1.0")),
        ("a/b@refs/pr/3", ("a/b", None, "refs/pr/3")),
    ],
)
def test_a_hub_name_gives_name_config_revision_and_split(
    monkeypatch: pytest.MonkeyPatch, source: str, expected: tuple[str, str | None, str | None]
) -> None:
    asked: list[Any] = []

    def load(name: str, config: str | None, *, split: str, revision: str | None) -> datasets.Dataset:
        asked.append((name, config, revision, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    table = read_rows(source, "test")
    assert asked == [(*expected, "test")]
    assert (table.rows, table.where, table.revision) == (ROWS, source, expected[2] or "")
    peek(source)
    assert len(asked) == 1


def chained(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            chained(
                datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' is a gated dataset on the Hub. You must ..."),
                RuntimeError("403 Forbidden"),
            ),
            "is gated .* Fix: accept its terms on the hub and set HF_TOKEN",
        ),
        (
            chained(
                datasets.exceptions.DatasetNotFoundError(
                    "Dataset 'a/b' doesn't exist on the Hub or cannot be accessed."
                ),
                RuntimeError("401 Client Error: Repository Not Found. If it is private or restrained, log in"),
            ),
            "no such dataset or revision on the hub, and no such file",
        ),
        (
            chained(
                ConnectionError("Couldn't reach 'a/b' on the Hub (OfflineModeIsEnabled)"),
                FileNotFoundError("not cached"),
            ),
            "the hub cannot be reached and it is not in the cache",
        ),
        (
            huggingface_hub.errors.OfflineModeIsEnabled("Cannot reach https://huggingface.co: offline"),
            "the hub cannot be reached",
        ),
        (
            ValueError("Unknown split \"test\". Should be one of ['train']."),
            r"no such split or config \(split 'test'\): Unknown",
        ),
        (
            ValueError("BuilderConfig 'x' not found. Available: ['main']"),
            "no such split or config .*Available: .'main'",
        ),
        (RuntimeError("Dataset scripts are no longer supported"), "cannot be loaded: Dataset scripts are no longer"),
    ],
)
def test_each_way_that_the_hub_fails_has_its_own_text(
    monkeypatch: pytest.MonkeyPatch, error: Exception, text: str
) -> None:
    def load(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(InputError, match=f"^a/b: {text}"):
        read_rows("a/b", "test")


def test_offline_the_library_itself_leads_to_the_offline_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "the hub cannot be reached and it is not in the cache" in failure(read_rows, "no-such-org/no-such-name")


# -------------------------------------------------------------------------------------------------------------- columns
def test_columns_are_renamed_ours_to_theirs(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    write_jsonl(path, [{"question": "q", "solution": "s", "level": 3, "prompt": "old"}])
    table = read_rows(str(path), columns={"prompt": "question", "answer": "solution"})
    # Under their own names too, for a reward that asks for them; but not where the name says what a row is.
    assert table.rows == [{"question": "q", "solution": "s", "level": 3, "prompt": "q", "answer": "s"}]
    write_jsonl(path, [{"input": "q", "completion": "old", "question": "q", "solution": "s"}])
    table = read_rows(str(path), columns={"prompt": "input", "completion": "solution"})
    assert table.rows == [{"question": "q", "solution": "s", "prompt": "q", "completion": "s"}]
    write_jsonl(path, [{"question": "q", "solution": "s", "level": 3, "prompt": "old"}])
    peek(str(path), {"prompt": "question"})
    for call in (read_rows, peek):
        found = failure(call, str(path), columns={"prompt": "questions"})
        assert found.startswith(
            "data.columns.prompt: column 'questions' not in data.jsonl. Columns: question, solution, level"
        )
        assert "did you mean data.columns.prompt: question?" in found


@pytest.mark.parametrize(
    ("columns", "fix"),
    [
        (["question", "answer"], "map it: data.columns.prompt: question"),
        (["Problem", "solution"], "map it: data.columns.prompt: Problem"),
        (["promt", "x"], "map it: data.columns.prompt: promt"),
        (["conversations"], "map it: data.columns.messages: conversations"),
        (["text"], "split it into the columns prompt and completion"),
        (["chosen", "rejected"], "put the shared start into a column prompt"),
        (["a", "b"], "map it: data.columns.prompt: NAME_OF_YOUR_COLUMN"),
    ],
)
def test_a_missing_prompt_lists_the_columns_and_how_to_map(tmp_path: Path, columns: list[str], fix: str) -> None:
    row = dict.fromkeys(columns, "x")
    write_jsonl(tmp_path / "data.jsonl", [row])
    start = f"data.jsonl: column 'prompt' not in data.jsonl. Columns: {', '.join(columns)}"
    for found in (failure(to_prompts, [row], "data.jsonl"), failure(peek, str(tmp_path / "data.jsonl"))):
        assert found.startswith(start)
        assert found.endswith(f"Fix: {fix}.")


def test_needed_columns_are_looked_for_by_name_and_by_what_stands_for_them(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    write_jsonl(path, [{"prompt": "a", "better": "b", "rejected": "c"}])
    found = failure(peek, str(path), need=("prompt", "chosen", "rejected"))
    assert "column 'chosen' not in data.jsonl" in found and found.endswith("Fix: map it: data.columns.chosen: better.")
    peek(str(path), {"chosen": "better"}, ("prompt", "chosen", "rejected"))
    assert "column 'completion' not in" in failure(peek, str(path), need=("prompt", "completion"))
    write_jsonl(path, [{"input": "a", "output": "b"}])
    peek(str(path), need=("prompt", "completion"))
    write_jsonl(path, [{"messages": [USER, ASSISTANT]}])
    peek(str(path), need=("prompt", "completion"))
    assert "row 1: messages ends with the turn of assistant" in failure(peek, str(path))


# ------------------------------------------------------------------------------------------------ prompts and examples
def test_prompts_keep_every_other_column_for_the_reward() -> None:
    prompts = to_prompts([{"prompt": "a", "answer": 1, "id": "x"}, {"prompt": "b", "answer": None}], "d")
    assert [(p.id, p.content, dict(p.columns)) for p in prompts] == [
        ("1", "a", {"answer": 1, "id": "x"}),
        ("2", "b", {"answer": None}),
    ]
    assert to_prompts([{"input": "a", "output": "b"}], "d")[0].columns == {"output": "b"}
    chat = to_prompts([{"messages": [SYSTEM, USER, ASSISTANT, USER], "level": 1}], "d")[0]
    assert (chat.content, chat.columns) == ((SYSTEM, USER, ASSISTANT, USER), {"level": 1})
    assert to_prompts([{"prompt": [USER], "messages": []}], "d")[0].content == (USER,)


def test_examples_of_each_schema() -> None:
    def only(row: dict) -> tuple[Any, Any]:
        (example,) = to_examples([row], "d")
        assert example.id == "1"
        return example.prompt, example.completion

    assert only({"prompt": "a", "completion": " b\n"}) == ("a", " b\n")
    assert only({"input": "a", "output": "b", "other": 1}) == ("a", "b")
    assert only({"prompt": [USER], "completion": [ASSISTANT]}) == ((USER,), "assistant")
    assert only({"prompt": [SYSTEM, USER], "completion": "b"}) == ((SYSTEM, USER), "b")
    assert only({"messages": [USER, ASSISTANT]}) == ((USER, ASSISTANT), None)
    assert only({"messages": [USER, ASSISTANT], "prompt": "a"}) == ((USER, ASSISTANT), None)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "prompt is null, expected text"),
        ("", "prompt is empty, expected text"),
        (" \n", "prompt is empty, expected text"),
        (3, "prompt is int '3', expected text"),
        ({"a": 1}, "prompt is dict "),
        ("a\ud800b", "prompt holds a lone surrogate at character 1"),
        ([], "prompt is empty, expected a list of messages"),
        (["a"], r"prompt\[0\] is str 'a', expected an object with role and content"),
        ([{"from": "human", "value": "a"}], r"prompt\[0\] is dict .*; ShareGPT's from/value must be turned into role"),
        ([{"role": "human", "content": "a"}], r"prompt\[0\] has role 'human', expected one of system, user, assistant"),
        ([{"role": "user", "content": ""}], r"prompt\[0\].content is empty"),
        ([{"role": "user", "content": None}], r"prompt\[0\].content is null"),
        ([{"role": "user", "content": [{"type": "image"}]}], r"prompt\[0\].content is list"),
        ([USER, USER], r"prompt\[1\] is user and follows user, expected assistant there"),
        ([USER, ASSISTANT, ASSISTANT], r"prompt\[2\] is assistant and follows assistant, expected user there"),
        ([ASSISTANT, USER], r"prompt\[0\] is assistant and comes first, expected system or user there"),
        ([USER, SYSTEM], r"prompt\[1\] is system and follows user"),
        ([SYSTEM], "prompt ends with the turn of system, expected user"),
        (
            [USER, ASSISTANT],
            "prompt ends with the turn of assistant, expected user: a prompt of RL ends with the user's turn",
        ),
    ],
)
def test_a_bad_prompt_is_named_by_its_row(value: Any, text: str) -> None:
    rows = [{"prompt": "good", "completion": "b"}] * 16 + [{"prompt": value, "completion": "b"}]
    for convert in (to_prompts, to_examples):
        with pytest.raises(InputError, match=f"^data.jsonl row 17: {text}"):
            convert(rows, "data.jsonl")


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"prompt": "a", "completion": None}, "completion is null"),
        ({"prompt": "a", "completion": ""}, "completion is empty"),
        ({"prompt": "a", "completion": 7}, "completion is int '7'"),
        ({"input": "a", "output": None}, "output is null"),
        (
            {"prompt": "a", "completion": [USER]},
            "completion is a list of 1 messages, expected text or one assistant message",
        ),
        ({"prompt": "a", "completion": [ASSISTANT, USER]}, "completion is a list of 2 messages"),
        ({"messages": [USER]}, "messages ends with the turn of user, expected assistant: there is no answer"),
        ({"messages": None}, "messages is null, expected a list of messages"),
        ({"messages": "hello"}, "messages is str 'hello', expected a list of messages"),
    ],
)
def test_a_bad_example_is_named_by_its_row(row: dict, text: str) -> None:
    with pytest.raises(InputError, match=f"^d row 1: {text}"):
        to_examples([row], "d")


def test_one_schema_holds_for_all_rows_and_bad_rows_are_counted() -> None:
    rows = [{"prompt": "a"}] + [{"input": "b"}] * 11
    found = failure(to_prompts, rows, "d")
    assert found.startswith("d row 2: prompt is null, expected text (11 bad rows: 2, 3, 4, 5, 6, 7, 8, 9, ...). Fix:")


def test_bad_rows_are_left_out_where_that_is_asked_for_and_the_others_keep_their_numbers() -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": 7, "completion": "b"}, {"prompt": "c", "completion": None},
            {"prompt": "d", "completion": "e"}]  # fmt: skip
    left_out: list[int] = []
    assert [prompt.id for prompt in to_prompts(rows, "rows", left_out)] == ["1", "3", "4"] and left_out == [2]
    left_out.clear()
    examples = to_examples(rows, "rows", left_out)
    assert [(row.id, row.prompt, row.completion) for row in examples] == [("1", "a", "b"), ("4", "d", "e")]
    assert left_out == [2, 3]
    with pytest.raises(InputError, match=r"row 2: .*\(2 bad rows: 2, 3\)") as caught:
        to_examples(rows, "rows")
    assert caught.value.fix == "correct or remove the row, or set data.on_bad_row: skip"
    with pytest.raises(InputError, match="row 1: prompt is int") as caught:
        to_prompts(rows[1:2], "rows", [])
    assert caught.value.fix == "correct or remove the row"


def test_peek_checks_the_first_rows(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    write_jsonl(path, [{"prompt": "a"}, {"prompt": ""}])
    assert "data.jsonl row 2: prompt is empty" in failure(peek, str(path))
    write_jsonl(path, [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": None}])
    assert "data.jsonl row 2: completion is null" in failure(peek, str(path), need=("prompt", "completion"))


def test_peek_imports_no_torch_and_no_datasets(tmp_path: Path) -> None:
    paths = [tmp_path / f"data.{suffix}" for suffix in WRITERS]
    for path in paths:
        WRITERS[path.suffix[1:]](path, ROWS)
    code = (
        "import sys\nfrom upslope.text.rows import peek, read_rows\n"
        f"for path in {[str(path) for path in paths]!r}: peek(path); read_rows(path)\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'datasets', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
