"""Gymnasium's tables as arrays: known figures of toy text, and tables in which "done" is no property of a state."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gymnasium
import pytest
import torch
from torch import Tensor

from upslope.errors import InputError
from upslope.maths import bellman
from upslope.worlds.mdp import from_gymnasium, sparse_from_gymnasium, start_distribution

F64 = torch.float64
Row = list[tuple[float, int, float, bool]]


def table(P: Any, starts: list[float] | None = None) -> Any:
    env = SimpleNamespace(P=P)
    if starts is not None:
        env.initial_state_distrib = starts
    return env


def at_start(env: Any, discount: float, values: Tensor | None = None) -> float:
    best = bellman.optimal_values(from_gymnasium(env), discount) if values is None else values
    start = start_distribution(env)
    return (best[start > 0] * start[start > 0]).sum().item()


# ------------------------------------------------------------------------------------------------------ known figures
def test_frozen_lake() -> None:
    env = gymnasium.make("FrozenLake-v1", is_slippery=True)
    mdp = from_gymnasium(env)
    assert mdp.transition.shape == (16, 4, 16) and mdp.terminal.nonzero().flatten().tolist() == [5, 7, 11, 12, 15]
    assert at_start(env, 1.0) == pytest.approx(14 / 17, abs=1e-10)
    assert at_start(env, 0.99) == pytest.approx(0.5420, abs=5e-5)
    # The corner: left stays with 2/3 (left and up), and slips down with 1/3. Outcomes of one state are summed.
    assert mdp.transition[0, 0, [0, 4]].tolist() == pytest.approx([2 / 3, 1 / 3])


def test_cliff_walking() -> None:
    env = gymnasium.make("CliffWalking-v1")
    mdp = from_gymnasium(env)
    assert len(mdp.terminal) == 48 and mdp.terminal.nonzero().flatten().tolist() == [47]
    assert at_start(env, 1.0) == -13
    assert start_distribution(env).nonzero().flatten().tolist() == [36]
    assert mdp.transition[36, 1, 36] == 1 and mdp.reward[36, 1] == -100  # the cliff leads back and ends nothing


def test_taxi_solves_and_its_optimal_play_earns_what_its_values_say() -> None:
    """Every reset pays 20 less the moves of the fastest ride. Play the greedy policy in the environment itself."""
    env = gymnasium.make("Taxi-v4")
    mdp = from_gymnasium(env)
    assert len(mdp.terminal) == 500 and int(mdp.terminal.sum()) == 4  # the passenger at his stop, and the taxi there
    values = bellman.optimal_values(mdp, 1.0)
    assert at_start(env, 1.0, values) == pytest.approx(7.93, abs=5e-3)
    moves = bellman.action_values(mdp, values, 1.0).argmax(1)
    for seed in range(10):
        first, _ = env.reset(seed=seed)
        state, earned, over = first, 0.0, False
        while not over:
            state, reward, terminated, truncated, _ = env.step(int(moves[state]))
            earned, over = earned + float(reward), terminated or truncated
        assert earned == values[first].item()


@pytest.mark.parametrize("name", ["FrozenLake-v1", "CliffWalking-v1", "Taxi-v4"])
def test_successor_lists_are_the_same_process(name: str) -> None:
    env = gymnasium.make(name)
    sparse, dense = sparse_from_gymnasium(env), from_gymnasium(env)
    assert sparse.successor.shape[2] < 4
    torch.testing.assert_close(bellman.optimal_values(sparse, 0.95), bellman.optimal_values(dense, 0.95))
    start = start_distribution(env)
    assert start.dtype == F64 and start.sum().item() == pytest.approx(1) and len(start) == len(dense.terminal)


# ------------------------------------------------------------------------------------------------------ what done means
def test_a_state_in_which_episodes_end_and_go_on_gets_an_end_of_its_own() -> None:
    """State 1 is entered by action 0 (goes on; from there +2 and over) and by action 1 (over, +3)."""
    P = {
        0: {0: [(1.0, 1, 0.5, False)], 1: [(1.0, 1, 3.0, True)]},
        1: {0: [(1.0, 2, 2.0, True)], 1: [(1.0, 0, -1.0, False)]},
        2: {0: [(1.0, 2, 0.0, True)], 1: [(1.0, 2, 0.0, True)]},
    }
    env = table(P, [1.0, 0.0, 0.0])
    mdp = from_gymnasium(env)
    assert mdp.terminal.tolist() == [False, False, True, True]
    assert mdp.transition[0].tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]
    assert mdp.transition[1].tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]
    # V1 = max(2, -1 + V0), V0 = max(0.5 + V1, 3): 3 and 2.
    assert bellman.optimal_values(mdp, 1.0).tolist() == [3, 2, 0, 0]
    assert start_distribution(env).tolist() == [1, 0, 0, 0]


def test_an_episode_of_one_state_ends_where_it_starts() -> None:
    """A bandit: one observation, every arm ends the episode."""
    P: list[list[Row]] = [[[(1.0, 0, 1.0, True)], [(0.5, 0, 4.0, True), (0.5, 0, 2.0, True)]]]
    for env in (table(P, [1.0]), table(P)):
        mdp = from_gymnasium(env)
        assert mdp.terminal.tolist() == [False, True] and mdp.reward[0].tolist() == [1, 3]
        assert bellman.optimal_values(mdp, 1.0).tolist() == [3, 0]


def test_an_outcome_that_ends_sometimes_is_parted() -> None:
    """The same next state with done and without: half of the walks stop there, half go on for one more point."""
    P = {
        0: {0: [(0.5, 1, 0.0, True), (0.25, 1, 0.0, False), (0.25, 1, 0.0, False)]},
        1: {0: [(1.0, 2, 1.0, True)]},
        2: {0: [(1.0, 2, 0.0, True)]},
    }
    mdp = from_gymnasium(table(P, [1.0, 0, 0]))
    assert mdp.transition[0, 0].tolist() == [0, 0.5, 0, 0.5]
    assert bellman.optimal_values(mdp, 1.0).tolist() == [0.5, 1, 0, 0]


def test_states_that_only_states_out_of_reach_walk_into_are_ends() -> None:
    """2 cannot occur; that it walks on into the end 1 adds no state, as in Taxi."""
    P = {
        0: {0: [(1.0, 1, 1.0, True)]},
        1: {0: [(1.0, 2, 0.0, False)]},
        2: {0: [(1.0, 1, 0.0, False)]},
    }
    assert from_gymnasium(table(P, [1.0, 0, 0])).terminal.tolist() == [False, True, False]
    # Without a start distribution 2 may be one, and then 1 is stood in.
    assert from_gymnasium(table(P)).terminal.tolist() == [False, False, False, True]


def test_an_action_without_outcomes_is_not_available_and_probability_0_is_nothing() -> None:
    P = {0: {0: [(1.0, 1, 1.0, True), (0.0, 0, 99.0, False)], 1: []}, 1: {0: [(1.0, 1, 0.0, True)]}}
    mdp = from_gymnasium(table(P, [1.0, 0.0]))
    assert mdp.available.tolist() == [[True, False], [False, False]] and mdp.reward[0, 0] == 1
    assert mdp.terminal.tolist() == [False, True]


# --------------------------------------------------------------------------------------------------------------- errors
def test_an_environment_without_a_table_is_refused() -> None:
    with pytest.raises(InputError, match="CartPole-v1: found no table `P`"):
        from_gymnasium(gymnasium.make("CartPole-v1"))


def test_a_table_without_starts_has_no_start_distribution() -> None:
    with pytest.raises(InputError, match="initial_state_distrib"):
        start_distribution(table({0: {0: [(1.0, 0, 1.0, True)]}}))


@pytest.mark.parametrize(
    ("P", "said"),
    [
        ({0: {0: [(0.5, 0, 1.0, True)]}}, "not distributions"),
        ({0: {0: [(1.0, 3, 1.0, True)]}}, "leads to state 3"),
        ({0: {0: [(1.0, -1, 1.0, True)]}}, "leads to state -1"),
        ({0: {0: [(1.0, 0, float("nan"), True)]}}, "rewards of states 0"),
        ({0: {0: [(1.0, 0, 1.0)]}}, "cannot be read"),
        ({1: {0: [(1.0, 0, 1.0, True)]}}, "KeyError"),
        ({0: {}}, "no actions"),
        ({}, "no actions"),
        ({0: {0: []}, 1: {0: [(1.0, 0, 0.0, False)]}}, "no available action"),
    ],
)
def test_a_table_that_is_no_decision_process_is_refused(P: Any, said: str) -> None:
    with pytest.raises(InputError, match="SimpleNamespace: P") as caught:
        from_gymnasium(table(P))
    assert said in str(caught.value)


def test_starts_that_do_not_fit_the_table_are_refused() -> None:
    with pytest.raises(InputError, match="has 3 entries, expected 1"):
        from_gymnasium(table({0: {0: [(1.0, 0, 1.0, True)]}}, [0.5, 0.5, 0.0]))
