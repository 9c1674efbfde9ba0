"""Polite stopping: a signal asks, the run finishes its optimizer step and saves; a second Ctrl-C stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")  # USR1: what schedulers send ahead of a time limit (sbatch --signal=USR1@120)


class StopSignals:
    """Context manager that notes SIGINT, SIGTERM and SIGUSR1 instead of dying of them.

    ``requested`` is the number of the first signal that arrived, or None. ``callback(number)`` is called on it,
    inside the signal handler, so it should only set something. The second SIGINT raises ``KeyboardInterrupt`` at
    once. Handlers are put back on exit. Off the main thread, where Python allows no handlers, it does nothing. A
    signal that the parent told us to ignore (``nohup``, a background job) stays ignored.
    """

    def __init__(self, callback: Callable[[int], None] | None = None) -> None:
        self.requested: int | None = None
        self._callback = callback
        self._interrupts = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (int(getattr(signal, name)) for name in _NAMES if hasattr(signal, name)):
                previous = signal.getsignal(number)
                if previous is not signal.SIG_IGN:
                    self._previous[number] = previous
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, previous in self._previous.items():
            # None: a handler installed by C code, which Python cannot put back
            signal.signal(number, signal.SIG_DFL if previous is None else previous)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt
        if self.requested is None:
            self.requested = number
            if self._callback is not None:
                with suppress(Exception):  # a failing callback must not break into whatever the signal interrupted
                    self._callback(number)
