"""A user's own function: found, recognised by its parameters, called, and its answer's shape checked.

It is the user's own code and runs in this process, with all that a Python file may do, like a reward file in its.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from upslope.errors import InputError
from upslope.worlds import reward_worker
from upslope.worlds.reward_source import check_source

Kind = Literal["loss", "advantage"]
SIGNATURES: dict[Kind, str] = {
    "loss": "loss(logprobs, old_logprobs, advantages, mask) -> [B, T]",
    "advantage": "advantage(rewards) -> [P, G]",
}
PARAMETERS: dict[Kind, tuple[str, ...]] = {
    "loss": ("logprobs", "old_logprobs", "advantages", "mask"),
    "advantage": ("rewards",),
}
WANTED = f"{SIGNATURES['loss']}, or {SIGNATURES['advantage']}"


@dataclass(frozen=True, slots=True)
class UserFunction:
    """A function that was found and recognised. ``shown`` is what messages call it."""

    kind: Kind
    shown: str
    path: str
    call: Callable[..., Any]

    def __call__(self, **tensors: Tensor) -> Tensor:
        """Call it on copies of these tensors.

        Raises:
            InputError: it raised, or what it returned is no floating-point tensor of the right shape.
        """
        inputs = {name: tensor.clone() for name, tensor in tensors.items()}
        with told(self.shown, self.path, _shapes(tensors)):
            out = self.call(**inputs)
        shape = tuple(next(iter(tensors.values())).shape)
        signature = SIGNATURES[self.kind]
        if not isinstance(out, Tensor):
            raise InputError(self.shown, f"it returned {type(out).__name__}, expected a tensor of shape {list(shape)}",
                             f"return one number an entry: {signature}")  # fmt: skip
        if tuple(out.shape) != shape:
            raise InputError(
                self.shown, f"it returned shape {list(out.shape)}, expected {list(shape)}",
                f"return one number an entry and leave the mean to the weights: {signature}",
            )  # fmt: skip
        if not out.dtype.is_floating_point:
            raise InputError(self.shown, f"it returned {out.dtype}, expected floating-point numbers",
                             "return a floating-point tensor")  # fmt: skip
        return out


def read_function(source: str) -> UserFunction:
    """``path/to/file.py:function`` as a ``UserFunction``.

    Raises:
        InputError: no such file or function, the file raised while it was loaded, or parameters of neither kind.
    """
    try:
        found = check_source(source)
    except InputError as error:
        where = error.where.replace("reward.function", "certify", 1)
        raise InputError(where, error.problem, error.fix) from None
    shown = f"{found.shown}:{found.function}"
    with told(shown, str(found.path), "while the file was loaded"):
        call = reward_worker.load(str(found.path), found.function)
    return UserFunction(recognised(call, shown), shown, str(found.path), call)


def recognised(call: Callable[..., Any], shown: str) -> Kind:
    """Which kind a function is: its parameters without a default are exactly those of a loss or of an advantage.

    Raises:
        InputError: they are not.
    """
    try:
        parameters = list(inspect.signature(call).parameters.values())
    except (TypeError, ValueError):
        raise InputError(shown, "its parameters cannot be read", f"write it in Python as {WANTED}") from None
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    plain = [p for p in parameters if p.kind not in (*variable, inspect.Parameter.POSITIONAL_ONLY)]
    needed = {p.name for p in parameters if p.default is p.empty and p.kind not in variable}
    for kind, names in PARAMETERS.items():
        if needed <= set(names) <= {p.name for p in plain}:
            return kind
    names_found = ", ".join(p.name for p in parameters) or "none"
    raise InputError(shown, f"its parameters are {names_found}, which is neither a loss nor an advantage function",
                     f"write {WANTED}; further parameters need defaults")  # fmt: skip


@contextlib.contextmanager
def told(shown: str, path: str, when: str) -> Iterator[None]:
    """What the user's code raises becomes an ``InputError`` that names its last own line; what it prints goes to
    stderr, so that ``--json`` stays JSON."""
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the statistics of one number, on purpose
            yield
    except (KeyboardInterrupt, InputError):
        raise
    except BaseException as error:  # SystemExit too: the user's code may not end the check
        failed = reward_worker.failure(error, path)
        frame = failed["frame"]
        where = shown if frame is None else f"{shown}, {Path(frame[0]).name}:{frame[1]} in {frame[2]}"
        text = str(failed["text"]).splitlines()[-1]
        raise InputError(where, f"{text} ({when})", "correct that line") from error


def _shapes(tensors: dict[str, Tensor]) -> str:
    parts = (f"{name} {list(tensor.shape)} {str(tensor.dtype)[6:]}" for name, tensor in tensors.items())
    return f"called with {', '.join(parts)}"
