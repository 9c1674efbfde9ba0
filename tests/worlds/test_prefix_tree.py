"""The prefix tree in float64 against enumeration of whole texts, plain forward passes, sampler and learner."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.learner.support import native_norms
from upslope.learner.learner import FrozenScorer
from upslope.models import attention, head, networks, tiny
from upslope.models.networks import PolicyNetwork, ValueNetwork
from upslope.models.tree import tree_logprobs, tree_values
from upslope.rollout.sampler import InProcessSampler
from upslope.text.collation import collate_rollouts
from upslope.text.rendering import Renderer
from upslope.types import PolicyEvaluation, Rollout, Sampling
from upslope.worlds.prefix_tree import PrefixTree, exact, regularised_return, sequence_kl, soft_optimum
from upslope.worlds.text_gridworld import TextGrid

__all__ = ["native_norms"]
SMALL = "S . +5\n. # -1\nS . ."
WORLDS: dict[str, dict[str, Any]] = {
    "mask": {},
    "bump": {"map": SMALL, "walls": "bump", "horizon": 4},
    "full": {"map": SMALL, "vocabulary": "full", "horizon": 3},
    "drawn": {"map": SMALL, "prompt": "map", "horizon": 4},
}
pytestmark = pytest.mark.usefixtures("native_norms")


def net(seed: int = 0, served: bool = True) -> Any:
    """The tiny Llama in float64, its weights large enough for a policy far from uniform."""
    model = tiny.network(seed).double().eval()
    with torch.no_grad():
        model.lm_head.weight *= 3
    model.set_attn_implementation(attention.NAME if served else "sdpa")
    return model


def renderer() -> Renderer:
    words = tiny.tokenizer()
    return Renderer(words, (words.eos_token_id,))


def trees(world: str) -> list[PrefixTree]:
    task = TextGrid(**WORLDS[world])
    return [task.tree(renderer(), start) for start in task.starts]


def deepest(world: str) -> PrefixTree:
    return max(trees(world), key=len)


def texts(tree: PrefixTree) -> list[list[tuple[int, int]]]:
    """(node, choice) of every choice of every leaf's text, by walking down from the root: no use of ``parent``.

    In the order of the leaves: by their last node and choice.
    """
    found: list[list[tuple[int, int]]] = []

    def down(node: int, before: list[tuple[int, int]]) -> None:
        for choice in range(tree.support.shape[1]):
            if tree.support[node, choice] >= 0:
                path = [*before, (node, choice)]
                child = int(tree.child[node, choice])
                down(child, path) if child >= 0 else found.append(path)

    down(0, [])
    return sorted(found, key=lambda path: path[-1])


def forward_by_leaf(tree: PrefixTree, model: Any) -> Tensor:
    """[nodes, choices]: log-probabilities by one plain causal forward pass of a stock model for each leaf."""
    out = torch.full(tree.support.shape, -torch.inf, dtype=torch.float64)
    prompt = tree.token_ids[: tree.prompt_length].tolist()
    for path in texts(tree):
        ids = [*prompt, *(int(tree.support[node, choice]) for node, choice in path)]
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        for depth, (node, _) in enumerate(path):
            allowed = tree.support[node][tree.support[node] >= 0]
            out[node, : len(allowed)] = logits[len(prompt) - 1 + depth][allowed].log_softmax(-1)
    return out


# ------------------------------------------------------------------------------------------------------------ the tree
@pytest.mark.parametrize("world", WORLDS)
def test_the_texts_of_the_tree_are_all_that_allowed_lets_be_said(world: str) -> None:
    """Enumerated from ``allowed`` alone, with scores from the task's reward on the decoded text."""
    task, words = TextGrid(**WORLDS[world]), renderer()
    allowed: Any = task.allowed(words)
    start = task.starts[-1]
    prompt = next(row for row in task.prompts("heldout") if row.content == task.content(start))
    ids = words.prompt(prompt.content)
    whole: set[tuple[int, ...]] = set()
    waiting: list[tuple[int, ...]] = [()]
    while waiting:
        text = waiting.pop()
        for token in allowed(ids, list(text)):
            (whole.add if token == words.stop_id else waiting.append)((*text, token))
    tree = task.tree(words, start)
    leaves = tree.leaf_tokens()
    assert len(leaves) == len(set(leaves)) and set(leaves) == whole
    said = [words.text(text) for text in leaves]
    columns = {name: [value] * len(said) for name, value in prompt.columns.items()}
    assert tree.leaf_scores.tolist() == task.reward([prompt.content] * len(said), said, **columns)
    assert max(map(len, leaves)) == task.longest


