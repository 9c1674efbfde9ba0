"""The reward functions of tests/conventions/trl_rewards.py under TRL's own GRPOTrainer, on a model directory.

    python bench/same_rewards.py MODEL

Run it in an environment with TRL; it needs nothing of upslope. It prints one JSON object: versions, the metrics of the
functions, and the columns that TRL logged.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType

FILE = Path(__file__).parents[1] / "tests" / "conventions" / "trl_rewards.py"
NAMES = ("think_format_reward", "digit_reward", "length_judge")


def functions() -> ModuleType:
    """The file, loaded as a script would import it."""
    spec = importlib.util.spec_from_file_location("trl_rewards", FILE)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    import transformers
    import trl
    from datasets import Dataset

    loaded = functions()
    rows = [
        {"prompt": [{"role": "user", "content": f"say {n}"}], "answer": str(n) if n % 3 else None} for n in range(8)
    ]
    arguments = trl.GRPOConfig(
        output_dir=tempfile.mkdtemp(), max_steps=2, per_device_train_batch_size=4, num_generations=2,
        max_completion_length=6, report_to=[], logging_steps=1, use_cpu=True, save_strategy="no", bf16=False,
        disable_tqdm=True,
    )  # fmt: skip
    trainer = trl.GRPOTrainer(
        model=sys.argv[1], reward_funcs=[getattr(loaded, name) for name in NAMES], args=arguments,
        train_dataset=Dataset.from_list(rows),
    )  # fmt: skip
    trainer.train()
    last = [line for line in trainer.state.log_history if "reward" in line][-1]
    found = {
        "trl": trl.__version__, "transformers": transformers.__version__,
        "metrics": {name: value for name, value in last.items() if isinstance(value, int | float)},
    }  # fmt: skip
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
