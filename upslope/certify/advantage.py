"""``upslope certify my_advantage.py:advantage``: does a user's advantage of groups lead along the policy gradient?

For a prompt with answers y of probability p_y and reward R_y the truth in their logits is p_y (R_y - J). A group
estimator gives E[1/G sum_i A_i grad log p(y_i)], which is summed here over every group that can be drawn.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from upslope.certify.functions import SIGNATURES, UserFunction
from upslope.certify.ground import cosine
from upslope.certify.judgement import Finding, Judgement, Measure, bias, note
from upslope.certify.loss import PROMPTS as SHARED
from upslope.certify.loss import STEPS, STRIDE, TRUE
from upslope.certify.probes import constant, near
from upslope.errors import InputError
from upslope.maths.advantages import group_relative

WEIGHTS = "each completion counts the same, 1 / (prompts x group)"
ROUNDED = ((3, 0.7), (6, 0.7), (7, 0.7), (9, 2.3), (12, 0.1))
"""Groups of equal rewards whose mean is rounded, and so differs from each of them."""
DIFFICULTIES = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt: probabilities and rewards of its answers."""

    p: tuple[float, ...]
    rewards: tuple[float, ...]


QUESTIONS = (
    *(Question((p, 1 - p), (1.0, 0.0)) for p in DIFFICULTIES),
    Question((0.5, 0.3, 0.2), (0.0, 1.0, 4.0)),
    Question((0.2, 0.5, 0.3), (-2.0, 0.5, 1.0)),
)


def judge_advantage(function: UserFunction) -> Judgement:
    """The verdict on ``advantage(rewards) -> [P, G]``."""
    base = torch.tensor([[0.3, 1.9, -0.6, 1.1], [2.4, 0.7, 0.1, -1.3], [5.2, 4.1, 4.9, 3.0]], dtype=torch.float64)
    found = function(rewards=base).to(torch.float64).detach()
    findings: list[Finding] = []
    measures: list[Measure] = []
    if not near(function(rewards=base).to(torch.float64).detach().nan_to_num(), found.nan_to_num()):
        findings.append(bias("random", "gives other numbers for the same rewards: it draws random numbers of its own"))
    elif not bool(torch.isfinite(found).all()):
        findings.append(bias("not finite", "not finite on ordinary rewards"))
    else:
        findings = [*_silent(function), *_single(function)]
        grouped = list(_groups(function, base, found))
        findings += grouped or list(_shape(function, base, found))
        measures, more = _exactly(function, alone=not grouped)
        findings += [finding for finding in more if finding.name not in {other.name for other in findings}]
        findings = _named(findings, measures)
    return Judgement(function.shown, SIGNATURES["advantage"], WEIGHTS, tuple(findings), tuple(measures))


def _ask(function: UserFunction, rewards: Tensor) -> Tensor:
    return function(rewards=rewards).detach().to(torch.float64)


def _named(findings: list[Finding], measures: list[Measure]) -> list[Finding]:
    """The sign, and the cosine beside the first bias; a bias of its own where none was named."""
    found = measures[0].found
    if not isinstance(found, float) or not found < 1 - TRUE:
        return findings
    told = f"cosine {found:.4f} with the policy gradient"
    if found < -0.5:
        findings = [bias("sign", "sign: completions above the baseline get negative advantages"), *findings]
    for place, finding in enumerate(findings):
        if finding.kind == "bias" and finding.name != "not finite":
            return [*findings[:place], replace(finding, text=f"{finding.text}; {told}"), *findings[place + 1 :]]
    return [bias("gradient", f"its expected gradient is not the policy gradient: {told}"), *findings]


# -------------------------------------------------------------------------------------------------- what it does, named
def _silent(function: UserFunction) -> Iterator[Finding]:
    """Groups whose rewards are all equal: nothing is to be learned from them, whatever rounding does."""
    found = _ask(function, torch.tensor([[1.0] * 6, [0.0] * 6], dtype=torch.float64))
    near_equal = [_ask(function, torch.full((1, size), value, dtype=torch.float64)) for size, value in ROUNDED]
    if not bool(torch.isfinite(found).all()):
        yield bias("not finite", "not finite for a silent group (all rewards equal): it divides by their deviation, "
                   "which is 0, without an epsilon")  # fmt: skip
    elif float(found.abs().max()) < 1e-9 and max(float(other.abs().max()) for other in near_equal) > 0.01:
        yield bias("rounding", "a silent group of rewards 0.7 gets advantages from rounding alone: the deviation needs "
                   "an epsilon, or equal rewards a 0")  # fmt: skip


