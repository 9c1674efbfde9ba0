"""What every language recipe stands on: the texts' probabilities, the sampler, the learner's cuts, padding; and SFT."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from upslope.certify.ground import Ground, apart, everything, paths, renderer, sum_of
from upslope.certify.lines import Line
from upslope.maths import weighting
from upslope.models.tree import tree_logprobs
from upslope.recipes import sft
from upslope.recipes.configs import GrpoRecipe
from upslope.recipes.grpo import GrpoTargets, make_loss
from upslope.rollout.sampler import InProcessSampler
from upslope.text.collation import collate_rollouts
from upslope.types import Batch, Sampling
from upslope.worlds.prefix_tree import sequence_kl
from upslope.worlds.text_gridworld import TextGrid

TIGHT = 1e-8
"""Largest difference of an identity in float64. What is seen is 1e-12 and less."""
DRAWN = 64
"""Texts drawn of each prompt to compare the sampler's log-probabilities."""


def learner_lines(ground: Ground) -> Iterator[Line]:
    """log-probabilities, cuts into micro-batches, padding, the order of rows."""
    batch, _ = everything(ground)
    learned = ground.policy(tokens=60).evaluate(batch).logprobs
    sums = learned.sum(1).exp()
    yield Line("learner", "probabilities of all texts", float(len(ground.trees)), float(sums.sum()),
               abs(float(sums.sum()) - len(ground.trees)), TIGHT)  # fmt: skip
    yield Line("learner", "log-probability of each token", "the tree's", "the learner's", _tree_gap(ground, learned),
               TIGHT)  # fmt: skip
    single = collate_rollouts([replace(row, group=n) for n, row in enumerate(ground.rollouts())])
    recipe = GrpoRecipe.model_validate({"data": {"task": "text-grid"}})
    goal = _targets(single, learned)
    weights = weighting.token_mean(single.mask, torch.float64)
    wanted = ground.gradient(single, goal, weights, make_loss(recipe, first=False))
    cut = ground.gradient(single, goal, weights, make_loss(recipe, first=False), tokens=40)
    yield _vector("learner", "gradient cut into micro-batches of 40 tokens", wanted, cut)
    padded, padded_goal = _padded(single, goal)
    wide = torch.nn.functional.pad(weights, (0, 3))
    found = ground.gradient(padded, padded_goal, wide, make_loss(recipe, first=False))
    yield _vector("learner", "gradient with 3 columns of padding, garbage in them", wanted, found)
    order = torch.arange(len(single)).flip(0)
    found = ground.gradient(single.take(order), goal.take(order), weights[order], make_loss(recipe, first=False))
    yield _vector("learner", "gradient with the rows in reverse", wanted, found)


def _vector(algorithm: str, checked: str, wanted: Tensor, found: Tensor) -> Line:
    return Line(algorithm, checked, float(wanted.norm()), float(found.norm()), apart(found, wanted), TIGHT)


def _targets(batch: Batch, learned: Tensor) -> GrpoTargets:
    """Gains of both signs, ratios on both sides of both clips."""
    row = torch.arange(len(batch), dtype=torch.float64)
    gains = torch.cos(3.0 * row)[:, None] * batch.mask
    old = (learned + 0.3 * torch.sin(row[:, None] + 2.0 * torch.arange(batch.mask.shape[1]))) * batch.mask
    return GrpoTargets(batch.mask, gains, old, old, torch.zeros_like(old))


def _padded(batch: Batch, goal: GrpoTargets) -> tuple[Batch, GrpoTargets]:
    wide = [torch.nn.functional.pad(tensor, (0, 3), value=value) for tensor, value in (
        (goal.mask, False), (goal.advantages, 55.0), (goal.sampler_logprobs, 9.0), (goal.old_logprobs, -40.0),
        (goal.ref_logprobs, 9.0),
    )]  # fmt: skip
    support = batch.support
    if support is not None:
        support = torch.nn.functional.pad(support, (0, 0, 0, 3), value=1)
    tokens = torch.nn.functional.pad(batch.token_ids, (0, 3), value=11)
    return Batch(tokens, batch.lengths, wide[0], batch.unit, batch.temperature, support), GrpoTargets(*wide)


