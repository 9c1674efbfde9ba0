"""Scoring a model on held-out prompts, greedy and sampled, with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from statistics import fmean, stdev
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

Z = 1.959964
"""Two-sided 95 % of the normal distribution."""


@dataclass(frozen=True, slots=True)
class Score:
    """Mean reward over ``n`` prompts with its 95 % interval; ``rewards`` one a prompt, in their order."""

    mean: float
    low: float
    high: float
    n: int
    rewards: tuple[float | None, ...]
    completions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """``greedy`` and ``sampled`` (temperature 1 unless told) scores of one model; ``prompts`` are the texts."""

    model: str
    prompts: tuple[str, ...]
    greedy: Score
    sampled: Score


def interval(rewards: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean: Wilson's for rewards of 0 and 1, else the normal one.

    Wilson (1927): (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n). It stays inside [0, 1] and is right near
    its ends.
    """
    n, mean = len(rewards), fmean(rewards)
    if set(rewards) <= {0.0, 1.0}:
        middle = mean + Z * Z / (2 * n)
        half = Z * math.sqrt(mean * (1 - mean) / n + Z * Z / (4 * n * n))
        return max(0.0, (middle - half) / (1 + Z * Z / n)), min(1.0, (middle + half) / (1 + Z * Z / n))
    half = Z * stdev(rewards) / math.sqrt(n) if n > 1 else math.inf
    return mean - half, mean + half


