"""Successor lists against dense arrays, the sparse solve against the dense one, and policy iteration."""

from __future__ import annotations

import itertools
import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from upslope.maths import bellman
from upslope.maths.bellman import Mdp, SparseMdp

F64 = torch.float64
INF = math.inf

seeds = st.integers(0, 100_000)


def random_sparse(seed: int, states: int = 9, actions: int = 3, outcomes: int = 3) -> SparseMdp:
    """Few successors, some twice, some of probability 0; some actions missing; dead ends may occur; two ends."""
    draw = torch.Generator().manual_seed(seed)
    successor = torch.randint(0, states, (states, actions, outcomes), generator=draw)
    probability = torch.rand(states, actions, outcomes, generator=draw, dtype=F64)
    probability = probability * (torch.rand(states, actions, outcomes, generator=draw) < 0.6)
    probability[:, :, 0] += 0.05
    probability = probability / probability.sum(2, keepdim=True)
    available = torch.rand(states, actions, generator=draw) < 0.7
    available[:, 0] = True
    reward = -torch.rand(states, actions, generator=draw, dtype=F64) - 0.1
    terminal = torch.arange(states) >= states - 2
    return SparseMdp(successor, probability, reward, terminal, available)


def random_policy(mdp: Mdp | SparseMdp, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    weights = torch.rand(mdp.reward.shape, generator=draw, dtype=F64) * mdp.available
    weights = weights * (torch.rand(mdp.reward.shape, generator=draw) < 0.7) + 1e-3 * mdp.available * (weights == 0)
    weights = torch.where(weights < 0.01, 0.0, weights)  # some actions are never taken
    weights[:, 0] += 0.02 * mdp.available[:, 0]
    return weights / weights.sum(1, keepdim=True).clamp(min=1e-300)


# -------------------------------------------------------------------------------------------------- sparse equals dense
@settings(max_examples=20, deadline=None)
@given(seed=seeds, discount=st.sampled_from([0.0, 0.9, 1.0]))
def test_the_four_questions_have_the_same_answers(seed: int, discount: float) -> None:
    sparse = random_sparse(seed)
    dense = sparse.dense()
    draw = torch.Generator().manual_seed(seed)
    values, some = torch.randn(9, generator=draw, dtype=F64), torch.rand(9, generator=draw) < 0.4
    torch.testing.assert_close(sparse.expected(values), dense.expected(values), atol=1e-14, rtol=0)
    assert torch.equal(sparse.may_reach(some), dense.may_reach(some))
    pairs = [set(zip(*(part.tolist() for part in mdp.edges()), strict=True)) for mdp in (sparse, dense)]
    assert pairs[0] == pairs[1] and len(pairs[0]) > 9
    policy = random_policy(sparse, seed)
    torch.testing.assert_close(
        sparse.chain(policy).after(values), dense.chain(policy).after(values), atol=1e-13, rtol=0
    )
    lost = torch.where(some, -INF, values)
    torch.testing.assert_close(
        bellman.action_values(sparse, lost, discount), bellman.action_values(dense, lost, discount), atol=1e-13, rtol=0
    )


@settings(max_examples=25, deadline=None)
@given(seed=seeds, discount=st.sampled_from([0.9, 1.0]))
def test_sparse_solutions_equal_dense_ones(seed: int, discount: float) -> None:
    sparse = random_sparse(seed)
    dense = sparse.dense()
    best = bellman.optimal_values(dense, discount)
    torch.testing.assert_close(bellman.optimal_values(sparse, discount), best, atol=1e-9, rtol=1e-9)
    policy = random_policy(sparse, seed)
    values = bellman.policy_values(dense, policy, discount)
    torch.testing.assert_close(bellman.policy_values(sparse, policy, discount), values, atol=1e-10, rtol=1e-11)
    sure = (~sparse.terminal & torch.isfinite(values)).to(F64)
    start = sure / sure.sum().clamp(min=1)
    if discount == 1.0 and bool(torch.isneginf(values).any()):
        caught = torch.isneginf(values).to(F64)
        with pytest.raises(ValueError, match="never end"):
            bellman.occupancy(sparse, policy, caught / caught.sum(), 1.0)
    visits = bellman.occupancy(sparse, policy, start, discount)
    expected = bellman.occupancy(dense, policy, start, discount)
    torch.testing.assert_close(visits, expected, atol=1e-10, rtol=1e-11)
    for mdp in (sparse, dense):
        found, chosen, _ = bellman.policy_iteration(mdp, discount)
        torch.testing.assert_close(found, best, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(bellman.policy_values(mdp, chosen, discount), found, atol=1e-9, rtol=1e-9)


def test_a_policy_that_never_ends_is_reported_by_both() -> None:
    """0 <-> 1, 1 -> 2 (ends): back and forth for ever is -inf; one way and the other by turns may still end."""
    successor = torch.tensor([[[1], [1]], [[0], [2]], [[2], [2]]])
    mdp = SparseMdp(
        successor, torch.ones(3, 2, 1, dtype=F64), -torch.ones(3, 2, dtype=F64), torch.tensor([False, False, True])
    )
    for process in (mdp, mdp.dense()):
        back = torch.tensor([[1.0, 0], [1, 0], [0, 0]], dtype=F64)
        assert bellman.policy_values(process, back, 1.0).tolist() == [-INF, -INF, 0]
        assert bellman.policy_values(process, back, 0.5).tolist() == pytest.approx([-2, -2, 0])
        often = torch.tensor([[1.0, 0], [0.5, 0.5], [0, 0]], dtype=F64)
        # V1 = -1 + V0 / 2, V0 = -1 + V1, so V1 = -3 and V0 = -4.
        assert bellman.policy_values(process, often, 1.0).tolist() == pytest.approx([-4, -3, 0])
        start = torch.tensor([1.0, 0, 0], dtype=F64)
        assert bellman.occupancy(process, often, start, 1.0).tolist() == pytest.approx([2, 2, 1])


def test_the_sparse_solution_refuses_a_gradient_that_it_does_not_have() -> None:
    mdp = random_sparse(1)
    policy = random_policy(mdp, 1).requires_grad_()
    with pytest.raises(ValueError, match="no gradient"):
        bellman.policy_values(mdp, policy, 0.9)
    with torch.no_grad():
        free = bellman.policy_values(mdp, policy, 0.9)
    kept = bellman.policy_values(mdp.dense(), policy, 0.9)
    torch.testing.assert_close(free, kept.detach(), atol=1e-12, rtol=0)
    (gradient,) = torch.autograd.grad(kept.sum(), policy)
    assert gradient.abs().max() > 0


def test_float32_successor_lists_are_solved_in_float32() -> None:
    mdp = random_sparse(3)
    single = SparseMdp(mdp.successor.int(), mdp.probability.float(), mdp.reward.float(), mdp.terminal, mdp.available)
    policy = random_policy(mdp, 3)
    found = bellman.policy_values(single, policy, 0.9)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), bellman.policy_values(mdp, policy, 0.9), atol=1e-4, rtol=0)
    assert bellman.optimal_values(single, 0.9).dtype == torch.float32


