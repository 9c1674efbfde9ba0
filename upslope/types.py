"""What travels between the rooms: frozen dataclasses and narrow protocols.

Alphabet of shapes: ``batch`` rows, ``length`` tokens of the longest row, ``time`` = length - 1 target positions (target
``t`` is ``token_ids[:, t + 1]``), ``choices`` allowed tokens at a position, ``prompts`` x ``group`` completions,
``vocab``. Log-probabilities are in nats. Rows are padded on the right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Message: TypeAlias = Mapping[str, Any]
"""One chat message: ``{"role": "user" | "assistant" | "system", "content": str}``."""

Content: TypeAlias = str | tuple[Message, ...] | tuple[int, ...]
"""Plain text, a conversation, or token ids that need no rendering."""


# ---------------------------------------------------------------------------------------------- prompts and completions
@dataclass(frozen=True, slots=True)
class Prompt:
    """One task instance. The policy sees ``content``; only the reward function sees ``columns``."""

    id: str
    content: Content
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Example:
    """One supervised row: text to condition on and text to be trained on.

    ``messages`` rows have their conversation in ``prompt`` and ``completion=None``: every assistant turn is trained on.
    """

    id: str
    prompt: Content
    completion: str | None


@dataclass(frozen=True, slots=True)
class Encoded:
    """A rendered training row. ``trainable[i]`` says whether the model is trained to emit ``token_ids[i]``."""

    id: str
    token_ids: tuple[int, ...]
    trainable: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """One preference: of two answers to ``prompt`` the ``chosen`` one is better, by at least ``margin`` in units of
    score.

    ``joined``: the row held prompt and answer as one plain text, so the prompt is no question of its own.
    """

    id: str
    prompt: Content
    chosen: str
    rejected: str
    margin: float = 0.0
    columns: Mapping[str, Any] = field(default_factory=dict)
    joined: bool = False


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A rendered preference: both answers behind the same prompt."""

    id: str
    chosen: Encoded
    rejected: Encoded
    margin: float = 0.0


Allowed: TypeAlias = Sequence[int] | Callable[[Sequence[int], Sequence[int]], Sequence[int]]
"""Token ids that may be sampled, or a function ``(prompt_ids, ids_so_far) -> token ids``."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are drawn. ``temperature=0`` is greedy; ``top_k=0`` and ``top_p=1`` switch those filters off."""

    max_new_tokens: int
    stop_ids: tuple[int, ...]
    temperature: float = 1.0
    stop_strings: tuple[str, ...] = ()
    allowed: Allowed | None = None
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer.

    ``token_ids`` includes the stop token, whose choice is an action like any other. ``logprobs[t]`` is the
    log-probability in nats of ``token_ids[t]`` under the distribution that was actually sampled from. ``support[t]``
    are the ids allowed at position ``t`` (``None``: the whole vocabulary at every position). ``stopped`` is False
    when the length ran out.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool
    weights_version: int
    support: tuple[tuple[int, ...], ...] | None = None


@dataclass(frozen=True, slots=True)
class Rollout:
    """One episode as one growing token sequence. Tokens are appended, never edited or tokenised again.

    ``action_mask[i]`` is True where the policy chose ``token_ids[i]``; ``logprobs`` and ``rewards`` are 0 elsewhere.
    ``terminated`` is True for a true end (a stop token, a stop string, a game's end), False when the length ran out,
    so that the value after the last token is still worth something. ``parts`` are the rewards by name and ``extra``
    what the reward function noted for the row, for the log.
    """

    prompt_id: str
    group: int
    sample: int
    token_ids: tuple[int, ...]
    action_mask: tuple[bool, ...]
    logprobs: tuple[float, ...]
    rewards: tuple[float, ...]
    terminated: bool
    weights_version: int
    temperature: float = 1.0
    support: tuple[tuple[int, ...] | None, ...] | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """Sum of the episode's rewards."""
        return float(sum(self.rewards))

    @property
    def completion_length(self) -> int:
        """Number of tokens that the policy chose."""
        return sum(self.action_mask)


# ----------------------------------------------------------------------------------------------------- batches, targets
R = TypeVar("R", bound="Rows")


def _take(value: Any, rows: Sequence[int] | Tensor) -> Any:
    if isinstance(value, Tensor) and value.ndim > 0:
        index = rows if isinstance(rows, Tensor) else torch.tensor(list(rows), dtype=torch.long)
        return value[index.to(value.device)]
    return value