@pytest.mark.parametrize("world", WORLDS)
def test_one_forward_pass_is_a_plain_pass_over_each_text(world: str) -> None:
    tree = deepest(world)
    with torch.no_grad():
        found = tree_logprobs(net(), tree)
        wanted = forward_by_leaf(tree, net(served=False))
    assert torch.equal(found == -torch.inf, wanted == -torch.inf)
    assert float((found - wanted)[tree.legal].abs().max()) < 1e-10
    assert float(found[tree.legal].exp().std()) > 0.05  # a policy that is far from uniform


def test_one_forward_pass_keeps_to_a_sliding_window() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=3, initializer_range=0.5,
    )  # fmt: skip
    stock = MistralForCausalLM(config).double().eval()
    tree = deepest("mask")
    with torch.no_grad():
        stock.set_attn_implementation("sdpa")
        wanted = forward_by_leaf(tree, stock)
        stock.set_attn_implementation(attention.NAME)
        found = tree_logprobs(stock, tree)
    assert float((found - wanted)[tree.legal].abs().max()) < 1e-10


def test_a_critic_is_read_at_the_nodes() -> None:
    """Against ``ValueNetwork`` on each leaf's row, through the learner's packed path."""
    tree = deepest("bump")
    critic = ValueNetwork(net(1).model)
    torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(0))
    rows = rollouts(tree)
    values = FrozenScorer[Any](critic, 200).evaluate(collate_rollouts(rows)).values
    with torch.no_grad():
        found = tree_values(critic, tree)
    assert found.shape == (len(tree),)
    for row, path in enumerate(texts(tree)):
        for depth, (node, _) in enumerate(path):
            assert abs(float(values[row, tree.prompt_length - 1 + depth] - found[node])) < 1e-10


# ---------------------------------------------------------------------------------------------------- the exact answers
@pytest.mark.parametrize("world", WORLDS)
def test_probabilities_of_all_leaves_sum_to_one(world: str) -> None:
    for seed, tree in enumerate(trees(world)):
        with torch.no_grad():
            found = exact(tree, tree_logprobs(net(seed), tree))
        assert abs(float(found.leaf_probabilities.sum()) - 1) < 1e-12


@pytest.mark.parametrize("world", WORLDS)
def test_values_are_those_of_enumerating_every_text(world: str) -> None:
    """p(text) = product of its choices; J, V, Q, A, d by sums over texts that pass through a node or a choice."""
    tree = deepest(world)
    with torch.no_grad():
        logprobs = tree_logprobs(net(2), tree)
        found = exact(tree, logprobs)
    paths = texts(tree)
    nodes, choices = len(tree), tree.support.shape[1]
    mass, through = torch.zeros(nodes, choices, dtype=torch.float64), torch.zeros(nodes, choices, dtype=torch.float64)
    total = 0.0
    for leaf, path in enumerate(paths):
        p = float(torch.stack([logprobs[at] for at in path]).sum().exp())
        rewards = [float(tree.reward[at]) for at in path]
        assert abs(p - float(found.leaf_probabilities[leaf])) < 1e-14
        assert sum(rewards) == float(tree.leaf_scores[leaf])
        total += p * sum(rewards)
        for depth, at in enumerate(path):
            mass[at] += p
            through[at] += p * sum(rewards[depth:])
    d = mass.sum(1)
    assert abs(total - float(found.expected_return)) < 1e-10
    assert torch.allclose(found.occupancy, d, atol=1e-12)
    assert torch.allclose(found.values, through.sum(1) / d, atol=1e-8)
    reached = mass > 1e-8
    q = through[reached] / mass[reached]
    assert torch.allclose(found.action_values[reached], q, atol=1e-7)
    advantage = found.action_values - found.values[:, None]
    assert torch.equal(found.advantages[tree.legal], advantage[tree.legal])
    assert float((found.probabilities * found.advantages).sum(1).abs().max()) < 1e-12


def test_the_two_conventions_of_a_value_differ_by_the_points_so_far() -> None:
    """E[score | node] over whole texts = so_far + V."""
    tree = deepest("mask")
    with torch.no_grad():
        found = exact(tree, tree_logprobs(net(3), tree))
    expected, mass = torch.zeros(len(tree), dtype=torch.float64), torch.zeros(len(tree), dtype=torch.float64)
    for leaf, path in enumerate(texts(tree)):
        for node, _ in path:
            mass[node] += found.leaf_probabilities[leaf]
            expected[node] += found.leaf_probabilities[leaf] * tree.leaf_scores[leaf]
    assert torch.allclose(expected / mass, tree.so_far + found.values, atol=1e-9)
    assert float(tree.so_far.abs().max()) > 2


