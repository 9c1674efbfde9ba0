"""The door of worlds that answer: several turns, or a reward at each step. One object an episode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Step:
    """What a world does with a turn of the policy.

    ``observation`` are the token ids that follow the turn and that the policy did not choose; the next turn is sampled
    after them. ``reward`` is for this turn. ``terminated``: a true end, nothing more is to come. ``truncated``: a limit
    ended it, so what was still to come is worth something. After either there is no observation.
    """

    observation: tuple[int, ...] = ()
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False

    @property
    def done(self) -> bool:
        return self.terminated or self.truncated


@runtime_checkable
class Episode(Protocol):
    """A world for one episode. Both methods depend on nothing but the seed and the turns so far."""

    def reset(self, seed: int) -> Sequence[int]:
        """The prompt's token ids. Episodes with the same seed, which are compared with each other, begin alike."""
        ...

    def step(self, token_ids: Sequence[int]) -> Step:
        """Take the policy's turn, its stop token included where it has one."""
        ...
