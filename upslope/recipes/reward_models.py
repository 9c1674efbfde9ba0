"""Reward models in a recipe's ``reward``: read, loaded, set to a scale, and asked beside the functions.

A judge is a frozen reward model in this process. It reads the very token ids that were sampled where its texts are
rendered as the policy's are, and else the text, rendered anew. Its scores are set to mean 0 and standard deviation 1 on
answers of the starting policy to training prompts: then a KL penalty and other rewards mean the same beside every
reward model. ``missing_eos_penalty`` is taken off after that, from completions that the length limit cut.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

from upslope.errors import InputError, RewardError
from upslope.recipes.reward_section import RewardEntry, RewardSection
from upslope.recipes.scoring import where_of
from upslope.seeds import derive, permutation
from upslope.worlds.rewards import Group, OnError, RewardPanel, RewardProcess, Score, combine, score_groups

if TYPE_CHECKING:
    from upslope.models.loading import Card
    from upslope.recipes.configs import Recipe
    from upslope.recipes.setup import Workshop
    from upslope.text.rendering import Renderer
    from upslope.types import Prompt, ScoreEvaluation, Scorer, State

NAME = "reward_model"
"""What a reward model without a name is logged as."""
PROBE = "What is 16 + 44? Say it in two words.\n"
FLAT = 1e-6
"""A standard deviation below it is rounding: such scores are only shifted."""


# ---------------------------------------------------------------------------------------------- before the weights
def check_models(section: RewardSection) -> None:
    """What can be wrong with a reward's models without torch: their directories and config.json, and two of one name.

    Raises:
        InputError: naming the key.
    """
    for place, entry in section.models:
        where = f"{where_of(section, place)}.model"
        path = Path(str(entry.model))
        fix = "give the model folder of an upslope reward run (runs/NAME/model)"
        if not path.is_dir():
            if str(entry.model).count("/") == 1 and not str(entry.model).startswith((".", "/")) and not path.exists():
                continue  # a hub id: seen when it is read
            raise InputError(where, f"no such directory {str(entry.model)[:200]!r}", fix)
        if not (path / "config.json").is_file():
            inside = path / "model"
            near = f"give {inside}" if (inside / "config.json").is_file() else fix
            raise InputError(where, f"{path} has no config.json", near)
        try:
            config = json.loads((path / "config.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(where, f"{path}/config.json cannot be read as JSON: {str(error)[:200]}", fix) from error
        kinds = [str(kind) for kind in (config.get("architectures") if isinstance(config, dict) else None) or []]
        if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
            found = ", ".join(kinds) or "model of unknown kind"
            raise InputError(where, f"{path} is a {found}, a sequence classifier with one label was expected",
                             "train a reward model with upslope reward, and give its model folder")  # fmt: skip
    names = [_name(entry) for _, entry in section.models]
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise InputError("reward.functions", f"two reward models are called {double!r}", "give one of them a name")


def _name(entry: RewardEntry) -> str:
    return entry.name or NAME


@dataclass(frozen=True, eq=False)
class JudgeCard:
    """A reward model before its weights are read. ``renderer`` makes its texts; ``same``: as the policy's are made."""

    name: str
    where: str
    entry: RewardEntry
    card: Card
    renderer: Renderer
    same: bool


def read_judges(
    section: RewardSection, policy: Renderer, card: Card, notice: Callable[[str], None]
) -> tuple[JudgeCard, ...]:
    """The cards of a reward's models, and whether each reads the policy's tokens as they are (said where it does not).

    Raises:
        InputError: as ``models.scoring.read_classifier``, naming the key.
    """
    if not section.models:
        return ()
    from upslope.models.scoring import read_classifier
    from upslope.text.rendering import Renderer

    found = []
    for place, entry in section.models:
        where = f"{where_of(section, place)}.model"
        try:
            own, facts = read_classifier(str(entry.model), notice)
        except InputError as error:
            raise InputError(where, error.problem, error.fix) from error
        stops = tuple(facts.get("stop_ids") or own.stop_ids)
        renderer = Renderer(own.tokenizer, stops, facts.get("chat", "auto"), facts.get("system_prompt"))
        difference = _difference(policy, card, renderer)
        if difference is not None:
            notice(f"{entry.model} reads texts in another way than the policy ({difference}): completions are rendered "
                   "anew for it, from text")  # fmt: skip
        same = difference is None
        found.append(JudgeCard(_name(entry), where, entry, own, policy if same else renderer, same))
    return tuple(found)


