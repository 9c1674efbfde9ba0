"""Copies of the project in which mistakes are planted, and the checks that ought to see them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("upslope", "tests", "recipes", "worlds", "pyproject.toml", "README.md")
BROKEN = {"NameError", "ImportError", "SyntaxError", "AttributeError"}
"""Such an error says that the planted text is no program, not that a check has seen a wrong number."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """``edits``: (file under the root, text that occurs once, text to put there). Each of ``checks`` alone ought to
    turn red. ``after``: real bugs of other libraries of the same kind.
    """

    name: str
    edits: tuple[tuple[str, str, str], ...]
    checks: tuple[str, ...]
    after: str = ""

    @property
    def files(self) -> list[str]:
        return sorted({file for file, _, _ in self.edits})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the checks said. ``caught``: one failed for a reason that is about the mistake, or they did not end (they
    used their seconds of CPU up). ``stuck``: the machine gave them no time, or they broke down: no answer.
    """

    code: int
    failed: tuple[dict[str, str], ...]
    passed: int
    late: bool
    stuck: bool
    seconds: float
    log: str

    @property
    def caught(self) -> bool:
        return self.late or (self.code == 1 and any(not broken(failure) for failure in self.failed))

    @property
    def by(self) -> str:
        if self.late:
            return "ran too long"
        return f"{self.failed[0]['check']} ({self.failed[0]['kinds'].split()[0]})" if self.failed else ""


def broken(failure: dict[str, str]) -> bool:
    """A failure of the planted text itself, or outside the check's own run."""
    return bool(BROKEN & set(failure["kinds"].split()))


def once(text: str, old: str, where: str) -> None:
    """Raises ValueError unless ``old`` occurs exactly once."""
    if text.count(old) != 1:
        raise ValueError(f"{where}: the text to change occurs {text.count(old)} times, not once:\n{old}")


class Workshop:
    """A copy of the project and a server (``forge.py``) that runs checks in it."""

    def __init__(self, place: Path) -> None:
        self.copy, self.log = place / "copy", place / "log.txt"
        for name in COPIED:
            source, target = ROOT / name, self.copy / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "planted", ".hypothesis"))
            elif source.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
        drop = ("PYTHONPATH", "PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST")
        kept = {name: value for name, value in os.environ.items() if name not in drop}
        extra = {"OMP_NUM_THREADS": "1", "OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES"}
        errors = (place / "server.txt").open("wb")
        self.server: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forge.py"))], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=errors, text=True, env={**kept, **extra},
        )  # fmt: skip
        errors.close()

    def close(self) -> None:
        """End the server."""
        if self.server.stdin is not None:
            self.server.stdin.close()
        self.server.wait(30)

    def check(
        self, checks: Sequence[str], changed: Sequence[str] = (), timeout: float = 240.0, marks: str = "not slow"
    ) -> Outcome:
        """Run ``checks`` in the copy as it now is, for up to ``timeout`` seconds of CPU.

        Raises RuntimeError if another copy's upslope was tested, or a changed file was never imported.
        """
        job = {"root": str(self.copy), "checks": list(checks), "changed": list(changed), "timeout": timeout,
               "marks": marks, "log": str(self.log)}  # fmt: skip
        if self.server.stdin is None or self.server.stdout is None:
            raise RuntimeError("the server has no pipes")
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        line = self.server.stdout.readline()
        if not line:
            raise RuntimeError(f"the server ended: {(self.copy.parent / 'server.txt').read_text()[-2000:]}")
        found: dict[str, Any] = json.loads(line)
        log = self.log.read_text(errors="replace") if self.log.exists() else ""
        if not found["late"] and found["code"] in (0, 1):
            for name, path in found["loaded"].items():
                if path != str((self.copy / name).resolve()):
                    raise RuntimeError(f"{name} was loaded from {path}, not from the copy:\n{log[-2000:]}")
        return Outcome(
            found["code"], tuple(found["failed"]), found["passed"], found["late"], found["stuck"], found["seconds"],
            log[-4000:],
        )  # fmt: skip

    @contextmanager
    def planted(self, edits: Sequence[tuple[str, str, str]]) -> Iterator[list[str]]:
        """The copy with these edits; yields the changed files, and puts the old text back."""
        after: dict[str, str] = {}
        for file, old, new in edits:
            text = after.get(file) or (self.copy / file).read_text("utf-8")
            once(text, old, file)
            after[file] = text.replace(old, new)
        with self.replaced(after) as changed:
            yield changed

    @contextmanager
    def replaced(self, after: Mapping[str, str]) -> Iterator[list[str]]:
        """The copy with other text in these files; yields their names, and puts the old text back."""
        before = {file: (self.copy / file).read_text("utf-8") for file in after}
        try:
            for file, text in after.items():
                compile(text, file, "exec")
                self._write(file, text)
            yield sorted(after)
        finally:
            for file, text in before.items():
                self._write(file, text)

    def _write(self, file: str, text: str) -> None:
        path = self.copy / file
        for stale in (path.parent / "__pycache__").glob(f"{path.stem}.*"):  # a second is too coarse a clock
            stale.unlink()
        path.write_text(text, "utf-8")


@contextmanager
def workshop(place: Path) -> Iterator[Workshop]:
    """A workshop in the empty folder ``place``."""
    made = Workshop(place)
    try:
        yield made
    finally:
        made.close()
