"""Why nothing is being learned, in plain words.

Each check is a pure function of a step's metrics and of the metrics of earlier steps (oldest first). It returns one
sentence with the numbers and what usually causes them, or ``None``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeAlias

from upslope.views.numbers import finite, percent, short

Metrics: TypeAlias = Mapping[str, Any]
Check: TypeAlias = Callable[[Metrics, Sequence[Metrics]], "str | None"]

CLIPPED_SHARE = 0.5
GAP_WARNING, GAP_SEVERE = 0.1, 0.5
ENTROPY_FLOOR = 0.01
KL_FLOOR, KL_FACTOR, KL_WINDOW = 0.1, 5.0, 10
LOSS_NEAR_ZERO = 1e-3


@dataclass(frozen=True, slots=True)
class Finding:
    """One warning. ``kind`` names the check, so that a view can tell a new warning from one that lasts."""

    kind: str
    text: str


def equal_groups(metrics: Metrics, history: Sequence[Metrics] = ()) -> str | None:
    """Every group has equal rewards, so every group-relative advantage is 0. Needs ``frac_reward_zero_std``; ``groups``
    (their number) and ``reward`` make the sentence more precise."""
    share = finite(metrics, "frac_reward_zero_std")
    if share is None or share < 1 or "explained_variance" in metrics:  # a critic needs no groups
        return None
    groups, reward = finite(metrics, "groups"), finite(metrics, "reward")
    counted = f"{groups:.0f}/{groups:.0f} groups" if groups else "all groups (100 %)"
    level = "" if reward is None else f" (mean {short(reward)})"
    causes = (
        "answer format never matched (look at the rollouts), task too hard, temperature too low"
        if reward is None or reward <= 0
        else "task already solved or too easy, prompts that the model always or never gets right, temperature too low"
    )
    return f"{counted} have equal rewards{level} so the gradient is 0; usual causes: {causes}"


def clipped_completions(metrics: Metrics, history: Sequence[Metrics] = ()) -> str | None:
    """More than half of the completions were cut by the length limit."""
    share = finite(metrics, "completions/clipped_ratio")
    if share is None or share <= CLIPPED_SHARE:
        return None
    longest = finite(metrics, "completions/max_length")
    limit = "" if longest is None else f" of {longest:.0f} tokens"
    cause = "the model never emits its end token, or " if share >= 1 else ""
    return (
        f"{percent(share)} of the completions were cut at the length limit{limit}, and a cut answer seldom scores; "
        f"{cause}sampling.max_new_tokens is too small"
    )


def empty_completions(metrics: Metrics, history: Sequence[Metrics] = ()) -> str | None:
    """The mean completion is one token (its end token) or less, and not because the length limit is that short."""
    length = finite(metrics, "completions/mean_length")
    if length is None or not 0 < length <= 1 or (finite(metrics, "completions/clipped_ratio") or 0) > CLIPPED_SHARE:
        return None
    return (
        f"completions are {short(length)} tokens long on average: the model ends at once; "
        "check the chat template and the prompt's last characters, and whether the reward pays for an empty answer"
    )


def sampler_disagrees(metrics: Metrics, history: Sequence[Metrics] = ()) -> str | None:
    """Sampler and learner give the same tokens other log-probabilities."""
    gap = finite(metrics, "sampler_gap/mean")
    if gap is None or gap <= GAP_WARNING:
        return None
    largest = finite(metrics, "sampler_gap/max")
    most = "" if largest is None else f", max {short(largest)}"
    grade, limit = ("SEVERE: ", GAP_SEVERE) if gap > GAP_SEVERE else ("", GAP_WARNING)
    return (
        f"{grade}sampler and learner disagree: mean |difference of log-prob| {short(gap)} nats{most} (limit {limit}); "
        "usual causes: stale sampler weights, another dtype or attention"
    )


def entropy_collapsed(metrics: Metrics, history: Sequence[Metrics] = ()) -> str | None:
    """Entropy is below 0.01 nats a token and has fallen to less than half of its highest earlier value."""
    entropy = finite(metrics, "entropy")
    if entropy is None or entropy >= ENTROPY_FLOOR:
        return None
    earlier = [value for row in history if (value := finite(row, "entropy")) is not None]
    if not earlier or entropy >= max(earlier) / 2:
        return None
    return (
        f"entropy fell from {short(max(earlier))} to {short(entropy)} nats a token: completions of a prompt are now "
        "nearly the same; lower optim.lr, or stop here if the reward is where you want it"
    )


def kl_jumped(metrics: Metrics, history: Sequence[Metrics] = ()) -> str | None:
    """KL to the reference is above 0.1 and over five times the median of the last ten steps, or above 0.1 at step 1."""
    kl = finite(metrics, "kl")
    if kl is None or kl <= KL_FLOOR:
        return None
    recent = [value for row in history[-KL_WINDOW:] if (value := finite(row, "kl")) is not None]
    if not recent:
        if finite(metrics, "step") != 1:
            return None
        return (
            f"kl to the reference is {short(kl)} at the first step, where policy and reference should be one model; "
            "usual causes: another reference, another dtype, dropout left on"
        )
    usual = median(recent)
    if kl <= KL_FACTOR * max(usual, 0.0):
        return None
    return (
        f"kl to the reference jumped to {short(kl)} (median of the last {len(recent)} steps: {short(usual)}); "
        "lower optim.lr or raise kl_coef, and look at the rollouts for a trick that the reward falls for"
    )


def gradient_skipped(metrics: Metrics, history: Sequence[Metrics] = ()) -> str | None:
    """The gradient norm is not finite, so the optimizer step was skipped (``skipped_updates`` counts)."""
    skipped = finite(metrics, "skipped_updates")
    before = next((count for row in reversed(history) if (count := finite(row, "skipped_updates")) is not None), 0.0)
    norm = metrics.get("grad_norm")
    bad_norm = isinstance(norm, float) and not math.isfinite(norm)
    # The metrics stream writes a non-finite number as null and counts it under "non_finite".
    nulled = "grad_norm" in metrics and norm is None and (finite(metrics, "non_finite") or 0) > 0
    if not (bad_norm or nulled or (skipped is not None and skipped > before)):
        return None
    found = "" if norm is None else f" (grad_norm {norm})" if bad_norm else ""
    return (
        f"a gradient was not finite{found}, so an optimizer step was skipped and left the weights as they were; "
        "lower optim.lr, or use model.dtype: float32, if it happens again"
    )


def groups_dropped(metrics: Metrics, history: Sequence[Metrics] = ()) -> str | None:
    """Groups were left out because their reward failed (``dropped_groups``)."""
    dropped, groups = finite(metrics, "dropped_groups"), finite(metrics, "groups")
    if dropped is None or dropped <= 0:
        return None
    of = "" if groups is None else f" of {groups + dropped:.0f}"
    return f"{dropped:.0f}{of} groups were left out because the reward function failed on them; see the notices above"


def nothing_trainable(metrics: Metrics, history: Sequence[Metrics] = ()) -> str | None:
    """The step held no token to train on (``trained_tokens``, or completions of length 0)."""
    tokens, length = finite(metrics, "trained_tokens"), finite(metrics, "completions/mean_length")
    if tokens != 0 and length != 0:
        return None
    what = "0 trainable tokens in this step" if tokens == 0 else "every completion is empty (0 tokens)"
    return (
        f"{what}, so the gradient is 0; usual causes: answers cut off by the longest allowed row, "
        "a prompt that fills the context, a chat template without the assistant's part"
    )


def loss_starts_at_zero(metrics: Metrics, history: Sequence[Metrics] = ()) -> str | None:
    """Said once, at the first step of a recipe with groups, where the loss is about 0 though learning has begun."""
    loss = finite(metrics, "loss")
    if loss is None or abs(loss) > LOSS_NEAR_ZERO or "frac_reward_zero_std" not in metrics:
        return None
    if any("loss" in row for row in history) or equal_groups(metrics) is not None:
        return None
    return f"loss is {short(loss)}: it starts at ~0 by design (advantages of a group sum to 0); watch reward"


CHECKS: Mapping[str, Check] = {
    "nothing trainable": nothing_trainable,
    "gradient skipped": gradient_skipped,
    "equal groups": equal_groups,
    "dropped groups": groups_dropped,
    "sampler gap": sampler_disagrees,
    "clipped": clipped_completions,
    "empty": empty_completions,
    "entropy": entropy_collapsed,
    "kl": kl_jumped,
    "loss near 0": loss_starts_at_zero,
}


def findings(metrics: Metrics, history: Sequence[Metrics] = ()) -> list[Finding]:
    """The warnings of a step, the gravest first. ``history``: the metrics of earlier steps, oldest first."""
    told = ((kind, check(metrics, history)) for kind, check in CHECKS.items())
    return [Finding(kind, text) for kind, text in told if text is not None]


def health(metrics: Metrics, history: Sequence[Metrics] = ()) -> list[str]:
    """The sentences of ``findings``; an empty list where nothing is wrong."""
    return [finding.text for finding in findings(metrics, history)]
