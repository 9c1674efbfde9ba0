"""Everything that can be said after a prompt of the text gridworld, as one tree: the exact answers for any policy.

A node is a text after which a choice is made; the root is the prompt. The policy network may look at the whole text,
so the truth lives on texts, not on cells. What ends a walk is a leaf. The stop token that follows a finished walk is
forced (probability 1), so it is no node and adds nothing to a log-probability.

With choices a of probability pi(a|h), rewards r(h, a) and next texts ha, in float64 and undiscounted:

    Q(h, a) = r(h, a) + V(ha)          V(h) = sum_a pi(a|h) Q(h, a)        J = V(root)        A = Q - V
    d(ha) = d(h) pi(a|h), d(root) = 1                                      V = 0 beyond a leaf

``V`` counts what is still to come. A recipe's reward is the whole walk's score at its end, so its critic learns
``so_far + V``; advantages are the same in both conventions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from upslope.maths.numeric import promoted
from upslope.worlds.text_walks import Rules


@dataclass(frozen=True, slots=True, eq=False)
class PrefixTree:
    """The nodes after one prompt, in order of depth; ``choices`` are the most tokens that a node allows.

    ``token_ids`` are the prompt and then the last token of node 1, 2, ...: one sequence for one forward pass, in which
    a token ``seen`` by another belongs to its text, with ``position_ids`` as if each text stood alone. The hidden state
    of node i is at ``prompt_length - 1 + i``. ``support`` [nodes, choices] lists the allowed ids in ascending order,
    padded with -1; ``child`` the node that a choice leads to (-1: it ends the walk); ``reward`` its points.
    ``so_far`` are the points collected before the node, ``best`` V* of its cell and the moves left.
    """

    prompt_length: int
    token_ids: Int[Tensor, " tokens"]
    position_ids: Int[Tensor, " tokens"]
    seen: Bool[Tensor, "tokens tokens"]
    depth: Int[Tensor, " nodes"]
    state: Int[Tensor, " nodes"]
    parent: Int[Tensor, " nodes"]
    support: Int[Tensor, "nodes choices"]
    child: Int[Tensor, "nodes choices"]
    reward: Float[Tensor, "nodes choices"]
    so_far: Float[Tensor, " nodes"]
    best: Float[Tensor, " nodes"]
    levels: tuple[int, ...]
    """Number of nodes of each depth."""
    stop_id: int

    def __len__(self) -> int:
        return len(self.depth)

    @property
    def legal(self) -> Bool[Tensor, "nodes choices"]:
        """Where ``support`` holds a token."""
        return self.support >= 0

    @property
    def leaves(self) -> tuple[Int[Tensor, " leaves"], Int[Tensor, " leaves"]]:
        """(node, choice) of every way to end, in order of the nodes."""
        node, choice = (self.legal & (self.child < 0)).nonzero(as_tuple=True)
        return node, choice

    @property
    def leaf_scores(self) -> Float[Tensor, " leaves"]:
        """Points of the whole walk, a leaf."""
        node, choice = self.leaves
        return self.so_far[node] + self.reward[node, choice]

    def path(self, node: int) -> list[int]:
        """The tokens after the prompt that lead to ``node``."""
        tokens: list[int] = []
        while node > 0:
            tokens.append(int(self.token_ids[self.prompt_length - 1 + node]))
            node = int(self.parent[node])
        return tokens[::-1]

    def leaf_tokens(self) -> list[tuple[int, ...]]:
        """The completion of every leaf, its stop token included, in the order of ``leaves``."""
        paths = [self.path(node) for node in range(len(self))]
        found = []
        for node, choice in zip(*(places.tolist() for places in self.leaves), strict=True):
            last = int(self.support[node, choice])
            found.append((*paths[node], last, *(() if last == self.stop_id else (self.stop_id,))))
        return found


def grow(
    rules: Rules, start: int, prompt_ids: Sequence[int], move_ids: Sequence[int], stop_id: int,
    vocabulary: Sequence[int] = (),
) -> PrefixTree:  # fmt: skip
    """The tree of a walk that begins in ``start``. ``move_ids`` are the tokens of ``MOVES``.

    ``vocabulary`` (empty: the legal moves alone) are the tokens that may be said at any time; each that is no legal
    move is a leaf with the rules' penalty.
    """
    table = rules.optimal_values()
    depth, state, parent, token, so_far = [0], [start], [-1], [-1], [0.0]
    rows: list[list[tuple[int, int, float]]] = []  # (token, child, reward) of each choice
    levels = [1]
    first = 0
    while first < len(depth):  # one depth a round
        end = len(depth)
        for node in range(first, end):
            here, moves = state[node], depth[node]
            penalty = rules.penalty(moves)
            legal = {move_ids[move]: move for move in rules.legal(here)}
            choices: list[tuple[int, int, float]] = []
            for said in sorted(set(vocabulary) | set(legal)):
                there = rules.following[here][legal[said]] if said in legal else None
                if there is None:
                    choices.append((said, -1, penalty))
                    continue
                reward = rules.rewards[here][legal[said]]
                if rules.ends(there, moves + 1):
                    choices.append((said, -1, reward))
                    continue
                choices.append((said, len(depth), reward))
                for numbers, number in zip((depth, state, parent, token), (moves + 1, there, node, said), strict=True):
                    numbers.append(number)
                so_far.append(so_far[node] + reward)
            rows.append(choices)
        first = end
        if len(depth) > end:
            levels.append(len(depth) - end)
    width = max(map(len, rows))
    padded = [row + [(-1, -1, 0.0)] * (width - len(row)) for row in rows]
    length = len(prompt_ids)
    total = length - 1 + len(depth)
    seen = torch.ones(total, total, dtype=torch.bool).tril()
    seen[length:, length:] = False
    for node in range(1, len(depth)):
        place = length - 1 + node
        if parent[node] > 0:
            seen[place] = seen[length - 1 + parent[node]]
        seen[place, place] = True
    return PrefixTree(
        prompt_length=length,
        token_ids=torch.tensor([*prompt_ids, *token[1:]]),
        position_ids=torch.tensor([*range(length), *(length - 1 + deep for deep in depth[1:])]),
        seen=seen,
        depth=torch.tensor(depth),
        state=torch.tensor(state),
        parent=torch.tensor(parent),
        support=torch.tensor([[choice[0] for choice in row] for row in padded]),
        child=torch.tensor([[choice[1] for choice in row] for row in padded]),
        reward=torch.tensor([[choice[2] for choice in row] for row in padded], dtype=torch.float64),
        so_far=torch.tensor(so_far, dtype=torch.float64),
        best=torch.tensor(
            [table[rules.horizon - d][s] for d, s in zip(depth, state, strict=True)], dtype=torch.float64
        ),
        levels=tuple(levels),
        stop_id=stop_id,
    )


# ---------------------------------------------------------------------------------------------------------- the answers
@dataclass(frozen=True, slots=True, eq=False)
class Exact:
    """The answers for one policy; see the top of this file. What belongs to choices is 0 in padding."""

    probabilities: Float[Tensor, "nodes choices"]
    values: Float[Tensor, " nodes"]
    action_values: Float[Tensor, "nodes choices"]
    advantages: Float[Tensor, "nodes choices"]
    occupancy: Float[Tensor, " nodes"]
    leaf_probabilities: Float[Tensor, " leaves"]

    @property
    def expected_return(self) -> Float[Tensor, ""]:
        """J, the value of the root."""
        return self.values[0]


def exact(tree: PrefixTree, logprobs: Float[Tensor, "nodes choices"]) -> Exact:
    """V, Q, J, A and the occupancy of the policy with these log-probabilities, in float64.

    Differentiable: autograd of ``expected_return`` is the exact policy gradient.
    """
    probability = _probabilities(tree, logprobs)
    q, v = _backward(tree, lambda q, at: (probability[at] * q).sum(1))
    node, choice = tree.leaves
    occupancy = _occupancy(tree, probability)
    advantages = torch.where(tree.legal, q - v[:, None], 0.0)
    return Exact(probability, v, q, advantages, occupancy, occupancy[node] * probability[node, choice])


def regularised_return(
    tree: PrefixTree, logprobs: Float[Tensor, "nodes choices"], reference: Float[Tensor, "nodes choices"], beta: float
) -> Float[Tensor, ""]:
    """J_beta = J - beta KL(pi || ref), the KL over whole texts."""
    return exact(tree, logprobs).expected_return - beta * sequence_kl(tree, logprobs, reference)


def sequence_kl(
    tree: PrefixTree, p: Float[Tensor, "nodes choices"], q: Float[Tensor, "nodes choices"]
) -> Float[Tensor, ""]:
    """KL(p || q) of whole texts in nats: sum over nodes of the occupancy under p times the KL of the choice there."""
    probability = _probabilities(tree, p)
    gap = torch.where(probability > 0, p.to(probability.dtype) - q.to(probability.dtype), 0.0)
    return (_occupancy(tree, probability) * (probability * gap).sum(1)).sum()


@dataclass(frozen=True, slots=True, eq=False)
class SoftOptimum:
    """The best policy under a KL penalty: its ``values`` V_beta and its log-probabilities (-inf in padding)."""

    values: Float[Tensor, " nodes"]
    logprobs: Float[Tensor, "nodes choices"]

    @property
    def expected_return(self) -> Float[Tensor, ""]:
        """J*_beta."""
        return self.values[0]


def soft_optimum(tree: PrefixTree, reference: Float[Tensor, "nodes choices"], beta: float) -> SoftOptimum:
    """The policy that maximises J - beta KL(pi || ref), by soft backward recursion:

    V_beta(h) = beta log sum_a ref(a|h) exp(Q_beta(h, a) / beta),    pi*(a|h) = ref(a|h) exp((Q_beta - V_beta) / beta).

    For every policy, J*_beta - J_beta(pi) = beta KL(pi || pi*).
    """
    if not beta > 0:
        raise ValueError(f"beta is {beta}; it must be above 0")
    wide = reference.to(torch.float64).masked_fill(~tree.legal, -torch.inf)
    q, v = _backward(tree, lambda q, at: beta * (wide[at] + q / beta).logsumexp(1))
    return SoftOptimum(v, wide + (q - v[:, None]) / beta)


def _probabilities(tree: PrefixTree, logprobs: Tensor) -> Tensor:
    # where before exp: the gradient of padding (-inf) would be NaN.
    return promoted(torch.where(tree.legal, logprobs, 0.0)).to(torch.float64).exp() * tree.legal


def _backward(tree: PrefixTree, value: Callable[[Tensor, slice], Tensor]) -> tuple[Tensor, Tensor]:
    """Q [nodes, choices] and V [nodes], from the deepest nodes up; ``value(Q of some nodes, which)`` is their V."""
    end = len(tree)
    qs: list[Tensor] = []
    vs: list[Tensor] = []
    for size in reversed(tree.levels):
        at = slice(end - size, end)
        q = tree.reward[at]
        if vs:  # the children are the next level's nodes
            inner = tree.child[at] >= 0
            q = q + torch.where(inner, vs[-1][(tree.child[at] - end).clamp(min=0)], 0.0)
        qs.append(q)
        vs.append(value(q, at))
        end -= size
    return torch.cat(qs[::-1]), torch.cat(vs[::-1])


def _occupancy(tree: PrefixTree, probability: Tensor) -> Tensor:
    """[nodes]: the probability of passing through each node."""
    node, choice = (tree.child >= 0).nonzero(as_tuple=True)  # in order of the children: node 1, 2, ...
    arriving = probability[node, choice]
    parts = [probability.new_ones(1)]
    begin, above = 0, 0
    for size in tree.levels[1:]:
        step = slice(begin, begin + size)
        parts.append(parts[-1][node[step] - above] * arriving[step])
        above += len(parts[-2])
        begin += size
    return torch.cat(parts)
