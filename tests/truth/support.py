"""Every text that a policy can say after a few prompts, as rollouts of the project's own sampler.

The prompts have different lengths (coordinates of a start, drawn maps of two sizes). ``whole`` draws from a policy
until each text of each prefix tree has come and keeps one rollout of each. A learner that is given the probability of a
rollout as its weight then computes an expectation exactly, through packing, chunks and micro-batches, and the tree
says what it must be.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tests.learner.support import gradients, policy, stock_gradients
from upslope.learner.learner import FrozenScorer, Learner
from upslope.learner.optimizer import OptimizerSettings
from upslope.models import attention, tiny
from upslope.models.networks import PolicyNetwork
from upslope.models.tree import tree_logprobs
from upslope.recipes.configs import GrpoRecipe, PpoRecipe, RewardSection, SamplingSection
from upslope.recipes.loop import Clock
from upslope.recipes.ppo import Networks
from upslope.recipes.rollouts import Harvest, harvest
from upslope.recipes.run_rows import sampling_of
from upslope.recipes.setup import Workshop
from upslope.rollout.sampler import InProcessSampler
from upslope.text.collation import collate_rollouts
from upslope.text.rendering import Renderer
from upslope.types import Batch, Completion, PolicyEvaluation, Rollout, Sampling, ValueEvaluation
from upslope.worlds.prefix_tree import Exact, PrefixTree, exact
from upslope.worlds.rewards import Part, RewardPanel
from upslope.worlds.text_gridworld import TextGrid

F64 = torch.float64
BOUND = 1e-8
DRAWS, SLOTS = 2500, 250
TOKENS = 60
"""Micro-batches hold so many tokens: a batch of texts is cut into several."""
GARBAGE = 7.3
"""What a table critic says of texts beyond their end, where nothing may look."""

MAPS: dict[str, dict[str, Any]] = {
    "near": {"map": "S . +5\n. # -1\n. . .", "horizon": 3},
    "wide": {"map": ". S +2\n-1 . .", "prompt": "map", "horizon": 3},
    "tall": {"map": "S . .\n. -2 +4\n. . #", "prompt": "map", "horizon": 3},
    "short": {"map": ". S +2\n-1 . .", "prompt": "map", "horizon": 2},
    "fork": {"map": ". -2 .\n+4 S +1\n. . .", "prompt": "map", "horizon": 1},
    "turn": {"map": "+3 S\n. .", "horizon": 1},
    "free": {"map": "S +3\n. -1", "horizon": 2, "vocabulary": "full"},
    "drawn": {"map": "S +3\n. -1", "horizon": 2, "vocabulary": "full", "prompt": "map"},
}
THREE = ("near", "wide", "tall")
"""Walks of up to 3 moves; prompts of 4, 11 and 19 tokens."""
TWO = ("near", "short")
ONE_MOVE = ("fork", "turn")
"""A single choice: here the penalty of a choice is that of the whole text."""


# --------------------------------------------------------------------------------------------------------- the policies
def words() -> Renderer:
    tokens = tiny.tokenizer()
    return Renderer(tokens, (tokens.eos_token_id,))


def net(seed: int = 0, sharpness: float = 2.0) -> Any:
    """The tiny Llama in float64, its weights large enough for a policy far from uniform."""
    model = tiny.network(seed).double().eval()
    with torch.no_grad():
        model.lm_head.weight *= sharpness
    model.set_attn_implementation(attention.NAME)
    return model


@lru_cache
def grown(name: str) -> tuple[TextGrid, PrefixTree]:
    """A map's task and the tree of its first start."""
    task = TextGrid(**MAPS[name])
    return task, task.tree(words(), task.starts[0])


def tables(model: Any, names: Sequence[str], temperature: float = 1.0) -> list[Tensor]:
    """[nodes, choices] log-probabilities of each prompt's tree, without a gradient."""
    with torch.no_grad():
        return [tree_logprobs(model, grown(name)[1], temperature) for name in names]


# ---------------------------------------------------------------------------------------------- rollouts of the sampler
@lru_cache
def drawn(name: str, seed: int, temperature: float, count: int) -> tuple[Rollout, ...]:
    """``count`` rollouts of the policy ``net(seed)``, as a run makes them: sampler, reward's process, harvest."""
    task, renderer = grown(name)[0], words()
    room = SamplingSection(max_new_tokens=task.longest, temperature=temperature)
    sampling = sampling_of(room, renderer, task)
    quiet: Any = SimpleNamespace(phase=lambda *given: None, notice=lambda text: None)
    prompt = next(row for row in task.prompts("heldout") if row.content == task.content(task.starts[0]))
    with ExitStack() as stack:
        panel = stack.enter_context(RewardPanel([Part(task.reward_source)]))
        model: Any = net(seed)
        sampler = InProcessSampler(model, SLOTS, decode=renderer.text)
        shop = Workshop(quiet, model, renderer, sampler, sampling, [prompt], [], [], [], panel)
        found = harvest(shop, [prompt], count, [seed], RewardSection(), Clock(), 1)
    return tuple(found.rollouts)


