"""Each warning fires where it should, stays silent where it should, and names its numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upslope.views import health as h

KL = [{"step": k + 1, "kl": 0.02} for k in range(10)]
ENTROPY = [{"entropy": 0.9}, {"entropy": 0.4}]

# (check, metrics, history, words that must be in the sentence, or None where the check must be silent)
CASES: list[tuple[h.Check, dict[str, Any], list[dict[str, Any]], list[str] | None]] = [
    (
        h.equal_groups,
        {"frac_reward_zero_std": 1.0, "groups": 8.0, "reward": 0.0},
        [],
        ["8/8 groups have equal rewards (mean 0) so the gradient is 0", "answer format never matched"],
    ),
    (h.equal_groups, {"frac_reward_zero_std": 1, "reward": 1.0}, [], ["all groups (100 %)", "already solved"]),
    (h.equal_groups, {"frac_reward_zero_std": 0.99}, [], None),
    (h.equal_groups, {"frac_reward_zero_std": None}, [], None),
    (
        h.clipped_completions,
        {"completions/clipped_ratio": 0.62, "completions/max_length": 64.0},
        [],
        ["62 %", "64 tokens", "max_new_tokens"],
    ),
    (h.clipped_completions, {"completions/clipped_ratio": 1.0}, [], ["100 %", "never emits its end token"]),
    (h.clipped_completions, {"completions/clipped_ratio": 0.5}, [], None),
    (h.empty_completions, {"completions/mean_length": 1.0}, [], ["1.000 tokens", "chat template"]),
    (h.empty_completions, {"completions/mean_length": 1.0, "completions/clipped_ratio": 1.0}, [], None),
    (h.empty_completions, {"completions/mean_length": 1.2}, [], None),
    (h.sampler_disagrees, {"sampler_gap/mean": 0.2, "sampler_gap/max": 3.0}, [], ["0.200", "max 3.000", "limit 0.1"]),
    (h.sampler_disagrees, {"sampler_gap/mean": 0.6}, [], ["SEVERE", "0.600", "limit 0.5", "stale"]),
    (h.sampler_disagrees, {"sampler_gap/mean": 0.1}, [], None),
    (h.entropy_collapsed, {"entropy": 0.005}, ENTROPY, ["from 0.900 to 0.005", "optim.lr"]),
    (h.entropy_collapsed, {"entropy": 0.011}, ENTROPY, None),
    (h.entropy_collapsed, {"entropy": 0.005}, [], None),
    (h.entropy_collapsed, {"entropy": 0.005}, [{"entropy": 0.006}], None),
    (h.kl_jumped, {"kl": 0.5, "step": 11}, KL, ["0.500", "last 10 steps: 0.020"]),
    (h.kl_jumped, {"kl": 0.099, "step": 11}, KL, None),
    (h.kl_jumped, {"kl": 0.11, "step": 11}, [{"kl": 0.03}] * 10, None),
    (h.kl_jumped, {"kl": 0.9, "step": 1}, [], ["0.900", "first step"]),
    (h.kl_jumped, {"kl": 0.9, "step": 30}, [], None),
    (h.gradient_skipped, {"grad_norm": math.nan}, [], ["grad_norm nan", "skipped"]),
    (h.gradient_skipped, {"grad_norm": math.inf}, [], ["grad_norm inf"]),
    (h.gradient_skipped, {"grad_norm": None, "non_finite": 1}, [], ["skipped"]),
    (h.gradient_skipped, {"grad_norm": 1.0, "skipped_updates": 1.0}, [], ["skipped"]),
    (h.gradient_skipped, {"grad_norm": 1.0, "skipped_updates": 2.0}, [{"skipped_updates": 1.0}, {}], ["skipped"]),
    (h.gradient_skipped, {"grad_norm": 1.0, "skipped_updates": 1.0}, [{"skipped_updates": 1.0}, {}], None),
    (h.gradient_skipped, {"grad_norm": None, "skipped_updates": 0.0}, [], None),
    (h.gradient_skipped, {"grad_norm": 1e30, "skipped_updates": 0.0, "non_finite": 1}, [], None),
    (h.groups_dropped, {"dropped_groups": 2.0, "groups": 6.0}, [], ["2 of 8 groups", "reward function"]),
    (h.groups_dropped, {"dropped_groups": 0.0, "groups": 8.0}, [], None),
    (h.nothing_trainable, {"trained_tokens": 0}, [], ["0 trainable tokens"]),
    (h.nothing_trainable, {"completions/mean_length": 0.0}, [], ["every completion is empty"]),
    (h.nothing_trainable, {"trained_tokens": 5, "completions/mean_length": 2.0}, [], None),
    (h.nothing_trainable, {}, [], None),
    (h.loss_starts_at_zero, {"loss": 1e-8, "frac_reward_zero_std": 0.0}, [], ["by design", "watch reward"]),
    (
        h.loss_starts_at_zero,
        {"loss": 0.0, "frac_reward_zero_std": 0.0},
        [{"step": 0, "eval/reward": 1.0}],
        ["by design"],
    ),
    (h.loss_starts_at_zero, {"loss": 1e-8, "frac_reward_zero_std": 0.0}, [{"step": 1, "loss": 0.0}], None),
    (h.loss_starts_at_zero, {"loss": 1e-8, "frac_reward_zero_std": 1.0}, [], None),
    (h.loss_starts_at_zero, {"loss": 0.7, "frac_reward_zero_std": 0.0}, [], None),
    (h.loss_starts_at_zero, {"loss": 1e-8}, [], None),
]


@pytest.mark.parametrize(("check", "metrics", "history", "words"), CASES)
def test_check_fires_or_stays_silent(
    check: h.Check, metrics: dict[str, Any], history: list[dict[str, Any]], words: list[str] | None
) -> None:
    told = check(metrics, history)
    if words is None:
        assert told is None
    else:
        assert told is not None and all(word in told for word in words), told


def test_every_check_is_tested_both_ways() -> None:
    for check in h.CHECKS.values():
        outcomes = {words is None for tested, _, _, words in CASES if tested is check}
        assert outcomes == {True, False}, check


def test_a_healthy_step_has_no_warning() -> None:
    metrics = {
        "step": 5,
        "loss": 0.2,
        "reward": 0.4,
        "frac_reward_zero_std": 0.3,
        "completions/clipped_ratio": 0.1,
        "completions/mean_length": 8.0,
        "kl": 0.02,
        "entropy": 0.5,
        "grad_norm": 0.7,
        "skipped_updates": 0.0,
        "dropped_groups": 0.0,
        "sampler_gap/mean": 0.03,
    }
    assert h.health(metrics, KL) == []


def test_health_tells_everything_that_is_wrong_the_gravest_first() -> None:
    metrics = {"frac_reward_zero_std": 1.0, "sampler_gap/mean": 0.7, "grad_norm": math.nan}
    assert [finding.kind for finding in h.findings(metrics)] == ["gradient skipped", "equal groups", "sampler gap"]
    assert h.health(metrics) == [finding.text for finding in h.findings(metrics)]


NAMES = sorted({name for _, metrics, _, _ in CASES for name in metrics})
VALUES = st.none() | st.floats() | st.text(max_size=3) | st.booleans() | st.integers()
ROWS = st.dictionaries(st.sampled_from(NAMES), VALUES)


@given(ROWS, st.lists(ROWS, max_size=4))
def test_no_metric_whatever_makes_a_check_raise(metrics: dict[str, Any], history: list[dict[str, Any]]) -> None:
    assert all(isinstance(text, str) for text in h.health(metrics, history))


def test_equal_groups_are_no_finding_where_a_critic_is_the_baseline() -> None:
    rows = {"frac_reward_zero_std": 1.0, "groups": 8.0, "reward": 0.5}
    assert h.equal_groups(rows) is not None
    assert h.equal_groups({**rows, "explained_variance": 0.1}) is None
