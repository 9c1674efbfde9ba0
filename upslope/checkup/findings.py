"""What looks wrong about a recipe, in words: each check is a pure function of the facts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upslope.checkup.facts import Checkup, Finding
from upslope.checkup.ledger import adapter_of
from upslope.checkup.pairs import PAIR_CHECKS
from upslope.run.folder import occupied
from upslope.views.numbers import percent, short

if TYPE_CHECKING:
    from upslope.recipes.setup import Survey

Check = Callable[[Checkup, Any, "Survey"], Iterator[Finding]]

RATES: dict[str, tuple[float, float]] = {
    "sft": (1e-6, 2e-4), "reward": (1e-6, 1e-4), "dpo": (5e-8, 2e-5), "ppo": (1e-7, 5e-5), "grpo": (1e-7, 5e-5),
}  # fmt: skip
"""Usual learning rates of AdamW on all weights of a model of 0.1 to 10 B parameters."""
LORA_FACTOR = 20.0
"""An adapter takes ten times the rate of all weights, and bears more."""
SMALL_MODEL = 20_000_000
"""Below so many parameters a network takes, and needs, far higher rates: nothing is said."""
VERY_HIGH = 1e-2
"""Above it the recipe's own notice speaks."""
MANY_PASSES = {"sft": 20.0, "reward": 5.0, "dpo": 5.0}
MANY_PASSES_RL = 50.0
FEW_HELDOUT = 20


def findings(found: Checkup, recipe: Any, seen: Survey) -> list[Finding]:
    """Everything that looks wrong, the gravest first."""
    return [finding for check in CHECKS for finding in check(found, recipe, seen)]


def reward_pays(found: Checkup, recipe: Any, seen: Survey) -> Iterator[Finding]:
    """The reward gives right answers no more than wrong ones."""
    reward = found.reward
    if reward is None or reward.right is None or reward.wrong is None or reward.right > reward.wrong:
        return
    tried = [trial for trial in reward.trials if trial.what in ("answer", "other", "made-up")]
    if {trial.reward for trial in tried} == {0.0} and len({tuple(trial.parts.items()) for trial in tried}) > 1:
        return  # of weight 0: logged beside a reward model, say, and not meant to pay
    rows = f"{reward.compared} row{'s' if reward.compared > 1 else ''}"
    level = f"{reward.right:.4g}"
    paid = {trial.reward for trial in tried}
    if reward.right < reward.wrong:
        text = f"wrong answers earn more ({reward.wrong:.4g}) than right ones ({level}) on {rows}"
    elif len(paid) == 1:
        text = f"right answers and wrong ones earn the same, {level}, on {rows}"
    else:
        text = f"right answers earn no more than other rows' answers (both {level} on average, {rows})"
    if reward.form:
        shape = reward.form.replace("\n", "\\n").format("...")
        text += f". Written as {shape} the right answer earns more: tell the model so in the prompt"
    elif len(paid) == 1:
        text += ". A reward that never differs teaches nothing; does it want the answer in a certain form?"
    elif found.rows.answer_column:
        text += f": does it look at the column {found.rows.answer_column!r} as you mean it to?"
    yield Finding("reward pays", reward.name, text)


def reward_fails(found: Checkup, recipe: Any, seen: Survey) -> Iterator[Finding]:
    """The reward fails on a completion that a model may well give."""
    reward = found.reward
    if reward is None:
        return
    if reward.on_empty is not None:
        text = f"fails on an empty completion ({reward.on_empty}): the run stops when the model answers nothing"
        yield Finding("reward fails", reward.name, text)
    for reason in reward.failed[:3]:
        yield Finding("reward fails", reward.name, f"a group would be left out: {reason}")


def reward_varies(found: Checkup, recipe: Any, seen: Survey) -> Iterator[Finding]:
    """The same completions earned something else at a second call."""
    if found.reward is not None and not found.reward.repeatable:
        text = (
            "gave the same completions other rewards at a second call: the run cannot be repeated, and noise is learned"
        )
        yield Finding("reward varies", found.reward.name, text)


def reward_slow(found: Checkup, recipe: Any, seen: Survey) -> Iterator[Finding]:
    """A step's completions, scored in one call, would come near the deadline."""
    if found.reward is None or not found.step.completions:
        return
    wanted = found.reward.seconds * found.step.completions
    limit = float(recipe.reward.timeout)
    if wanted > limit / 2:
        text = (
            f"took {short(found.reward.seconds)} s a completion: {found.step.completions} of them in one call take "
            f"about {short(wanted)} s, the deadline is {short(limit)} s (reward.timeout)"
        )
        yield Finding("reward slow", found.reward.name, text)


