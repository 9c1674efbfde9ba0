"""What every picture of the grid is made of: a sheet of one width with title and notes, colours, numbers, files.

Numbers are coloured on one diverging scale centred on 0 (orange below, blue above), which colour-blind readers can tell
apart. Text that would be too small to read is left out, and a note under the picture says so.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from upslope.errors import InputError

Color: TypeAlias = tuple[float, float, float]
Point: TypeAlias = tuple[float, float]

COLORS = LinearSegmentedColormap.from_list(
    "upslope", ["#b35806", "#f1a340", "#fee0b6", "#fbfbf9", "#c6dcf0", "#5ea3d3", "#08519c"]
)
WALL: Color = (0.553, 0.565, 0.588)
UNKNOWN: Color = (0.89, 0.89, 0.89)
BLANK: Color = (0.985, 0.985, 0.98)  # of a cell without a value
INK, PAPER, LINE, SOFT = "#1c1d1f", "#ffffff", "#d5d7da", "#55585e"
BLUE, ORANGE = "#08519c", "#b35806"
WIDTH, DPI = 8.8, 125  # inches; 1100 pixels
MARGIN, TITLE, NOTE_LINE = 0.2, 0.42, 0.19  # inches
LARGEST, LEAST = 17.0, 6.0  # points, of a number in a cell; LEAST is 10 pixels


# ------------------------------------------------------------------------------------------------------------- numbers
def points_text(points: float) -> str:
    """A terminal's points with their sign: ``+5``, ``-1``, ``+0.5``."""
    return f"{points:+.0f}" if float(points).is_integer() else f"{points:+g}"


def number_text(value: float, decimals: int, sign: bool = False) -> str:
    """``-0.5``; ``0``, never ``-0``; ``-∞`` and ``∞``; ``?`` for NaN. ``sign`` writes ``+`` before what is above 0."""
    if math.isnan(value):
        return "?"
    if math.isinf(value):
        return "-∞" if value < 0 else "∞"
    text = f"{value:.{decimals}f}"
    if float(text) == 0:
        return text.lstrip("-")
    return f"+{text}" if sign and value > 0 else text


def decimals_of(values: Iterable[float]) -> int:
    """The fewest decimals, up to 2, that show every value exactly; else 2 for small values and 1 for large ones."""
    known = [value for value in values if math.isfinite(value)]
    for decimals in (0, 1):
        if all(abs(value - round(value, decimals)) < 1e-6 for value in known):
            return decimals
    return 2 if max(abs(value) for value in known) < 100 else 1


def scale_of(values: Iterable[float]) -> Normalize:
    """Symmetric about 0, so that white is always 0."""
    top = max((abs(value) for value in values if math.isfinite(value)), default=0.0) or 1.0
    return Normalize(-top, top)


def color_of(value: float, scale: Normalize) -> Color:
    """Light grey where the value is not finite; beyond the scale its last colour."""
    if not math.isfinite(value):
        return UNKNOWN
    red, green, blue, _ = COLORS(min(max(float(scale(value)), 0.0), 1.0))
    return (red, green, blue)


def faint(color: Color) -> Color:
    red, green, blue = (1 - 0.3 * (1 - part) for part in color)
    return (red, green, blue)


