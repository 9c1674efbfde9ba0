"""What a recipe may say of reward models and of DPO."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from upslope.recipes.sections import Positive, Section


class RewardModelSection(Section):
    max_tokens: Positive = 2048
    """Longest row, prompt and answer; data.too_long says what becomes of longer ones."""
    center: Annotated[float, Field(ge=0)] = 0.01
    """Weight of (chosen + rejected)^2: pairs leave the scores' mean free, this pulls it to 0."""
    bins: Annotated[int, Field(ge=2, le=100)] = 10
    """Rows of the reliability table, which sets how sure the model was against how often it was right."""


class DpoSection(Section):
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """sigmoid: DPO; ipo: a squared error that stops where the log-ratios of a pair are 1 / (2 beta) apart."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Scale of the implicit reward beta * log(pi / ref); smaller lets the policy go further from its start."""
    max_tokens: Positive = 2048
    """Longest row, prompt and answer; data.too_long says what becomes of longer ones."""