def _difference(policy: Renderer, card: Card, other: Renderer) -> str | None:
    """In what the texts of a reward model differ from the policy's; None: the ids may be taken as they are."""
    ours, theirs = card.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    if not ours.items() <= theirs.items() or _rules(card.tokenizer) != _rules(other.tokenizer):
        return "another tokenizer"
    if policy.wraps != other.wraps or _form(policy) != _form(other):
        return "another chat template or system prompt"
    return None if policy.stop_id == other.stop_id else "another end token"


def _form(renderer: Renderer) -> list[list[int]]:
    """How a question and a short conversation come out."""
    said = [{"role": role, "content": PROBE} for role in ("user", "assistant", "user")]
    plain = renderer.wraps or renderer.system_prompt is None
    return [
        *([renderer.prompt(PROBE)] if plain else []),
        *([renderer.prompt(tuple(said))] if renderer.has_template else []),
    ]


def _rules(tokenizer: Any) -> Any:
    """How a fast tokenizer cuts text, without its padding; its class where that is not told."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return type(tokenizer).__name__
    whole = json.loads(backend.to_str())
    return {key: whole.get(key) for key in ("model", "normalizer", "pre_tokenizer")}


# ------------------------------------------------------------------------------------------------------------- judging
class Judge:
    """A frozen reward model. ``mean`` and ``std`` are those of its raw scores on the reference answers (0, 1: raw)."""

    def __init__(self, card: JudgeCard, scorer: Scorer[ScoreEvaluation], policy: Renderer) -> None:
        self.card, self.scorer, self.policy = card, scorer, policy
        self.name, self.weight = card.name, card.entry.weight
        self.mean, self.std, self.samples = 0.0, 1.0, 0
        self._seen: list[float] = []

    @property
    def where(self) -> str:
        return f"{self.card.entry.model} ({self.name})"

    def raw(self, groups: Sequence[Group]) -> tuple[list[float], list[bool]]:
        """The reward model's own scores of all completions, in order, and whether each was cut by the length limit.

        Raises:
            RewardError: a text that is longer than the reward model's context, a prompt of ids that it cannot read, or
                a score that is not finite.
        """
        from upslope.text.collation import collate_texts

        texts, units, cut, owner = [], [], [], []
        for number, group in enumerate(groups):
            prompt = self._prompt(group.prompt)
            for place, answer in enumerate(group.completions):
                ids = None if group.completion_ids is None else group.completion_ids[place]
                told, short = self._answer(answer, ids, group.messages is not None)
                texts.append([*prompt, *told])
                units.append(number)
                cut.append(short)
                owner.append(group.prompt.id)
        if not texts:
            return [], []
        longest = max(range(len(texts)), key=lambda row: len(texts[row]))
        if len(texts[longest]) > self.card.card.context:
            raise RewardError(
                f"reward {self.where}", f"prompt and completion of row {owner[longest]} take {len(texts[longest])} "
                f"tokens, it reads {self.card.card.context}", "lower sampling.max_new_tokens",
            )  # fmt: skip
        scores = self.scorer.evaluate(collate_texts(texts, units)).scores.double()
        if not bool(scores.isfinite().all()):
            row = int((~scores.isfinite()).nonzero()[0, 0])
            raise RewardError(f"reward {self.where}", f"its score of a completion of row {owner[row]} is not finite",
                              "train the reward model anew, in float32")  # fmt: skip
        return scores.tolist(), cut

    def scores(self, groups: Sequence[Group]) -> list[list[Score]]:
        """On the run's scale, group by group."""
        raw, cut = self.raw(groups)
        self._seen += raw
        penalty = self.card.entry.missing_eos_penalty or 0.0
        values = [
            (score - self.mean) / self.std - (penalty if short else 0.0) for score, short in zip(raw, cut, strict=True)
        ]
        found = iter(values)
        return [[Score(value, {self.name: value}) for value in (next(found) for _ in g.completions)] for g in groups]

    def take_metrics(self) -> dict[str, float]:
        """The mean raw score since this was last asked."""
        seen, self._seen = self._seen, []
        return {f"rewards/{self.name}/raw": fmean(seen)} if seen else {}

    def calibrate(self, groups: Sequence[Group], notice: Callable[[str], None]) -> None:
        """Take mean and standard deviation (population) of these reference answers."""
        raw, _ = self.raw(groups)
        self.mean, spread, self.samples = fmean(raw), pstdev(raw), len(raw)
        self.std = spread if spread > FLAT else 1.0
        if spread <= FLAT:
            notice(f"{self.where} gives all {len(raw)} reference answers the same score: it can teach nothing yet")

    @property
    def facts(self) -> dict[str, Any]:
        """For run.json."""
        told = {"model": self.card.entry.model, "mean": self.mean, "std": self.std, "samples": self.samples}
        return {**told, "same_tokens": self.card.same, "weights_sha256": _digest(self.card.card)}

    def state(self) -> State:
        from upslope.types import State

        return State(values={"mean": self.mean, "std": self.std, "samples": self.samples})

    def restore(self, state: State) -> None:
        self.take_scale(state.values)

    def take_scale(self, values: Any) -> None:
        """The scale that this run began with."""
        self.mean, self.std, self.samples = float(values["mean"]), float(values["std"]), int(values["samples"])

    def _prompt(self, prompt: Prompt) -> list[int]:
        content = prompt.content
        if not self.card.same and not isinstance(content, str) and content and isinstance(content[0], int):
            raise RewardError(f"reward {self.where}", f"row {prompt.id} is a prompt of token ids, and it has another "
                              "tokenizer", "give the prompts as text, or a reward model of this policy")  # fmt: skip
        return self.card.renderer.prompt(content)

    def _answer(self, text: str, ids: Sequence[int] | None, talk: bool) -> tuple[Sequence[int], bool]:
        """Ids of an answer to be scored, and whether it was cut. One that a stop string ended gets an end token.

        A conversation with tools (``talk``), of which ``text`` is the last message, is scored whole.
        """
        renderer = self.card.renderer
        ended = ids is None or (len(ids) > 0 and ids[-1] in self.policy.stop_ids)
        if talk:
            if ids is None or not self.card.same:
                problem = "it cannot read a conversation with tools, for its tokenizer or template is another"
                raise RewardError(f"reward {self.where}", problem, "give a reward model of this policy")
            return ids, not ended
        cut = not ended and self.policy.text(ids or ()) == text
        if self.card.same and ids is not None and (ended or cut):
            return ids, cut
        told = renderer.completion(text)
        return (told[:-1] if cut else told), cut