def answers_cut(found: Checkup, recipe: Any, seen: Survey) -> Iterator[Finding]:
    """Right answers are longer than a completion may be."""
    rows = found.rows
    if not rows.answers_cut or rows.answers is None or not (found.step.completions or seen.reward):
        return
    limit = found.step.longest_completion
    column = f" in column {rows.answer_column!r}" if rows.answer_column else ""
    text = (
        f"found {limit}, but {rows.answers_cut} of {rows.answers_measured} right answers{column} need more: "
        f"the longest takes {rows.answers.longest} tokens with its end token. One that is cut there cannot be right"
    )
    yield Finding("answers cut", "sampling.max_new_tokens", text)


def rate(found: Checkup, recipe: Any, seen: Survey) -> Iterator[Finding]:
    """The learning rate is far from what is usual."""
    size = found.model.parameters
    usual = RATES.get(found.kind)
    value = float(recipe.optim.lr)
    if usual is None or (size is not None and size < SMALL_MODEL) or value > VERY_HIGH:
        return
    lora = adapter_of(recipe, seen.card) is not None
    low, high = (bound * (LORA_FACTOR if lora else 1.0) for bound in usual)
    if lora and value < low:
        return  # the recipe's own notice speaks
    what = "an adapter" if lora else "all weights"
    if not low <= value <= high:
        side = "above" if value > high else "below"
        risk = "it may fall apart in a few steps" if value > high else "little will be learned"
        text = f"{value:g} is {side} what is usual for {found.kind} on {what} ({low:g} to {high:g}): {risk}"
        yield Finding("learning rate", "optim.lr", text)


def system_dropped(found: Checkup, recipe: Any, seen: Survey) -> Iterator[Finding]:
    """The chat template leaves out the system message that the recipe or the rows give."""
    conversations: list[Any] = [row.prompt for row in seen.rows.examples] + [pair.prompt for pair in seen.rows.pairs]
    conversations += [prompt.content for prompt in seen.rows.train]
    own = next(
        (str(talk[0]["content"]) for talk in conversations
         if isinstance(talk, tuple) and talk and isinstance(talk[0], dict) and talk[0].get("role") == "system"),
        None,
    )  # fmt: skip
    given = recipe.data.system_prompt if recipe.data.system_prompt is not None else own
    if given is None or not given.strip() or not seen.renderer.has_template:
        return
    talk: Any = ({"role": "system", "content": given}, {"role": "user", "content": "?"})
    text = seen.renderer.tokenizer.decode(seen.renderer.prompt(talk), skip_special_tokens=False)
    if "".join(given.split()) not in "".join(text.split()):
        where = "data.system_prompt" if recipe.data.system_prompt is not None else "model.chat_template"
        text = "the chat template drops the system message: the model never sees it. Put it into the user's message"
        yield Finding("system dropped", where, text)


def plain_text(found: Checkup, recipe: Any, seen: Survey) -> Iterator[Finding]:
    """Prompts are continued as plain text: a model without a template, and how prompt and completion join."""
    renderer = seen.renderer
    if renderer.wraps or seen.rows.confined is not None:
        return
    if not renderer.has_template and recipe.data.chat == "auto":
        text = (
            f"{found.model.name} has no chat template, so each prompt is given as plain text to be continued. If it is "
            "meant to answer as in a chat, set model.chat_template: chatml or a Jinja file"
        )
        yield Finding("no template", "model.chat_template", text)
    answered = [(row.prompt, row.completion) for row in seen.rows.examples]
    answered += [(pair.prompt, pair.chosen) for pair in seen.rows.pairs]
    prompts: list[Any] = [prompt for prompt, _ in answered] or [p.content for p in seen.rows.train]
    texts = [text for text in prompts if isinstance(text, str)]
    spaced = sum(text != text.rstrip() for text in texts)
    close = [
        (prompt, answer) for prompt, answer in answered
        if isinstance(prompt, str) and answer is not None and not prompt[-1:].isspace() and not answer[:1].isspace()
    ]  # fmt: skip
    if joined := len(close):
        end, start = close[0][0][-12:], close[0][1][:12]
        text = f"{joined} completions follow their prompt without a space between ({end!r} + {start!r})"
        yield Finding("joined", "data.path", f"{text}: begin them with a space or the prompt's end with a line break")
    elif spaced and not answered:
        text = (
            f"{spaced} of {len(texts)} prompts end in white space, which most tokenizers write as part of the next "
            "word: the model is asked to go on from a place it has seldom seen"
        )
        yield Finding("ends in space", "data.path", text)


def double_start(found: Checkup, recipe: Any, seen: Survey) -> Iterator[Finding]:
    """A rendered prompt begins with two start tokens."""
    start = getattr(seen.renderer.tokenizer, "bos_token_id", None)
    rows = [*seen.examples[:1], *(pair.chosen for pair in seen.pairs[:1])]
    ids = list(rows[0].token_ids) if rows else seen.renderer.prompt(seen.train[0].content)
    if start is not None and ids[:2] == [start, start]:
        name = seen.renderer.tokenizer.convert_ids_to_tokens(int(start))
        yield Finding("double start", "model.chat_template", f"prompts begin with two start tokens ({name} {name})")


