"""A user's loss off policy: what it does when the new policy has left the one that sampled.

PPO's surrogate pushes a token by ratio x A, and not at all where the ratio has already gone beyond the clip in the
direction that A asks for: above 1 + clip with A > 0, below 1 - clip with A < 0. In the two other corners the push must
stay, or a step that went too far is never undone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from upslope.certify.functions import UserFunction
from upslope.certify.judgement import Finding, Measure, bias, note
from upslope.certify.probes import ask, near, rows_of

FAR = 3.0
"""Largest |log ratio| that is looked at: e^3 = 20."""
SMALL_STEP = 1e-3
TINY = 1e-9
"""A push below this is none."""
DUAL = 1.5
"""A bound on the ratio of bad actions above this is a dual clip, not a clip on the wrong side."""


@dataclass(frozen=True, slots=True)
class Corner:
    """Where, going away from ratio 1 on one side, the push ends: the ratio (None: never). ``dead``: there is none."""

    gain: float
    up: bool
    stops: float | None
    dead: bool


def off_policy(function: UserFunction) -> tuple[list[Finding], list[Measure]]:
    """Clip, corners, and the kind of importance ratio."""
    corners = [_corner(function, gain, up) for gain in (1.0, -1.0) for up in (True, False)]
    found = [*_clip(function, corners), *_ratio(function)]
    rights = {
        (1.0, True): "stops or not",
        (1.0, False): "goes on",
        (-1.0, True): "goes on",
        (-1.0, False): "stops or not",
    }
    measures = []
    for corner in corners:
        sign, side = ("> 0", "< 0")[corner.gain < 0], ("below", "above")[corner.up]
        stops = "goes on" if corner.stops is None else f"stops at {corner.stops:.6g}"
        stops = "none at all" if corner.dead else stops
        measures.append(Measure(f"push with A {sign}, ratio {side} 1", rights[corner.gain, corner.up], stops))
    return found, measures


def _pushes(function: UserFunction, gain: float, logs: Tensor, size: int = 1) -> Tensor:
    """Push / A of the first token of completions of ``size`` tokens that all have moved by these log ratios."""
    count = len(logs)
    probe = rows_of((size,) * count, torch.full((count,), gain, dtype=torch.float64), -4.0)
    moved = replace(probe, logprobs=probe.old_logprobs + logs[:, None])
    return ask(function, moved).push[:, 0] / gain


def _corner(function: UserFunction, gain: float, up: bool) -> Corner:
    """By bisection. Completions of one token, whose ratio is the whole one's; of two where one has no push."""
    here = torch.zeros(1, dtype=torch.float64)
    size = 1 if float(_pushes(function, gain, here).abs()) > TINY else 2
    if float(_pushes(function, gain, here, size).abs()) <= TINY:
        return Corner(gain, up, None, True)
    side = 1.0 if up else -1.0
    logs = side * torch.logspace(-5, math.log10(FAR), 200, dtype=torch.float64)
    gone = _pushes(function, gain, logs, size).abs() <= TINY
    if not bool(gone[-1]):
        return Corner(gain, up, None, False)
    last = int((~gone).nonzero().max()) if bool((~gone).any()) else -1
    low, high = (float(logs[last]) if last >= 0 else 0.0), float(logs[last + 1])
    for _ in range(30):
        middle = (low + high) / 2
        if float(_pushes(function, gain, torch.tensor([middle], dtype=torch.float64), size).abs()) <= TINY:
            high = middle
        else:
            low = middle
    return Corner(gain, up, math.exp(high), False)


def _clip(function: UserFunction, corners: list[Corner]) -> Iterator[Finding]:
    stops = {(corner.gain, corner.up): corner.stops for corner in corners}
    above, below = stops[1.0, True], stops[-1.0, False]
    wrong_low, wrong_high = stops[1.0, False], stops[-1.0, True]
    if wrong_high is not None and wrong_high >= DUAL and below is not None and wrong_low is None:
        yield note("dual clip", f"leaves bad actions alone whose ratio is above {wrong_high:.3g} (dual clip)")
        wrong_high = None
    if wrong_low is None and wrong_high is None:
        yield from _right_side(function, above, below)
    elif above is not None and below is not None:
        yield bias("no minimum", "clips the ratio without taking the minimum: outside the clip there is no push in any "
                   "corner, so a step that went too far is never undone")  # fmt: skip
    else:
        which = {(True, False): "for positive advantages ", (False, True): "for negative advantages "}
        told = which.get((wrong_low is not None, wrong_high is not None), "")
        yield bias("clip side", f"{told}uses the wrong side of the clip: outside it, it goes on where it should stop "
                   "and stops where it should go back")  # fmt: skip


def _right_side(function: UserFunction, above: float | None, below: float | None) -> Iterator[Finding]:
    if above is not None or below is not None:
        parts = [f"above {above:.6g} for good actions" if above is not None else "",
                 f"below {below:.6g} for bad ones" if below is not None else ""]  # fmt: skip
        yield note("clip", f"stops pushing where the ratio is {' and '.join(filter(None, parts))}")
        return
    far = _pushes(function, 1.0, torch.tensor([FAR - 1, FAR - 0.5, FAR], dtype=torch.float64))
    if near(far, far[:1].expand(3)) and not near(far, _pushes(function, 1.0, torch.zeros(3, dtype=torch.float64))):
        yield note("capped", f"the ratio is a weight of at most {float(far[0]):.4g}, and the push never stops outside "
                   "it (as CISPO): large steps are held back by nothing else")  # fmt: skip
    else:
        yield note("unclipped", "nothing stops it far from the old policy: keep the steps small")


def _ratio(function: UserFunction) -> Iterator[Finding]:
    """Which importance ratio multiplies the push near the old policy, on the sides that no clip touches."""
    moves = -SMALL_STEP * torch.tensor([0.3, 1.0, 0.6, 0.1], dtype=torch.float64)
    logs = []
    for gain in (1.0, -1.0):
        probe = rows_of((4,), (gain,), -2.0)
        at = ask(function, probe).push[0]
        moved = ask(function, replace(probe, logprobs=probe.old_logprobs + gain * moves)).push[0]
        logs.append(gain * (moved / at).log())
    if not all(bool(torch.isfinite(log).all()) for log in logs):
        return  # no push there: said by the corners
    kinds = {
        "none": torch.zeros(4, dtype=torch.float64), "token": moves, "sequence": moves.sum().expand(4),
        "mean": moves.mean().expand(4), "inverse": -moves,
    }  # fmt: skip
    texts = {
        "none": "ignores old_logprobs: exact only while new = old, so with one optimizer step a batch",
        "token": "weighs each token by its own ratio (PPO's surrogate): exact where new = old, biased away from there",
        "sequence": "weighs a completion by its whole ratio: exact off policy too, with much variance",
        "mean": "weighs a completion by the mean of its ratios (GSPO): exact where new = old, biased away from there",
    }
    for kind, wanted in kinds.items():
        if all(float((log - wanted).abs().max()) < 0.02 * SMALL_STEP for log in logs):
            if kind == "inverse":
                yield bias("ratio inverted", "the ratio is turned round, old / new: off policy it weighs the wrong way")
            else:
                yield note(f"ratio {kind}", texts[kind])
            return
    yield note("ratio other", "weighs by another function of the ratio: exact where new = old only")
