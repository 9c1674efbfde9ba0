"""The table: every identity holds, and mistakes planted in the real code turn the line of their name red."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from rich.console import Console

from upslope.certify import command
from upslope.certify.common_lines import learner_lines, sampler_lines, sft_lines
from upslope.certify.ground import Ground, coin, ground, text_values
from upslope.certify.grpo_lines import difficulty, grpo_lines
from upslope.certify.lines import Line, print_lines, summary
from upslope.certify.ppo_lines import ppo_lines
from upslope.certify.preference_lines import preference_lines
from upslope.certify.trainings import grid_lines, searched_values
from upslope.learner import learner
from upslope.maths import advantages, kl, losses, preferences, returns, weighting
from upslope.models import networks
from upslope.recipes import dpo, grpo
from upslope.worlds.grid_truth import solve
from upslope.worlds.gridworld import parse

PARTS: dict[str, Callable[[Ground], Iterator[Line]]] = {
    "learner": learner_lines, "sampler": sampler_lines, "sft": sft_lines, "ppo": ppo_lines, "grpo": grpo_lines,
    "preferences": preference_lines,
}  # fmt: skip


@pytest.fixture(scope="module")
def small() -> Ground:
    """Fewer texts than the table has, enough for every line."""
    return ground(seed=4, horizon=3)


@pytest.mark.parametrize("part", PARTS)
def test_every_line_holds(part: str, small: Ground) -> None:
    lines = list(PARTS[part](small))
    assert summary(lines) == f"{len(lines)} of {len(lines)} lines hold."
    assert len(lines) >= {"learner": 5, "sampler": 1, "sft": 4, "ppo": 13, "grpo": 12, "preferences": 7}[part]
    assert all(line.tolerance <= 1e-8 for line in lines)


def test_the_ground_is_ragged_and_its_policies_are_far_from_uniform_and_from_each_other() -> None:
    found = ground()
    lengths = {len(row.token_ids) for row in found.rollouts()}
    assert len(lengths) >= 4 and found.trees[0].prompt_length < found.trees[1].prompt_length
    assert len({len(text) for text in found.trees[0].leaf_tokens()}) >= 2
    for tree, known in zip(found.trees, found.answers(), strict=True):
        assert len(set(tree.leaf_scores.tolist())) >= 3
        assert float(known.leaf_probabilities.max()) > 3 / len(known.leaf_probabilities)
    assert 0.1 < float(coin().answers()[0].expected_return) < 0.9
    values, visits = text_values(found)
    assert sum(visits) > 2 and len(values) == len(visits)


def test_the_weight_of_a_difficulty_has_its_known_values() -> None:
    """w_2 = 1 for every p; the others by the published table at p = .1; the limit is 1 / sqrt(p (1 - p))."""
    assert [difficulty(p, 2) for p in (0.1, 0.5, 0.9)] == pytest.approx([1, 1, 1])
    assert [round(difficulty(0.1, group), 2) for group in (4, 8, 16)] == [1.69, 2.33, 2.85]
    assert difficulty(0.1, 256) == pytest.approx(10 / 3, abs=0.02)


def test_the_search_is_the_solution_and_sees_a_wrong_one() -> None:
    assert all(line.passed for line in grid_lines(trained=False))
    world = parse("S ~3 . +5\n. # . -1\n. . +2 .")
    known, found = solve(world, 1.0).optimal_values, searched_values(world)
    assert torch.equal(known, found)
    assert float((searched_values(parse("S . . +5")) - torch.tensor([2.0, 3, 4, 0])).abs().max()) == 0


# ----------------------------------------------------------------------------------------------------- planted mistakes
def maximum(logprobs: Any, old: Any, gains: Any, low: float, high: float) -> Any:
    ratio = (logprobs - old.detach()).exp()
    return -torch.maximum(ratio * gains, ratio.clamp(1 - low, 1 + high) * gains), ratio > 9


def whole_batch(rewards: Any, baseline: str = "mean", scale: str = "none") -> Any:
    return rewards - rewards.mean()


def divided(rewards: Any, baseline: str = "mean", scale: str = "none") -> Any:
    """Right, but for silent groups."""
    found = group_relative(rewards, baseline)
    return found / rewards.std(1, correction=0, keepdim=True) if scale == "std" else found


def shifted_gae(rewards: Any, values: Any, bootstrap: Any, mask: Any, discount: float, trace: float) -> Any:
    return returns_gae(rewards.roll(1, 1), values, bootstrap, mask, discount, trace)


def cut_is_end(rewards: Any, values: Any, bootstrap: Any, mask: Any, discount: float, trace: float) -> Any:
    return returns_gae(rewards, values, bootstrap + 1.0, mask, discount, trace)


def hot(*arguments: Any) -> Any:
    return real_chosen(*arguments[:4], 1.3)


def no_support(*arguments: Any) -> Any:
    return real_chosen(*arguments[:3], None, arguments[4])


def averaged(values: Any, weights: Any) -> Any:
    return real_weighted(values, weights) / weights.sum()


returns_gae, real_chosen, real_weighted = returns.gae, networks.chosen, learner._weighted
group_relative = advantages.group_relative
real_whole, real_pairs = dpo.whole, losses.bradley_terry
MISTAKES: dict[str, tuple[str, Any, str, Any, str]] = {
    "clip on the wrong side": ("ppo", losses, "clipped_surrogate", maximum, "clip 0.2"),
    "sign of the surrogate": (
        "ppo", losses, "clipped_surrogate", lambda new, old, gain, a, b: ((new - old).exp() * gain, new > 9),
        "policy gradient, GAE with V^pi, trace 1",
    ),
    "reward on the wrong token": ("ppo", returns, "gae", shifted_gae, "policy gradient, GAE with V^pi, trace 1"),
    "a true end is bootstrapped": ("ppo", returns, "gae", cut_is_end, "critic's gradient at V^pi, trace 1"),
    "k3 in the reward": ("ppo", kl, "k1", kl.k3, "k1 in the reward"),
    "KL turned round": ("ppo", kl, "k1", lambda new, ref: ref - new, "k1 in the reward"),
    "critic on absolute errors": (
        "ppo", losses, "clipped_value", lambda v, old, goal, clip: (v - goal).abs(), "critic's gradient at a wrong V",
    ),
    "mean over the batch": ("grpo", advantages, "group_relative", whole_batch, "leave-one-out advantages"),
    "deviation without a care": ("grpo", advantages, "group_relative", divided, "the same / std"),
    "k2 and k3 exchanged": ("grpo", grpo, "KL", {"k2": kl.k3, "k3": kl.k2}, "k2 in the loss"),
    "sequence mean for token mean": (
        "grpo", weighting, "token_mean", weighting.sequence_mean, "token mean: divided by the tokens",
    ),
    "constant length by the longest row": (
        "grpo", weighting, "constant_length", lambda mask, n: mask / (len(mask) * mask.sum(1).max()), "constant length",
    ),
    "temperature not applied": ("learner", networks, "chosen", hot, "log-probability of each token"),
    "support not replayed": ("learner", networks, "chosen", no_support, "probabilities of all texts"),
    "micro-batch means averaged": ("learner", learner, "_weighted", averaged, "gradient cut into micro-batches"),
    "chosen and rejected exchanged": (
        "preferences", dpo, "LOSS", {**dpo.LOSS, "sigmoid": lambda a, b, beta: losses.dpo(b, a, beta)},
        "gradient there: the",
    ),
    "log-probabilities averaged over tokens": (
        "preferences", dpo, "whole", lambda found, mask: real_whole(found, mask) / mask.sum(1), "gradient elsewhere",
    ),
    "1 / beta for 1 / (2 beta)": (
        "preferences", dpo, "LOSS", {**dpo.LOSS, "ipo": lambda a, b, beta: preferences.ipo(a, b, beta / 2)}, "ipo:",
    ),
    "beta left out": (
        "preferences", dpo, "LOSS", {**dpo.LOSS, "sigmoid": lambda a, b, beta: losses.dpo(a, b, 1.0)}, "loss at ref",
    ),
    "the worse answer scored higher": (
        "preferences", losses, "bradley_terry", lambda a, b, margin=0.0: real_pairs(b, a, margin), "gradient at other",
    ),
    "log-likelihood's sign": ("sft", losses, "nll", lambda logprobs: logprobs, "gradient = gradient of KL"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_turns_its_line_red(mistake: str, small: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    part, module, name, wrong, line = MISTAKES[mistake]
    monkeypatch.setattr(module, name, wrong)
    found = next(every for every in PARTS[part](small) if every.checked.startswith(line))
    assert not found.passed


# ------------------------------------------------------------------------------------------------------------ the table
GOOD, BAD = Line("PPO", "one", 1.0, 1.0, 1e-12, 1e-8), Line("GRPO", "two", "a", "b", float("nan"), 0.05)


def test_a_line_passes_within_its_tolerance_and_nan_never_does() -> None:
    assert GOOD.passed and GOOD.verdict == "exact" and not BAD.passed and BAD.verdict == "FAILED: above 0.05"
    assert not Line("a", "b", 1.0, 1.1, 0.1, 0.05, "as theory says").passed
    assert Line("a", "b", 1.0, 1.1, 0.0, 0.05, "half of it").verdict == "as stated: half of it"
    assert summary([GOOD, BAD]) == "1 of 2 lines hold. Not: GRPO: two."


def test_the_table_and_its_json_say_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "algorithm_lines", lambda trained: iter([GOOD, BAD]))
    assert command.certify_command(None, as_json=True) is False
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is False and [line["passed"] for line in found["lines"]] == [True, False]
    assert found["lines"][1]["difference"] == "nan"
    assert command.certify_command(None, as_json=False) is False
    assert "1 of 2 lines hold" in capsys.readouterr().out
    monkeypatch.setattr(command, "algorithm_lines", lambda trained: iter([GOOD]))
    assert command.certify_command(None, as_json=False) is True


def test_words_in_a_table_are_no_markup() -> None:
    console = Console(record=True, width=200)
    print_lines([Line("PPO", "[red]x[/red] [B, T]", "[bold]", 2.0, 0.0, 1.0)], console)
    assert "[red]x[/red] [B, T]" in console.export_text()
