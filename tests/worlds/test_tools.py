"""The tools' process: what it answers, and what the model is told when it does not."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers.utils import get_json_schema

from tests import tools_for_tests as mine
from upslope.errors import InputError
from upslope.worlds import isolation
from upslope.worlds.isolation import Limits
from upslope.worlds.tools import Toolbox, describe, misfit

FILE = str(Path(mine.__file__))
ALL = (
    "add",
    "slow_upper",
    "pick",
    "broken",
    "hang",
    "leave",
    "environment",
    "process",
    "dial",
    "long",
    "remember",
    "forge",
)


def box(*names: str, **options: Any) -> Toolbox:
    return Toolbox([f"{FILE}:{name}" for name in names], **options)


@pytest.fixture(scope="module")
def tools() -> Iterator[Toolbox]:
    os.environ["UPSLOPE_TEST_SECRET"] = "hunter2"
    with box(*ALL, timeout=0.5, longest=80) as opened:
        yield opened
    del os.environ["UPSLOPE_TEST_SECRET"]


def told(result: Any) -> str:
    """The error that the model sees."""
    assert result.failed
    return str(json.loads(result.text)["error"])


def test_tools_are_described_as_transformers_describes_them(tools: Toolbox) -> None:
    assert tools.names == ALL
    for name, schema in zip(ALL, tools.schemas, strict=True):
        assert schema == get_json_schema(getattr(mine, name))
    pick = tools.schemas[2]["function"]["parameters"]
    assert pick["required"] == ["colour", "counts"] and pick["properties"]["colour"]["enum"] == ["red", "blue"]


def test_text_is_answered_as_it_is_and_other_values_as_json(tools: Toolbox) -> None:
    assert tools.call("add", {"a": 2, "b": 3}).text == "5"
    assert tools.call("add", {"a": 2}).text == "3"
    assert tools.call("slow_upper", {"text": "abc"}).text == "ABC"
    found = tools.call("pick", {"colour": "red", "counts": [1, 2], "note": None})
    assert not found.failed
    assert json.loads(found.text) == {"colour": "red", "sum": 3, "exact": False, "note": None}


def test_a_long_result_is_cut_and_says_so(tools: Toolbox) -> None:
    assert tools.call("long", {"count": 80}).text == "x" * 80
    assert tools.call("long", {"count": 12_345}).text == "x" * 80 + " [cut: 12,345 characters in all]"


def test_a_result_can_always_be_encoded(tools: Toolbox) -> None:
    assert tools.call("forge", {}).text.encode()


def test_tools_run_in_one_process_that_is_not_this_one_and_keep_what_they_remember(tools: Toolbox) -> None:
    there = tools.call("process", {}).text
    assert there != str(os.getpid()) and tools.call("process", {}).text == there
    tools.call("remember", {"word": "one"})
    assert json.loads(tools.call("remember", {"word": "two"}).text)[-2:] == ["one", "two"]
    assert mine.calls_so_far == []


def test_they_see_no_secrets(tools: Toolbox) -> None:
    wide = {**os.environ}
    assert "UPSLOPE_TEST_SECRET" in wide
    with box("environment") as plain:
        names = json.loads(plain.call("environment", {}).text)
    assert "PATH" in names and "UPSLOPE_TEST_SECRET" not in names


def test_what_a_tool_raises_is_told_to_the_model(tools: Toolbox) -> None:
    assert told(tools.call("broken", {"x": 1.0})) == "ZeroDivisionError: float division by zero"


@pytest.mark.parametrize(
    ("name", "arguments", "why"),
    [
        ("multiply", {}, "there is no tool 'multiply'; the tools are add, "),
        ("add", {}, "the argument 'a' is missing"),
        ("add", {"a": 1, "c": 2}, "there is no argument 'c'; the arguments are a, b"),
        ("add", {"a": "1"}, "the argument 'a' is \"1\", expected integer"),
        ("add", {"a": 1.5}, "is 1.5, expected integer"),
        ("add", {"a": True}, "is true, expected integer"),
        ("pick", {"colour": "green", "counts": []}, "one of [\"red\", \"blue\"]"),
        ("pick", {"colour": "red", "counts": 3}, "expected array"), ("leave", {"x": 1}, "the arguments are none"),
    ],
)  # fmt: skip
def test_wrong_calls_are_told_to_the_model(tools: Toolbox, name: str, arguments: dict[str, Any], why: str) -> None:
    assert why in told(tools.call(name, arguments))


def test_a_tool_that_hangs_is_killed_within_its_deadline_and_the_next_call_works(tools: Toolbox) -> None:
    before = tools.call("process", {}).text
    begun = time.monotonic()
    assert told(tools.call("hang", {"seconds": 60})) == "no answer within 0.5 s"
    assert time.monotonic() - begun < 3
    assert tools.call("hang", {"seconds": 0}).text == "awake"
    after = tools.call("process", {}).text
    assert after != before
    assert not Path(f"/proc/{before}").exists()


def test_a_tool_that_ends_its_process_is_told_and_the_next_call_works(tools: Toolbox) -> None:
    assert told(tools.call("leave", {})) == "the tool's process ended"
    assert tools.call("add", {"a": 1, "b": 1}).text == "2"


def test_a_tool_that_asks_for_a_network_that_it_may_not_use_stops_the_run(tools: Toolbox) -> None:
    with pytest.raises(InputError, match=r"episode\.tools dial: asked for the network.*episode\.tool_network: true"):
        tools.call("dial", {})
    assert tools.call("add", {"a": 1, "b": 1}).text == "2"


def test_the_time_in_calls_is_counted_once(tools: Toolbox) -> None:
    tools.take_seconds()
    tools.call("hang", {"seconds": 0.1})
    assert 0.1 <= tools.take_seconds() < 1 and tools.take_seconds() == 0


def test_python_functions_run_in_a_copy_of_this_process() -> None:
    def here() -> int:
        """The process."""
        return os.getpid()

    with Toolbox([here, mine.add, f"{FILE}:long"]) as tools:
        assert tools.names == ("long", "here", "add")
        assert tools.call("here", {}).text != str(os.getpid())
        assert (tools.call("add", {"a": 1, "b": 5}).text, tools.call("long", {"count": 2}).text) == ("6", "xx")


@pytest.mark.skipif(bool(isolation.isolation().sandbox), reason="no sandbox on this machine")
def test_in_the_sandbox_a_tool_can_compute_and_nothing_else() -> None:
    with box("add", "remember", "dial", limits=Limits(sandbox=True)) as tools:
        assert tools.call("add", {"a": 1, "b": 1}).text == "2"
        assert json.loads(tools.call("remember", {"word": "one"}).text) == ["one"]
        assert json.loads(tools.call("remember", {"word": "two"}).text) == ["two"]  # nothing outlives a call
        assert tools.call("dial", {}).text == "nobody there"
    with pytest.raises(InputError, match=r"episode\.tools: add is a function of this process.*put it into a file"):
        Toolbox([mine.add], limits=Limits(sandbox=True))


# ----------------------------------------------------------------------------------------- what is wrong with the tools
@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["untyped"], r"episode\.tools untyped: .*missing a type hint"),
        (["positional"], "positional: x: int|x cannot be given by name"),
        (["undocumented"], r"episode\.tools undocumented: .*no docstring"), (["adds"], "did you mean .*:add"),
        (["add", "add"], "two tools are called 'add'"),
    ],
)  # fmt: skip
def test_tools_that_cannot_be_offered_are_refused(names: list[str], problem: str) -> None:
    with pytest.raises(InputError, match=problem), box(*names):
        pass


def test_a_file_that_cannot_be_loaded_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "tools.py").write_text('LIMIT = 3\nraise RuntimeError("no key")\n\ndef f() -> int:\n    """F."""\n')
    with (
        pytest.raises(InputError, match=r"episode\.tools: tools\.py:2: RuntimeError: no key"),
        Toolbox([f"{tmp_path}/tools.py:f"]),
    ):
        pass


def test_its_file_is_not_run_in_this_process(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    noting = f'import os\nopen({str(marker)!r}, "a").write(f"{{os.getpid()}} ")\n'
    text = noting + '\ndef f() -> int:\n    """F."""\n    return 7\n'
    (tmp_path / "tools.py").write_text(text)
    with Toolbox([f"{tmp_path}/tools.py:f"]) as tools:
        assert tools.call("f", {}).text == "7"
    assert str(os.getpid()) not in marker.read_text().split() and len(marker.read_text().split()) == 2


def test_describe_is_transformers_and_misfit_knows_its_types() -> None:
    assert describe(mine.pick) == get_json_schema(mine.pick)
    union = {"properties": {"x": {"type": ["integer", "string"]}, "y": {}}, "required": ["x"]}
    assert misfit(union, {"x": "a", "y": [1]}) is None and misfit(union, {"x": 3}) is None
    assert misfit(union, {"x": 1.5}) == "the argument 'x' is 1.5, expected integer or string"
    assert misfit({"properties": {"x": {"type": "number"}}}, {"x": 3}) is None
    assert misfit({"properties": {"x": {"type": "string", "nullable": True}}}, {"x": None}) is None
