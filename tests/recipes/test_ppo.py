"""PPO: ratios, values, bootstrap, the KL penalty in the reward, and who learns when."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.recipes.support import Bench, bench, metrics, one_thread
from upslope.learner.learner import FrozenScorer, Learner
from upslope.maths import losses
from upslope.recipes import ppo
from upslope.recipes.configs import PpoRecipe
from upslope.recipes.loop import Loop
from upslope.recipes.ppo import Networks, PpoTargets
from upslope.recipes.rollouts import Harvest
from upslope.types import PolicyEvaluation, Rollout, ValueEvaluation

__all__ = ["bench", "one_thread"]
TASK: dict[str, Any] = {"task": "arithmetic"}


# -------------------------------------------------------------------------------------------------- learn_from, by hand
def fixed_scorer(kind: type[Any], found: Any) -> Any:
    """A scorer of that kind which gives these evaluations, whatever it is asked."""
    scorer = kind.__new__(kind)
    scorer.evaluate = lambda batch: found
    return scorer


def rollout(tokens: int, reward: float, terminated: bool, group: int = 0) -> Rollout:
    """A prompt of 2 tokens and ``tokens`` chosen ones; the reward on the last."""
    chosen = (False, False) + (True,) * tokens
    return Rollout(
        "p", group, 0, (1, 2) + (3,) * tokens, chosen, (0.0, 0.0) + (-1.0,) * tokens,
        (0.0,) * (1 + tokens) + (reward,), terminated, 0,
    )  # fmt: skip


def fixed(
    rows: list[Rollout], values: list[list[float]], last: list[float], old: float, ref: float | None
) -> tuple[Harvest, Any]:
    harvest = Harvest(rows, ["p"] * len(rows), ["c"] * len(rows), 0)
    mask = torch.zeros(len(rows), max(len(row.token_ids) for row in rows) - 1, dtype=torch.bool)
    table = torch.zeros(mask.shape)
    for place, (row, found) in enumerate(zip(rows, values, strict=True)):
        mask[place, 1 : 1 + row.completion_length] = True
        table[place, 1 : 1 + row.completion_length] = torch.tensor(found)
    policy = fixed_scorer(Learner, PolicyEvaluation(mask * old, torch.zeros(mask.shape)))
    critic = fixed_scorer(Learner, ValueEvaluation(table, torch.tensor(last)))
    reference = (
        None if ref is None else fixed_scorer(FrozenScorer, PolicyEvaluation(mask * ref, torch.zeros(mask.shape)))
    )
    return harvest, Networks(policy, critic, reference)


def test_truncated_completions_bootstrap_from_the_last_value_and_terminated_ones_do_not() -> None:
    recipe = PpoRecipe(data=TASK, ppo={"whiten": False, "kl_coef": 0.0, "discount": 0.9, "trace": 0.5})
    rows = [rollout(2, 1.0, True), rollout(2, 1.0, False)]
    harvest, networks = fixed(rows, [[0.2, 0.4], [0.2, 0.4]], [7.0, 7.0], -1.0, None)
    batch, targets, found = ppo.learn_from(recipe, harvest, networks)
    last = 1.0 - 0.4
    first = 0.9 * 0.4 - 0.2 + 0.45 * last
    cut = 1.0 + 0.9 * 7.0 - 0.4
    cut_first = 0.9 * 0.4 - 0.2 + 0.45 * cut
    wanted = torch.tensor([[0.0, first, last], [0.0, cut_first, cut]])
    torch.testing.assert_close(targets.advantages, wanted)
    values = torch.tensor([[0.0, 0.2, 0.4], [0.0, 0.2, 0.4]])
    torch.testing.assert_close(targets.returns, (wanted + values) * batch.mask)
    torch.testing.assert_close(targets.old_values, values)
    assert found["value/mean"] == pytest.approx(0.3) and "kl" not in found


def test_the_kl_penalty_is_k1_in_each_tokens_reward() -> None:
    """With V = 0, discount 1 and trace 1 the advantage is the reward-to-go: score - coef * (sum of k1 from here on)."""
    recipe = PpoRecipe(data=TASK, ppo={"whiten": False, "kl_coef": 0.25, "trace": 1.0})
    harvest, networks = fixed([rollout(3, 2.0, True)], [[0.0, 0.0, 0.0]], [9.0], -1.0, -1.6)
    _, targets, found = ppo.learn_from(recipe, harvest, networks)
    k1 = 0.6
    wanted = [0.0, 2.0 - 0.25 * 3 * k1, 2.0 - 0.25 * 2 * k1, 2.0 - 0.25 * k1]
    assert targets.advantages[0].tolist() == pytest.approx(wanted, rel=1e-6)
    assert found["kl"] == pytest.approx(torch.expm1(torch.tensor(-0.6)).item() + 0.6, rel=1e-5)


def test_whitening_gives_advantages_of_mean_0_and_variance_1_and_leaves_the_returns() -> None:
    rows = [rollout(2, 1.0, True), rollout(4, -3.0, False)]
    arguments = (rows, [[0.2, 0.4], [0.1, 0.2, 0.3, 0.4]], [1.0, 2.0], -1.0, None)
    plain, white = [
        ppo.learn_from(PpoRecipe(data=TASK, ppo={"whiten": whiten}), *fixed(*arguments)) for whiten in (False, True)
    ]
    chosen = white[1].advantages[white[0].mask]
    assert float(chosen.mean()) == pytest.approx(0, abs=1e-6)
    assert float(chosen.var(correction=0)) == pytest.approx(1, abs=1e-4)
    assert torch.equal(plain[1].returns, white[1].returns)


def test_explained_variance_of_perfect_useless_and_constant() -> None:
    goal = torch.tensor([1.0, 2.0, 4.0])
    assert ppo.explained_variance(goal, goal) == pytest.approx(1.0)
    assert ppo.explained_variance(torch.zeros(3), goal) == pytest.approx(0.0)
    assert ppo.explained_variance(-goal, goal) == pytest.approx(-3.0, rel=1e-5)
    assert ppo.explained_variance(goal, torch.ones(3)) == 0.0


@pytest.mark.parametrize(
    ("limit", "kls", "stops"),
    [
        (0.1, [0.0, 0.12], True),
        (0.1, [0.0, 0.09], False),
        (None, [0.0, 9.0], False),
        (0.1, [0.0], False),
        (0.1, [], False),
    ],
)
def test_moved_too_far_is_the_mean_kl_against_the_limit(limit: float | None, kls: list[float], stops: bool) -> None:
    """The first update's KL is 0 by construction and does not count."""
    loop = Loop(PpoTargets)
    for value in kls:
        loop.add({"approx_kl": value})
    assert ppo.moved_too_far(PpoRecipe(data=TASK, ppo={"target_kl": limit}), loop) is stops