class Rows:
    """Base of batch-first dataclasses: ``take`` selects rows of every tensor field."""

    __slots__ = ()

    def take(self: R, rows: Sequence[int] | Tensor) -> R:
        return type(self)(**{item.name: _take(getattr(self, item.name), rows) for item in fields(self)})  # type: ignore[arg-type]

    def to(self: R, device: Any) -> R:
        moved = {item.name: getattr(self, item.name) for item in fields(self)}  # type: ignore[arg-type]
        return type(self)(
            **{name: value.to(device) if isinstance(value, Tensor) else value for name, value in moved.items()}
        )


@dataclass(frozen=True, slots=True)
class Batch(Rows):
    """Rows of token ids, padded on the right and shifted once, here.

    ``mask[b, t]`` is True where target ``t`` (= ``token_ids[b, t + 1]``) is a token that the policy chose or is
    trained on. ``support[b, t]`` lists the ids among which it was chosen, padded with -1; a position whose ids are
    all -1 had the whole vocabulary. ``unit`` is equal for rows that belong together (a pair, a group); such rows are
    never put into different micro-batches. ``temperature`` is the one that the rows were sampled at.
    """

    token_ids: Int[Tensor, "batch length"]
    lengths: Int[Tensor, " batch"]
    mask: Bool[Tensor, "batch time"]
    unit: Int[Tensor, " batch"]
    temperature: float = 1.0
    support: Int[Tensor, "batch time choices"] | None = None

    def __len__(self) -> int:
        return int(self.token_ids.shape[0])

    @property
    def targets(self) -> Int[Tensor, "batch time"]:
        return self.token_ids[:, 1:]


@dataclass(frozen=True, slots=True)
class PolicyEvaluation(Rows):
    """Log-probability of each target and entropy of its distribution, in nats; 0 where ``Batch.mask`` is False."""

    logprobs: Float[Tensor, "batch time"]
    entropy: Float[Tensor, "batch time"]


@dataclass(frozen=True, slots=True)
class ValueEvaluation(Rows):
    """``values[b, t]`` is V of the text before target ``t`` (tokens 0..t); ``last_value[b]`` is V after the row's
    last token."""

    values: Float[Tensor, "batch time"]
    last_value: Float[Tensor, " batch"]


@dataclass(frozen=True, slots=True)
class ScoreEvaluation(Rows):
    """``scores[b]`` is what a reward model gives the whole row ``b``, read at its last token."""

    scores: Float[Tensor, " batch"]


# ---------------------------------------------------------------------------------------------------------------- doors
JSON: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class State:
    """What a checkpoint keeps of one part: tensors (stored as safetensors) and plain values (stored as JSON)."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    values: Mapping[str, JSON] = field(default_factory=dict)


@runtime_checkable
class Stateful(Protocol):
    """A part of a run that a checkpoint saves and restores, bit for bit."""

    def state(self) -> State: ...

    def restore(self, state: State) -> None: ...


@runtime_checkable
class Sampler(Protocol):
    """Draws completions. ``seeds[i]`` is the seed of prompt ``i``; sample and position derive from it."""

    version: int

    def sample(
        self, prompts: Sequence[Sequence[int]], samples: int, sampling: Sampling, seeds: Sequence[int]
    ) -> list[list[Completion]]: ...

    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None: ...


E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)
T = TypeVar("T", bound=Rows)

Loss: TypeAlias = Callable[[E, T], tuple[Tensor, dict[str, Tensor]]]
"""``loss(evaluation, targets) -> ([batch, time] per-token loss, metrics of the same shape)``; the learner alone
reduces."""


@runtime_checkable
class Scorer(Protocol[E_co]):
    """A network that only evaluates: a frozen reference, a reward model. No gradient, dropout off."""

    def evaluate(self, batch: Batch) -> E_co: ...


class Task(Protocol):
    """Single-turn task: prompts of a split (``train``, ``heldout``) and a reward function with TRL's signature."""

    @property
    def name(self) -> str: ...

    def prompts(self, split: str) -> Sequence[Prompt]: ...

    def reward(self, prompts: list[Any], completions: list[Any], **columns: list[Any]) -> list[float | None]: ...


@runtime_checkable
class Rendering(Protocol):
    """Texts as token ids, for a task that needs to know them (``text.rendering.Renderer``). ``completion`` ends with
    ``stop_id``."""

    tokenizer: Any
    stop_id: int

    def prompt(self, content: Content) -> list[int]: ...

    def completion(self, text: str) -> list[int]: ...


