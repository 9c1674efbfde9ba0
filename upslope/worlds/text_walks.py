"""Walks on a grid as words: the rules of the text gridworld, without torch, for the reward's process too.

A text is one word a move: ``U``, ``R``, ``D`` or ``L``. The walk ends on a terminal cell or after ``horizon`` moves;
both are true ends, nothing is worth anything beyond them. A text that ends before, or says something that is no legal
move, ends the walk with a penalty that no way of walking on is as bad as, so that ending early never pays.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

MOVES = ("U", "R", "D", "L")
"""Words of the moves 0 to 3, clockwise."""
MARGIN = 3.0
"""By so many points at least is an early end worse than any walk that goes on."""


@dataclass(frozen=True, slots=True)
class Rules:
    """A deterministic grid with a cap of ``horizon`` moves.

    ``following[state][move]`` is the next state (None: no such move), ``rewards[state][move]`` minus its cost plus the
    points of a terminal that it enters; both are empty for terminal states. In points, undiscounted.
    """

    following: tuple[tuple[int | None, ...], ...]
    rewards: tuple[tuple[float, ...], ...]
    terminal: tuple[bool, ...]
    horizon: int

    def legal(self, state: int) -> list[int]:
        """The moves that exist in ``state``; none in a terminal one."""
        return [move for move, there in enumerate(self.following[state]) if there is not None]

    def ends(self, state: int, moves: int) -> bool:
        """Whether a walk is over that is in ``state`` after ``moves`` moves."""
        return self.terminal[state] or moves >= self.horizon

    def penalty(self, moves: int) -> float:
        """Reward (negative) of ending the text after ``moves`` moves, before the walk is over.

        With n moves left, the dearest move c into a free cell and the worst reward e of entering a terminal:
        ``min(n c, (n - 1) c + e) - MARGIN``. A walk that goes on earns at least ``MARGIN`` points more.
        """
        left, dearest, entering = self.horizon - moves, 0.0, 0.0
        for nexts, rewards in zip(self.following, self.rewards, strict=True):
            for there, reward in zip(nexts, rewards, strict=True):
                if there is not None and self.terminal[there]:
                    entering = min(entering, reward)
                elif there is not None:
                    dearest = min(dearest, reward)
        return min(left * dearest, (left - 1) * dearest + entering) - MARGIN

    def score(self, start: int, words: Sequence[str]) -> float:
        """Points of a text: the rewards of its moves, and the penalty where it ends early or is illegal.

        What follows the end of the walk does not count.
        """
        state, total, moves = start, 0.0, 0
        while not self.ends(state, moves):
            move = MOVES.index(words[moves]) if moves < len(words) and words[moves] in MOVES else None
            there = None if move is None else self.following[state][move]
            if move is None or there is None:
                return total + self.penalty(moves)
            total += self.rewards[state][move]
            state, moves = there, moves + 1
        return total

    def optimal_values(self) -> list[list[float]]:
        """``[left][state]``: the most points that ``left`` more moves can earn from ``state``.

        V*(s, n) = max over legal moves a of r(s, a) + V*(s', n - 1); 0 in terminal states and for n = 0.
        """
        table = [[0.0] * len(self.terminal)]
        for _ in range(self.horizon):
            table.append([max(self._gains(state, table[-1]), default=0.0) for state in range(len(self.terminal))])
        return table

    def best_moves(self, state: int, left: int, table: Sequence[Sequence[float]]) -> list[int]:
        """The legal moves whose value is that of the best one; ``table`` is ``optimal_values()``."""
        gains = self._gains(state, table[left - 1])
        return [move for move, gain in zip(self.legal(state), gains, strict=True) if gain == max(gains)]

    def _gains(self, state: int, later: Sequence[float]) -> list[float]:
        nexts = self.following[state]
        return [self.rewards[state][move] + later[there] for move, there in enumerate(nexts) if there is not None]

    def to_json(self) -> str:
        """One line that ``from_json`` reads."""
        return json.dumps(asdict(self), separators=(",", ":"))


@lru_cache(maxsize=64)
def from_json(text: str) -> Rules:
    """The rules that ``Rules.to_json`` wrote."""
    found = json.loads(text)
    return Rules(
        tuple(map(tuple, found["following"])), tuple(map(tuple, found["rewards"])), tuple(found["terminal"]),
        int(found["horizon"]),
    )  # fmt: skip


def score(
    prompts: list[Any], completions: list[Any], start: list[int], rules: list[str], **columns: list[Any]
) -> list[float | None]:
    """The reward of the task ``text-grid``: the points of each walk, as one number at its end.

    So a critic learns E[score | text so far] = (points so far) + V^pi(text so far).
    """
    return [
        from_json(line).score(first, _text(found).split())
        for found, first, line in zip(completions, start, rules, strict=True)
    ]


def _text(completion: Any) -> str:
    """A completion's text; of a conversational one the last message's."""
    return completion if isinstance(completion, str) else completion[-1]["content"]
