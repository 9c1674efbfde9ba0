"""``upslope certify my_loss.py:loss``: is the expected gradient of a user's loss the policy gradient?

The loss is taken apart on single tokens (``probes``, ``offpolicy``), and its expected gradient is computed over all
texts of two prompts (``ground``), through the learner, beside autograd of the exact J.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from upslope.certify.functions import SIGNATURES, UserFunction
from upslope.certify.ground import Ground, apart, cosine, everything, ground, paths
from upslope.certify.judgement import Finding, Judgement, Measure, bias
from upslope.certify.offpolicy import off_policy
from upslope.certify.probes import Probe, ask, structure
from upslope.maths import weighting
from upslope.text.collation import collate_rollouts
from upslope.types import Batch, PolicyEvaluation, Rows
from upslope.worlds.prefix_tree import PrefixTree, exact

FATAL = frozenset({"random", "no gradient", "not finite", "cancels"})
"""With one of these nothing else is worth measuring."""
TRUE = 1e-6
"""1 - cosine that counts as the same direction."""
WEIGHTS = "constant, mask / (rows x longest); the recipes' default token mean is one line of the table"
PROMPTS = ((8, (10.0, 0.0, 0.0)), (1, (0.0, 1.0, 0.0)), (1, (0.0, 1.0, 0.0)))
"""(length, rewards of three answers) of the small problem of the ascent: one policy for all of them."""
STEPS, STRIDE = 60, 0.5


@dataclass(frozen=True, slots=True)
class PushTargets(Rows):
    """What was asked of the user's loss, for the learner."""

    mask: Bool[Tensor, "batch time"]
    push: Float[Tensor, "batch time"]
    advantages: Float[Tensor, "batch time"]
    old_logprobs: Float[Tensor, "batch time"]


def judge_loss(function: UserFunction) -> Judgement:
    """The verdict on ``loss(logprobs, old_logprobs, advantages, mask) -> [B, T]``."""
    findings, alone = structure(function)
    measures: list[Measure] = []
    if not {finding.name for finding in findings} & FATAL:
        if alone and not any(finding.name in ("probability", "detach") for finding in findings):
            more, corners = off_policy(function)
            findings, measures = findings + more, measures + corners
        numbers, more = _exactly(function, alone)
        findings = _with_cosine(findings + more, numbers)
        measures = numbers + measures
        measures.append(_ascent(function, alone))
    return Judgement(function.shown, SIGNATURES["loss"], WEIGHTS, tuple(findings), tuple(measures))


def _with_cosine(findings: list[Finding], numbers: list[Measure]) -> list[Finding]:
    """The first bias with its cosine beside it, where the direction is off; a bias without a name where there is none
    and there should be one."""
    found = numbers[0].found
    if not isinstance(found, float) or (1 - found <= TRUE):
        return findings
    told = f"cosine {found:.4f} with the policy gradient"
    for place, finding in enumerate(findings):
        if finding.kind == "bias":
            return [*findings[:place], replace(finding, text=f"{finding.text}; {told}"), *findings[place + 1 :]]
    return [bias("gradient", f"its expected gradient is not the policy gradient: {told}"), *findings]


