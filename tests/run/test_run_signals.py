from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from upslope.run.signals import StopSignals

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def known_handlers() -> Iterator[None]:
    """Handlers that end no test run, whatever the shell that started pytest ignored."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    for number in NUMBERS:
        signal.signal(number, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_signal_is_noted_and_the_callback_called(number: int) -> None:
    heard: list[int] = []
    with StopSignals(heard.append) as stop:
        assert stop.requested is None
        send(number)
        assert stop.requested == number and heard == [number]


def test_the_first_signal_is_the_one_kept() -> None:
    heard: list[int] = []
    with StopSignals(heard.append) as stop:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            send(number)
        assert stop.requested == signal.SIGUSR1 and heard == [signal.SIGUSR1]


def test_the_second_interrupt_stops_at_once() -> None:
    with StopSignals() as stop:
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert stop.requested == signal.SIGINT


def test_a_failing_callback_does_not_break_into_the_run() -> None:
    def fail(number: int) -> None:
        raise RuntimeError("reentrant call")

    with StopSignals(fail) as stop:
        send(signal.SIGTERM)
        assert stop.requested == signal.SIGTERM


def test_previous_handlers_are_put_back_also_after_an_error() -> None:
    def mine(number: int, frame: object) -> None: ...

    signal.signal(signal.SIGTERM, mine)
    with pytest.raises(ValueError, match="x"), StopSignals():
        assert signal.getsignal(signal.SIGTERM) is not mine
        raise ValueError("x")
    assert signal.getsignal(signal.SIGTERM) is mine
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopSignals() as stop:
        send(signal.SIGINT)
        assert stop.requested is None
        send(signal.SIGTERM)
        assert stop.requested == signal.SIGTERM


def test_off_the_main_thread_it_does_nothing() -> None:
    seen: list[object] = []

    def work() -> None:
        with StopSignals() as stop:
            seen.append(stop.requested)
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None, signal.default_int_handler]
