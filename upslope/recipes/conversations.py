"""Conversations with tools in a recipe: from its ``episode`` section to played, readable and counted episodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upslope.errors import InputError
from upslope.recipes.episode_section import EpisodeSection
from upslope.recipes.scoring import FROM_PYTHON, RewardFunction
from upslope.worlds.isolation import Limits
from upslope.worlds.reward_calls import function_name
from upslope.worlds.reward_source import check_source
from upslope.worlds.tools import WHERE, Toolbox

if TYPE_CHECKING:
    from upslope.recipes.configs import Recipe
    from upslope.rollout.episodes import Played
    from upslope.text.rendering import Renderer
    from upslope.types import Message, Sampler, Sampling

TOOL = f"{FROM_PYTHON}tool "
"""Before the name of a Python function that is a tool."""


@dataclass(frozen=True, eq=False)
class Talk:
    """A played conversation. ``text`` is the model's last message, ``shown`` all that was said after the prompt."""

    played: Played
    messages: tuple[Message, ...]
    text: str
    shown: str
    calls: int
    failures: int

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All tokens after the prompt, results among them."""
        return self.played.token_ids


@dataclass(frozen=True, eq=False)
class Conversations:
    """What the conversations of a run have in common."""

    renderer: Renderer
    toolbox: Toolbox
    turns: int
    budget: int

    def play(
        self, sampler: Sampler, sampling: Sampling, prompts: Sequence[Sequence[int]], samples: int, seeds: Sequence[int]
    ) -> list[list[Talk]]:
        """``samples`` conversations after each prompt."""
        from upslope.rollout.episodes import play
        from upslope.rollout.tool_episode import ToolEpisode

        episodes = [
            [
                ToolEpisode(self.renderer, self.toolbox, prompt, self.turns, self.budget, sampling.stop_strings)
                for _ in range(samples)
            ]
            for prompt in prompts
        ]
        played = play(sampler, episodes, sampling, seeds, self.budget)
        return [
            [
                Talk(found, tuple(one.messages), one.answer, self._shown(found), one.calls, one.failures)
                for one, found in zip(group, results, strict=True)
            ]
            for group, results in zip(episodes, played, strict=True)
        ]

    def _shown(self, played: Played) -> str:
        return str(self.renderer.tokenizer.decode(list(played.token_ids), skip_special_tokens=False))


def talk_metrics(talks: Sequence[Sequence[Talk]]) -> dict[str, float]:
    """Calls a conversation, the share of calls that failed (TRL's names), and messages of the model a conversation."""
    every = [talk for group in talks for talk in group]
    calls = sum(talk.calls for talk in every)
    return {
        "tools/call_frequency": calls / len(every),
        "tools/failure_frequency": sum(talk.failures for talk in every) / calls if calls else 0.0,
        "tools/mean_turns": sum(talk.played.turns for talk in every) / len(every),
    }


# -------------------------------------------------------------------------------------------------------- from a recipe
def section_of(recipe: Recipe) -> EpisodeSection | None:
    """The recipe's ``episode``, None where it has none."""
    found: EpisodeSection | None = getattr(recipe, "episode", None)
    return found


def room(section: EpisodeSection | None, max_new_tokens: int) -> int:
    """Tokens that may follow a prompt: those of a completion, or of a whole episode."""
    return max_new_tokens if section is None else section.room(max_new_tokens)


def check_tools(section: EpisodeSection | None, given: RewardFunction | None = None) -> None:
    """What can be wrong with the tools without running their files.

    Raises:
        InputError: a file or function that is not there.
    """
    for source in _sources(section, given) if section is not None else ():
        if isinstance(source, str):
            check_source(source, WHERE)


def open_tools(
    section: EpisodeSection | None, given: RewardFunction | None, memory_mb: int | None, stack: ExitStack,
    log: Path | None = None,
) -> Toolbox | None:  # fmt: skip
    """The tools, their processes started until ``stack`` closes; ``given`` has those that are Python functions."""
    if section is None:
        return None
    limits = Limits(memory_mb, section.tool_network, section.tool_env, section.sandbox)
    box = Toolbox(_sources(section, given), section.deadline, limits, longest=section.result_chars, log=log)
    return stack.enter_context(box)


def offered(section: EpisodeSection | None, toolbox: Toolbox | None) -> tuple[Any, ...]:
    """What a ``Renderer`` is told of the tools, behind its other arguments."""
    return () if section is None or toolbox is None else (toolbox.schemas, section.call_format)


def conversations(
    section: EpisodeSection | None, max_new_tokens: int, renderer: Renderer, toolbox: Toolbox | None
) -> Conversations | None:
    """How conversations go; None where there are no tools."""
    if section is None or toolbox is None:
        return None
    return Conversations(renderer, toolbox, section.max_turns, section.room(max_new_tokens))


def _sources(section: EpisodeSection, given: RewardFunction | None) -> list[str | Callable[..., Any]]:
    found: list[str | Callable[..., Any]] = []
    for source in section.tools:
        function = given.get(source) if isinstance(given, Mapping) else None
        if source.startswith(FROM_PYTHON) and function is None:
            problem = f"{source} was a function of the Python call that started this run"
            raise InputError(WHERE, problem, "start it from Python, or put the function into a file")
        found.append(source if function is None else function)
    return found


def name_tools(tools: Any) -> tuple[Any, dict[str, Callable[..., Any]]]:
    """A Python call's ``tools`` as a recipe's value, and the functions in it by the names that they have there."""
    several = list(tools) if isinstance(tools, list | tuple) else [tools]
    named = {f"{TOOL}{function_name(tool)}": tool for tool in several if callable(tool)}
    return [f"{TOOL}{function_name(tool)}" if callable(tool) else tool for tool in several], named
