"""Checks that a mutant of ``maths/distributions.py`` showed to be missing."""

from __future__ import annotations

import math

import pytest
import torch

from upslope.maths import distributions


@pytest.mark.parametrize("settings", [(0.0, 0, 1.0), (0.7, 0, 1.0), (1.0, 2, 1.0), (1.3, 3, 0.6)])
def test_the_vocabulary_is_the_last_dimension_of_however_many(settings: tuple[float, int, float]) -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = distributions.log_probs(logits, *settings)
    rows = torch.stack([distributions.log_probs(row, *settings) for row in logits.reshape(6, 5)])
    torch.testing.assert_close(whole.reshape(6, 5), rows, rtol=0, atol=1e-14)
    torch.testing.assert_close(
        distributions.entropy(whole).reshape(6), torch.stack([distributions.entropy(row) for row in rows])
    )


F64 = torch.float64
INF = math.inf


def test_scores_without_settings_are_the_logits() -> None:
    logits = torch.tensor([[0.5, -2.0, -INF, 3.0]], dtype=F64)
    assert torch.equal(distributions.scores(logits), logits)


def test_greedy_scores_are_0_at_the_choice() -> None:
    scores = distributions.scores(torch.tensor([[1.0, 3.0, 2.0]]), temperature=0.0)
    assert scores.tolist() == [[-INF, 0.0, -INF]]


def test_each_row_is_shifted_by_its_own_largest_logit_before_the_division() -> None:
    logits = torch.tensor([[3e38, 0.0], [-1e-6, -2e-6]])
    found = distributions.log_probs(logits, temperature=1e-6).exp()
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0], [1 / (1 + 1 / math.e), 1 / (1 + math.e)]]))


def test_the_shift_has_no_gradient() -> None:
    logits = torch.tensor([0.3, -1.0, 2.0], dtype=F64)
    jacobian = torch.autograd.functional.jacobian(lambda x: distributions.scores(x, temperature=0.5), logits)
    torch.testing.assert_close(jacobian, 2 * torch.eye(3, dtype=F64))


def test_top_k_keeps_ids_whose_mass_does_not_move_the_sum() -> None:
    kept = torch.isfinite(distributions.scores(torch.tensor([0.0, -50.0, -60.0], dtype=F64), top_k=2))
    assert kept.tolist() == [True, True, False]


def test_a_mass_that_reaches_top_p_exactly_is_enough() -> None:
    assert distributions.log_probs(torch.zeros(2, dtype=F64), top_p=0.5).exp().tolist() == [1.0, 0.0]


def test_among_many_equals_the_lower_ids_are_kept() -> None:
    for vocab in (17, 100, 5000):
        kept = torch.isfinite(distributions.scores(torch.zeros(3, vocab), top_k=7))
        assert kept.nonzero()[:, 1].tolist() == 3 * list(range(7))


def test_entropy_and_samples_are_promoted() -> None:
    half = torch.tensor([[0.25, 0.75]], dtype=torch.bfloat16).log()
    assert distributions.entropy(half).dtype == torch.float32
    ids, logprobs = distributions.sample(half, torch.tensor([0.9], dtype=F64))
    assert logprobs.dtype == torch.float32
    expected = distributions.log_probs(half)[0, ids]
    torch.testing.assert_close(logprobs, expected, rtol=1e-6, atol=0)


def test_a_sample_has_no_gradient_and_leaves_its_scores_alone() -> None:
    scores = torch.tensor([[0.1, 0.7]], dtype=F64, requires_grad=True)
    ids, logprobs = distributions.sample(scores, torch.tensor([0.2], dtype=F64))
    assert not logprobs.requires_grad and ids.tolist() == [0]
    assert scores.tolist() == [[0.1, 0.7]]


def test_chosen_takes_ids_of_any_integer_type() -> None:
    rows = torch.arange(6, dtype=F64).view(2, 3)
    assert distributions.chosen(rows, torch.tensor([2, 0], dtype=torch.int32)).tolist() == [2.0, 3.0]


def test_no_rows_give_no_samples() -> None:
    for vocab in (5, 1000):
        ids, logprobs = distributions.sample(torch.zeros(0, vocab, dtype=F64), torch.zeros(0, dtype=F64))
        assert (ids.shape, ids.dtype) == ((0,), torch.long) and (logprobs.shape, logprobs.dtype) == ((0,), F64)


def test_a_vocabulary_beyond_what_is_worked_on_together() -> None:
    vocab = distributions.AT_ONCE + 3
    scores = torch.full((3, vocab), -INF)
    scores[0, 1], scores[1, vocab - 1], scores[2, 700] = 0.0, 2.0, -1.0
    ids, logprobs = distributions.sample(scores, torch.tensor([0.3, 0.3, 0.3], dtype=F64))
    assert ids.tolist() == [1, vocab - 1, 700] and logprobs.tolist() == [0.0, 0.0, 0.0]


def test_masses_that_a_float32_sum_of_a_block_would_lose_still_count() -> None:
    """The sum of a block of ids is in float64: 255 masses of 4e-11 beside one of 1 decide here."""
    scores = torch.full((1, 1024), -24.0)
    scores[0, 257:] = -INF  # only the first block has small masses: nothing makes up for losing them
    scores[0, 0] = scores[0, 256] = 0.0
    masses = scores[0].exp().to(F64)
    ends = masses.cumsum(0)
    u = (ends[100] + ends[101]) / 2 / ends[-1]
    assert distributions.draw(scores, u[None]).tolist() == [101]


def test_the_only_id_with_mass_is_drawn_at_u_1() -> None:
    for vocab in (3, 1000):
        scores = torch.full((1, vocab), -INF, dtype=F64)
        scores[0, 1] = 0.0
        assert distributions.draw(scores, torch.ones(1, dtype=F64)).tolist() == [1]
