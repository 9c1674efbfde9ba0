"""How a chat template and the tools meet: studied once by rendering small conversations.

A template that knows tools shows them itself and writes calls in its own way. For one that does not, the tools are
described in the system message, in the words of ``offer``, and calls are written as text. One that has no place for a
tool's result gets it as a message of the user.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from upslope.errors import InputError
from upslope.text.tool_calls import FORMATS, CallFormat, ToolCall, call_of_message
from upslope.types import Message

MARK = "upslope-answer"
PROBE = "upslope_probe"
Apply = Callable[[Sequence[Message], Sequence[Mapping[str, Any]] | None, bool], str | None]
"""``apply(messages, tools, generation_prompt)`` is the template's text, None where it refuses."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a template does with tools. ``offered``: it shows the schemas itself; ``calls``: it writes ``tool_calls``;
    ``role``: whose message a result is."""

    schemas: tuple[Mapping[str, Any], ...]
    form: CallFormat
    offered: bool
    calls: bool
    role: Literal["tool", "user"]


def study(apply: Apply, schemas: Sequence[Mapping[str, Any]], wanted: str = "auto") -> Dialect:
    """Find out how a template speaks of tools. ``wanted`` is the format of calls, or auto: the template's own.

    Raises:
        InputError: it writes calls in a form that is not read here, or shows tools in no way.
    """
    ask: list[Message] = [{"role": "user", "content": "?"}]
    empty = {"type": "object", "properties": {}}
    schema = {"name": PROBE, "description": "?", "parameters": empty}
    shown = apply(ask, [{"type": "function", "function": schema}], True)
    offered = shown is not None and PROBE in shown
    plain = apply(ask, None, True) or ""
    written = apply([*ask, *call_messages([PROBE])], None, False)
    calls = written is not None and MARK in written
    form = FORMATS["hermes" if wanted == "auto" else wanted]
    if wanted == "auto" and calls and written is not None:
        segment = written[len(plain) :] if written.startswith(plain) else written
        known = [found for found in FORMATS.values() if ToolCall(PROBE, {"mark": MARK}) in found.read(segment).calls]
        if not known:
            problem = f"it writes tool calls in a form that is not read here: {segment.strip()[:120]!r}"
            fix = f"set episode.call_format to one of {', '.join(FORMATS)} if the model writes that too"
            raise InputError("model.chat_template", problem, fix)
        form = known[0]
    said = call_messages([PROBE]) if calls else [{"role": "assistant", "content": MARK}]
    answered = apply([*ask, *said, result_message(PROBE, PROBE, 0)], None, True)
    role: Literal["tool", "user"] = "tool" if answered is not None and answered.count(PROBE) > calls else "user"
    found = Dialect(tuple(schemas), form, offered, calls, role)
    for one in schemas:
        name = str(one["function"]["name"])
        text = apply(prepared(ask, found), found.schemas if offered else None, True)
        if text is None or name not in text:
            problem = f"it shows the model neither tools nor a system message: {name} is not in the prompt"
            raise InputError("model.chat_template", problem, "give a template with one of them, such as chatml")
    return found


def offer(dialect: Dialect) -> str:
    """The system text for a template that does not know tools."""
    listed = "\n".join(json.dumps(schema["function"], ensure_ascii=False) for schema in dialect.schemas)
    return (
        f"You can call these tools:\n{listed}\nTo call one, write\n{dialect.form.example}\n"
        "and end the message. The next message is its result."
    )


def prepared(messages: Sequence[Message], dialect: Dialect) -> list[Message]:
    """The messages as the template can show them, tools offered."""
    found: list[Message] = []
    results = 0
    for message in messages:
        if message["role"] != "tool":
            results = 0
            found.append(_spoken(message, dialect) if message.get("tool_calls") else message)
            continue
        if dialect.role == "tool":
            found.append({**message, "tool_call_id": _id(results)} if dialect.calls else message)
        else:
            text = f"<tool_response>\n{message['content']}\n</tool_response>"
            if results:  # those of one message stand together
                text = f"{found.pop()['content']}\n{text}"
            found.append({"role": "user", "content": text})
        results += 1
    if dialect.offered or not dialect.schemas:
        return found
    text = offer(dialect)
    if found and found[0]["role"] == "system":
        return [{**found[0], "content": f"{found[0]['content']}\n\n{text}"}, *found[1:]]
    return [{"role": "system", "content": text}, *found]


def _spoken(message: Message, dialect: Dialect) -> Message:
    """An assistant's message with its calls as the template wants them: listed, or written out."""
    calls = [call_of_message(item) for item in message["tool_calls"]]
    content = message.get("content") or ""
    if not dialect.calls:
        text = dialect.form.write(calls)
        return {"role": message["role"], "content": f"{content}\n{text}" if content else text}
    listed = [
        {"id": _id(place), "type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
        for place, call in enumerate(calls)
    ]
    return {**message, "content": content, "tool_calls": listed}


def call_messages(names: Sequence[str]) -> list[Message]:
    """A message that calls these tools, the last with MARK in its arguments."""
    last = len(names) - 1
    calls = [
        {"id": _id(place), "type": "function",
         "function": {"name": name, "arguments": {"mark": MARK} if place == last else {}}}
        for place, name in enumerate(names)
    ]  # fmt: skip
    return [{"role": "assistant", "content": "", "tool_calls": calls}]


def result_message(name: str, content: str, place: int) -> Message:
    """The result of the ``place``-th call of a message."""
    return {"role": "tool", "name": name, "content": content, "tool_call_id": _id(place)}


def _id(place: int) -> str:
    return f"call{place:05d}"