# ------------------------------------------------------------------------------------------------------------ real runs
def ratios(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """The ratio and the clipped flags of every policy update, as the loss computes them."""
    seen: list[tuple[Tensor, Tensor]] = []
    stock = losses.clipped_surrogate

    def watch(logprobs: Tensor, old_logprobs: Tensor, *rest: Any) -> Any:
        found = stock(logprobs, old_logprobs, *rest)
        seen.append(((logprobs - old_logprobs).exp().detach(), found[1]))
        return found

    monkeypatch.setattr(losses, "clipped_surrogate", watch)
    return seen


def test_the_first_minibatch_of_each_step_has_ratio_1_and_nothing_clipped(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = ratios(monkeypatch)
    run = bench.run("ppo", "ratios", eval_prompts=0, target_kl=None)
    assert len(seen) == 2 * 4
    for place, (ratio, clipped) in enumerate(seen):
        if place % 4 == 0:
            assert bool((ratio == 1).all()) and not bool(clipped.any())
    assert any(not bool((ratio == 1).all()) for ratio, _ in seen[1:4])
    assert metrics(run)[0]["ratio/max"] > 1


def test_values_start_at_0_and_policy_and_critic_both_move_in_the_first_step(bench: Bench) -> None:
    run = bench.run("ppo", "first-step", steps=1, save_every=1, eval_prompts=0)
    assert run.metrics[1]["value/mean"] == 0.0 and run.metrics[1]["explained_variance"] == 0.0
    moved = changes(bench, run.folder)
    assert moved["policy"] and moved["critic"]
    assert run.metrics[1]["critic/grad_norm"] > 0 and run.metrics[1]["grad_norm"] > 0


def changes(bench: Bench, folder: Path) -> dict[str, bool]:
    """Which network differs from the start, by the final checkpoint."""
    start = load_file(bench.model / "model.safetensors")
    (saved,) = (folder / "checkpoints").glob("step-*")
    policy, critic = [load_file(saved / f"{name}.safetensors") for name in ("policy", "critic")]
    same = {name: torch.equal(tensor, policy[f"weight.model.{name}"]) for name, tensor in start.items()}
    decoder = {name.removeprefix("model."): tensor for name, tensor in start.items() if name.startswith("model.")}
    held = [torch.equal(tensor, critic[f"weight.decoder.{name}"]) for name, tensor in decoder.items()]
    held += [not bool(critic["weight.head.weight"].any()), not bool(critic["weight.head.bias"].any())]
    return {"policy": not all(same.values()), "critic": not all(held)}


def test_freeze_critic_leaves_every_value_at_0(bench: Bench) -> None:
    run = bench.run("ppo", "frozen", freeze_critic=True, save_every=9, eval_prompts=0)
    assert changes(bench, run.folder) == {"policy": True, "critic": False}
    assert [row["value/mean"] for row in metrics(run)] == [0.0, 0.0]
    assert "value_loss" not in run.metrics[1]


def test_critic_warmup_leaves_the_policy_for_so_many_steps(bench: Bench) -> None:
    one = bench.run("ppo", "warm-one", critic_warmup=1, steps=1, save_every=9, eval_prompts=0)
    assert changes(bench, one.folder) == {"policy": False, "critic": True}
    two = bench.run("ppo", "warm-two", critic_warmup=1, save_every=9, eval_prompts=0)
    assert changes(bench, two.folder) == {"policy": True, "critic": True}
    assert "grad_norm" not in two.metrics[1] and two.metrics[2]["grad_norm"] > 0


def test_target_kl_stops_the_passes_of_a_step(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = ratios(monkeypatch)
    bench.run("ppo", "near", epochs=4, target_kl=1e-9, steps=2, eval_prompts=0)
    assert len(seen) == 2 * 2  # the second update sees that the first has moved; the other six are not taken
    bench.run("ppo", "far", epochs=4, target_kl=None, steps=2, eval_prompts=0)
    assert len(seen) == 4 + 2 * 8


def test_the_reference_is_the_starting_policy_so_the_kl_is_0_first_and_grows(bench: Bench) -> None:
    run = bench.run("ppo", "reference", kl_coef=0.1, steps=3, eval_prompts=0)
    kl = [row["kl"] for row in metrics(run)]
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[2] > 1e-3


def test_rollouts_carry_their_whitened_advantages(bench: Bench) -> None:
    run = bench.run("ppo", "logged", steps=1, eval_prompts=0)
    lines = [json.loads(line) for line in (run.folder / "rollouts" / "step-00001.jsonl").read_text().splitlines()]
    assert sum(line["advantage"] * len(line["token_ids"]) for line in lines) == pytest.approx(0, abs=1e-3)


def test_the_critics_head_learns_at_a_rate_of_its_own(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[ppo.Networks] = []
    build_networks = ppo.build
    monkeypatch.setattr(ppo, "build", lambda *given: kept.append(build_networks(*given)) or kept[0])
    bench.run("ppo", "rates", steps=1, lr=3e-4, critic_lr=1e-4, critic_head_lr=7e-3, decay="constant", eval_prompts=0)
    found = {}
    for name in ("policy", "critic"):
        optimizer = getattr(kept[0], name).optimizer
        names = {id(tensor): weight for weight, tensor in optimizer.master.items()}
        for group in optimizer.optimizer.param_groups:
            found |= {f"{name} {names[id(tensor)]}": group["lr"] for tensor in group["params"]}
    head = {key: rate for key, rate in found.items() if key.startswith("critic head.")}
    decoder = {key: rate for key, rate in found.items() if key.startswith("critic ") and key not in head}
    policy = {key: rate for key, rate in found.items() if key.startswith("policy ")}
    for rates, wanted in ((head, 7e-3), (decoder, 1e-4), (policy, 3e-4)):
        assert rates and list(rates.values()) == pytest.approx([wanted] * len(rates))
