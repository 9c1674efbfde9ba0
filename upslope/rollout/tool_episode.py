"""A conversation with tools as an episode: calls are read, answered by the toolbox, and appended as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from upslope.text.rendering import Renderer
from upslope.text.tool_calls import BadCall, Said, ToolCall
from upslope.types import Message
from upslope.worlds.episode import Step
from upslope.worlds.tools import Result, Toolbox, refusal

MOST_CALLS = 8
"""Calls of one message that are answered: a model that writes hundreds is told so."""
BEFORE_RESULTS = 1
"""Tokens that must be left for the model behind the results."""


class ToolEpisode:
    """One conversation. It goes on while the model's messages hold calls, and is cut where a limit is reached.

    Args:
        prompt: ids of the prompt, tools offered.
        turns: messages that the model may write; calls in the last of them are not made.
        budget: tokens after the prompt, results among them; results that leave no room for an answer are not shown.
        stop_strings: texts that end a message, beside the end tokens.
    """

    def __init__(
        self, renderer: Renderer, toolbox: Toolbox, prompt: Sequence[int], turns: int, budget: int,
        stop_strings: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.renderer, self.toolbox, self.prompt = renderer, toolbox, list(prompt)
        self.turns, self.budget, self.stop_strings = turns, budget, tuple(stop_strings)
        self.messages: list[Message] = []
        """What was said after the prompt: ``assistant`` with its ``tool_calls``, ``tool`` with a result. It ends with
        the model's own message, also where that is a call that no result came for any more."""
        self.calls, self.failures, self.taken = 0, 0, 0
        self.left = budget

    def reset(self, seed: int) -> list[int]:
        self.messages, self.calls, self.failures, self.taken, self.left = [], 0, 0, 0, self.budget
        return self.prompt

    @property
    def answer(self) -> str:
        """The text of the model's last message."""
        return str(self.messages[-1]["content"]) if self.messages else ""

    def step(self, token_ids: Sequence[int]) -> Step:
        text = self.renderer.written(token_ids)
        ends = [place for stop in self.stop_strings if (place := text.find(stop)) >= 0]
        closed = bool(token_ids) and token_ids[-1] in self.renderer.stop_ids
        form = self.renderer.dialect.form if self.renderer.dialect is not None else None
        said = form.read(text) if form is not None else Said(text)
        self.taken, self.left = self.taken + 1, self.left - len(token_ids)
        self.messages.append(self._message(said, text, token_ids))
        if not (closed or ends):
            return Step(truncated=True)
        if not said.calls:
            return Step(terminated=True)
        if self.taken >= self.turns:
            return Step(truncated=True)
        results = [self._result(place, call) for place, call in enumerate(said.calls)]
        self.calls += len(results)
        self.failures += sum(result.failed for _, result in results)
        observation = self.renderer.observation([(name, result.text) for name, result in results], stopped=closed)
        if len(observation) + BEFORE_RESULTS > self.left:
            return Step(truncated=True)
        self.left -= len(observation)
        self.messages += [{"role": "tool", "name": name, "content": result.text} for name, result in results]
        return Step(tuple(observation))

    def _message(self, said: Said, written: str, token_ids: Sequence[int]) -> Message:
        calls = [call for call in said.calls if isinstance(call, ToolCall)]
        if not said.calls:
            text = self.renderer.text(token_ids)
            cut = [place for stop in self.stop_strings if (place := text.find(stop)) >= 0]
            return {"role": "assistant", "content": text[: min(cut)] if cut else text}
        listed: list[dict[str, Any]] = [
            {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}} for call in calls
        ]
        if not listed:  # nothing that can be called: as it was written
            return {"role": "assistant", "content": written}
        return {"role": "assistant", "content": said.content, "tool_calls": listed}

    def _result(self, place: int, call: ToolCall | BadCall) -> tuple[str, Result]:
        if place >= MOST_CALLS:
            return call.name or "unknown", refusal(f"at most {MOST_CALLS} calls of one message are made")
        if isinstance(call, BadCall):
            return call.name or "unknown", refusal(call.problem)
        return call.name, self.toolbox.call(call.name, call.arguments)
