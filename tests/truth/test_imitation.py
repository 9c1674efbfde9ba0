"""SFT's minimum is the conditional entropy of the data: the recipe's loss over every text of the whole vocabulary.

Supervised rows know nothing of what is allowed, so here every token may be said: the trees are those of the full
vocabulary, where a stop token may end a text at any time. The data is what some policy says after each prompt; the stop
token after a walk that is over is the one that no tree has a choice for, and is not trained on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.learner.support import gradients
from tests.truth.support import (
    BOUND,
    Gradient,
    agree,
    autograd,
    grown,
    learner,
    net,
    sum_of,
    tables,
    vanishes,
    words,
)  # fmt: skip
from upslope.models.tree import tree_logprobs
from upslope.recipes import sft
from upslope.recipes.sft import SftTargets
from upslope.text.collation import collate_examples
from upslope.types import Encoded, Example
from upslope.worlds.prefix_tree import PrefixTree, exact, sequence_kl

NAMES = ("free", "drawn")


def trees() -> list[PrefixTree]:
    return [grown(name)[1] for name in NAMES]


def rows() -> list[Encoded]:
    """Every text after both prompts, in the order of the leaves."""
    found = []
    for number, tree in enumerate(trees()):
        prompt = tuple(tree.token_ids[: tree.prompt_length].tolist())
        node, choice = tree.leaves
        last = tree.support[node, choice].tolist()
        for leaf, text in enumerate(tree.leaf_tokens()):
            forced = int(last[leaf] != tree.stop_id)
            trained = (False,) * len(prompt) + (True,) * (len(text) - forced) + (False,) * forced
            found.append(Encoded(f"{number}-{leaf}", (*prompt, *text), trained))
    return found


def data(seed: int) -> list[Tensor]:
    """What the policy of that seed says: [nodes, choices] log-probabilities."""
    return tables(net(seed), NAMES)


def of_sft(model: Any, source: list[Tensor]) -> tuple[Gradient, float]:
    """Gradient and value of the recipe's loss, each row weighed by its probability in the data; mean over prompts."""
    batch, at = collate_examples(rows()), learner(model, 900)
    chance = torch.cat([exact(tree, logs).leaf_probabilities for tree, logs in zip(trees(), source, strict=True)])
    weights = chance[:, None] / len(NAMES) * batch.mask
    told = at.gradient(batch, SftTargets(batch.mask), weights, sft.loss)
    return gradients(at), told["loss"]


def entropy_of(source: list[Tensor]) -> float:
    """Conditional entropy of the data in nats: mean over prompts of -sum_y q(y) log q(y)."""
    q = [exact(tree, logs).leaf_probabilities for tree, logs in zip(trees(), source, strict=True)]
    return float(sum_of(-(p * p.log()).sum() for p in q) / len(q))


def test_sfts_loss_at_the_data_is_its_conditional_entropy_and_the_gradient_is_0() -> None:
    found, loss = of_sft(net(0), data(0))
    beside, _ = of_sft(net(1), data(0))
    assert abs(loss - entropy_of(data(0))) < BOUND and loss > 1
    vanishes(found, beside)


def test_sfts_loss_elsewhere_is_larger_by_the_divergence_and_its_gradient_is_the_divergences() -> None:
    """loss = H(q) + KL(q || pi)."""
    model, source = net(1), data(0)
    found, loss = of_sft(model, source)
    away = sum_of(sequence_kl(tree, q, tree_logprobs(model, tree)) for tree, q in zip(trees(), source, strict=True)) / 2
    assert float(away.detach()) > 0.1
    assert abs(loss - entropy_of(source) - float(away.detach())) < BOUND
    agree(found, autograd(learner(model), away))


def test_these_rows_are_those_that_the_recipe_renders() -> None:
    """A finished walk's ids are those of its example, whose stop token is trained on as well; prompts are ragged."""
    renderer, listed = words(), {row.token_ids for row in rows()}
    for name in NAMES:
        task, tree = grown(name)
        start = task.content(task.starts[0])
        walk = renderer.example(Example("x", start, "R"))
        assert walk.token_ids in listed and walk.trainable[tree.prompt_length :] == (True, True)
    assert len({tree.prompt_length for tree in trees()}) == 2
    early = torch.tensor([row.token_ids[-1] == renderer.stop_id and row.trainable[-1] for row in rows()])
    assert int(early.sum()) == 4  # at the root and after the one legal move that goes on, of each prompt
