"""Stretches of a rendered row, and how they look."""

from __future__ import annotations

import io
import re
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.views.conftest import HOSTILE
from upslope.views.rendered import HEAD, TAIL, Segment, abridged, row_table, segments, shown


def printed(row: list[Segment], width: int = 60, color: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=color, color_system="standard" if color else None)
    console.print(row_table(row, lambda segment: f"{segment.kind} {segment.tokens}"))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_stretches_of_a_conversation() -> None:
    pieces = ["Q", "1", "ye", "s", "<e>", "Q2", "no", "<e>"]
    wanted = [False, False, True, True, True, False, True, True]
    found = segments(pieces, [5, 6, 7, 8, 0, 5, 9, 0], wanted, [0])
    assert found == [
        Segment("prompt", "Q1", 2), Segment("trained", "yes", 2), Segment("stop", "<e>", 1), Segment("prompt", "Q2", 1),
        Segment("trained", "no", 1), Segment("stop", "<e>", 1),
    ]  # fmt: skip


def test_an_end_token_in_the_prompt_is_prompt() -> None:
    assert segments(["<e>", "a"], [0, 1], [False, True], [0]) == [
        Segment("prompt", "<e>", 1),
        Segment("trained", "a", 1),
    ]


@given(st.lists(st.tuples(st.text(max_size=3), st.integers(0, 3), st.booleans()), max_size=12))
def test_nothing_is_lost_and_neighbours_differ(row: list[tuple[str, int, bool]]) -> None:
    pieces, ids, wanted = [r[0] for r in row], [r[1] for r in row], [r[2] for r in row]
    found = segments(pieces, ids, wanted, [0])
    assert "".join(segment.text for segment in found) == "".join(pieces)
    assert sum(segment.tokens for segment in found) == len(row)
    assert all(a.kind != b.kind for a, b in pairwise(found))
    assert sum(segment.tokens for segment in found if segment.kind != "prompt") == sum(wanted)


def test_line_ends_are_written_out_and_kept() -> None:
    assert shown("a\nb\n").plain == "a\\n\nb\\n"
    assert shown("\n\n").plain == "\\n\n\\n"
    assert printed([Segment("prompt", "a\nb\n", 4)]).splitlines()[0].startswith("prompt 4  a\\n")


def test_a_long_stretch_keeps_its_ends() -> None:
    text = "x" * HEAD + "y" * 1000 + "z" * TAIL
    short = abridged(text)
    assert short == "x" * HEAD + " [... 1,000 characters ...] " + "z" * TAIL
    assert abridged("x" * (HEAD + TAIL)) == "x" * (HEAD + TAIL)


def test_hostile_text_stays_text() -> None:
    out = printed([Segment("prompt", HOSTILE, 1), Segment("trained", "[red]\x1b[31mx", 1)], width=100)
    assert "[/INST]" in out and "[red][31mx" in out
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", out)


def test_colours_say_what_the_labels_say() -> None:
    out = printed([Segment("prompt", "p", 1), Segment("trained", "t", 1), Segment("stop", "s", 1)], color=True)
    assert re.search(r"\x1b\[1;32mt\x1b\[0m", out) and re.search(r"\x1b\[1;35ms\x1b\[0m", out)
    assert re.sub(r"\x1b\[[\d;]*m", "", out).split() == ["prompt", "1", "p", "trained", "1", "t", "stop", "1", "s"]
