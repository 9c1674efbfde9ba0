"""The ground that algorithms are held against: tiny nets in float64, and every text that they can say.

Two prompts of different length, each with its whole prefix tree (``worlds.prefix_tree``). All texts are rows of one
batch with the weights p(text), so that the learner's gradient is the *expected* gradient of a recipe's loss, without
sampling. The truth beside it is autograd of the tree's exact return.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from upslope.learner.learner import FrozenScorer, Learner
from upslope.learner.optimizer import OptimizerSettings
from upslope.models import attention, tiny
from upslope.models.networks import PolicyNetwork
from upslope.models.tree import tree_logprobs
from upslope.recipes.rollouts import Harvest
from upslope.text.collation import collate_rollouts
from upslope.text.rendering import Renderer
from upslope.types import Batch, PolicyEvaluation, Rollout, Rows, ValueEvaluation
from upslope.worlds.prefix_tree import Exact, PrefixTree, exact
from upslope.worlds.text_gridworld import TextGrid

SMALL = "S . +5\n. # +2\nS . ."
BUDGET = 4096
Path = list[tuple[int, int]]
"""(node, choice) of every choice of a text."""


def renderer() -> Renderer:
    words = tiny.tokenizer()
    return Renderer(words, (words.eos_token_id,))


def _native(self: Any, hidden_states: Tensor) -> Tensor:
    scale = torch.rsqrt(hidden_states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
    return self.weight * (hidden_states * scale)  # type: ignore[no-any-return]


def network(seed: int) -> Any:
    """The tiny Llama in float64, its head three times as large, so that its policy is far from uniform.

    transformers' RMSNorm computes in float32 even in a double model; here it keeps to the model's dtype, or the
    identities would stop at 1e-7.
    """
    model = tiny.network(seed).double().eval()
    with torch.no_grad():
        model.lm_head.weight *= 3
    for module in model.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            module.forward = types.MethodType(_native, module)
    model.set_attn_implementation(attention.NAME)
    return model


@dataclass(frozen=True, slots=True, eq=False)
class Ground:
    """A policy, a reference, and the trees of all texts. The numbers of each tree's texts are in the order of its
    leaves."""

    model: Any
    reference: Any
    trees: tuple[PrefixTree, ...]

    def logprobs(self, tree: PrefixTree, reference: bool = False) -> Float[Tensor, "nodes choices"]:
        """log pi of a tree, differentiable; of the reference without gradient."""
        if not reference:
            return tree_logprobs(self.model, tree)
        with torch.no_grad():
            return tree_logprobs(self.reference, tree)

    @torch.no_grad()
    def answers(self) -> list[Exact]:
        """The exact answers for the policy, a tree."""
        return [exact(tree, tree_logprobs(self.model, tree)) for tree in self.trees]

    def rollouts(self, groups: Sequence[int] | None = None) -> list[Rollout]:
        """Every text of every tree as a scored rollout; ``groups`` number the trees (default 0, 1, ...)."""
        numbers = range(len(self.trees)) if groups is None else groups
        return [row for group, tree in zip(numbers, self.trees, strict=True) for row in rollouts(tree, group)]

    def mass(self) -> Float[Tensor, " rows"]:
        """p(text) of the rows of ``rollouts``; the texts of each tree sum to 1."""
        return torch.cat([found.leaf_probabilities for found in self.answers()])

    def policy(self, tokens: int = BUDGET) -> Learner[PolicyEvaluation]:
        """The project's learner on the policy."""
        return Learner(PolicyNetwork(self.model), OptimizerSettings(1e-3, 10), tokens)

    def frozen(self) -> FrozenScorer[PolicyEvaluation]:
        return FrozenScorer(PolicyNetwork(self.reference), BUDGET)

    def gradient(
        self, batch: Batch, targets: Rows, weights: Tensor, loss: Callable[..., Any], tokens: int = BUDGET
    ) -> Float[Tensor, " parameters"]:
        """The learner's gradient of ``sum(weights * loss)``, all parameters in one vector."""
        learner = self.policy(tokens)
        learner.optimizer.clear()
        learner.gradient(batch, targets, weights, loss)
        return taken(learner)

    def autograd(self, value: Tensor) -> Float[Tensor, " parameters"]:
        """Autograd's gradient of a number that the policy's parameters make."""
        weights = list(self.model.parameters())
        found = torch.autograd.grad(value, weights, allow_unused=True)
        pairs = zip(found, weights, strict=True)
        return torch.cat([(torch.zeros_like(w) if g is None else g).flatten() for g, w in pairs])

    def policy_gradient(self) -> Float[Tensor, " parameters"]:
        """grad of the sum over prompts of J."""
        return self.autograd(sum_of([exact(tree, self.logprobs(tree)).expected_return for tree in self.trees]))


