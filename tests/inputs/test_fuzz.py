"""Random recipes, overrides and rows: the answer is a run that would start, or words and exit 2 or 3; never a bug."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests import tiny
from tests.inputs.desk import REWARD
from tests.inputs.test_bad_inputs import UNSAFE
from tests.recipes.support import one_thread
from upslope import cli
from upslope.errors import InputError, InputErrors
from upslope.recipes.configs import RECIPES
from upslope.recipes.run_rows import load_rows
from upslope.recipes.setup import precheck
from upslope.run.recipe import build
from upslope.run.recipe_errors import keys
from upslope.run.recipe_hints import FOREIGN
from upslope.text.rendering import Renderer
from upslope.text.rows import to_examples
from upslope.types import Example, Prompt
from upslope.worlds.reward_calls import RESERVED, Group, _request, call_of

__all__ = ["one_thread"]
DEEP = int(os.environ.get("UPSLOPE_FUZZ", "1"))
"""So many times as many examples; above 1 they are drawn anew each time."""
QUIET = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    derandomize=DEEP == 1,
)
pytestmark = pytest.mark.timeout(200 * DEEP)  # a hang fails


# ---------------------------------------------------------------------------------------------------------- the desk
@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    tiny.directory(folder / "model")
    (folder / "rewards.py").write_text(REWARD)
    rows = [{"prompt": f"say {n}", "completion": str(n), "answer": str(n)} for n in range(24)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"prompt": f"say {n}", "chosen": str(n), "rejected": "no"} for n in range(24)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)  # names that look like a hub's are not looked up
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


COMMON: dict[str, Any] = {
    "model": {"name": "model", "dtype": "float32"}, "device": "cpu", "out": "out", "optim": {"lr": 1e-5},
    "train": {"steps": 1, "prompts": 2, "eval_prompts": 0},
}  # fmt: skip
ROLLED: dict[str, Any] = {
    **COMMON, "data": {"path": "rows.jsonl"}, "reward": "rewards.py:score", "sampling": {"max_new_tokens": 4},
}  # fmt: skip
PAIRED: dict[str, Any] = {**COMMON, "data": {"path": "pairs.jsonl"}}
BASE: dict[str, dict[str, Any]] = {
    "sft": {**COMMON, "data": {"path": "rows.jsonl"}, "sft": {"max_tokens": 60}},
    "reward": {**PAIRED, "reward_model": {"max_tokens": 60}},
    "ppo": {**ROLLED, "ppo": {"samples": 2}},
    "grpo": {**ROLLED, "grpo": {"group": 2}},
    "dpo": {**PAIRED, "dpo": {"max_tokens": 60}},
}


def assert_answered(text: bytes, *arguments: str) -> int:
    """Asserts that ``upslope check`` on a recipe of these bytes ends in words that are safe and say what to do.

    Returns its exit code.
    """
    Path("recipe.yaml").write_bytes(text)
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = ["upslope", "check", "recipe.yaml", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = before
    said = out.getvalue() + err.getvalue()
    assert code in (0, 2, 3), said
    assert "Traceback" not in said and not UNSAFE.search(said)
    assert code == 0 or "Fix: " in said, said
    return code


# --------------------------------------------------------------------------------------------------------- the values
words = st.sampled_from(
    [
        "",
        " ",
        "null",
        "~",
        "yes",
        "on",
        "1e-5",
        "1_000",
        "0x1F",
        "012",
        "12:30:00",
        "2026-11-22",
        ".inf",
        "-.INF",
        ".nan",
        "=",
        "<<",
        "*a",
        "&a",
        "!!int",
        "%YAML",
        "`id`",
        "$(id)",
        "../../etc/passwd",
        "/dev/zero",
        "/dev/stdin",
        "~nobody/x",
        "org/name",
        "a" * 300,
        "\x1b]52;c;aGk=\x07",
        "[/INST]",
        "\u202egnp",
        "rewards.py:score",
        "rows.jsonl",
        "cpu",
        "auto",
        "hf_abcdefghijklmnopqrstuvwxyz",
    ]
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | words
scalars = (
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.sampled_from([0, 1, -1, 2, 10**400, -(2**63)])
    | st.floats() | st.sampled_from([0.0, -0.0, 1e308, 5e-324]) | texts
)  # fmt: skip
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)


@st.composite
def names(draw: Any, kind: str) -> str:
    """A dotted key: one that there is, one that is nearly so, another library's, or anything."""
    known = draw(st.sampled_from(sorted(keys(RECIPES[kind]))))
    way = draw(st.integers(0, 5))
    if way <= 2:
        return known
    if way == 3:  # a letter left out or doubled
        at = draw(st.integers(0, len(known) - 1))
        return known[:at] + known[at + 1 :] if draw(st.booleans()) else known[:at] + known[at] + known[at:]
    return draw(st.sampled_from(sorted(FOREIGN))) if way == 4 else draw(texts)


