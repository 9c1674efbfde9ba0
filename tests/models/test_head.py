"""The chunked head against the formulas written out on whole logits, and how much memory it takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from upslope.models.head import CHUNK, chosen

VOCAB, WIDTH, ROWS = 11, 4, 9
SUPPORT = torch.tensor(
    [[0, 3, 5], [2, -1, -1], [-1, -1, -1], [10, 4, -1], [-1, 7, 1], [-1, -1, -1], [6, 6, 8], [0, 10, 9], [5, -1, 2]]
)
"""Ragged: three choices, one, none listed (the whole vocabulary), -1 in any place, an id listed twice."""
IDS = torch.tensor([3, 2, 9, 10, 1, 0, 8, 9, 5])
"""Each is in its row's support."""


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    make = lambda *shape: (2 * torch.randn(shape, generator=source, dtype=torch.float64)).to(dtype).requires_grad_()  # noqa: E731
    return make(ROWS, WIDTH), make(VOCAB, WIDTH)


def naive(hidden: Tensor, weight: Tensor, support: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    logits = hidden @ weight.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    logprob, entropy = [], []
    for row in range(len(hidden)):
        listed = [] if support is None else sorted({int(token) for token in support[row] if token >= 0})
        kept = listed or list(range(len(weight)))
        log_p = torch.log_softmax(logits[row, kept], -1)
        logprob.append(log_p[kept.index(int(IDS[row]))])
        entropy.append(-(log_p.exp() * log_p).sum())
    return torch.stack(logprob), torch.stack(entropy)


@pytest.mark.parametrize("support", [None, SUPPORT], ids=["free", "support"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.3])
@pytest.mark.parametrize("chunk", [1, 4, 9, 512])
def test_values_and_gradients_equal_the_naive_formula(chunk: int, temperature: float, support: Tensor | None) -> None:
    pulls = torch.randn(2, ROWS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, grads = [], []
    for compute in (
        lambda h, w: chosen(h, w, IDS, support, temperature, chunk),
        lambda h, w: naive(h, w, support, temperature),
    ):
        hidden, weight = inputs()
        values = torch.stack(compute(hidden, weight))
        found.append(values)
        grads.append(torch.autograd.grad((values * pulls).sum(), (hidden, weight)))
    torch.testing.assert_close(found[0], found[1], atol=1e-12, rtol=1e-12)
    for ours, expected in zip(*grads, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("support", [None, SUPPORT], ids=["free", "support"])
def test_gradcheck(support: Tensor | None) -> None:
    assert torch.autograd.gradcheck(lambda h, w: chosen(h, w, IDS, support, 0.7, 4), inputs())


@pytest.mark.parametrize("which", [0, 1], ids=["logprob alone", "entropy alone"])
def test_either_output_may_be_used_alone(which: int) -> None:
    hidden, weight = inputs()
    ours = torch.autograd.grad(chosen(hidden, weight, IDS, SUPPORT, 0.7, 4)[which].sum(), (hidden, weight))
    expected = torch.autograd.grad(naive(hidden, weight, SUPPORT, 0.7)[which].sum(), (hidden, weight))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-11)


def test_a_frozen_head_or_a_frozen_body_gets_no_gradient() -> None:
    for frozen in (0, 1):
        pair = list(inputs())
        pair[frozen] = pair[frozen].detach()
        chosen(pair[0], pair[1], IDS)[0].sum().backward()
        assert pair[frozen].grad is None
        reference = inputs()
        naive(*reference, None, 1.0)[0].sum().backward()
        torch.testing.assert_close(pair[1 - frozen].grad, reference[1 - frozen].grad, atol=1e-12, rtol=1e-12)


def test_bfloat16_weights_give_float32_sums_of_bfloat16_products() -> None:
    hidden, weight = inputs(torch.bfloat16)
    logprob, entropy = chosen(hidden, weight, IDS, None, 0.9, 4)
    assert logprob.dtype == entropy.dtype == torch.float32
    expected = naive(hidden, weight, None, 0.9)
    torch.testing.assert_close(logprob, expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, expected[1], atol=1e-5, rtol=1e-5)
    grads = torch.autograd.grad(logprob.sum(), (hidden, weight))
    assert [grad.dtype for grad in grads] == [torch.bfloat16, torch.bfloat16]
    exact_h, exact_w = (x.detach().double().requires_grad_() for x in (hidden, weight))
    exact = torch.autograd.grad(naive(exact_h, exact_w, None, 0.9)[0].sum(), (exact_h, exact_w))
    for ours, true in zip(grads, exact, strict=True):
        assert float((ours.double() - true).abs().max()) < 0.05 * float(true.abs().max())


def test_no_rows_give_empty_vectors_and_zero_gradient() -> None:
    hidden, weight = inputs()
    logprob, entropy = chosen(hidden[:0], weight, IDS[:0])
    assert logprob.shape == entropy.shape == (0,)
    (grad,) = torch.autograd.grad(logprob.sum() + entropy.sum(), weight)
    assert torch.equal(grad, torch.zeros_like(weight))


def test_large_logits_neither_overflow_nor_vanish() -> None:
    hidden, weight = (
        torch.full((ROWS, WIDTH), 300.0),
        torch.linspace(-9, 9, VOCAB)[:, None].expand(VOCAB, WIDTH).contiguous(),
    )
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    logprob, entropy = chosen(hidden, weight, torch.full((ROWS,), VOCAB - 1))
    assert torch.equal(logprob, torch.zeros(ROWS))
    assert torch.equal(entropy, torch.zeros(ROWS))
    (logprob.sum() + entropy.sum()).backward()
    for tensor in (hidden, weight):
        assert tensor.grad is not None and torch.isfinite(tensor.grad).all()


def test_the_small_entropy_of_a_nearly_certain_choice_is_kept_in_float32() -> None:
    logits = torch.tensor([[500.0, 490.0, 488.0, -300.0]])
    exact = torch.distributions.Categorical(logits=logits.double()).entropy()
    assert 4e-4 < float(exact) < 8e-4
    for shift in (0.0, -490.0):
        entropy = chosen(torch.ones(1, 1), (logits + shift).T.contiguous(), torch.tensor([0]))[1]
        torch.testing.assert_close(entropy.double(), exact, rtol=0, atol=2e-7)


class Largest(TorchDispatchMode):
    """Records the largest tensor that any operation makes, in numbers, and the names of the operations."""

    def __init__(self) -> None:
        super().__init__()
        self.numel, self.operations = 0, set[str]()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        self.operations.add(str(function))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.numel = max(
                    self.numel, leaf.numel(), leaf.untyped_storage().nbytes() // max(leaf.element_size(), 1)
                )
        return out


@pytest.mark.parametrize("rows", [1100, pytest.param(4096, marks=pytest.mark.slow)])
def test_whole_logits_never_exist_forward_or_backward(rows: int) -> None:
    vocab, width = 50_000, 8
    hidden, weight = torch.randn(rows, width).requires_grad_(), torch.randn(vocab, width).requires_grad_()
    ids = torch.arange(rows)
    with Largest() as seen:
        logprob, entropy = chosen(hidden, weight, ids)
        forward = set(seen.operations)
        (logprob.sum() + entropy.sum()).backward()
    assert any("scatter_add" in name for name in seen.operations - forward)  # the backward pass was watched too
    assert seen.numel <= CHUNK * vocab < rows * vocab / 2
    assert hidden.grad is not None and torch.isfinite(hidden.grad).all()


def test_the_memory_check_sees_whole_logits_where_they_exist() -> None:
    hidden, weight = torch.randn(64, 8), torch.randn(1000, 8)
    with Largest() as seen:
        (hidden @ weight.T).log_softmax(-1)
    assert seen.numel == 64 * 1000
