"""Training on a grid: each learner reaches its gate, and the record is true, repeatable and without side effects."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from tests.recipes.grid_support import TINY
from upslope.errors import InputError
from upslope.maths import losses
from upslope.recipes import grid
from upslope.recipes.grid import LEARNERS, train
from upslope.recipes.grid_config import GRID_DEFAULTS, GridRecipe
from upslope.recipes.grid_lab import prepare, settled
from upslope.types import GridSnapshot
from upslope.worlds.gridworld import SIX_BY_SIX, parse

SIX, SMALL = parse(SIX_BY_SIX), parse(TINY)
QUICK: dict[str, Any] = {"iterations": 8, "walkers": 16, "moves": 8, "group": 4, "hidden": 16, "minibatches": 2}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def quick(learn: str, **more: Any) -> GridRecipe:
    return GridRecipe.model_validate({"learn": learn, **QUICK, **more})


def same(one: GridSnapshot, other: GridSnapshot) -> bool:
    values = one.values is other.values or (
        one.values is not None and other.values is not None and torch.equal(one.values, other.values)
    )
    tensors = ("policy", "ratios", "gains")
    return (
        values
        and all(torch.equal(getattr(one, name), getattr(other, name)) for name in tensors)
        and (one.iteration, one.moves, one.truth, one.walk) == (other.iteration, other.moves, other.truth, other.walk)
    )


# -------------------------------------------------------------------------------------------------------------- gates
def test_ppo_is_certified_on_the_built_in_world() -> None:
    last = train(SIX, GridRecipe(seed=3, iterations=50, snapshots=2)).last.truth
    assert last.optimal_share == 1.0 and last.gap < 0.05
    assert last.critic_rmse is not None and last.critic_rmse < 0.1


@pytest.mark.parametrize("learn", ["grpo", "policy", "reinforce"])
def test_a_policy_alone_is_certified_on_the_built_in_world(learn: str) -> None:
    last = train(SIX, GridRecipe.model_validate({"learn": learn, "seed": 3, "iterations": 80, "snapshots": 2})).last
    assert last.truth.optimal_share == 1.0 and last.truth.gap < 0.05
    assert last.values is None and last.truth.critic_rmse is None


def test_q_learning_finds_the_exact_values_and_the_best_policy() -> None:
    last = train(SIX, GridRecipe(learn="q-learning", seed=3, iterations=30, snapshots=2)).last.truth
    assert last.optimal_share == 1.0 and last.gap < 1e-9
    assert last.critic_rmse is not None and last.critic_rmse < 1e-6  # against V*, which is what it learns


def test_the_value_network_approaches_v_pi_and_stays_away_from_v_star() -> None:
    world = parse(TINY)
    training = train(world, GridRecipe(learn="values", seed=3, iterations=60, snapshots=2))
    first, last = training.snapshots[0].truth, training.last.truth
    assert last.critic_rmse is not None and first.critic_rmse is not None
    assert last.critic_rmse < 0.3 < 5.0 < first.critic_rmse
    lab = prepare(world, GridRecipe(learn="values"))
    assert training.last.values is not None
    free = ~lab.mdp.terminal
    to_best = (training.last.values - lab.exact.optimal_values)[free]
    assert float(to_best.square().mean().sqrt()) > 10 * last.critic_rmse
    assert last.value_gap == first.value_gap > 2.0  # the policy that walks never changes


def test_the_critic_learns_under_slip_and_bump_and_discount() -> None:
    world = parse(TINY, slip=0.2, blocked="bump")
    last = train(world, GridRecipe(seed=1, discount=0.95, iterations=40, snapshots=2)).last.truth
    assert last.optimal_share == 1.0 and last.gap < 0.05
    assert last.critic_rmse is not None and last.critic_rmse < 0.15


# ------------------------------------------------------------------------------------------------------------- record
@pytest.mark.parametrize("learn", LEARNERS)
def test_a_seed_repeats_bit_for_bit_and_another_differs(learn: str) -> None:
    one, again, other = (train(SMALL, quick(learn, seed=seed)) for seed in (1, 1, 2))
    assert len(one.snapshots) == len(again.snapshots) == 9
    assert all(same(left, right) for left, right in zip(one.snapshots, again.snapshots, strict=True))
    assert torch.equal(one.visits, again.visits)
    assert not torch.equal(one.visits, other.visits)


@pytest.mark.parametrize("learn", LEARNERS)
def test_learning_does_not_depend_on_being_recorded_or_watched(learn: str) -> None:
    watched: list[GridSnapshot] = []
    often = train(SMALL, quick(learn, snapshots=8), watched.append)
    seldom = train(SMALL, quick(learn, snapshots=1))
    assert [snapshot.iteration for snapshot in seldom.snapshots] == [0, 8]
    assert len(watched) == 9 and all(one is other for one, other in zip(watched, often.snapshots, strict=True))
    assert same(often.last, seldom.last) and same(often.snapshots[0], seldom.snapshots[0])


@pytest.mark.parametrize("learn", LEARNERS)
def test_the_record_says_what_happened(learn: str) -> None:
    training = train(SMALL, quick(learn, seed=5))
    recipe, lab = quick(learn, seed=5), prepare(SMALL, quick(learn, seed=5))
    assert (training.algorithm, training.seed, training.discount, training.clip) == (learn, 5, 1.0, recipe.clip)
    assert training.settings["walkers"] == 16 and training.settings["horizon"] == 64
    assert training.snapshots[0].moves == 0 < training.snapshots[1].moves < training.last.moves
    arrivals = training.visits[lab.mdp.terminal].sum()
    assert int(training.visits.sum() - arrivals) == training.last.moves and int(arrivals) > 0
    assert training.seconds > 0
    for snapshot in training.snapshots:
        acting = snapshot.policy[~lab.mdp.terminal]
        torch.testing.assert_close(acting.sum(1), torch.ones(len(acting), dtype=torch.float64), rtol=0, atol=1e-12)
        assert not snapshot.policy[lab.mdp.terminal].any() and not snapshot.policy[~lab.mdp.available].any()
        target = lab.exact.optimal_values if learn == "q-learning" else None
        assert snapshot.truth == lab.exact.measure(snapshot.policy, snapshot.values, target)
        assert 1 <= len(snapshot.walk) <= 100


@pytest.mark.parametrize("learn", LEARNERS)
def test_the_recorded_walk_is_one_walk_and_its_numbers_fit(learn: str) -> None:
    training = train(SMALL, quick(learn, seed=5))
    lab = prepare(SMALL, quick(learn))
    for before, snapshot in pairwise(training.snapshots):
        walk = snapshot.walk
        for move, after in pairwise(walk):
            assert move.next_state == after.state
            assert move.outcome == pytest.approx(move.reward + after.outcome, abs=1e-9)
        if bool(lab.mdp.terminal[walk[-1].next_state]):
            assert walk[-1].outcome == pytest.approx(walk[-1].reward)
        for move in walk:
            assert bool(lab.mdp.available[move.state, move.action])
            assert move.reward == pytest.approx(float(lab.mdp.reward[move.state, move.action]))
            if learn in ("values", "ppo", "q-learning"):
                assert before.values is not None and move.value == pytest.approx(float(before.values[move.state]))
            if learn == "policy":
                exact = lab.exact.policy_values(before.policy)
                assert move.value == pytest.approx(float(exact[move.state]), abs=1e-9)
                assert move.gain == pytest.approx(move.outcome - float(exact[move.state]), abs=1e-9)
            if learn in ("grpo", "reinforce"):
                assert move.value is None
            if learn in ("values", "q-learning"):
                assert move.ratio is None and move.clipped is None
            else:
                wanted = float(snapshot.policy[move.state, move.action] / before.policy[move.state, move.action])
                assert move.ratio == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("learn", ["ppo", "grpo", "policy", "reinforce"])
def test_ratios_and_gains_are_a_sample_of_the_batch(learn: str) -> None:
    training = train(SMALL, quick(learn, seed=5, walkers=64))
    for snapshot in training.snapshots:
        assert snapshot.ratios.shape == snapshot.gains.shape and 0 < len(snapshot.ratios) <= 256
        assert bool((snapshot.ratios > 0).all())
    assert torch.allclose(training.snapshots[0].ratios, torch.ones(1).double(), atol=1e-6)  # before any update
    assert not any(move.clipped for move in training.snapshots[0].walk)
    assert float((training.snapshots[1].ratios - 1).abs().max()) > 1e-3


def test_clipped_moves_are_those_whose_gradient_the_clip_removed() -> None:
    training = train(SMALL, quick("ppo", seed=5, lr=0.02, clip=0.1))
    seen = []
    for snapshot in training.snapshots:
        for move in snapshot.walk:
            assert move.ratio is not None and move.gain is not None
            logprob = torch.tensor([[math.log(move.ratio)]], requires_grad=True)
            loss, _ = losses.clipped_surrogate(logprob, torch.zeros(1, 1), torch.tensor([[move.gain]]), 0.1, 0.1)
            (slope,) = torch.autograd.grad(loss.sum(), logprob)
            assert move.clipped == (float(slope) == 0.0 and move.gain != 0)
            seen.append(move.clipped)
    assert any(seen) and not all(seen)


def test_without_a_clip_nothing_is_clipped() -> None:
    training = train(SMALL, quick("ppo", seed=5, lr=0.02, clip=None))
    assert training.clip is None
    assert not any(move.clipped for snapshot in training.snapshots for move in snapshot.walk)
    assert max(float(snapshot.ratios.max()) for snapshot in training.snapshots) > 1.2


def test_a_long_run_is_recorded_at_even_distances() -> None:
    training = train(SMALL, quick("q-learning", iterations=90, snapshots=60))
    iterations = [snapshot.iteration for snapshot in training.snapshots]
    assert len(iterations) == 61 and iterations[0] == 0 and iterations[-1] == 90
    assert {after - before for before, after in pairwise(iterations)} == {1, 2}


# ------------------------------------------------------------------------------------------------------------ settings
def test_each_learner_has_its_defaults_and_what_is_given_stands() -> None:
    assert set(GRID_DEFAULTS) == set(LEARNERS)
    assert GridRecipe().learn == "ppo" and GridRecipe().clip == 0.2
    for learn, changed in GRID_DEFAULTS.items():
        found = GridRecipe.model_validate({"learn": learn})
        assert all(getattr(found, name) == value for name, value in changed.items())
    assert GridRecipe(learn="policy").clip is None and GridRecipe(learn="policy", clip=0.3).clip == 0.3
    assert len(GridRecipe.model_fields) <= 20
    assert all(field.description for field in GridRecipe.model_fields.values())


@pytest.mark.parametrize(
    "wrong",
    [{"learn": "sarsa"}, {"lerning": 1}, {"discount": 1.5}, {"group": 1}, {"snapshots": 0}, {"clip": 0.0},
     {"learn": "grpo", "baseline": "none"}, {"learn": "q-learning", "epsilon": None}],
)  # fmt: skip
def test_what_cannot_be_used_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        GridRecipe.model_validate(wrong)


def test_batches_grow_with_the_number_of_states() -> None:
    assert (settled(GridRecipe(), 10).walkers, settled(GridRecipe(), 10).horizon) == (32, 64)
    assert (settled(GridRecipe(), 100).walkers, settled(GridRecipe(), 100).horizon) == (125, 400)
    assert settled(GridRecipe(moves=16), 100).walkers == 250
    for learn, walkers in (("grpo", 1600), ("values", 1000), ("policy", 800), ("reinforce", 800), ("q-learning", 125)):
        assert settled(GridRecipe.model_validate({"learn": learn}), 100).walkers == walkers
    given = GridRecipe(walkers=7, horizon=9)
    assert settled(given, 100) == given


def test_starts_are_covered_evenly() -> None:
    lab = prepare(SIX, GridRecipe(learn="grpo"))
    starts = lab.starts(len(SIX.starts), 3)
    assert sorted(starts.tolist()) == sorted(SIX.index[cell] for cell in SIX.starts)
    few = torch.cat([lab.starts(7, iteration) for iteration in range(300)])
    shares = torch.bincount(few, minlength=lab.states) / len(few)
    assert float((shares - lab.start).abs().max()) < 0.01


def test_a_world_that_cannot_be_ended_is_refused_before_learning() -> None:
    with pytest.raises(InputError, match="map, row 1, column 1"):
        train(parse(". # .\n# # +1"), GridRecipe())


def test_every_learner_is_one_visible_screen() -> None:
    import ast
    from pathlib import Path

    checked = 0
    for path in Path(grid.__file__).parent.glob("grid*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef) and "train" in node.name:
                checked += 1
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path.name}: {node.name}"
    assert checked >= 7
