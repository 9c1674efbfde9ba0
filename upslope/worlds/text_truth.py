"""The exact numbers along walks of the text gridworld, for the log: what an estimate of the advantage should have said.

For each choice of a text, under the policy that made it (``prefix_tree.exact``):

    true_advantages    A^pi(h, a) = Q^pi(h, a) - V^pi(h), in points
    true_values        points so far + V^pi(h): the mean score of the whole walk, which is what a critic learns
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from upslope.types import Truth
from upslope.worlds.prefix_tree import PrefixTree, exact
from upslope.worlds.text_walks import Rules

MOST_NODES = 1000
"""Larger trees are left alone: memory and time of the forward pass grow with the square of the nodes."""


def count_nodes(rules: Rules, start: int) -> int:
    """Nodes of the prefix tree of walks from ``start``, without growing it."""
    found, reached = 0, {start: 1}
    for moves in range(rules.horizon):
        found += sum(reached.values())
        later: dict[int, int] = {}
        for state, texts in reached.items():
            for there in rules.following[state]:
                if there is not None and not rules.ends(there, moves + 1):
                    later[there] = later.get(there, 0) + texts
        reached = later
    return found


def truth_of(
    rules: Rules, states: Mapping[Any, int], starts: Mapping[tuple[int, ...], Any], grow: Callable[[Any], PrefixTree]
) -> Truth:
    """The hook ``Solved.truth``: ``starts`` are the start cells by their prompts' ids, ``grow`` makes a cell's tree.

    Trees are kept. Of an unknown prompt, and of one whose tree has more than ``MOST_NODES`` nodes, nothing is told.
    """
    trees: dict[tuple[int, ...], PrefixTree | None] = {}

    def truth(
        prompt: Sequence[int], completions: Sequence[Sequence[int]], logprobs: Callable[[Any], Tensor]
    ) -> list[dict[str, list[float | None]]]:
        key = tuple(prompt)
        if key not in trees:
            known = key in starts and count_nodes(rules, states[starts[key]]) <= MOST_NODES
            trees[key] = grow(starts[key]) if known else None
        tree = trees[key]
        if tree is None:
            return [{} for _ in completions]
        with torch.no_grad():
            found = exact(tree, logprobs(tree).cpu())
        tables = [table.tolist() for table in (tree.support, tree.child, found.advantages, tree.so_far + found.values)]
        return [_along(tokens, *tables) for tokens in completions]

    return truth


def _along(
    tokens: Sequence[int],
    support: list[list[int]],
    child: list[list[int]],
    advantages: list[list[float]],
    values: list[float],
) -> dict[str, list[float | None]]:
    """The numbers at each token; None for the stop token that is forced after the walk's end."""
    gains: list[float | None] = []
    means: list[float | None] = []
    node = 0
    for token in tokens:
        if node < 0:
            gains.append(None)
            means.append(None)
            continue
        choice = support[node].index(token)
        gains.append(advantages[node][choice])
        means.append(values[node])
        node = child[node][choice]
    return {"true_advantages": gains, "true_values": means}
