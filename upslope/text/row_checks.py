"""What a row must be to serve as a prompt or an example. Faults are ``ValueError`` with the found and the expected."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from upslope.errors import InputError

if TYPE_CHECKING:
    from upslope.types import Message

ROLES = ("system", "user", "assistant", "tool")
FOLLOWS = {
    "": ("system", "user"), "system": ("user",), "user": ("assistant",), "assistant": ("user",), "call": ("tool",),
    "tool": ("assistant", "tool"),
}  # fmt: skip
"""Whose message may come after whose; ``call`` is an assistant's with ``tool_calls``."""
STANDS_FOR = {"prompt": ("input", "messages"), "completion": ("output", "messages")}
USUAL_NAMES = {
    "prompt": ("question", "query", "problem", "instruction", "task", "user", "source"),
    "completion": ("answer", "response", "solution", "target", "reply", "chosen"),
    "chosen": ("accepted", "preferred", "better"),
    "rejected": ("refused", "dispreferred", "worse"),
    "messages": ("conversations", "conversation", "dialog", "dialogue", "chat"),
}


def check_columns(rows: Sequence[Mapping[str, Any]], where: str, need: Sequence[str]) -> None:
    """See that each needed column, or one that stands for it, is there.

    Raises:
        InputError: it is not; with the columns that are there and the mapping that would mend it.
    """
    there = list(dict.fromkeys(name for row in rows for name in row))
    for name in need:
        if name in there or any(other in there for other in STANDS_FOR.get(name, ())):
            continue
        problem = f"column {name!r} not in {where}. Columns: {', '.join(there)}"
        if name == "prompt" and "text" in there and not usual_name(name, there):
            why = "'text' does not say where the prompt ends and the completion begins"
            raise InputError(where, f"{problem} ({why})", "split it into the columns prompt and completion")
        if name == "prompt" and "chosen" in there and "rejected" in there and "prompt" not in there:
            raise InputError(
                where, f"{problem} (preference rows without a prompt)", "put the shared start into a column prompt"
            )
        mapped = usual_name(name, there)
        if mapped is None and name == "prompt":
            messages = usual_name("messages", there)
            if messages:
                raise InputError(where, problem, f"map it: data.columns.messages: {messages}")
        raise InputError(where, problem, f"map it: data.columns.{name}: {mapped or 'NAME_OF_YOUR_COLUMN'}")


def usual_name(name: str, there: Sequence[str]) -> str | None:
    """The column that probably is ``name``: by its usual other names, or by spelling."""
    lower = {column.lower(): column for column in there}
    for other in (name, *USUAL_NAMES.get(name, ())):
        if other in lower:
            return lower[other]
    near = difflib.get_close_matches(name, lower, n=1, cutoff=0.8)
    return lower[near[0]] if near else None


def column_of(rows: Sequence[Mapping[str, Any]], name: str) -> str | None:
    """The column, one for all rows, that is ``prompt`` or ``completion`` or stands for it; ``None`` if there is
    none."""
    there = {column for row in rows for column in row}
    return next((column for column in (name, *STANDS_FOR[name]) if column in there), None)


def prompt_of(row: Mapping[str, Any], name: str) -> str | tuple[Message, ...]:
    """The prompt in column ``name``: text, or a conversation that ends with the user's turn."""
    value = row.get(name)
    if name == "messages" or isinstance(value, list | tuple):
        return conversation(value, name, last="user")
    return _text(value, name)


def completion_of(row: Mapping[str, Any], name: str) -> str:
    """The completion in column ``name``: text, or a list with one assistant message."""
    value = row.get(name)
    if not isinstance(value, list | tuple):
        return _text(value, name)
    if len(value) != 1 or not isinstance(value[0], Mapping) or value[0].get("role") != "assistant":
        raise ValueError(
            f"{name} is a list of {len(value)} messages, expected text or one assistant message (or use 'messages')"
        )
    return _text(value[0].get("content"), f"{name}[0].content")


def conversation(value: Any, name: str, last: Literal["user", "assistant"]) -> tuple[Message, ...]:
    """A checked conversation: perhaps a system message, then user and assistant in turn, to a last turn of ``last``.

    After an assistant's message with ``tool_calls`` come their results, messages of ``tool``, and the assistant again.
    """
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{name} is {found_words(value)}, expected a list of messages with role and content")
    before = ""
    for index, message in enumerate(value):
        place = f"{name}[{index}]"
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            hint = "; ShareGPT's from/value must be turned into role/content" if _share_gpt(message) else ""
            raise ValueError(f"{place} is {found_words(message)}, expected an object with role and content{hint}")
        role = message["role"]
        if role not in ROLES:
            raise ValueError(f"{place} has role {role!r}, expected one of {', '.join(ROLES)}")
        calls = role == "assistant" and bool(message.get("tool_calls"))
        if calls:
            _check_calls(message, place)
        elif role != "tool" or message["content"] != "":
            _text(message["content"], f"{place}.content")
        allowed = FOLLOWS[before]
        if role not in allowed:
            follows = f"follows {'a call of a tool' if before == 'call' else before}" if before else "comes first"
            raise ValueError(f"{place} is {role} and {follows}, expected {' or '.join(allowed)} there")
        before = "call" if calls else role
    if before != last:
        why = (
            "a prompt of RL ends with the user's turn"
            if last == "user"
            else "there is no answer to train on at its end"
        )
        raise ValueError(f"{name} ends with the turn of {before}, expected {last}: {why}")
    return tuple(value)


def _check_calls(message: Mapping[str, Any], place: str) -> None:
    """``tool_calls`` as chat templates take them; the content beside them may be empty or null."""
    from upslope.text.tool_calls import call_of_message

    if message["content"] not in (None, ""):
        _text(message["content"], f"{place}.content")
    if not isinstance(message["tool_calls"], list | tuple):
        raise ValueError(f"{place}.tool_calls is {found_words(message['tool_calls'])}, expected a list of calls")
    for number, call in enumerate(message["tool_calls"]):
        try:
            call_of_message(call)
        except ValueError as error:
            raise ValueError(f"{place}.tool_calls[{number}]: {error}") from None


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} is {found_words(value)}, expected text")
    if not value.strip():
        raise ValueError(f"{name} is empty, expected text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} holds a lone surrogate at character {error.start}, expected valid Unicode") from None
    return value


def found_words(value: Any) -> str:
    """A value in a few words, for messages."""
    if value is None:
        return "null"
    if isinstance(value, list | tuple | Mapping) and not value:
        return "empty"
    return f"{type(value).__name__} {str(value)[:40]!r}"


def _share_gpt(message: Any) -> bool:
    return isinstance(message, Mapping) and {"from", "value"} <= message.keys()
