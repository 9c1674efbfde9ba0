"""The film of a training: its frames, their times, their pixels."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.views import grid_records as eyes
from upslope.errors import InputError
from upslope.views import grid_canvas as canvas
from upslope.views import grid_gif, grid_map
from upslope.views.grid_gif import FRAME, HELD, MOVING, PIXELS, chosen_frames, training_gif
from upslope.worlds.gridworld import parse

WORLD = parse(eyes.SMALL)


def frames_of(path: Path) -> tuple[list[np.ndarray], list[int]]:
    frames, times = [], []
    with Image.open(path) as film:
        for number in range(film.n_frames):  # type: ignore[attr-defined]
            film.seek(number)
            frames.append(np.asarray(film.convert("RGB")).astype(int))
            times.append(film.info["duration"])
    return frames, times


def pixel(frame: np.ndarray, cell: tuple[int, int], panel: int = 0) -> np.ndarray:
    """Colour near the lower right corner of a cell, where no text and no arrow is."""
    inches, scale = grid_map.cell_inches(WORLD, 2), PIXELS / canvas.WIDTH
    slot = (canvas.WIDTH - 3 * canvas.MARGIN) / 2 + canvas.MARGIN
    x = canvas.MARGIN + panel * slot + (cell[1] + 0.9) * inches
    y = canvas.TITLE + 0.22 + grid_map.CAPTION + (cell[0] + 0.9) * inches
    return frame[round(y * scale), round(x * scale)]


def test_a_film_has_a_frame_for_each_snapshot_and_holds_the_last(tmp_path: Path) -> None:
    training = eyes.training_of(WORLD, snapshots=5)
    path = training_gif(WORLD, training, tmp_path / "film.gif")
    frames, times = frames_of(path)
    moved = [float((b.policy - a.policy).abs().max()) for a, b in pairwise(training.snapshots)]
    assert times[:-1] == [10 * round((FRAME + MOVING * change) / 10) for change in moved]
    assert max(times[:-1]) > min(times[:-1]) and times[-1] == HELD >= 2000
    assert all(frame.shape[1] == 800 for frame in frames)
    assert path.stat().st_size < 3_000_000
    with Image.open(path) as film:
        assert film.info["loop"] == 0


def test_cells_have_the_colours_of_the_critic_in_every_frame(tmp_path: Path) -> None:
    training = eyes.training_of(WORLD, snapshots=3)
    first = training.snapshots[0]
    assert first.values is not None
    wild = replace(first, values=8 * first.values)  # beyond the last frame's scale
    training = replace(training, snapshots=(wild, *training.snapshots[1:]))
    frames, _ = frames_of(training_gif(WORLD, training, tmp_path / "film.gif"))
    assert training.last.values is not None
    scale = canvas.scale_of([*training.last.values.tolist(), *WORLD.terminals.values()])
    for frame, snapshot in zip(frames, training.snapshots, strict=True):
        for cell in ((0, 0), (1, 2), (2, 1)):
            value = float(snapshot.values[WORLD.index[cell]])  # type: ignore[index]
            color = np.array(canvas.color_of(value, scale))
            assert np.abs(pixel(frame, cell) - 255 * color).max() <= 6
            assert np.abs(pixel(frame, cell, panel=1) - 255 * np.array(canvas.faint(tuple(color)))).max() <= 6
    assert np.abs(pixel(frames[0], (1, 1)) - 255 * np.array(canvas.WALL)).max() <= 2
    assert (frames[0][2, 2] == 255).all()  # paper is white


def test_each_frame_shows_the_numbers_arrows_and_words_of_its_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = eyes.training_of(WORLD, snapshots=3)
    seen: list[tuple[dict[tuple[int, int], str], int, str, list[float]]] = []
    drawn = grid_gif._picture

    def watched(figure: object) -> np.ndarray:
        maps = figure.axes  # type: ignore[attr-defined]
        (arrows,), (words,) = eyes.named(maps[1], "arrows"), eyes.named(figure, "words")  # type: ignore[arg-type]
        (curve,) = eyes.named(maps[2], "curve")
        tips = {tuple(np.round(path.vertices[3], 6)) for path in arrows.get_paths()}
        seen.append((eyes.numbers_of(maps[0]), len(tips), words.get_text(), list(curve.get_ydata())))
        return drawn(figure)  # type: ignore[arg-type]

    monkeypatch.setattr(grid_gif, "_picture", watched)
    training_gif(WORLD, training, tmp_path / "film.gif")
    for number, (snapshot, (numbers, tips, words, curve)) in enumerate(zip(training.snapshots, seen, strict=True)):
        free = [cell for cell in WORLD.cells if cell not in WORLD.terminals]
        assert snapshot.values is not None
        assert numbers == {cell: canvas.number_text(float(snapshot.values[WORLD.index[cell]]), 2) for cell in free}
        likely = [snapshot.policy[WORLD.index[cell]] >= grid_map.LEAST_DRAWN for cell in free]
        assert tips == sum(int(row.sum()) for row in likely)
        assert f"update {number} of 2" in words and f"{snapshot.moves:,} moves" in words
        assert (
            f"J = {snapshot.truth.expected_return:.2f}" in words and f"rmse {snapshot.truth.critic_rmse:.3f}" in words
        )
        assert curve == [each.truth.expected_return for each in training.snapshots[: number + 1]]


def test_a_learner_without_critic_has_its_policy_and_its_curve(tmp_path: Path) -> None:
    training = eyes.training_of(WORLD, algorithm="grpo", snapshots=2, critic=False)
    frames, _ = frames_of(training_gif(WORLD, training, tmp_path / "film.gif"))
    assert len(frames) == 2 and (frames[0] != frames[1]).any()


def test_equal_trainings_give_equal_bytes(tmp_path: Path) -> None:
    first = training_gif(WORLD, eyes.training_of(WORLD, snapshots=2), tmp_path / "a.gif")
    second = training_gif(WORLD, eyes.training_of(WORLD, snapshots=2), tmp_path / "b.gif")
    assert first.read_bytes() == second.read_bytes()


def test_a_file_that_grows_too_large_loses_frames_but_not_its_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = eyes.training_of(WORLD, snapshots=5)
    whole = training_gif(WORLD, training, tmp_path / "whole.gif")
    monkeypatch.setattr(grid_gif, "MOST_BYTES", whole.stat().st_size - 1)
    smaller = training_gif(WORLD, training, tmp_path / "smaller.gif")
    (all_frames, all_times), (kept, times) = frames_of(whole), frames_of(smaller)
    assert smaller.stat().st_size < whole.stat().st_size and len(kept) == 3 and times[-1] == HELD
    assert sum(times) == sum(all_times)
    assert (kept[0] == all_frames[0]).all() and (kept[-1] == all_frames[-1]).all()


def test_at_most_sixty_frames_evenly_from_the_first_to_the_last() -> None:
    for count in (1, 2, 59, 60, 61, 200, 1001):
        chosen = chosen_frames(count)
        assert chosen[0] == 0 and chosen[-1] == count - 1 and len(chosen) == min(count, 60)
        gaps = np.diff(chosen) if count > 1 else np.ones(1)
        assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


def test_a_policy_that_may_never_end_is_said_to(tmp_path: Path) -> None:
    training = eyes.training_of(WORLD, snapshots=2)
    first = training.snapshots[0]
    endless = replace(first, truth=replace(first.truth, expected_return=-math.inf))
    assert "J = -∞: it may never end" in grid_gif._words(endless, 1)
    assert training_gif(WORLD, replace(training, snapshots=(endless, training.last)), tmp_path / "film.gif").exists()


def test_a_missing_folder_and_another_world_are_input_errors(tmp_path: Path) -> None:
    training = eyes.training_of(WORLD, snapshots=1)
    with pytest.raises(InputError, match="does not exist"):
        training_gif(WORLD, training, tmp_path / "no" / "film.gif")
    with pytest.raises(InputError, match="does not fit a map of 3 states"):
        training_gif(eyes.SIZES["1x3"], training, tmp_path / "film.gif")