@pytest.mark.parametrize("world", WORLDS)
def test_the_gradient_of_the_return_is_the_policy_gradient(world: str) -> None:
    """grad J by autograd = sum_h d(h) sum_a pi(a|h) A(h, a) grad log pi(a|h), through the network."""
    tree, model = deepest(world), net(4)
    logprobs = tree_logprobs(model, tree)
    found = exact(tree, logprobs)
    weights = list(model.parameters())
    by_autograd = torch.autograd.grad(found.expected_return, weights, retain_graph=True)
    coefficient = (found.occupancy[:, None] * found.probabilities * found.advantages).detach()
    surrogate = (coefficient * torch.where(tree.legal, logprobs, 0.0)).sum()
    by_theorem = torch.autograd.grad(surrogate, weights)
    top = max(float(grad.abs().max()) for grad in by_autograd)
    assert top > 1e-5
    assert max(float((a - b).abs().max()) for a, b in zip(by_autograd, by_theorem, strict=True)) < 1e-10 * top


@pytest.mark.parametrize("world", WORLDS)
def test_best_is_the_maximum_over_the_tree(world: str) -> None:
    for tree in trees(world):
        best = torch.full((len(tree),), -torch.inf, dtype=torch.float64)
        for path in texts(tree):
            rewards = [float(tree.reward[at]) for at in path]
            for depth, (node, _) in enumerate(path):
                best[node] = max(float(best[node]), sum(rewards[depth:]))
        assert torch.equal(best, tree.best)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_what_is_lost_under_a_penalty_is_beta_times_the_divergence_from_the_soft_optimum(
    world: str, beta: float
) -> None:
    """J*_beta - J_beta(pi) = beta KL(pi || pi*), for two policies; and J*_beta is reached by pi*."""
    tree = deepest(world)
    with torch.no_grad():
        reference, other = tree_logprobs(net(5), tree), tree_logprobs(net(6), tree)
    soft = soft_optimum(tree, reference, beta)
    assert float((soft.logprobs.exp().sum(1) - 1).abs().max()) < 1e-12
    assert abs(float(regularised_return(tree, soft.logprobs, reference, beta) - soft.expected_return)) < 1e-10
    for policy in (other, reference):
        lost = soft.expected_return - regularised_return(tree, policy, reference, beta)
        assert float(lost) > 1e-3
        assert abs(float(lost - beta * sequence_kl(tree, policy, soft.logprobs))) < 1e-10


def test_the_penalised_return_sums_over_whole_texts() -> None:
    """J_beta = sum of p (score - beta (log p - log ref)) over texts; V_beta = beta log sum of ref exp(score / beta)."""
    tree, beta = deepest("full"), 0.7
    with torch.no_grad():
        policy, reference = tree_logprobs(net(7), tree), tree_logprobs(net(8), tree)
    total, weights = 0.0, []
    for leaf, path in enumerate(texts(tree)):
        ours = sum(float(policy[at]) for at in path)
        theirs = sum(float(reference[at]) for at in path)
        total += torch.tensor(ours).double().exp().item() * (float(tree.leaf_scores[leaf]) - beta * (ours - theirs))
        weights.append(theirs + float(tree.leaf_scores[leaf]) / beta)
    assert abs(total - float(regularised_return(tree, policy, reference, beta))) < 1e-5
    wanted = beta * torch.tensor(weights, dtype=torch.float64).logsumexp(0)
    assert abs(float(soft_optimum(tree, reference, beta).expected_return - wanted)) < 1e-10
    with pytest.raises(ValueError, match="beta is 0"):
        soft_optimum(tree, reference, 0.0)


# ---------------------------------------------------------------------------------------------------- sampler, learner
def rollouts(tree: PrefixTree, temperature: float = 1.0, group: int = 0) -> list[Rollout]:
    """Every text as a rollout, its support recorded as the sampler records it."""
    prompt = tree.token_ids[: tree.prompt_length].tolist()
    found = []
    for number, (path, text) in enumerate(zip(texts(tree), tree.leaf_tokens(), strict=True)):
        support = [tuple(tree.support[node][tree.support[node] >= 0].tolist()) for node, _ in path]
        support += [(tree.stop_id,)] * (len(text) - len(path))
        before = len(prompt)
        found.append(
            Rollout(
                "p", group, number, (*prompt, *text), (False,) * before + (True,) * len(text),
                (0.0,) * (before + len(text)), (0.0,) * (before + len(text)), True, 0, temperature,
                (None,) * before + tuple(support),
            )
        )  # fmt: skip
    return found


