"""upslope: reinforcement-learning post-training that you can check.

    import upslope
    run = upslope.grpo(model="smollm2-135m-instruct", data="rows.jsonl", reward=my_reward, steps=40)
    run.metrics, run.model, run.report

    world = upslope.gridworld(". . +5")
    upslope.solve(world).optimal_values, upslope.grid(world, learn="ppo").last.truth

Importing this package registers the Gymnasium environment ``upslope/Grid-v0`` and imports no torch; the first recipe
does.
"""

import upslope.worlds.grid_env as _grid_env  # noqa: F401  (registers upslope/Grid-v0)
from upslope.api import (
    FinishedRun,
    check,
    dpo,
    draw,
    evaluate,
    grid,
    gridworld,
    grpo,
    merge,
    ppo,
    reward_model,
    sample_pairs,
    sft,
    solve,
)

__version__ = "0.1.0"
__all__ = [
    "FinishedRun", "check", "dpo", "draw", "evaluate", "grid", "gridworld", "grpo", "merge", "ppo", "reward_model",
    "sample_pairs", "sft", "solve",
]  # fmt: skip
