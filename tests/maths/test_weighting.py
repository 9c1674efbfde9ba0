"""Weights against loops; the rules that make micro-batches add up."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope.maths import weighting

F64 = torch.float64
masks = st.integers(1, 6).flatmap(
    lambda time: st.lists(st.lists(st.booleans(), min_size=time, max_size=time), min_size=1, max_size=5)
)


@settings(max_examples=60, deadline=None)
@given(rows=masks, length=st.integers(1, 9))
def test_weights_equal_their_definitions_by_loops(rows: list[list[bool]], length: int) -> None:
    mask = torch.tensor(rows)
    tokens = sum(map(sum, rows))
    filled = sum(any(row) for row in rows)
    expected = {
        "token": [[1 / tokens if on else 0.0 for on in row] for row in rows],
        "sequence": [[1 / (sum(row) * filled) if on else 0.0 for on in row] for row in rows],
        "constant": [[1 / (len(rows) * length) if on else 0.0 for on in row] for row in rows],
    }
    found = {
        "token": weighting.token_mean(mask, F64),
        "sequence": weighting.sequence_mean(mask, F64),
        "constant": weighting.constant_length(mask, length, F64),
    }
    for name, weights in expected.items():
        torch.testing.assert_close(found[name], torch.tensor(weights, dtype=F64), atol=1e-15, rtol=0)


@settings(max_examples=60, deadline=None)
@given(rows=masks)
def test_means_sum_to_one_or_are_all_zero(rows: list[list[bool]]) -> None:
    mask = torch.tensor(rows)
    for weights in (weighting.token_mean(mask, F64), weighting.sequence_mean(mask, F64)):
        assert weights.sum().item() == pytest.approx(1.0 if mask.any() else 0.0, abs=1e-12)


def test_rows_with_an_empty_mask_do_not_count_as_sequences() -> None:
    mask = torch.tensor([[True, True], [False, False], [True, False]])
    assert weighting.sequence_mean(mask).tolist() == [[0.25, 0.25], [0.0, 0.0], [0.5, 0.0]]


def test_an_all_empty_mask_gives_zeros() -> None:
    mask = torch.zeros(2, 3, dtype=torch.bool)
    for weights in (weighting.token_mean(mask), weighting.sequence_mean(mask), weighting.constant_length(mask, 4)):
        assert torch.equal(weights, torch.zeros(2, 3))


def test_constant_length_does_not_depend_on_the_sampled_lengths() -> None:
    short, long = torch.tensor([[True, False, False]]), torch.tensor([[True, True, True]])
    assert weighting.constant_length(short, 4)[0, 0] == weighting.constant_length(long, 4)[0, 0] == 0.25


def test_the_gradient_of_a_step_is_the_sum_over_any_cut_into_micro_batches() -> None:
    torch.manual_seed(0)
    parameter = torch.randn(3, dtype=F64, requires_grad=True)
    features, mask = torch.randn(6, 5, 3, dtype=F64), torch.rand(6, 5) > 0.4
    for weights in (weighting.token_mean(mask, F64), weighting.sequence_mean(mask, F64)):
        loss = ((features @ parameter).square() * weights).sum()
        (whole,) = torch.autograd.grad(loss, parameter)
        for cut in ([6], [1] * 6, [4, 2], [1, 3, 2]):
            parts = zip(features.split(cut), weights.split(cut), strict=True)
            pieces = [torch.autograd.grad(((f @ parameter).square() * w).sum(), parameter)[0] for f, w in parts]
            torch.testing.assert_close(torch.stack(pieces).sum(0), whole, atol=1e-14, rtol=0)


def test_a_length_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        weighting.constant_length(torch.ones(1, 1, dtype=torch.bool), 0)
