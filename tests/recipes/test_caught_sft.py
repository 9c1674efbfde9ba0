"""Checks that a mutant of ``recipes/sft.py`` showed to be missing."""

from __future__ import annotations

from typing import Any, Literal
from unittest.mock import Mock

import pytest
import torch

from tests import tiny
from tests.learner.support import policy
from upslope.recipes import sft
from upslope.recipes.configs import DataSection, SftRecipe, SftSection, TrainSection
from upslope.recipes.setup import Workshop
from upslope.text.collation import collate_examples
from upslope.types import Encoded

ROWS = [
    Encoded("a", (5, 6, 7, 8), (False, True, True, True)),
    Encoded("b", (9, 5, 4), (False, False, True)),
    Encoded("c", (7, 7), (False, True)),
]


@pytest.mark.parametrize("weighting", ["token_mean", "sequence_mean"])
def test_the_held_out_loss_is_the_weighted_mean_over_the_rows_asked_for(
    weighting: Literal["token_mean", "sequence_mean"],
) -> None:
    learner = policy(tiny.served(dtype=torch.float64))
    recipe = SftRecipe(
        data=DataSection(path="rows.jsonl"), sft=SftSection(weighting=weighting), train=TrainSection(eval_prompts=2)
    )

    def loss_of(rows: list[Encoded]) -> dict[str, float]:
        shop: Any = Mock(spec=Workshop, heldout_examples=rows)
        return sft.heldout_loss(recipe, shop, learner)

    logprobs = learner.evaluate(collate_examples(ROWS)).logprobs
    first, second = -logprobs[0, :3], -logprobs[1, 1]
    wanted = (first.sum() + second) / 4 if weighting == "token_mean" else (first.mean() + second) / 2
    assert loss_of(ROWS) == {"eval_loss": pytest.approx(float(wanted), rel=1e-6)}  # weights are float32
    assert loss_of([]) == {}


def test_the_loss_tells_the_entropy() -> None:
    found = policy(tiny.served()).evaluate(collate_examples(ROWS))
    per_token, metrics = sft.loss(found, sft.SftTargets(collate_examples(ROWS).mask))
    assert torch.equal(per_token, -found.logprobs)
    assert set(metrics) == {"entropy"} and torch.equal(metrics["entropy"], found.entropy)