# ---------------------------------------------------------------------------------------------------- expected gradient
def _exactly(function: UserFunction, alone: bool) -> tuple[list[Measure], list[Finding]]:
    """Cosine, length, prompts, token mean, variance, cuts and the off-policy gradient, over all texts."""
    found, batch, now, true = _stage()
    weights = found.mass()[:, None] * batch.mask
    scores = torch.cat([tree.leaf_scores for tree in found.trees])
    baseline = torch.cat([known.expected_return.expand(len(known.leaf_probabilities)) for known in found.answers()])
    gains = (scores - baseline)[:, None] * batch.mask
    probe = Probe(now, now, gains, batch.mask)
    push = _expected_push(function, found, batch, probe, weights, alone)
    ours = _through_learner(found, batch, push, weights)
    if not bool(torch.isfinite(ours).all()):
        return [Measure("cosine with the policy gradient", 1.0, "not finite")], [
            bias("not finite", "its expected gradient is not finite")
        ]
    measures = [
        Measure("cosine with the policy gradient", 1.0, cosine(ours, true)),
        Measure("length of its expected gradient", 1.0, float(ours @ true / (true @ true))),
        _between_prompts(found, batch, push, weights),
        _token_mean(found, batch, push, weights, true),
    ]
    extra: list[Finding] = []
    if alone:
        measures.append(_variance(found, batch, push, scores))
        measures.append(_away(function, found, batch, scores, now, true))
        cut = _cut(function, found, batch, gains, now)
        told = "none" if cut < 1e-9 else cut  # rounding's own digits would differ from machine to machine
        measures.append(Measure("difference when cut into micro-batches of 40 tokens", "none", told))
        if not cut < 1e-5:
            extra.append(bias("micro-batches", f"cutting a batch into micro-batches changes the gradient by {cut:.1e}"))
    return measures, extra


@lru_cache(maxsize=1)
def _stage() -> tuple[Ground, Batch, Tensor, Tensor]:
    """Ground, texts, their log-probabilities and the policy gradient: the same for every function."""
    found = ground()
    batch = _texts(found)
    return found, batch, found.policy().evaluate(batch).logprobs, found.policy_gradient()


def _texts(found: Ground) -> Batch:
    """All texts, without the stop token that is forced at their end: the last choice is then the last token."""
    batch, _ = everything(found)
    time = torch.arange(batch.mask.shape[1])
    return replace(batch, mask=batch.mask & (time < batch.lengths[:, None] - 2))


def _expected_push(
    function: UserFunction, found: Ground, batch: Batch, probe: Probe, weights: Tensor, alone: bool
) -> Tensor:
    """The push on each token of each text: of the text alone, or averaged over the other text of a batch of two."""
    if alone:
        return ask(function, probe).push
    first = len(found.trees[0].leaf_tokens())
    mass = found.mass()
    push = torch.zeros_like(probe.logprobs)
    for one, other in itertools.product(range(first), range(first, len(batch))):
        pair = torch.tensor([one, other])
        asked = ask(function, probe.take(pair)).push
        push[one] += mass[other] * asked[0]
        push[other] += mass[one] * asked[1]
    return push


def _loss(seen: PolicyEvaluation, goal: PushTargets) -> tuple[Tensor, dict[str, Tensor]]:
    return -goal.push * seen.logprobs, {}


def _through_learner(found: Ground, batch: Batch, push: Tensor, weights: Tensor) -> Tensor:
    """The direction in which the learner would go: sum of weights x push x grad log pi."""
    return -found.gradient(batch, PushTargets(batch.mask, push, push, push), weights, _loss)


def _between_prompts(found: Ground, batch: Batch, push: Tensor, weights: Tensor) -> Measure:
    """How much of each prompt's own gradient there is."""
    shares = []
    for place, tree in enumerate(found.trees):
        rows = (batch.unit == place).nonzero()[:, 0]
        ours = _through_learner(found, batch.take(rows), push[rows], weights[rows])
        true = found.autograd(exact(tree, found.logprobs(tree)).expected_return)
        shares.append(float(ours @ true / (true @ true)))
    return Measure("its length by prompt", "equal", " : ".join(f"{share:.4g}" for share in shares))


def _token_mean(found: Ground, batch: Batch, push: Tensor, weights: Tensor, true: Tensor) -> Measure:
    """The recipes' token mean over batches of two completions, one a prompt, instead of the constant weights."""
    lengths, mass = batch.mask.sum(1).double(), found.mass()
    first = len(found.trees[0].leaf_tokens())
    divisor = torch.empty_like(lengths)
    for mine, theirs in ((slice(0, first), slice(first, None)), (slice(first, None), slice(0, first))):
        divisor[mine] = (mass[theirs] / (lengths[mine, None] + lengths[theirs])).sum(1)
    ours = _through_learner(found, batch, push, weights * divisor[:, None])
    return Measure("cosine under the token mean of 2 completions", "near 1", cosine(ours, true))