def _digest(card: Card) -> str | None:
    from upslope.models.adapter_files import fingerprint

    return fingerprint(Path(card.source)) if Path(card.source).is_dir() else None


# ---------------------------------------------------------------------------------------------- judges beside functions
@dataclass(frozen=True, eq=False)
class Jury:
    """What scores a run's completions: functions in their processes (None: there are none) and reward models here."""

    panel: RewardPanel | None
    judges: tuple[Judge, ...]

    @property
    def where(self) -> str:
        """All of them, for messages."""
        own = [] if self.panel is None else [self.panel.where]
        return ", ".join([*own, *(judge.where for judge in self.judges)])

    def take_metrics(self) -> dict[str, float]:
        """What the functions logged, and the reward models' mean raw scores, since this was last asked."""
        found = {} if self.panel is None else self.panel.take_metrics()
        return found | {name: value for judge in self.judges for name, value in judge.take_metrics().items()}


def score_all(
    reward: RewardProcess | RewardPanel | Jury, groups: Sequence[Group], on_error: OnError, step: int = 0
) -> tuple[list[list[Score] | None], list[tuple[int, str]]]:
    """Score every completion of every group by functions and reward models; see ``worlds.rewards.score_groups``.

    The reward is the weighted sum of all; a group that a function could not score stays without scores.
    """
    if not isinstance(reward, Jury):
        return score_groups(reward, groups, on_error, step)
    rows: list[list[Score] | None] = [[Score(None) for _ in group.completions] for group in groups]
    failed: list[tuple[int, str]] = []
    if reward.panel is not None:
        rows, failed = score_groups(reward.panel, groups, on_error, step)
    told = [judge.scores(groups) for judge in reward.judges]
    weights = [1.0, *(judge.weight for judge in reward.judges)]
    found: list[list[Score] | None] = []
    for index, row in enumerate(rows):
        columns = [scores[index] for scores in told]
        found.append(None if row is None else [combine(each, weights) for each in zip(row, *columns, strict=True)])
    return found, failed


