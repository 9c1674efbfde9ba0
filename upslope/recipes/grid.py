"""Learn on a gridworld by one of six learners, each beside the exact solution of its world.

Each learner is one visible ``train`` in a file of its own: a value network alone (``grid_values``), a policy network
alone (``grid_policy``), both at once (``grid_ppo``), groups of episodes (``grid_grpo``), a table (``grid_tables``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from upslope.recipes import grid_grpo, grid_policy, grid_ppo, grid_tables, grid_values
from upslope.recipes.grid_config import GridRecipe
from upslope.recipes.grid_diary import Diary, Watch
from upslope.recipes.grid_lab import Lab, prepare
from upslope.types import GridTraining
from upslope.worlds.gridworld import Gridworld

LEARNERS: Mapping[str, Callable[[Lab, Diary], None]] = {
    "values": grid_values.train,
    "policy": grid_policy.train,
    "ppo": grid_ppo.train,
    "grpo": grid_grpo.train,
    "q-learning": grid_tables.train,
    "reinforce": grid_policy.train_reinforce,
}


def train(world: Gridworld, recipe: GridRecipe, watch: Watch | None = None) -> GridTraining:
    """Train by ``recipe.learn``; ``watch`` is called with each snapshot as it is taken.

    The same recipe gives the same run bit for bit on the same machine and number of threads, however often it is
    watched or recorded. Raises InputError if under discount 1 some start cannot reach an end.
    """
    lab = prepare(world, recipe)
    diary = Diary(lab, watch)
    LEARNERS[recipe.learn](lab, diary)
    return diary.training()
