"""What every language recipe needs before its loop: rows rendered and checked, the model loaded, a sampler, a reward.

Cheap things come first. ``precheck`` needs neither torch nor the tokenizer; ``prepare`` checks rows and prompts with
the tokenizer before it reads weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upslope.errors import InputError
from upslope.recipes.adapt import adapt, check_adapter, same_weights, weights_digest
from upslope.recipes.configs import PAIRED, DataSection, Recipe, RewardSection, SamplingSection, SftRecipe
from upslope.recipes.conversations import Conversations, check_tools, conversations, open_tools, room
from upslope.recipes.curriculum import Curriculum
from upslope.recipes.pairs import fit_pairs, longest_row, paired_task, questions, read_pairs
from upslope.recipes.reward_models import Judge, JudgeCard, Jury, check_models, read_judges, seat
from upslope.recipes.scoring import RewardFunction, open_panel, reward_parts, task_part
from upslope.run import machine
from upslope.run.resources import keep_freed_memory
from upslope.text import rows as reading
from upslope.text.preferences import peek_pairs
from upslope.worlds.reasoning import Climb
from upslope.worlds.rewards import Part, RewardPanel
from upslope.worlds.task import load_task, split_rows

if TYPE_CHECKING:
    import torch

    from upslope.models.loading import Card, LanguageModel
    from upslope.rollout.sampler import InProcessSampler
    from upslope.run.session import Run
    from upslope.text.rendering import Renderer
    from upslope.types import Confined, Encoded, EncodedPair, Example, Pair, Prompt, Sampling, Stateful, Truth

LONGEST_TOKEN = 256
"""Characters: more than any token of a vocabulary in use stands for."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a run: prompts and, for SFT, examples, each split into train and held-out; facts for run.json."""

    train: Sequence[Prompt]
    heldout: Sequence[Prompt]
    examples: Sequence[Example] = ()
    heldout_examples: Sequence[Example] = ()
    reward: tuple[Part, ...] = ()
    facts: dict[str, Any] | None = None
    confined: Confined | None = None
    """The task, where it says which tokens a completion may hold."""
    climb: Climb | None = None
    """When the prompts get harder, where the task has a curriculum."""
    pairs: Sequence[Pair] = ()
    heldout_pairs: Sequence[Pair] = ()


@dataclass(frozen=True, eq=False)
class Survey:
    """What is known of a run before its model's weights are read. All that can be wrong by then has been checked."""

    rows: Rows
    device: torch.device
    dtype: torch.dtype
    card: Card
    renderer: Renderer
    sampling: Sampling
    train: Sequence[Prompt]
    heldout: Sequence[Prompt]
    examples: Sequence[Encoded]
    heldout_examples: Sequence[Encoded]
    reward: RewardPanel | None
    pairs: Sequence[EncodedPair] = ()
    heldout_pairs: Sequence[EncodedPair] = ()
    judges: tuple[JudgeCard, ...] = ()
    talks: Conversations | None = None
    """How conversations with tools go; None: one answer a prompt."""

    @property
    def room(self) -> int:
        """Tokens that may follow a prompt."""
        return self.sampling.max_new_tokens if self.talks is None else self.talks.budget


@dataclass(frozen=True, eq=False)
class Workshop:
    """A prepared run: everything that ``train`` works with."""

    run: Run
    model: LanguageModel
    renderer: Renderer
    sampler: InProcessSampler
    sampling: Sampling
    train: Sequence[Prompt]
    heldout: Sequence[Prompt]
    examples: Sequence[Encoded]
    heldout_examples: Sequence[Encoded]
    reward: RewardPanel | Jury | None
    truth: Truth | None = None
    """Exact numbers for the log, where the task knows them."""
    pairs: Sequence[EncodedPair] = ()
    heldout_pairs: Sequence[EncodedPair] = ()
    talks: Conversations | None = None
    """How conversations with tools go; None: one answer a prompt."""

    @property
    def room(self) -> int:
        """Tokens that may follow a prompt."""
        return self.sampling.max_new_tokens if self.talks is None else self.talks.budget

    @property
    def parts(self) -> dict[str, Stateful]:
        """What of it a checkpoint must hold, by name."""
        judges: tuple[Judge, ...] = self.reward.judges if isinstance(self.reward, Jury) else ()
        found: dict[str, Stateful] = {f"judge_{judge.name}": judge for judge in judges}
        return {"curriculum": self.train, **found} if isinstance(self.train, Curriculum) else found


