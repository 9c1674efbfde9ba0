"""Exact solutions of worlds whose figures are printed in the textbooks or known for Gymnasium's toy text."""

from __future__ import annotations

import itertools

import gymnasium
import pytest
import torch
from torch import Tensor

from upslope.maths import bellman
from upslope.maths.bellman import Mdp
from upslope.worlds.mdp import from_gymnasium

F64 = torch.float64


def blank(states: int, actions: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.zeros(states, actions, states, dtype=F64),
        torch.zeros(states, actions, dtype=F64),
        torch.zeros(states, dtype=torch.bool),
    )


def uniform(mdp: Mdp) -> Tensor:
    available = mdp.available.to(F64)
    return available / available.sum(1, keepdim=True).clamp(min=1)


def sutton_barto_5x5() -> Mdp:
    """Example 3.5: bumping costs 1; A pays 10 and leads to A', B pays 5 and leads to B'. It never ends."""
    transition, reward, terminal = blank(25, 4)
    for (r, c), (a, (dr, dc)) in itertools.product(
        itertools.product(range(5), range(5)), enumerate([(-1, 0), (0, 1), (1, 0), (0, -1)])
    ):
        there, paid = (r + dr, c + dc), 0.0
        if (r, c) == (0, 1):
            there, paid = (4, 1), 10.0
        elif (r, c) == (0, 3):
            there, paid = (2, 3), 5.0
        elif not (0 <= there[0] < 5 and 0 <= there[1] < 5):
            there, paid = (r, c), -1.0
        transition[5 * r + c, a, 5 * there[0] + there[1]] = 1
        reward[5 * r + c, a] = paid
    return Mdp(transition, reward, terminal)


