"""Two sides of a comparison: each a process of its own, asked in turns, so that a noisy minute hits both.

A side is a piece of Python that gets its work as JSON in ``sys.argv[1]``, calls ``wait()`` before each round and
``tell({...})`` after it. Whatever else it prints is kept for the error message.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from statistics import median
from types import TracebackType
from typing import Any

PRELUDE = """
import json, os, resource, sys, time
work = json.loads(sys.argv[1])
def wait():
    print("READY", flush=True)
    if not sys.stdin.readline():
        sys.exit(0)
def tell(found):
    found["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print("RESULT" + json.dumps(found), flush=True)
"""
OUR_GATE = """
class Gate:
    # A listener of a run: a round is a step; figures(metrics, timings) is what it tells beside its seconds.
    def __init__(self, figures): self.figures = figures
    def on_start(self, facts): pass
    def on_phase(self, step, phase, done, total): pass
    def on_notice(self, text): pass
    def on_sample(self, *of): pass
    def on_end(self, summary): pass
    def on_step(self, step, metrics, timings):
        if step > 0:
            tell({"seconds": time.perf_counter() - self.begun, **self.figures(metrics, timings)})
        wait()
        self.begun = time.perf_counter()
"""
TRL_GATE = """
from transformers import TrainerCallback
class Gate(TrainerCallback):
    def __init__(self, figures): self.figures = figures
    def on_step_begin(self, *_, **__):
        wait()
        self.begun = time.perf_counter()
    def on_step_end(self, *_, **__):
        tell({"seconds": time.perf_counter() - self.begun, **self.figures()})
"""
OUR_THREADS = {"GOMP_SPINCOUNT": "2000"}
"""As ``upslope`` sets it; the peers run as they come."""


class Side:
    """A side at work. Use it in a ``with`` block; ``round()`` runs one round and gives what the side told.

    Between its rounds a side is stopped, with its workers: some spin while they wait, which the others would pay for.
    """

    def __init__(self, name: str, python: str, code: str, work: Mapping[str, Any], env: Mapping[str, str]) -> None:
        self.name = name
        self.errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 - closed with the side
        self.said: list[str] = []
        self.process = subprocess.Popen(
            [python, "-u", "-c", PRELUDE + code, json.dumps(dict(work))], text=True, env={**os.environ, **env},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> Side:
        self._until("READY")
        os.killpg(self.process.pid, signal.SIGSTOP)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # a side may have workers of its own (vLLM)
        self.process.wait()
        self.errors.close()

    def round(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ProcessLookupError):  # it has ended: what it said is told below
            os.killpg(self.process.pid, signal.SIGCONT)
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self._until("RESULT"))
        self._until("READY")
        os.killpg(self.process.pid, signal.SIGSTOP)
        return found

    def _until(self, word: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(word):
                return line.removeprefix(word)
            self.said.append(line)
        self.errors.seek(0)
        code = self.process.wait()
        killed = ", perhaps for memory: take less work a round" if code == -9 else ""
        told = "".join(self.said[-20:]) + self.errors.read()[-4000:]
        raise SystemExit(f"{self.name} ended with {code}{killed}\n{told}")


def in_turns(sides: Sequence[Side], rounds: int, warm: int = 1) -> dict[str, list[dict[str, Any]]]:
    """What each side told in ``rounds`` rounds, one after the other in each; ``warm`` rounds before are not counted."""
    told: dict[str, list[dict[str, Any]]] = {side.name: [] for side in sides}
    for number in range(warm + rounds):
        for side in sides:
            found = side.round()
            if number >= warm:
                told[side.name].append(found)
    return told


def table(told: Mapping[str, list[dict[str, Any]]], key: str = "seconds") -> dict[str, dict[str, float]]:
    """Medians of each side's numbers, printed with the ratio of ``key`` to the first side's, and given back."""
    sides = {
        name: {item: median(found[item] for found in rounds) for item in rounds[0]} for name, rounds in told.items()
    }
    first = next(iter(sides.values()))
    for name, row in sides.items():
        shown = "  ".join(f"{item} {value:.3g}" for item, value in row.items() if item != key)
        print(f"{name:22s} {row[key]:8.3f} s  {row[key] / first[key]:5.2f}x  {shown}", flush=True)
    return sides
