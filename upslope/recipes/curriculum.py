"""Prompts that get harder: those of one level at a time, the next once the running reward is high enough."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from upslope.errors import InputError
from upslope.worlds.reasoning import Climb

if TYPE_CHECKING:
    from upslope.types import Prompt, State


class Curriculum:
    """The training prompts of a run whose task has levels: to its readers a sequence, that of the present level.

    A step's mean reward counts for the level at which its prompts were drawn. Once ``climb.after`` steps at a level
    have a mean of at least ``climb.at``, the next step draws from the next level; the last one stays. All of it
    depends on the rewards alone and is kept in checkpoints, so a resumed run climbs as it would have.

    Raises:
        InputError: a level has fewer prompts than a step takes (``count``).
    """

    def __init__(self, prompts: Sequence[Prompt], climb: Climb, count: int) -> None:
        self.climb, self.place = climb, 0
        self.recent: list[float] = []
        self._levels = [[prompt for prompt in prompts if prompt.columns["level"] == level] for level in climb.levels]
        short = next((place for place, level in enumerate(self._levels) if len(level) < count), None)
        if short is not None:
            problem = f"a step takes {count} prompts, level {climb.levels[short]} has {len(self._levels[short])}"
            raise InputError("train.prompts", problem, "lower train.prompts, or raise data.options.size")

    @property
    def level(self) -> int:
        """The level of the prompts that are drawn now."""
        return self.climb.levels[self.place]

    def __len__(self) -> int:
        return len(self._levels[self.place])

    def __getitem__(self, index: Any) -> Any:
        return self._levels[self.place][index]

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self._levels[self.place])

    def hear(self, rewards: Sequence[float]) -> dict[str, float]:
        """Take the rewards of a training step into account. Metrics: the level that they were of, the running mean."""
        level = self.level
        self.recent = [*self.recent, fmean(rewards)][-self.climb.after :]
        running = fmean(self.recent)
        if len(self.recent) == self.climb.after and running >= self.climb.at and self.place + 1 < len(self._levels):
            self.place, self.recent = self.place + 1, []
        return {"curriculum/level": float(level), "curriculum/reward": running}

    def state(self) -> State:
        from upslope.types import State

        return State(values={"place": self.place, "recent": list(self.recent)})

    def restore(self, state: State) -> None:
        place, recent = state.values["place"], state.values["recent"]
        self.place, self.recent = int(place), [float(value) for value in recent]  # type: ignore[arg-type, union-attr]


Sequence.register(Curriculum)