def precheck(recipe: Recipe, reward: RewardFunction | None = None) -> None:
    """Everything about data and reward that can be wrong without torch, all of it at once.

    Raises:
        InputErrors: the paths, the first rows' columns, the reward's file and function, the task and its options;
            several processes. MachineError: a package that is older than what is needed.
    """
    from upslope.errors import InputErrors

    machine.check_packages()
    found: list[InputError] = []

    def attempt(check: Callable[[], Any]) -> None:
        try:
            check()
        except InputError as error:
            found.append(error)

    attempt(lambda: machine.check_alone(os.environ))
    data = recipe.data
    if data.path is not None:
        path = data.path
        need = ("prompt", "completion") if isinstance(recipe, SftRecipe) else ("prompt",)
        if isinstance(recipe, PAIRED):
            attempt(lambda: peek_pairs(path, data.columns))
        else:
            attempt(lambda: reading.peek(path, data.columns, need=need))
    elif isinstance(recipe, PAIRED):
        attempt(lambda: paired_task(data))
    elif data.task is not None:
        name = data.task
        attempt(lambda: confined(load_task(name, data.options), recipe.sampling.max_new_tokens))  # type: ignore[attr-defined]
    section: RewardSection = getattr(recipe, "reward", RewardSection())
    attempt(lambda: reward_parts(section, reward))
    attempt(lambda: check_models(section))
    attempt(lambda: check_tools(recipe, reward))
    if found:
        raise found[0] if len(found) == 1 else InputErrors(found)


def load_rows(
    data: DataSection, reward: tuple[Part, ...], seed: int, supervised: bool = False, own_reward: bool = True,
    paired: bool = False,
) -> Rows:  # fmt: skip
    """Prompts (and examples, or pairs) of a built-in task or of the user's rows, split by their content; with the
    reward's parts, which are the task's own where there are none and ``own_reward``."""
    if paired:
        found = read_pairs(data, seed)
        prompts = questions(found.heldout)
        if data.task is not None and own_reward:
            known = paired_task(data)
            prompts, reward = known.prompts("heldout"), reward or (task_part(known),)
        return Rows((), prompts, reward=reward, facts=found.facts, pairs=found.train, heldout_pairs=found.heldout)
    if data.task is not None:
        task: Any = load_task(data.task, data.options)
        examples = {split: task.examples(split) if supervised else () for split in ("train", "heldout")}
        return Rows(
            task.prompts("train"), task.prompts("heldout"), examples["train"], examples["heldout"],
            reward or ((task_part(task),) if own_reward else ()), {"task": data.task, "options": data.options},
            confined(task),
            getattr(task, "climb", None),
        )  # fmt: skip
    table = reading.read_rows(str(data.path), columns=data.columns)
    facts = {"path": data.path, "rows": len(table), "sha256": table.content_hash, "revision": table.revision}
    if not supervised:
        train, heldout = split_rows(reading.to_prompts(table.rows, table.where), data.heldout, seed)
        return Rows(train, heldout, reward=reward, facts=facts)
    learn, keep = split_rows(reading.to_examples(table.rows, table.where), data.heldout, seed)
    return Rows((), [_question(row, table.rows[int(row.id) - 1]) for row in keep], learn, keep, reward, facts)


def confined(task: Any, max_new_tokens: int | None = None) -> Confined | None:
    """The task if it says which tokens a completion may hold, else None.

    Raises:
        InputError: its completions need more room than ``max_new_tokens``: one that is cut would be no text of it.
    """
    if not hasattr(task, "allowed"):  # not isinstance: that needs types, and so torch
        return None
    if max_new_tokens is not None and max_new_tokens < task.longest:
        problem = f"found {max_new_tokens}, but completions of task {task.name} take up to {task.longest} tokens"
        raise InputError("sampling.max_new_tokens", problem, f"set it to {task.longest}")
    return task  # type: ignore[no-any-return]