def put(tree: dict[str, Any], name: str, value: Any) -> None:
    *above, last = name.split(".")
    for part in above:
        if not isinstance(tree.get(part), dict):
            tree[part] = {}
        tree = tree[part]
    tree[last] = value


SPLICES = [
    b"\t", b": ", b"- ", b"[", b"}", b'"', b"'", b"&a ", b"*a", b"!!int ", b"!!python/object/apply:os.system [id]\n",
    b"\n", b"#", b"? ", b"|", b">", b"%YAML 1.1\n---\n", b"---\n", b"...\n", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf",
    b"<<: *a\n", b"\\ud800", b'"\\ud800"', b'"\\0"', b"[" * 60, b"{a: " * 60, b"seed: 1\nseed: 2\n",
    b"optim: {lr: 1e-5}\n", b"a: &a [x, x]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]\n",
]  # fmt: skip


@settings(QUIET, max_examples=100 * DEEP)
@given(st.sampled_from(sorted(BASE)), st.data())
def test_recipes_of_random_keys_and_values(kind: str, data: st.DataObject) -> None:
    recipe = json.loads(json.dumps(BASE[kind]))
    for _ in range(data.draw(st.integers(1, 3))):
        put(recipe, data.draw(names(kind)), data.draw(values))
    assert_answered(
        yaml.safe_dump(recipe, allow_unicode=data.draw(st.booleans())).encode("utf-8", "surrogatepass"), "--kind", kind
    )


@settings(QUIET, max_examples=100 * DEEP)
@given(st.sampled_from(sorted(BASE)), st.lists(st.sampled_from(SPLICES), min_size=1, max_size=3), st.integers(0, 2**32))
def test_recipes_of_random_bytes(kind: str, pieces: list[bytes], seed: int) -> None:
    dice = random.Random(seed)
    text = yaml.safe_dump(BASE[kind]).encode()
    for piece in pieces:
        lines = [0, *(at + 1 for at, byte in enumerate(text) if byte == 10)]
        at = dice.choice([dice.randrange(len(text) + 1), dice.choice(lines)])
        text = text[:at] + piece + text[at + dice.choice([0, 0, 1, 8]) :]
    assert_answered(text, "--kind", kind)


@settings(QUIET, max_examples=70 * DEEP)
@given(st.sampled_from(sorted(BASE)), st.data())
def test_overrides_of_random_keys_and_values(kind: str, data: st.DataObject) -> None:
    shown = scalars.map(str) | values.map(lambda value: json.dumps(value)) | words
    tokens = []
    for _ in range(data.draw(st.integers(1, 3))):
        name, value = data.draw(names(kind)), data.draw(shown)
        spelt = data.draw(st.sampled_from(["{}={}", "--{}={}", "--{} {}", "{} {}", "{}", "--{}"]))
        tokens += [part for part in spelt.format(name, value).split(" ", 1) if part != "--debug"]
    assert_answered(yaml.safe_dump(BASE[kind]).encode(), *(token.replace("\0", "") for token in tokens), "--kind", kind)


@pytest.mark.parametrize("piece", SPLICES, ids=repr)
def test_each_piece_at_the_end_of_a_recipe(piece: bytes) -> None:
    assert_answered(yaml.safe_dump(BASE["grpo"]).encode() + piece, "--kind", "grpo")


def test_what_is_whole_would_run() -> None:
    """The checks above are not passed by refusing everything."""
    for kind, recipe in BASE.items():
        assert assert_answered(yaml.safe_dump(recipe).encode(), "--kind", kind) == 0


