"""The sampling distribution against brute force; inverse-CDF draws against exact boundaries."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from upslope.maths import distributions

F64 = torch.float64
INF = math.inf
logit_rows = st.lists(st.one_of(st.integers(-6, 6).map(float), st.just(-INF)), min_size=1, max_size=8).filter(
    lambda logits: max(logits) > -INF
)


def brute(logits: list[float], temperature: float, top_k: int, top_p: float) -> list[float]:
    """Probabilities by sorted loops in plain Python."""
    highest = max(logits)
    weights = [math.exp((x - highest) / temperature) for x in logits]
    order = sorted(range(len(logits)), key=lambda i: -weights[i])  # stable: among equals the lower id first
    order = order[:top_k] if top_k else order
    total = math.fsum(weights[i] for i in order)
    if top_p < 1.0:
        kept, mass = [], 0.0
        for i in order:
            kept.append(i)
            mass += weights[i] / total
            if mass >= top_p:
                break
        order = kept
    total = math.fsum(weights[i] for i in order)
    return [weights[i] / total if i in order else 0.0 for i in range(len(logits))]


@settings(max_examples=150, deadline=None)
@given(
    logits=logit_rows,
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.integers(0, 9),
    top_p=st.sampled_from([0.0123, 0.3217, 0.7331, 0.95173, 1.0]),  # not sums that rounding could decide
)
def test_log_probs_equal_brute_force(logits: list[float], temperature: float, top_k: int, top_p: float) -> None:
    expected = brute(logits, temperature, top_k, top_p)
    result = distributions.log_probs(torch.tensor(logits, dtype=F64), temperature, top_k, top_p)
    torch.testing.assert_close(result.exp(), torch.tensor(expected, dtype=F64), atol=1e-12, rtol=0)
    assert torch.isneginf(result).tolist() == [p == 0.0 for p in expected]


def test_temperature_comes_before_top_k_and_top_k_before_top_p() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=F64).log()
    # Of the first two, renormalised, the first has 0.571 of the mass: enough for 0.55, though not of the whole (0.4).
    assert distributions.log_probs(logits, top_k=2, top_p=0.55).exp().tolist() == pytest.approx([1, 0, 0, 0])
    assert distributions.log_probs(logits, top_p=0.55).exp().tolist() == pytest.approx([4 / 7, 3 / 7, 0, 0])
    # At temperature 1/2 the first has 0.16 / 0.30 of the mass.
    cold = distributions.log_probs(logits, temperature=0.5, top_p=0.5)
    assert cold.exp().tolist() == pytest.approx([1, 0, 0, 0])
    assert distributions.log_probs(logits, top_p=0.5).exp().tolist() == pytest.approx([4 / 7, 3 / 7, 0, 0])


def test_top_p_always_keeps_one_and_ties_go_to_the_lower_id() -> None:
    even = torch.zeros(2, 3, dtype=F64)
    assert distributions.log_probs(even, top_p=1e-9).exp().tolist() == [[1, 0, 0]] * 2
    assert distributions.log_probs(even, top_k=1).exp().tolist() == [[1, 0, 0]] * 2
    assert distributions.log_probs(even, top_k=2).exp().tolist() == [[0.5, 0.5, 0]] * 2


def test_temperature_0_is_0_at_the_first_largest_and_minus_infinity_elsewhere() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, -INF], [-INF, -5.0, -7.0, -5.0]])
    result = distributions.log_probs(logits, temperature=0.0)
    assert result.tolist() == [[-INF, 0.0, -INF, -INF], [-INF, 0.0, -INF, -INF]]
    assert torch.equal(distributions.log_probs(logits, top_k=1), result)


def test_log_probs_survive_a_tiny_temperature_and_huge_logits() -> None:
    logits = torch.tensor([3e38, 0.0, -3e38])
    assert distributions.log_probs(logits, temperature=1e-6).tolist() == [0.0, -INF, -INF]


def test_log_probs_promote_half_precision_and_keep_double() -> None:
    for temperature in (0.0, 0.7, 1.0):
        for given_type, expected in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (F64, F64)):
            logits = torch.zeros(2, 3, dtype=given_type)
            assert distributions.log_probs(logits, temperature, 2, 0.9).dtype == expected


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.6, 0, 1.0), (0.6, 3, 1.0), (1.5, 4, 0.8)]
)
def test_gradient_of_log_probs_equals_finite_differences(temperature: float, top_k: int, top_p: float) -> None:
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.9, 0.1]], dtype=F64, requires_grad=True)
    kept = torch.isfinite(distributions.log_probs(logits.detach(), temperature, top_k, top_p))

    def finite_part(x: Tensor) -> Tensor:
        return distributions.log_probs(x, temperature, top_k, top_p)[kept]

    assert torch.autograd.gradcheck(finite_part, logits)


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"temperature": math.nan}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}]
)
def test_settings_that_make_no_sense_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        distributions.log_probs(torch.zeros(3), **wrong)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(logits=logit_rows)
def test_entropy_equals_the_sum_over_what_has_probability(logits: list[float]) -> None:
    expected = -sum(p * math.log(p) for p in brute(logits, 1.0, 0, 1.0) if p > 0)
    x = torch.tensor([logits], dtype=F64, requires_grad=True)
    result = distributions.entropy(distributions.log_probs(x))
    assert result.shape == (1,) and result.item() == pytest.approx(expected, abs=1e-12)
    (gradient,) = torch.autograd.grad(result.sum(), x)
    assert torch.isfinite(gradient).all()


def test_gradient_of_entropy_with_impossible_entries() -> None:
    free = torch.tensor([[0.2, -0.4, 1.0]], dtype=F64, requires_grad=True)

    def entropy(x: Tensor) -> Tensor:
        padded = torch.cat([x, torch.full((1, 2), -INF, dtype=F64)], dim=1)
        return distributions.entropy(distributions.log_probs(padded))

    assert torch.autograd.gradcheck(entropy, free)


def test_chosen_picks_one_log_probability_a_place() -> None:
    log_probs = torch.arange(24, dtype=F64).view(2, 3, 4)
    assert distributions.chosen(log_probs, torch.tensor([[0, 1, 2], [3, 0, 1]])).tolist() == [[0, 5, 10], [15, 16, 21]]


# ----------------------------------------------------------------------------------------------------------------- draw
PROBS = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0], dtype=F64)


@pytest.mark.parametrize(
    ("u", "expected"),
    [
        (0.0, 1),
        (math.nextafter(0.25, 0), 1),
        (0.25, 3),
        (math.nextafter(0.75, 0), 3),
        (0.75, 4),
        (math.nextafter(1.0, 0), 4),
        (1.0, 4),
    ],
)
def test_draw_inverts_the_cumulative_distribution_exactly_at_its_edges(u: float, expected: int) -> None:
    ids = distributions.draw(PROBS.log().unsqueeze(0), torch.tensor([u], dtype=F64))
    assert ids.tolist() == [expected] and ids.dtype == torch.int64


@settings(max_examples=150, deadline=None)
@given(logits=logit_rows, u=st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, math.nextafter(1, 0)])))
def test_draw_never_returns_an_id_without_probability(logits: list[float], u: float) -> None:
    for dtype in (torch.float32, F64):
        row = torch.tensor([logits], dtype=dtype)
        picked = int(distributions.draw(row, torch.tensor([u], dtype=F64))[0])
        assert logits[picked] > -INF


def test_the_share_of_a_fine_grid_of_uniforms_is_the_probability() -> None:
    count = 20_000
    logits = torch.tensor([0.3, -1.0, 2.0, -INF, 0.1], dtype=torch.float32)
    u = (torch.arange(count, dtype=F64) + 0.5) / count
    ids = distributions.draw(logits.expand(count, 5), u)
    share = torch.bincount(ids, minlength=5).double() / count
    torch.testing.assert_close(share, logits.double().softmax(-1), atol=1.0 / count, rtol=0)
    assert (ids[1:] >= ids[:-1]).all()  # the inverse of a cumulative distribution never falls


def test_draw_depends_only_on_its_own_row_and_number() -> None:
    torch.manual_seed(0)
    logits, u = torch.randn(5, 1001), torch.rand(5, dtype=F64)
    together = distributions.draw(logits, u)
    for i in range(5):
        assert torch.equal(distributions.draw(logits[i : i + 1], u[i : i + 1]), together[i : i + 1])


@pytest.mark.parametrize("vocab", [512, 513, 768, 1000, 5000])
def test_draw_from_a_large_vocabulary_equals_the_plain_inversion(vocab: int) -> None:
    """Sums of blocks find the block, then the id: the same id as the cumulative sum over all ids."""
    torch.manual_seed(vocab)
    logits = 3 * torch.randn(400, vocab, dtype=F64)
    logits[torch.rand(400, vocab) < 0.3] = -INF
    u = torch.rand(400, dtype=F64)
    cumulative = logits.softmax(-1).cumsum(-1)
    plain = (cumulative <= u[:, None] * cumulative[:, -1:]).sum(-1)
    ids, logprobs = distributions.sample(logits, u)
    assert torch.equal(ids, plain) and torch.equal(distributions.draw(logits, u), plain)
    torch.testing.assert_close(logprobs, distributions.chosen(logits.log_softmax(-1), plain), atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("vocab", [300, 1000])
def test_draw_from_a_large_vocabulary_keeps_to_the_ids_with_mass_at_every_edge(vocab: int, dtype: torch.dtype) -> None:
    for alone in (0, 255, 256, 257, 511, vocab - 1):
        logits = torch.full((1, vocab), -INF, dtype=dtype)
        logits[0, min(alone, vocab - 1)] = -7.0
        for u in (0.0, 0.5, math.nextafter(1, 0)):
            ids, logprobs = distributions.sample(logits, torch.tensor([u], dtype=F64))
            assert ids.tolist() == [min(alone, vocab - 1)] and logprobs.tolist() == [0.0]
    uniform = torch.zeros(1, 1024, dtype=dtype)
    edges = torch.arange(1024, dtype=F64) / 1024  # exact in both dtypes: each id begins at its edge
    assert distributions.draw(uniform.expand(1024, -1), edges).tolist() == list(range(1024))


def test_mass_too_small_to_move_the_sum_is_not_chosen_at_the_end() -> None:
    logits = torch.tensor([[0.0, -200.0, -INF]], dtype=F64)
    assert distributions.draw(logits, torch.tensor([math.nextafter(1.0, 0)], dtype=F64)).tolist() == [0]


@pytest.mark.parametrize("bad", [[-INF, -INF], [math.nan, 0.0], [INF, 0.0]])
def test_a_row_that_is_no_distribution_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="draw: a row"):
        distributions.draw(torch.tensor([[0.0, 0.0], bad]), torch.tensor([0.5, 0.5], dtype=F64))
