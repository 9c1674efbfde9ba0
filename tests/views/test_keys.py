"""Keys from a terminal by their names, whole and in pieces, through a real pseudo-terminal."""

from __future__ import annotations

import os
import pty
import termios
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upslope.views.keys import NAMES, raw_keys, split


@pytest.mark.parametrize(
    ("text", "keys", "rest"),
    [
        ("a", ["a"], ""), ("\x1b[A", ["up"], ""), ("\x1bOB\x1b[5~q", ["down", "pageup", "q"], ""),
        ("\x1b", [], "\x1b"), ("\x1b[", [], "\x1b["), ("\x1b[1;5", [], "\x1b[1;5"), ("\x1bO", [], "\x1bO"),
        ("\x1b[1;5Cx", ["x"], ""), ("\x1b[Z\t\r\x7f", ["backtab", "tab", "enter", "backspace"], ""),
        ("é/…", ["é", "/", "…"], ""), ("\x01\x02b", ["b"], ""), ("\x1bx", ["escape", "x"], ""), ("", [], ""),
    ],
)  # fmt: skip
def test_split(text: str, keys: list[str], rest: str) -> None:
    assert split(text) == (keys, rest)


@given(st.lists(st.sampled_from([*NAMES, "a", "é", "7"]).filter(lambda text: text != "\x1b"), max_size=6), st.data())
def test_keys_that_arrive_in_pieces_are_the_same_keys(typed: list[str], data: st.DataObject) -> None:
    text = "".join(typed)
    cut = data.draw(st.integers(0, len(text)))
    first, rest = split(text[:cut])
    second, left = split(rest + text[cut:])
    assert [*first, *second] == [NAMES.get(key, key) for key in typed] and left == ""


def test_keys_of_a_terminal_come_at_once_and_the_terminal_is_given_back() -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    try:
        with raw_keys(theirs) as read:
            assert not termios.tcgetattr(theirs)[3] & (termios.ICANON | termios.ECHO)
            assert read(0.01) is None
            os.write(ours, "j\x1b[Bé".encode())
            assert [read(1.0) for _ in range(3)] == ["j", "down", "é"]
            begun = time.monotonic()
            os.write(ours, b"\x1b")
            assert [key for key in (read(1.0), read(1.0)) if key] == ["escape"]
            assert time.monotonic() - begun < 2.5
            parts = threading.Thread(target=lambda: (os.write(ours, b"\x1b"), time.sleep(0.01), os.write(ours, b"[A")))
            parts.start()
            assert next(key for key in (read(1.0), read(1.0)) if key) == "up"
            parts.join()
        assert termios.tcgetattr(theirs) == before
    finally:
        os.close(ours)
        os.close(theirs)


def test_the_terminal_is_given_back_after_an_exception_too() -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    with pytest.raises(KeyboardInterrupt), raw_keys(theirs):
        raise KeyboardInterrupt
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def test_a_terminal_that_goes_away_is_the_end_of_the_file() -> None:
    ours, theirs = pty.openpty()
    with raw_keys(theirs) as read:
        os.close(ours)
        assert read(1.0) == "end of file"
    os.close(theirs)
