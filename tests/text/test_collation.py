"""Rows of tokens to a batch: padded on the right, shifted once, masked by position."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from upslope.text.collation import collate_examples, collate_rollouts, pad, per_target
from upslope.types import Encoded, Rollout

LONG = Rollout(
    "a", 7, 0, token_ids=(5, 6, 7, 8, 2), action_mask=(False, False, True, True, True),
    logprobs=(0, 0, -0.1, -0.2, -0.3), rewards=(0, 0, 0, 0.5, 1.0), terminated=True, weights_version=3, temperature=0.7,
)  # fmt: skip
SHORT = Rollout(
    "b", 9, 1, token_ids=(4, 0, 9), action_mask=(False, True, True), logprobs=(0, -0.4, -0.5), rewards=(0, 0, 2.0),
    terminated=False, weights_version=3, temperature=0.7,
)  # fmt: skip


def test_pad_fills_the_right_with_zeros_to_the_longest_or_the_given_length() -> None:
    assert pad([[1, 2], [3]], torch.long).tolist() == [[1, 2], [3, 0]]
    assert pad([[1.5], []], torch.float32, 3).tolist() == [[1.5, 0, 0], [0, 0, 0]]
    assert pad([[True], [False, True]], torch.bool).tolist() == [[True, False], [False, True]]
    assert pad([], torch.long).shape == (0, 0)


def test_rollouts_are_shifted_once_and_masked_by_position() -> None:
    batch = collate_rollouts([LONG, SHORT])
    assert batch.token_ids.tolist() == [[5, 6, 7, 8, 2], [4, 0, 9, 0, 0]]
    assert batch.targets.tolist() == [[6, 7, 8, 2], [0, 9, 0, 0]]
    assert batch.lengths.tolist() == [5, 3]
    # mask[b, t] speaks of target t = token t + 1. The sampled 0 of the second row counts, the padding zeros do not.
    assert batch.mask.tolist() == [[False, True, True, True], [True, True, False, False]]
    assert batch.unit.tolist() == [7, 9]
    assert batch.temperature == 0.7 and batch.support is None


def test_numbers_a_token_become_numbers_a_target_at_the_same_places() -> None:
    batch, rows = collate_rollouts([LONG, SHORT]), [LONG, SHORT]
    logprobs = per_target([row.logprobs for row in rows], batch.mask.shape[1])
    rewards = per_target([row.rewards for row in rows], batch.mask.shape[1])
    torch.testing.assert_close(logprobs, torch.tensor([[0, -0.1, -0.2, -0.3], [-0.4, -0.5, 0, 0]]))
    torch.testing.assert_close(rewards, torch.tensor([[0, 0, 0.5, 1.0], [0, 2.0, 0, 0]]))
    assert not logprobs[~batch.mask].any()


def test_examples_are_shifted_and_masked_alike_and_each_is_a_unit() -> None:
    rows = [
        Encoded("x", (5, 6, 2), (False, True, True)),
        Encoded("y", (1, 5, 6, 7, 2), (False, True, False, True, True)),
    ]
    batch = collate_examples(rows)
    assert batch.token_ids.tolist() == [[5, 6, 2, 0, 0], [1, 5, 6, 7, 2]]
    assert batch.mask.tolist() == [[True, True, False, False], [True, False, True, True]]
    assert batch.lengths.tolist() == [3, 5] and batch.unit.tolist() == [0, 1]
    assert batch.temperature == 1.0 and batch.support is None


def test_an_example_trained_from_its_first_token_has_no_target_for_it() -> None:
    assert collate_examples([Encoded("x", (5, 6), (True, True))]).mask.tolist() == [[True]]


def test_padding_equal_to_the_end_token_changes_nothing() -> None:
    """The mask goes by position: rows whose stop token is id 0, the number that padding is made of."""
    batch = collate_examples(
        [Encoded("x", (5, 6, 0), (False, True, True)), Encoded("y", (1, 5, 6, 7, 0), (False,) * 4 + (True,))]
    )
    assert batch.mask.tolist() == [[True, True, False, False], [False, False, False, True]]
    assert batch.lengths.tolist() == [3, 5]


def test_support_stands_at_its_targets_padded_with_minus_one() -> None:
    limited = replace(LONG, support=(None, None, (7, 8), (8,), (2, 3, 4)))
    support = collate_rollouts([limited, SHORT]).support
    assert support is not None
    none = [-1, -1, -1]
    assert support.tolist() == [[none, [7, 8, -1], [8, -1, -1], [2, 3, 4]], [none, none, none, none]]


def test_a_support_without_any_restriction_is_none() -> None:
    assert collate_rollouts([replace(LONG, support=(None,) * 5)]).support is None


def test_mixed_temperatures_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"one sampling temperature, got \[0.7, 1.0\]"):
        collate_rollouts([LONG, replace(SHORT, temperature=1.0)])


def test_taking_rows_takes_them_from_every_field() -> None:
    limited = replace(LONG, support=(None, None, (7, 8), (8,), (2, 3, 4)))
    batch = collate_rollouts([limited, SHORT])
    part = batch.take([1])
    assert part.token_ids.tolist() == [[4, 0, 9, 0, 0]] and part.lengths.tolist() == [3] and part.unit.tolist() == [9]
    assert part.mask.tolist() == [[True, True, False, False]] and part.temperature == 0.7
    assert part.support is not None and part.support.shape == (1, 4, 3)
