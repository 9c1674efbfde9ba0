"""Errors that a user can act on.

Every message has one shape: ``where: what was found, what was expected. Fix: one action``. The command line prints the
message without a traceback and exits with ``exit_code``: 2 your input, 3 the environment (device, disk, memory),
1 our bug, 130 or 143 stopped by a signal and resumable.
"""

from __future__ import annotations

from collections.abc import Sequence


def _message(where: str, problem: str, fix: str) -> str:
    return f"{where}: {_ended(problem)} Fix: {_ended(fix)}"


def _bare(text: str) -> str:
    """Without the full stop that the message puts; dots that stand for more are kept."""
    return text if text.endswith("...") else text.rstrip(".")


def _ended(text: str) -> str:
    """A sentence with its end: a full stop, unless it has one, or asks, or breaks off."""
    return text if text.endswith((".", "?")) else f"{text}."


class UpslopeError(Exception):
    """Base of every error that upslope raises on purpose."""

    exit_code = 1


class InputError(UpslopeError):
    """The user's recipe, data, model, reward or command cannot be used as it stands."""

    exit_code = 2

    def __init__(self, where: str, problem: str, fix: str) -> None:
        self.where, self.problem, self.fix = where, _bare(problem), _bare(fix)
        super().__init__(_message(where, self.problem, self.fix))


class InputErrors(UpslopeError):
    """Several input errors found in one pass, shown together so that they can be mended together."""

    exit_code = 2

    def __init__(self, errors: Sequence[InputError]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(str(error) for error in errors))


class MachineError(UpslopeError):
    """The machine cannot do what was asked: no such device, no space, a package below its floor."""

    exit_code = 3

    def __init__(self, where: str, problem: str, fix: str) -> None:
        self.where, self.problem, self.fix = where, _bare(problem), _bare(fix)
        super().__init__(_message(where, self.problem, self.fix))


class RewardError(InputError):
    """The user's reward function raised, hung, or returned something that is not a reward for each completion."""


class NothingRewarded(RewardError):
    """No reward function applies to any of the completions that it was asked about."""


class TrainingError(UpslopeError):
    """Training cannot go on, and the numbers say why (three non-finite gradients in a row, say)."""

    exit_code = 3


class Stopped(UpslopeError):
    """A signal asked the run to stop; it finished its optimizer step and saved. ``exit_code`` is 130 or 143."""

    def __init__(self, signal_number: int, message: str) -> None:
        self.exit_code = 128 + signal_number
        super().__init__(message)
