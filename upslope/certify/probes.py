"""A user's loss taken apart by what it does to single tokens, on policy: new = old, as in the first step of a batch.

The *push* on a token is minus the derivative of the weighted loss in its log-probability, per unit of weight. The
policy gradient's is the advantage itself: nothing else may enter, no length, no position, no probability, no other row.
Each way to differ has a name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from upslope.certify.functions import UserFunction, told
from upslope.certify.judgement import Finding, bias, note
from upslope.types import Rows

NEAR = 1e-5
"""Relative difference that counts: far above float32's rounding, far below a bias."""
LENGTHS = (5, 3, 1, 4, 2)
GAINS = (1.3, -0.7, 0.4, -1.1, 0.9)
INSIDE = "so cutting a batch into micro-batches changes the gradient; return one number a token, the weights average"


@dataclass(frozen=True, slots=True)
class Probe(Rows):
    """Inputs of a loss."""

    logprobs: Float[Tensor, "batch time"]
    old_logprobs: Float[Tensor, "batch time"]
    advantages: Float[Tensor, "batch time"]
    mask: Bool[Tensor, "batch time"]

    @property
    def lengths(self) -> Float[Tensor, " batch"]:
        return self.mask.sum(1).double()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a loss said of a probe: itself, its push (0 where not ``mask``), and whether autograd reached it."""

    loss: Float[Tensor, "batch time"]
    push: Float[Tensor, "batch time"]
    connected: bool

    def finite(self, mask: Tensor) -> bool:
        return bool(torch.isfinite(self.loss[mask]).all() and torch.isfinite(self.push[mask]).all())


def ask(function: UserFunction, probe: Probe, weights: Tensor | None = None) -> Answer:
    """The push of each token under ``weights`` [batch, time] (default 1 each), as the learner would reduce the loss."""
    logprobs = probe.logprobs.clone().requires_grad_()
    old = probe.old_logprobs
    with torch.enable_grad():
        loss = function(logprobs=logprobs, old_logprobs=old, advantages=probe.advantages, mask=probe.mask)
        used = torch.ones_like(probe.logprobs) if weights is None else weights
        total = (torch.where(probe.mask, loss.to(torch.float64), 0.0) * used).sum()
        grad = None
        if total.requires_grad:
            with told(function.shown, function.path, "in its backward pass"):
                (grad,) = torch.autograd.grad(total, logprobs, allow_unused=True)
    kept = loss.detach().to(torch.float64)
    if grad is None:
        return Answer(kept, torch.zeros_like(probe.logprobs), False)
    return Answer(kept, torch.where(probe.mask, -grad / used, 0.0), True)


def rows_of(lengths: tuple[int, ...], gains: Tensor | tuple[float, ...], level: float | None = None) -> Probe:
    """Rows of these lengths with one advantage each, new = old; log-probabilities vary, or are all ``level``."""
    width = max(lengths)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    gain = torch.as_tensor(gains, dtype=torch.float64)[:, None]
    row, time = torch.meshgrid(torch.arange(len(lengths)), torch.arange(width), indexing="ij")
    drawn = -1.2 - torch.cos(1.7 * row + 2.9 * time.double())
    logprobs = (drawn if level is None else torch.full(mask.shape, level, dtype=torch.float64)) * mask
    return Probe(logprobs, logprobs, gain * mask, mask)


def near(found: Tensor, wanted: Tensor) -> bool:
    """Equal but for rounding."""
    size = float(wanted.abs().max())
    return float((found - wanted).abs().max()) <= NEAR * (size if size > 0 else 1.0)


def constant(values: Tensor) -> bool:
    return near(values, values.mean().expand_as(values))


def structure(function: UserFunction) -> tuple[list[Finding], bool]:
    """What is wrong with the push on policy, and whether each row is judged by itself."""
    base = rows_of(LENGTHS, GAINS)
    first = ask(function, base)
    if not near(ask(function, base).loss[base.mask].nan_to_num(), first.loss[base.mask].nan_to_num()):
        return [bias("random", "gives other numbers for the same inputs: it draws random numbers of its own")], False
    if not first.connected:
        return [bias("no gradient", "no gradient reaches logprobs: everything in it is detached, or old")], True
    if not first.finite(base.mask):
        return [bias("not finite", "the loss or its gradient is not finite on ordinary rows")], True
    if not bool(first.loss[base.mask].any()):
        return [bias("no gradient", "gives 0 on every trained token: is the mask turned round?")], True
    if float(first.push.abs().max()) < 1e-9:
        text = "its gradient is 0 where new = old: logprobs less themselves without detach, so that they cancel"
        return [bias("cancels", text)], True
    found = [*_silent(function), *_padding(function, base, first)]
    mixing, level = list(_mixing(function, base, first)), []
    found += mixing
    if not mixing:
        level = list(_level(function))
        widths = any(finding.name in ("width", "padding") for finding in found)
        profile = [] if level else [f for f in _profile(function) if not (widths and f.name == "scale")]
        found += [*level, *profile, *_gain(function), *_tokens(function), *_empty(function)]
    if not level and float((first.push * base.advantages).sum()) < 0:
        found.insert(0, bias("sign", "sign: it pushes bad completions up and good ones down"))
    return found, not mixing


def gained(function: UserFunction, probe: Probe) -> Tensor:
    """The part of the push that comes from the advantages: less what is there without them."""
    still = ask(function, replace(probe, advantages=torch.zeros_like(probe.advantages))).push.nan_to_num()
    return ask(function, probe).push - still


def _silent(function: UserFunction) -> Iterator[Finding]:
    """Where all advantages are 0 nothing is to be learned."""
    probe = rows_of(LENGTHS, (0.0,) * len(LENGTHS))
    answer = ask(function, probe)
    if not answer.finite(probe.mask):
        yield bias("not finite", "not finite where all advantages are 0, as in a group whose rewards are all equal")
    elif float(answer.push.abs().max()) > NEAR:
        if constant(answer.push[probe.mask]):
            yield note("shift", "adds a constant to the advantages: right in expectation, only variance")
        else:
            text = "pushes even where all advantages are 0: a term of its own (entropy, KL), so its optimum is another"
            yield bias("extra term", text)


def _padding(function: UserFunction, base: Probe, first: Answer) -> Iterator[Finding]:
    """More columns, garbage under the mask, rows in another order."""
    garbage = (("logprobs", -7.0), ("old_logprobs", -2.0), ("advantages", 5.0))
    dirty = replace(base, **{name: torch.where(base.mask, getattr(base, name), bad) for name, bad in garbage})
    answer, inside, width = ask(function, dirty), base.mask, base.mask.shape[1]
    wide = Probe(*(torch.nn.functional.pad(getattr(base, name), (0, 2)) for name in Probe.__slots__))
    push = ask(function, wide).push[:, :width]
    if not (near(answer.push[inside], first.push[inside]) and near(answer.loss[inside], first.loss[inside])):
        yield bias("padding", "does not mask padding: what stands under the mask reaches the trained tokens")
    elif not near(push, first.push):
        if near(push * (width + 2) / width, first.push):
            yield bias("width", f"does not mask padding: divides by the padded width, two more columns make it "
                       f"{width / (width + 2):.2f}x")  # fmt: skip
        else:
            yield bias("padding", "does not mask padding: more columns of padding change it")
    elif float(answer.loss[~inside].nan_to_num(1.0).abs().max()) > 0:
        yield note("unmasked", "does not mask what it returns: harmless here, where the weights under the mask are 0, "
                   "but not in a mean of your own")  # fmt: skip
    order = torch.tensor([3, 0, 4, 2, 1])
    if not near(ask(function, base.take(order)).push, first.push[order]):
        yield bias("order", "depends on the order of the rows")


def _mixing(function: UserFunction, base: Probe, first: Answer) -> Iterator[Finding]:
    """Each row alone against the same row in a batch, under weights that differ between rows."""
    uneven = torch.linspace(0.5, 1.5, len(LENGTHS), dtype=torch.float64)[:, None].expand(base.mask.shape)
    together, shares, equal, finite = ask(function, base, uneven).push, [], True, True
    for row, length in enumerate(LENGTHS):
        alone = Probe(*(getattr(base, name)[row : row + 1] for name in Probe.__slots__))
        answer = ask(function, alone, uneven[row : row + 1])
        finite &= answer.finite(alone.mask)
        equal &= near(together[row], answer.push[0])
        shares.append(first.push[row, :length].mean() / answer.push[0, :length].mean())
    if equal:
        return
    share = torch.stack(shares)
    also = "" if finite else " (and it is not finite for a single row)"
    if near(ask(function, replace(base, advantages=3 * base.advantages)).push, first.push):
        yield bias("whitening", f"normalises the advantages over the rows it is given{also}, {INSIDE}")
    elif near(ask(function, replace(base, advantages=base.advantages + base.mask)).push, first.push):
        yield bias("whitening", f"takes the mean off the advantages of the rows it is given{also}, {INSIDE}")
    elif not finite:
        yield bias("rows", "not finite for a batch of one row: it takes a statistic over the rows it is given")
    elif constant(first.loss[base.mask]):
        yield bias("double mean", f"returns one mean for all tokens: averages inside, {INSIDE}")
    elif near(share, torch.full_like(share, 1 / len(LENGTHS))):
        yield bias("double mean", f"divides by the number of rows it is given: averages inside, {INSIDE}")
    elif near(share, base.lengths / base.lengths.sum()):
        yield bias("double mean", f"divides by the number of tokens it is given: averages inside, {INSIDE}")
    else:
        yield bias("rows", f"a row's gradient depends on the other rows, {INSIDE}")


def _level(function: UserFunction) -> Iterator[Finding]:
    """The same rows at other probabilities."""
    levels = torch.tensor([-0.05, -0.5, -1.5, -3.0], dtype=torch.float64)
    pushes = torch.stack([gained(function, rows_of((2,), (1.0,), float(level))).mean() for level in levels])
    if constant(pushes):
        return
    for name, shape, text in (
        ("detach", 1 + levels, "the ratio (or its clipped copy) is not detached beside log pi: the product rule adds a "
         "term, and likely tokens are pushed by 1 + log pi"),
        ("probability", levels.exp(), "uses the probability pi where log pi or the ratio belongs: unlikely tokens "
         "hardly learn"),
        ("probability", (-levels).exp(), "divides by the probability: unlikely tokens count more"),
        ("probability", levels, "multiplies by log pi: unlikely tokens count more"),
    ):  # fmt: skip
        if near(pushes / (pushes @ shape) * (shape @ shape), shape):
            yield bias(name, text)
            return
    yield bias("probability", "its push depends on how likely the token is, even where new = old")


def _profile(function: UserFunction) -> Iterator[Finding]:
    """What a token's push depends on beside the advantage: its row's length, its position."""
    lengths = (1, 2, 3, 4, 5)
    probe = rows_of(lengths, (1.0,) * 5)
    push = gained(function, probe)
    rows = [push[row, :length] for row, length in enumerate(lengths)]
    if not all(constant(row) for row in rows):
        last = rows[4]
        ends = torch.stack([row[-1] for row in rows]).abs().max() < NEAR * last.abs().max()
        starts = torch.stack([row[0] for row in rows[:4]]).abs().max() < NEAR * last.abs().max()
        if ends and constant(last[:-1]):
            yield bias("last token", "leaves the last token of each completion out: to stop is never learned")
        elif starts:
            yield bias("first token", "leaves the first token of each completion out (a shift by one)")
        else:
            shown = ", ".join(f"{value:.2f}" for value in (last / last.abs().max()).tolist())
            yield bias("position", f"tokens of a completion count by their position: {shown} of 5 tokens")
        return
    means = torch.stack([row.mean() for row in rows])
    if constant(means):
        if not near(means, torch.ones_like(means)) and float(means[0]) > 0:
            yield note("scale", f"{float(means[0]):.4g} times the policy gradient: a scale only")
        return
    counts = torch.tensor(lengths, dtype=torch.float64)
    shown = ", ".join(f"{value:.2f}" for value in (means / means[0]).tolist())
    if near(means * counts, means[0].expand(5)):
        yield bias("length", "divides each completion by its own length: short ones count more")
    elif near(means / counts, means[0].expand(5)):
        yield bias("length", "multiplies each completion by its own length: long ones count more")
    else:
        yield bias("length", f"completions count by their length: {shown} at 1 to 5 tokens")


def _gain(function: UserFunction) -> Iterator[Finding]:
    """Push against advantage: a straight line through 0, or not."""
    gains = torch.tensor([-4.0, -2.0, -0.5, -0.1, 0.1, 0.5, 2.0, 4.0], dtype=torch.float64)
    pushes = gained(function, rows_of((3,) * 8, gains, -1.0)).mean(1)
    share = pushes / gains
    if constant(share):
        return
    top = float(pushes.abs().max())
    if float(pushes[:4].abs().max()) < NEAR * top:
        yield bias("nonlinear", "ignores completions with negative advantages: no longer the gradient of the reward")
    elif float(pushes[4:].abs().max()) < NEAR * top:
        yield bias("nonlinear", "ignores completions with positive advantages: no longer the gradient of the reward")
    elif constant(pushes[4:]) and constant(pushes[:4]):
        yield bias("nonlinear", "uses the sign of the advantages alone: their size is lost")
    elif constant(share[2:6]):
        yield bias("nonlinear", "bends the advantages: large ones are held back (or raised), small ones are not")
    elif near(pushes[4:], pushes[:4].flip(0)):
        yield bias("nonlinear", "loses the sign of the advantages (a square or an absolute value)")
    else:
        yield bias("nonlinear", "is not linear in the advantages: large and small ones count differently")


def _tokens(function: UserFunction) -> Iterator[Finding]:
    """Whose advantage a token is pushed by, where the tokens of a row have different ones, as in PPO."""
    size = 4
    probe = rows_of((size,) * size, (1.0,) * size, -1.0)
    push = gained(function, replace(probe, advantages=torch.eye(size, dtype=torch.float64)))
    own = torch.diag(push.diagonal())
    if near(push, own):
        return
    around = push.clone()  # what wraps round from one end to the other left out
    around[0, -1] = around[-1, 0] = 0.0
    if any(near(around, torch.diag(push.diagonal(step), step)) for step in (1, -1)):
        yield bias("shift by one", "pushes each token by the advantage of its neighbour: a shift by one")
    else:
        yield note("row advantage", "spreads a completion's advantages over its tokens: for one advantage a completion "
                   "(GRPO) only, with an advantage a token (PPO's GAE) it is biased")  # fmt: skip


def _empty(function: UserFunction) -> Iterator[Finding]:
    """A row without a trained token, such as a cut completion that is left out."""
    probe = rows_of((3, 2), (1.0, -1.0))
    holed = replace(probe, mask=probe.mask & torch.tensor([[True], [False]]))
    answer = ask(function, holed)
    if not bool(torch.isfinite(answer.loss).all()):
        yield note("empty row", "NaN for a completion without a trained token (one that was cut and left out)")
