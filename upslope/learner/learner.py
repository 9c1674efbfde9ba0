"""The learner: gradient, step, evaluate, weights. It knows no algorithm.

A recipe hands it rows, targets, per-token weights that were computed on the whole minibatch, and a loss that reduces
nothing. The learner cuts the rows into micro-batches by a token budget, packs each, and adds up

    gradient of  sum over rows b and targets t of  weights[b, t] * loss[b, t] ,

so the cut cannot change the result. The critic is a second learner with its own network.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from upslope.errors import TrainingError
from upslope.learner.optimizer import MasterAdamW, OptimizerSettings
from upslope.types import Batch, Loss, Rows, State

E = TypeVar("E", bound=Rows)

PATIENCE = 3
"""So many non-finite gradients in a row stop the run."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimizer step: gradient norm before clipping, learning rate, and whether it was skipped (not finite)."""

    grad_norm: float
    lr: float
    skipped: bool


def micro_batches(batch: Batch, budget: int) -> list[list[int]]:
    """Row numbers of each micro-batch.

    Sorted by length, at most ``budget`` tokens (one unit at least), units never cut.
    """
    lengths, units = batch.lengths.tolist(), batch.unit.tolist()
    members: dict[int, list[int]] = {}
    for row, unit in enumerate(units):
        members.setdefault(unit, []).append(row)
    ordered = sorted(members.values(), key=lambda rows: -max(lengths[row] for row in rows))
    cuts: list[list[int]] = []
    used = budget
    for rows in ordered:
        tokens = sum(lengths[row] for row in rows)
        if used + tokens > budget:
            cuts.append([])
            used = 0
        cuts[-1] += rows
        used += tokens
    return cuts


class FrozenScorer(Generic[E]):
    """A network that only evaluates: a reference policy."""

    def __init__(self, network: nn.Module, micro_batch_tokens: int = 4096) -> None:
        self.network, self.micro_batch_tokens = network, micro_batch_tokens

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> E:
        """The network's evaluation of every row, without a gradient, rows in their order."""
        cuts = micro_batches(batch, self.micro_batch_tokens)
        found: list[E] = [self.network(batch.take(rows).to(self.device)) for rows in cuts]
        order = torch.tensor([row for rows in cuts for row in rows]).argsort()
        merged = {
            item.name: torch.cat([getattr(part, item.name) for part in found]).cpu()[order]
            for item in fields(found[0])  # type: ignore[arg-type]
        }
        return type(found[0])(**merged)


class Learner(FrozenScorer[E]):
    """A network with an optimizer. ``version`` counts the optimizer steps that were taken."""

    def __init__(self, network: nn.Module, settings: OptimizerSettings, micro_batch_tokens: int = 4096) -> None:
        super().__init__(network, micro_batch_tokens)
        self.optimizer = MasterAdamW(network, settings)
        self.version, self.skipped, self._bad = 0, 0, 0

    def gradient(self, batch: Batch, targets: Rows, weights: Tensor, loss: Loss[Any, Any]) -> dict[str, float]:
        """Add the gradient of ``sum(weights * loss)`` to what is accumulated; give that sum as ``loss``, and metrics.

        ``weights`` [batch, time] carry the normalisation of the whole optimizer step. The loss's metrics are weighted
        means with the same weights; one whose name ends in ``/max`` is a maximum. Where a weight is 0 nothing is looked
        at.
        """
        totals: dict[str, float] = {}
        mass = float(weights.sum())
        for rows in micro_batches(batch, self.micro_batch_tokens):
            part, goal = batch.take(rows).to(self.device), targets.take(rows).to(self.device)
            weight = weights[torch.tensor(rows)].to(self.device)
            if not weight.any():
                continue
            self.optimizer.accumulate()
            per_token, metrics = loss(self.network(part), goal)
            total = _weighted(per_token, weight)
            total.backward()  # type: ignore[no-untyped-call]
            totals["loss"] = totals.get("loss", 0.0) + float(total.detach())
            for name, value in metrics.items():
                if name.endswith("/max"):
                    totals[name] = max(totals.get(name, -math.inf), float(value.detach()[weight != 0].max()))
                else:
                    totals[name] = totals.get(name, 0.0) + float(_weighted(value.detach(), weight)) / mass
        return totals

    def step(self) -> StepReport:
        """Clip and update; a gradient that is not finite is skipped and counted, the third in a row stops the run."""
        norm = self.optimizer.norm()
        finite = math.isfinite(norm)
        if finite:
            self._bad = 0
            rate = self.optimizer.step(self.version)
        else:
            self.skipped, self._bad = self.skipped + 1, self._bad + 1
            rate = 0.0
        self.optimizer.clear()
        self.version += 1
        if self._bad >= PATIENCE:
            raise TrainingError(
                f"learner: {PATIENCE} gradients in a row are not finite (last norm {norm}). "
                "Fix: lower optim.lr, or look at the rewards and rollouts of the last steps."
            )
        return StepReport(norm, rate, not finite)

    def weights(self) -> Iterable[tuple[str, Tensor]]:
        """Names and tensors of the compute weights, as the wrapped model names them."""
        model = getattr(self.network, "model", self.network)
        return [(name, parameter.detach()) for name, parameter in model.named_parameters()]

    def state(self) -> State:
        inner = self.optimizer.state()
        return State(inner.tensors, {"version": self.version, "skipped": self.skipped, "bad": self._bad})

    def restore(self, state: State) -> None:
        self.optimizer.restore(state)
        self.version, self.skipped = int(state.values["version"]), int(state.values["skipped"])
        self._bad = int(state.values["bad"])


def _weighted(values: Tensor, weights: Tensor) -> Tensor:
    # where, not a product: 0 x inf at a masked position would be NaN.
    used = weights != 0
    return (torch.where(used, values, 0.0) * weights.to(values.dtype)).sum()


def minibatches(units: Sequence[int], parts: int, order: Sequence[int]) -> list[list[int]]:
    """Rows of each of ``parts`` minibatches.

    Units are dealt out in ``order`` (a permutation of the distinct units), never cut.
    """
    distinct = list(dict.fromkeys(units))
    parts = min(parts, len(distinct))
    part = {distinct[index]: place * parts // len(distinct) for place, index in enumerate(order)}
    return [[row for row, unit in enumerate(units) if part[unit] == number] for number in range(parts)]
