"""How models write calls of tools: read from a completion's text, and written into one. No text is ever run.

    hermes    <tool_call>{"name": "f", "arguments": {...}}</tool_call>, as Hermes, Qwen 2.5 and 3 and SmolLM write it
    llama     {"name": "f", "parameters": {...}}, the whole message, as Llama 3.1 and later
    mistral   [TOOL_CALLS] [{"name": "f", "arguments": {...}}]

What is meant as a call and is none (broken JSON, no name) is a ``BadCall`` that says why: the model can be told.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that can be tried."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BadCall:
    """A call that cannot. ``name`` is "" where it could not be read."""

    name: str
    problem: str


@dataclass(frozen=True, slots=True)
class Said:
    """A message of the model: its text without the calls, and the calls in order."""

    content: str
    calls: tuple[ToolCall | BadCall, ...] = ()


@dataclass(frozen=True, slots=True)
class CallFormat:
    """A way of writing calls. ``example`` shows a model how, with NAME, ARGUMENT and VALUE to be replaced."""

    name: str
    read: Callable[[str], Said]
    write: Callable[[Sequence[ToolCall]], str]
    example: str


# -------------------------------------------------------------------------------------------------------------- hermes
_HERMES = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


def _read_hermes(text: str) -> Said:
    bodies = _HERMES.findall(text)
    calls = tuple(call for body in bodies for call in _calls(body.strip()))
    return Said(_HERMES.sub("", text).strip(), calls)


def _write_hermes(calls: Sequence[ToolCall]) -> str:
    return "\n".join(f"<tool_call>\n{_json(call, 'arguments')}\n</tool_call>" for call in calls)


# --------------------------------------------------------------------------------------------------------------- llama
_TAG = "<|python_tag|>"


def _read_llama(text: str) -> Said:
    rest = text.strip()
    tagged = rest.startswith(_TAG)
    rest = rest.removeprefix(_TAG).strip()
    if not tagged and not re.match(r'\{\s*"(name|type|parameters)"', rest):
        return Said(text.strip())
    try:
        _, end = json.JSONDecoder().raw_decode(rest)
    except (ValueError, RecursionError):
        end = len(rest)
    return Said(rest[end:].strip() if end < len(rest) else "", tuple(_calls(rest[:end])))


def _write_llama(calls: Sequence[ToolCall]) -> str:
    return "; ".join(_json(call, "parameters") for call in calls)


# ------------------------------------------------------------------------------------------------------------- mistral
_MARK = "[TOOL_CALLS]"


def _read_mistral(text: str) -> Said:
    before, mark, rest = text.partition(_MARK)
    if not mark:
        return Said(text.strip())
    rest = rest.strip()
    try:
        _, end = json.JSONDecoder().raw_decode(rest)
    except (ValueError, RecursionError):
        end = len(rest)
    return Said(before.strip(), tuple(_calls(rest[:end])))


def _write_mistral(calls: Sequence[ToolCall]) -> str:
    return f"{_MARK} [{', '.join(_json(call, 'arguments') for call in calls)}]"


FORMATS: dict[str, CallFormat] = {
    "hermes": CallFormat(
        "hermes", _read_hermes, _write_hermes,
        '<tool_call>\n{"name": "NAME", "arguments": {"ARGUMENT": VALUE}}\n</tool_call>',
    ),
    "llama": CallFormat(
        "llama", _read_llama, _write_llama, '{"name": "NAME", "parameters": {"ARGUMENT": VALUE}}',
    ),
    "mistral": CallFormat(
        "mistral", _read_mistral, _write_mistral, f'{_MARK} [{{"name": "NAME", "arguments": {{"ARGUMENT": VALUE}}}}]',
    ),
}  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- parts
def _calls(body: str) -> list[ToolCall | BadCall]:
    """The call or, in a list, the calls in a JSON text."""
    try:
        value = json.loads(body, parse_constant=_refuse)
    except RecursionError:
        return [BadCall("", "not valid JSON: nested too deeply")]
    except json.JSONDecodeError as error:
        return [BadCall("", f"not valid JSON: {error.msg} at character {error.pos + 1}")]
    except ValueError as error:
        return [BadCall("", f"not valid JSON: {error}")]
    return [_call(item) for item in (value if isinstance(value, list) else [value])]


def _call(value: Any) -> ToolCall | BadCall:
    if not isinstance(value, dict):
        return BadCall("", "a call must be a JSON object with name and arguments")
    if value.get("type") == "function" and isinstance(value.get("function"), dict):
        value = value["function"]
    name = value.get("name")
    if not isinstance(name, str) or not name:
        return BadCall("", "the call has no name")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}", parse_constant=_refuse)
        except (ValueError, RecursionError):
            return BadCall(name, "arguments is a text that is no JSON")
    if not isinstance(arguments, dict):
        return BadCall(name, "arguments must be a JSON object")
    return ToolCall(name, arguments)


def call_of_message(value: Any) -> ToolCall:
    """One of a message's ``tool_calls``: ``{"function": {"name", "arguments"}}``, or the inner part alone.

    Raises:
        ValueError: what is no call.
    """
    found = _call(value)
    if isinstance(found, BadCall):
        raise ValueError(found.problem)
    return found


def _json(call: ToolCall, key: str) -> str:
    return json.dumps({"name": call.name, key: dict(call.arguments)}, ensure_ascii=False)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
