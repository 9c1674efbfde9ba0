"""Andy Jones's five probes ("Debugging RL, without the agonizing pain"): each fails for another part of a learner.

One state or two, a handful of moves; states that end the episode come last.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.recipes.grid_support import process, tiny_lab, trained
from upslope.recipes import grid_grpo, grid_policy, grid_ppo, grid_tables, grid_values
from upslope.recipes.grid_config import GridRecipe
from upslope.recipes.grid_diary import Diary
from upslope.recipes.grid_lab import Lab

CRITICS = {"values": grid_values.train, "ppo": grid_ppo.train, "q-learning": grid_tables.train}
POLICIES = {
    "ppo": grid_ppo.train,
    "policy": grid_policy.train,
    "reinforce": grid_policy.train_reinforce,
    "grpo": grid_grpo.train,
    "q-learning": grid_tables.train,
}


def recipe(learn: str, **more: object) -> GridRecipe:
    lr = 0.5 if learn == "q-learning" else 0.01
    small = {"iterations": 40, "moves": 8, "walkers": 32, "snapshots": 1, "epochs": 2, "minibatches": 2}
    return GridRecipe.model_validate({"learn": learn, "lr": lr, **small, **more})


def final(lab: Lab, train: Callable[[Lab, Diary], None]) -> tuple[torch.Tensor, torch.Tensor | None]:
    last = trained(lab, train).last
    return last.policy, last.values


@pytest.mark.parametrize("learn", CRITICS)
def test_1_a_constant_reward_is_learned(learn: str) -> None:
    """One move, +1: the value loss and the optimizer."""
    mdp = process({(0, 0): (1, 1.0)}, states=2, actions=1)
    _, values = final(tiny_lab(mdp, [1, 0], recipe(learn)), CRITICS[learn])
    assert values is not None and float(values[0]) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("learn", CRITICS)
def test_2_a_reward_that_the_observation_tells_is_learned(learn: str) -> None:
    """+1 in one state, -1 in the other, one input number: backpropagation through the network."""
    mdp = process({(0, 0): (2, 1.0), (1, 0): (2, -1.0)}, states=3, actions=1)
    inputs = torch.tensor([[1.0], [-1.0], [0.0]])
    _, values = final(tiny_lab(mdp, [0.5, 0.5, 0], recipe(learn), inputs), CRITICS[learn])
    assert values is not None and values[:2].tolist() == pytest.approx([1.0, -1.0], abs=0.02)


@pytest.mark.parametrize("learn", CRITICS)
def test_3_a_late_reward_is_discounted(learn: str) -> None:
    """Nothing, then +1, discount 0.9."""
    mdp = process({(0, 0): (1, 0.0), (1, 0): (2, 1.0)}, states=3, actions=1)
    _, values = final(tiny_lab(mdp, [1, 0, 0], recipe(learn, discount=0.9)), CRITICS[learn])
    assert values is not None and values[:2].tolist() == pytest.approx([0.9, 1.0], abs=0.03)


@pytest.mark.parametrize("learn", POLICIES)
def test_4_the_better_of_two_moves_is_found(learn: str) -> None:
    """+1 or -1: gain, policy loss, update."""
    mdp = process({(0, 0): (1, -1.0), (0, 1): (1, 1.0)}, states=2, actions=2)
    policy, _ = final(tiny_lab(mdp, [1, 0], recipe(learn)), POLICIES[learn])
    assert float(policy[0, 1]) > 0.98


@pytest.mark.parametrize("learn", POLICIES)
def test_5_the_better_move_depends_on_the_observation(learn: str) -> None:
    """Move 0 pays in state 0, move 1 in state 1: gains and states must not be mixed up in the minibatches."""
    mdp = process({(0, 0): (2, 1.0), (0, 1): (2, -1.0), (1, 0): (2, -1.0), (1, 1): (2, 1.0)}, states=3, actions=2)
    policy, values = final(tiny_lab(mdp, [0.5, 0.5, 0], recipe(learn)), POLICIES[learn])
    assert float(policy[0, 0]) > 0.95 and float(policy[1, 1]) > 0.95
    if values is not None:
        assert values[:2].tolist() == pytest.approx([1.0, 1.0], abs=0.1)
