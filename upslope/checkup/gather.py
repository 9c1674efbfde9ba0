"""Finds out what `upslope check` shows, by the very functions that a run begins with; no weights are read."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upslope.checkup.facts import Checkup, Lengths, ModelFacts, RewardFacts, RowFacts, StepFacts, Trial
from upslope.checkup.findings import findings
from upslope.checkup.ledger import disk_bill, memory_bill, trained_parameters
from upslope.checkup.pairs import pair_facts, rendered_pair
from upslope.errors import InputError, RewardError
from upslope.recipes.configs import PAIRED, Recipe, SftRecipe
from upslope.recipes.setup import RewardFunction, Survey, precheck, survey
from upslope.run.recipe import Loaded
from upslope.views.rendered import Segment, segments

if TYPE_CHECKING:
    from upslope.types import Prompt

ANSWER_COLUMNS = ("answer", "completion", "output", "solution", "target")
"""Columns that may hold the right answer, the likeliest first."""
CHECKED = ("sft", "reward", "ppo", "grpo", "dpo")
TRIED_ROWS = 8
MEASURED = 2000
"""Rows whose tokens are counted. (Prompts that are too long are counted among all, by the run's own code.)"""
MADE_UP = "I do not know."
FORMS = (
    "The answer is {}.",
    "Answer: {}",
    "\\boxed{{{}}}",
    "<answer>{}</answer>",
    "<think>\nBecause.\n</think>\n<answer>{}</answer>",
    "<think>\nBecause.\n</think>\n{}",
    "#### {}",
    "```\n{}\n```",
)
"""Ways in which rewards often want an answer written."""


def check(loaded: Loaded[Any], reward: RewardFunction | None = None) -> Checkup:
    """Everything about a recipe that can be known before training.

    Raises what the run would raise, in its words: ``InputError`` and ``InputErrors`` for recipe, rows, model and
    reward, ``MachineError`` for a device that is not there.
    """
    recipe: Recipe = loaded.recipe
    if recipe.kind not in CHECKED:
        problem = f"recipes for upslope {recipe.kind} are not checked, only those for {', '.join(CHECKED)}"
        raise InputError("upslope check", problem, f"try the run itself: upslope {recipe.kind} ... train.steps=1")
    precheck(recipe, reward)
    notices = list(loaded.notices)
    with ExitStack() as stack:
        seen = survey(recipe, reward, stack, notices.append)
        shapes = _shapes(seen)
        answers = _answers(recipe, seen)
        tried = _try_reward(recipe, seen, answers)
        row, rendered, rejected = rendered_pair(seen) if seen.pairs else (*_rendered(recipe, seen), ())
    model = _model(recipe, seen, shapes)
    step = _step(recipe, seen)
    rows = _rows(recipe, seen, answers)
    folder = str(recipe.out or Path("runs") / loaded.name)
    found = Checkup(
        loaded.name, recipe.kind, folder, model, rows, step, rendered, row, tried,
        memory_bill(recipe, seen, rows, step, model), disk_bill(recipe, seen, rows, step, model, Path(folder)),
        tuple(notices), pairs=pair_facts(seen), rejected=rejected, judges=_judges(seen),
    )  # fmt: skip
    return _with_findings(found, loaded, seen)


def _judges(seen: Survey) -> tuple[str, ...]:
    """The recipe's reward models, in words."""
    ways = {True: "reads the sampled tokens as they are", False: "reads completions rendered anew, from text"}
    return tuple(f"{judge.entry.model} ({judge.name}), {ways[judge.same]}" for judge in seen.judges)


def _with_findings(found: Checkup, loaded: Loaded[Any], seen: Survey) -> Checkup:
    return replace(found, findings=tuple(findings(found, loaded.recipe, seen)))


# --------------------------------------------------------------------------------------------------------------- model
def _shapes(seen: Survey) -> Mapping[str, Any] | None:
    """The stored tensors, after the checks of loading that need no more than their shapes."""
    from upslope.models import loading, weights

    stored = weights.find(seen.card.source)
    rows = next((t.shape[0] for name, t in (stored or {}).items() if name.endswith("embed_tokens.weight")), None)
    if rows is not None:
        loading.check_vocabulary(seen.card.name, len(seen.card.tokenizer), rows)
    return stored


def _config(seen: Survey) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(seen.card.source, trust_remote_code=False)


def _model(recipe: Recipe, seen: Survey, stored: Mapping[str, Any] | None) -> ModelFacts:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    from upslope.models import loading, weights

    config, card = _config(seen), seen.card
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise loading.no_language_model(card.name, ValueError(f"its config.json is a {type(config).__name__}"))
    tied = bool(getattr(config.get_text_config(), "tie_word_embeddings", False))
    count = None if stored is None else weights.parameters(stored, tied)
    tokenizer = card.tokenizer
    return ModelFacts(
        recipe.model.name, str(next(iter(getattr(config, "architectures", None) or []), type(config).__name__)),
        count, trained_parameters(recipe, card, config.to_dict(), count), card.context, len(tokenizer),
        str(seen.dtype).removeprefix("torch."), str(seen.device), seen.renderer.has_template,
        tuple(str(tokenizer.convert_ids_to_tokens(int(token))) for token in seen.renderer.stop_ids),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- rows
def _answers(recipe: Recipe, seen: Survey) -> dict[str, str]:
    """The right answer of each prompt by its id, where its columns or the task's own examples hold it."""
    prompts = [*seen.rows.train, *seen.rows.heldout]
    column = answer_column(prompts)
    if column is not None:
        return {p.id: _as_text(p.columns[column]) for p in prompts if p.columns.get(column) not in (None, "")}
    if recipe.data.task is None or not prompts:
        return {}
    from upslope.worlds.task import load_task

    task: Any = load_task(recipe.data.task, recipe.data.options)
    if not hasattr(task, "examples"):
        return {}
    known = {_key(row.prompt): row.completion for row in task.examples("train") if row.completion is not None}
    return {p.id: known[_key(p.content)] for p in prompts if _key(p.content) in known}


def answer_column(prompts: Sequence[Prompt]) -> str | None:
    """The column that holds the right answers: the first of the usual names that a prompt has as text or a number."""
    for name in ANSWER_COLUMNS:
        if any(isinstance(p.columns.get(name), str | int | float | list) for p in prompts[:TRIED_ROWS]):
            return name
    return None


def _as_text(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):  # a completion of one message
        return str(value[-1].get("content", ""))
    text = str(value[0]) if isinstance(value, list) and len(value) == 1 else str(value)
    return text.encode(errors="replace").decode()  # half a character, which no tokenizer takes


def _key(content: Any) -> str:
    return json.dumps(content, sort_keys=True, default=str)


def _loosely(content: Any) -> str:
    """The prompt without differences of case and white space."""
    return " ".join(_key(content).lower().replace("\\n", " ").split())


def _rows(recipe: Recipe, seen: Survey, answers: Mapping[str, str]) -> RowFacts:
    if isinstance(recipe, PAIRED):
        return _pair_rows(recipe, seen)
    supervised = isinstance(recipe, SftRecipe)
    prompts: list[Any] = [row.prompt for row in seen.rows.examples] if supervised else [
        prompt.content for prompt in seen.rows.train
    ]  # fmt: skip
    told = [row.completion for row in seen.rows.examples] if supervised else [
        dict(prompt.columns) for prompt in seen.rows.train
    ]  # fmt: skip
    heldout = [row.prompt for row in seen.rows.heldout_examples] if supervised else [
        prompt.content for prompt in seen.rows.heldout
    ]  # fmt: skip
    repeated, contradicting = _repetitions(prompts, told)
    trained_on = {_loosely(prompt) for prompt in prompts}
    golds = [len(seen.renderer.completion(text)) for text in _some(list(answers.values()))]
    limit = recipe.sampling.max_new_tokens  # type: ignore[attr-defined]
    facts = seen.rows.facts or {}
    rows = seen.examples
    if supervised:
        lengths = [row.trainable.index(True) for row in rows]
    else:
        lengths = [len(seen.renderer.prompt(prompt.content)) for prompt in _some(seen.train)]
    return RowFacts(
        str(facts.get("path") or f"task {facts.get('task')}"), recipe.data.path is not None,
        len(rows) if supervised else len(seen.train), len(heldout),
        min(recipe.train.eval_prompts, len(seen.heldout_examples) if supervised else len(seen.heldout)),
        repeated, contradicting, sum(_loosely(prompt) in trained_on for prompt in heldout),
        Lengths.of(lengths),
        Lengths.of([sum(row.trainable) for row in rows]) if supervised else None,
        sum(row.token_ids[-1] not in seen.renderer.stop_ids for row in rows),
        Lengths.of(golds), sum(length > limit for length in golds), len(golds),
        answer_column([*seen.rows.train, *seen.rows.heldout]),
    )  # fmt: skip


def _pair_rows(recipe: Recipe, seen: Survey) -> RowFacts:
    """Of preferences: the prompts, and of both answers the tokens that are trained on."""
    facts, rows, kept = seen.rows.facts or {}, seen.rows.pairs, seen.rows.heldout_pairs
    prompts = [pair.prompt for pair in rows]
    repeated, _ = _repetitions(prompts, [(pair.chosen, pair.rejected) for pair in rows])
    trained_on = {_loosely(prompt) for prompt in prompts}
    sides = [side for pair in seen.pairs for side in (pair.chosen, pair.rejected)]
    return RowFacts(
        str(facts.get("path") or f"task {facts.get('task')}"), recipe.data.path is not None, len(seen.pairs),
        len(seen.heldout_pairs), min(recipe.train.eval_prompts, len(seen.heldout_pairs)), repeated, 0,
        sum(_loosely(pair.prompt) in trained_on for pair in kept),
        Lengths.of([pair.chosen.trainable.index(True) for pair in seen.pairs]),
        Lengths.of([sum(side.trainable) for side in sides]),
    )  # fmt: skip


def _some(rows: Sequence[Any]) -> Sequence[Any]:
    """At most ``MEASURED`` rows, evenly spread: rendering all of many a second time would take long."""
    step = max(1, -(-len(rows) // MEASURED))
    return rows[::step]


def _repetitions(prompts: Sequence[Any], told: Sequence[Any]) -> tuple[int, int]:
    """How many rows equal an earlier one, and how many have an earlier one's prompt and something else beside it."""
    seen: dict[str, set[str]] = {}
    repeated = contradicting = 0
    for prompt, beside in zip(prompts, told, strict=True):
        others = seen.setdefault(_key(prompt), set())
        mine = _key(beside)
        repeated += mine in others
        contradicting += bool(others) and mine not in others
        others.add(mine)
    return repeated, contradicting


def _step(recipe: Recipe, seen: Survey) -> StepFacts:
    train = recipe.train
    by_rows = isinstance(recipe, (SftRecipe, *PAIRED))
    rows = len(seen.pairs) or len(seen.examples) if by_rows else len(seen.train)
    samples = 0
    if not by_rows:
        section = getattr(recipe, recipe.kind)
        samples = train.prompts * getattr(section, "group", getattr(section, "samples", 1))
    inner = 1 if by_rows else train.epochs * train.minibatches
    return StepFacts(
        train.steps, train.prompts, samples, seen.room, inner, train.steps * train.prompts / rows,
        rows / train.prompts,
    )  # fmt: skip


def _rendered(recipe: Recipe, seen: Survey) -> tuple[str, tuple[Segment, ...]]:
    """The first training row, as the model is given it."""
    from upslope.text.pieces import pieces

    renderer = seen.renderer
    if isinstance(recipe, SftRecipe):
        row = seen.examples[0]
        ids, wanted, name = list(row.token_ids), list(row.trainable), row.id
    else:
        prompt = seen.train[0]
        ids = renderer.prompt(prompt.content)[-(seen.card.context - seen.room) :]
        wanted, name = [False] * len(ids), prompt.id
    texts = pieces(renderer.tokenizer, ids)
    return name, tuple(segments(texts, ids, wanted, renderer.stop_ids))


# -------------------------------------------------------------------------------------------------------------- reward
def _try_reward(recipe: Recipe, seen: Survey, answers: Mapping[str, str]) -> RewardFacts | None:
    """Right, wrong, made-up and empty completions, scored in the reward's own process.

    A wrong completion is another row's answer: it has the form of a right one. Raises RewardError as the run.
    """
    from upslope.worlds.rewards import Group, Score, score_groups

    process = seen.reward
    if process is None:
        return None
    prompts = [*seen.train, *seen.heldout][:TRIED_ROWS]
    if not prompts:
        return None

    def ids(text: str) -> tuple[int, ...]:
        return tuple(seen.renderer.completion(text)) if text else (seen.renderer.stop_id,)

    failed: list[str] = []

    def score(pairs: Sequence[tuple[Any, str]]) -> list[Score]:
        groups = [Group(prompt, (text,), (ids(text),)) for prompt, text in pairs]
        scored, dropped = score_groups(process, groups, recipe.reward.on_error)  # type: ignore[attr-defined]
        failed.extend(reason for _, reason in dropped)
        return [Score(None) if found is None else found[0] for found in scored]

    pool = sorted(set(answers.values()))
    given: list[tuple[Any, str, str]] = []
    for prompt in prompts:
        right = answers.get(prompt.id)
        if right is not None:
            given.append((prompt, "answer", right))
            other = next((text for text in pool[pool.index(right) + 1 :] + pool if text != right), None)
            if other is not None:
                given.append((prompt, "other", other))
        given.append((prompt, "made-up", MADE_UP))
    begun = time.perf_counter()
    scores = score([(prompt, text) for prompt, _, text in given])
    seconds = (time.perf_counter() - begun) / len(given)
    again = score([(prompt, text) for prompt, _, text in given])
    trials = [
        Trial(prompt.id, what, text, found.value, dict(found.parts))
        for (prompt, what, text), found in zip(given, scores, strict=True)
    ]
    right_mean, wrong_mean, compared = _compared(trials)
    form = None
    if right_mean is not None and wrong_mean is not None and right_mean <= wrong_mean:
        pair = next((trial.prompt_id, trial.completion) for trial in trials if trial.what == "answer")
        asked = next(prompt for prompt in prompts if prompt.id == pair[0])
        written = [form.format(pair[1]) for form in FORMS]
        paid = [found.value for found in score([(asked, text) for text in written])]
        best = max((value for value in paid if value is not None), default=wrong_mean)
        if best > wrong_mean:
            place = paid.index(best)
            form = FORMS[place]
            trials.append(Trial(asked.id, "form", written[place], best))
    empty = None
    try:
        nothing = score([(prompts[0], "")])[0]
        trials += [Trial(prompts[0].id, "empty", "", nothing.value, dict(nothing.parts))]
    except RewardError as error:
        empty = error.problem
    values = [[one.value for one in scored] for scored in (scores, again)]
    return RewardFacts(
        process.where, seconds, tuple(trials), compared, right_mean, wrong_mean, form, values[0] == values[1], empty,
        tuple(dict.fromkeys(failed)),
    )  # fmt: skip


def _compared(trials: Sequence[Trial]) -> tuple[float | None, float | None, int]:
    """Mean reward of right answers and of other rows' answers, over the prompts that have both."""
    right = {t.prompt_id: t.reward for t in trials if t.what == "answer" and t.reward is not None}
    wrong = {t.prompt_id: t.reward for t in trials if t.what == "other" and t.reward is not None}
    both = [name for name in right if name in wrong]
    if not both:
        return None, None, 0
    return sum(right[name] for name in both) / len(both), sum(wrong[name] for name in both) / len(both), len(both)