# ---------------------------------------------------------------------------------------------------------------- input
def test_what_stands_at_missing_actions_and_probability_0_never_matters() -> None:
    clean = random_sparse(2)
    missing = ~clean.available
    assert missing.any() and (clean.probability == 0).any()
    dirty = SparseMdp(
        torch.where(clean.probability == 0, -7, clean.successor),
        clean.probability.masked_fill(missing.unsqueeze(2), math.nan),
        clean.reward.masked_fill(missing, math.inf),
        clean.terminal,
        clean.available,
    )
    for discount in (0.9, 1.0):
        assert torch.equal(bellman.optimal_values(dirty, discount), bellman.optimal_values(clean, discount))


def test_lists_that_are_no_decision_process_are_refused() -> None:
    good = random_sparse(4)
    half = good.probability.clone()
    half[0] *= 0.5
    with pytest.raises(ValueError, match="states 0 are not distributions"):
        SparseMdp(good.successor, half, good.reward, good.terminal, good.available)
    for outside in (-1, 9):
        where = good.successor.clone()
        where[1, 0, 0] = outside
        with pytest.raises(ValueError, match="successors of states 1 are no states"):
            SparseMdp(where, good.probability, good.reward, good.terminal, good.available)
    with pytest.raises(ValueError, match="states 2 do not end the episode"):
        none = good.available.clone()
        none[2] = False
        SparseMdp(good.successor, good.probability, good.reward, good.terminal, none)
    with pytest.raises(ValueError, match="rewards of states 3"):
        paid = good.reward.clone()
        paid[3, 0] = math.nan
        SparseMdp(good.successor, good.probability, paid, good.terminal, good.available)


# ----------------------------------------------------------------------------------------------------- policy iteration
def walk_line(states: int, left: float, right: float, cost: float = 1.0) -> SparseMdp:
    """States in a row; the outer two end and pay; actions: left, right."""
    place = torch.arange(states)
    successor = torch.stack([(place - 1).clamp(min=0), (place + 1).clamp(max=states - 1)], 1).unsqueeze(2)
    reward = torch.full((states, 2), -cost, dtype=F64)
    reward[1, 0] += left
    reward[-2, 1] += right
    terminal = (place == 0) | (place == states - 1)
    return SparseMdp(successor, torch.ones(states, 2, 1, dtype=F64), reward, terminal)


