"""The catch at a small size: what is counted, what is compared, and what tables say of cells they never saw."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from upslope.maths import bellman
from upslope.recipes import grid_catch
from upslope.recipes.grid_catch import PolicyAnswers, ValueAnswers, catch_at
from upslope.recipes.grid_values import fixed_policy
from upslope.seeds import derive
from upslope.worlds.grid_truth import solve
from upslope.worlds.walks import episodes

SIZE = 12


@pytest.fixture(scope="module")
def found() -> grid_catch.CatchWorld:
    return catch_at(SIZE, seed=1, iterations=10, fit_steps=400)


def test_every_cell_is_either_visited_or_never_visited(found: grid_catch.CatchWorld) -> None:
    assert len(found.contenders) == 4 and found.states >= SIZE * SIZE and found.starts == round(0.04 * found.states)
    for contender in found.contenders:
        assert contender.visited.cells + contender.never.cells == found.states
        assert contender.visited.cells > 0 and contender.seconds > 0


def test_sizes_are_those_of_tables_and_networks(found: grid_catch.CatchWorld) -> None:
    means, network, table, ppo = found.contenders
    cells = found.states + len(grid_catch.ends(SIZE))
    inputs, hidden = 2 + 4, 64
    critic = inputs * hidden + hidden + hidden * hidden + hidden + hidden + 1
    assert (means.parameters, means.bytes) == (cells, 8 * cells)
    assert (network.parameters, network.bytes) == (critic, 4 * critic)
    assert ppo.parameters == 2 * critic + 3 * (hidden + 1)
    assert table.parameters < 4 * cells and table.bytes == 4 * 8 * cells
    assert found.table_bytes == 8 * cells


def test_both_policies_and_both_value_learners_are_shown_the_same_number_of_moves(
    found: grid_catch.CatchWorld,
) -> None:
    means, network, table, ppo = found.contenders
    assert means.moves == network.moves > 0 and table.moves == ppo.moves == 10 * 32 * 32


def test_the_value_table_s_error_where_it_never_was_is_that_of_saying_zero(found: grid_catch.CatchWorld) -> None:
    means, network, _, _ = found.contenders
    assert isinstance(means.never, ValueAnswers) and isinstance(network.never, ValueAnswers)
    assert means.never.cells == network.never.cells > 5
    world = grid_catch.world_at(SIZE, 1)
    exact = solve(world, grid_catch.DISCOUNT)
    lab = grid_catch.lab_at(
        world, replace(exact, start=grid_catch.some_starts(world, 1)), grid_catch.recipe_at("ppo", world, 1, 10)
    )
    policy = fixed_policy(replace(lab, recipe=lab.recipe.model_copy(update={"epsilon": grid_catch.EPSILON})))
    starts = (lab.start > 0).nonzero().flatten().repeat_interleave(grid_catch.WALKS_PER_START)
    batch = episodes(lab.mdp, policy, starts, grid_catch.LONGEST, derive(1, "catch values"))
    seen = {int(state) for state in batch.state[batch.mask]}
    never = [state for state in range(lab.states) if state not in seen and not lab.mdp.terminal[state]]
    values = bellman.policy_values(world.mdp(), policy, grid_catch.DISCOUNT)[never]
    assert len(never) == means.never.cells
    assert means.never.error == pytest.approx(float(values.square().mean().sqrt()), abs=1e-9)
    assert means.never.spread == pytest.approx(float(values.std(correction=0)), abs=1e-9)


def test_the_network_says_more_than_the_table_of_cells_it_never_saw(found: grid_catch.CatchWorld) -> None:
    means, network, _, _ = found.contenders
    assert isinstance(means.never, ValueAnswers) and isinstance(network.never, ValueAnswers)
    assert network.never.error < means.never.error


def test_answers_of_a_policy_by_hand() -> None:
    """Two of three cells have an optimal likeliest move."""
    policy = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]], dtype=torch.float64)
    ways = torch.tensor([[True, False], [True, False], [True, True]])
    earned, best = torch.tensor([1.0, -4.0, 2.0]).double(), torch.tensor([1.5, 3.0, 2.0]).double()
    every = grid_catch.policy_answers(policy, earned, best, ways, torch.tensor([True, True, True]))
    assert every == PolicyAnswers(3, 2 / 3, -1 / 3, 6.5 / 3)
    assert grid_catch.policy_answers(policy, earned, best, ways, torch.zeros(3, dtype=torch.bool)).cells == 0
    some = grid_catch.value_answers(earned, best, torch.tensor([True, True, False]))
    assert (some.cells, some.spread) == (2, 0.75) and some.error == pytest.approx((0.25 / 2 + 49 / 2) ** 0.5)


def test_ends_grow_with_the_world() -> None:
    assert grid_catch.ends(10) == [5.0, 4.0, -1.0]
    assert len(grid_catch.ends(100)) == 12 + 6


@pytest.mark.parametrize("size", [10, 32])
def test_a_world_has_at_least_size_x_size_free_cells(size: int) -> None:
    world = grid_catch.world_at(size, 0)
    assert size * size <= len(world.cells) - len(world.terminals) < 1.4 * size * size
