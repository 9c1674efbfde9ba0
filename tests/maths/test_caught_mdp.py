"""Checks that a mutant of ``maths/mdp.py`` showed to be missing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from upslope.maths.mdp import Mdp, SparseMdp

F64 = torch.float64
TERMINAL = torch.tensor([False, True])
AVAILABLE = torch.tensor([[True, False], [True, True]])
REWARD = torch.tensor([[-1.0, 9.0], [9.0, 9.0]], dtype=F64)


def dense(dtype: torch.dtype = F64, reward: torch.Tensor = REWARD) -> Mdp:
    """From state 0 one action leads to the end; the numbers of the others mean nothing."""
    garbage = [0.25, 0.5]
    return Mdp(torch.tensor([[[0.0, 1.0], garbage], [garbage, garbage]], dtype=dtype), reward, TERMINAL, AVAILABLE)


def sparse(dtype: torch.dtype = F64, reward: torch.Tensor = REWARD) -> SparseMdp:
    successor = torch.tensor([[[1], [0]], [[0], [0]]])
    probability = torch.tensor([[[1.0], [0.25]], [[0.5], [0.5]]], dtype=dtype)
    return SparseMdp(successor, probability, reward, TERMINAL, AVAILABLE)


@pytest.mark.parametrize("made", [dense, sparse])
def test_what_means_nothing_is_stored_as_0(made: Any) -> None:
    mdp = made()
    chances = mdp.transition if isinstance(mdp, Mdp) else mdp.probability
    assert chances.sum() == 1.0 and chances[0, 0].sum() == 1.0
    assert mdp.reward.tolist() == [[-1.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("made", [dense, sparse])
@pytest.mark.parametrize(("chance", "reward"), [(torch.float32, F64), (F64, torch.float32)])
def test_both_are_stored_in_the_finer_of_their_types(made: Any, chance: torch.dtype, reward: torch.dtype) -> None:
    mdp = made(chance, REWARD.to(reward))
    chances = mdp.transition if isinstance(mdp, Mdp) else mdp.probability
    assert chances.dtype == mdp.reward.dtype == F64
