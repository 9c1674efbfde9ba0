"""A training on the grid as an animated picture: values and arrows while they are learned, and how far they are."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from upslope.errors import InputError
from upslope.types import GridSnapshot, GridTraining
from upslope.views import grid_map as maps
from upslope.views.grid_canvas import (
    BLANK,
    BLUE,
    INK,
    LINE,
    MARGIN,
    PAPER,
    SOFT,
    TITLE,
    WIDTH,
    color_of,
    faint,
    fitted,
    foot,
    ink_on,
    place,
    scale_of,
    sheet,
    target_of,
)
from upslope.views.grid_map import Grid

PIXELS = 800
MOST_FRAMES, MOST_BYTES = 60, 3_000_000
FRAME, MOVING, HELD = 80, 520, 4000  # milliseconds, of a frame, on top of that while the policy moves, and of the last
CHART = 1.15  # inches
NAMES = {"ppo": "PPO", "grpo": "GRPO", "reinforce": "REINFORCE", "q-learning": "Q-learning"}


@dataclass(frozen=True, slots=True)
class Film:
    """The parts of the picture that change from frame to frame."""

    figure: Figure
    cells: PolyCollection | None
    numbers: list[Text]
    policy_cells: PolyCollection
    arrows: PolyCollection | None
    line: Line2D
    dot: Line2D
    words: Text


def training_gif(world: Grid, training: GridTraining, path: Path | str) -> Path:
    """Writes an animated GIF of ``training``, 800 pixels wide, and returns its path.

    Each frame is a snapshot: the critic's values (where the learner has one) and the policy's arrows, and below them
    J(pi) up to there against the exact J*. At most 60 frames, evenly chosen, fewer where the file would pass 3 MB.
    Frames stay longer where the policy moves farther, and the last is held for 4 seconds. Colours are those of the last
    frame's values throughout. Equal trainings give equal bytes. Raises ``InputError`` where the training does not fit
    the world, J* is -inf or the folder does not exist.
    """
    target = target_of(path)
    snapshots = training.snapshots
    if not snapshots:
        raise InputError("training", "has no snapshots", "pass a recorded training")
    for snapshot in snapshots:
        maps.fit_world(world, "policy", snapshot.policy, len(world.index), len(world.ACTIONS))
    shown = [snapshots[at] for at in chosen_frames(len(snapshots))]
    critic = all(snapshot.values is not None for snapshot in shown)
    tables = [maps.shown_values(world, snapshot.values) for snapshot in shown if snapshot.values is not None and critic]
    free = [state for cell, state in world.index.items() if cell not in world.terminals]
    across = maps.pair_across(world)
    cell = maps.cell_inches(world, across)
    found = fitted([table[state] for table in tables for state in free], 0.86 * cell, 0.3 * cell) if critic else None
    scale = scale_of(tables[-1] if critic else world.terminals.values())
    film = _film(world, training, across, cell, scale, critic, found[1] if found else None)
    pictures = []
    for number, snapshot in enumerate(shown):
        texts = found[0][number * len(free) : (number + 1) * len(free)] if found else []
        _show(film, world, snapshot, tables[number] if critic else None, scale, texts, cell)
        film.words.set_text(_words(snapshot, snapshots[-1].iteration))
        seen = [(each.moves, each.truth.expected_return) for each in snapshots if each.moves <= snapshot.moves]
        curve = [(x, y) for x, y in seen if math.isfinite(y)]
        film.line.set_data([x for x, _ in curve], [y for _, y in curve])
        film.dot.set_data([x for x, _ in curve[-1:]], [y for _, y in curve[-1:]])
        pictures.append(_picture(film.figure))
    target.write_bytes(_encoded(pictures, frame_times(shown)))
    return target


def frame_times(shown: Sequence[GridSnapshot]) -> list[int]:
    """Milliseconds of each frame: the longer, the farther the policy goes from it to the next one; the last is held."""
    times = [FRAME + MOVING * float((b.policy - a.policy).abs().nan_to_num().max()) for a, b in pairwise(shown)]
    return [10 * round(time / 10) for time in times] + [HELD]  # a GIF counts hundredths of a second


def chosen_frames(count: int, most: int = MOST_FRAMES) -> list[int]:
    """At most ``most`` of ``count`` snapshots, evenly spaced, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(step * (count - 1) / (most - 1)) for step in range(most)})


