"""GRPO: groups, dead groups, baselines, KL terms, truncation, fresh prompts, stale weights."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.learner.support import UNITS, batch, distance, policy
from tests.recipes.support import Bench, bench, metrics, one_thread
from upslope.errors import RewardError
from upslope.learner.learner import Learner
from upslope.maths import losses
from upslope.recipes import grpo
from upslope.recipes.configs import GrpoRecipe
from upslope.recipes.loop import Clock
from upslope.recipes.rollouts import Harvest
from upslope.rollout.sampler import InProcessSampler
from upslope.types import Rollout

__all__ = ["bench", "one_thread"]
TASK: dict[str, Any] = {"task": "arithmetic"}


# ------------------------------------------------------------------------------------------------------------- one step
def recipe(**settings: Any) -> GrpoRecipe:
    return GrpoRecipe(data=TASK, train={"prompts": 3}, grpo=settings)


def targets(gains: list[float], terminated: list[bool] | None = None) -> tuple[Any, grpo.GrpoTargets]:
    rows = batch(units=UNITS)
    mask = rows.mask if terminated is None else rows.mask & torch.tensor(terminated)[:, None]
    old = policy(tiny.model(dtype=torch.float64)).evaluate(rows).logprobs
    spread = torch.tensor(gains, dtype=torch.float64)[:, None] * rows.mask
    return rows, grpo.GrpoTargets(mask, spread, old, old + 0.05 * rows.mask, old - 0.1 * rows.mask)


def gradient_of_update(
    settings: GrpoRecipe, rows: Any, goal: grpo.GrpoTargets, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Tensor]:
    """The gradient that ``update`` steps on."""
    learner = policy(tiny.model(dtype=torch.float64), 40)
    kept: dict[str, Tensor] = {}
    stock = Learner.step

    def step(self: Learner[Any]) -> Any:
        kept.update({name: found.clone() for name, found in self.optimizer.gradients().items()})
        return stock(self)

    monkeypatch.setattr(Learner, "step", step)
    grpo.update(settings, learner, rows, goal, list(range(len(rows))), 0, first=False)
    return kept


@pytest.mark.parametrize("weights", ["token_mean", "sequence_mean", "constant_length"])
def test_leaving_out_dead_groups_changes_nothing(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The group of rows 2 and 3 is dead; a learner that runs every row has the identical gradient."""
    rows, goal = targets([1.0, -1.0, 0.0, 0.0, 0.5, -0.5])
    settings = recipe(weighting=weights)
    ran: list[int] = []
    stock = Learner.gradient
    monkeypatch.setattr(Learner, "gradient", lambda self, b, *rest: (ran.append(len(b)), stock(self, b, *rest))[1])
    skipped = gradient_of_update(settings, rows, goal, monkeypatch)
    learner = policy(tiny.model(dtype=torch.float64), 40)
    learner.gradient(rows, goal, grpo.weigh(settings, goal.mask), grpo.make_loss(settings, first=False))
    full = learner.optimizer.gradients()
    assert ran == [4, 6]
    assert distance(skipped, full) < 1e-12


def test_dead_groups_are_run_where_a_kl_term_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, goal = targets([0.0] * 6)
    assert gradient_of_update(recipe(), rows, goal, monkeypatch) == {}
    assert gradient_of_update(recipe(kl_coef=0.1), rows, goal, monkeypatch) != {}


def test_masked_truncated_rows_leave_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, goal = targets([1.0, -1.0, 0.7, -0.7, 0.5, -0.5], [True, True, True, False, True, True])
    settings = recipe(truncated="mask")
    found = gradient_of_update(settings, rows, goal, monkeypatch)
    kept = [0, 1, 2, 4, 5]
    learner = policy(tiny.model(dtype=torch.float64))
    few = goal.take(kept)
    learner.gradient(rows.take(kept), few, grpo.weigh(settings, few.mask), grpo.make_loss(settings, first=False))
    assert distance(found, learner.optimizer.gradients()) < 1e-12


def rollouts(scores: list[float], terminated: list[bool], size: int) -> Harvest:
    rows = [
        Rollout("p", place // size, place % size, (1, 2, 3, 4), (False, False, True, True), (0.0, 0.0, -1.0, -2.0),
                (0.0, 0.0, 0.0, score), ended, 0)
        for place, (score, ended) in enumerate(zip(scores, terminated, strict=True))
    ]  # fmt: skip
    return Harvest(rows, ["p"] * len(rows), ["c"] * len(rows), 0)


@pytest.mark.parametrize(
    ("baseline", "scale", "wanted"),
    [
        ("mean", "none", [1.0, -2.0, 1.0]),
        ("leave_one_out", "none", [1.5, -3.0, 1.5]),
        ("mean", "std", [0.5**0.5, -(2.0**0.5), 0.5**0.5]),
    ],
)
def test_advantages_by_hand_and_truncated_rows_stay_in_the_baseline(
    baseline: str, scale: str, wanted: list[float]
) -> None:
    settings = recipe(group=3, baseline=baseline, scale=scale, truncated="mask")
    found = rollouts([4.0, 1.0, 4.0, 5.0, 5.0, 5.0], [True, False, True, True, True, True], 3)
    rows, goal = grpo.learn_from(settings, found, policy(tiny.model()), None, Clock())
    assert goal.advantages[:3, 1].tolist() == pytest.approx(wanted, rel=1e-6)
    assert goal.advantages[:, 0].abs().sum() == 0 and bool((goal.advantages[3:] == 0).all())
    assert goal.mask.any(1).tolist() == [True, False, True, True, True, True]
    assert rows.mask.any(1).all() and rows.unit.tolist() == [0, 0, 0, 1, 1, 1]
    assert goal.sampler_logprobs[0].tolist() == [0.0, -1.0, -2.0]