def sampling_of(settings: SamplingSection, renderer: Renderer, task: Confined | None) -> Sampling:
    """How completions are drawn: the recipe's settings, the model's end tokens, and what the task allows."""
    from upslope.types import Sampling

    confined(task, settings.max_new_tokens)
    allowed = None if task is None else task.allowed(renderer)
    return Sampling(settings.max_new_tokens, renderer.stop_ids, settings.temperature, settings.stop, allowed)


def _sampling(recipe: Recipe) -> SamplingSection:
    settings: SamplingSection = getattr(recipe, "sampling", SamplingSection(max_new_tokens=1))
    return settings


def _question(row: Example, columns: Mapping[str, Any]) -> Prompt:
    """A supervised row as a prompt to be answered: what comes before its (last) answer, and before the calls for it."""
    from upslope.types import Prompt

    content = row.prompt
    if row.completion is None:
        asked = [place for place, message in enumerate(row.prompt) if message["role"] == "user"]  # type: ignore[index,call-overload]
        content = row.prompt[: asked[-1] + 1]
    return Prompt(
        row.id, content, {name: columns[name] for name in columns if name not in ("prompt", "input", "messages")}
    )


def fit_prompts(
    prompts: Sequence[Prompt], renderer: Renderer, data: DataSection, context: int, new_tokens: int, what: str,
    notice: Callable[[str], None], key: str = "sampling.max_new_tokens",
) -> list[Prompt]:  # fmt: skip
    """Prompts that leave room for ``new_tokens`` in the context; the others by ``data.too_long``, with the count said.
    ``key`` is what sets ``new_tokens``.

    Raises:
        InputError: with ``error``, naming the rows; always if nothing is left.
    """
    limit = context - new_tokens
    if limit < 1:
        problem = f"{new_tokens} new tokens leave no room for a prompt in a context of {context}"
        raise InputError(key, problem, f"lower it below {context}")
    kept: list[Prompt] = []
    long: list[tuple[str, int]] = []
    for prompt in prompts:
        length = _length(prompt.content, renderer, limit)
        if length <= limit:
            kept.append(prompt)
            continue
        long.append((prompt.id, length))
        if data.too_long == "truncate":
            kept.append(prompt)  # rollouts.harvest cuts its beginning off
    if long:
        shown = ", ".join(f"{name} ({length})" for name, length in long[:5]) + (", ..." if len(long) > 5 else "")
        room = f"{limit} tokens (context {context} less {new_tokens} new ones)"
        text = f"{len(long)} of {len(prompts)} {what} prompts exceed {room}"
        if data.too_long == "error":
            room_left = context - max(length for _, length in long)
            lower = f", or lower {key} to {room_left}" if room_left > 0 else ""
            raise InputError("data.path", f"{text}: rows {shown}", f"set data.too_long: drop or truncate{lower}")
        notice(f"{text}: {'dropped' if data.too_long == 'drop' else 'their beginnings cut off'} ({shown})")
    if prompts and not kept:
        raise InputError("data.path", f"0 {what} prompts are left (read {len(prompts)}, too long {len(long)})",
                         f"lower {key}, or set data.too_long: truncate")  # fmt: skip
    return kept


def _length(content: Any, renderer: Renderer, limit: int) -> int:
    """Tokens of a prompt. A text that no vocabulary brings near ``limit`` is not cut into tokens, which takes seconds
    for some megabytes: what is told is the least that it can have."""
    parts = [content] if isinstance(content, str) else [part.get("content") for part in content if hasattr(part, "get")]
    least = sum(len(text) for text in parts if isinstance(text, str)) // LONGEST_TOKEN
    return least if least > limit else len(renderer.prompt(content))