def _choices(found: Ground) -> list[tuple[int, PrefixTree, list[tuple[int, int]], Tensor]]:
    """(prompt, tree, path, probabilities) of every row."""
    out = []
    for place, (tree, known) in enumerate(zip(found.trees, found.answers(), strict=True)):
        out += [(place, tree, path, known.probabilities) for path in paths(tree)]
    return out


def _variance(found: Ground, batch: Batch, push: Tensor, scores: Tensor) -> Measure:
    """Of one completion's gradient in the logits of each choice, relative to the squared length of the mean."""
    rows = _choices(found)
    size = max(tree.support.numel() for _, tree, *_ in rows)

    def gradients(pushes: Tensor) -> Tensor:
        out = torch.zeros(len(rows), size, dtype=torch.float64)
        for row, (_, tree, path, probabilities) in enumerate(rows):
            begin, width = tree.prompt_length - 1, tree.support.shape[1]
            for time, (node, choice) in enumerate(path):
                spread = -probabilities[node]
                spread = spread + torch.nn.functional.one_hot(torch.tensor(choice), width)
                out[row, node * width : (node + 1) * width] += pushes[row, begin + time] * spread
        return out

    mass, prompt = found.mass(), torch.tensor([place for place, *_ in rows])
    ours, plain = gradients(push), gradients(batch.mask * scores[:, None])
    unit = gradients(batch.mask.double())
    spreads = {"yours": 0.0, "reinforce": 0.0, "rloo": 0.0}
    sizes = {"yours": 0.0, "reinforce": 0.0, "rloo": 0.0}
    for place in range(len(found.trees)):
        at = prompt == place
        p = mass[at]
        for name, drawn in (("yours", ours[at]), ("reinforce", plain[at])):
            mean = (p[:, None] * drawn).sum(0)
            spreads[name] += float((p * drawn.square().sum(1)).sum() - mean @ mean)
            sizes[name] += float(mean @ mean)
        gap = scores[at][:, None] - scores[at]  # two completions, each with the other as its baseline
        pairs = (gap[:, :, None] * (unit[at][:, None] - unit[at][None])) / 2
        chance = p[:, None] * p
        mean = (chance[:, :, None] * pairs).sum((0, 1))
        spreads["rloo"] += 2 * float((chance * pairs.square().sum(2)).sum() - mean @ mean)
        sizes["rloo"] += float(mean @ mean)
    told = {name: spreads[name] / sizes[name] if sizes[name] > 0 else float("inf") for name in spreads}
    return Measure("variance per completion / gradient squared, exact baseline",
                   f"REINFORCE {told['reinforce']:.3g}, RLOO (G = 2) {told['rloo']:.3g}", told["yours"])  # fmt: skip


def _away(function: UserFunction, found: Ground, batch: Batch, scores: Tensor, new: Tensor, true: Tensor) -> Measure:
    """Texts of an older policy (half-way to the reference), the gradient at the new one."""
    older, chances = [], []
    with torch.no_grad():
        for tree in found.trees:
            ours, theirs = found.logprobs(tree), found.logprobs(tree, reference=True)
            table = (0.8 * ours + 0.2 * theirs).masked_fill(~tree.legal, -torch.inf).log_softmax(1)
            chances.append(exact(tree, table).leaf_probabilities)
            for path in paths(tree):
                row = torch.zeros(batch.mask.shape[1], dtype=torch.float64)
                begin = tree.prompt_length - 1
                row[begin : begin + len(path)] = torch.stack([table[place] for place in path])
                older.append(row)
    mass = torch.cat(chances)
    means = torch.cat([(p * scores[batch.unit == n]).sum().expand(len(p)) for n, p in enumerate(chances)])
    probe = Probe(new, torch.stack(older), (scores - means)[:, None] * batch.mask, batch.mask)
    weights = mass[:, None] * batch.mask
    ours = _through_learner(found, batch, ask(function, probe).push, weights)
    token = _through_learner(found, batch, (new - probe.old_logprobs).exp() * probe.advantages, weights)
    kl = float((mass * (torch.stack(older) - new).sum(1)).sum() / len(found.trees))
    return Measure(f"cosine on texts of an older policy, KL {kl:.2g}", f"token ratio {cosine(token, true):.4f}",
                   cosine(ours, true))  # fmt: skip