def test_alive_are_the_rows_of_groups_whose_rewards_differ() -> None:
    assert grpo.alive(rollouts([1, 1, 0, 1, 2, 2], [True] * 6, 2), 2) == [2, 3]


# ------------------------------------------------------------------------------------------------------------ real runs
def empty_or_not(prompts: list[Any], completions: list[str], **columns: list[Any]) -> list[float]:
    """Many groups of two are dead: completions of random letters seldom begin with a capital."""
    return [float(text[:1].isupper()) for text in completions]


def always_fails(prompts: list[Any], completions: list[str], **columns: list[Any]) -> list[float]:
    raise ValueError("never")


@pytest.mark.parametrize("kind", ["token", "sequence"])
def test_the_first_minibatch_of_each_step_has_ratio_1_and_nothing_clipped(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    name = "clipped_surrogate" if kind == "token" else "clipped_surrogate_sequence"
    stock = getattr(losses, name)

    def watch(logprobs: Tensor, old_logprobs: Tensor, *rest: Any) -> Any:
        found = stock(logprobs, old_logprobs, *rest)
        seen.append(((logprobs - old_logprobs).exp().detach(), found[1]))
        return found

    monkeypatch.setattr(losses, name, watch)
    run = bench.run("grpo", f"ratios-{kind}", eval_prompts=0, ratio=kind, clip_low=0.001, clip_high=0.001)
    assert len(seen) == 2 * 4
    for place in (0, 4):
        assert bool((seen[place][0] == 1).all()) and not bool(seen[place][1].any())
    assert not bool((seen[1][0] == 1).all())
    assert metrics(run)[0]["clip_ratio"] > 0


def test_fresh_prompts_take_the_place_of_dead_groups(bench: Bench) -> None:
    plain = bench.run("grpo", "plain", reward=empty_or_not, group=2, steps=2, eval_prompts=0)
    fresh = bench.run("grpo", "fresh", reward=empty_or_not, group=2, steps=2, eval_prompts=0, resample=6)
    for before, after in zip(metrics(plain), metrics(fresh), strict=True):
        assert before["frac_reward_zero_std"] > 0  # else there is nothing to test
        assert after["frac_reward_zero_std"] < before["frac_reward_zero_std"]
        assert after["groups"] == 4
    lines = [json.loads(line) for line in (fresh.folder / "rollouts" / "step-00001.jsonl").read_text().splitlines()]
    assert len({line["group"] for line in lines}) == 4 and len(lines) == 8


def test_groups_whose_reward_fails_are_dropped_and_counted(bench: Bench) -> None:
    run = bench.run(
        "grpo",
        "dropped",
        reward={"on_error": "drop_group", "function": fails_file(bench)},
        prompts=9,
        steps=1,
        eval_prompts=0,
    )
    row = run.metrics[1]
    assert (row["dropped_groups"], row["groups"]) == (1.0, 8.0)
    lines = [json.loads(line) for line in (run.folder / "rollouts" / "step-00001.jsonl").read_text().splitlines()]
    assert len(lines) == 24 and "say 3" not in {line["prompt"] for line in lines}


def fails_file(bench: Bench) -> str:
    """A reward that raises for one of the prompts that seed 0 trains on."""
    path = bench.root / "fails.py"
    path.write_text(
        "def one_prompt_fails(prompts, completions, **columns):\n"
        "    if 'say 3' in prompts:\n        raise ValueError('no threes')\n"
        "    return [sum(c.islower() for c in text) / max(1, len(text)) for text in completions]\n"
    )
    return f"{path}:one_prompt_fails"


def test_a_reward_that_fails_stops_the_run_and_is_never_a_0(bench: Bench) -> None:
    with pytest.raises(RewardError, match="never"):
        bench.run("grpo", "fails", reward=always_fails, steps=1, eval_prompts=0)


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_a_forgotten_load_fails_and_does_not_train_on(bench: Bench, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(InProcessSampler, "load", lambda self, weights, version: None)
    with pytest.raises(RuntimeError, match=r"sampler\.load is missing"):
        bench.run(kind, f"{kind}-forgotten", eval_prompts=0)
    run = bench.root / f"{kind}-forgotten"
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [0, 1]


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_the_kl_term_holds_the_policy_near_its_start(bench: Bench, estimator: str) -> None:
    free, held = [
        bench.run("grpo", f"kl-{estimator}-{coef}", kl_coef=coef, kl_estimator=estimator, steps=4, eval_prompts=0)
        for coef in (1e-9, 10.0)
    ]
    assert metrics(free)[0]["kl"] < metrics(free)[-1]["kl"]
    assert metrics(held)[-1]["kl"] < 0.5 * metrics(free)[-1]["kl"]