def fit_examples(
    rows: Sequence[Example], renderer: Renderer, limit: int, notice: Callable[[str], None]
) -> list[Encoded]:
    """Rendered rows, cut to ``limit`` tokens; rows with nothing left to train on are dropped and counted.

    Raises:
        InputError: no row has a trainable token within the limit.
    """
    from upslope.types import Encoded

    encoded = [renderer.example(row) for row in rows]
    cut = [Encoded(row.id, row.token_ids[:limit], row.trainable[:limit]) for row in encoded]
    kept = [row for row in cut if any(row.trainable[1:])]
    if rows and not kept:
        raise InputError(
            "sft.max_tokens",
            f"none of {len(rows)} rows has a trainable token within {limit} tokens",
            "raise sft.max_tokens",
        )
    shortened = sum(len(row.token_ids) > limit for row in encoded)
    if shortened:
        notice(
            f"{shortened} of {len(rows)} rows were cut to {limit} tokens; "
            f"{len(cut) - len(kept)} had nothing left to train on"
        )
    return kept


def survey(
    recipe: Recipe, reward: RewardFunction | None, stack: ExitStack, notice: Callable[[str], None],
    log: Path | None = None,
) -> Survey:  # fmt: skip
    """Everything that can be checked before weights are read, which `upslope check` shows: rows, tokenizer, reward.

    The reward's process lives until ``stack`` closes; what the reward prints goes to ``log``.
    """
    from upslope.models import loading
    from upslope.text.rendering import Renderer

    supervised = isinstance(recipe, SftRecipe)
    section: RewardSection = getattr(recipe, "reward", RewardSection())
    paired = isinstance(recipe, PAIRED)
    parts = reward_parts(section, reward)
    own_reward = "reward" in type(recipe).model_fields and not section.models
    rows = load_rows(recipe.data, parts, recipe.seed, supervised, own_reward, paired)
    if rows.facts and rows.facts.get("equal_pairs"):
        share = f"{rows.facts['equal_pairs']} of {rows.facts['rows']}"
        notice(f"{share} rows have equal chosen and rejected answers: left out, they prefer nothing")
    process = None
    if rows.reward:
        # Before the model: a forked child should not inherit its memory.
        process = stack.enter_context(open_panel(rows.reward, section, log, recipe.train.steps))
    toolbox = open_tools(recipe, reward, stack, log)
    device = loading.choose_device(recipe.device)
    dtype = loading.choose_dtype(recipe.model.dtype, device)
    card = loading.read_card(recipe.model.name, recipe.model.chat_template, notice)
    check_adapter(recipe, card)
    offered = (toolbox.schemas, recipe.episode.call_format) if toolbox is not None else ()  # type: ignore[attr-defined]
    renderer = Renderer(card.tokenizer, card.stop_ids, recipe.data.chat, recipe.data.system_prompt, *offered)
    talks = conversations(recipe, renderer, toolbox)
    settings = _sampling(recipe)
    judges = read_judges(section, renderer, card, notice)
    sampling = sampling_of(settings, renderer, rows.confined)
    arguments = (recipe.data, card.context, room(recipe, settings.max_new_tokens))
    key = "sampling.max_new_tokens" if talks is None else "episode.budget"
    train: Sequence[Prompt] = fit_prompts(rows.train, renderer, *arguments, "training", notice, key)
    # Prompts that no evaluation will answer need no room for an answer.
    answered = rows.heldout if (process is not None or judges) and recipe.train.eval_prompts > 0 else ()
    heldout = fit_prompts(answered, renderer, *arguments, "held-out", notice, key)
    examples, heldout_examples = [
        fit_examples(part, renderer, min(recipe.sft.max_tokens, card.context), notice)
        if isinstance(recipe, SftRecipe)
        else []
        for part in (rows.examples, rows.heldout_examples)
    ]
    limit, where = longest_row(recipe, card.context), "reward_model" if recipe.kind == "reward" else recipe.kind
    pairs, heldout_pairs = [
        fit_pairs(part, renderer, limit, recipe.data, f"{where}.max_tokens", notice, what)
        for part, what in ((rows.pairs, "training"), (rows.heldout_pairs, "held-out"))
    ]
    _enough(recipe, train, examples, pairs)
    if rows.climb is not None and not supervised:
        train = Curriculum(train, rows.climb, recipe.train.prompts)  # type: ignore[assignment]
    return Survey(
        rows, device, dtype, card, renderer, sampling, train, heldout, examples, heldout_examples, process, pairs,
        heldout_pairs, judges, talks,
    )  # fmt: skip


