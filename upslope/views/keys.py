"""Single keys from a terminal, as names: ``a``, ``/``, ``up``, ``enter``, ``escape``. Linux and macOS."""

from __future__ import annotations

import codecs
import os
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

NAMES = {
    "\x1b[A": "up", "\x1b[B": "down", "\x1b[C": "right", "\x1b[D": "left",
    "\x1bOA": "up", "\x1bOB": "down", "\x1bOC": "right", "\x1bOD": "left",
    "\x1b[5~": "pageup", "\x1b[6~": "pagedown", "\x1b[H": "home", "\x1b[F": "end", "\x1bOH": "home", "\x1bOF": "end",
    "\x1b[1~": "home", "\x1b[4~": "end", "\x1b[Z": "backtab", "\t": "tab", "\r": "enter", "\n": "enter",
    "\x7f": "backspace", "\x08": "backspace", "\x1b": "escape", "\x04": "end of file",
}  # fmt: skip
SEQUENCE_WAIT = 0.05
"""Seconds in which the rest of an escape sequence arrives; an Esc that stands alone so long is the key itself."""

ReadKey = Callable[[float], "str | None"]


def split(text: str) -> tuple[list[str], str]:
    """The keys in ``text`` by name, and what may be the beginning of a sequence that is not complete yet.

    Printable characters are themselves; sequences of keys that have no name here are left out.
    """
    keys: list[str] = []
    while text:
        if text[0] != "\x1b":
            name = NAMES.get(text[0], text[0] if text[0].isprintable() else None)
            keys += [name] if name else []
            text = text[1:]
            continue
        length = _sequence(text)
        if length == 0:
            return keys, text
        name = NAMES.get(text[:length])
        keys += [name] if name else []
        text = text[length:]
    return keys, ""


def _sequence(text: str) -> int:
    """Length of the escape sequence that ``text`` begins with; 0 while it is not complete."""
    if len(text) == 1:
        return 0
    if text[1] == "O":
        return 3 if len(text) >= 3 else 0
    if text[1] != "[":
        return 1  # Esc, and then another key
    for place in range(2, len(text)):
        if "@" <= text[place] <= "~":
            return place + 1
    return 0


@contextmanager
def raw_keys(descriptor: int) -> Iterator[ReadKey]:
    """Inside, keys come at once and are not echoed; afterwards the terminal is as it was.

    The function that is given waits so many seconds for a key, and returns None where none came, ``end of file`` where
    the terminal is gone.
    """
    import termios
    import tty

    before = termios.tcgetattr(descriptor)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    waiting: list[str] = []
    rest = ""

    def read(timeout: float) -> str | None:
        nonlocal rest
        if waiting:
            return waiting.pop(0)
        ready, _, _ = select.select([descriptor], [], [], SEQUENCE_WAIT if rest else timeout)
        if not ready:
            alone, rest = rest, ""
            return "escape" if alone else None
        try:
            data = os.read(descriptor, 1024)
        except OSError:
            data = b""
        if not data:
            return "end of file"
        keys, rest = split(rest + decoder.decode(data))
        waiting.extend(keys)
        return waiting.pop(0) if waiting else None

    try:
        tty.setcbreak(descriptor)
        yield read
    finally:
        with suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
