"""Episodes: turns sampled, answers appended, limits kept, and no episode that depends on its neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import talk_support as talk
from tests import tiny
from tests import tools_for_tests as mine
from upslope.rollout.episodes import play
from upslope.rollout.reference import ReferenceSampler
from upslope.rollout.sampler import InProcessSampler
from upslope.rollout.tool_episode import MOST_CALLS, ToolEpisode
from upslope.seeds import derive
from upslope.text.rendering import Renderer
from upslope.types import Sampling
from upslope.worlds.episode import Episode, Step
from upslope.worlds.tools import Toolbox

END = 2


@pytest.fixture(scope="module")
def tools() -> Iterator[Toolbox]:
    with Toolbox([f"{mine.__file__}:{name}" for name in ("add", "broken", "long")]) as opened:
        yield opened


@pytest.fixture(scope="module")
def words(tools: Toolbox) -> Renderer:
    return Renderer(talk.tokenizer(talk.NAMES_ONLY), [END], tools=tools.schemas)


def call(name: str, **arguments: Any) -> str:
    import json

    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def converse(
    words: Renderer, tools: Toolbox, script: Any, turns: int = 4, budget: int = 1000, samples: int = 1, **sampling: Any
) -> tuple[list[ToolEpisode], list[Any], talk.Scripted]:
    said = talk.Scripted(words.tokenizer, script)
    settings = Sampling(**{"max_new_tokens": 200, "stop_ids": (END,), **sampling})
    prompt = words.prompt("2+3?")
    episodes = [ToolEpisode(words, tools, prompt, turns, budget, settings.stop_strings) for _ in range(samples)]
    (played,) = play(said, [episodes], settings, [11], budget)
    return episodes, played, said


def after(text: str) -> str:
    """The last message so far, for scripts."""
    return text.rpartition("<|im_start|>tool\n")[2].partition("<|im_end|>")[0] if "<|im_start|>tool\n" in text else ""


# ---------------------------------------------------------------------------------------------------- a conversation
def test_a_call_is_answered_and_the_answer_stands_behind_it(words: Renderer, tools: Toolbox) -> None:
    def script(text: str, sample: int) -> str:
        return f"It is {after(text)}." if after(text) else "Hm. " + call("add", a=2, b=3)

    (episode,), (found,), said = converse(words, tools, script)
    first, answer = words.completion("Hm. " + call("add", a=2, b=3)), words.completion("It is 5.")
    result = words.observation([("add", "5")])
    assert list(found.token_ids) == [*first, *result, *answer]
    assert list(found.action_mask) == [True] * len(first) + [False] * len(result) + [True] * len(answer)
    assert list(found.logprobs) == [-1.0 - n for n in range(len(first))] + [0.0] * len(result) + [
        -1.0 - n for n in range(len(answer))
    ]
    assert found.terminated and found.turns == 2 and found.weights_version == 7 and found.support is None
    assert found.chosen == (*first, *answer)
    assert said.asked[1][0] == [[*words.prompt("2+3?"), *first, *result]]  # the very tokens, nothing rendered anew
    assert episode.messages == [
        {"role": "assistant", "content": "Hm.",
         "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}]},
        {"role": "tool", "name": "add", "content": "5"}, {"role": "assistant", "content": "It is 5."},
    ]  # fmt: skip
    assert episode.answer == "It is 5." and (episode.calls, episode.failures) == (1, 0)


def test_the_whole_is_what_the_template_would_write(words: Renderer, tools: Toolbox) -> None:
    _, (found,), _ = converse(words, tools, lambda text, n: "5" if after(text) else call("add", a=2, b=3))
    text = words.tokenizer.decode([*words.prompt("2+3?"), *found.token_ids], skip_special_tokens=False)
    assert text == (
        "<|im_start|>tools\nadd broken long <|im_end|>\n<|im_start|>user\n2+3?<|im_end|>\n<|im_start|>assistant\n"
        '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call><|im_end|>\n'
        "<|im_start|>tool\n5<|im_end|>\n<|im_start|>assistant\n5<|im_end|>"
    )


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (call("multiply", a=1), "there is no tool 'multiply'"), (call("add"), "the argument 'a' is missing"),
        (call("broken", x=1), "ZeroDivisionError"), ("<tool_call>{</tool_call>", "not valid JSON"),
    ],
)  # fmt: skip
def test_a_call_that_fails_is_told_counted_and_can_be_mended(
    words: Renderer, tools: Toolbox, said: str, told: str
) -> None:
    def script(text: str, sample: int) -> str:
        return {"": said, "5": "5"}.get(after(text), call("add", a=2, b=3))

    (episode,), (found,), _ = converse(words, tools, script)
    assert told in str(episode.messages[1]["content"]) and episode.messages[1]["role"] == "tool"
    assert (episode.calls, episode.failures, found.turns, found.terminated) == (2, 1, 3, True)
    if "JSON" in told:
        assert episode.messages[0] == {"role": "assistant", "content": said}


def test_several_calls_of_one_message_are_answered_in_order_up_to_a_limit(words: Renderer, tools: Toolbox) -> None:
    many = "".join(call("add", a=n, b=0) for n in range(MOST_CALLS + 1))
    (episode,), (found,), _ = converse(
        words, tools, lambda text, n: "done" if after(text) else many, max_new_tokens=900
    )
    results = [message["content"] for message in episode.messages if message["role"] == "tool"]
    assert results[:MOST_CALLS] == [str(n) for n in range(MOST_CALLS)] and "at most 8 calls" in results[-1]
    assert (episode.calls, episode.failures) == (MOST_CALLS + 1, 1) and found.terminated


def test_calls_in_the_last_message_are_not_made(words: Renderer, tools: Toolbox) -> None:
    (episode,), (found,), said = converse(words, tools, lambda text, n: call("add", a=2, b=3), turns=3)
    assert found.turns == 3 and not found.terminated and episode.calls == 2 and len(said.asked) == 3
    assert found.action_mask[-1] and found.token_ids[-1] == END
    assert (
        episode.messages[-1]["role"] == "assistant" and episode.answer == ""
    )  # the result is no answer of the model's


def test_a_message_that_the_length_cut_ends_the_episode(words: Renderer, tools: Toolbox) -> None:
    (episode,), (found,), _ = converse(words, tools, lambda text, n: "so far..." + call("add", a=2), max_new_tokens=9)
    assert not found.terminated and found.turns == 1 and episode.calls == 0 and episode.answer == "so far..."
    (_,), (cut,), _ = converse(words, tools, lambda text, n: call("add", a=2, b=3), max_new_tokens=30)
    assert not cut.terminated and len(cut.token_ids) == 30


def test_the_budget_holds_for_all_tokens_after_the_prompt(words: Renderer, tools: Toolbox) -> None:
    def script(text: str, sample: int) -> str:
        return "y" * 50 if after(text) else call("long", count=10)

    first = len(words.completion(call("long", count=10)))
    result = len(words.observation([("long", "x" * 10)]))
    (episode,), (found,), said = converse(words, tools, script, budget=first + result + 5)
    assert len(found.token_ids) == first + result + 5 and not found.terminated and episode.answer == "yyyyy"
    assert said.asked[1][2].max_new_tokens == 5
    (episode,), (found,), _ = converse(words, tools, script, budget=first + result)  # no token left behind the result
    assert len(found.token_ids) == first and all(found.action_mask) and not found.terminated
    assert [message["role"] for message in episode.messages] == ["assistant"] and episode.answer == ""
    (episode,), (found,), _ = converse(words, tools, script, budget=first - 3)
    assert len(found.token_ids) == first - 3 and not found.terminated and found.turns == 1


def test_a_stop_string_ends_a_message_and_the_end_token_comes_with_the_result(words: Renderer, tools: Toolbox) -> None:
    class Stopping(talk.Scripted):
        def _one(self, prompt: Any, sample: int, sampling: Any) -> Any:
            found = super()._one(prompt, sample, sampling)
            text = self.tokens.decode(list(found.token_ids))
            return (
                replace(found, token_ids=found.token_ids[:-1], logprobs=found.logprobs[:-1])
                if "call" in text
                else found
            )

    settings = Sampling(200, (END,), stop_strings=("</tool_call>",))
    said = Stopping(words.tokenizer, lambda text, n: "5" if after(text) else call("add", a=2, b=3))
    episode = ToolEpisode(words, tools, words.prompt("2+3?"), 4, 1000, settings.stop_strings)
    ((found,),) = play(said, [[episode]], settings, [11], 1000)
    first = words.completion(call("add", a=2, b=3))
    assert list(found.token_ids[: len(first)]) == first and found.action_mask[: len(first)] == (True,) * (
        len(first) - 1
    ) + (False,)
    assert found.terminated and episode.answer == "5"


def test_rows_finish_at_different_turns_and_only_the_rest_goes_on(words: Renderer, tools: Toolbox) -> None:
    def script(text: str, sample: int) -> str:
        return "late" if after(text) else ["now", call("add", a=2, b=3), call("add", a=7, b=3)][sample]

    episodes, played, said = converse(words, tools, script, samples=3)
    assert [found.turns for found in played] == [1, 2, 2] and [one.answer for one in episodes] == [
        "now",
        "late",
        "late",
    ]
    assert said.asked[0][1:2] == (3,) and len(said.asked[1][0]) == 2 and said.asked[1][1] == 1
    assert said.asked[0][3] == [11] and said.asked[1][3] == [derive(11, "turn", 1, 1), derive(11, "turn", 1, 2)]


# ------------------------------------------------------------------------------------------------ worlds of other kinds
class Guess(Episode):
    """A reward at each step: 1 for each token that equals the seed; ends after two turns of any length."""

    def __init__(self) -> None:
        self.seed, self.count = 0, 0

    def reset(self, seed: int) -> Sequence[int]:
        self.seed, self.count = seed, 0
        return [5, 6]

    def step(self, token_ids: Sequence[int]) -> Step:
        self.count += 1
        reward = float(sum(token == self.seed for token in token_ids))
        return Step((8, 9) if self.count < 2 else (), reward, terminated=self.count == 2)


def test_rewards_of_steps_stand_at_the_last_token_of_their_turn_and_a_score_is_added_to_the_last() -> None:
    model = tiny.served()
    sampling = Sampling(3, (END,), allowed=(4, 5))
    ((found,),) = play(InProcessSampler(model, 64), [[Guess()]], sampling, [4], 50)
    assert found.turns == 2 and found.terminated and len(found.token_ids) == 8
    own = [float(sum(token == 4 for token in found.token_ids[part])) for part in (slice(0, 3), slice(5, 8))]
    assert found.rewards == (0.0, 0.0, own[0], 0.0, 0.0, 0.0, 0.0, own[1])
    assert found.support == ((4, 5),) * 3 + (None, None) + ((4, 5),) * 3
    rollout = found.rollout("p", 3, 1, [5, 6], 1.0, score=10.0, parts={"x": 1.0})
    assert rollout.rewards == (0.0, 0.0, *found.rewards[:-1], own[1] + 10.0) and rollout.score == sum(own) + 10.0
    assert rollout.action_mask == (False, False, *found.action_mask) and rollout.completion_length == 6
    assert isinstance(Guess(), Episode)


def test_groups_must_begin_alike() -> None:
    class Moody(Guess):
        def reset(self, seed: int) -> Sequence[int]:
            return [5, id(self) % 7 + 4, id(self) // 7 % 50 + 4]

    with pytest.raises(ValueError, match="must begin alike"):
        play(InProcessSampler(tiny.served(), 64), [[Moody(), Moody()]], Sampling(3, (END,)), [4], 50)


# -------------------------------------------------------------------------------------------------------- real sampling
@pytest.fixture(scope="module")
def calling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talk.caller(tmp_path_factory.mktemp("caller"))


def test_episodes_do_not_depend_on_their_neighbours_and_equal_the_reference_sampler(
    calling: Path, tools: Toolbox
) -> None:
    loaded = tiny.load(calling)
    words = Renderer(loaded.card.tokenizer, loaded.card.stop_ids, tools=tools.schemas)
    sampling, prompts = Sampling(8, words.stop_ids), [words.prompt(text) for text in ("a", "555", "5a", "5")]
    seeds = [3, 4, 5, 6]

    def run(sampler: Any, chosen: Sequence[int], samples: int) -> list[list[Any]]:
        episodes = [[ToolEpisode(words, tools, prompts[i], 3, 300) for _ in range(samples)] for i in chosen]
        return play(sampler, episodes, sampling, [seeds[i] for i in chosen], 300)

    def sampler() -> Any:
        return InProcessSampler(loaded.model, loaded.card.context, slots=5)

    whole = run(sampler(), [0, 1, 2, 3], 10)
    turns = [found.turns for group in whole for found in group]
    assert set(turns) == {1, 2, 3}, "the model must call sometimes, or this shows nothing"
    for place in range(4):
        alone = run(sampler(), [place], 10)[0]
        assert [found.token_ids for found in alone] == [found.token_ids for found in whole[place]]
    stock = talk.stock(calling)
    slow = run(ReferenceSampler(stock, 512), [0, 1, 2, 3], 10)
    for mine_, theirs in zip(chain(*whole), chain(*slow), strict=True):
        assert (mine_.token_ids, mine_.action_mask, mine_.turns) == (theirs.token_ids, theirs.action_mask, theirs.turns)
        assert mine_.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)
    plain = sampler().sample(prompts, 10, sampling, seeds)
    for group, completions in zip(whole, plain, strict=True):
        for found, completion in zip(group, completions, strict=True):
            if found.turns == 1:  # an episode of one turn is the plain completion
                assert (found.token_ids, found.logprobs) == (completion.token_ids, completion.logprobs)


def test_log_probabilities_are_the_stock_models_of_the_tokens_chosen(calling: Path, tools: Toolbox) -> None:
    loaded = tiny.load(calling, torch.float64)
    words = Renderer(loaded.card.tokenizer, loaded.card.stop_ids, tools=tools.schemas)
    prompt = words.prompt("a")
    episodes = [[ToolEpisode(words, tools, prompt, 3, 300) for _ in range(16)]]
    sampler = InProcessSampler(loaded.model, loaded.card.context)
    stock = talk.stock(calling, torch.float64)
    several = 0
    for found in play(sampler, episodes, Sampling(8, words.stop_ids, temperature=0.7), [9], 300)[0]:
        ids = [*prompt, *found.token_ids]
        scores = tiny.stock_log_probs(stock, ids, 0.7)
        several += found.turns > 1
        for place, own in enumerate(found.action_mask, start=len(prompt)):
            if own:
                assert found.logprobs[place - len(prompt)] == pytest.approx(
                    float(scores[place - 1, ids[place]]), abs=1e-6
                )
    assert several