def _tree_gap(ground: Ground, learned: Tensor) -> float:
    """Largest difference of a token's log-probability, the forced stop token's 0 included."""
    worst, row = 0.0, 0
    with torch.no_grad():
        for tree in ground.trees:
            table, first = tree_logprobs(ground.model, tree), tree.prompt_length - 1
            for path in paths(tree):
                wanted = torch.zeros_like(learned[row])
                wanted[first : first + len(path)] = torch.stack([table[place] for place in path])
                worst = max(worst, float((learned[row] - wanted).abs().max()))
                row += 1
    return worst


def sampler_lines(ground: Ground, temperature: float = 0.8) -> Iterator[Line]:
    """The log-probabilities that the sampler gives with its tokens are the tree's, at its temperature."""
    task, words = TextGrid(), renderer()
    trees = [task.tree(words, start) for start in task.starts[:3]]
    sampling = Sampling(task.longest, words.stop_ids, temperature, allowed=task.allowed(words))
    prompts = [words.prompt(task.content(start)) for start in task.starts[:3]]
    drawn = InProcessSampler(ground.model, 64).sample(prompts, DRAWN, sampling, [1, 2, 3])
    worst, seen = 0.0, 0
    for tree, group in zip(trees, drawn, strict=True):
        with torch.no_grad():
            table = tree_logprobs(ground.model, tree, temperature)
        known = dict(zip(tree.leaf_tokens(), paths(tree), strict=True))
        for completion in group:
            wanted = [float(table[place]) for place in known[completion.token_ids]]
            wanted += [0.0] * (len(completion.token_ids) - len(wanted))
            gaps = [abs(a - b) for a, b in zip(completion.logprobs, wanted, strict=True)]
            worst, seen = max(worst, *gaps), seen + len(gaps)
    told = f"the sampler's {seen}"
    yield Line("sampler", f"log-probability of drawn tokens, temperature {temperature}", "the tree's", told, worst,
               TIGHT)  # fmt: skip


def sft_lines(ground: Ground) -> Iterator[Line]:
    """Imitation of a known distribution q of texts, here the reference's: loss = H(q) + KL(q || pi)."""
    batch = collate_rollouts(ground.rollouts())
    teacher = Ground(ground.reference, ground.reference, ground.trees)
    goal, mass = sft.SftTargets(batch.mask), teacher.mass()
    weights = mass[:, None] * batch.mask
    entropy = -float((mass * mass.log()).sum())
    tables = [(ground.logprobs(tree, reference=True), ground.logprobs(tree)) for tree in ground.trees]
    kl = sum_of([sequence_kl(tree, q, p) for tree, (q, p) in zip(ground.trees, tables, strict=True)])
    loss = ground.policy().gradient(batch, goal, weights, sft.loss)["loss"]
    exact = entropy + float(kl.detach())
    yield Line("SFT", "loss = entropy of the data + KL(data || pi)", exact, loss, abs(loss - exact), TIGHT)
    wanted = ground.autograd(kl)
    yield _vector("SFT", "gradient = gradient of KL(data || pi)", wanted,
                  ground.gradient(batch, goal, weights, sft.loss))  # fmt: skip
    loss = teacher.policy().gradient(batch, goal, weights, sft.loss)["loss"]
    yield Line("SFT", "loss at pi = data: the conditional entropy", entropy, loss, abs(loss - entropy), TIGHT)
    still = float(teacher.gradient(batch, goal, weights, sft.loss).norm())
    yield Line("SFT", "gradient there (its minimum)", 0.0, still, still, TIGHT)
