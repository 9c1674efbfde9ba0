"""`upslope chat`: what is asked of the model, and what is shown."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests import talk_support as talk
from tests import tools_for_tests as mine
from upslope import chat
from upslope.cli import app
from upslope.errors import InputError
from upslope.models import loading
from upslope.recipes import answering, conversations
from upslope.rollout.sampler import InProcessSampler
from upslope.text.rendering import Renderer
from upslope.types import Message
from upslope.worlds import isolation

ADD = f"{mine.__file__}:add"


class Seat:
    """Someone at the keyboard: ``talk`` says lines; keeps what was shown, the conversations and the model's prompts."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.shown, self.lines = io.StringIO(), iter([""])
        self.asked: list[list[int]] = []
        self.talks: list[tuple[Message, ...]] = []
        seat = self

        class Terminal(Console):
            def __init__(self, **keywords: Any) -> None:
                super().__init__(file=seat.shown, width=200, **keywords)

            def input(self, *arguments: Any, **keywords: Any) -> str:
                return next(seat.lines)

        class Sampler(InProcessSampler):
            def sample(self, prompts: Any, *arguments: Any, **keywords: Any) -> Any:
                seat.asked.extend(list(prompt) for prompt in prompts)
                return super().sample(prompts, *arguments, **keywords)

        class Words(Renderer):
            def prompt(self, content: Any) -> Any:
                seat.talks.append(tuple(content))
                return super().prompt(content)

        patch.setattr(chat, "Console", Terminal)
        patch.setattr(chat, "Renderer", Words)
        patch.setattr(chat, "InProcessSampler", Sampler)

    def talk(self, model: Path | str, lines: tuple[str, ...], seed: int = 0, **tools: Any) -> None:
        self.lines = iter([*lines, ""])
        chat.converse(str(model), None, 1.0, 1.0, 8, "cpu", seed, **tools)


@pytest.fixture
def seat(monkeypatch: pytest.MonkeyPatch) -> Seat:
    return Seat(monkeypatch)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talk.caller(tmp_path_factory.mktemp("chat") / "model")


def test_a_chat_remembers_what_was_said(seat: Seat, model: Path) -> None:
    seat.talk(model, ("5", "a"))
    tokens = loading.read_card(str(model)).tokenizer
    first, second = (tokens.decode(ids) for ids in seat.asked)
    assert first.count("<|im_start|>") == 2 and second.count("<|im_start|>") == 4
    assert second.startswith(first)


def test_calls_are_made_shown_and_remembered(seat: Seat, model: Path) -> None:
    for seed in range(20):  # a model of random weights: until it calls
        seat.talk(model, ("2 a", "5"), seed, tools=(ADD,), max_turns=3)
    shown = seat.shown.getvalue()
    results = re.findall(r"^  add\(a=(\d+)(?:, b=(\d+))?\)\n  = (\d+)$", shown, re.MULTILINE)
    assert results and all(int(a) + int(b or 1) == int(found) for a, b, found in results)
    tokens = loading.read_card(str(model)).tokenizer
    texts = [tokens.decode(ids) for ids in seat.asked]
    assert any(text.count("<|im_start|>tool") and text.rstrip().endswith("assistant") for text in texts)


def test_a_call_without_a_result_is_said_and_not_remembered_as_one(seat: Seat, model: Path) -> None:
    for seed in range(20):
        seat.talk(model, ("2 a", "5"), seed, tools=(ADD,), max_turns=2)
    assert "no result reached the model: an answer has at most 2 messages and 16 tokens" in seat.shown.getvalue()
    for messages in seat.talks:
        roles = ["call" if message.get("tool_calls") else message["role"] for message in messages]
        assert all(after == "tool" for one, after in itertools.pairwise(roles) if one == "call"), roles
        assert roles[-1] == "user" and all(before != "user" for before in roles[-2:-1]), roles


def test_a_conversation_with_tools_may_fill_the_context(seat: Seat, tmp_path: Path) -> None:
    small = talk.caller(tmp_path / "small", max_position_embeddings=48)
    filled = 0
    for seed in range(20):
        with contextlib.suppress(InputError):
            seat.talk(small, ("5",) * 4, seed, tools=(ADD,), max_turns=8)
            continue
        filled += 1
    assert filled and max(map(len, seat.asked)) < 48


@pytest.mark.parametrize("command", ["chat", "eval --task arithmetic --prompts 1"])
@pytest.mark.parametrize("sandbox", [False, True])
def test_tools_have_a_recipes_memory_limit_and_a_sandbox_on_demand(
    seat: Seat, model: Path, command: str, sandbox: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sandbox and isolation.isolation().sandbox:
        pytest.skip(isolation.isolation().sandbox)
    opened = []

    def noted(section: Any, given: Any, memory_mb: Any, *more: Any) -> Any:
        opened.append((section.sandbox, memory_mb))
        return conversations.open_tools(section, given, memory_mb, *more)

    monkeypatch.setattr(chat, "open_tools", noted)
    monkeypatch.setattr(answering, "open_tools", noted)
    name, *given = command.split()
    given += ["--tools", ADD, "--device", "cpu", "--max-new-tokens", "4", *["--sandbox"] * sandbox]
    found = CliRunner().invoke(app, [name, str(model), *given])
    assert found.exit_code == 0 and opened == [(sandbox, 4096)], found.output


def test_a_tool_that_is_not_there_is_said_before_the_model_is_read(seat: Seat) -> None:
    with pytest.raises(InputError, match=r"nowhere\.py"):
        seat.talk("no-such-model", ("5",), tools=("nowhere.py:add",))
