"""upslope: reinforcement-learning post-training that you can check.

    import upslope
    run = upslope.grpo(model="smollm2-135m-instruct", data="rows.jsonl", reward=my_reward, steps=40)
    run.metrics, run.model, run.report

Importing this package imports no torch; the first recipe does.
"""

from upslope.api import FinishedRun, evaluate, grpo, ppo, sft

__version__ = "0.1.0"
__all__ = ["FinishedRun", "evaluate", "grpo", "ppo", "sft"]
