"""A model that answers prompts, and what scores its answers: opened for evaluations and for pairs of own answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from upslope.errors import InputError, InputErrors
from upslope.recipes.configs import DataSection, RewardSection, SamplingSection
from upslope.recipes.conversations import Conversations, conversations, name_tools, offered, open_tools, room
from upslope.recipes.episode_section import EpisodeSection
from upslope.recipes.reward_models import Jury, check_models, load_judge, read_judges, score_all
from upslope.recipes.run_rows import fit_prompts, load_rows, sampling_of
from upslope.recipes.scoring import name_functions, open_panel, reward_parts
from upslope.run.recipe_yaml import clean
from upslope.seeds import generator


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: its text (of a conversation with tools: all that was said after the prompt), its reward (None: no
    function applied) and whether it ended by itself, or the length limit cut it."""

    text: str
    reward: float | None
    stopped: bool


@dataclass(frozen=True, slots=True)
class Answering:
    """Prompts of a split, and the open model and reward that ``answer`` uses."""

    prompts: tuple[Any, ...]
    longest: int
    """Tokens of a prompt; only ``too_long: truncate`` lets longer ones come here, whose beginnings are cut off."""
    sampler: Any
    renderer: Any
    reward: Any
    sampling: Any
    talks: Conversations | None

    def answer(
        self, prompts: Sequence[Any], seeds: Sequence[int], samples: int = 1, greedy: bool = False
    ) -> list[list[Answer]]:
        """``samples`` answers to each prompt, or conversations with tools, with their rewards."""
        from upslope.worlds.rewards import Group

        ids = [self.renderer.prompt(prompt.content)[-self.longest :] for prompt in prompts]
        sampling = replace(self.sampling, temperature=0.0) if greedy else self.sampling
        if self.talks is None:
            said = self.sampler.sample(ids, samples, sampling, seeds)
            ends = [[(self.renderer.text(one.token_ids), one.stopped) for one in each] for each in said]
            groups = [
                Group(prompt, tuple(text for text, _ in end), tuple(one.token_ids for one in each))
                for prompt, end, each in zip(prompts, ends, said, strict=True)
            ]
        else:
            held = self.talks.play(self.sampler, sampling, ids, samples, seeds)
            ends = [[(talk.shown, talk.played.terminated) for talk in each] for each in held]
            parts = [[(talk.text, talk.token_ids, talk.messages) for talk in each] for each in held]
            groups = [Group(prompt, *zip(*each, strict=True)) for prompt, each in zip(prompts, parts, strict=True)]
        scored, _ = score_all(self.reward, groups, "stop")
        return [
            [Answer(text, score.value, stopped) for (text, stopped), score in zip(end, scores, strict=True)]
            for end, scores in zip(ends, scored, strict=True)
            if scores is not None  # only on_error: drop_group leaves a group without
        ]


@contextmanager
def answering(
    caller: str, model: str, *, task: str | None, data: str | None, reward: Any, prompts: int, max_new_tokens: int,
    temperature: float, seed: int, device: str, dtype: str, options: dict[str, Any] | None,
    columns: dict[str, str] | None, system_prompt: str | None, chat: str, split: str, heldout: float, too_long: str,
    on_bad_row: str, progress: Callable[[int, int], None] | None = None, tools: Any = None, max_turns: int = 4,
    budget: int | None = None, sandbox: bool = False, drawn: bool = False,
) -> Iterator[Answering]:  # fmt: skip
    """Open a model and the reward for up to ``prompts`` prompts of a split: its first ones, or, ``drawn``, some by
    chance. The other arguments are those of ``evaluation.evaluate``; ``caller`` is what messages name.

    Raises:
        InputError: as a training run's rows, reward and model.
    """
    from upslope.models import loading
    from upslope.rollout.sampler import InProcessSampler
    from upslope.text.rendering import Renderer

    def section(kind: Any, given: Any, whole: str) -> Any:
        try:
            return kind.model_validate(given)
        except ValidationError as error:
            raise InputErrors([_argument(caller, fault, whole) for fault in error.errors()]) from None

    rows_of = {
        "task": task, "path": data, "options": options or {}, "columns": columns or {}, "system_prompt": system_prompt,
        "too_long": too_long, "on_bad_row": on_bad_row, "chat": chat, "heldout": 0 if split == "all" else heldout,
    }  # fmt: skip
    whole = "data.task, data.path"
    source: DataSection = section(DataSection, rows_of, whole)
    drawing = section(SamplingSection, {"max_new_tokens": max_new_tokens, "temperature": temperature}, whole)
    value, named = name_functions(reward)
    scoring = RewardSection() if value is None else section(RewardSection, value, "reward")
    episode: EpisodeSection | None = None
    functions: dict[str, Callable[..., Any]] = {}
    if tools is not None:
        tools, functions = name_tools(tools)
        limits = {"max_turns": max_turns, "budget": budget, "sandbox": sandbox}
        episode = section(EpisodeSection, {"tools": tools, **limits}, "tools")
    check_models(scoring)
    rows = load_rows(source, reward_parts(scoring, named), seed, own_reward=not scoring.models)
    if not rows.reward and not scoring.models:
        raise InputError(
            "reward", "answers to your own rows need a reward to be scored", "give reward: path/to/file.py:function"
        )
    chosen = {"heldout": rows.heldout, "train": rows.train, "all": [*rows.train, *rows.heldout]}.get(split)
    if chosen is None:
        raise InputError("split", f"{split!r} is unknown", "use heldout, train or all")
    if not chosen:
        raise InputError("split", f"the {split} split has no rows", "use split all, or raise data.heldout")
    if drawn:
        chosen = [chosen[int(place)] for place in generator(seed, "prompts").permutation(len(chosen))]
    with ExitStack() as stack:
        panel: Any = stack.enter_context(open_panel(rows.reward, scoring)) if rows.reward else None
        toolbox = open_tools(episode, functions, scoring.memory_mb, stack)
        place = loading.choose_device(device)
        card = loading.read_card(model)
        renderer = Renderer(
            card.tokenizer, card.stop_ids, source.chat, source.system_prompt, *offered(episode, toolbox)
        )
        new = room(episode, max_new_tokens)
        kept = fit_prompts(chosen[:prompts], renderer, source, card.context, new, split, lambda text: None)
        judges = read_judges(scoring, renderer, card, lambda text: None)
        loaded = loading.load(card, place, loading.choose_dtype(dtype, place))
        if judges:
            panel = Jury(panel, tuple(load_judge(own, renderer, place, loaded.dtype) for own in judges))
        sampler = InProcessSampler(loaded.model, card.context, decode=renderer.text, progress=progress)
        talks = conversations(episode, max_new_tokens, renderer, toolbox)
        sampling = sampling_of(drawing, renderer, rows.confined)
        yield Answering(tuple(kept), card.context - new, sampler, renderer, panel, sampling, talks)


def _argument(caller: str, fault: Any, whole: str) -> InputError:
    """A refused argument, as an error that names it; ``whole`` is what the fault is about where it names no key."""
    where = ".".join(map(str, fault["loc"]))
    if whole == "reward":
        where = f"reward.{where}".rstrip(".")
    text, _, fix = str(fault["msg"]).removeprefix("Value error, ").partition("Fix: ")
    return InputError(
        f"{caller} {where or whole}", f"found {clean(repr(fault['input']), 200)}: {text.strip()}",
        fix or "correct that argument",
    )  # fmt: skip
