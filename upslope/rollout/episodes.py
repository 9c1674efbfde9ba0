"""Playing episodes: the policy's turns are sampled, the world's answers appended, until each episode has ended.

All running episodes take their next turn in one call of the sampler. Tokens are only ever appended: a turn's tokens are
those that were drawn, and what the world answers stands behind them with no log-probability and a False in the mask.
The random numbers of a turn belong to (the prompt's seed, turn, sample), so an episode does not depend on its
neighbours; the first turn's are those of a plain completion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from upslope.seeds import derive
from upslope.types import Completion, Rollout, Sampler, Sampling
from upslope.worlds.episode import Episode


@dataclass(frozen=True, slots=True)
class Played:
    """One episode after its prompt. The fields a token are as in ``types.Rollout``."""

    token_ids: tuple[int, ...]
    action_mask: tuple[bool, ...]
    logprobs: tuple[float, ...]
    rewards: tuple[float, ...]
    support: tuple[tuple[int, ...] | None, ...] | None
    terminated: bool
    turns: int
    weights_version: int

    @property
    def chosen(self) -> tuple[int, ...]:
        """The tokens that the policy chose."""
        return tuple(token for token, own in zip(self.token_ids, self.action_mask, strict=True) if own)

    def rollout(
        self, prompt_id: str, group: int, sample: int, prompt: Sequence[int], temperature: float, score: float = 0.0,
        parts: Mapping[str, float] | None = None, extra: Mapping[str, Any] | None = None,
    ) -> Rollout:  # fmt: skip
        """The episode with its prompt; ``score``, for the whole of it, is added at its last token."""
        before = len(prompt)
        return Rollout(
            prompt_id, group, sample,
            token_ids=(*prompt, *self.token_ids),
            action_mask=(False,) * before + self.action_mask,
            logprobs=(0.0,) * before + self.logprobs,
            rewards=(0.0,) * before + (*self.rewards[:-1], self.rewards[-1] + score),
            terminated=self.terminated, weights_version=self.weights_version, temperature=temperature,
            support=None if self.support is None else (None,) * before + self.support,
            parts=dict(parts or {}), extra=dict(extra or {}),
        )  # fmt: skip


@dataclass(eq=False)
class _Row:
    """A running episode. The lists are those of ``Played``."""

    episode: Episode
    prompt: Sequence[int]
    place: int
    sample: int
    token_ids: list[int] = field(default_factory=list)
    action_mask: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    support: list[tuple[int, ...] | None] = field(default_factory=list)
    turns: int = 0
    version: int = 0
    terminated: bool = False
    done: bool = False

    def take(self, said: Completion, budget: int) -> None:
        """The policy's turn, cut at the budget, and what the world does with it."""
        if self.turns and said.weights_version != self.version:
            raise RuntimeError("the weights changed within an episode")
        count = min(len(said.token_ids), budget - len(self.token_ids))
        step = self.episode.step(said.token_ids[:count])
        self._extend(said.token_ids[:count], said.logprobs[:count], said.support and said.support[:count])
        self.rewards[-1] += step.reward
        self.turns, self.version, self.terminated = self.turns + 1, said.weights_version, step.terminated
        # An answer that leaves no room for a token after it cuts the episode: the row ends with a choice.
        self.done = step.done or len(self.token_ids) + len(step.observation) >= budget
        if not self.done:
            self._extend(step.observation, None, None)

    def _extend(
        self, ids: Sequence[int], logprobs: Sequence[float] | None, support: Sequence[tuple[int, ...]] | None
    ) -> None:
        self.token_ids += ids
        self.action_mask += [logprobs is not None] * len(ids)
        self.logprobs += logprobs if logprobs is not None else [0.0] * len(ids)
        self.rewards += [0.0] * len(ids)
        self.support += support if support is not None else [None] * len(ids)

    def finished(self) -> Played:
        support = tuple(self.support) if any(ids is not None for ids in self.support) else None
        return Played(
            tuple(self.token_ids), tuple(self.action_mask), tuple(self.logprobs), tuple(self.rewards), support,
            self.terminated, self.turns, self.version,
        )  # fmt: skip


def play(
    sampler: Sampler, episodes: Sequence[Sequence[Episode]], sampling: Sampling, seeds: Sequence[int], budget: int
) -> list[list[Played]]:
    """Play groups of episodes, all of one size, to their ends.

    ``seeds[i]`` is the seed of group ``i``: its episodes are reset with it and begin alike. ``budget`` are the tokens
    that an episode may have after its prompt, answers of the world among them; a turn has at most
    ``sampling.max_new_tokens`` of them. An episode whose budget runs out is truncated.
    """
    prompts = [[list(episode.reset(seed)) for episode in group] for group, seed in zip(episodes, seeds, strict=True)]
    if any(prompt != group[0] for group in prompts for prompt in group):
        raise ValueError("episodes with one seed, which are compared with each other, must begin alike")
    rows = [
        [_Row(episode, prompts[place][0], place, sample) for sample, episode in enumerate(group)]
        for place, group in enumerate(episodes)
    ]
    opening = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, budget))
    first = sampler.sample([group[0] for group in prompts], len(episodes[0]), opening, seeds) if episodes else []
    for group, said in zip(rows, first, strict=True):
        for row, completion in zip(group, said, strict=True):
            row.take(completion, budget)
    turn = 1
    while running := [row for group in rows for row in group if not row.done]:
        most = max(budget - len(row.token_ids) for row in running)
        found = sampler.sample(
            [[*row.prompt, *row.token_ids] for row in running], 1,
            replace(sampling, max_new_tokens=min(sampling.max_new_tokens, most)),
            [derive(seeds[row.place], "turn", turn, row.sample) for row in running],
        )  # fmt: skip
        for row, (completion,) in zip(running, found, strict=True):
            row.take(completion, budget)
        turn += 1
    return [[row.finished() for row in group] for group in rows]
