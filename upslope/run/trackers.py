"""Experiment trackers, ``report_to: [tensorboard, wandb, trackio]``: small listeners, imported only when asked for.

They hear the same numbers as ``metrics.jsonl``; timings go under ``time/``. Values that do not apply are left out.
"""

from __future__ import annotations

import difflib
import importlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from upslope.errors import InputError
from upslope.run.folder import RECIPE
from upslope.run.session import Listener

PROJECT = "upslope"


def trackers(report_to: Sequence[str]) -> list[Listener]:
    """A listener for each name. Their packages are imported now and nothing is written before the run starts.

    Raises ``InputError`` for an unknown name or a package that is not installed.
    """
    for name in report_to:
        if name not in _KINDS:
            near = difflib.get_close_matches(name, _KINDS, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise InputError("report_to", f"unknown tracker {name!r}", f"{hint}choose from {', '.join(_KINDS)}")
    return [_KINDS[name]() for name in dict.fromkeys(report_to)]


class TensorBoard:
    """Event files in ``tensorboard/`` of the run folder. A resumed run hides the old steps that it redoes."""

    def __init__(self) -> None:
        self._module = _module("torch.utils.tensorboard", "tensorboard")
        self._writer: Any = None

    def on_start(self, facts: dict[str, Any]) -> None:
        purge = facts["resumed_step"] + 1 if facts.get("resumed") else None
        self._writer = self._module.SummaryWriter(str(Path(facts["folder"]) / "tensorboard"), purge_step=purge)

    def on_step(self, step: int, metrics: dict[str, Any], timings: dict[str, float]) -> None:
        for name, value in _scalars(metrics, timings).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def on_end(self, summary: dict[str, Any]) -> None:
        if self._writer is not None:
            self._writer.close()

    def on_phase(self, step: int, phase: str, done: int, total: int) -> None: ...

    def on_notice(self, text: str) -> None: ...

    def on_sample(self, step: int, prompt: str, completion: str, reward: float | None) -> None: ...


class _Hosted:
    """wandb and trackio, whose Python interfaces agree: ``init``, ``log(metrics, step=)``, ``finish``."""

    def __init__(self, package: str) -> None:
        self._module = _module(package, package)
        self._package = package
        self._run: Any = None

    def on_start(self, facts: dict[str, Any]) -> None:
        common = {"config": _recipe(Path(facts["folder"])), "resume": "allow"}
        if self._package == "wandb":
            project = os.environ.get("WANDB_PROJECT", PROJECT)
            own = {"name": facts["run"], "id": facts["id"], "dir": facts["folder"]}
        else:
            project = os.environ.get("TRACKIO_PROJECT", PROJECT)
            # trackio knows runs by name alone; embed would start a server, in a hosted notebook a public one
            own = {"name": f"{facts['run']}-{facts['id']}", "embed": False}
        self._run = self._module.init(project=project, **common, **own)

    def on_step(self, step: int, metrics: dict[str, Any], timings: dict[str, float]) -> None:
        self._run.log(_scalars(metrics, timings), step=step)

    def on_end(self, summary: dict[str, Any]) -> None:
        if self._run is not None:
            self._run.finish()

    def on_phase(self, step: int, phase: str, done: int, total: int) -> None: ...

    def on_notice(self, text: str) -> None: ...

    def on_sample(self, step: int, prompt: str, completion: str, reward: float | None) -> None: ...


_KINDS: dict[str, Any] = {
    "tensorboard": TensorBoard,
    "wandb": lambda: _Hosted("wandb"),
    "trackio": lambda: _Hosted("trackio"),
}


def _module(name: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            "report_to",
            f"{package} is not installed ({error})",
            f"pip install 'upslope[track]', or leave {package} out",
        ) from error


def _recipe(folder: Path) -> dict[str, Any]:
    """The resolved recipe of the run, for the tracker's table of settings."""
    file = folder / RECIPE
    content = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
    return content if isinstance(content, dict) else {}


def _scalars(metrics: dict[str, Any], timings: dict[str, float]) -> dict[str, float]:
    named = {**metrics, **{f"time/{name.removeprefix('time/')}": value for name, value in timings.items()}}
    return {name: float(value) for name, value in named.items() if value is not None and math.isfinite(value)}