def evaluate(
    model: str,
    task: str | None = None,
    data: str | None = None,
    reward: Any = None,
    prompts: int = 512,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    options: dict[str, Any] | None = None,
    columns: dict[str, str] | None = None,
    system_prompt: str | None = None,
    chat: str = "auto",
    split: str = "heldout",
    heldout: float = 0.1,
    on_bad_row: str = "error",
    tools: Any = None,
    max_turns: int = 4,
    budget: int | None = None,
    sandbox: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Answer up to ``prompts`` prompts of a split and score them with the task's or the user's reward: a function, a
    ``path/to/file.py:function``, or what else a recipe's ``reward`` may be (a list, built-in ones).

    Reward models (``{"model": directory}``) give their raw scores.

    ``split`` is ``heldout`` (the rows that a training run with this ``seed`` and ``heldout`` kept), ``train`` or
    ``all``. ``on_bad_row: skip`` leaves rows out that a training run would leave out.

    With ``tools`` (functions, or ``path/to/file.py:function``) the model may call them, in up to ``max_turns`` messages
    of ``max_new_tokens`` each and ``budget`` tokens in all, as a recipe's ``episode`` says; its last message is scored.
    ``sandbox`` is for tools that run what the model writes.

    Raises:
        InputError: as a training run's rows, reward and model.
    """
    from upslope.models import loading
    from upslope.rollout.sampler import InProcessSampler
    from upslope.text.rendering import Renderer

    given = {
        "task": task,
        "path": data,
        "options": options or {},
        "columns": columns or {},
        "system_prompt": system_prompt,
        "on_bad_row": on_bad_row,
    }
    try:
        section = DataSection.model_validate({**given, "chat": chat, "heldout": 0 if split == "all" else heldout})
        settings = SamplingSection(max_new_tokens=max_new_tokens, temperature=temperature)
    except ValidationError as error:
        raise InputErrors([_argument(fault, "data.task, data.path") for fault in error.errors()]) from None
    value, named = name_functions(reward)
    try:
        scoring = RewardSection() if value is None else RewardSection.model_validate(value)
    except ValidationError as error:
        raise InputErrors([_argument(fault, "reward") for fault in error.errors()]) from None
    episode: EpisodeSection | None = None
    functions: dict[str, Callable[..., Any]] = {}
    try:
        if tools is not None:
            tools, functions = name_tools(tools)
            limits = {"max_turns": max_turns, "budget": budget, "sandbox": sandbox}
            episode = EpisodeSection.model_validate({"tools": tools, **limits})
    except ValidationError as error:
        raise InputErrors([_argument(fault, "tools") for fault in error.errors()]) from None
    check_models(scoring)
    rows = load_rows(section, reward_parts(scoring, named), seed, own_reward=not scoring.models)
    if not rows.reward and not scoring.models:
        raise InputError(
            "reward", "an evaluation of your own rows needs a reward", "give reward: path/to/file.py:function"
        )
    chosen = {"heldout": rows.heldout, "train": rows.train, "all": [*rows.train, *rows.heldout]}.get(split)
    if chosen is None:
        raise InputError("split", f"{split!r} is unknown", "use heldout, train or all")
    if not chosen:
        raise InputError("split", f"the {split} split has no rows", "use split all, or raise data.heldout")
    with ExitStack() as stack:
        process: Any = stack.enter_context(open_panel(rows.reward, scoring)) if rows.reward else None
        toolbox = open_tools(episode, functions, scoring.memory_mb, stack)
        place = loading.choose_device(device)
        card = loading.read_card(model)
        told = offered(episode, toolbox)
        renderer = Renderer(card.tokenizer, card.stop_ids, section.chat, section.system_prompt, *told)
        talks = conversations(episode, max_new_tokens, renderer, toolbox)
        longest = room(episode, max_new_tokens)
        kept = fit_prompts(chosen[:prompts], renderer, section, card.context, longest, split, lambda text: None)
        judges = read_judges(scoring, renderer, card, lambda text: None)
        loaded = loading.load(card, place, loading.choose_dtype(dtype, place))
        if judges:
            process = Jury(process, tuple(load_judge(own, renderer, place, loaded.dtype) for own in judges))
        sampler = InProcessSampler(loaded.model, card.context, decode=renderer.text, progress=progress)
        warm = sampling_of(settings, renderer, rows.confined)
        both = [
            score(sampler, renderer, process, kept, sampling, seed, talks)
            for sampling in (replace(warm, temperature=0.0), warm)
        ]
    from upslope.recipes.rollouts import shown_prompt

    return Evaluation(model, tuple(shown_prompt(prompt) for prompt in kept), both[0], both[1])


def _argument(fault: Any, whole: str) -> InputError:
    """A refused argument, as an error that names it; ``whole`` is what the fault is about where it names no key."""
    where = ".".join(map(str, fault["loc"]))
    if whole == "reward":
        where = f"reward.{where}".rstrip(".")
    text, _, fix = str(fault["msg"]).removeprefix("Value error, ").partition("Fix: ")
    return InputError(
        f"evaluate() {where or whole}", f"found {clean(repr(fault['input']), 200)}: {text.strip()}",
        fix or "correct that argument",
    )  # fmt: skip


def score(
    sampler: Any, renderer: Any, process: Any, prompts: Sequence[Any], sampling: Any, seed: int,
    talks: Conversations | None = None,
) -> Score:  # fmt: skip
    """One completion of each prompt, or one conversation, scored."""
    from upslope.seeds import derive
    from upslope.worlds.rewards import Group

    ids = [renderer.prompt(prompt.content) for prompt in prompts]
    seeds = [derive(seed, "evaluation", index) for index in range(len(prompts))]
    if talks is None:
        said = [found[0] for found in sampler.sample(ids, 1, sampling, seeds)]
        shown = [renderer.text(completion.token_ids) for completion in said]
        answers: list[tuple[Any, ...]] = [
            ((text,), (completion.token_ids,)) for text, completion in zip(shown, said, strict=True)
        ]
    else:
        held = [found[0] for found in talks.play(sampler, sampling, ids, 1, seeds)]
        shown = [talk.shown for talk in held]
        answers = [((talk.text,), (talk.token_ids,), (talk.messages,)) for talk in held]
    groups = [Group(prompt, *answer) for prompt, answer in zip(prompts, answers, strict=True)]
    scored, _ = score_all(process, groups, "stop")
    rewards = tuple(None if found is None else found[0].value for found in scored)
    counted = [value for value in rewards if value is not None]
    return Score(fmean(counted), *interval(counted), len(counted), rewards, tuple(shown))
