"""What every language recipe needs before its loop: rows checked (``run_rows``), the model loaded, a sampler, a reward.

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

from upslope.errors import InputError, InputErrors
from upslope.recipes.adapt import adapt, check_adapter, same_weights, weights_digest
from upslope.recipes.configs import PAIRED, Recipe, RewardSection, SamplingSection, SftRecipe
from upslope.recipes.conversations import (
    Conversations,
    check_tools,
    conversations,
    offered,
    open_tools,
    room,
    section_of,
)
from upslope.recipes.curriculum import Curriculum
from upslope.recipes.pairs import fit_pairs, longest_row, paired_task
from upslope.recipes.reward_models import Judge, JudgeCard, Jury, check_models, read_judges, seat
from upslope.recipes.run_rows import Rows, confined, fit_examples, fit_prompts, load_rows, sampling_of
from upslope.recipes.scoring import RewardFunction, open_panel, reward_parts
from upslope.run import machine
from upslope.run.resources import keep_freed_memory
from upslope.text import rows as reading
from upslope.text.preferences import peek_pairs
from upslope.worlds.rewards import RewardPanel
from upslope.worlds.task import load_task

if TYPE_CHECKING:
    import torch

    from upslope.models.loading import Card, LanguageModel
    from upslope.rollout.sampler import InProcessSampler
    from upslope.run.session import Run
    from upslope.text.rendering import Renderer
    from upslope.types import Encoded, EncodedPair, Prompt, Sampling, Stateful, Truth


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
            attempt(lambda: peek_pairs(path, data.columns, data.on_bad_row == "skip"))
        else:
            attempt(lambda: reading.peek(path, data.columns, need, data.on_bad_row == "skip"))
    elif isinstance(recipe, PAIRED):
        attempt(lambda: paired_task(data))
    elif data.task is not None:
        name = data.task
        attempt(lambda: confined(load_task(name, data.options), recipe.sampling.max_new_tokens))  # type: ignore[attr-defined]
    section: RewardSection = getattr(recipe, "reward", RewardSection())
    attempt(lambda: reward_parts(section, reward))
    attempt(lambda: check_models(section))
    attempt(lambda: check_tools(section_of(recipe), reward))
    if found:
        raise found[0] if len(found) == 1 else InputErrors(found)


def _sampling(recipe: Recipe) -> SamplingSection:
    settings: SamplingSection = getattr(recipe, "sampling", SamplingSection(max_new_tokens=1))
    return settings


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
    if rows.facts and (bad := rows.facts.get("bad_rows")):
        notice(f"{len(bad)} of {rows.facts['rows']} rows are bad and left out ({reading.listed(bad)})")
    if rows.facts and rows.facts.get("equal_pairs"):
        share = f"{rows.facts['equal_pairs']} of {rows.facts['rows']}"
        notice(f"{share} rows have equal chosen and rejected answers: left out, they prefer nothing")
    process = None
    if rows.reward:
        # Before the model: a forked child should not inherit its memory.
        process = stack.enter_context(open_panel(rows.reward, section, log, recipe.train.steps))
    episode = section_of(recipe)
    toolbox = open_tools(episode, reward, section.memory_mb, stack, log)
    device = loading.choose_device(recipe.device)
    dtype = loading.choose_dtype(recipe.model.dtype, device)
    if recipe.model.exact and dtype.itemsize < 4:
        problem = f"found {str(dtype).removeprefix('torch.')}, whose products round by what is computed beside them"
        raise InputError("model.exact", problem, "set model.dtype: float32, or leave model.exact out")
    card = loading.read_card(recipe.model.name, recipe.model.chat_template, notice)
    check_adapter(recipe, card)
    told = offered(episode, toolbox)
    renderer = Renderer(card.tokenizer, card.stop_ids, recipe.data.chat, recipe.data.system_prompt, *told)
    settings = _sampling(recipe)
    talks = conversations(episode, settings.max_new_tokens, renderer, toolbox)
    judges = read_judges(section, renderer, card, notice)
    sampling = sampling_of(settings, renderer, rows.confined)
    arguments = (recipe.data, card.context, room(episode, settings.max_new_tokens))
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
    from upslope.models.exact import make_exact
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
    if recipe.model.exact:
        make_exact(model.model)
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