def ink_on(color: Color) -> str:
    """Dark or white text, whichever reads better on ``color`` (relative luminance, WCAG 2)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in color]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return INK if (luminance + 0.05) / 0.06 > 1.05 / (luminance + 0.05) else "#ffffff"


def text_width(text: str, bold: bool = False) -> float:
    """Width of ``text`` in ems: times the size in points, in points. Kerning is left out."""
    return _advance(text, bold) if "$" in text else sum(_advance(letter, bold) for letter in text)


@lru_cache(maxsize=4096)
def _advance(text: str, bold: bool) -> float:
    font = FontProperties(weight="bold" if bold else "normal", size=100)
    return float(text_to_path.get_text_width_height_descent(text, font, ismath="$" in text)[0]) / 100


def fitted(
    values: Sequence[float], width: float, height: float, sign: bool = False, largest: float = LARGEST
) -> tuple[list[str], float] | None:
    """The numbers as text and the size in points at which each fits into ``width`` x ``height`` inches.

    Decimals that do not fit are rounded away, down to one where the numbers are small and not whole. None where even
    that would be too small to read.
    """
    most = decimals_of(values)
    top = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    for decimals in range(most, -1 if most == 0 or top >= 20 else 0, -1):
        texts = [number_text(value, decimals, sign) for value in values]
        size = min(largest, 72 * height, 72 * width / max(map(text_width, texts), default=1.0))
        if size >= LEAST:
            return texts, size
    return None


# ---------------------------------------------------------------------------------------------------------------- sheet
def sheet(height: float, title: str, notes: Sequence[str] = ()) -> Figure:
    """An empty figure, 1100 pixels wide and ``height`` inches high, with its title and, at the foot, its notes."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor=PAPER)
    FigureCanvasAgg(figure)
    size = min(14.0, 72 * (WIDTH - 2 * MARGIN) / max(text_width(title, bold=True), 1e-9))
    write(figure, MARGIN, 0.14, title, size, bold=True, name="title")
    lines = wrapped(notes, WIDTH - 2 * MARGIN)
    for number, line in enumerate(lines):
        write(figure, MARGIN, height - 0.1 - NOTE_LINE * (len(lines) - number), line, 9, SOFT, name="note")
    return figure


def write(
    figure: Figure,
    left: float,
    top: float,
    text: str,
    size: float,
    color: str = INK,
    bold: bool = False,
    name: str = "",
) -> None:
    """Text with its upper left corner ``left`` and ``top`` inches from that of the figure."""
    width, height = figure.get_size_inches()
    weight = "bold" if bold else "normal"
    figure.text(left / width, 1 - top / height, text, va="top", fontsize=size, weight=weight, color=color, gid=name)


def wrapped(notes: Sequence[str], width: float, size: float = 9.0) -> list[str]:
    """``notes`` joined by dots, in lines that fit ``width`` inches; a note is broken only where it fills a line."""
    lines: list[str] = []
    for note in notes:
        joined = f"{lines[-1]}  ·  {note}" if lines else note
        if text_width(joined) * size <= 72 * width:
            lines[-1:] = [joined]
            continue
        words = note.split(" ")
        lines.append(words[0])
        for word in words[1:]:
            longer = f"{lines[-1]} {word}"
            if text_width(longer) * size <= 72 * width:
                lines[-1] = longer
            else:
                lines.append(word)
    return lines


def foot(notes: Sequence[str]) -> float:
    """Inches that ``sheet`` needs for its notes and the margin under them."""
    lines = len(wrapped(notes, WIDTH - 2 * MARGIN))
    return lines * NOTE_LINE + (0.22 if lines else MARGIN / 2)


def place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at ``left`` and ``top`` inches from the figure's upper left corner."""
    wide, high = figure.get_size_inches()
    return figure.add_axes((left / wide, 1 - (top + height) / high, width / wide, height / high))


# ---------------------------------------------------------------------------------------------------------------- files
def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG. Equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def target_of(path: Path | str) -> Path:
    """``path``; raises ``InputError`` where its folder does not exist."""
    target = Path(path)
    if not target.parent.is_dir():
        raise InputError(str(target), "its folder does not exist", f"create {target.parent} or give another path")
    return target


def save(figure: Figure, path: Path | str) -> Path:
    """Writes ``png_bytes`` to ``path`` and returns it. Raises ``InputError`` where the folder does not exist."""
    target = target_of(path)
    target.write_bytes(png_bytes(figure))
    return target


def data_uri(figure: Figure) -> str:
    """The figure as ``data:image/png;base64,...`` for a page that may load nothing."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(figure)).decode("ascii")
