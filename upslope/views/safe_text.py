"""Text from models, data and users, made fit to be shown.

A completion may hold anything: escape sequences that write to the clipboard, marks that turn the line round, rich's own
markup. ``clean`` is the only way from such text to a terminal; ``clean_html`` the only way to a page. Terminal output
must also be built with ``rich.text.Text``, never by printing a string, since a string is read as markup.
"""

from __future__ import annotations

import html
import unicodedata

from rich.cells import cell_len

ELLIPSIS = "…"
_BREAKS = {"\n": "\\n", "\t": "\\t", "\u2028": "\\n", "\u2029": "\\n"}
_KEPT_BREAKS = {"\n": "\n", "\t": "\t", "\u2028": "\n", "\u2029": "\n"}
_JOINERS = "\u200c\u200d"  # scripts such as Persian and Hindi are misspelt without them
_VARIATION_SELECTORS = (range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0))  # invisible, and able to carry hidden bytes


def _shown(character: str, breaks: dict[str, str]) -> str:
    """What stands for one character: itself, an escape, a replacement, or nothing."""
    if character in breaks:
        return breaks[character]
    if " " <= character <= "~":
        return character
    category = unicodedata.category(character)
    if category == "Cc" or (category == "Cf" and character not in _JOINERS):
        return ""
    if category == "Cs":
        return "\ufffd"  # a lone surrogate cannot be written as UTF-8
    if any(ord(character) in selectors for selectors in _VARIATION_SELECTORS):
        return ""
    return character


def clean(text: str, limit: int, keep_breaks: bool = False) -> str:
    """``text`` without control characters and at most ``limit`` terminal cells wide, ending in … where it was cut.

    C0 and C1 controls, DEL, bidirectional and other invisible format characters, and variation selectors are removed; a
    newline and a tab are shown as ``\\n`` and ``\\t`` (or kept, with ``keep_breaks``, where they count as no width); a
    lone surrogate becomes U+FFFD. Wide characters count as two cells. At most ``4 * limit`` code points are kept, so
    that marks of no width cannot pile up. Raises ``ValueError`` where ``limit`` is below 1.
    """
    if limit < 1:
        raise ValueError(f"limit must be at least 1 cell, got {limit}")
    breaks = _KEPT_BREAKS if keep_breaks else _BREAKS
    scanned = text[: 16 * limit]  # bounds the work on a line of many megabytes
    pieces: list[tuple[str, int]] = []
    width, cut = 0, len(scanned) < len(text)
    for character in scanned:
        piece = _shown(character, breaks)
        if not piece:
            continue
        cells = 0 if piece in "\n\t" else cell_len(piece)
        if width + cells > limit or len(pieces) >= 4 * limit:
            cut = True
            break
        pieces.append((piece, cells))
        width += cells
    if cut:
        while pieces and (width + 1 > limit or pieces[-1][1] == 0):
            width -= pieces.pop()[1]
        return "".join(piece for piece, _ in pieces) + ELLIPSIS
    return "".join(piece for piece, _ in pieces)


def clean_html(text: str, limit: int = 2000) -> str:
    """``text`` cleaned (line breaks kept) and escaped for HTML, in an element or a quoted attribute."""
    return html.escape(clean(text, limit, keep_breaks=True), quote=True)
