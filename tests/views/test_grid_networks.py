"""The two networks, drawn with the activations that were given."""

from __future__ import annotations

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from torch import Tensor

from tests.views import grid_records as eyes
from upslope.errors import InputError
from upslope.views import grid_canvas as canvas
from upslope.views.grid_networks import network_figure
from upslope.worlds.gridworld import parse

WORLD = parse(eyes.SMALL)
CELL = (2, 1)  # left, right


def one_hot() -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(WORLD.index[CELL]), len(WORLD.cells)).double()


def parts(hidden: int = 5) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Two hidden layers for each network, and four probabilities."""
    draw = torch.Generator().manual_seed(hidden)
    layers = [2 * torch.rand(hidden, generator=draw, dtype=torch.float64) - 1 for _ in range(4)]
    return layers[:2], layers[2:], torch.tensor([0.0, 0.875, 0.0, 0.125], dtype=torch.float64)


def units(axes: Axes) -> list[list[tuple[float, ...]]]:
    """Colours of each column of units, top to bottom."""
    return [[tuple(color[:3]) for color in layer.get_facecolor()] for layer in eyes.named(axes, "units")]


def test_units_have_the_colours_of_their_activations() -> None:
    value_layers, policy_layers, chances = parts()
    figure = network_figure(WORLD, CELL, one_hot(), value_layers, 1.5, policy_layers, chances)
    scale = Normalize(-1, 1)
    axes = [axes for axes in figure.axes if eyes.named(axes, "network")]
    assert [eyes.named(each, "network")[0].get_text() for each in axes] == ["value network", "policy network"]
    for each, layers in zip(axes, (value_layers, policy_layers), strict=True):
        drawn = units(each)
        assert len(drawn) == 3
        for column, given in zip(drawn, [one_hot(), *layers], strict=True):
            assert column == [pytest.approx(canvas.color_of(float(number), scale)) for number in given]


def test_the_scale_widens_for_activations_beyond_one() -> None:
    _, policy_layers, chances = parts()
    figure = network_figure(WORLD, CELL, one_hot(), [torch.tensor([4.0, -2.0])], 1.5, policy_layers, chances)
    (axes, _) = [axes for axes in figure.axes if eyes.named(axes, "network")]
    assert units(axes)[1] == [pytest.approx(canvas.color_of(x, Normalize(-4, 4))) for x in (4.0, -2.0)]
    marks = [tick.get_text() for axes in figure.axes if axes.axison for tick in axes.get_xticklabels()]
    assert marks == ["-4", "0", "+4"]


def test_what_comes_out_is_written_and_moves_that_do_not_exist_are_named() -> None:
    value_layers, policy_layers, chances = parts()
    figure = network_figure(WORLD, CELL, one_hot(), value_layers, torch.tensor(-1.25), policy_layers, chances)
    assert [text.get_text() for text in eyes.named(figure, "value")] == ["-1.25"]
    written = [text.get_text() for text in eyes.named(figure, "probability")]
    assert written == ["no such move", "0.88", "no such move", "0.12"]


def test_large_layers_are_thinned_and_say_so_and_the_input_keeps_the_one_that_is_on() -> None:
    value_layers, policy_layers, chances = parts(64)
    inputs = torch.zeros(40, dtype=torch.float64)
    inputs[19] = 1.0  # not one of the evenly spaced ones
    figure = network_figure(WORLD, CELL, inputs, value_layers, 0.5, policy_layers, chances)
    axes = next(axes for axes in figure.axes if eyes.named(axes, "network"))
    said = [text.get_text() for text in eyes.named(axes, "layer")]
    assert said == ["input", "16 of 40 numbers", "hidden 1", "16 of 64 units", "hidden 2", "16 of 64 units"]
    given, first, _ = units(axes)
    scale = Normalize(-1, 1)
    assert sum(color == pytest.approx(canvas.color_of(1.0, scale)) for color in given) == 1 and len(given) == 16
    evenly = [round(step * 63 / 15) for step in range(16)]
    assert first == [pytest.approx(canvas.color_of(float(value_layers[0][at]), scale)) for at in evenly]


def test_the_state_is_marked_on_the_map_and_named() -> None:
    value_layers, policy_layers, chances = parts()
    figure = network_figure(WORLD, CELL, torch.tensor([0.5, -1.0]), value_layers, 1.5, policy_layers, chances)
    (mark,) = eyes.named(figure.axes[0], "state")
    (x, y) = mark.get_paths()[0].vertices[:-1].mean(axis=0)
    assert (x, y) == pytest.approx((CELL[1] + 0.5, CELL[0] + 0.5))
    assert figure.axes[0].get_title(loc="left") == "the state: row 3, column 2"
    assert eyes.named(figure, "input")[0].get_text() == "goes in as 0.50, -1.00"


@pytest.mark.parametrize(("size", "hidden", "features"), [("1x3", 3, 2), ("6x6", 64, 28), ("30x30", 64, 24)])
def test_networks_of_all_sizes_are_readable(size: str, hidden: int, features: int) -> None:
    world = eyes.SIZES[size]
    cell = next(cell for cell in world.cells if cell not in world.terminals)
    value_layers, policy_layers, chances = parts(hidden)
    inputs = torch.linspace(-1, 1, features, dtype=torch.float64)
    figure = network_figure(world, cell, inputs, [*value_layers, value_layers[0]], -123.456, policy_layers, chances)
    eyes.assert_readable(figure)


def test_equal_networks_give_equal_bytes() -> None:
    value_layers, policy_layers, chances = parts()
    first, second = (
        canvas.png_bytes(network_figure(WORLD, CELL, one_hot(), value_layers, 1.5, policy_layers, chances))
        for _ in range(2)
    )
    assert first == second


def test_a_cell_that_is_no_state_or_ends_the_episode_is_an_input_error() -> None:
    value_layers, policy_layers, chances = parts()
    for cell in ((1, 1), (0, 2), (9, 9)):
        with pytest.raises(InputError, match="is no free cell"):
            network_figure(WORLD, cell, one_hot(), value_layers, 1.5, policy_layers, chances)


def test_activations_of_many_states_at_once_are_an_input_error() -> None:
    _, policy_layers, chances = parts()
    with pytest.raises(InputError, match=r"hidden 1 of a network: has shape \(8, 5\)"):
        network_figure(WORLD, CELL, one_hot(), [torch.zeros(8, 5)], 1.5, policy_layers, chances)
