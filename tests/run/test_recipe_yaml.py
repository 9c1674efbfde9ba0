"""The YAML reader and writer of recipes."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope.errors import InputError
from upslope.run.recipe_yaml import flow_text, parse, parse_value, read_file, resolve, scalar_text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E-5", 1e-5),
        ("1.5e+3", 1500.0),
        (".5", 0.5),
        ("-2.", -2.0),
        ("7", 7),
        ("-7", -7),
        ("0123", 123),
        ("0o17", 15),
        ("0x1F", 31),
        ("1.10", 1.1),
        ("12:30:00", "12:30:00"),
        ("1_000", "1_000"),
        ("2026-11-22", "2026-11-22"),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("-.inf", -math.inf),
        ("rewards.py:correct", "rewards.py:correct"),
        ("1e", "1e"),
        ("e5", "e5"),
        (".", "."),
    ],
)
def test_plain_scalars_are_yaml_1_2(text: str, value: Any) -> None:
    for read in (resolve(text), parse(f"key: {text}\n", "r.yaml").data["key"], parse_value(text, "key")):
        assert read == value
        assert type(read) is type(value)


def test_quoted_numbers_stay_text_and_keys_are_never_booleans() -> None:
    assert parse("on: '1'\n1: \"true\"\n", "r.yaml").data == {"on": "1", "1": "true"}


def test_each_key_has_its_file_and_line() -> None:
    draft = parse("# first\nseed: 1\n\noptim:\n  # inner\n  lr: 1e-5\ndata: {options: {digits: 2}}\n", "dir/r.yaml")
    assert draft.where == {
        "seed": "dir/r.yaml:2",
        "optim": "dir/r.yaml:4",
        "optim.lr": "dir/r.yaml:6",
        "data": "dir/r.yaml:7",
        "data.options": "dir/r.yaml:7",
        "data.options.digits": "dir/r.yaml:7",
    }
    assert draft.at("optim.clip_norm") == "dir/r.yaml:4 optim.clip_norm"
    assert draft.at("train.steps") == "dir/r.yaml train.steps"


def test_repeated_keys_name_both_lines_and_values() -> None:
    draft = parse("optim:\n  lr: 1e-5\n  warmup: 2\n  lr: 3e-4\nseed: 1\nseed: {a: 1}\n", "r.yaml")
    assert [str(error) for error in draft.errors] == [
        "r.yaml:4 optim.lr: given twice (line 2: 1e-5, line 4: 3e-4). Fix: keep one.",
        "r.yaml:6 seed: given twice (line 5: 1, line 6: a mapping). Fix: keep one.",
    ]
    assert draft.data == {"optim": {"lr": 1e-5, "warmup": 2}, "seed": 1}
    draft = parse("optim:\n  lr: 1e-5\noptim:\n  lr: 3e-4\n", "r.yaml")
    assert (draft.data["optim"], draft.where["optim.lr"]) == ({"lr": 1e-5}, "r.yaml:2")


def test_a_repeated_secret_is_not_shown() -> None:
    (error,) = parse("api_key: abc123\napi_key: xyz789\n", "r.yaml").errors
    assert "abc123" not in str(error) and "xyz789" not in str(error) and "api_key: given twice" in str(error)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"^r\.yaml: is empty, expected a mapping of keys\. Fix: .*\n    train:\n      steps: 40\n"),
        ("# only a comment\n", r"^r\.yaml: is empty"),
        ("---\n", r"^r\.yaml:\d: is empty"),
        ("- a\n- b\n", r"^r\.yaml:1: holds a list, expected a mapping"),
        ("hello\n", r"^r\.yaml:1: holds hello, expected a mapping"),
        ("seed: 1\noptim:\n\tlr: 1e-5\n", r"^r\.yaml:3: a line is indented with a tab, expected spaces.*two spaces"),
        ("seed: 1\noptim:\n  warmup: 1\n\tlr: 1e-5\n", r"^r\.yaml:4: a line is indented with a tab"),
        ("seed: 1\nout: a: b\n", r"^r\.yaml:2: a second ': ' in a line.*quotes"),
        ("seed: 1\nlr 1e-5\n", r"^r\.yaml:\d: a key without ': '.*Fix: write key: value"),
        ("optim:\n  lr 1e-5\n  warmup: 3\n", r"^r\.yaml:3: line 2 has no ': '.*Fix: write key: value"),
        ("out: @home\n", r"^r\.yaml:1: not YAML.*Fix: put the text in quotes"),
        ("out: [a, b\nseed: 1\n", r"^r\.yaml:2: not YAML"),
        ("out: 'open\n", r"^r\.yaml:\d: not YAML"),
        ("seed: 1\n---\nseed: 2\n", r"^r\.yaml:2: a second document begins here"),
        ("out: !!python/object/apply:os.getcwd []\n", r"^r\.yaml:1: the tag .*python/object.* is not read"),
        ("out: !!str 5\n", r"^r\.yaml:1: the tag"),
        ("? [a, b]\n: 1\n", r"^r\.yaml:1: a key is a list, expected a name"),
        ("out: *nobody\n", r"^r\.yaml:1: \*nobody is not defined above"),
        ("a: &a [*a]\n", r"^r\.yaml:1: \*a is not defined above"),
        ("out: a\x07b\n", r"^r\.yaml: holds a character that YAML does not allow"),
        ('out: "\\UFFFFFFFF"\n', r"^r\.yaml: holds a character that YAML does not allow"),
        ("out: " + "[" * 30 + "]" * 30, r"^r\.yaml:1: more than 20 levels deep"),
        ("optim.lr: 1\n", None),
    ],
)
def test_text_that_is_no_recipe(text: str, message: str | None) -> None:
    if message is None:
        (error,) = parse(text, "r.yaml").errors
        assert "a file has sections. Fix: write\n    optim:\n      lr: ...\n" in str(error)
        return
    with pytest.raises(InputError, match=message):
        parse(text, "r.yaml")


def test_aliases_are_read_and_bombs_are_refused_at_once() -> None:
    assert parse("a: &x [1, 2]\nb: *x\nc: *x\n", "r.yaml").data == {"a": [1, 2], "b": [1, 2], "c": [1, 2]}
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)]
    start = time.perf_counter()
    with pytest.raises(InputError, match="more than 10000 values, aliases written out"):
        parse("\n".join(lines), "r.yaml")
    with pytest.raises(InputError, match="levels deep"):
        parse("a: " + "[" * 500_000, "r.yaml")
    with pytest.raises(InputError, match="more than 10000 values"):
        parse("a: [" + "x, " * 300_000 + "]", "r.yaml")
    assert time.perf_counter() - start < 3.0  # each well below a second; generous for a busy machine


def test_an_alias_is_a_copy() -> None:
    data = parse("a: &x {k: [1]}\nb: *x\n", "r.yaml").data
    data["a"]["k"].append(2)
    assert data["b"] == {"k": [1]}


# ---------------------------------------------------------------------------------------------------------------- files
def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("seed: 1\n")
    (tmp_path / "bytes.yaml").write_bytes(b"seed: 1\nout: \xff\xfe\n")
    (tmp_path / "large.yaml").write_bytes(b"# " + b"x" * 1_000_000)
    os.mkfifo(tmp_path / "pipe.yaml")
    for name, message in [
        ("r.yml", r"r\.yml: no such file r\.yml\. Near: r\.yaml\. Fix: give r\.yaml\.$"),
        ("absent/r.yaml", r"no such file r\.yaml, nor a folder .*absent\. Fix: check the name"),
        ("quite-else", r"no such file quite-else\. Fix: check the name"),
        (".", r"is a directory, expected a recipe file\. Fix: give one of its files: .*r\.yaml"),
        ("bytes.yaml", r"bytes\.yaml:2: is not UTF-8 text \(byte 0xff\)\. Fix: save the file as UTF-8"),
        ("large.yaml", r"is larger than 1 MB"),
        ("pipe.yaml", r"is not a regular file"),
        ("a\0b", r"(cannot be read|no such file)"),
        ("n" * 5000, r"(cannot be read|no such file)"),
    ]:
        with pytest.raises(InputError, match=message):
            read_file(tmp_path / name)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbfseed: 1\r\nout: x\r\n")
    assert parse(read_file(tmp_path / "r.yaml"), "r.yaml").data == {"seed": 1, "out": "x"}


# -------------------------------------------------------------------------------------------------------------- writing
texts = st.text(st.characters(codec=None, exclude_categories=()), max_size=20) | st.sampled_from(
    [
        "yes",
        "on",
        "~",
        "",
        " ",
        "1e5",
        "0x1",
        "a: b",
        "#c",
        "-",
        "[x]",
        "a\nb",
        "\u2028",
        "\ufeff",
        "\ud800",
        "\x85",
        "=",
        "<<",
    ]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)


@settings(max_examples=300, deadline=None)
@given(values)
def test_written_values_read_back_exactly(value: Any) -> None:
    text = flow_text(value)
    read = parse(f"key: {text}\n", "r.yaml").data["key"]
    assert read == value
    assert repr(read) == repr(value)  # 1 is not 1.0, -0.0 is not 0.0


@settings(max_examples=200, deadline=None)
@given(scalars)
def test_written_scalars_mean_the_same_to_a_yaml_1_1_reader(value: Any) -> None:
    assert yaml.safe_load(f"key: {scalar_text(value)}\n")["key"] == value


def test_long_keys_read_back() -> None:
    value = {"k" * 3000: 1, "a " * 1000: [2]}
    assert parse(f"key: {flow_text(value)}\n", "r.yaml").data["key"] == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('"a: b"', "a: b"),
        ("Answer: yes # or no", "Answer: yes # or no"),
        ("[1e-5, on, {a: .5}]", [1e-5, "on", {"a": 0.5}]),
        ('["\\n"]', ["\n"]),
        ("'it''s'", "it's"),
    ],
)
def test_values_of_overrides(text: str, value: Any) -> None:
    assert parse_value(text, "key") == value


@pytest.mark.parametrize("text", ["[1", "{a: 1", '"open', "[x] rest", "{a: 1, a: 2}", "[*x]"])
def test_broken_values_of_overrides_name_the_command_line(text: str) -> None:
    with pytest.raises(InputError, match=r"^command line"):
        parse_value(text, "sampling.stop")