def _film(
    world: Grid, training: GridTraining, across: int, cell: float, scale: Normalize, critic: bool, size: float | None
) -> Film:
    """The first picture: the maps, and the chart below them."""
    notes = maps.mark_notes(world, cell)
    notes += [maps.NO_NUMBERS] if critic and size is None else []
    notes += [] if critic else ["this learner has no critic: it predicts no value"]
    down = 1 if across == 2 or not critic else 2
    depth = maps.CAPTION + cell * world.rows + 0.08
    top = TITLE + 0.22 + depth * down
    title = f"{NAMES.get(training.algorithm, training.algorithm)} learns the grid"
    beside = not critic and across == 2
    figure = sheet(top + (0.1 if beside else CHART + 0.75) + foot(notes), title, notes)
    slot = (WIDTH - (across + 1) * MARGIN) / across + MARGIN
    words = figure.text(MARGIN / WIDTH, 1 - 0.47 / figure.get_size_inches()[1], "", va="top", fontsize=10, color=INK)
    words.set_gid("words")
    captions = ["the critic: predicted points from here"] if critic else []
    captions += ["the policy: the longer the arrow, the likelier"]
    axes = []
    for number, caption in enumerate(captions):
        row, column = divmod(number, across)
        left, high = MARGIN + column * slot, TITLE + 0.22 + maps.CAPTION + row * depth
        axes.append(place(figure, left, high, cell * world.columns, cell * world.rows))
        axes[-1].set_title(caption, loc="left", fontsize=10, color=SOFT, pad=6)
    shades = [BLANK] * len(world.index)
    for at, points in world.terminals.items():
        shades[world.index[at]] = color_of(points, scale)
    drawn = [maps.draw_cells(each, world, shades) for each in axes]
    for each in axes:
        maps.draw_marks(each, world, shades, cell)
        maps.draw_terminals(each, world, shades, cell)
    numbers = []
    for row, column in [at for at in world.index if at not in world.terminals] if size is not None else []:
        middle = (column + 0.5, row + 0.5)
        numbers.append(axes[0].text(*middle, "", ha="center", va="center_baseline", fontsize=size, gid="number"))
    arrows = maps.draw_policy(axes[-1], world, training.snapshots[0].policy, cell)
    if beside:
        high = max(min(cell * world.rows - 0.45, 2.6), 0.6)
        box = (MARGIN + slot + 0.45, TITLE + 0.22 + maps.CAPTION, slot - MARGIN - 0.6, high)
    else:
        box = (MARGIN + 0.45, top + 0.32, WIDTH - 2 * MARGIN - 0.6, CHART)
    line, dot = _chart(figure, training.snapshots, box)
    return Film(figure, drawn[0] if critic else None, numbers, drawn[-1], arrows, line, dot, words)


