"""Divergence estimators by enumeration of a categorical distribution in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from upslope.maths import kl

F64 = torch.float64
Estimator = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture
def theta() -> Tensor:
    return torch.tensor([0.5, -1.2, 0.3, 1.1], dtype=F64, requires_grad=True)


REF = torch.tensor([0.1, 0.4, -0.9, 0.7], dtype=F64).log_softmax(0)


def exact(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum()


def gradient(of: Tensor, theta: Tensor) -> Tensor:
    return torch.autograd.grad(of, theta, retain_graph=True)[0]


def close(left: Tensor, right: Tensor) -> bool:
    return torch.allclose(left, right, atol=1e-13, rtol=0)


def test_k1_and_k3_are_unbiased_values_and_k2_is_not(theta: Tensor) -> None:
    log_pi = theta.log_softmax(0)
    truth, pi = exact(log_pi, REF), log_pi.exp()
    assert close((pi * kl.k1(log_pi, REF)).sum(), truth)
    assert close((pi * kl.k3(log_pi, REF)).sum(), truth)
    assert abs((pi * kl.k2(log_pi, REF)).sum() - truth) > 1e-3


def test_the_bias_of_k2_is_of_third_order() -> None:
    direction = torch.tensor([0.5, -1.0, 0.2, 0.3], dtype=F64)
    biases = []
    for step in (0.1, 0.05):
        log_pi = (REF + step * direction).log_softmax(0)
        biases.append(float((log_pi.exp() * kl.k2(log_pi, REF)).sum() - exact(log_pi, REF)))
    assert biases[0] / biases[1] == pytest.approx(8, rel=0.1)


def test_gradients_as_a_loss_on_policy(theta: Tensor) -> None:
    log_pi = theta.log_softmax(0)
    sampled = log_pi.exp().detach()  # the samples' frequencies are constants to the loss
    wanted, turned = gradient(exact(log_pi, REF), theta), gradient(exact(REF, log_pi), theta)
    assert close(gradient((sampled * kl.k1(log_pi, REF)).sum(), theta), torch.zeros(4, dtype=F64))
    assert close(gradient((sampled * kl.k2(log_pi, REF)).sum(), theta), wanted)
    assert close(gradient((sampled * kl.k3(log_pi, REF)).sum(), theta), turned)
    assert not torch.allclose(wanted, turned, atol=1e-2)


@pytest.mark.parametrize("estimator", [kl.k1, kl.k2, kl.k3])
def test_gradients_in_the_reward(theta: Tensor, estimator: Estimator) -> None:
    log_pi = theta.log_softmax(0)
    sampled, penalty = log_pi.exp().detach(), estimator(log_pi, REF).detach()
    found = gradient((sampled * penalty * log_pi).sum(), theta)
    wanted, turned = gradient(exact(log_pi, REF), theta), gradient(exact(REF, log_pi), theta)
    if estimator is kl.k1:
        assert close(found, wanted)
    elif estimator is kl.k3:
        assert close(found, wanted - turned)
    else:
        assert not torch.allclose(found, wanted, atol=1e-2)


def test_estimators_by_hand() -> None:
    log_pi, ref = torch.tensor([[math.log(0.5)]], dtype=F64), torch.tensor([[math.log(0.25)]], dtype=F64)
    assert kl.k1(log_pi, ref).item() == pytest.approx(math.log(2))
    assert kl.k2(log_pi, ref).item() == pytest.approx(math.log(2) ** 2 / 2)
    assert kl.k3(log_pi, ref).item() == pytest.approx(0.5 - 1 + math.log(2))


def test_estimators_are_0_for_equal_log_probabilities_infinite_ones_too() -> None:
    x = torch.tensor([-0.3, -20.0, -math.inf], requires_grad=True)
    for estimator in (kl.k1, kl.k2, kl.k3):
        value = estimator(x, x.detach())
        assert value.tolist() == [0.0, 0.0, 0.0]
        (slope,) = torch.autograd.grad(value.sum(), x)
        assert torch.isfinite(slope).all()


def test_k3_is_never_negative_and_never_overflows() -> None:
    torch.manual_seed(0)
    log_pi = -10 * torch.rand(10_000)
    assert (kl.k3(log_pi, log_pi + 1e-3 * torch.randn(10_000)) >= 0).all()
    extreme = torch.tensor([-1e4, -math.inf], requires_grad=True)
    value = kl.k3(extreme, torch.zeros(2))
    (slope,) = torch.autograd.grad((value * 0).sum(), extreme)
    assert torch.isfinite(value).all() and (slope == 0).all()


def test_schulmans_table_of_normals() -> None:
    """Bias and deviation over KL for N(0, 1) against N(m, 1), by quadrature: joschu.net/blog/kl-approx.html."""
    x = torch.linspace(-12, 12, 200_001, dtype=F64)
    p = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi) * (x[1] - x[0])
    for mean, table in ((0.1, {kl.k1: (0, 20), kl.k2: (0.002, 1.42), kl.k3: (0, 1.42)}),
                        (1.0, {kl.k1: (0, 2), kl.k2: (0.25, 1.73), kl.k3: (0, 1.7)})):  # fmt: skip
        truth = mean**2 / 2
        for estimator, (bias, deviation) in table.items():
            k = estimator(-x.square() / 2, -(x - mean).square() / 2)
            expectation = (p * k).sum()
            spread = (p * (k - expectation).square()).sum().sqrt()
            assert (expectation / truth - 1).item() == pytest.approx(bias, abs=1e-3)
            assert (spread / truth).item() == pytest.approx(deviation, rel=0.02)


# ---------------------------------------------------------------------------------------------------------- categorical
def test_categorical_equals_the_sum_and_takes_unnormalised_logits() -> None:
    torch.manual_seed(0)
    p, q = torch.randn(2, 3, 5, dtype=F64), torch.randn(2, 3, 5, dtype=F64)
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    expected = (log_p.exp() * (log_p - log_q)).sum(-1)
    torch.testing.assert_close(kl.categorical(p + 3, q - 2), expected, atol=1e-13, rtol=0)
    independent = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=p), torch.distributions.Categorical(logits=q)
    )
    torch.testing.assert_close(kl.categorical(p, q), independent, atol=1e-13, rtol=0)


def test_categorical_with_impossible_entries() -> None:
    inf = math.inf
    p = torch.tensor([[0.0, -inf, -inf], [0.0, 0.0, -inf], [0.0, 0.0, 0.0]], dtype=F64)
    q = torch.tensor([[0.0, 0.0, -inf], [0.0, -inf, 0.0], [0.0, 0.0, 0.0]], dtype=F64)
    result = kl.categorical(p, q).tolist()
    assert result == [pytest.approx(math.log(2)), inf, pytest.approx(0.0, abs=1e-15)]


def test_categorical_where_p_underflows_and_q_is_impossible() -> None:
    assert kl.categorical(torch.tensor([0.0, -200.0]), torch.tensor([0.0, -math.inf])).item() == 0.0


def test_gradient_of_categorical_with_impossible_entries() -> None:
    free_p = torch.tensor([0.2, -0.4, 1.0], dtype=F64, requires_grad=True)
    free_q = torch.tensor([0.5, 0.1, -1.0, 0.3], dtype=F64, requires_grad=True)

    def divergence(p: Tensor, q: Tensor) -> Tensor:
        absent = torch.full((1,), -math.inf, dtype=F64)
        return kl.categorical(torch.cat([p, absent, absent]), torch.cat([q, absent]))

    assert torch.autograd.gradcheck(divergence, (free_p, free_q))


def test_estimators_promote_half_precision_and_keep_double() -> None:
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (F64, F64)):
        x = torch.zeros(2, 3, dtype=dtype)
        for function in (kl.k1, kl.k2, kl.k3, kl.categorical):
            assert function(x, x).dtype == expected