def _single(function: UserFunction) -> Iterator[Finding]:
    try:
        found = _ask(function, torch.tensor([[1.0]], dtype=torch.float64))
    except InputError:
        yield note("single", "raises for a group of one completion")
        return
    if not bool(torch.isfinite(found).all()):
        yield note("single", "not finite for a group of one completion, which has nothing to be compared with")


def _groups(function: UserFunction, base: Tensor, found: Tensor) -> Iterator[Finding]:
    """Does a prompt's group depend on other prompts?"""
    shifted = base.clone()
    shifted[1:] += 10.0
    scaled = base.clone()
    scaled[1:] *= 7.0
    by_shift, by_scale = _ask(function, shifted)[0], _ask(function, scaled)[0]
    if near(by_shift, found[0]) and near(by_scale, found[0]):
        return
    split = (
        "cutting a batch, or another prompt in it, changes the advantages, and their variance grows with the "
        "difference between prompts"
    )
    baseline = base - found
    column = base.mean(0, keepdim=True).expand_as(base)
    if near(baseline, column):
        text = f"mean over the prompts (dim 0) rather than over the group: {split}"
        yield bias("batch mean", text)
    elif constant(baseline) and near(baseline.mean(), base.mean()):
        yield bias("batch mean", f"mean over the batch rather than the group: {split}")
    elif near(_ask(function, base * 3), found) and float(found.mean(1).abs().max()) < 1e-6:
        yield bias("batch scale", f"divides by the deviation of the whole batch: {split}")
    elif near(_ask(function, base * 3), found):
        yield bias("batch mean", f"mean and deviation over the batch rather than the group: {split}")
    else:
        yield bias("batch mean", f"a prompt's advantages depend on the other prompts of the batch: {split}")


def _shape(function: UserFunction, base: Tensor, found: Tensor) -> Iterator[Finding]:
    """The advantage as a function of one group's rewards: a baseline and a scale, or something else."""
    order = torch.tensor([2, 0, 3, 1])
    if not near(_ask(function, base[:, order]), found[:, order]):
        yield bias("order", "depends on the order of the completions in a group")
        return
    size = base.shape[1]
    deviations = base - base.mean(1, keepdim=True)
    parts = found - found.mean(1, keepdim=True)
    slopes = (parts * deviations).sum(1) / deviations.square().sum(1)
    if not near(parts, slopes[:, None] * deviations):
        yield from _bent(function, base, found)
        return
    if constant(slopes):
        slope = float(slopes[0])
        yield from _baseline(base - found / slope, base, size)
        if abs(abs(slope) - 1) > 1e-6 and abs(abs(slope) - size / (size - 1)) > 1e-6:
            yield note("scale", f"advantages are {slope:.4g} times reward less baseline: a scale only")
        return
    spread = deviations.square().mean(1).sqrt()
    ranges = base.amax(1) - base.amin(1)
    offsets = 1 / slopes.abs()
    weight = _binary(function, 0.1, 16)
    told = f"weighs prompts by difficulty: {weight:.2f}x at p = 0.1 with G = 16, and by the size of their rewards"
    if constant(offsets - spread) or constant(offsets / spread) or constant(
        offsets - spread * math.sqrt(size / (size - 1))
    ):  # fmt: skip
        yield bias("std", f"std scaling {told}")
    elif constant(offsets / ranges) or constant(offsets - ranges):
        yield bias("scale", f"divides by the group's range: {told}")
    else:
        yield bias("scale", f"divides by a statistic of the group: {told}")