def sutton_barto_4x4() -> Mdp:
    """Example 4.1: every move costs 1, two terminal corners, bumping stays."""
    transition, reward, terminal = blank(16, 4)
    for state, (a, (dr, dc)) in itertools.product(range(16), enumerate([(-1, 0), (0, 1), (1, 0), (0, -1)])):
        r, c = min(max(state // 4 + dr, 0), 3), min(max(state % 4 + dc, 0), 3)
        transition[state, a, 4 * r + c] = 1
        reward[state, a] = -1
    terminal[[0, 15]] = True
    return Mdp(transition, reward, terminal)


def russell_norvig_4x3() -> tuple[Mdp, list[tuple[int, int]]]:
    """AIMA's 4x3 world: moves go astray to either side with 0.1 each; -0.04 a cell; +1 and -1 on the right."""
    cells = [(r, c) for r in range(3) for c in range(4) if (r, c) != (1, 1)]
    points = {(0, 3): 1.0, (1, 3): -1.0}
    moves = [(-1, 0), (0, 1), (1, 0), (0, -1)]
    transition, reward, terminal = blank(len(cells), 4)
    for s, cell in enumerate(cells):
        terminal[s] = cell in points
        for a in range(4):
            for turn, probability in ((0, 0.8), (1, 0.1), (3, 0.1)):
                dr, dc = moves[(a + turn) % 4]
                there = (cell[0] + dr, cell[1] + dc)
                there = there if there in cells else cell
                transition[s, a, cells.index(there)] += probability
                reward[s, a] += probability * (points.get(there, 0.0) - 0.04)
    return Mdp(transition, reward, terminal), cells


@pytest.fixture(scope="module")
def cliff() -> Mdp:
    return from_gymnasium(gymnasium.make("CliffWalking-v1"))


@pytest.fixture(scope="module")
def frozen_lake() -> Mdp:
    return from_gymnasium(gymnasium.make("FrozenLake-v1", is_slippery=True))


# ------------------------------------------------------------------------------------------------- figures of the books
def test_random_policy_of_sutton_and_barto_example_3_5() -> None:
    mdp = sutton_barto_5x5()
    values = bellman.policy_values(mdp, uniform(mdp), 0.9)
    expected = torch.tensor([3.3, 8.8, 4.4, 5.3, 1.5], dtype=F64)
    torch.testing.assert_close(values[:5], expected, atol=0.0501, rtol=0)


def test_optimal_values_of_sutton_and_barto_example_3_8() -> None:
    values = bellman.optimal_values(sutton_barto_5x5(), 0.9)
    expected = torch.tensor([22.0, 24.4, 22.0, 19.4, 17.5], dtype=F64)
    torch.testing.assert_close(values[:5], expected, atol=0.0501, rtol=0)
    assert values[1].item() == pytest.approx(10 / (1 - 0.9**5), abs=1e-11)  # A, A', and four steps back, for ever


def test_random_policy_of_sutton_and_barto_example_4_1() -> None:
    mdp = sutton_barto_4x4()
    values = bellman.policy_values(mdp, uniform(mdp), 1.0)
    expected = [0, -14, -20, -22, -14, -18, -20, -20, -20, -20, -18, -14, -22, -20, -14, 0]
    torch.testing.assert_close(values, torch.tensor(expected, dtype=F64), atol=1e-10, rtol=0)


def test_optimal_values_of_example_4_1_are_minus_the_distance_after_3_sweeps() -> None:
    sweeps = bellman.value_iteration_sweeps(sutton_barto_4x4(), 1.0)
    distance = [min(r + c, 6 - r - c) for r in range(4) for c in range(4)]
    assert (-sweeps[3]).tolist() == distance
    assert torch.equal(sweeps[-1], sweeps[3]) and len(sweeps) == 5  # the start, 3 sweeps, and one that changes nothing


def test_values_of_the_4x3_world_of_russell_and_norvig() -> None:
    mdp, cells = russell_norvig_4x3()
    values = bellman.optimal_values(mdp, 1.0)
    printed = {
        (0, 0): 0.812, (0, 1): 0.868, (0, 2): 0.918, (1, 0): 0.762, (1, 2): 0.660,
        (2, 0): 0.705, (2, 1): 0.655, (2, 2): 0.611, (2, 3): 0.388,
    }  # fmt: skip
    for cell, value in printed.items():
        assert values[cells.index(cell)].item() == pytest.approx(value, abs=5.1e-4)


def test_cliff_walking_golden_numbers(cliff: Mdp) -> None:
    values = bellman.optimal_values(cliff, 1.0)
    assert values[36].item() == -13
    greedy = bellman.action_values(cliff, values, 1.0).argmax(1)
    careless = torch.full((48, 4), 0.1 / 4, dtype=F64)
    careless[torch.arange(48), greedy] += 0.9
    assert bellman.policy_values(cliff, careless, 1.0)[36].item() == pytest.approx(-45.803, abs=5e-4)
    # The best policy among those that explore with probability 0.1: optimal where each action is itself such a mixture.
    mixed = Mdp(
        0.9 * cliff.transition + 0.1 * cliff.transition.mean(1, keepdim=True),
        0.9 * cliff.reward + 0.1 * cliff.reward.mean(1, keepdim=True),
        cliff.terminal,
    )
    soft = bellman.optimal_values(mixed, 1.0)
    assert soft[36].item() == pytest.approx(-20.708, abs=5e-4)
    best = bellman.action_values(mixed, soft, 1.0).argmax(1)
    state, moves = 36, 0
    while not cliff.terminal[state] and moves < 48:
        state, moves = int(cliff.transition[state, best[state]].argmax()), moves + 1
    assert moves == 15  # the long way, away from the cliff


def test_frozen_lake_golden_numbers(frozen_lake: Mdp) -> None:
    assert bellman.optimal_values(frozen_lake, 1.0)[0].item() == pytest.approx(14 / 17, abs=1e-10)
    assert bellman.optimal_values(frozen_lake, 0.99)[0].item() == pytest.approx(0.5420, abs=5e-5)
    assert bellman.policy_values(frozen_lake, uniform(frozen_lake), 1.0)[0].item() == pytest.approx(0.0139, abs=1e-4)


def test_frozen_lake_within_its_limit_of_100_steps(frozen_lake: Mdp) -> None:
    """0.7442 with play that depends on the time left, 0.7402 with the stationary greedy policy."""
    values = torch.zeros(16, dtype=F64)
    for _ in range(100):
        values = bellman.action_values(frozen_lake, values, 1.0).amax(1)
    assert values[0].item() == pytest.approx(0.7442, abs=5e-5)
    greedy = bellman.greedy_policy(
        bellman.action_values(frozen_lake, bellman.optimal_values(frozen_lake, 0.99), 0.99), tolerance=1e-9
    )
    moves, paid = torch.einsum("sa,sat->st", greedy, frozen_lake.transition), (greedy * frozen_lake.reward).sum(1)
    values = torch.zeros(16, dtype=F64)
    for _ in range(100):
        values = paid + moves @ values
    assert values[0].item() == pytest.approx(0.7402, abs=5e-5)
