"""Learning curves with their mean and band, and the clip: lines and dots are the numbers given."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.views import grid_records as eyes
from upslope.errors import InputError
from upslope.types import GridTraining
from upslope.views import grid_canvas as canvas
from upslope.views.grid_curves import STUDENT, clip_figure, curves_figure, mean_and_band
from upslope.worlds.gridworld import parse

WORLD = parse(eyes.SMALL)


def runs(count: int, **settings: object) -> list[GridTraining]:
    return [eyes.training_of(WORLD, seed=seed, **settings) for seed in range(count)]  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------------- curves
def test_seeds_and_their_mean_are_drawn_against_moves_and_the_optimum_is_dashed() -> None:
    group = runs(3)
    figure = curves_figure({"ppo": group})
    left, right = figure.axes
    seeds = [line.get_xydata().tolist() for line in eyes.named(left, "seed")]
    assert seeds == [[[snapshot.moves, snapshot.truth.expected_return] for snapshot in run.snapshots] for run in group]
    (mean,) = eyes.named(left, "mean")
    returns = np.array([[snapshot.truth.expected_return for snapshot in run.snapshots] for run in group])
    assert np.allclose(mean.get_ydata(), returns.mean(axis=0), atol=1e-12)
    best = group[0].last.truth.optimal_return
    line, label = sorted(eyes.named(left, "optimum"), key=lambda artist: hasattr(artist, "get_text"))
    assert set(line.get_ydata()) == {best} and line.get_linestyle() == "--" and label.get_text() == f"J* = {best:.3g}"
    errors = np.array([[snapshot.truth.critic_rmse for snapshot in run.snapshots] for run in group])
    (critic,) = eyes.named(right, "mean")
    assert np.allclose(critic.get_ydata(), np.exp(np.log(errors).mean(axis=0))) and right.get_yscale() == "log"


def test_the_band_is_the_interval_of_student_and_never_above_the_optimum() -> None:
    group = runs(4)
    (band,) = eyes.named(curves_figure({"ppo": group}).axes[0], "band")
    heights = band.get_paths()[0].vertices[:, 1]
    returns = np.array([run.last.truth.expected_return for run in group])
    half = 3.182 * returns.std(ddof=1) / 2
    best = group[0].last.truth.optimal_return
    assert np.isclose(heights, returns.mean() - half, atol=1e-9).any()
    assert np.isclose(heights, min(returns.mean() + half, best), atol=1e-9).any() and heights.max() <= best + 1e-12


def test_mean_and_band_by_hand() -> None:
    found = mean_and_band([[(0.0, 1.0), (2.0, 3.0)], [(0.0, 3.0), (1.0, 3.0), (2.0, 5.0)]])
    half = 12.706 * math.sqrt(0.5) / math.sqrt(2)  # the values at moves 1 are 2 and 3: s = sqrt(1/2), n = 2
    assert found[1] == pytest.approx((1.0, 2.5, 2.5 - half, 2.5 + half))
    assert [row[:2] for row in found] == [(0.0, 2.0), (1.0, 2.5), (2.0, 4.0)]
    shared = mean_and_band([[(0.0, 0.0), (10.0, 10.0)], [(4.0, 2.0), (20.0, 2.0)]])
    assert [row[:2] for row in shared] == [(4.0, 3.0), (10.0, 6.0)]  # only where both were measured
    assert mean_and_band([[(0.0, 1.0)], [(1.0, 2.0)]]) == [] and mean_and_band([[], [(0.0, 1.0)]]) == []
    logs = mean_and_band([[(0.0, 1.0)], [(0.0, 100.0)]], log=True)
    assert logs[0][1] == pytest.approx(10.0) and logs[0][2] * logs[0][3] == pytest.approx(100.0)


def test_the_quantiles_of_student_are_right() -> None:
    for degrees, quantile in enumerate(STUDENT, 1):
        x = torch.linspace(0, quantile, 200_001, dtype=torch.float64)
        constant = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - 0.5 * math.log(degrees * math.pi)
        density = torch.exp(constant - (degrees + 1) / 2 * torch.log1p(x * x / degrees))
        assert float(torch.trapezoid(density, x)) == pytest.approx(0.475, abs=4e-5)


def test_groups_have_colours_of_their_own_and_a_key_with_the_number_of_seeds() -> None:
    figure = curves_figure({"PPO": runs(2), "GRPO": runs(1, algorithm="grpo", critic=False)})
    assert [text.get_text() for text in eyes.named(figure, "legend")] == ["PPO (2 seeds)", "GRPO (1 seed)"]
    keys = [line.get_color() for line in eyes.named(figure, "key")]
    assert keys == [line.get_color() for line in eyes.named(figure.axes[0], "mean")] and len(set(keys)) == 2
    assert len(eyes.named(figure.axes[1], "mean")) == 1  # GRPO has no critic
    eyes.assert_readable(figure)


def test_without_critics_there_is_one_wide_panel() -> None:
    figure = curves_figure({"grpo": runs(2, critic=False)})
    (axes,) = figure.axes
    assert axes.get_position().width > 0.8


def test_points_where_the_policy_may_never_end_are_left_out_and_said_to_be() -> None:
    run = eyes.training_of(WORLD)
    first = run.snapshots[0]
    endless = replace(first, truth=replace(first.truth, expected_return=-math.inf, critic_rmse=math.inf))
    figure = curves_figure({"q": [replace(run, snapshots=(endless, *run.snapshots[1:]))]})
    (mean,) = eyes.named(figure.axes[0], "mean")
    assert mean.get_xdata().tolist() == [1000.0, 2000.0, 3000.0]
    assert "J is -∞" in eyes.notes_of(figure)


def test_errors_that_are_only_rounding_are_below_the_axis() -> None:
    run = eyes.training_of(WORLD)
    exact = replace(run.last, truth=replace(run.last.truth, critic_rmse=1e-15))
    figure = curves_figure({"q": [replace(run, snapshots=(*run.snapshots[:-1], exact))]})
    assert figure.axes[1].get_ylim()[0] == 1e-5 and "below the axis" in eyes.notes_of(figure)
    assert "below the axis" not in eyes.notes_of(curves_figure({"ppo": [run]}))


def test_many_groups_stay_readable() -> None:
    names = ["value network alone", "policy network alone", "PPO", "GRPO", "Q-learning", "REINFORCE", "bump", "slip"]
    figure = curves_figure({name: runs(1) for name in names})
    eyes.assert_readable(figure)
    styles = {(line.get_color(), line.get_linestyle()) for line in eyes.named(figure.axes[0], "mean")}
    assert len(styles) == len(names)


def test_curves_of_nothing_or_of_two_worlds_are_input_errors() -> None:
    other = eyes.training_of(parse(". . +9\n. # .\n-1 . .\n"))
    for groups, words in (({}, "without trainings"), ({"a": []}, "without"), ({"a": [*runs(1), other]}, "different J")):
        with pytest.raises(InputError, match=words):
            curves_figure(groups)


# ----------------------------------------------------------------------------------------------------------------- clip
RATIOS = torch.tensor([1.0, 1.1, 1.5, 0.5, 1.5, 0.5, 1.2, 0.8, 1.0], dtype=torch.float64)
GAINS = torch.tensor([1.0, 2.0, 2.0, 1.0, -1.0, -2.0, 3.0, -3.0, 0.0], dtype=torch.float64)


def test_dots_are_the_moves_and_crosses_those_whose_gradient_the_clip_removes() -> None:
    figure = clip_figure(RATIOS, GAINS, 0.2)
    up, down = figure.axes

    def points(name: str, axes: object) -> list[list[float]]:
        (dots,) = eyes.named(axes, name)  # type: ignore[arg-type]
        return dots.get_offsets().tolist()

    assert points("free", up) == [pytest.approx(point) for point in ([1.0, 1.0], [1.1, 2.2], [0.5, 0.5], [1.2, 3.6])]
    assert points("clipped", up) == [pytest.approx([1.5, 2.4])]
    assert points("free", down) == [pytest.approx([1.5, -1.5]), pytest.approx([0.8, -2.4])]
    assert points("clipped", down) == [pytest.approx([0.5, -1.6])]
    assert eyes.title_of(figure) == "The clip at work: 2 of 9 moves clipped (22.2 %)"
    assert "not drawn: 1 of gain 0" in eyes.notes_of(figure)


def test_the_line_is_the_objective_of_the_mean_gain() -> None:
    figure = clip_figure(RATIOS, GAINS, 0.2)
    for axes, gain in zip(figure.axes, (9 / 5, -2.0), strict=True):
        (line,) = eyes.named(axes, "objective")
        ratio, height = line.get_xdata(), line.get_ydata()
        by_hand = np.minimum(ratio * gain, np.clip(ratio, 0.8, 1.2) * gain)
        assert np.allclose(height, by_hand) and ratio.min() < 0.8 < 1.2 < ratio.max()


def test_without_a_clip_the_lines_are_straight_and_nothing_is_crossed() -> None:
    figure = clip_figure(RATIOS, GAINS, None)
    assert "plain ratio x gain of 9 moves" in eyes.title_of(figure)
    assert all(len(dots.get_offsets()) == 0 for dots in eyes.named(figure, "clipped"))
    (line,) = eyes.named(figure.axes[0], "objective")
    assert np.allclose(line.get_ydata(), line.get_xdata() * 9 / 5)


def test_clip_pictures_are_readable_and_repeat_bit_for_bit() -> None:
    snapshot = eyes.training_of(WORLD).snapshots[1]
    figure = clip_figure(snapshot.ratios, snapshot.gains, 0.2)
    eyes.assert_readable(figure)
    assert canvas.png_bytes(figure) == canvas.png_bytes(clip_figure(snapshot.ratios, snapshot.gains, 0.2))


def test_a_batch_of_one_sign_still_shows_both_sides() -> None:
    figure = clip_figure(torch.tensor([1.0, 1.3]), torch.tensor([1.0, 2.0]), 0.2)
    (line,) = eyes.named(figure.axes[1], "objective")
    ratio = np.asarray(line.get_xdata())
    assert np.allclose(line.get_ydata(), -np.maximum(ratio, 0.8))


def test_a_snapshot_without_ratios_is_an_input_error() -> None:
    with pytest.raises(InputError, match="0 ratios and 0 gains"):
        clip_figure(torch.zeros(0), torch.zeros(0), 0.2)
