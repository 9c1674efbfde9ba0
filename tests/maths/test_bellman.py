"""Exact solutions against brute force over policies, summed series, hand numbers and identities."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from upslope.maths import bellman
from upslope.maths.bellman import Mdp

F64 = torch.float64
INF = math.inf


def blank(states: int, actions: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.zeros(states, actions, states, dtype=F64),
        torch.zeros(states, actions, dtype=F64),
        torch.zeros(states, dtype=torch.bool),
    )


# ------------------------------------------------------------------------------------------- random worlds, brute force
def random_mdp(seed: int, states: int = 5, actions: int = 3, ends: bool = True) -> Mdp:
    """Sparse random transitions, some actions missing, the last state terminal and reachable by every action."""
    generator = torch.Generator().manual_seed(seed)
    transition = torch.rand(states, actions, states, generator=generator, dtype=F64)
    transition = transition * (torch.rand(states, actions, states, generator=generator) < 0.5)
    transition[:, :, -1] += 0.05
    transition = transition / transition.sum(2, keepdim=True)
    available = torch.rand(states, actions, generator=generator) < 0.7
    available[:, 0] = True
    reward = torch.randn(states, actions, generator=generator, dtype=F64)
    terminal = torch.arange(states) == (states - 1 if ends else -1)
    return Mdp(transition, reward, terminal, available)


def random_policy(mdp: Mdp, seed: int) -> Tensor:
    weights = torch.rand(mdp.reward.shape, generator=torch.Generator().manual_seed(seed), dtype=F64) * mdp.available
    return weights / weights.sum(1, keepdim=True).clamp(min=1e-300)


seeds = st.integers(0, 10_000)


@settings(max_examples=12, deadline=None)
@given(seed=seeds, discount=st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_optimal_values_are_the_best_over_all_deterministic_policies(seed: int, discount: float) -> None:
    mdp = random_mdp(seed, states=4)
    best = torch.full((4,), -INF, dtype=F64)
    for actions in itertools.product(*(mdp.available[s].nonzero().flatten().tolist() for s in range(3))):
        policy = torch.zeros(4, 3, dtype=F64)
        policy[torch.arange(3), torch.tensor(actions)] = 1
        best = torch.maximum(best, bellman.policy_values(mdp, policy, discount))
    torch.testing.assert_close(bellman.optimal_values(mdp, discount), best, atol=1e-9, rtol=0)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, discount=st.sampled_from([0.0, 0.7, 0.95, 1.0]))
def test_policy_values_and_occupancy_equal_the_summed_series(seed: int, discount: float) -> None:
    mdp = random_mdp(seed)
    policy = random_policy(mdp, seed)
    moves = torch.einsum("sa,sat->st", policy, mdp.transition)
    paid = (policy * mdp.reward).sum(1)
    start = torch.rand(5, generator=torch.Generator().manual_seed(seed), dtype=F64)
    start = start / start.sum()
    values, visits, here, there = torch.zeros(5, dtype=F64), torch.zeros(5, dtype=F64), start, torch.eye(5, dtype=F64)
    for step in range(800):
        values, visits = values + discount**step * there @ paid, visits + discount**step * here
        here, there = here @ moves, there @ moves
    torch.testing.assert_close(bellman.policy_values(mdp, policy, discount), values, atol=1e-10, rtol=0)
    found = bellman.occupancy(mdp, policy, start, discount)
    torch.testing.assert_close(found, visits, atol=1e-10, rtol=0)
    torch.testing.assert_close(found @ paid, start @ values, atol=1e-10, rtol=0)
    if discount == 1.0:
        assert found[4].item() == pytest.approx(1.0)  # every episode ends there


@settings(max_examples=20, deadline=None)
@given(seed=seeds, discount=st.sampled_from([0.9, 1.0]))
def test_greedy_on_the_value_of_a_policy_improves_it_everywhere(seed: int, discount: float) -> None:
    mdp = random_mdp(seed)
    values = bellman.policy_values(mdp, random_policy(mdp, seed), discount)
    better = bellman.greedy_policy(bellman.action_values(mdp, values, discount))
    assert (bellman.policy_values(mdp, better, discount) >= values - 1e-10).all()


@settings(max_examples=20, deadline=None)
@given(seed=seeds, discount=st.sampled_from([0.3, 0.9]))
def test_the_bellman_backup_contracts_by_the_discount(seed: int, discount: float) -> None:
    mdp = random_mdp(seed)
    left, right = torch.randn(2, 5, dtype=F64, generator=torch.Generator().manual_seed(seed)) * ~mdp.terminal
    backed = [bellman.action_values(mdp, x, discount).amax(1) for x in (left, right)]
    assert (backed[0] - backed[1]).abs().max() <= discount * (left - right).abs().max() + 1e-12


@settings(max_examples=15, deadline=None)
@given(seed=seeds, discount=st.sampled_from([0.8, 1.0]))
def test_advantages_average_to_0_and_explain_the_difference_of_two_policies(seed: int, discount: float) -> None:
    """sum_a pi A = 0. J(pi') - J(pi) = sum_s d'(s) sum_a pi'(a|s) A(s, a)."""
    mdp = random_mdp(seed)
    old, new = random_policy(mdp, seed), random_policy(mdp, seed + 1)
    start = torch.full((5,), 0.2, dtype=F64)
    values = bellman.policy_values(mdp, old, discount)
    gains = bellman.action_values(mdp, values, discount) - values.unsqueeze(1)
    gains = gains.masked_fill(~mdp.available, 0.0)
    torch.testing.assert_close((old * gains).sum(1), torch.zeros(5, dtype=F64), atol=1e-12, rtol=0)
    gap = start @ bellman.policy_values(mdp, new, discount) - start @ values
    explained = bellman.occupancy(mdp, new, start, discount) @ (new * gains).sum(1)
    torch.testing.assert_close(gap, explained, atol=1e-10, rtol=0)


@pytest.mark.parametrize("discount", [0.8, 1.0])
def test_the_gradient_of_the_objective_is_the_policy_gradient_theorem(discount: float) -> None:
    mdp = random_mdp(3)
    logits = torch.randn(5, 3, dtype=F64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    masked = logits.masked_fill(~mdp.available, -1e30)
    policy = masked.softmax(1)
    start = torch.full((5,), 0.2, dtype=F64)
    values = bellman.policy_values(mdp, policy, discount)
    (by_autograd,) = torch.autograd.grad(start @ values, logits, retain_graph=True)
    visits = bellman.occupancy(mdp, policy, start, discount).detach()
    worth = bellman.action_values(mdp, values.detach(), discount).masked_fill(~mdp.available, 0.0)
    score = (visits.unsqueeze(1) * policy.detach() * worth * masked.log_softmax(1)).sum()
    (by_theorem,) = torch.autograd.grad(score, logits)
    torch.testing.assert_close(by_theorem, by_autograd, atol=1e-12, rtol=0)
    assert by_autograd.abs().max() > 1e-3


def test_slow_discounts_converge_to_the_exact_solution() -> None:
    mdp = random_mdp(5, ends=False)
    values = bellman.optimal_values(mdp, 0.99)
    policy = bellman.greedy_policy(bellman.action_values(mdp, values, 0.99), tolerance=1e-9)
    torch.testing.assert_close(values, bellman.policy_values(mdp, policy, 0.99), atol=1e-10, rtol=0)


# ------------------------------------------------------------------------------------------------ discount 1, dead ends
def corridor(points: float = 5.0) -> Mdp:
    """0 - 1 - 2 (ends) and a room 3 - 4 without a way out; actions: left, right; a step costs 1."""
    transition, reward, terminal = blank(5, 2)
    available = torch.tensor([[False, True], [True, True], [True, True], [False, True], [True, False]])
    for state, action, there in ((0, 1, 1), (1, 0, 0), (1, 1, 2), (3, 1, 4), (4, 0, 3)):
        transition[state, action, there] = 1
        reward[state, action] = -1 + (points if there == 2 else 0)
    terminal[2] = True
    return Mdp(transition, reward, terminal, available)


def test_states_that_cannot_reach_an_end_are_worth_minus_infinity() -> None:
    mdp = corridor()
    values = bellman.optimal_values(mdp, 1.0)
    assert values.tolist() == [3, 4, 0, -INF, -INF]
    worth = bellman.action_values(mdp, values, 1.0)
    assert worth.tolist() == [[-INF, 3], [2, 4], [0, 0], [-INF, -INF], [-INF, -INF]]
    greedy = bellman.greedy_policy(worth)
    assert greedy.tolist() == [[0, 1], [0, 1], [0.5, 0.5], [0, 0], [0, 0]]
    assert torch.equal(bellman.policy_values(mdp, greedy, 1.0), values)


def test_a_policy_that_never_ends_is_worth_minus_infinity_where_it_may_be_caught() -> None:
    mdp = corridor()
    back = torch.tensor([[0, 1.0], [1, 0], [0, 0], [0, 1], [1, 0]], dtype=F64)  # 0 and 1 for ever
    assert bellman.policy_values(mdp, back, 1.0).tolist() == [-INF, -INF, 0, -INF, -INF]
    often = torch.tensor([[0, 1.0], [0.5, 0.5], [0, 0], [0, 1], [1, 0]], dtype=F64)
    # V0 = -1 + V1, V1 = (-1 + V0) / 2 + 4 / 2, so V1 = 2 and V0 = 1.
    assert bellman.policy_values(mdp, often, 1.0).tolist() == [pytest.approx(1), pytest.approx(2), 0, -INF, -INF]
    start = torch.tensor([1.0, 0, 0, 0, 0], dtype=F64)
    with pytest.raises(ValueError, match="never end"):
        bellman.occupancy(mdp, back, start, 1.0)
    # From 0 the room behind the wall is out of reach, so visits are finite: 1 + 1/2 + 1/4 + ... = 2 each.
    torch.testing.assert_close(
        bellman.occupancy(mdp, often, start, 1.0), torch.tensor([2.0, 2, 1, 0, 0], dtype=F64), atol=1e-12, rtol=0
    )


def test_a_gamble_that_may_end_in_a_dead_room_is_worth_minus_infinity() -> None:
    """Action 0 ends with 1/2 and else falls into a room without a way out; action 1 ends slowly but surely."""
    transition, reward, terminal = blank(3, 2)
    transition[0, 0, 1] = transition[0, 0, 2] = 0.5
    transition[0, 1, 0] = 0.9
    transition[0, 1, 1] = 0.1
    transition[2, :, 2] = 1
    reward[:] = -1
    terminal[1] = True
    mdp = Mdp(transition, reward, terminal)
    values = bellman.optimal_values(mdp, 1.0)
    assert values.tolist() == [pytest.approx(-10, abs=1e-10), 0, -INF]
    assert bellman.action_values(mdp, values, 1.0)[0].tolist() == [-INF, pytest.approx(-10, abs=1e-10)]
    gamble = torch.tensor([[1.0, 0], [0, 0], [0.5, 0.5]], dtype=F64)
    assert bellman.policy_values(mdp, gamble, 1.0).tolist() == [-INF, 0, -INF]


def test_a_world_without_an_end_is_worth_minus_infinity_under_discount_1() -> None:
    endless = random_mdp(0, ends=False)
    assert torch.isfinite(bellman.optimal_values(endless, 0.9)).all()
    assert torch.isneginf(bellman.optimal_values(endless, 1.0)).all()


def test_rewards_that_can_be_collected_for_ever_are_an_error_and_not_a_loop() -> None:
    base = corridor()
    reward = base.reward.clone()
    reward[1, 0] = 3.0  # 1 -> 0 pays more than 0 -> 1 costs
    with pytest.raises(ValueError, match="pays for ever"):
        bellman.optimal_values(Mdp(base.transition, reward, base.terminal, base.available), 1.0)


def test_free_moves_spread_the_best_points_everywhere() -> None:
    base = corridor()
    free = Mdp(base.transition, base.reward + 1, base.terminal, base.available)
    assert bellman.optimal_values(free, 1.0).tolist() == [5, 5, 0, -INF, -INF]


def test_sweeps_start_from_minus_infinity_and_spread_from_the_end() -> None:
    assert bellman.value_iteration_sweeps(corridor(), 1.0)[:, :3].tolist() == [
        [-INF, -INF, 0],
        [-INF, 4, 0],
        [3, 4, 0],
        [3, 4, 0],
    ]


def test_sweeps_with_a_discount_start_from_zeros_and_rise_by_one_backup_each() -> None:
    mdp = random_mdp(1)
    sweeps = bellman.value_iteration_sweeps(mdp, 0.9)
    assert (sweeps[0] == 0).all() and torch.equal(sweeps[-1], bellman.optimal_values(mdp, 0.9))
    for before, after in itertools.pairwise(sweeps):
        assert torch.equal(after, bellman.action_values(mdp, before, 0.9).amax(1))


# ---------------------------------------------------------------------------------------------------- greedy and inputs
def test_greedy_spreads_ties_evenly_within_its_tolerance() -> None:
    worth = torch.tensor([[1.0, 1.0, 0.0, -INF], [2.0, 2.0 - 1e-9, 2.0 + 1e-9, 0.0], [0.0, 1e-3, 0.0, 0.0]], dtype=F64)
    third = pytest.approx(1 / 3)
    assert bellman.greedy_policy(worth).tolist() == [[0.5, 0.5, 0, 0], [third, third, third, 0], [0, 1, 0, 0]]
    assert bellman.greedy_policy(worth, tolerance=0.01)[2].tolist() == [0.25] * 4


def test_values_at_terminal_states_are_taken_as_0() -> None:
    mdp = corridor()
    values = bellman.optimal_values(mdp, 1.0)
    shown = values.masked_fill(mdp.terminal, 5.0)
    assert torch.equal(bellman.action_values(mdp, shown, 1.0), bellman.action_values(mdp, values, 1.0))


def test_what_stands_at_missing_actions_and_terminal_states_never_matters() -> None:
    clean = corridor()
    missing = ~clean.available
    assert missing[2].all()
    dirty = Mdp(
        clean.transition.masked_fill(missing.unsqueeze(2), math.nan),
        clean.reward.masked_fill(missing, math.inf),
        clean.terminal,
        clean.available,
    )
    for discount in (0.9, 1.0):
        assert torch.equal(bellman.optimal_values(dirty, discount), bellman.optimal_values(clean, discount))


def test_arrays_that_are_no_decision_process_are_refused() -> None:
    good = corridor()
    with pytest.raises(ValueError, match="states 0 are not distributions"):
        Mdp(good.transition.index_fill(0, torch.tensor([0]), 0.3), good.reward, good.terminal, good.available)
    with pytest.raises(ValueError, match="states 1 do not end the episode"):
        Mdp(good.transition, good.reward, good.terminal, good.available.index_fill(0, torch.tensor([1]), False))
    with pytest.raises(ValueError, match="rewards of states 1"):
        Mdp(good.transition, good.reward.index_fill(0, torch.tensor([1]), math.nan), good.terminal, good.available)


@pytest.mark.parametrize(
    "row", [[0.5, 0.4], [1.5, -0.5], [math.nan, 1.0]], ids=["sums to 0.9", "negative", "not a number"]
)
def test_a_row_that_is_no_distribution_over_actions_is_refused(row: list[float]) -> None:
    policy = torch.tensor([[0.0, 1.0], row, [0, 0], [0, 1], [1, 0]], dtype=F64)
    with pytest.raises(ValueError, match="policy rows of states 1"):
        bellman.policy_values(corridor(), policy, 1.0)


def test_a_policy_that_takes_a_missing_action_is_refused() -> None:
    policy = torch.tensor([[0.5, 0.5], [0, 1], [0, 0], [0, 1], [1, 0]], dtype=F64)
    with pytest.raises(ValueError, match="policy rows of states 0"):
        bellman.policy_values(corridor(), policy, 1.0)


@pytest.mark.parametrize("discount", [-0.1, 1.1, math.nan])
def test_a_discount_outside_0_and_1_is_refused(discount: float) -> None:
    with pytest.raises(ValueError, match="discount"):
        bellman.optimal_values(corridor(), discount)


def test_float32_arrays_are_solved_in_float32() -> None:
    mdp = corridor()
    single = Mdp(mdp.transition.float(), mdp.reward.float(), mdp.terminal, mdp.available)
    values = bellman.optimal_values(single, 1.0)
    assert values.dtype == torch.float32 and torch.equal(values.double(), bellman.optimal_values(mdp, 1.0))
    assert bellman.optimal_values(single, 0.99).dtype == torch.float32