def prepare(recipe: Recipe, run: Run, reward: RewardFunction | None, stack: ExitStack) -> Workshop:
    """Check the rows with the tokenizer, start the reward's process, load the model, make the sampler."""
    from upslope.models import loading
    from upslope.rollout.sampler import InProcessSampler
    from upslope.types import Solved

    run.phase(0, "loading")
    keep_freed_memory()
    seen = survey(recipe, reward, stack, run.notice, run.folder.path / "reward.log")
    facts = {
        "recipe": recipe.kind, "model": recipe.model.name, "device": str(seen.device),
        "dtype": str(seen.dtype).removeprefix("torch."),
        "steps": recipe.train.steps, "data": seen.rows.facts,
        "train_rows": len(seen.pairs) or len(seen.train) or len(seen.examples),
        "heldout_rows": len(seen.heldout_pairs) or len(seen.rows.heldout) or len(seen.heldout_examples),
        "weights_sha256": weights_digest(seen.card),
    }  # fmt: skip
    if run.resumed is not None:
        _same_ground(run.folder.record(), facts)
    run.folder.update(**facts)
    run.start(facts)
    card, renderer = seen.card, seen.renderer
    model = loading.load(card, seen.device, seen.dtype, recipe.model.gradient_checkpointing)
    run.folder.update(**adapt(recipe, model, run.notice))
    sampler = InProcessSampler(model.model, card.context, _sampling(recipe).slots, decode=renderer.text)
    shop = Workshop(
        run, model, renderer, sampler, seen.sampling, seen.train, seen.heldout, seen.examples, seen.heldout_examples,
        seen.reward, seen.rows.confined.truth(renderer) if isinstance(seen.rows.confined, Solved) else None,
        seen.pairs, seen.heldout_pairs, seen.talks,
    )  # fmt: skip
    return seat(recipe, shop, seen.judges) if seen.judges else shop


def _same_ground(before: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Resuming goes on with the rows, weights and dtype that the run began with, or not at all."""
    same_weights(before.get("weights_sha256"), facts["weights_sha256"], facts["model"])
    old, new = before.get("data") or {}, facts["data"] or {}
    if old.get("sha256") != new.get("sha256"):
        raise InputError(
            "data.path", f"{new.get('path')} holds other rows than this run began with",
            "put the old rows back, or start a new run",
        )  # fmt: skip
    if before.get("dtype") != facts["dtype"]:
        raise InputError(
            "model.dtype", f"the run began in {before.get('dtype')}, this machine chose {facts['dtype']}",
            f"resume on a machine with {before.get('dtype')}, or start a new run",
        )  # fmt: skip


def _enough(recipe: Recipe, train: Sequence[Any], examples: Sequence[Any], pairs: Sequence[Any]) -> None:
    have = len(examples) if isinstance(recipe, SftRecipe) else len(pairs) if isinstance(recipe, PAIRED) else len(train)
    if have < recipe.train.prompts:
        raise InputError("train.prompts", f"a step takes {recipe.train.prompts} rows, there are {have} to train on",
                         f"set train.prompts to {have} or less, or give more rows")  # fmt: skip


def model_card(recipe: Recipe, card: Card) -> str:
    """README.md of a saved model or adapter."""
    adapter = recipe.lora is not None or card.adapter is not None
    words = "A LoRA adapter: transformers opens it together with its base model if peft is installed. " * adapter
    return (
        f"---\nbase_model: {card.base}\nlibrary_name: {'peft' if adapter else 'transformers'}\n"
        f"pipeline_tag: text-generation\ntags:\n- upslope\n{'- lora' + chr(10) if adapter else ''}"
        f"- {recipe.kind}\n---\n\n# {card.name}, after `upslope {recipe.kind}`\n\n{words}Trained with upslope. "
        "The recipe lies in `recipe.yaml` of the run folder.\n\n```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("model")\n'
        'tokenizer = AutoTokenizer.from_pretrained("model")\n```\n'
    )
