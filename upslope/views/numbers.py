"""Numbers as people read them. Every function takes what a metrics file may hold and never raises."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

BLOCKS = "▁▂▃▄▅▆▇█"
MISSING = "-"


def finite(row: Mapping[str, Any], name: str) -> float | None:
    """``row[name]`` as a float; ``None`` where it is missing, not a number, NaN or infinite."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def short(value: float | None) -> str:
    """About four significant characters: ``0.412``, ``12.3``, ``1,234``, ``1.2e-05``; ``-`` for a missing number."""
    if value is None or not math.isfinite(value):
        return MISSING
    size = abs(value)
    if size == 0:
        return "0"
    if size < 0.0005:
        return f"{value:.1e}"
    if size < 9.9995:
        return f"{value:.3f}"
    if size < 999.95:
        return f"{value:.1f}"
    return f"{value:,.0f}" if size < 1e9 else f"{value:.2e}"


def whole(value: float | None) -> str:
    """A count: ``24``, ``1,234``."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:,.0f}"


def percent(share: float | None) -> str:
    """``0.123`` as ``12 %``."""
    return MISSING if share is None or not math.isfinite(share) else f"{100 * share:.0f} %"


def duration(seconds: float | None) -> str:
    """``12 ms``, ``0.42 s``, ``12.3 s``, ``2:31``, ``1:02:31`` or ``3 d 4 h``."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return MISSING
    if seconds < 0.0995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    minutes, hours = whole // 60, whole // 3600
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minutes % 60:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def buckets(values: Sequence[float | None], count: int) -> list[float | None]:
    """``values`` in at most ``count`` runs of equal length, each the mean of its numbers (``None`` if it has none)."""
    if len(values) <= count:
        return list(values)
    means: list[float | None] = []
    for index in range(count):
        part = values[index * len(values) // count : (index + 1) * len(values) // count]
        known = [value for value in part if value is not None]
        means.append(sum(known) / len(known) if known else None)
    return means


def sparkline(values: Sequence[float | None], width: int = 24) -> str:
    """The course of ``values`` in at most ``width`` block characters, from their smallest to their largest."""
    finite_values = [value if value is not None and math.isfinite(value) else None for value in values]
    course = [value if value is not None and math.isfinite(value) else None for value in buckets(finite_values, width)]
    known = [value for value in course if value is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    # Halves first: the range of two huge numbers of opposite sign overflows.
    span = high / 2 - low / 2
    top = len(BLOCKS) - 1

    def block(value: float | None) -> str:
        if value is None:
            return " "
        return BLOCKS[round(top * ((value / 2 - low / 2) / span))] if span > 0 else BLOCKS[top // 2]

    return "".join(block(value) for value in course)
