"""Calls in a model's text: read, written, and what is none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upslope.text.tool_calls import FORMATS, BadCall, Said, ToolCall, call_of_message

ADD = ToolCall("add", {"a": 1, "b": -2})
SAY = ToolCall("say", {"text": 'a "quoted"\nline </tool_call> {'})
HERMES, LLAMA, MISTRAL = (FORMATS[name].read for name in ("hermes", "llama", "mistral"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": -2}}\n</tool_call>', Said("", (ADD,))),
        ('I add.\n<tool_call>{"name": "add", "arguments": {"a": 1, "b": -2}}</tool_call>', Said("I add.", (ADD,))),
        ('<tool_call>{"name": "add", "arguments": {"a": 1, "b": -2}}', Said("", (ADD,))),
        ('<tool_call>{"name": "add", "parameters": {"a": 1, "b": -2}}</tool_call>', Said("", (ADD,))),
        ('<tool_call>{"name": "add", "arguments": "{\\"a\\": 1, \\"b\\": -2}"}</tool_call>', Said("", (ADD,))),
        ('<tool_call>[{"name": "add", "arguments": {"a": 1, "b": -2}}, {"name": "go"}]</tool_call>',
         Said("", (ADD, ToolCall("go", {})))),
        ('<tool_call>{"name": "go"}</tool_call>\n<tool_call>{"name": "go", "arguments": {}}</tool_call>',
         Said("", (ToolCall("go", {}),) * 2)),
        ("The answer is {5}.", Said("The answer is {5}.")),
        ("", Said("")),
    ],
)  # fmt: skip
def test_hermes_calls_are_read(text: str, said: Said) -> None:
    assert HERMES(text) == said


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ('{"name": "add", "arguments": {"a": 1}', "not valid JSON: Expecting ',' delimiter at character 38"),
        ("add(1, 2)", "not valid JSON: Expecting value at character 1"),
        ("", "not valid JSON"), ("3", "must be a JSON object"), ('{"arguments": {}}', "no name"),
        ('{"name": 3}', "no name"), ('{"name": "add", "arguments": [1]}', "arguments must be a JSON object"),
        ('{"name": "add", "arguments": "a=1"}', "no JSON"),
        ('{"name": "add", "arguments": {"a": NaN}}', "NaN is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"name": "add", "arguments": {"a": ' + "9" * 5000 + "}}", "not valid JSON"),
    ],
)  # fmt: skip
def test_what_is_meant_as_a_call_and_is_none_says_why(body: str, why: str) -> None:
    (call,) = HERMES(f"<tool_call>{body}</tool_call>").calls
    assert isinstance(call, BadCall) and why in call.problem


def test_a_bad_call_keeps_the_good_ones_beside_it_and_its_name_where_there_is_one() -> None:
    good = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": -2}}</tool_call>'
    text = good + '<tool_call>{"name": "go", "arguments": 3}'
    found = HERMES(text).calls
    assert found[0] == ADD and found[1] == BadCall("go", "arguments must be a JSON object")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"name": "add", "parameters": {"a": 1, "b": -2}}', Said("", (ADD,))),
        ('<|python_tag|>{"name": "add", "parameters": {"a": 1, "b": -2}}', Said("", (ADD,))),
        ('{"type": "function", "function": {"name": "add", "parameters": {"a": 1, "b": -2}}}', Said("", (ADD,))),
        ('{"name": "add", "parameters": {"a": 1, "b": -2}} so', Said("so", (ADD,))),
        ('{"answer": 3}', Said('{"answer": 3}')), ("It is 3.", Said("It is 3.")),
    ],
)  # fmt: skip
def test_llama_calls_are_a_whole_message(text: str, said: Said) -> None:
    assert LLAMA(text) == said


def test_a_broken_llama_call_is_a_bad_call() -> None:
    (call,) = LLAMA('{"name": "add", "parameters": {"a": 1').calls
    assert isinstance(call, BadCall)


def test_mistral_calls_are_a_list_behind_a_mark() -> None:
    text = 'Well. [TOOL_CALLS] [{"name": "add", "arguments": {"a": 1, "b": -2}, "id": "abc"}]'
    assert MISTRAL(text) == Said("Well.", (ADD,))
    assert MISTRAL("Well.") == Said("Well.")
    assert isinstance(MISTRAL("[TOOL_CALLS] add(1)").calls[0], BadCall)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=8).filter(lambda t: "<" not in t),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6,
)  # fmt: skip
CALLS = st.builds(
    ToolCall, st.text(min_size=1, max_size=8).filter(lambda t: "<" not in t),
    st.dictionaries(st.text(max_size=5).filter(lambda t: "<" not in t), JSON, max_size=3),
)  # fmt: skip


@pytest.mark.parametrize("name", sorted(FORMATS))
@given(call=CALLS)
def test_what_is_written_is_read_again(name: str, call: ToolCall) -> None:
    form = FORMATS[name]
    assert form.read(form.write([call])) == Said("", (call,))


def test_several_calls_are_written_in_order() -> None:
    for name in ("hermes", "mistral"):
        assert FORMATS[name].read(FORMATS[name].write([ADD, ToolCall("go", {})])).calls == (ADD, ToolCall("go", {}))


def test_an_example_is_a_call_once_its_words_are_replaced() -> None:
    for form in FORMATS.values():
        text = form.example.replace("NAME", "add").replace("ARGUMENT", "a").replace("VALUE", "1")
        assert form.read(text).calls == (ToolCall("add", {"a": 1}),)


@given(st.text(max_size=60) | st.text(alphabet='<>tool_calname/":{}[]', max_size=80))
def test_no_text_breaks_the_reading(text: str) -> None:
    for form in FORMATS.values():
        assert all(isinstance(call, ToolCall | BadCall) for call in form.read(text).calls)


def test_calls_of_messages_are_those_of_chat_templates() -> None:
    outer = {"id": "x", "type": "function", "function": {"name": "add", "arguments": json.dumps({"a": 1, "b": -2})}}
    assert call_of_message(outer) == call_of_message({"name": "add", "arguments": {"a": 1, "b": -2}}) == ADD
    with pytest.raises(ValueError, match="no name"):
        call_of_message({"function": {}})