@contextmanager
def doubles() -> Iterator[None]:
    """Numbers that are made in torch's default dtype, the recipes' weights, are float64 in here."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def sum_of(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum()


def ground(seed: int = 0, horizon: int = 4) -> Ground:
    """A coordinate prompt (4 tokens) and a drawn map (15 tokens or so), on a map with ends worth +5 and +2."""
    words = renderer()
    first, second = TextGrid(SMALL, horizon=horizon), TextGrid(SMALL, horizon=horizon, prompt="map")
    trees = (first.tree(words, first.starts[0]), second.tree(words, second.starts[1]))
    return Ground(network(seed), network(seed + 1), trees)


def coin(seed: int = 1) -> Ground:
    """One choice: 1 point on the left, none on the right. Rewards are 0 or 1."""
    task = TextGrid("+1 S +0", horizon=1, step_cost=0.0)
    return Ground(network(seed), network(seed + 1), (task.tree(renderer(), task.starts[0]),))


def taken(learner: Learner[Any]) -> Float[Tensor, " parameters"]:
    """The accumulated gradient as one vector."""
    there = learner.optimizer.gradients()
    parts = [there.get(name, torch.zeros_like(m)).flatten() for name, m in learner.optimizer.master.items()]
    found = torch.cat(parts).clone()
    learner.optimizer.clear()
    return found


def paths(tree: PrefixTree) -> list[Path]:
    """The choices of every text, in the order of the leaves."""
    above: dict[int, tuple[int, int]] = {}
    for node, choice in (tree.child >= 0).nonzero().tolist():
        above[int(tree.child[node, choice])] = (node, choice)
    found = []
    for place in zip(*(column.tolist() for column in tree.leaves), strict=True):
        path = [place]
        while path[0][0] != 0:
            path.insert(0, above[path[0][0]])
        found.append(path)
    return found


def rollouts(tree: PrefixTree, group: int) -> list[Rollout]:
    """Every text as the recipes make a rollout of it: support replayed, the score on the last token."""
    prompt = tree.token_ids[: tree.prompt_length].tolist()
    before, found = len(prompt), []
    for number, (path, text, score) in enumerate(
        zip(paths(tree), tree.leaf_tokens(), tree.leaf_scores.tolist(), strict=True)
    ):
        support = [tuple(tree.support[node][tree.support[node] >= 0].tolist()) for node, _ in path]
        support += [(tree.stop_id,)] * (len(text) - len(path))
        count = len(text)
        found.append(
            Rollout(
                "p", group, number, (*prompt, *text), (False,) * before + (True,) * count, (0.0,) * (before + count),
                (0.0,) * (before + count - 1) + (score,), True, 0, 1.0, (None,) * before + tuple(support),
            )
        )  # fmt: skip
    return found


def harvested(rows: list[Rollout]) -> Harvest:
    """Rollouts as a step of a recipe collects them."""
    blank = [""] * len(rows)
    return Harvest(rows, blank, blank, 0)


def everything(found: Ground, groups: Sequence[int] | None = None) -> tuple[Batch, Tensor]:
    """All texts as one batch, and the weights p(text) on their trained tokens [batch, time]."""
    batch = collate_rollouts(found.rollouts(groups))
    return batch, found.mass()[:, None] * batch.mask


class TableCritic(nn.Module):
    """A critic with one number for each text: what it says is what we put in. After the last token it says 7."""

    def __init__(self, values: dict[tuple[int, ...], float]) -> None:
        super().__init__()
        self.place = {text: index for index, text in enumerate(values)}
        self.table = nn.Parameter(torch.tensor(list(values.values()), dtype=torch.float64))

    def forward(self, batch: Batch) -> ValueEvaluation:
        rows, times = batch.mask.nonzero(as_tuple=True)
        pairs = zip(rows.tolist(), times.tolist(), strict=True)
        places = [self.place[tuple(batch.token_ids[row, : time + 1].tolist())] for row, time in pairs]
        values = self.table.new_zeros(batch.mask.shape).index_put((rows, times), self.table[torch.tensor(places)])
        return ValueEvaluation(values, self.table.new_full((len(batch),), 7.0))


def text_values(found: Ground) -> tuple[dict[tuple[int, ...], float], list[float]]:
    """What a critic should say after each text, ``so_far + V``, and after a finished walk its score; and how often the
    policy passes there."""
    values: dict[tuple[int, ...], float] = {}
    visits: list[float] = []
    for tree, known in zip(found.trees, found.answers(), strict=True):
        prompt = tuple(tree.token_ids[: tree.prompt_length].tolist())
        for node in range(len(tree)):
            values[(*prompt, *tree.path(node))] = float(tree.so_far[node] + known.values[node])
            visits.append(float(known.occupancy[node]))
        scored = zip(tree.leaf_tokens(), tree.leaf_scores.tolist(), known.leaf_probabilities.tolist(), strict=True)
        for text, score, mass in scored:
            values[(*prompt, *text[:-1])] = score
            visits.append(mass)
    return values, visits


def apart(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference, relative to what is wanted (absolute where that is 0)."""
    size = float(wanted.norm())
    return float((found - wanted).norm()) / (size if size > 0 else 1.0)


def cosine(found: Tensor, wanted: Tensor) -> float:
    """Cosine of the angle between two vectors; NaN where one is 0."""
    return float(found @ wanted / (found.norm() * wanted.norm()))
