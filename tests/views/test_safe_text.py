"""Hostile text stays text: in a terminal, in rich, and in HTML."""

from __future__ import annotations

import io
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from upslope.views.safe_text import clean, clean_html

# (what a model may emit, what is shown)
HOSTILE = [
    ("\x1b[31mred\x1b[0m", "[31mred[0m"),
    ("\x1b]52;c;aGVsbG8=\x07", "]52;c;aGVsbG8="),  # writes to the clipboard
    ("\x1b]0;title\x07", "]0;title"),
    ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "]8;;http://x\\link]8;;\\"),
    ("\x1b[2J\x1b[H", "[2J[H"),  # clears the screen
    ("\x1b[?1049h", "[?1049h"),
    ("\x1bc", "c"),  # resets the terminal
    ("\x9b31mred", "31mred"),  # CSI as one C1 byte
    ("\x9d0;t\x9c", "0;t"),
    ("\x90q\x9c", "q"),  # DCS
    ("bell\x07", "bell"),
    ("a\bb", "ab"),  # backspace hides what is before it
    ("ok\rno", "okno"),  # overwrites the line
    ("nul\x00l", "null"),
    ("del\x7f", "del"),
    ("a\nb", "a\\nb"),
    ("a\tb", "a\\tb"),
    ("a\x0b\x0cb", "ab"),
    ("a\x85b", "ab"),  # next line, C1
    ("a\u2028b\u2029c", "a\\nb\\nc"),
    ("[/INST]", "[/INST]"),  # rich: a closing tag with nothing to close
    ("[bold red]x[/]", "[bold red]x[/]"),
    ("[link=http://x]y[/link]", "[link=http://x]y[/link]"),
    (":warning:", ":warning:"),  # rich: an emoji code
    ("\u202egpj.exe", "gpj.exe"),  # right-to-left override
    ("\u2066a\u2069", "a"),
    ("a\u200bb\ufeffc", "abc"),  # zero width
    ("a\U000e0041b", "ab"),  # a tag character: an invisible A
    ("a\ufe01b", "ab"),  # a variation selector
    ("\ud800", "\ufffd"),  # a lone surrogate breaks UTF-8
    ("</script><img src=x onerror=alert(1)>", "</script><img src=x onerror=alert(1)>"),
    ("{0} %s ${HOME} `id`", "{0} %s ${HOME} `id`"),
]


def test_there_are_thirty_hostile_strings() -> None:
    assert len({text for text, _ in HOSTILE}) >= 30


@pytest.mark.parametrize(("text", "shown"), HOSTILE)
def test_hostile_text_is_shown_as_expected(text: str, shown: str) -> None:
    assert clean(text, 200) == shown


@pytest.mark.parametrize(("text", "shown"), HOSTILE)
def test_a_colour_terminal_receives_no_escape_from_it(text: str, shown: str) -> None:
    file = io.StringIO()
    Console(file=file, force_terminal=True, width=200, color_system=None).print(Text(clean(text, 200)))
    assert file.getvalue().rstrip("\n") == shown
    file.getvalue().encode("utf-8")


@settings(max_examples=300, deadline=None)
@given(st.text(), st.integers(1, 40), st.booleans())
def test_any_text_is_free_of_controls_and_fits(text: str, limit: int, keep: bool) -> None:
    shown = clean(text, limit, keep_breaks=keep)
    assert all(unicodedata.category(c) not in ("Cc", "Cs") or (keep and c in "\n\t") for c in shown)
    assert sum(cell_len(line) for part in shown.split("\n") for line in part.split("\t")) <= limit
    shown.encode("utf-8")


def test_short_text_is_kept_whole_and_long_text_ends_in_an_ellipsis() -> None:
    assert clean("abcde", 5) == "abcde"
    assert clean("abcdef", 5) == "abcd…"


def test_wide_characters_count_two_cells() -> None:
    assert clean("日本語", 6) == "日本語"
    assert clean("日本語文", 6) == "日本…"


def test_marks_without_width_cannot_pile_up() -> None:
    assert len(clean("a" + "\u0301" * 10_000, 10)) <= 41


def test_a_huge_line_is_cut_quickly_and_says_so() -> None:
    assert clean("\x00" * 5_000_000 + "end", 10) == "…"


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        clean("a", 0)


def test_persian_keeps_its_joiner() -> None:
    assert clean("می\u200cخواهم", 40) == "می\u200cخواهم"


def test_html_is_escaped_and_keeps_line_breaks() -> None:
    assert clean_html("</script>\n<b a=\"x\" b='y'>&amp;\x1b[0m") == (
        "&lt;/script&gt;\n&lt;b a=&quot;x&quot; b=&#x27;y&#x27;&gt;&amp;amp;[0m"
    )