def load_judge(card: JudgeCard, policy: Renderer, device: Any, dtype: Any, micro_batch_tokens: int = 4096) -> Judge:
    """The reward model of a card with its weights, raw until it is given a scale."""
    from upslope.learner.learner import FrozenScorer
    from upslope.models.scoring import load_classifier
    from upslope.types import ScoreEvaluation

    network = load_classifier(card.card, device, dtype)
    return Judge(card, FrozenScorer[ScoreEvaluation](network, micro_batch_tokens), policy)


def seat(recipe: Recipe, shop: Workshop, cards: Sequence[JudgeCard]) -> Workshop:
    """The workshop with its reward models loaded and set to their scale, which run.json keeps.

    A run that goes on takes the scale that it began with.

    Raises:
        InputError: a reward model that cannot be served, has a function's name, or other weights than the run began
            with.
    """
    from upslope.recipes.adapt import same_weights

    run, tokens = shop.run, recipe.train.micro_batch_tokens
    panel = shop.reward if isinstance(shop.reward, RewardPanel) else None
    taken = [process.name for process in panel.processes] if panel is not None else []
    before = run.folder.record().get("reward_models", {}) if run.resumed is not None else {}
    judges = []
    for card in cards:
        if card.name in taken:
            raise InputError("reward.functions", f"a function and a reward model are both called {card.name!r}",
                             "give one of them a name")  # fmt: skip
        judge = load_judge(card, shop.renderer, shop.model.device, shop.model.dtype, tokens)
        judges.append(judge)
        if card.name in before:
            same_weights(before[card.name].get("weights_sha256"), _digest(card.card), str(card.entry.model))
            judge.take_scale(before[card.name])
    waiting = [judge for judge in judges if judge.card.entry.normalize > 0 and judge.name not in before]
    if waiting:
        groups = reference_answers(shop, max(judge.card.entry.normalize for judge in waiting), recipe.seed)
        for judge in waiting:
            judge.calibrate(groups[: judge.card.entry.normalize], run.notice)
    run.folder.update(reward_models={judge.name: judge.facts for judge in judges})
    return replace(shop, reward=Jury(panel, tuple(judges)))


def reference_answers(shop: Workshop, count: int, seed: int) -> list[Group]:
    """One answer each of the policy as it is now, as it samples in training, to ``count`` training prompts (held-out
    ones where a recipe trains on none); repeated where they are fewer."""
    from upslope.recipes.rollouts import answer_text

    pool = shop.train or shop.heldout
    if not pool:
        raise InputError("reward.normalize", "there is no prompt to set a reward model's scale on", "set it to 0")
    order = permutation(seed, len(pool), "reference prompts")
    prompts = [pool[order[index % len(pool)]] for index in range(count)]
    longest = shop.sampler.context - shop.sampling.max_new_tokens
    ids = [shop.renderer.prompt(prompt.content)[-longest:] for prompt in prompts]
    shop.sampler.progress = lambda done, total: shop.run.phase(0, "reward", done, total)
    seeds = [derive(seed, "reference answer", index) for index in range(count)]
    drawn = shop.sampler.sample(ids, 1, shop.sampling, seeds)
    return [
        Group(prompt, (answer_text(shop, found[0]),), (found[0].token_ids,))
        for prompt, found in zip(prompts, drawn, strict=True)
    ]
