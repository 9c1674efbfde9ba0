"""One HTML page that needs nothing but itself: no network, no server, one inline script named by its hash.

Every text that reaches the page goes through ``clean_html``. Nothing is read as Markdown.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from upslope.errors import InputError
from upslope.views.numbers import short
from upslope.views.safe_text import clean_html

_IMAGES = {b"\x89PNG\r\n\x1a\n": "image/png", b"GIF8": "image/gif", b"\xff\xd8\xff": "image/jpeg"}


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page. ``title`` is plain text; ``html`` is markup whose texts have been escaped."""

    title: str
    html: str


@cache
def asset(name: str) -> str:
    """A file of ``assets/``."""
    return (files("upslope.views") / "assets" / name).read_text(encoding="utf-8").strip()


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """A complete HTML document of ``sections``, with links to them at its top where there are several."""
    names = [_anchor(section.title, index) for index, section in enumerate(sections)]
    links = "".join(
        f'<a href="#{name}">{clean_html(section.title, 60)}</a>' for name, section in zip(names, sections, strict=True)
    )
    body = "".join(
        f'<section id="{name}"><h2>{clean_html(section.title, 120)}</h2>{section.html}</section>'
        for name, section in zip(names, sections, strict=True)
    )
    nav = f"<nav>{links}</nav>" if len(sections) > 1 else ""
    return document(title, subtitle, f"<main>{body}</main>", asset("report.css"), asset("report.js"), nav=nav)


def document(title: str, subtitle: str, body: str, style: str, script: str, nav: str = "", data: str = "") -> str:
    """The frame of every page: ``body`` and ``nav`` are markup, ``data`` is JSON that the script reads by the id
    ``page-data``.

    The content security policy allows inline styles, ``data:`` images and this one script, and nothing else.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    # A block of JSON is no script to the browser; without "<" it cannot end early.
    safe = data.replace("<", "\\u003c")
    block = f'<script type="application/json" id="page-data">{safe}</script>\n' if data else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
        f"<title>{clean_html(title, 120)}</title><style>{style}</style></head>\n"
        f"<body><header><h1>{clean_html(title, 200)}</h1><p>{clean_html(subtitle, 400)}</p>{nav}</header>\n"
        f"{body}\n<footer>Written by upslope. This file needs no network.</footer>"
        f"{block}<script>{script}</script></body></html>\n"
    )


def _anchor(title: str, index: int) -> str:
    return f"{index + 1}-{re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')[:40] or 'section'}"


def text_section(title: str, text: str) -> Section:
    """Plain text; a blank line begins a paragraph."""
    paragraphs = (part for part in re.split(r"\n\s*\n", text) if part.strip())
    return Section(title, "".join(f"<p>{clean_html(part.strip(), 20_000)}</p>" for part in paragraphs))


def missing(text: str) -> str:
    """A note that something is not there, in place of what would show it."""
    return f'<p class="missing">{clean_html(text, 1000)}</p>'


def table_section(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> Section:
    """A table whose columns sort by a click on their head. Numbers are shortened and set right; ``None`` is ``-``.

    Raises ``ValueError`` where a row has another number of cells than ``columns``.
    """
    return Section(title, table(columns, rows, caption))


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> str:
    """The markup of ``table_section``."""
    for index, row in enumerate(rows):
        if len(row) != len(columns):
            raise ValueError(f"row {index} has {len(row)} cells for {len(columns)} columns")
    numeric = [_numeric([row[index] for row in rows]) for index in range(len(columns))]
    head = "".join(
        f'<th scope="col"{right}>{clean_html(column, 80)}</th>'
        for column, right in zip(columns, (' class="n"' if is_number else "" for is_number in numeric), strict=True)
    )
    body = "".join("<tr>" + "".join(map(_cell, row, columns)) + "</tr>" for row in rows)
    note = f'<p class="note">{clean_html(caption, 2000)}</p>' if caption else ""
    return (
        f'<div class="scroll"><table class="sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        f"{note}"
    )


def _numeric(cells: Sequence[Any]) -> bool:
    """Whether a column holds numbers only, so that its head is set to the right like them."""
    known = [cell for cell in cells if cell is not None]
    return bool(known) and all(isinstance(cell, int | float) and not isinstance(cell, bool) for cell in known)


def _cell(value: Any, column: str) -> str:
    label = f' data-label="{clean_html(column, 80)}"'
    if isinstance(value, bool):
        return f"<td{label}>{'yes' if value else 'no'}</td>"
    if isinstance(value, int):
        return (
            f'<td class="n" data-value="{value}"{label}>{value:,}</td>' if abs(value) < 10**15 else _text(value, label)
        )
    if isinstance(value, float):
        sort = f' data-value="{value!r}"' if math.isfinite(value) else ""
        return f'<td class="n"{sort}{label}>{short(value)}</td>'
    return f'<td class="n"{label}>-</td>' if value is None else _text(value, label)


def _text(value: Any, label: str) -> str:
    return f"<td{label}>{clean_html(str(value), 4000)}</td>"


def image_section(title: str, image: Path | bytes | str, caption: str = "", alt: str = "") -> Section:
    """A picture inside the page. ``image`` is a PNG, JPEG, GIF or SVG: a path, its bytes, or a ``data:image/`` address.

    Raises ``InputError`` where the file is missing or is no such picture.
    """
    if isinstance(image, str) and image.startswith("data:image/"):
        address = image
    else:
        address = _data_uri(image)
    note = f"<figcaption>{clean_html(caption, 2000)}</figcaption>" if caption else ""
    text = clean_html(alt or caption or title, 400)
    return Section(title, f'<figure class="picture"><img src="{html.escape(address)}" alt="{text}">{note}</figure>')


def _data_uri(image: Path | bytes | str) -> str:
    where = "image" if isinstance(image, bytes) else str(image)
    try:
        content = image if isinstance(image, bytes) else Path(image).read_bytes()
    except OSError as error:
        raise InputError(where, f"cannot be read ({error.strerror})", "give the path of a picture") from error
    kind = next((kind for mark, kind in _IMAGES.items() if content.startswith(mark)), None)
    if kind is None and re.match(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*|<!DOCTYPE[^>]*>\s*)*<svg[\s>]", content, re.S):
        kind = "image/svg+xml"  # inside <img> an SVG runs no script and loads nothing
    if kind is None:
        raise InputError(where, "not a PNG, JPEG, GIF or SVG", "give a picture in one of these formats")
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
