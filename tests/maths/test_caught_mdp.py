"""Checks that a mutant of ``maths/mdp.py`` showed to be missing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from upslope.maths.mdp import Mdp, SparseMdp, names

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


@pytest.mark.parametrize(("row", "certain"), [([0.0, 1.0], True), ([1.0, 0.0], True), ([0.25, 0.75], False)])
def test_a_world_is_deterministic_if_every_action_leads_to_one_state_for_certain(
    row: list[float], certain: bool
) -> None:
    chances = torch.tensor([[[1.0, 0.0], row], [[0.0, 0.0]] * 2], dtype=F64)
    reward = torch.zeros(2, 2, dtype=F64)
    assert Mdp(chances, reward, TERMINAL).deterministic is certain
    successor = torch.arange(2).expand(2, 2, 2)
    assert SparseMdp(successor, chances, reward, TERMINAL).deterministic is certain
    assert dense().deterministic and sparse().deterministic  # what means nothing does not count


@pytest.mark.parametrize("made", [dense, sparse])
@pytest.mark.parametrize(("chance", "reward"), [(torch.float32, F64), (F64, torch.float32)])
def test_both_are_stored_in_the_finer_of_their_types(made: Any, chance: torch.dtype, reward: torch.dtype) -> None:
    mdp = made(chance, REWARD.to(reward))
    chances = mdp.transition if isinstance(mdp, Mdp) else mdp.probability
    assert chances.dtype == mdp.reward.dtype == F64


@pytest.mark.parametrize(("count", "said"), [(3, "0, 1, 2"), (8, "0, 1, 2, 3, 4, 5, 6, 7"),
                                             (9, "0, 1, 2, 3, 4, 5, 6, 7, ...")])  # fmt: skip
def test_a_message_names_the_first_eight_states(count: int, said: str) -> None:
    assert names(torch.tensor([True] * count + [False])) == said


@pytest.mark.parametrize("row", [[0.999, 0.0], [-0.5, 1.5]])
def test_rows_that_are_no_distributions_are_named_and_only_they(row: list[float]) -> None:
    chances = torch.tensor([[[0.5, 0.5]], [row], [[0.0, 1.0]]], dtype=F64)
    chances = torch.nn.functional.pad(chances, (0, 1))
    terminal = torch.tensor([False, False, True])
    reward = torch.zeros(3, 1, dtype=F64)
    with pytest.raises(ValueError, match="transition rows of states 1 are not distributions"):
        Mdp(chances, reward, terminal)
    with pytest.raises(ValueError, match="transition rows of states 1 are not distributions"):
        SparseMdp(torch.arange(3).expand(3, 1, 3), chances, reward, terminal)