def _chart(
    figure: Figure, snapshots: Sequence[GridSnapshot], box: tuple[float, float, float, float]
) -> tuple[Line2D, Line2D]:
    """J(pi) against the moves made, J* dashed; the line and the dot at its end are filled in later."""
    axes: Axes = place(figure, *box)
    best = snapshots[-1].truth.optimal_return
    known = [each.truth.expected_return for each in snapshots if math.isfinite(each.truth.expected_return)]
    if not math.isfinite(best):
        raise InputError("training", f"has J* = {best}", "let every start have a way to an end")
    low = min([best - 1.0, *known])
    axes.set(xlim=(0, max(snapshots[-1].moves, 1)), ylim=(low - 0.05 * (best - low), best + 0.12 * (best - low)))
    axes.set_title("J(π), points of an episode", loc="left", fontsize=10, color=SOFT, pad=6)
    axes.set_title(f"- - -  J* = {best:.4g}", loc="right", fontsize=10, color=INK, pad=6)
    axes.set_xlabel("moves made in the world", fontsize=10, color=SOFT)
    axes.axhline(best, color=INK, linewidth=1.3, linestyle=(0, (5, 3)), gid="optimum")
    axes.grid(color=LINE, linewidth=0.7)
    axes.tick_params(labelsize=9.5, colors=INK, length=0)
    axes.yaxis.set_major_locator(MaxNLocator(3 if box[3] < 1.5 else 5))
    axes.xaxis.set_major_locator(MaxNLocator(6 if box[2] > 5 else 4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(LINE)
    (line,) = axes.plot([], [], color=BLUE, linewidth=2.2, gid="curve")
    (dot,) = axes.plot([], [], "o", color=BLUE, markersize=7, clip_on=False, gid="now")
    return line, dot


def _show(
    film: Film,
    world: Grid,
    snapshot: GridSnapshot,
    table: list[float] | None,
    scale: Normalize,
    texts: Sequence[str],
    cell: float,
) -> None:
    """Puts a snapshot into the picture."""
    if table is not None and film.cells is not None:
        colors = [color_of(value, scale) for value in table]
        pale = [faint(color) for color in colors]
        for at in world.terminals:
            pale[world.index[at]] = colors[world.index[at]]
        walls = [maps.WALL] * len(world.walls)
        film.cells.set_facecolor([*colors, *walls])  # type: ignore[arg-type]
        film.policy_cells.set_facecolor([*pale, *walls])  # type: ignore[arg-type]
        states = [state for at, state in world.index.items() if at not in world.terminals]
        for text, words, state in zip(film.numbers, texts, states, strict=bool(film.numbers)):
            text.set(text=words, color=ink_on(colors[state]))
    if film.arrows is not None:
        outlines, shades = maps.arrows_of(world, snapshot.policy.detach().cpu().tolist())
        film.arrows.set_verts(outlines)
        film.arrows.set_facecolor(shades)  # type: ignore[arg-type]


def _words(snapshot: GridSnapshot, last: int) -> str:
    truth = snapshot.truth
    parts = [f"update {snapshot.iteration} of {last}", f"{snapshot.moves:,} moves"]
    parts += [
        f"J = {truth.expected_return:.2f}" if math.isfinite(truth.expected_return) else "J = -∞: it may never end"
    ]
    parts += [f"J* - J = {truth.gap:.3f}"] if math.isfinite(truth.gap) else []
    parts += [f"critic's rmse {truth.critic_rmse:.3f}"] if truth.critic_rmse is not None else []
    return "   ·   ".join(parts)


def _picture(figure: Figure) -> np.ndarray:
    """The figure as it stands [height, 800, 3]."""
    figure.set_dpi(PIXELS / WIDTH)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _encoded(pictures: Sequence[np.ndarray], times: Sequence[int]) -> bytes:
    """All frames in one palette, so that nothing flickers; every second one left out until the file is small enough."""
    palette = _palette()
    frames = [_in_palette(picture, palette) for picture in pictures]
    kept = list(range(len(frames)))
    while True:
        buffer = io.BytesIO()
        first, *others = (frames[at] for at in kept)
        shown = [sum(times[a:b]) for a, b in pairwise([*kept, len(frames)])]
        first.save(buffer, "GIF", save_all=True, append_images=others, duration=shown, loop=0, optimize=False)
        if buffer.tell() <= MOST_BYTES or len(kept) <= 2:
            return buffer.getvalue()
        kept = [kept[at] for at in chosen_frames(len(kept), len(kept) // 2 + 1)]


def _in_palette(picture: np.ndarray, palette: np.ndarray) -> Image.Image:
    """Each pixel of ``picture`` [height, width, 3] as the nearest colour of ``palette`` [colours, 3], exactly."""
    whole = picture.astype(np.int32)
    colors, places = np.unique(whole @ np.array([65536, 256, 1], dtype=np.int32), return_inverse=True)
    apart = np.stack([colors >> 16, colors >> 8 & 255, colors & 255], axis=1)[:, None] - palette[None]
    nearest = (apart * apart).sum(axis=2).argmin(axis=1).astype(np.uint8)
    frame = Image.fromarray(nearest[places].reshape(picture.shape[:2]), "P")
    frame.putpalette(palette.astype(np.uint8).tobytes())
    return frame


def _palette() -> np.ndarray:
    """The colours that the pictures are made of: values, the same paler, greys from ink to paper, blues of the line."""
    scale = Normalize(-1, 1)
    values = [color_of(step / 31 - 1, scale) for step in range(63)]
    greys = [(shade / 47,) * 3 for shade in range(48)]
    blues = [tuple(1 - step / 8 * (1 - part) for part in to_rgb(BLUE)) for step in range(1, 9)]
    fixed = [to_rgb(INK), to_rgb(PAPER), to_rgb(LINE), to_rgb(SOFT), maps.WALL, BLANK]
    colors = [*fixed, *values, *map(faint, values), *greys, *blues]
    return np.array([[round(255 * part) for part in color] for color in colors], dtype=np.int32)
