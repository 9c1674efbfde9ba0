"""The small networks: encodings, initialisation, masked moves, readable layers."""

from __future__ import annotations

import math

import pytest
import torch

from upslope.errors import InputError
from upslope.models import small
from upslope.models.small import PolicyMlp, ValueMlp, activations, encode, policy_at, values_at
from upslope.worlds.gridworld import SIX_BY_SIX, parse


# ---------------------------------------------------------------------------------------------------------- encodings
def test_one_hot_is_the_identity() -> None:
    world = parse(SIX_BY_SIX)
    assert torch.equal(encode(world, "one-hot"), torch.eye(len(world.cells)))


def test_xy_spans_minus_one_to_one_with_equal_steps_on_both_axes() -> None:
    world = parse(". . . . +1\n. . . . .\n. . . . .")
    found = encode(world, "xy", torch.float64)
    assert found[0].tolist() == [-1.0, -1.0]
    assert found[world.index[0, 4]].tolist() == [-1.0, 1.0]
    down, right = found[world.index[1, 0]] - found[0], found[world.index[0, 1]] - found[0]
    assert float(down[0]) == float(right[1]) == 0.5
    assert found.abs().max() <= 1.0


def test_fourier_is_coordinates_and_their_waves() -> None:
    world = parse(SIX_BY_SIX)
    found = encode(world, "fourier", torch.float64)
    octaves = 3  # 1, 2, 4: six cells need half a period of one cell or less
    assert found.shape == (len(world.cells), 2 + 4 * octaves)
    state = world.index[4, 1]
    y, x = 2 * 4 / 5 - 1, 2 * 1 / 5 - 1
    angles = [coordinate * math.pi * 2**k for coordinate in (y, x) for k in range(octaves)]
    wanted = [y, x, *(math.sin(angle) for angle in angles), *(math.cos(angle) for angle in angles)]
    assert found[state].tolist() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("features", ["one-hot", "xy", "fourier"])
@pytest.mark.parametrize("text", [". +1", SIX_BY_SIX, "\n".join([". " * 12] * 5 + ["+1 " * 12])])
def test_no_two_cells_look_alike(features: small.Features, text: str) -> None:
    found = encode(parse(text), features, torch.float64)
    distances = torch.cdist(found, found) + torch.eye(len(found)) * 9
    assert float(distances.min()) > 1e-3


def test_one_hot_of_a_large_world_is_refused() -> None:
    world = parse("\n".join([". " * 70] * 69 + ["+1 " * 70]))
    with pytest.raises(InputError, match=r"found one-hot for 4900 states, expected at most 4096. Fix: use fourier"):
        encode(world, "one-hot")
    assert encode(world, "fourier").shape[0] == 4900


# ----------------------------------------------------------------------------------------------------------- networks
def test_the_initialisation_is_orthogonal_with_its_gains() -> None:
    policy, critic = PolicyMlp(30, 4, (64, 64), seed=1), ValueMlp(30, (64, 64), seed=2)
    for network, last in ((policy, 0.01), (critic, 1.0)):
        layers = [layer for layer in network.body if isinstance(layer, torch.nn.Linear)]
        assert [tuple(layer.weight.shape) for layer in layers[:2]] == [(64, 30), (64, 64)]
        for layer, gain in zip(layers, (math.sqrt(2), math.sqrt(2), last), strict=True):
            weight = layer.weight if layer.weight.shape[0] <= layer.weight.shape[1] else layer.weight.T
            torch.testing.assert_close(weight @ weight.T, gain**2 * torch.eye(len(weight)), atol=1e-5, rtol=1e-4)
            assert not layer.bias.any()


def test_the_seed_decides_the_weights_and_nothing_else_does() -> None:
    first = PolicyMlp(5, 4, (8, 8), seed=1)
    torch.rand(7)
    again, other = PolicyMlp(5, 4, (8, 8), seed=1), PolicyMlp(5, 4, (8, 8), seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.body[0].weight, other.body[0].weight)


def test_moves_that_do_not_exist_have_probability_zero_and_the_rest_sums_to_one() -> None:
    world = parse(SIX_BY_SIX)
    available = world.mdp().available | world.mdp().terminal.unsqueeze(1)
    found = PolicyMlp(len(world.cells), 4, (64, 64), seed=3)(encode(world, "one-hot"), available)
    assert torch.equal(found.exp() == 0, ~available)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(len(world.cells)))
    uniform = available / available.sum(1, keepdim=True)
    assert float((found.detach().exp() - uniform).abs().max()) < 0.02


def test_gradients_stay_finite_where_moves_do_not_exist() -> None:
    inputs, available = torch.eye(3), torch.tensor([[True, False], [True, True], [False, True]])
    network = PolicyMlp(3, 2, (8, 8), seed=0)
    chosen = network(inputs, available)[torch.arange(3), torch.tensor([0, 1, 1])]
    chosen.sum().backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    assert all(gradient is not None and bool(torch.isfinite(gradient).all()) for gradient in gradients)


def test_activations_are_those_that_the_answer_is_made_of() -> None:
    network, inputs = ValueMlp(4, (6, 5), seed=0).double(), torch.eye(4, dtype=torch.float64)
    first, second = activations(network, inputs)
    assert first.shape == (4, 6) and second.shape == (4, 5) and not second.requires_grad
    layers = [layer for layer in network.body if isinstance(layer, torch.nn.Linear)]
    torch.testing.assert_close(first, torch.tanh(inputs @ layers[0].weight.T + layers[0].bias))
    torch.testing.assert_close((second @ layers[2].weight.T + layers[2].bias).squeeze(1), network(inputs))


@pytest.mark.parametrize("count", [2, 40])
def test_looking_up_the_table_is_the_same_as_asking_for_the_states(count: int) -> None:
    """Both ways of ``policy_at`` and ``values_at``, answers and gradients."""
    inputs = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    available = torch.ones(9, 4, dtype=torch.bool)
    policy, critic = PolicyMlp(3, 4, (8, 8), seed=0).double(), ValueMlp(3, (8, 8), seed=0).double()
    state = torch.arange(count).remainder(9).reshape(-1, 1)
    weights = torch.linspace(-1, 1, count, dtype=torch.float64).reshape(-1, 1)
    for network, ours, plain in (
        (policy, policy_at(policy, inputs, available, state)[..., 1], policy(inputs[state], available[state])[..., 1]),
        (critic, values_at(critic, inputs, state), critic(inputs[state])),
    ):
        assert ours.shape == plain.shape == state.shape
        torch.testing.assert_close(ours, plain)
        gradients = [torch.autograd.grad((weights * out).sum(), list(network.parameters())) for out in (ours, plain)]
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other)
