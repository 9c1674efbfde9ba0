"""Losses and advantages as users write them: right ones, and ones with a mistake that has a name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

Function = Callable[..., Tensor]


# --------------------------------------------------------------------------------------------------------- right losses
def reinforce(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return -logprobs * advantages * mask


def plain_ratio(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return -(logprobs - old_logprobs).exp() * advantages


def ppo(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, low: float = 0.2, high: float = 0.28
) -> Tensor:
    ratio = (logprobs - old_logprobs).exp()
    return -torch.min(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages) * mask


def dual_clip(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    ratio = (logprobs - old_logprobs).exp()
    gain = torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    return -torch.where(advantages < 0, torch.max(gain, 3 * advantages), gain) * mask


def cispo(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    weight = (logprobs - old_logprobs).exp().clamp(max=2.0).detach()
    return -weight * advantages * logprobs * mask


def gspo(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    ratio = (((logprobs - old_logprobs) * mask).sum(1) / mask.sum(1).clamp(min=1)).exp()[:, None]
    return -torch.min(ratio * advantages, ratio.clamp(1 - 3e-4, 1 + 4e-4) * advantages) * mask


def whole_ratio(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    ratio = ((logprobs - old_logprobs) * mask).sum(1, keepdim=True).exp()
    return -ratio * advantages * mask / mask.sum(1, keepdim=True).clamp(min=1)


def in_place(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    advantages *= mask
    old_logprobs *= -1
    return -(logprobs.float() + old_logprobs.float()).exp() * advantages.float() / 256


# --------------------------------------------------------------------------------------------------------- wrong losses
def sign(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return (logprobs - old_logprobs).exp() * advantages * mask


def sequence_mean(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return ppo(logprobs, old_logprobs, advantages, mask) / mask.sum(1, keepdim=True).clamp(min=1)


def token_sum(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    ratio = ((logprobs - old_logprobs) * mask).sum(1, keepdim=True).exp()
    return -ratio * advantages * mask


def wrong_side(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    ratio = (logprobs - old_logprobs).exp()
    return -torch.max(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages) * mask


def minimum_of_ratios(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    ratio = (logprobs - old_logprobs).exp()
    return -torch.min(ratio, ratio.clamp(0.8, 1.2)) * advantages * mask


def no_minimum(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return -(logprobs - old_logprobs).exp().clamp(0.8, 1.2) * advantages * mask


def double_mean(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return plain_ratio(logprobs, old_logprobs, advantages, mask) * mask / mask.sum()


def one_mean(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    per_token = plain_ratio(logprobs, old_logprobs, advantages, mask) * mask
    return (per_token.sum() / mask.sum()).expand(mask.shape)


def row_mean(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return ppo(logprobs, old_logprobs, advantages, mask) / len(mask)


def padded_width(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return ppo(logprobs, old_logprobs, advantages, mask) / mask.shape[1]


def unmasked(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    ratio = (logprobs - old_logprobs).sum(1, keepdim=True).exp()
    return -ratio * advantages * mask / mask.sum(1, keepdim=True).clamp(min=1)


def not_detached(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return -(logprobs - old_logprobs).exp().clamp(max=2.0) * advantages * logprobs * mask


def cancels(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return -(logprobs - logprobs).exp() * advantages * mask


def probability(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return -logprobs.exp() * advantages * mask


def whitened_inside(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    kept = advantages[mask]
    return plain_ratio(logprobs, old_logprobs, (advantages - kept.mean()) / (kept.std() + 1e-8), mask) * mask


def turned_round(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return (old_logprobs - logprobs).exp() * advantages * mask


def entropy_bonus(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return (plain_ratio(logprobs, old_logprobs, advantages, mask) + 0.1 * logprobs.exp() * logprobs) * mask


def good_only(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return plain_ratio(logprobs, old_logprobs, advantages.relu(), mask) * mask


def gains_clipped(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return plain_ratio(logprobs, old_logprobs, advantages.clamp(-1, 1), mask) * mask


def no_stop(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return plain_ratio(logprobs, old_logprobs, advantages, mask) * (mask & pad(mask[:, 1:], (0, 1)))


def shifted(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return plain_ratio(logprobs, old_logprobs, pad(advantages[:, :-1], (1, 0)), mask) * mask


def decayed(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return ppo(logprobs, old_logprobs, advantages, mask) * 0.9 ** (mask.cumsum(1) - 1)


def only_old(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return -old_logprobs * advantages * mask


def mask_turned_round(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return plain_ratio(logprobs, old_logprobs, advantages, mask) * ~mask


def summed(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return -(logprobs * mask).sum(1, keepdim=True) * advantages * mask


def dropout(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return ppo(logprobs, old_logprobs, advantages, mask) * (torch.rand_like(logprobs) < 0.5)


RIGHT: dict[str, tuple[Function, str]] = {
    "reinforce": (reinforce, "ratio none"), "plain ratio": (plain_ratio, "ratio token"), "ppo": (ppo, "clip"),
    "dual clip": (dual_clip, "dual clip"), "cispo": (cispo, "capped"), "gspo": (gspo, "ratio mean"),
    "whole ratio": (whole_ratio, "ratio sequence"), "in place, float32, scaled": (in_place, "scale"),
}  # fmt: skip
"""Losses whose expected gradient is the policy gradient, and a note that says what they do."""
WRONG: dict[str, tuple[Function, str, str]] = {
    "sign": (sign, "sign", "sign: it pushes bad completions up"),
    "sequence mean": (sequence_mean, "length", "divides each completion by its own length: short ones count more"),
    "token sum": (token_sum, "length", "multiplies each completion by its own length"),
    "wrong side": (wrong_side, "clip side", "uses the wrong side of the clip"),
    "minimum of ratios": (minimum_of_ratios, "clip side", "for negative advantages uses the wrong side"),
    "no minimum": (no_minimum, "no minimum", "without taking the minimum"),
    "double mean": (double_mean, "double mean", "divides by the number of tokens it is given: averages inside"),
    "one mean": (one_mean, "double mean", "returns one mean for all tokens: averages inside"),
    "row mean": (row_mean, "double mean", "divides by the number of rows it is given: averages inside"),
    "padded width": (padded_width, "width", "does not mask padding: divides by the padded width"),
    "unmasked": (unmasked, "padding", "does not mask padding: what stands under the mask"),
    "not detached": (not_detached, "detach", "is not detached"),
    "cancels": (cancels, "cancels", "without detach, so that they cancel"),
    "probability": (probability, "probability", "uses the probability pi where log pi"),
    "whitened inside": (whitened_inside, "whitening", "normalises the advantages over the rows"),
    "turned round": (turned_round, "ratio inverted", "the ratio is turned round"),
    "entropy bonus": (entropy_bonus, "extra term", "a term of its own (entropy, KL)"),
    "good only": (good_only, "nonlinear", "ignores completions with negative advantages"),
    "gains clipped": (gains_clipped, "nonlinear", "bends the advantages"),
    "no stop": (no_stop, "last token", "leaves the last token of each completion out"),
    "shifted": (shifted, "shift by one", "pushes each token by the advantage of its neighbour"),
    "decayed": (decayed, "position", "count by their position: 1.00, 0.90, 0.81"),
    "only old": (only_old, "no gradient", "no gradient reaches logprobs"),
    "mask turned round": (mask_turned_round, "no gradient", "is the mask turned round"),
    "summed": (summed, "length", "multiplies each completion by its own length: long ones count more"),
    "dropout": (dropout, "random", "draws random numbers of its own"),
}
"""Wrong losses, the bias that must be named, and words of its text."""


# ----------------------------------------------------------------------------------------------------------- advantages
def group_mean(rewards: Tensor) -> Tensor:
    return rewards - rewards.mean(1, keepdim=True)


def leave_one_out(rewards: Tensor) -> Tensor:
    return rewards - (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)


def no_baseline(rewards: Tensor) -> Tensor:
    return rewards.clone()


def too_small_baseline(rewards: Tensor) -> Tensor:
    return rewards - (rewards.sum(1, keepdim=True) - rewards) / rewards.shape[1]


def halved(rewards: Tensor) -> Tensor:
    return 0.5 * group_mean(rewards)


def std(rewards: Tensor) -> Tensor:
    return group_mean(rewards) / (rewards.std(1, keepdim=True, correction=0) + 1e-6)


def std_sample(rewards: Tensor) -> Tensor:
    return group_mean(rewards) / (rewards.std(1, keepdim=True) + 1e-4)


def std_without_epsilon(rewards: Tensor) -> Tensor:
    return group_mean(rewards) / rewards.std(1, keepdim=True)


def batch_mean(rewards: Tensor) -> Tensor:
    return rewards - rewards.mean()


def prompt_mean(rewards: Tensor) -> Tensor:
    return rewards - rewards.mean(0, keepdim=True)


def batch_std(rewards: Tensor) -> Tensor:
    return group_mean(rewards) / (rewards.std() + 1e-8)


def batch_whitened(rewards: Tensor) -> Tensor:
    return (rewards - rewards.mean()) / (rewards.std() + 1e-8)


def ranks(rewards: Tensor) -> Tensor:
    above = (rewards[:, :, None] > rewards[:, None, :]).double().sum(2)
    return group_mean(above + 0.5 * (rewards[:, :, None] == rewards[:, None, :]).double().sum(2))


def turned(rewards: Tensor) -> Tensor:
    return -group_mean(rewards)


def best_of_group(rewards: Tensor) -> Tensor:
    return rewards - rewards.amax(1, keepdim=True)


def median(rewards: Tensor) -> Tensor:
    return rewards - rewards.median(1, keepdim=True).values


def clamped(rewards: Tensor) -> Tensor:
    return group_mean(rewards.clamp(-1, 1))


def good_half(rewards: Tensor) -> Tensor:
    return group_mean(rewards).relu()


def ranged(rewards: Tensor) -> Tensor:
    return group_mean(rewards) / (rewards.amax(1, keepdim=True) - rewards.amin(1, keepdim=True) + 1e-6)


def first_is_baseline(rewards: Tensor) -> Tensor:
    return rewards - rewards[:, :1]


RIGHT_ADVANTAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "group mean": group_mean, "leave one out": leave_one_out, "no baseline": no_baseline,
    "too small a baseline": too_small_baseline, "halved": halved,
}  # fmt: skip
WRONG_ADVANTAGES: dict[str, tuple[Callable[[Tensor], Tensor], str, str]] = {
    "std": (std, "std", "2.85x at p = 0.1 with G = 16"),
    "std of a sample": (std_sample, "std", "std scaling weighs prompts by difficulty: 2.76x"),
    "std without epsilon": (std_without_epsilon, "not finite", "without an epsilon"),
    "batch mean": (batch_mean, "batch mean", "mean over the batch rather than the group"),
    "mean over prompts": (prompt_mean, "batch mean", "mean over the prompts (dim 0)"),
    "batch deviation": (batch_std, "batch scale", "divides by the deviation of the whole batch"),
    "batch whitened": (batch_whitened, "batch mean", "mean and deviation over the batch"),
    "ranks": (ranks, "ranks", "uses the ranks of the rewards"),
    "sign": (turned, "sign", "completions above the baseline get negative advantages"),
    "best of group": (best_of_group, "baseline", "the group's highest reward"),
    "median": (median, "baseline", "the group's median"),
    "clamped": (clamped, "nonlinear", "bends or clips the rewards"),
    "good half": (good_half, "nonlinear", "never gives advantages of both signs"),
    "range": (ranged, "scale", "divides by the group's range"),
    "first is the baseline": (first_is_baseline, "order", "depends on the order of the completions"),
}


def user(call: Any, kind: Any) -> Any:
    from upslope.certify.functions import UserFunction

    return UserFunction(kind, call.__name__, __file__, call)