@runtime_checkable
class Confined(Protocol):
    """A task that also says which tokens a completion may hold, and how many: ``longest``, the stop token included.

    Where ``allowed`` leaves only the stop token at every end, each completion stops: none is ever cut.
    """

    longest: int

    def allowed(self, renderer: Rendering) -> Allowed: ...


Truth: TypeAlias = Callable[
    [Sequence[int], Sequence[Sequence[int]], Callable[[Any], Tensor]], list[dict[str, list[float | None]]]
]
"""``truth(prompt_ids, completions, logprobs)``: exact numbers of the policy for the tokens of each completion, by name.

``logprobs(tree)`` gives the policy's log-probabilities on all texts after the prompt, in nats. None stands where there
was no choice; a completion of which nothing is known has no names.
"""


@runtime_checkable
class Solved(Protocol):
    """A task so small that the exact values of any policy can be known, for the log of its rollouts."""

    def truth(self, renderer: Rendering) -> Truth: ...


# --------------------------------------------------------------------------------------- what training on a grid leaves
@dataclass(frozen=True, slots=True)
class GridTruth:
    """Where a policy and a critic stand against the exact solution of their world. All in points.

    ``optimal_return`` is J*, ``expected_return`` J(pi), both means over the start cells; ``value_gap`` is the largest
    V*(s) - V^pi(s) over the states that do not end; ``optimal_share`` the share of start cells from which the greedy
    policy (the likeliest move) earns V*; ``critic_rmse`` the root mean square of V_phi - V^pi over those states and
    ``critic_worst`` its largest absolute value, None without a critic. Infinite where the policy may never end.
    """

    optimal_return: float
    expected_return: float
    value_gap: float
    optimal_share: float
    critic_rmse: float | None
    critic_worst: float | None

    @property
    def gap(self) -> float:
        """J* - J(pi)."""
        return self.optimal_return - self.expected_return


@dataclass(frozen=True, slots=True)
class GridMove:
    """One move of a recorded walk, for the microscope. Values in points, log-probabilities in nats.

    ``value`` is the prediction at the departing state when the walk was made, ``outcome`` the discounted
    reward-to-go that followed, ``gain`` the advantage the update used. ``ratio`` is pi_new / pi_old of the move after
    the update, ``clipped`` whether the clip removed its gradient there. None where the algorithm has no such number.
    """

    state: int
    action: int
    reward: float
    next_state: int
    value: float | None
    outcome: float
    gain: float | None
    ratio: float | None
    clipped: bool | None


@dataclass(frozen=True, slots=True, eq=False)
class GridSnapshot:
    """A point of a training run on a grid, after ``iteration`` updates (0: before the first).

    ``policy`` [states, actions] is the policy that acts, ``values`` [states] what the learner predicts (None: it has no
    critic), ``walk`` one walk of the batch, ``ratios`` and ``gains`` [moves] a sample of the batch at the iteration's
    end, for the clipping picture; empty where the algorithm has none.
    """

    iteration: int
    moves: int
    policy: Float[Tensor, "states actions"]
    values: Float[Tensor, " states"] | None
    truth: GridTruth
    walk: tuple[GridMove, ...]
    ratios: Float[Tensor, " moves"]
    gains: Float[Tensor, " moves"]


@dataclass(frozen=True, slots=True, eq=False)
class GridPortrait:
    """One state's way through both networks at the end of a training: the encoded ``state``, what each hidden layer
    answers to it, and what comes out: its value in points, and a probability for each action."""

    state: int
    inputs: Float[Tensor, " features"]
    value_layers: tuple[Tensor, ...]
    value: float
    policy_layers: tuple[Tensor, ...]
    probabilities: Float[Tensor, " actions"]


@dataclass(frozen=True, slots=True, eq=False)
class GridTraining:
    """A finished run of ``algorithm`` on a grid: its settings, its snapshots in order, and the exact answers.

    ``visits`` [states] counts how often training stood in each state; ``seconds`` is wall time without the exact
    measurements, ``portrait`` one state in both networks (None: the learner has not both).
    """

    algorithm: str
    seed: int
    discount: float
    clip: float | None
    settings: Mapping[str, Any]
    snapshots: tuple[GridSnapshot, ...]
    visits: Int[Tensor, " states"]
    seconds: float
    portrait: GridPortrait | None = None

    @property
    def last(self) -> GridSnapshot:
        return self.snapshots[-1]