def said(rollout: Rollout) -> tuple[int, ...]:
    """The tokens that the policy chose."""
    return rollout.token_ids[rollout.action_mask.index(True) :]


@dataclass(frozen=True, eq=False)
class Whole:
    """The trees of some prompts and one rollout of every text, in the order of the trees' leaves.

    ``owner`` [rows] is the tree of a row. Rows of a prompt are in units of three.
    """

    names: tuple[str, ...]
    trees: list[PrefixTree]
    rollouts: list[Rollout]
    owner: list[int]

    @property
    def prompts(self) -> int:
        return len(self.trees)

    def exact(self, model: Any) -> list[Exact]:
        """The answers, without a gradient."""
        return [exact(tree, logs) for tree, logs in zip(self.trees, tables(model, self.names), strict=True)]

    def expected_return(self, model: Any) -> Tensor:
        """The mean of J over the prompts, with its gradient."""
        return sum_of(exact(tree, tree_logprobs(model, tree)).expected_return for tree in self.trees) / self.prompts

    def paths(self, rollouts: Sequence[Rollout] | None = None) -> list[tuple[int, list[tuple[int, int]]]]:
        """(tree, the (node, choice) of each of its moves) of every rollout; a forced stop token is no choice."""
        known = {tuple(tree.token_ids[: tree.prompt_length].tolist()): place for place, tree in enumerate(self.trees)}
        found = []
        for rollout in self.rollouts if rollouts is None else rollouts:
            number = known[rollout.token_ids[: rollout.action_mask.index(True)]]
            tree, node, path = self.trees[number], 0, []
            for token in said(rollout):
                if node < 0:
                    break
                path.append((node, tree.support[node].tolist().index(token)))
                node = int(tree.child[path[-1]])
            found.append((number, path))
        return found

    def spread(self, of_choices: Sequence[Tensor], rollouts: Sequence[Rollout] | None = None) -> Tensor:
        """[rows, time]: numbers of the trees' choices at the targets where they were made, 0 elsewhere."""
        rows = self.rollouts if rollouts is None else rollouts
        out = torch.zeros(len(rows), max(len(row.token_ids) for row in rows) - 1, dtype=F64)
        for row, (number, path) in enumerate(self.paths(rows)):
            for depth, at in enumerate(path):
                out[row, self.trees[number].prompt_length - 1 + depth] = of_choices[number][at]
        return out

    def collect(self, of_targets: Tensor, rollouts: Sequence[Rollout] | None = None) -> list[Tensor]:
        """The way back: [nodes, choices] sums of the numbers of all targets at which a choice was made."""
        out = [torch.zeros(tree.support.shape, dtype=F64) for tree in self.trees]
        for row, (number, path) in enumerate(self.paths(rollouts)):
            for depth, at in enumerate(path):
                out[number][at] += of_targets[row, self.trees[number].prompt_length - 1 + depth]
        return out

    def chances(self, logprobs: Sequence[Tensor], rollouts: Sequence[Rollout] | None = None) -> Tensor:
        """[rows]: the probability of each rollout's text after its prompt."""
        return self.spread(logprobs, rollouts).sum(1).exp()

    def weights(self, logprobs: Sequence[Tensor], batch: Batch) -> Tensor:
        """p(y) / prompts at every token of every text: what makes the learner's sum a mean over prompts of E."""
        return self.chances(logprobs)[:, None] / self.prompts * batch.mask

    def values(self, answers: Sequence[Exact], so_far: bool = True) -> dict[tuple[int, ...], float]:
        """V^pi of every text, and of every finished one; with ``so_far`` the points until there are part of it."""
        out: dict[tuple[int, ...], float] = {}
        for tree, found in zip(self.trees, answers, strict=True):
            prompt = tuple(tree.token_ids[: tree.prompt_length].tolist())
            for node in range(len(tree)):
                behind = float(tree.so_far[node]) if so_far else 0.0
                out[(*prompt, *tree.path(node))] = behind + float(found.values[node])
            for text, score in zip(tree.leaf_tokens(), tree.leaf_scores.tolist(), strict=True):
                out[(*prompt, *text[:-1])] = score if so_far else 0.0
        return out