# ----------------------------------------------------------------------------------------------------------------- rows
def assert_read_or_refused(content: bytes, suffix: str, kind: str) -> bool:
    """Asserts that a file of rows is refused with a fix, or read, rendered and sent on to reward and logs.

    Returns whether it was read.
    """
    path = Path(f"fuzz{suffix}")
    path.write_bytes(content)
    given = {
        "data": {"path": str(path), "heldout": 0},
        "reward": "rewards.py:score",
        "train": {"prompts": 1},
    }
    if kind not in ("ppo", "grpo"):
        del given["reward"]
    try:
        recipe = build({**given, "model": "model"}, RECIPES[kind]).recipe
        precheck(recipe)
        rows = load_rows(recipe.data, (), 0, kind == "sft", paired=kind in ("reward", "dpo"))
    except (InputError, InputErrors) as error:
        assert "Fix: " in str(error)
        return False
    renderer = Renderer(tiny.tokenizer(), (2,))
    for prompt in [*rows.train, *rows.heldout]:
        assert isinstance(prompt, Prompt) and renderer.prompt(prompt.content)
    for example_ in [*rows.examples, *rows.heldout_examples]:
        assert any(renderer.example(example_).trainable)
    for pair in rows.pairs:
        assert math.isfinite(pair.margin) and pair.chosen != pair.rejected
        for answer in (pair.chosen, pair.rejected):
            assert any(renderer.example(Example(pair.id, pair.prompt, answer)).trainable)
    prompts = [prompt for prompt in rows.train if not set(prompt.columns) & set(RESERVED)]
    _request(call_of([Group(prompt, ("a",)) for prompt in prompts])).decode()
    return True


cells = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
    | st.sampled_from(["", " ", "\x00", "\ud800", "\x1b[2J", "a" * 3000, "user", "assistant", "\u2028", "\r\n"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool", ""]) | cells,
                           "content": st.text(min_size=1, max_size=6) | cells}),
    max_size=4,
)  # fmt: skip
COLUMNS = [
    "prompt", "completion", "input", "output", "messages", "answer", "question", "chosen", "rejected", "margin", "text",
]  # fmt: skip
KINDS = st.sampled_from(["grpo", "sft", "dpo"])
"""Each reads rows in another way: ppo as grpo, reward as dpo."""
rows_of = st.lists(
    st.dictionaries(st.sampled_from(COLUMNS) | st.text(max_size=5), st.text(min_size=1, max_size=8) | cells | messages,
                    max_size=4)
    | cells,
    max_size=5,
)  # fmt: skip
BROKEN = [
    b"",
    b"\n\n",
    b"{",
    b"[]",
    b"{}",
    b'{"prompt": "a"',
    b'{"prompt": NaN}',
    b'{"prompt": 1e999}',
    b"\xff\xfe{\x00}\x00",
    b'{"prompt": "a"}\x00',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"prompt": ' + b"9" * 5000 + b"}",
    b"nul",
    b'"',
    b'{"prompt": "\\ud800"}',
    b'{"\\ud800": "a"}',
    b'{"prompt": "a", "prompt": "b"}',
    b"\xef\xbb\xbf" * 2,
    b'{"prompt": "' + b"a" * 2_000_000 + b'"}',
    b"\r\r\r",
    b'prompt\n"a',
    b"prompt,prompt\na,b\n",
    b"PAR1",
    b"prompt\n" * 9,
]


@settings(QUIET, max_examples=120 * DEEP)
@given(rows_of, st.sampled_from([".jsonl", ".json"]), KINDS, st.booleans())
@example([{"prompt": "a", "answer": "\ud800\x00"}] * 3, ".jsonl", "grpo", True)
def test_rows_of_random_columns(rows: list[Any], suffix: str, kind: str, ascii_only: bool) -> None:
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    text = "\n".join(lines) if suffix == ".jsonl" else "[" + ",".join(lines) + "]"
    read = assert_read_or_refused(text.encode("utf-8", "surrogatepass"), suffix, kind)
    assert not read or (rows and all(isinstance(row, dict) for row in rows))


