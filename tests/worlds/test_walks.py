"""Walks: they follow the world, rows hold nothing but moves, and rewards of cut walks are complete."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from upslope.maths import bellman, returns
from upslope.worlds.gridworld import SIX_BY_SIX, Gridworld, parse
from upslope.worlds.walks import Transitions, Walks, episodes

SLIPPERY = parse(SIX_BY_SIX, slip=0.3, blocked="bump")
PLAIN = parse(SIX_BY_SIX)


def uniform(world: Gridworld) -> Tensor:
    available = world.mdp().available
    return available.double() / available.sum(1, keepdim=True).clamp(min=1)


def walked(world: Gridworld, moves: int = 40, horizon: int = 15, walkers: int = 30, seed: int = 0) -> Transitions:
    return Walks(world.sparse_mdp(), world.start_distribution(), walkers, seed).collect(uniform(world), moves, horizon)


# --------------------------------------------------------------------------------------------------------------- rows
@pytest.mark.parametrize("world", [PLAIN, SLIPPERY], ids=["masked", "slippery"])
def test_every_column_is_a_move_that_the_world_allows(world: Gridworld) -> None:
    batch, mdp = walked(world), world.mdp()
    assert batch.mask.all() and batch.moves == 30 * 40
    assert not mdp.terminal[batch.state].any()
    assert mdp.available[batch.state, batch.action].all()
    assert (mdp.transition[batch.state, batch.action, batch.next_state] > 0).all()
    assert torch.equal(batch.reward, mdp.reward[batch.state, batch.action])
    assert torch.equal(batch.terminated, mdp.terminal[batch.next_state])
    torch.testing.assert_close(batch.logprob, uniform(world)[batch.state, batch.action].log())


def test_a_walker_goes_on_where_it_stood_or_on_a_start_in_the_same_step() -> None:
    world = parse("S . . .\n. # +2 .\n. . . .")
    batch = walked(world, horizon=6)
    ended = batch.terminated | batch.truncated
    goes_on, begins = ~ended[:, :-1], ended[:, :-1]
    assert torch.equal(batch.state[:, 1:][goes_on], batch.next_state[:, :-1][goes_on])
    assert (batch.state[:, 1:][begins] == 0).all() and (batch.state[:, 0] == 0).all()
    assert int(batch.terminated.sum()) > 20 and int(batch.truncated.sum()) > 20


def test_an_episode_is_cut_after_horizon_moves_also_across_collects() -> None:
    world = parse(". . . . . . . . . . . . . . . +9")
    walks = Walks(world.sparse_mdp(), world.start_distribution(), 20, seed=1)
    pieces = [walks.collect(uniform(world), moves, 7) for moves in (3, 10, 5, 12)]
    ended = torch.cat([piece.terminated | piece.truncated for piece in pieces], dim=1)
    truncated = torch.cat([piece.truncated for piece in pieces], dim=1)
    for row in range(20):
        age = 0
        for column in range(30):
            age += 1
            assert not (truncated[row, column] and age != 7) and age <= 7
            age = 0 if ended[row, column] else age


def test_a_move_into_a_terminal_state_at_the_horizon_has_terminated() -> None:
    world = parse("S . +1")
    batch = walked(world, horizon=2, walkers=50)
    assert not (batch.terminated & batch.truncated).any()
    at_the_end = batch.terminated & (batch.state == 1)
    assert int(at_the_end.sum()) > 10  # the second move of its episode


def test_the_same_seed_walks_the_same_way_by_a_table_or_by_a_function() -> None:
    table = uniform(PLAIN)
    log_table = table.masked_fill(PLAIN.mdp().terminal.unsqueeze(1), 1.0).log()
    one, other = walked(PLAIN), walked(PLAIN)
    assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in Transitions.__slots__)
    walks = Walks(PLAIN.sparse_mdp(), PLAIN.start_distribution(), 30, 0)
    called = walks.collect(lambda state: log_table[state], 40, 15)
    assert torch.equal(called.state, one.state)
    assert not torch.equal(walked(PLAIN, seed=1).state, one.state)


def test_frequencies_are_those_of_policy_and_world() -> None:
    """A thin statistical test (z < 5) that ties the draws to pi and to P."""
    batch, mdp = walked(SLIPPERY, moves=400, walkers=200), SLIPPERY.mdp()
    for state in (0, 7, 20):
        stood = batch.state == state
        count = int(stood.sum())
        shares = torch.bincount(batch.action[stood], minlength=4) / count
        wanted = uniform(SLIPPERY)[state]
        assert ((shares - wanted).abs() <= 5 * (wanted * (1 - wanted) / count).sqrt()).all()
        moved = stood & (batch.action == 1)
        shares = torch.bincount(batch.next_state[moved], minlength=len(mdp.terminal)) / int(moved.sum())
        wanted = mdp.transition[state, 1]
        assert ((shares - wanted).abs() <= 5 * (wanted * (1 - wanted) / int(moved.sum())).sqrt()).all()


def test_with_arrival_a_move_earns_the_points_of_the_end_it_reached() -> None:
    points = torch.zeros(len(SLIPPERY.cells), dtype=torch.float64)
    for cell, worth in SLIPPERY.terminals.items():
        points[SLIPPERY.index[cell]] = worth
    walks = Walks(SLIPPERY.sparse_mdp(), SLIPPERY.start_distribution(), 100, 0, arrival=points)
    batch = walks.collect(uniform(SLIPPERY), 100, 50)
    torch.testing.assert_close(batch.reward, points[batch.next_state] - 1.0)
    assert {4.0, 3.0, -2.0, -1.0} == {round(reward, 9) for reward in batch.reward.flatten().tolist()}


def test_visits_count_departures_and_arrivals_at_ends() -> None:
    batch = walked(PLAIN)
    visits, wanted = batch.visits(len(PLAIN.cells)), [0] * len(PLAIN.cells)
    for row in range(30):
        for column in range(40):
            wanted[int(batch.state[row, column])] += 1
            if batch.terminated[row, column]:
                wanted[int(batch.next_state[row, column])] += 1
    assert visits.tolist() == wanted


# ------------------------------------------------------------------------------------- ends inside a row, for GAE
def by_episode(batch: Transitions, values: Tensor, discount: float, trace: float) -> Tensor:
    """GAE of each episode by itself, as a row of its own with its own bootstrap: a plain loop."""
    found = torch.zeros_like(batch.reward)
    for row in range(batch.state.shape[0]):
        first = 0
        for column in range(batch.state.shape[1]):
            ended = bool(batch.terminated[row, column] | batch.truncated[row, column])
            if not ended and column + 1 < batch.state.shape[1]:
                continue
            piece = slice(first, column + 1)
            last = values[batch.next_state[row, column]] * (not bool(batch.terminated[row, column]))
            found[row, piece] = returns.gae(
                batch.reward[row : row + 1, piece], values[batch.state[row : row + 1, piece]], last.reshape(1),
                batch.mask[row : row + 1, piece], discount, trace,
            )[0]  # fmt: skip
            first = column + 1
    return found


@pytest.mark.parametrize("discount", [0.9, 1.0])
@pytest.mark.parametrize("trace", [0.0, 0.7, 1.0])
def test_gae_of_closed_rows_is_gae_of_each_episode(discount: float, trace: float) -> None:
    batch = walked(PLAIN)
    assert batch.truncated[:, :-1].any() and batch.terminated[:, :-1].any() and batch.cut()[:, -1].any()
    # Values of terminal states are garbage on purpose: nothing may look at them.
    values = torch.randn(len(PLAIN.cells), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    rewards, discounts = batch.closed(values, discount)
    zero = torch.zeros(len(batch.state), dtype=torch.float64)
    found = returns.gae(rewards, values[batch.state], zero, batch.mask, discounts, trace)
    torch.testing.assert_close(found, by_episode(batch, values, discount, trace), rtol=0, atol=1e-12)
    outcome = batch.outcomes(values, discount)
    wanted = by_episode(batch, values, discount, 1.0) + values[batch.state]
    torch.testing.assert_close(outcome, wanted, rtol=0, atol=1e-12)


def test_truncated_bootstraps_and_terminated_does_not() -> None:
    def one(terminated: bool, truncated: bool) -> Transitions:
        zero, flag = torch.tensor([[0, 1]]), torch.tensor
        return Transitions(
            zero, zero, torch.tensor([[1.0, 1.0]]), torch.tensor([[1, 2]]), torch.zeros(1, 2),
            flag([[False, terminated]]), flag([[False, truncated]]), torch.ones(1, 2, dtype=torch.bool),
        )  # fmt: skip

    values = torch.tensor([7.0, 7.0, 10.0])
    assert one(True, False).outcomes(values, 0.5).tolist() == [[1.5, 1.0]]
    assert one(False, True).outcomes(values, 0.5).tolist() == [[4.0, 6.0]]
    assert one(False, False).outcomes(values, 0.5).tolist() == [[4.0, 6.0]]  # the row ended, the walk did not


# ----------------------------------------------------------------------------------------------------- whole episodes
def test_episodes_begin_where_they_are_told_and_end_at_an_end_or_the_cap() -> None:
    starts = torch.tensor([0, 3, 3, 9] * 50)
    batch = episodes(PLAIN.sparse_mdp(), uniform(PLAIN), starts, 12, seed=0)
    assert torch.equal(batch.state[:, 0], starts)
    lengths = batch.mask.sum(1)
    assert int(lengths.max()) == batch.state.shape[1] == 12
    for row, length in enumerate(lengths.tolist()):
        assert batch.mask[row, :length].all() and not batch.mask[row, length:].any()
        assert torch.equal(batch.next_state[row, : length - 1], batch.state[row, 1:length])
        last = length - 1
        assert bool(batch.terminated[row, last]) != bool(batch.truncated[row, last])
        assert not (batch.terminated | batch.truncated)[row, :last].any()
        assert bool(batch.truncated[row, last]) <= (length == 12)
        for column in (batch.state, batch.action, batch.reward, batch.next_state, batch.logprob):
            assert not column[row, length:].any()
    assert batch.truncated.any() and batch.terminated.any()


def test_mean_return_of_episodes_is_the_exact_value() -> None:
    policy = uniform(SLIPPERY)
    exact = bellman.policy_values(SLIPPERY.mdp(), policy, 0.9)[3]
    batch = episodes(SLIPPERY.sparse_mdp(), policy, torch.full((20_000,), 3), 200, seed=4)
    found = batch.outcomes(torch.zeros(len(SLIPPERY.cells), dtype=torch.float64), 0.9)[:, 0]
    assert abs(float(found.mean() - exact)) < 4 * float(found.std()) / 20_000**0.5


def test_a_walk_does_not_depend_on_its_neighbours_ends() -> None:
    """Numbers belong to (row, step): the same row walks the same way beside others that end sooner or later."""
    mdp, policy = PLAIN.sparse_mdp(), uniform(PLAIN)
    one = episodes(mdp, policy, torch.tensor([0, 1, 2, 3]), 40, seed=2)
    other = episodes(mdp, policy, torch.tensor([0, 9, 2, 8]), 40, seed=2)
    for row in (0, 2):
        length = int(one.mask[row].sum())
        assert torch.equal(one.state[row, :length], other.state[row, :length])
        assert int(other.mask[row].sum()) == length


def test_an_episode_cannot_start_at_an_end() -> None:
    end = PLAIN.index[next(iter(PLAIN.terminals))]
    with pytest.raises(ValueError, match="cannot start in a terminal state"):
        episodes(PLAIN.sparse_mdp(), uniform(PLAIN), torch.tensor([0, end]), 5, seed=0)
