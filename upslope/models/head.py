"""The output head, chunked: log-probability and entropy of chosen tokens without ever holding all logits.

For hidden states h [n, width] and the head's weight W [vocab, width], with logits z = h W^T / temperature restricted to
the ``support``,

    logprob = z[chosen] - logsumexp(z),        entropy = logsumexp(z) - sum_v softmax(z)_v z_v .

The backward pass recomputes each chunk's logits and uses

    d logprob / d z = onehot(chosen) - p,      d entropy / d z_v = -p_v (log p_v + entropy) .

Peak extra memory is a few times ``chunk x vocab`` numbers, whatever n is. Matrix products run in the dtype of the
weights; softmax and sums in at least float32.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 512
"""Rows of logits that exist at once: 512 x 49,152 float32 are 100 MB."""


def _allowed(support: Tensor | None, vocab: int) -> Tensor | None:
    """[n, vocab] bool: True where a token may be chosen. A row whose ids are all -1 allows everything."""
    if support is None:
        return None
    listed = torch.zeros(support.shape[0], vocab + 1, dtype=torch.bool, device=support.device)
    listed.scatter_(1, torch.where(support < 0, vocab, support), True)
    free = (support < 0).all(dim=1, keepdim=True)
    return listed[:, :vocab] | free


def _logits(hidden: Tensor, weight: Tensor, temperature: float, allowed: Tensor | None) -> Tensor:
    logits = hidden @ weight.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature != 1.0:
        logits /= temperature
    return logits if allowed is None else logits.masked_fill_(~allowed, float("-inf"))


class _Chosen(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, ids: Tensor, support: Tensor | None, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        count = len(ids)
        logprob = torch.empty(count, dtype=dtype, device=hidden.device)
        entropy, normaliser = torch.empty_like(logprob), torch.empty_like(logprob)
        for start in range(0, count, chunk):
            rows = slice(start, start + chunk)
            allowed = _allowed(None if support is None else support[rows], len(weight))
            logits = _logits(hidden[rows], weight, temperature, allowed)
            # Relative to the largest: the entropy of a nearly certain choice is not lost between large numbers.
            top = logits.amax(-1, keepdim=True)
            logits -= top
            masses = logits.exp()
            total = masses.sum(-1)
            log_total = total.log()
            logprob[rows] = logits.gather(-1, ids[rows, None])[:, 0] - log_total
            finite = logits if allowed is None else logits.masked_fill_(~allowed, 0.0)
            entropy[rows] = log_total - torch.linalg.vecdot(masses, finite) / total
            normaliser[rows] = top[:, 0] + log_total
        ctx.save_for_backward(hidden, weight, ids, support, entropy, normaliser)
        ctx.temperature, ctx.chunk = temperature, chunk
        return logprob, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_logprob, grad_entropy = grads
        hidden, weight, ids, support, entropy, normaliser = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight: Tensor | None = None
        with_entropy = bool(grad_entropy.any())
        for start in range(0, len(ids), ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            allowed = _allowed(None if support is None else support[rows], len(weight))
            logits = _logits(hidden[rows], weight, ctx.temperature, allowed)
            # In place where it can be: two such arrays at once, and no fresh memory to fault in.
            log_probs = logits.sub_(normaliser[rows, None])
            delta = log_probs.exp()
            pull = grad_logprob[rows, None]
            if with_entropy:
                finite = log_probs if allowed is None else log_probs.masked_fill_(~allowed, 0.0)
                delta *= finite.add_(entropy[rows, None]).mul_(-grad_entropy[rows, None]).sub_(pull)
            else:
                delta *= -pull
            delta.scatter_add_(1, ids[rows, None], pull)
            if ctx.temperature != 1.0:
                delta /= ctx.temperature
            delta = delta.to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = delta @ weight
            if ctx.needs_input_grad[1]:
                # Each chunk's product in the weights' dtype, the sum of several in at least float32.
                product = delta.T @ hidden[rows]
                if grad_weight is None:
                    grad_weight = product if len(ids) <= ctx.chunk else product.to(entropy.dtype)
                else:
                    grad_weight += product
        if ctx.needs_input_grad[1]:
            grad_weight = torch.zeros_like(weight) if grad_weight is None else grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None, None


def chosen(
    hidden: Float[Tensor, "n width"],
    weight: Float[Tensor, "vocab width"],
    ids: Int[Tensor, " n"],
    support: Int[Tensor, "n choices"] | None = None,
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Log-probability of ``ids`` and entropy of their distributions, in nats; see the module's equations.

    ``support[i]`` lists the ids that were allowed at row i, padded with -1 (all -1: the whole vocabulary). Any loss
    stands on top of these two vectors; both have gradients to ``hidden`` and ``weight``.
    """
    return _Chosen.apply(hidden, weight, ids, support, temperature, chunk)  # type: ignore[no-any-return, no-untyped-call]