def _baseline(baseline: Tensor, base: Tensor, size: int) -> Iterator[Finding]:
    """Which baseline, where the advantage is a constant times (reward - baseline)."""
    ordered = base.sort(1).values
    for name, wanted in (
        ("the group's lowest reward", ordered[:, :1]),
        ("the group's highest reward", ordered[:, -1:]),
        ("the group's median", ordered[:, size // 2 - 1 : size // 2]),
        ("the group's median", base.quantile(0.5, dim=1, keepdim=True)),
    ):  # fmt: skip
        if float((baseline - wanted).abs().max()) < 1e-6:
            yield bias("baseline", f"the baseline is {name}, which depends on the completion's own reward")
            return
    share = baseline / base.mean(1, keepdim=True)
    if float(baseline.abs().max()) < 1e-9:
        yield note("baseline", "no baseline (the reward itself): right in expectation, more variance")
    elif float((share - share[0, 0]).abs().max()) < 1e-6 and abs(float(share[0, 0]) - 1) > 1e-6:
        yield note("baseline", f"the baseline is {float(share[0, 0]):.3g} times the group's mean: right in "
                   "expectation, more variance")  # fmt: skip


def _bent(function: UserFunction, base: Tensor, found: Tensor) -> Iterator[Finding]:
    bent = torch.sign(base) * base.abs() ** 3 + 2 * base  # another size of each reward, the same order
    if near(_ask(function, bent), found):
        yield bias("ranks", "uses the ranks of the rewards: their sizes are lost")
    elif float(found.min()) >= 0 or float(found.max()) <= 0:
        yield bias(
            "nonlinear", "never gives advantages of both signs: completions on one side of the baseline are ignored"
        )
    elif near(_ask(function, base * 0.01) * 100, _ask(function, base * 0.001) * 1000):
        yield bias("nonlinear", "bends or clips the rewards: large ones are held back, small ones are not")
    else:
        yield bias("nonlinear", "is not linear in the rewards: it is not the gradient of the mean reward")


# ---------------------------------------------------------------------------------------------------- expected gradient
def _exactly(function: UserFunction, alone: bool) -> tuple[list[Measure], list[Finding]]:
    size = 4 if alone else 3
    ours, truth, parts = [], [], []
    for number, question in enumerate(QUESTIONS):
        other = QUESTIONS[(number + 1) % len(QUESTIONS)]
        gradient, _ = expected(function, question, size, None if alone else other)
        true = exact_gradient(question)
        ours.append(gradient)
        truth.append(true)
        parts.append(float(gradient @ true / (true @ true)))
    whole, wanted = torch.cat(ours), torch.cat(truth)
    extra = []
    if not bool(torch.isfinite(whole).all()):
        extra = [bias("not finite", "its expected gradient is not finite: some groups give NaN or infinity")]
        whole, parts = whole.nan_to_num(0.0, 0.0, 0.0), [math.nan] * len(parts)
    direction = cosine(whole, wanted)
    last = QUESTIONS[5]
    mine, spread = expected(function, last, size, None if alone else QUESTIONS[6])
    measures = [
        Measure("cosine with the policy gradient, 7 prompts", 1.0, direction),
        Measure(
            f"length of its expected gradient, G = {size}", "a constant", float(whole @ wanted / (wanted @ wanted))
        ),
        Measure("cosine within a prompt of rewards 0, 1, 4", 1.0, cosine(mine, exact_gradient(last))),
        Measure("weight of a prompt solved with p = 0.1 beside p = 0.5", 1.0, parts[0] / parts[2]),
    ]
    if alone:
        for group in (4, 16):
            measures.append(Measure(f"weight at p = 0.1, G = {group}", _wanted(group), _binary(function, 0.1, group)))
    others = {name: expected(_ours(baseline), last, size, None)[1] for name, baseline in _KNOWN.items()}
    told = ", ".join(f"{name} {value:.3g}" for name, value in others.items())
    measures.append(Measure("variance per completion / gradient squared", told, spread))
    reached, best = _ascent(function, alone)
    measures.append(Measure("ascent on 3 prompts with one answer: J", best, reached))
    return measures, extra


_KNOWN = {"REINFORCE": "none", "RLOO": "leave_one_out"}


def _ours(baseline: str) -> UserFunction:
    """The known estimators, to compare the variance with."""
    call = (lambda rewards: rewards) if baseline == "none" else (lambda rewards: group_relative(rewards, baseline))
    return UserFunction("advantage", baseline, __file__, call)


def exact_gradient(question: Question) -> Float[Tensor, " answers"]:
    """p_y (R_y - J): the gradient of J in the logits."""
    p, rewards = (torch.tensor(values, dtype=torch.float64) for values in (question.p, question.rewards))
    return p * (rewards - p @ rewards)


def expected(
    function: UserFunction, question: Question, size: int, other: Question | None
) -> tuple[Float[Tensor, " answers"], float]:
    """The expected gradient over all groups of ``size``, and its variance per completion relative to its square.

    ``other``: a second prompt in the batch, whose groups are enumerated too (None: prompts are known not to mix).
    """
    mine = torch.tensor(list(itertools.product(range(len(question.p)), repeat=size)))
    p, rewards = (torch.tensor(values, dtype=torch.float64) for values in (question.p, question.rewards))
    chance = p[mine].prod(1)
    if other is None:
        gains, weights = _ask(function, rewards[mine])[None], torch.ones(1, dtype=torch.float64)
    else:
        theirs = torch.tensor(list(itertools.product(range(len(other.p)), repeat=size)))
        q, points = (torch.tensor(values, dtype=torch.float64) for values in (other.p, other.rewards))
        weights = q[theirs].prod(1)
        gains = torch.stack(
            [torch.stack([_ask(function, torch.stack([own, their]))[0] for own in rewards[mine]]) for their in
             points[theirs]]
        )  # fmt: skip
    scores = torch.nn.functional.one_hot(mine, len(question.p)).double() - p  # grad log p(y_i), a member
    estimates = (gains[..., None] * scores).mean(2)
    joint = weights[:, None] * chance
    mean = (joint[..., None] * estimates).sum((0, 1))
    spread = float((joint * estimates.square().sum(2)).sum() - mean @ mean) * size
    return mean, spread / float(mean @ mean) if float(mean @ mean) > 0 else math.inf


def _binary(function: UserFunction, p: float, group: int) -> float:
    """The weight of a prompt of success probability p: expected gradient / grad p, over the number of successes."""
    rewards = (torch.arange(group) < torch.arange(group + 1)[:, None]).double()
    found = _ask(function, rewards).nan_to_num(0.0, 0.0, 0.0)  # silent groups teach nothing in truth, too
    total = 0.0
    for wins in range(group + 1):
        chance = math.comb(group, wins) * p**wins * (1 - p) ** (group - wins)
        good, bad = float(found[wins, :wins].sum()), float(found[wins, wins:].sum())
        total += chance * (good * (1 - p) - bad * p) / group
    return total / (p * (1 - p))


def _wanted(group: int) -> str:
    return f"1 (group mean {(group - 1) / group:.3g})"


def _ascent(function: UserFunction, alone: bool) -> tuple[float | str, float]:
    """Follow the expected gradient where one policy of three answers must serve three prompts; see ``loss``."""
    rewards = torch.tensor([row for _, row in SHARED], dtype=torch.float64)
    best, size = float(rewards.mean(0).max()), 4 if alone else 2
    tuples = torch.tensor(list(itertools.product(range(3), repeat=size)))
    if alone:
        gains = torch.stack([_ask(function, row[tuples]) for row in rewards])[None]  # [1, prompts, tuples, group]
    else:
        # Every combination of the prompts' groups, indexed by the three tuples.
        picked = itertools.product(range(len(tuples)), repeat=len(SHARED))
        table = [
            _ask(function, torch.stack([row[tuples[n]] for row, n in zip(rewards, combination, strict=True)]))
            for combination in picked
        ]
        gains = torch.stack(table)
    theta = torch.zeros(3, dtype=torch.float64)
    for _ in range(STEPS):
        policy = theta.softmax(0)
        chance = policy[tuples].prod(1)
        scores = torch.nn.functional.one_hot(tuples, 3).double() - policy
        if alone:
            gradient = (chance[None, :, None] * (gains[0][..., None] * scores[None]).mean(2)).sum((0, 1))
        else:
            gradient = _mixed(gains, tuples, chance, scores)
        if not bool(torch.isfinite(gradient).all()):
            return "not finite", best
        if float(gradient.norm()) < 1e-9:
            break
        theta = theta + STRIDE * gradient / gradient.norm()
    return float((rewards @ theta.softmax(0)).mean()), best


def _mixed(gains: Tensor, tuples: Tensor, chance: Tensor, scores: Tensor) -> Tensor:
    count = len(tuples)
    every = torch.cartesian_prod(*[torch.arange(count)] * len(SHARED))
    joint = chance[every].prod(1)
    total = torch.zeros(3, dtype=torch.float64)
    for prompt in range(len(SHARED)):
        total = total + (joint[:, None] * (gains[:, prompt, :, None] * scores[every[:, prompt]]).mean(1)).sum(0)
    return total
