"""Small processes and labs for the tests of the grid's learners."""

from __future__ import annotations

import torch
from torch import Tensor

from upslope.maths.bellman import SparseMdp
from upslope.recipes.grid_config import GridRecipe
from upslope.recipes.grid_diary import Diary
from upslope.recipes.grid_lab import Lab, lab_of
from upslope.types import GridTraining
from upslope.worlds.grid_truth import solve_mdp
from upslope.worlds.walks import Transitions

TINY = "S . . +3\n. # . -1\n. . . +1"


def process(edges: dict[tuple[int, int], tuple[int, float]], states: int, actions: int) -> SparseMdp:
    """Deterministic: (state, action) to (next state, reward); states without an edge end the episode."""
    successor = torch.arange(states).view(-1, 1, 1).repeat(1, actions, 1)
    reward = torch.zeros(states, actions, dtype=torch.float64)
    available = torch.zeros(states, actions, dtype=torch.bool)
    for (state, action), (after, earned) in edges.items():
        successor[state, action, 0], reward[state, action], available[state, action] = after, earned, True
    probability = available.unsqueeze(2).to(torch.float64)
    return SparseMdp(successor, probability, reward, ~available.any(dim=1), available)


def tiny_lab(mdp: SparseMdp, start: list[float], recipe: GridRecipe, inputs: Tensor | None = None) -> Lab:
    """A lab of any process; one-hot inputs unless given."""
    begin = torch.tensor(start, dtype=torch.float64)
    exact = solve_mdp(mdp.dense(), begin, recipe.discount)
    return lab_of(mdp, begin, exact, torch.eye(len(start)) if inputs is None else inputs, recipe)


def trained(lab: Lab, train: object) -> GridTraining:
    diary = Diary(lab)
    train(lab, diary)  # type: ignore[operator]
    return diary.training()


def walks_by_hand(rewards: list[list[float]], ended: list[bool]) -> Transitions:
    """Walks with these rewards, all moves made in state 0; a walk ends there or is cut after its last move."""
    longest = max(map(len, rewards))
    shape = (len(rewards), longest)
    last = torch.tensor([[place == len(row) - 1 for place in range(longest)] for row in rewards])
    over = torch.tensor(ended)[:, None]
    nothing = torch.zeros(shape, dtype=torch.int64)
    return Transitions(
        state=nothing, action=nothing.clone(), next_state=nothing.clone(),
        reward=torch.tensor([[*row, *[0.0] * (longest - len(row))] for row in rewards], dtype=torch.float64),
        logprob=torch.zeros(shape, dtype=torch.float64), terminated=last & over, truncated=last & ~over,
        mask=torch.tensor([[place < len(row) for place in range(longest)] for row in rewards]),
    )  # fmt: skip