spoken = st.text(min_size=1, max_size=8).filter(str.strip)
others = st.dictionaries(st.text(max_size=5).filter(lambda name: name not in {*COLUMNS, *RESERVED}), cells, max_size=3)


@settings(QUIET, max_examples=60 * DEEP)
@given(st.lists(st.tuples(spoken, spoken, others), min_size=1, max_size=4), st.sampled_from([".jsonl", ".json"]),
       st.sampled_from(["grpo", "sft"]))  # fmt: skip
def test_columns_beside_the_texts_may_hold_anything(rows: list[Any], suffix: str, kind: str) -> None:
    whole = [{**more, "prompt": prompt, "completion": completion} for prompt, completion, more in rows]
    text = "\n".join(map(json.dumps, whole)) if suffix == ".jsonl" else json.dumps(whole)
    assert assert_read_or_refused(text.encode(), suffix, kind)


sides = spoken | st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": spoken}), min_size=1, max_size=3
)


@settings(QUIET, max_examples=120 * DEEP)
@given(st.lists(st.tuples(sides | cells, sides, sides, st.floats() | cells, others), min_size=1, max_size=3),
       st.sampled_from(["reward", "dpo"]))  # fmt: skip
@example([("a", "b", "c", 1e999, {})], "dpo")
@example([("a", "b", "c", "1.5", {})], "dpo")
@example([("a", "b", "c", 10**400, {})], "reward")
def test_preferences_of_random_sides_and_margins(rows: list[Any], kind: str) -> None:
    names = ("prompt", "chosen", "rejected", "margin")
    whole = [{**more, **dict(zip(names, given, strict=True))} for *given, more in rows]
    read = assert_read_or_refused("\n".join(map(json.dumps, whole)).encode(), ".jsonl", kind)
    assert not read or all(math.isfinite(float(row["margin"])) for row in whole)
    texts = [{**row, "prompt": "a", "chosen": "b", "rejected": "c", "margin": 0.5} for row in whole]
    assert assert_read_or_refused("\n".join(map(json.dumps, texts)).encode(), ".jsonl", kind)


@settings(QUIET, max_examples=100 * DEEP)
@given(st.sampled_from(BROKEN) | st.binary(max_size=60), st.sampled_from(BROKEN[:12]) | st.binary(max_size=20),
       st.sampled_from([".jsonl", ".json", ".csv", ".parquet"]), KINDS)  # fmt: skip
def test_rows_of_random_bytes(first: bytes, second: bytes, suffix: str, kind: str) -> None:
    """None of them has the column completion, none is the whole of a Parquet file."""
    read = assert_read_or_refused(first + b"\n" + second, suffix, kind)
    assert not read or (kind == "grpo" and suffix != ".parquet")


line = st.lists(st.text(max_size=5), min_size=2, max_size=2) | st.lists(st.text(max_size=5), min_size=1, max_size=4)


@settings(QUIET, max_examples=50 * DEEP)
@given(st.lists(line, min_size=1, max_size=5))
def test_csv_of_random_cells(table: list[list[str]]) -> None:
    import csv

    out = io.StringIO()
    csv.writer(out).writerows([["prompt", "completion"], *table])
    for kind, texts in (("grpo", 1), ("sft", 2)):
        read = assert_read_or_refused(out.getvalue().encode(), ".csv", kind)
        assert read == all(len(row) == 2 and all(cell.strip() for cell in row[:texts]) for row in table)


def test_a_cell_of_a_megabyte_is_read() -> None:
    assert assert_read_or_refused(b"prompt\n" + b"a" * 1_000_000 + b"\n", ".csv", "grpo")


def test_whole_rows_are_read() -> None:
    good = [{"prompt": f"say {n}", "completion": str(n), "extra": [None, {"a": 1.5}]} for n in range(6)]
    assert assert_read_or_refused("".join(json.dumps(row) + "\n" for row in good).encode(), ".jsonl", "grpo")
    assert assert_read_or_refused(json.dumps(good).encode(), ".json", "sft")
    talk = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 3
    assert assert_read_or_refused(json.dumps(talk).encode(), ".json", "sft")
    assert len(to_examples(talk, "talk")) == 3