@pytest.mark.parametrize("world", WORLDS)
def test_the_learners_logprobs_are_the_trees(world: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed with shared prompts, cut into micro-batches, the head in chunks of 7 rows; two ragged prompts."""
    monkeypatch.setattr(networks, "chosen", partial(head.chosen, chunk=7))
    model, pair = net(9), sorted(trees(world), key=len)[-2:]
    for temperature in (1.0, 0.7):
        rows = [row for group, tree in enumerate(pair) for row in rollouts(tree, temperature, group)]
        scorer = FrozenScorer[PolicyEvaluation](PolicyNetwork(model), micro_batch_tokens=150)
        batch = collate_rollouts(rows)
        found = scorer.evaluate(batch)
        place = 0
        for tree in pair:
            with torch.no_grad():
                wanted = tree_logprobs(model, tree, temperature)
                answers = exact(tree, wanted)
            begin, paths = tree.prompt_length - 1, texts(tree)
            for row, path in enumerate(paths):
                ours = found.logprobs[place + row, begin : begin + len(path)]
                assert float((ours - torch.stack([wanted[at] for at in path])).abs().max()) < 1e-10
                assert not found.logprobs[place + row, begin + len(path) :].any()  # the forced stop adds nothing
                assert not found.entropy[place + row, begin + len(path) :].any()
            total = found.logprobs[place : place + len(paths)].sum(1).exp()
            assert torch.allclose(total, answers.leaf_probabilities, atol=1e-12) and abs(total.sum() - 1) < 1e-12
            place += len(paths)


@pytest.mark.parametrize("world", ["mask", "bump", "drawn"])
def test_without_its_support_the_learner_scores_another_policy(world: str) -> None:
    """The mass of all texts is then far from 1: the check above would be red."""
    tree, model = deepest(world), net(9)
    batch = collate_rollouts(rollouts(tree))
    bare = type(batch)(batch.token_ids, batch.lengths, batch.mask, batch.unit, batch.temperature, None)
    found = FrozenScorer[PolicyEvaluation](PolicyNetwork(model), 4096).evaluate(bare)
    assert float(found.logprobs.sum(1).exp().sum()) < 0.5


@pytest.mark.parametrize("world", WORLDS)
def test_the_sampler_draws_from_the_tree(world: str) -> None:
    """Its log-probabilities and supports are the tree's; the frequency of each text has |z| < 4."""
    task, words, model = TextGrid(**WORLDS[world]), renderer(), net(10)
    start, count, temperature = task.starts[0], 800, 0.8
    tree = task.tree(words, start)
    with torch.no_grad():
        logprobs = tree_logprobs(model, tree, temperature)
        answers = exact(tree, logprobs)
    sampling = Sampling(task.longest, words.stop_ids, temperature, allowed=task.allowed(words))
    prompt = words.prompt(task.content(start))
    (drawn,) = InProcessSampler(model, 64).sample([prompt], count, sampling, [3])
    number = {text: leaf for leaf, text in enumerate(tree.leaf_tokens())}
    paths = texts(tree)
    counts = torch.zeros(len(paths), dtype=torch.float64)
    for completion in drawn:
        leaf = number[completion.token_ids]
        counts[leaf] += 1
        path = paths[leaf]
        forced = len(completion.token_ids) - len(path)
        wanted = [float(logprobs[at]) for at in path] + [0.0] * forced
        assert completion.logprobs == pytest.approx(wanted, abs=1e-6)
        listed = [tuple(tree.support[node][tree.support[node] >= 0].tolist()) for node, _ in path]
        assert completion.support == (*listed, *([(words.stop_id,)] * forced))
        assert completion.stopped
    p = answers.leaf_probabilities
    likely = p * count > 20
    assert int(likely.sum()) >= 3
    z = (counts - count * p) / (count * p * (1 - p)).sqrt()
    assert float(z[likely].abs().max()) < 4
    assert abs(float(counts[likely].sum()) - count * float(p[likely].sum())) < 4 * (count * 0.25) ** 0.5
