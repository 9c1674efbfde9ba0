"""Learning, not only plumbing: fixed seeds, tiny models, clear effects."""

from __future__ import annotations

import json
import math

import pytest

from tests import tiny
from tests.recipes.support import Bench, bench, one_thread, sevens

__all__ = ["bench", "one_thread"]


def test_sft_drives_the_loss_of_a_small_set_down(bench: Bench) -> None:
    path = bench.root / "small.jsonl"
    rows = [{"prompt": f"{n}?", "completion": f"it is {n * 7 % 10}"} for n in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = bench.run(
        "sft",
        "learns",
        data={"path": str(path), "heldout": 0},
        steps=60,
        prompts=10,
        lr=1e-2,
        reward={},
        eval_prompts=0,
    )
    losses = [row["loss"] for row in run.metrics[1:]]
    assert losses[0] > 3.0 and losses[-1] < 0.1 and all(map(math.isfinite, losses))


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_a_trivial_game_is_learned(bench: Bench, kind: str) -> None:
    """Reward: the share of the digit 7. A random model has about 1 in 90; both recipes must reach a half."""
    critic = {"critic_lr": 1e-2, "critic_head_lr": 3e-2}
    sizes = {"grpo": {"group": 8, "kl_coef": 0.0}, "ppo": {"samples": 8, "kl_coef": 0.0, **critic}}[kind]
    run = bench.run(
        kind, f"{kind}-sevens", reward=sevens, steps=40, prompts=4, epochs=1, minibatches=1, lr=1e-2, eval_prompts=4,
        eval_every=40, **sizes,
    )  # fmt: skip
    rewards = [row["reward"] for row in run.metrics if row["step"] > 0]
    assert sum(rewards[:3]) / 3 < 0.1
    assert sum(rewards[-3:]) / 3 > 0.5
    assert run.metrics[-1]["eval/reward"] > 0.5 > run.metrics[0]["eval/reward"]


def test_the_critic_learns_to_predict_the_returns(bench: Bench) -> None:
    """A value that depends on the prompt alone is within a critic's reach: with the policy held, it explains most of
    it.

    Every character ends a completion, so that all are terminated: one that the length cut has V of its end in its
    return, and with a reward there and no discount that V would grow without bound.
    """
    path = bench.root / "worth.jsonl"
    path.write_text("".join(json.dumps({"prompt": "ab"[n % 2] * 3 + str(n), "worth": n % 2}) + "\n" for n in range(10)))

    run = bench.run(
        "ppo", "critic", data={"path": str(path), "heldout": 0}, reward=worth, steps=40, prompts=10, samples=1,
        epochs=1, minibatches=1, critic_warmup=40, critic_lr=1e-3, critic_head_lr=3e-3, eval_prompts=0, kl_coef=0.0,
        stop=list(tiny.CHARACTERS),
    )  # fmt: skip
    explained = [row["explained_variance"] for row in run.metrics[1:]]
    assert explained[0] == 0.0 and sum(explained[-5:]) / 5 > 0.9


def worth(prompts: list[str], completions: list[str], worth: list[int], **columns: list[object]) -> list[float]:
    return [float(value) for value in worth]
