"""The recipe of ``upslope grid``: learners on a gridworld."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from upslope.recipes.sections import Positive, Rate, Section, Share

GRID_DEFAULTS: dict[str, dict[str, Any]] = {
    "ppo": {},
    "values": {
        "iterations": 100,
        "lr": 0.01,
        "epochs": 1,
        "minibatches": 16,
        "trace": 1.0,
        "clip": None,
        "entropy_coef": 0.0,
    },
    "policy": {"iterations": 150, "epochs": 1, "trace": 1.0, "clip": None},
    "reinforce": {"iterations": 200, "epochs": 1, "trace": 1.0, "clip": None},
    "grpo": {"iterations": 200, "epochs": 1, "trace": 1.0},
    "q-learning": {
        "iterations": 60,
        "lr": 0.5,
        "epochs": 1,
        "minibatches": 1,
        "clip": None,
        "entropy_coef": 0.0,
        "epsilon": 0.5,
    },
}
"""What each learner of a gridworld changes in the defaults of ``GridRecipe``, which are PPO's."""


class GridRecipe(Section):
    """`upslope grid`: learn on a gridworld, beside its exact solution. Defaults are those of PPO; see GRID_DEFAULTS."""

    kind: ClassVar[str] = "grid"
    learn: Literal["values", "policy", "ppo", "grpo", "q-learning", "reinforce"] = "ppo"
    """A value network alone, a policy network alone, both at once (ppo), groups of episodes (grpo), or a table."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Every random number derives from it."""
    discount: Share = 1.0
    """gamma, a move. With 1, walking on for ever is worth minus infinity."""
    iterations: Positive = 120
    """Batches of walks, each learned from and then thrown away (values, whose policy never changes, keeps them)."""
    walkers: Positive | None = None
    """Walks at the same time; null: by the number of states, see `recipes/grid_lab.py`."""
    moves: Positive = 32
    """Moves of each walker in a batch (ppo, q-learning); the others walk whole episodes."""
    horizon: Positive | None = None
    """An episode is cut after so many moves, and what was still to come is estimated; null: by the number of states."""
    lr: Rate = 3e-3
    """Learning rate of Adam, falling in a line to 0 (q-learning: the step size of the table, falling to a tenth)."""
    epochs: Positive = 4
    """Passes over each batch."""
    minibatches: Positive = 4
    """Optimizer steps in a pass."""
    trace: Share = 0.95
    """lambda of GAE (ppo)."""
    clip: Rate | None = 0.2
    """The ratio is clipped to 1 - clip .. 1 + clip; null: the plain ratio x gain."""
    entropy_coef: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the entropy bonus at the start, falling in a line to 0; gains have root mean square 1 beside it."""
    value_coef: Annotated[float, Field(gt=0)] = 0.5
    """Factor of the squared error of PPO's critic."""
    features: Literal["one-hot", "xy", "fourier"] = "one-hot"
    """What the networks see of a cell: its number, its coordinates, or waves of them."""
    hidden: Positive = 64
    """Units in each of the two hidden layers."""
    group: Annotated[int, Field(ge=2)] = 16
    """Episodes from one start, compared with each other (grpo)."""
    baseline: Literal["none", "mean", "leave_one_out"] = "mean"
    """What an episode is compared with: its group's mean or the mean of the others (grpo); the batch's (reinforce)."""
    epsilon: Share | None = None
    """Share of random moves, falling in a line to 0 (q-learning); values: of the fixed policy, which else plays the
    exact solution; null there: all moves equally likely."""
    snapshots: Annotated[int, Field(ge=1)] = 60
    """Points of the run that are recorded with their exact errors, beside the first."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_learner(cls, value: Any) -> Any:
        return {**GRID_DEFAULTS.get(str(value.get("learn")), {}), **value} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _learner_can_use_it(self) -> GridRecipe:
        if self.learn == "grpo" and self.baseline == "none":
            raise ValueError("baseline: GRPO compares episodes with each other: give mean or leave_one_out")
        if self.learn == "q-learning" and self.epsilon is None:
            raise ValueError("epsilon: q-learning needs a share of random moves: give a number such as 0.5")
        return self