def _cut(function: UserFunction, found: Ground, batch: Batch, gains: Tensor, now: Tensor) -> float:
    """The user's loss in the project's learner: a batch at once against the same in pieces."""
    rows = [replace(row, group=number) for number, row in enumerate(found.rollouts())]
    single = replace(collate_rollouts(rows), mask=batch.mask)
    old = now + 0.1 * torch.sin(torch.arange(now.numel(), dtype=torch.float64)).reshape(now.shape) * batch.mask
    goal = PushTargets(batch.mask, gains, gains, old)

    def loss(seen: PolicyEvaluation, target: PushTargets) -> tuple[Tensor, dict[str, Tensor]]:
        return function(
            logprobs=seen.logprobs, old_logprobs=target.old_logprobs, advantages=target.advantages, mask=target.mask
        ), {}

    weights = weighting.token_mean(batch.mask, torch.float64)
    whole = found.gradient(single, goal, weights, loss)
    return apart(found.gradient(single, goal, weights, loss, tokens=40), whole)


# --------------------------------------------------------------------------------------------------------------- ascent
def _ascent(function: UserFunction, alone: bool) -> Measure:
    """Follow the expected gradient on a problem that one policy must solve for three prompts at once.

    The first prompt's answers are long and worth ten times the others': a loss that weighs prompts or lengths otherwise
    than the reward does ends at another answer.
    """
    rewards = torch.tensor([row for _, row in PROMPTS], dtype=torch.float64)
    best = float(rewards.mean(0).max())
    theta = torch.zeros(3, dtype=torch.float64)
    for _ in range(STEPS):
        policy = theta.softmax(0)
        push = _answers_push(function, rewards, policy, alone)
        pull = (push * policy).mean(0)
        gradient = pull - policy * pull.sum()
        if not bool(torch.isfinite(gradient).all()):
            return Measure("ascent on 3 prompts with one answer: J", best, "not finite")
        if float(gradient.norm()) < 1e-9:
            break
        theta = theta + STRIDE * gradient / gradient.norm()
    reached = float((rewards @ theta.softmax(0)).mean())
    return Measure("ascent on 3 prompts with one answer: J", best, reached)


def _answers_push(function: UserFunction, rewards: Tensor, policy: Tensor, alone: bool) -> Tensor:
    """[prompts, answers]: the push on an answer's choice, its first token; the tokens after it are forced."""
    gains = rewards - (rewards @ policy)[:, None]
    lengths = [length for length, _ in PROMPTS]
    grid = list(itertools.product(range(len(PROMPTS)), range(3)))
    width = max(lengths)
    mask = torch.arange(width) < torch.tensor([lengths[prompt] for prompt, _ in grid])[:, None]
    logprobs = torch.zeros(len(grid), width, dtype=torch.float64)
    logprobs[:, 0] = policy.log().repeat(len(PROMPTS))
    probe = Probe(logprobs, logprobs, gains.flatten()[:, None] * mask, mask)
    if alone:
        return ask(function, probe).push[:, 0].reshape(len(PROMPTS), 3)
    push = torch.zeros(len(PROMPTS), 3, dtype=torch.float64)
    for answers in itertools.product(range(3), repeat=len(PROMPTS)):
        rows = torch.tensor([3 * prompt + answer for prompt, answer in enumerate(answers)])
        asked = ask(function, probe.take(rows)).push[:, 0]
        for prompt, answer in enumerate(answers):
            others = [policy[other] for place, other in enumerate(answers) if place != prompt]
            push[prompt, answer] += torch.stack(others).prod() * asked[prompt]
    return push
