"""What `upslope check` finds out about a recipe. Plain values: they are printed, and they are the ``--json`` output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from upslope.views.rendered import Segment


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that the run would bear and that looks wrong. ``where`` is the recipe key, or what it is about."""

    kind: str
    where: str
    text: str


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """``parameters`` is None where the weights' headers are not to be had; ``trained`` is what the optimizer moves."""

    name: str
    architecture: str
    parameters: int | None
    trained: int | None
    context: int
    vocabulary: int
    dtype: str
    device: str
    chat_template: bool
    stop_tokens: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens: of the shortest, the median and the longest, and of all together."""

    shortest: int
    median: int
    longest: int
    total: int

    @classmethod
    def of(cls, lengths: list[int]) -> Lengths | None:
        if not lengths:
            return None
        ordered = sorted(lengths)
        return cls(ordered[0], ordered[len(ordered) // 2], ordered[-1], sum(ordered))


@dataclass(frozen=True, slots=True)
class RowFacts:
    """``repeated`` training rows equal an earlier one in everything, ``contradicting`` have an earlier one's prompt and
    another answer; ``leaked`` held-out prompts equal a training prompt but for case and spaces. ``lost_stop`` examples
    were cut before their end token. Of many prompts and answers some are measured: ``answers_measured``, of which
    ``answers_cut`` are longer than a completion. ``own``: rows of the user's, not of a built-in task."""

    source: str
    own: bool
    train: int
    heldout: int
    evaluated: int
    repeated: int
    contradicting: int
    leaked: int
    prompt: Lengths | None
    trained: Lengths | None = None
    lost_stop: int = 0
    answers: Lengths | None = None
    answers_cut: int = 0
    answers_measured: int = 0
    answer_column: str | None = None


@dataclass(frozen=True, slots=True)
class PairFacts:
    """Preferences: ``equal`` of ``rows`` have two equal answers and were left out. Lengths are those of the training
    pairs' answers, with their end token; ``contradicting`` pairs stand the other way round too; ``joined`` rows had no
    prompt; ``margins`` of the training pairs have one."""

    equal: int
    rows: int
    chosen: Lengths | None
    rejected: Lengths | None
    chosen_longer: int
    rejected_longer: int
    contradicting: int
    joined: int
    margins: int


@dataclass(frozen=True, slots=True)
class StepFacts:
    """A training step, and the run: ``passes`` over the training rows."""

    steps: int
    prompts: int
    completions: int
    longest_completion: int
    optimizer_steps: int
    passes: float
    steps_a_pass: float


@dataclass(frozen=True, slots=True)
class Trial:
    """A completion given to the reward. ``what`` says where it is from: answer, other, made-up, or the form tried."""

    prompt_id: str
    what: str
    completion: str
    reward: float | None
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RewardFacts:
    """``seconds`` a completion; ``right`` and ``wrong`` are mean rewards of answers and of other rows' answers.

    ``form`` is the first way of writing the answer that pays more than a wrong one, where the bare answer does not.
    ``on_empty`` says what went wrong with an empty completion, ``failed`` with others whose groups the run would drop.
    ``repeatable``: a second call gave the same.
    """

    name: str
    seconds: float
    trials: tuple[Trial, ...]
    compared: int
    right: float | None
    wrong: float | None
    form: str | None
    repeatable: bool
    on_empty: str | None
    failed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bill:
    """Bytes by what they are for, the most held at once, and what there is. ``there`` None: it cannot be told."""

    parts: Mapping[str, int]
    needed: int
    there: int | None
    where: str


@dataclass(frozen=True, slots=True)
class Checkup:
    """All that was found. ``folder`` is where the run would go; ``notices`` are what the run itself would say."""

    recipe: str
    kind: str
    folder: str
    model: ModelFacts
    rows: RowFacts
    step: StepFacts
    rendered: tuple[Segment, ...]
    rendered_row: str
    reward: RewardFacts | None
    memory: Bill | None
    disk: Bill | None
    notices: tuple[str, ...]
    findings: tuple[Finding, ...] = ()
    pairs: PairFacts | None = None
    rejected: tuple[Segment, ...] = ()
    """The rejected answer to the rendered prompt, whose chosen one is in ``rendered``."""
    judges: tuple[str, ...] = ()
    """Reward models: which, and how each reads completions."""

    def json(self) -> str:
        """Everything as one JSON object; control characters are escaped."""
        return json.dumps({"ok": True, **_plain(asdict(self))}, indent=1)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
