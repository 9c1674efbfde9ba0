"""Whole-algorithm identities on a bandit, by enumeration in float64: what each estimator's gradient is, exactly."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from upslope.maths import advantages, distributions, kl, losses

F64 = torch.float64
REWARD = torch.tensor([1.0, -0.5, 2.0], dtype=F64)
BETA = 0.7


@pytest.fixture
def theta() -> Tensor:
    return torch.tensor([0.4, -0.3, 0.1], dtype=F64, requires_grad=True)


def expected_gradient(log_pi: Tensor, theta: Tensor, reward: Tensor, group: int, **kind: str) -> Tensor:
    """E over all groups of ``group`` samples of the gradient of -mean(loss), each group weighted by its probability."""
    arms = torch.tensor(list(itertools.product(range(len(reward)), repeat=group)))
    probability = log_pi.detach()[arms].sum(1).exp()
    assert probability.sum().item() == pytest.approx(1, abs=1e-12)
    gains = advantages.group_relative(reward[arms], **kind)
    logprobs = log_pi[arms]
    loss, _ = losses.clipped_surrogate(logprobs, logprobs.detach(), gains, 0.2, 0.2)
    return torch.autograd.grad(-(probability * loss.mean(1)).sum(), theta, retain_graph=True)[0]


def exact_gradient(log_pi: Tensor, theta: Tensor, reward: Tensor) -> Tensor:
    return torch.autograd.grad((log_pi.exp() * reward).sum(), theta, retain_graph=True)[0]


@pytest.mark.parametrize("group", [2, 3, 4])
def test_leave_one_out_is_exactly_the_policy_gradient(theta: Tensor, group: int) -> None:
    log_pi = theta.log_softmax(0)
    found = expected_gradient(log_pi, theta, REWARD, group, baseline="leave_one_out")
    torch.testing.assert_close(found, exact_gradient(log_pi, theta, REWARD), atol=1e-13, rtol=0)


@pytest.mark.parametrize("group", [2, 3, 4])
def test_the_mean_with_itself_is_g_minus_1_over_g_of_it(theta: Tensor, group: int) -> None:
    log_pi = theta.log_softmax(0)
    found = expected_gradient(log_pi, theta, REWARD, group, baseline="mean")
    wanted = exact_gradient(log_pi, theta, REWARD) * (group - 1) / group
    torch.testing.assert_close(found, wanted, atol=1e-13, rtol=0)


def test_std_scale_bends_the_direction_when_rewards_are_not_binary(theta: Tensor) -> None:
    log_pi = theta.log_softmax(0)
    found = expected_gradient(log_pi, theta, REWARD, 4, baseline="mean", scale="std")
    cosine = torch.cosine_similarity(found, exact_gradient(log_pi, theta, REWARD), dim=0).item()
    assert 0.9 < cosine < 1 - 1e-3


def weight_of_std(p: float, group: int) -> float:
    """w_G(p) in closed form: E[gradient] = w_G(p) grad p for rewards 0 and 1."""
    return sum(
        math.comb(group - 1, j)
        * p**j
        * (1 - p) ** (group - 1 - j)
        * (math.sqrt((group - 1 - j) / (j + 1)) + math.sqrt(j / (group - j)))
        for j in range(group)
    )


def measured_weight_of_std(p: float, group: int) -> float:
    """The same by enumeration of the number of successes through ``group_relative`` and the loss."""
    logit = torch.tensor(math.log(p / (1 - p)), dtype=F64, requires_grad=True)
    successes = torch.arange(group + 1)
    rewards = (torch.arange(group) < successes[:, None]).to(F64)
    log_pi = torch.where(rewards > 0, torch.nn.functional.logsigmoid(logit), torch.nn.functional.logsigmoid(-logit))
    ways = torch.tensor([math.comb(group, int(k)) for k in successes], dtype=F64)
    probability = ways * log_pi.detach().sum(1).exp()
    gains = advantages.group_relative(rewards, scale="std")
    loss, _ = losses.clipped_surrogate(log_pi, log_pi.detach(), gains, 0.2, 0.2)
    (gradient,) = torch.autograd.grad(-(probability * loss.mean(1)).sum(), logit)
    return gradient.item() / (p * (1 - p))


@pytest.mark.parametrize(("group", "printed"), [(2, 1.0), (4, 1.69), (8, 2.33), (16, 2.85), (64, 3.26), (256, 3.32)])
def test_std_scale_weighs_a_prompt_by_its_difficulty(group: int, printed: float) -> None:
    measured = measured_weight_of_std(0.1, group)
    assert measured == pytest.approx(weight_of_std(0.1, group), abs=1e-11)
    assert measured == pytest.approx(printed, abs=6e-3)
    assert measured < 1 / math.sqrt(0.1 * 0.9)


def test_groups_that_teach_nothing_are_as_frequent_as_computed() -> None:
    group, p = 8, 0.1
    outcomes = torch.tensor(list(itertools.product([0.0, 1.0], repeat=group)), dtype=F64)
    probability = (p**outcomes * (1 - p) ** (1 - outcomes)).prod(1)
    silent = (advantages.group_relative(outcomes, scale="std") == 0).all(1)
    assert probability[silent].sum().item() == pytest.approx(p**group + (1 - p) ** group, abs=1e-12)
    assert probability[silent].sum().item() == pytest.approx(0.4305, abs=5e-5)


def test_importance_weighting_off_policy_is_exact_without_clips(theta: Tensor) -> None:
    log_pi = theta.log_softmax(0)
    behaviour = torch.tensor([0.2, 0.5, 0.3], dtype=F64)
    gains = REWARD.unsqueeze(0)
    loss, _ = losses.clipped_surrogate(log_pi.unsqueeze(0), behaviour.log().unsqueeze(0), gains, None, None)
    found = torch.autograd.grad(-(behaviour * loss[0]).sum(), theta, retain_graph=True)[0]
    torch.testing.assert_close(found, exact_gradient(log_pi, theta, REWARD), atol=1e-14, rtol=0)


# -------------------------------------------------------------------------------------------------- optima under a KL
REF = torch.tensor([0.2, 0.3, 0.5], dtype=F64).log()


def tilted() -> tuple[Tensor, float]:
    """pi* = ref exp(r / beta) / Z and J* = beta log Z."""
    unnormalised = REF + REWARD / BETA
    return unnormalised.log_softmax(0), BETA * unnormalised.logsumexp(0).item()


def objective(log_pi: Tensor) -> Tensor:
    return (log_pi.exp() * REWARD).sum() - BETA * kl.categorical(log_pi, REF)


def test_the_gap_to_the_optimum_is_beta_times_the_divergence(theta: Tensor) -> None:
    log_star, best = tilted()
    log_pi = theta.log_softmax(0)
    assert objective(log_star).item() == pytest.approx(best, abs=1e-13)
    gap = best - objective(log_pi).item()
    assert gap == pytest.approx(BETA * kl.categorical(log_pi, log_star).item(), abs=1e-13) and gap > 0.1


def test_ascent_with_k1_in_the_reward_reaches_the_optimum(theta: Tensor) -> None:
    log_star, _ = tilted()
    logits = theta.detach().clone()
    for _ in range(1500):
        logits.requires_grad_()
        log_pi = logits.log_softmax(0)
        score = (REWARD - BETA * kl.k1(log_pi, REF)).detach()
        gains = (score - (log_pi.exp() * score).sum()).detach()
        (gradient,) = torch.autograd.grad((log_pi.exp().detach() * gains * log_pi).sum(), logits)
        logits = logits.detach() + 1.0 * gradient
    torch.testing.assert_close(logits.softmax(0), log_star.exp(), atol=1e-10, rtol=0)


def test_the_population_gradient_of_dpo_is_0_at_the_optimum_and_only_there(theta: Tensor) -> None:
    pairs = torch.tensor(list(itertools.permutations(range(3), 2)))
    prefers = torch.sigmoid(REWARD[pairs[:, 0]] - REWARD[pairs[:, 1]])  # Bradley-Terry labels
    drawn = REF.exp()[pairs].prod(1)

    def gradient(logits: Tensor) -> Tensor:
        x = logits.detach().clone().requires_grad_()
        logratios = x.log_softmax(0) - REF
        loss = losses.dpo(logratios[pairs[:, 0]], logratios[pairs[:, 1]], BETA)
        return torch.autograd.grad((drawn * prefers * loss).sum(), x)[0]

    log_star, best = tilted()
    torch.testing.assert_close(gradient(log_star), torch.zeros(3, dtype=F64), atol=1e-15, rtol=0)
    assert gradient(theta).abs().max() > 1e-2
    implicit = BETA * (log_star - REF)
    torch.testing.assert_close(implicit, REWARD - best, atol=1e-13, rtol=0)


def test_bradley_terry_at_the_true_scores_has_no_population_gradient() -> None:
    pairs = torch.tensor(list(itertools.permutations(range(3), 2)))
    prefers = torch.sigmoid(REWARD[pairs[:, 0]] - REWARD[pairs[:, 1]])
    scores = (REWARD + 5).requires_grad_()
    loss = losses.bradley_terry(scores[pairs[:, 0]], scores[pairs[:, 1]])
    (gradient,) = torch.autograd.grad((prefers * loss).sum(), scores)
    torch.testing.assert_close(gradient, torch.zeros(3, dtype=F64), atol=1e-15, rtol=0)


def test_the_gradient_of_entropy_is_minus_that_of_the_divergence_from_uniform(theta: Tensor) -> None:
    entropy = distributions.entropy(distributions.log_probs(theta.unsqueeze(0))).sum()
    divergence = kl.categorical(theta.unsqueeze(0), torch.zeros(1, 3, dtype=F64)).sum()
    assert (entropy + divergence).item() == pytest.approx(math.log(3), abs=1e-14)
    both = [torch.autograd.grad(x, theta)[0] for x in (entropy, divergence)]
    torch.testing.assert_close(both[0], -both[1], atol=1e-14, rtol=0)