@lru_cache
def whole(names: tuple[str, ...] = THREE, seed: int = 0) -> Whole:
    """Every text after these prompts, each as the sampler of ``net(seed)`` said it."""
    rollouts: list[Rollout] = []
    owner: list[int] = []
    for number, name in enumerate(names):
        tree = grown(name)[1]
        first: dict[tuple[int, ...], Rollout] = {}
        for rollout in drawn(name, seed, 1.0, DRAWS):
            first.setdefault(said(rollout), rollout)
        leaves = tree.leaf_tokens()
        assert first.keys() == set(leaves), "a text never came: draw more"
        rollouts += [replace(first[text], group=number * 100 + leaf // 3) for leaf, text in enumerate(leaves)]
        owner += [number] * len(leaves)
    return Whole(names, [grown(name)[1] for name in names], rollouts, owner)


def harvested(rollouts: Sequence[Rollout]) -> Harvest:
    blank = [""] * len(rollouts)
    return Harvest(list(rollouts), blank, blank, 0)


def by_move(of: Whole, rollouts: Sequence[Rollout] | None = None) -> list[Rollout]:
    """The same rollouts, each move's own points on its token instead of the score at the end."""
    rows = of.rollouts if rollouts is None else rollouts
    points = of.spread([tree.reward for tree in of.trees], rows)
    return [
        replace(row, rewards=(0.0, *points[number, : len(row.token_ids) - 1].tolist()))
        for number, row in enumerate(rows)
    ]


def groups(of: Whole, size: int) -> tuple[list[Rollout], Tensor]:
    """Every group of ``size`` texts of a prompt, as rollouts, and (index of text) [groups * size]."""
    rollouts: list[Rollout] = []
    index: list[int] = []
    number = 0
    for tree in range(of.prompts):
        own = [row for row, owner in enumerate(of.owner) if owner == tree]
        for members in itertools.product(own, repeat=size):
            rollouts += [replace(of.rollouts[row], group=number, sample=n) for n, row in enumerate(members)]
            index += members
            number += 1
    return rollouts, torch.tensor(index)


def group_weights(of: Whole, index: Tensor, size: int, logprobs: Sequence[Tensor]) -> Tensor:
    """[groups * size]: the probability of the group that a row is in, divided by the number of prompts."""
    chance = of.chances(logprobs)[index].reshape(-1, size).prod(1) / of.prompts
    return chance.repeat_interleave(size)


# ------------------------------------------------------------------------------------------------- networks and recipes
class TableCritic(nn.Module):
    """A value of its own for every text, each a parameter; ``GARBAGE`` for a text that is not listed."""

    def __init__(self, values: dict[tuple[int, ...], float]) -> None:
        super().__init__()
        self.number = {text: place + 1 for place, text in enumerate(values)}
        self.table = nn.Parameter(torch.tensor([GARBAGE, *values.values()], dtype=F64))

    def forward(self, batch: Batch) -> ValueEvaluation:
        at = torch.zeros(batch.mask.shape, dtype=torch.long)
        last = torch.zeros(len(batch), dtype=torch.long)
        for row, (ids, length) in enumerate(zip(batch.token_ids.tolist(), batch.lengths.tolist(), strict=True)):
            for place in batch.mask[row].nonzero()[:, 0].tolist():
                at[row, place] = self.number.get(tuple(ids[: place + 1]), 0)
            last[row] = self.number.get(tuple(ids[:length]), 0)
        return ValueEvaluation(self.table[at] * batch.mask, self.table[last])


@dataclass(frozen=True, eq=False)
class TableScorer:
    """A frozen policy given as the log-probabilities of the trees' choices."""

    of: Whole
    logprobs: Sequence[Tensor]
    rollouts: Sequence[Rollout]

    def evaluate(self, batch: Batch) -> PolicyEvaluation:
        found = self.of.spread(self.logprobs, self.rollouts)
        return PolicyEvaluation(found, torch.zeros_like(found))


def learner(model: Any, tokens: int = TOKENS) -> Learner[Any]:
    return policy(model, tokens)


def critic(module: nn.Module, tokens: int = TOKENS) -> Learner[Any]:
    return Learner(module, OptimizerSettings(1e-2, 10), tokens)


def frozen(model: Any, tokens: int = TOKENS) -> FrozenScorer[PolicyEvaluation]:
    return FrozenScorer[PolicyEvaluation](PolicyNetwork(model), tokens)


def nets(model: Any, values: dict[tuple[int, ...], float] | nn.Module, reference: Any = None) -> Networks:
    """What PPO learns with: the policy, a critic (a table of these values) and the reference."""
    module = TableCritic(values) if isinstance(values, dict) else values
    return Networks(learner(model), critic(module), reference)


def ppo_recipe(**settings: Any) -> PpoRecipe:
    ppo = {"kl_coef": 0.0, "whiten": False, "trace": 1.0, **settings}
    return PpoRecipe.model_validate({"data": {"task": "text-grid"}, "ppo": ppo})


def grpo_recipe(group: int = 2, **settings: Any) -> GrpoRecipe:
    """Two passes, so that the old log-probabilities are the learner's, in its dtype."""
    sizes = {"train": {"epochs": 2}, "sampling": {"max_new_tokens": 4}}
    return GrpoRecipe.model_validate({"data": {"task": "text-grid"}, "grpo": {"group": group, **settings}, **sizes})


# ------------------------------------------------------------------------------------------------------------ gradients
Gradient = dict[str, Tensor]


def sum_of(numbers: Any) -> Tensor:
    return torch.stack(list(numbers)).sum()


def learned(with_: Learner[Any], batch: Batch, targets: Any, weights: Tensor, loss: Any) -> Gradient:
    """The gradient of ``sum(weights * loss)`` that the learner accumulates."""
    with_.gradient(batch, targets, weights, loss)
    found = gradients(with_)
    with_.optimizer.clear()
    return found


def autograd(with_: Learner[Any], value: Tensor) -> Gradient:
    return stock_gradients(with_.network, value)


def of_choices(with_: Learner[Any], of: Whole, coefficients: Sequence[Tensor]) -> Gradient:
    """Gradient of sum over trees, nodes and choices of coefficient times log pi, by autograd through the trees."""
    model: Any = with_.network.model
    total = sum_of(
        (c * torch.where(tree.legal, tree_logprobs(model, tree), 0.0)).sum()
        for tree, c in zip(of.trees, coefficients, strict=True)
    )
    return autograd(with_, total)


def of_texts(with_: Learner[Any], of: Whole, coefficients: Tensor) -> Gradient:
    """Gradient of sum over texts of coefficient times log p(text)."""
    whole_text = torch.tensor([len(row.token_ids) for row in of.rollouts]).max()
    return of_choices(with_, of, of.collect(coefficients[:, None].expand(-1, int(whole_text) - 1)))


def scaled(gradient: Gradient, factor: float) -> Gradient:
    return {name: factor * tensor for name, tensor in gradient.items()}


def flat(gradient: Gradient) -> Tensor:
    return torch.cat([gradient[name].flatten() for name in sorted(gradient)])


def cosine(left: Gradient, right: Gradient) -> float:
    return float(torch.cosine_similarity(flat(left), flat(right), dim=0))


def off(found: Gradient, wanted: Gradient) -> float:
    """||found - wanted|| / ||wanted||, over all parameters."""
    assert found.keys() == wanted.keys() and found
    return float((flat(found) - flat(wanted)).norm() / flat(wanted).norm())


def agree(found: Gradient, wanted: Gradient) -> None:
    """Equal to 1e-8 of the whole gradient's size; what was left is printed (``pytest -rP`` shows it)."""
    assert size(wanted) > 1e-3, "a gradient of 0 says nothing"
    left = off(found, wanted)
    print(f"residual {left:.1e}")
    assert left < BOUND


def vanishes(found: Gradient, beside: Gradient) -> None:
    """Smaller than 1e-8 of a gradient that is not 0."""
    assert size(beside) > 1e-3, "a gradient of 0 says nothing"
    left = size(found) / size(beside)
    print(f"residual {left:.1e}")
    assert left < BOUND


def size(gradient: Gradient) -> float:
    return float(flat(gradient).norm())


def texts_batch(of: Whole) -> Batch:
    return collate_rollouts(of.rollouts)


def completions(name: str, model: Any, count: int, most: int, seed: int) -> list[Completion]:
    """Straight from the sampler, of at most ``most`` tokens, which may be fewer than a walk takes."""
    task, tree = grown(name)
    sampling = Sampling(most, words().stop_ids, allowed=task.allowed(words()))
    prompt = tree.token_ids[: tree.prompt_length].tolist()
    (found,) = InProcessSampler(model, SLOTS).sample([prompt], count, sampling, [seed])
    return found
