"""Clipping, schedule, master weights, skipped steps, state and restore."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.learner.support import batch, gradients, policy
from upslope.errors import TrainingError
from upslope.learner.learner import Learner
from upslope.learner.optimizer import MasterAdamW, OptimizerSettings, unrounded
from upslope.maths import weighting
from upslope.models.networks import ValueNetwork
from upslope.recipes.sft import SftTargets, loss
from upslope.types import State


def settle(learner: Learner[Any], seed: int = 0, scale: float = 1.0) -> Any:
    rows = batch(seed=seed)
    learner.gradient(rows, SftTargets(rows.mask), weighting.token_mean(rows.mask) * scale, loss)
    return learner.step()


def bits(learner: Learner[Any]) -> dict[str, Tensor]:
    """Everything that a step changes, copied: compute weights, masters, moments."""
    found = {f"compute.{name}": p.detach().clone() for name, p in learner.network.named_parameters()}
    return found | {name: tensor.clone() for name, tensor in learner.state().tensors.items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# ------------------------------------------------------------------------------------------------------------ schedule
def test_learning_rates_are_the_golden_ones() -> None:
    steps = range(12)
    constant = OptimizerSettings(lr=8e-4, steps=12, warmup=4)
    assert [constant.rate(step) for step in steps] == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4] + [8e-4] * 8)
    linear = OptimizerSettings(lr=1.0, steps=11, warmup=0, decay="linear")
    assert [linear.rate(step) for step in range(11)] == pytest.approx([1 - 0.09 * step for step in range(11)])
    cosine = OptimizerSettings(lr=1.0, steps=7, warmup=2, decay="cosine")
    middle = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share)) for share in (0, 0.25, 0.5, 0.75, 1)]
    assert [cosine.rate(step) for step in range(7)] == pytest.approx([0.5, 1.0, *middle])
    assert cosine.rate(4) == pytest.approx(0.55) and cosine.rate(6) == pytest.approx(0.1)


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 5), (3, 3), (4, 3), (5, 9)])
def test_short_runs_have_rates_between_0_and_the_peak(decay: Any, steps: int, warmup: int) -> None:
    settings = OptimizerSettings(lr=1.0, steps=steps, warmup=warmup, decay=decay)
    assert all(0 < settings.rate(step) <= 1.0 for step in range(steps + 3))


def test_a_step_uses_the_rate_of_its_number_and_the_boost_of_its_prefix() -> None:
    network = ValueNetwork(tiny.model().get_decoder())
    optimizer = MasterAdamW(
        network, OptimizerSettings(lr=1e-3, steps=9, warmup=4, clip_norm=1e9, boosts={"head.": 10.0})
    )
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert optimizer.step(1) == pytest.approx(5e-4)
    # Adam's first step is lr in each coordinate, whatever the gradient's size.
    for name, parameter in network.named_parameters():
        rate = 5e-3 if name.startswith("head.") else 5e-4
        torch.testing.assert_close(
            before[name] - parameter.detach(), torch.full_like(parameter, rate), rtol=1e-3, atol=1e-7
        )


def test_updates_are_those_of_torchs_adamw() -> None:
    learner, plain = policy(tiny.model(dtype=torch.float64), lr=3e-3, clip_norm=0.5), tiny.model(dtype=torch.float64)
    reference = torch.optim.AdamW(plain.parameters(), lr=3e-3, betas=(0.9, 0.99), weight_decay=0.0, fused=False)
    for seed in range(3):
        rows = batch(seed=seed)
        learner.gradient(rows, SftTargets(rows.mask), weighting.token_mean(rows.mask), loss)
        for name, parameter in plain.named_parameters():
            parameter.grad = gradients(learner)[f"model.{name}"]
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        reference.step()
        report = learner.step()
        assert report.grad_norm == pytest.approx(float(norm), rel=1e-12) and float(norm) > 0.5
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(dict(learner.weights())[name], parameter.detach(), rtol=1e-9, atol=1e-12)


def test_a_small_gradient_is_not_scaled_up() -> None:
    learner = policy(tiny.model(dtype=torch.float64), clip_norm=1e6)
    rows = batch()
    learner.gradient(rows, SftTargets(rows.mask), weighting.token_mean(rows.mask), loss)
    before = gradients(learner)
    norm = learner.optimizer.norm()
    assert norm == pytest.approx(math.sqrt(sum(float(grad.square().sum()) for grad in before.values())), rel=1e-12)
    assert same(before, gradients(learner))


# ------------------------------------------------------------------------------------------------------ master weights
def test_bfloat16_weights_are_the_rounded_masters_after_each_step() -> None:
    learner = policy(tiny.model(dtype=torch.bfloat16))
    for seed in range(3):
        settle(learner, seed)
        for name, parameter in learner.network.named_parameters():
            master = learner.optimizer.master[name]
            assert master.dtype == torch.float32 and parameter.dtype == torch.bfloat16
            assert torch.equal(parameter, master.to(torch.bfloat16))
    assert any(not torch.equal(m, m.bfloat16().float()) for m in learner.optimizer.master.values())


def test_updates_below_the_resolution_of_bfloat16_accumulate_in_the_master() -> None:
    """A step of 2e-4 is far below the spacing of bfloat16 around 1 (0.0039, 0.0078); the master adds them all up."""
    linear = torch.nn.Linear(4, 1, bias=False, dtype=torch.bfloat16)
    torch.nn.init.ones_(linear.weight)
    optimizer = MasterAdamW(linear, OptimizerSettings(lr=2e-4, steps=100))
    before = optimizer.master["weight"].detach().clone()
    for step in range(40):
        linear.weight.grad = torch.ones_like(linear.weight)
        optimizer.accumulate()
        optimizer.step(step)
        optimizer.clear()
    assert torch.allclose(before - optimizer.master["weight"], torch.tensor(80e-4), rtol=1e-3, atol=0)
    assert bool((linear.weight < 1).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_masters_start_at_random_points_of_the_stretch_that_rounds_to_their_weights(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    special = [0.0, -0.0, 1.0, -1.0, 2.0, 0.5, 6e-8, 3e38 if dtype == torch.bfloat16 else 6e4]
    weight = torch.cat([torch.randn(5000), torch.tensor(special)]).to(dtype)
    master = unrounded(weight, "w")
    assert torch.equal(master.to(dtype), weight)  # the network is the one that was loaded, bit for bit
    assert torch.equal(master, unrounded(weight, "w")) and not torch.equal(master, unrounded(weight, "v"))
    assert bool((master[weight == 0] == 0).all())
    above = (torch.ones(20_000, dtype=dtype) * 1.5).to(dtype)
    place = (unrounded(above, "w") - 1.5) / torch.finfo(dtype).eps  # -1/2 to 1/2 of the spacing, evenly
    assert float(place.min()) < -0.49 and float(place.max()) > 0.49 and abs(float(place.mean())) < 0.01
    assert float(place.std()) == pytest.approx(12**-0.5, rel=0.02)


def test_the_mean_change_of_bfloat16_weights_is_the_mean_update_from_the_first_step_on() -> None:
    """20,000 weights of 1.5, spacing 2^-7: ten steps of 1e-4 are an eighth of it, so an eighth of them rounds over."""
    linear = torch.nn.Linear(20_000, 1, bias=False, dtype=torch.bfloat16)
    torch.nn.init.constant_(linear.weight, 1.5)
    optimizer = MasterAdamW(linear, OptimizerSettings(lr=1e-4, steps=100))
    for step in range(10):
        linear.weight.grad = torch.ones_like(linear.weight)
        optimizer.accumulate()
        optimizer.step(step)
        optimizer.clear()
        moved = float((1.5 - linear.weight.detach().double()).mean())
        assert moved == pytest.approx((step + 1) * 1e-4, rel=0.15)


def test_full_precision_weights_are_their_own_masters() -> None:
    for dtype in (torch.float32, torch.float64):
        learner = policy(tiny.model(dtype=dtype))
        assert all(learner.optimizer.master[name] is p for name, p in learner.network.named_parameters())


# ------------------------------------------------------------------------------------------------ gradients not finite
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_no_bit_and_is_counted(dtype: torch.dtype, bad: float) -> None:
    learner = policy(tiny.model(dtype=dtype))
    settle(learner)
    before = bits(learner)
    report = settle(learner, 1, bad)
    assert report.skipped and not math.isfinite(report.grad_norm) and report.lr == 0.0
    assert same(bits(learner), before)
    assert learner.skipped == 1
    assert not settle(learner, 2).skipped and not same(bits(learner), before)


def test_the_third_bad_gradient_in_a_row_stops_and_a_good_one_starts_the_count_anew() -> None:
    learner = policy(tiny.model())
    for scale in (math.nan, math.nan, 1.0, math.nan, math.nan):
        settle(learner, scale=scale)
    with pytest.raises(TrainingError, match=r"3 gradients in a row are not finite.*Fix:"):
        settle(learner, scale=math.nan)
    assert learner.skipped == 5


# ------------------------------------------------------------------------------------------------------------- restore
def stored(state: State) -> State:
    """As a checkpoint gives it back: copies."""
    return State({name: tensor.detach().clone() for name, tensor in state.tensors.items()}, dict(state.values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_restored_learner_goes_on_bit_for_bit(dtype: torch.dtype, steps: int) -> None:
    first = policy(tiny.model(dtype=dtype), warmup=3, decay="cosine")
    for seed in range(steps):
        settle(first, seed, math.nan if seed == 1 else 1.0)
    kept = stored(first.state())
    second = policy(tiny.model(seed=9, dtype=dtype), warmup=3, decay="cosine")
    settle(second, 7)  # a used learner: its own moments must not survive
    second.restore(kept)
    assert same(bits(first), bits(second))
    assert (second.version, second.skipped) == (first.version, first.skipped)
    for seed in (5, 6):
        assert settle(first, seed) == settle(second, seed)
    assert same(bits(first), bits(second))


def test_restoring_forgets_a_half_made_gradient() -> None:
    learner = policy(tiny.model())
    kept = stored(learner.state())
    rows = batch()
    learner.gradient(rows, SftTargets(rows.mask), weighting.token_mean(rows.mask), loss)
    learner.restore(kept)
    assert gradients(learner) == {}


def test_bad_gradients_are_counted_across_a_restore() -> None:
    first, second = policy(tiny.model()), policy(tiny.model())
    settle(first, scale=math.nan)
    settle(first, scale=math.nan)
    second.restore(stored(first.state()))
    with pytest.raises(TrainingError):
        settle(second, scale=math.nan)
