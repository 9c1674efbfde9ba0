"""The exact numbers along walks: against the scores of walks, and against enumerating every text."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.worlds.test_prefix_tree import WORLDS, native_norms, net, renderer, texts
from upslope.models.tree import tree_logprobs
from upslope.types import Solved
from upslope.worlds import text_truth
from upslope.worlds.arithmetic import Arithmetic
from upslope.worlds.prefix_tree import exact
from upslope.worlds.text_gridworld import TextGrid
from upslope.worlds.text_truth import count_nodes

__all__ = ["native_norms"]
pytestmark = pytest.mark.usefixtures("native_norms")


def policy(model: Any) -> Any:
    return lambda tree: tree_logprobs(model, tree)


@pytest.mark.parametrize("world", WORLDS)
def test_what_the_moves_gained_is_the_score_less_what_was_expected(world: str) -> None:
    """The grid does not slip, so A(h, a) = r + V(ha) - V(h), and the sum over a walk is its score - J."""
    task, words, model = TextGrid(**WORLDS[world]), renderer(), net(1)
    truth = task.truth(words)
    for start in task.starts:
        tree = task.tree(words, start)
        found = truth(words.prompt(task.content(start)), tree.leaf_tokens(), policy(model))
        with torch.no_grad():
            expected = float(exact(tree, tree_logprobs(model, tree)).expected_return)
        for line, score, tokens, path in zip(
            found, tree.leaf_scores.tolist(), tree.leaf_tokens(), texts(tree), strict=True
        ):
            gains, means = line["true_advantages"], line["true_values"]
            assert len(gains) == len(means) == len(tokens)
            assert gains[len(path) :] == means[len(path) :] == [None] * (len(tokens) - len(path))
            assert means[0] == pytest.approx(expected, abs=1e-12)
            assert sum(gains[: len(path)]) == pytest.approx(score - expected, abs=1e-10)  # type: ignore[arg-type]


def test_a_value_is_the_mean_score_of_the_walks_that_go_through() -> None:
    task, words, model = TextGrid(**WORLDS["bump"]), renderer(), net(2)
    tree = task.tree(words, task.starts[0])
    leaves = tree.leaf_tokens()
    found = task.truth(words)(words.prompt(task.content(task.starts[0])), leaves, policy(model))
    with torch.no_grad():
        chance = exact(tree, tree_logprobs(model, tree)).leaf_probabilities
    for leaf in (0, len(leaves) // 2, len(leaves) - 1):
        for depth in range(len(texts(tree)[leaf])):
            same = [n for n, other in enumerate(leaves) if other[:depth] == leaves[leaf][:depth]]
            mean = float((chance[same] * tree.leaf_scores[same]).sum() / chance[same].sum())
            assert found[leaf]["true_values"][depth] == pytest.approx(mean, abs=1e-9)


@pytest.mark.parametrize("world", WORLDS)
def test_nodes_are_counted_without_growing_the_tree(world: str) -> None:
    task = TextGrid(**WORLDS[world])
    for start in task.starts:
        assert count_nodes(task.rules, task.grid.index[start]) == len(task.tree(renderer(), start))


def test_of_a_tree_too_large_and_of_a_foreign_prompt_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    task, words, model = TextGrid(), renderer(), net()
    prompt = words.prompt(task.content((3, 3)))
    size = count_nodes(task.rules, task.grid.index[3, 3])
    answers = task.tree(words, (3, 3)).leaf_tokens()[:2]
    assert task.truth(words)([1, 2, 3], answers, policy(model)) == [{}, {}]
    monkeypatch.setattr(text_truth, "MOST_NODES", size - 1)
    assert task.truth(words)(prompt, answers, policy(model)) == [{}, {}]
    monkeypatch.setattr(text_truth, "MOST_NODES", size)
    assert all(len(line) == 2 for line in task.truth(words)(prompt, answers, policy(model)))
    endless = TextGrid(map="6x6", horizon=40)  # 10^20 texts: counted in no time, and left alone
    assert endless.truth(words)(words.prompt(endless.content(endless.starts[0])), answers, policy(model)) == [{}, {}]


def test_only_a_task_with_the_hook_is_solved() -> None:
    assert isinstance(TextGrid(), Solved) and not isinstance(Arithmetic(), Solved)