def stop_lost(found: Checkup, recipe: Any, seen: Survey) -> Iterator[Finding]:
    """Supervised rows were cut before their end token."""
    rows = found.rows
    if rows.lost_stop:
        share = percent(rows.lost_stop / rows.train)
        text = f"{rows.lost_stop} of {rows.train} rows ({share}) are cut before their end token: they teach no stopping"
        yield Finding("no end token", "sft.max_tokens", text)


def repeated_rows(found: Checkup, recipe: Any, seen: Survey) -> Iterator[Finding]:
    """Rows of the user's that occur more than once, or against each other, or on both sides of the split."""
    rows = found.rows
    if not rows.own:
        return
    if rows.repeated:
        share = percent(rows.repeated / rows.train)
        text = f"{rows.repeated} of {rows.train} training rows ({share}) repeat an earlier row"
        yield Finding("repeated rows", "data.path", f"{text}: they weigh double")
    if rows.contradicting and found.step.completions:
        text = f"{rows.contradicting} training rows have the prompt of an earlier row and other columns"
        yield Finding("contradicting rows", "data.path", f"{text}: which of them is right?")
    if rows.leaked:
        text = f"{rows.leaked} of {rows.heldout} held-out prompts are training prompts but for case and spaces"
        yield Finding("leaked rows", "data.path", f"{text}: evaluations will look better than they are")


def held_out(found: Checkup, recipe: Any, seen: Survey) -> Iterator[Finding]:
    """Evaluations say little, or there are none."""
    rows = found.rows
    if rows.heldout == 0 and recipe.train.eval_prompts > 0:
        yield Finding("nothing held out", "data.heldout", "no row is held out: nothing will tell learning from memory")
    elif 0 < rows.evaluated < min(FEW_HELDOUT, recipe.train.eval_prompts) and rows.own:
        text = f"evaluations ask only {rows.evaluated} held-out row{'s' if rows.evaluated > 1 else ''}: they will jump"
        yield Finding("few held out", "data.heldout", f"{text}. Raise it, or give more rows")


def many_passes(found: Checkup, recipe: Any, seen: Survey) -> Iterator[Finding]:
    """The rows are seen very often."""
    limit = MANY_PASSES.get(found.kind, MANY_PASSES_RL)
    if found.step.passes > limit:
        fewer = round(limit * found.step.steps_a_pass) or 1
        text = (
            f"{found.step.steps} steps of {found.step.prompts} are {found.step.passes:,.0f} passes over "
            f"{found.rows.train} rows: the model will know them by heart. {fewer} steps are {limit:g} passes"
        )
        yield Finding("many passes", "train.steps", text)


def too_big(found: Checkup, recipe: Any, seen: Survey) -> Iterator[Finding]:
    """Memory or disk will not do."""
    for kind, bill in (("memory", found.memory), ("disk", found.disk)):
        if bill is None or bill.there is None or bill.needed <= bill.there:
            continue
        text = f"about {bill.needed / 1e9:.1f} GB are needed, {bill.there / 1e9:.1f} GB are {bill.where}"
        if kind == "memory":
            advice = _saves(recipe, seen, bill.parts)
            yield Finding("memory", "memory", f"{text}. {advice}")
        else:
            yield Finding("disk", found.folder, f"{text}. Give another out, or make room")


def _saves(recipe: Any, seen: Survey, parts: Any) -> str:
    largest = max(parts, key=lambda name: parts[name])
    if largest in ("activations", "head"):
        if not recipe.model.gradient_checkpointing:
            return "Lower train.micro_batch_tokens, or set model.gradient_checkpointing: true"
        return "Lower train.micro_batch_tokens"
    if largest == "cache":
        return "Lower sampling.max_new_tokens"
    if adapter_of(recipe, seen.card) is None:
        return "Train an adapter (lora: {rank: 16}), or take a smaller model"
    return "Take a smaller model"


def folder_taken(found: Checkup, recipe: Any, seen: Survey) -> Iterator[Finding]:
    """The run's folder holds a run."""
    error = occupied(Path(found.folder))
    if error is not None:
        yield Finding("folder", error.where, f"{error.problem}: {error.fix}")


CHECKS: tuple[Check, ...] = (
    reward_pays, reward_fails, too_big, answers_cut, system_dropped, double_start, stop_lost, plain_text, reward_varies,
    reward_slow, *PAIR_CHECKS, rate, repeated_rows, held_out, many_passes, folder_taken,
)  # fmt: skip
