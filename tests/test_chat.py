"""`upslope chat`: what is asked of the model, and what is shown."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests import talk_support as talk
from tests import tools_for_tests as mine
from upslope import chat
from upslope.errors import InputError
from upslope.models import loading
from upslope.rollout.sampler import InProcessSampler

ADD = f"{mine.__file__}:add"


class Seat:
    """Someone at the keyboard: ``says`` lines, keeps what was shown, and the prompts that the model was asked."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.shown, self.lines = io.StringIO(), iter([""])
        self.asked: list[list[int]] = []
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

        patch.setattr(chat, "Console", Terminal)
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


def test_a_tool_that_is_not_there_is_said_before_the_model_is_read(seat: Seat) -> None:
    with pytest.raises(InputError, match=r"nowhere\.py"):
        seat.talk("no-such-model", ("5",), tools=("nowhere.py:add",))