@settings(max_examples=15, deadline=None)
@given(seed=seeds, discount=st.sampled_from([0.5, 0.9, 1.0]))
def test_policy_iteration_finds_the_best_of_all_deterministic_policies(seed: int, discount: float) -> None:
    mdp = random_sparse(seed, states=6, actions=2)
    best = torch.full((6,), -INF, dtype=F64)
    for actions in itertools.product(*(mdp.available[s].nonzero().flatten().tolist() for s in range(4))):
        policy = torch.zeros(6, 2, dtype=F64)
        policy[torch.arange(4), torch.tensor(actions)] = 1
        best = torch.maximum(best, bellman.policy_values(mdp, policy, discount))
    values, policy, evaluations = bellman.policy_iteration(mdp, discount)
    torch.testing.assert_close(values, best, atol=1e-9, rtol=1e-9)
    assert 1 <= evaluations <= 30
    lives = ~mdp.terminal & torch.isfinite(values)
    assert (policy[lives].amax(1) == 1).all() and (policy[lives].sum(1) == 1).all()
    assert (policy[mdp.terminal] == 0).all() and (policy[~mdp.available] == 0).all()


def test_policy_iteration_starts_from_a_policy_that_ends() -> None:
    """Left pays 0 and right 100; the start goes to the nearer end, so the first evaluation is finite and improves."""
    mdp = walk_line(12, 0.0, 100.0)
    values, policy, evaluations = bellman.policy_iteration(mdp, 1.0)
    assert values.tolist() == [0, *(100.0 - (11 - place) for place in range(1, 11)), 0]
    assert (policy[1:-1, 1] == 1).all() and evaluations > 2


def test_policy_iteration_without_costs_takes_no_walk_in_circles() -> None:
    """Where all moves are worth the same, the first of them, left, never ends: a move is kept unless one is better."""
    mdp = walk_line(6, 0.0, 5.0, cost=0.0)
    values, policy, _ = bellman.policy_iteration(mdp, 1.0)
    assert values.tolist() == [0, 5, 5, 5, 5, 0]
    assert bellman.policy_values(mdp, policy, 1.0).tolist() == values.tolist()


def test_policy_iteration_says_where_no_policy_ends() -> None:
    mdp = walk_line(5, 1.0, 1.0)
    shut = SparseMdp(mdp.successor, torch.ones(5, 2, 1, dtype=F64), mdp.reward, torch.tensor([False] * 5))
    values, policy, _ = bellman.policy_iteration(shut, 1.0)
    assert torch.isneginf(values).all() and (policy == 0).all()
    assert torch.isfinite(bellman.policy_iteration(shut, 0.9)[0]).all()


def test_a_circle_that_pays_is_an_error_and_not_a_loop() -> None:
    mdp = walk_line(6, 1.0, 1.0)
    reward = mdp.reward.clone()
    reward[2, 1] = 3.0  # 2 -> 3 pays more than 3 -> 2 costs
    paying = SparseMdp(mdp.successor, mdp.probability, reward, mdp.terminal, mdp.available)
    with pytest.raises(ValueError, match="pays for ever"):
        bellman.policy_iteration(paying, 1.0)
    with pytest.raises(ValueError, match="pays for ever"):
        bellman.optimal_values(paying, 1.0)


def test_policy_iteration_gives_up_after_its_limit() -> None:
    with pytest.raises(ValueError, match="2 evaluations"):
        bellman.policy_iteration(walk_line(30, 0.0, 100.0), 1.0, max_evaluations=2)


# ---------------------------------------------------------------------------------------------------------------- scale
def test_a_world_of_ten_thousand_states_solves_in_seconds() -> None:
    """A 100 x 100 torus of slippery moves with a few ends. Dense, it would fill 3.2 GB."""
    side, states = 100, 10_000
    place = torch.arange(states)
    row, column = place // side, place % side
    steps = [(-1, 0), (0, 1), (1, 0), (0, -1)]
    lands = torch.stack([((row + r) % side) * side + (column + c) % side for r, c in steps], 1)
    successor = torch.stack([lands, lands.roll(1, 1), lands.roll(-1, 1)], 2)
    probability = torch.tensor([0.8, 0.1, 0.1], dtype=F64).expand(states, 4, 3)
    terminal = torch.zeros(states, dtype=torch.bool)
    terminal[::997] = True
    reward = torch.full((states, 4), -1.0, dtype=F64)
    mdp = SparseMdp(successor, probability, reward, terminal)
    began = time.process_time()
    best, policy, _ = bellman.policy_iteration(mdp, 1.0)
    uniform = torch.full((states, 4), 0.25, dtype=F64)
    values = bellman.policy_values(mdp, uniform, 1.0)
    visits = bellman.occupancy(mdp, uniform, torch.full((states,), 1 / states, dtype=F64), 1.0)
    assert time.process_time() - began < 30  # 3 to 5 seconds on one busy core
    # Each solution satisfies its own equation: Bellman's, and one visit a move.
    worth = bellman.action_values(mdp, best, 1.0)
    torch.testing.assert_close(worth.amax(1), best, atol=1e-9, rtol=0)
    torch.testing.assert_close((policy * worth).sum(1), best, atol=1e-9, rtol=0)
    torch.testing.assert_close(bellman.action_values(mdp, values, 1.0).mean(1), values, atol=1e-7, rtol=0)
    assert visits[~terminal].sum().item() == pytest.approx(-values.mean().item(), rel=1e-10)
    assert visits[terminal].sum().item() == pytest.approx(1.0, abs=1e-9)
