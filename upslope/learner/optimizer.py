"""AdamW on float32 master weights under low-precision compute weights.

The compute weights (bfloat16, say) are the ones that sampler and learner use. Their gradients are summed over
micro-batches in the master's float32, the update is made there, and the result is rounded back. Where the compute
weights are float32 or float64 they are their own master.

A master does not start at its compute weight but at a random point of the stretch that rounds to it (``unrounded``).
Started at the weight itself, in the middle of that stretch, no update smaller than half the spacing would show: at a
rate of 1e-5 most weights of a language model would stand still for tens of steps, and a bfloat16 run would lag behind
the same run in float32. From a random point a share of the weights rounds over at once, and the mean change of the
compute weights is the mean update.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from upslope.seeds import derive
from upslope.types import State

BETAS = (0.9, 0.99)
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """``steps`` is the number of optimizer steps of the whole run.

    ``boosts`` multiplies ``lr`` for parameters by prefix.
    """

    lr: float
    steps: int
    warmup: int = 0
    decay: Literal["constant", "linear", "cosine"] = "constant"
    clip_norm: float = 1.0
    boosts: Mapping[str, float] | None = None

    def rate(self, step: int) -> float:
        """Learning rate of optimizer step ``step`` (from 0): linear warm-up, then constant or down to a tenth."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.decay == "constant" or self.steps <= self.warmup + 1:
            return self.lr
        share = min(1.0, (step - self.warmup) / (self.steps - self.warmup - 1))
        shape = 1 - share if self.decay == "linear" else 0.5 * (1 + math.cos(math.pi * share))
        return self.lr * (0.1 + 0.9 * shape)


@torch.no_grad()
def unrounded(weight: Float[Tensor, "*shape"], name: str) -> Float[Tensor, "*shape"]:
    """float32 numbers that round to the 16-bit ``weight``, drawn uniformly from those that do; zeros stay zeros.

    What a weight was before it was rounded is not known. The draw belongs to ``name``, whatever the run's seed is.
    """
    bits = weight.view(torch.int16)  # one more or less is the next number away from zero or towards it
    middle = weight.to(torch.float32)
    away = middle / 2 + (bits + 1).view(weight.dtype).to(torch.float32) / 2
    towards = middle / 2 + (bits - 1).view(weight.dtype).to(torch.float32) / 2
    source = torch.Generator().manual_seed(derive(0, "unrounded", name))
    # Not quite to the ends, which round to the neighbour where that one is even.
    share = torch.rand(weight.shape, generator=source).mul_(0.998).add_(0.001).to(weight.device)
    return torch.where(weight == 0, middle, torch.lerp(towards, away, share))


class MasterAdamW:
    """The optimizer of one network."""

    def __init__(self, network: nn.Module, settings: OptimizerSettings) -> None:
        self.settings = settings
        self.compute = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.master = {name: self._master(name, p) for name, p in self.compute.items()}
        boosts = settings.boosts or {}
        groups: dict[float, list[Tensor]] = {}
        for name, tensor in self.master.items():
            boost = next((value for prefix, value in boosts.items() if name.startswith(prefix)), 1.0)
            groups.setdefault(boost, []).append(tensor)
        self.optimizer = torch.optim.AdamW(
            [{"params": tensors, "boost": boost} for boost, tensors in groups.items()],
            lr=settings.lr, betas=BETAS, weight_decay=0.0, fused=True,
        )  # fmt: skip

    @staticmethod
    def _master(name: str, parameter: Tensor) -> Tensor:
        wide = torch.promote_types(parameter.dtype, torch.float32)
        if parameter.dtype == wide:
            return parameter
        return unrounded(parameter.detach(), name).requires_grad_()

    def accumulate(self) -> None:
        """Add the compute weights' gradients to the master's, in the master's dtype, and clear them.

        The learner does so when another backward pass is to come, or the update: while the only pass of a step runs,
        the sums, twice the size of 16-bit weights, are not there yet.
        """
        for name, parameter in self.compute.items():
            master = self.master[name]
            if master is parameter or parameter.grad is None:
                continue
            if master.grad is None:
                master.grad = parameter.grad.to(master.dtype)
            else:
                master.grad += parameter.grad
            parameter.grad = None

    def gradients(self) -> dict[str, Tensor]:
        """The accumulated gradient by name, in the master's dtype; parameters that got none are left out."""
        self.accumulate()
        return {name: master.grad for name, master in self.master.items() if master.grad is not None}

    def clear(self) -> None:
        """Forget the accumulated gradient."""
        for tensor in (*self.master.values(), *self.compute.values()):
            tensor.grad = None

    def norm(self) -> float:
        """Norm of the accumulated gradient, after which it is scaled down to at most ``clip_norm``."""
        self.accumulate()
        return float(torch.nn.utils.clip_grad_norm_(list(self.master.values()), self.settings.clip_norm))

    @torch.no_grad()
    def step(self, number: int) -> float:
        """Update with the accumulated gradient and round back; returns the learning rate."""
        rate = self.settings.rate(number)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["boost"]
        self.optimizer.step()
        self._round()
        return rate

    @torch.no_grad()
    def _round(self) -> None:
        for name, parameter in self.compute.items():
            if self.master[name] is not parameter:
                parameter.copy_(self.master[name])

    def state(self) -> State:
        """Master weights and moments; the compute weights are derived."""
        tensors: dict[str, Tensor] = {}
        for name, master in self.master.items():
            tensors[f"weight.{name}"] = master.detach()
            for key, value in self.optimizer.state.get(master, {}).items():
                tensors[f"{key}.{name}"] = value
        return State(tensors)

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Bit for bit what ``state`` gave; moments and gradients that were here before are forgotten."""
        self.clear()
        for name, master in self.master.items():
            master.copy_(state.tensors[f"weight.{name}"])
            kept = {key: state.tensors[f"{key}.{name}"] for key in MOMENTS if f"{key}.{name}" in state.tensors}
            self.optimizer.state.pop(master, None)
            if kept:
                # The fused step wants its count, too, where the weights are.
                self.optimizer.state[master] = {key: value.clone().to(master.device) for key, value in kept.items()}
        self._round()
