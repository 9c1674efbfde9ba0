"""The sampler draws from the trees' policy: what it reports, and how often each text comes."""

from __future__ import annotations

import pytest
import torch

from tests.truth.support import DRAWS, F64, Whole, drawn, frozen, grown, net, said, tables
from upslope.text.collation import collate_rollouts
from upslope.worlds.prefix_tree import exact

CASES = [("near", 1.0), ("wide", 1.0), ("tall", 1.0), ("wide", 0.7)]


def one(name: str, temperature: float) -> Whole:
    """A prompt with every rollout that was drawn after it."""
    rows = list(drawn(name, 0, temperature, DRAWS))
    return Whole((name,), [grown(name)[1]], rows, [0] * len(rows))


@pytest.mark.parametrize(("name", "temperature"), CASES)
def test_reported_logprobs_are_the_trees_and_the_learners(name: str, temperature: float) -> None:
    """At the temperature that was sampled at, which the batch carries to the learner."""
    of, model = one(name, temperature), net()
    wanted = of.spread(tables(model, of.names, temperature))
    told = torch.tensor([[*row.logprobs[1:], *[0.0] * 3][: wanted.shape[1]] for row in of.rollouts], dtype=F64)
    assert float((told - wanted).abs().max()) < 1e-10
    first = {said(row): place for place, row in enumerate(of.rollouts)}
    rows = [of.rollouts[place] for place in first.values()]
    found = frozen(model).evaluate(collate_rollouts(rows)).logprobs
    assert float((found - wanted[list(first.values())]).abs().max()) < 1e-10
    if temperature != 1:
        bare = of.spread(tables(model, of.names))
        assert float((bare - wanted).abs().max()) > 0.1


@pytest.mark.parametrize(("name", "temperature"), CASES)
def test_every_text_comes_as_often_as_the_tree_says(name: str, temperature: float) -> None:
    """|z| < 4 for each text, and Pearson's chi square over all of them within 5 standard deviations."""
    of = one(name, temperature)
    (logs,) = tables(net(), of.names, temperature)
    (tree,) = of.trees
    p = exact(tree, logs).leaf_probabilities
    place = {text: leaf for leaf, text in enumerate(tree.leaf_tokens())}
    counts = torch.zeros(len(p), dtype=F64)
    for row in of.rollouts:
        counts[place[said(row)]] += 1
    expected = DRAWS * p
    assert float(expected.sum()) == pytest.approx(DRAWS) and int((expected > 20).sum()) >= 5
    z = (counts - expected) / (expected * (1 - p)).sqrt()
    print(f"largest |z| {float(z.abs().max()):.2f}")
    assert float(z.abs().max()) < 4
    square, free = float(((counts - expected).square() / expected).sum()), len(p) - 1
    assert square < free + 5 * (2 * free) ** 0.5


@pytest.mark.parametrize(("name", "temperature"), CASES)
def test_every_rollout_is_whole_and_scored_as_the_tree_scores_it(name: str, temperature: float) -> None:
    of = one(name, temperature)
    (tree,) = of.trees
    scores = dict(zip(tree.leaf_tokens(), tree.leaf_scores.tolist(), strict=True))
    for row in of.rollouts:
        assert row.score == row.rewards[-1] == scores[said(row)]
        assert row.terminated and row.temperature == temperature and row.completion_length == len(said(row))
