"""The run folder: made, locked, checked against the recipe on resume, and closed with its status.

``runs/NAME/`` belongs to one run. ``run.json`` says what produced it and how far it got, ``recipe.yaml`` is the
resolved recipe, ``run.lock`` names the process that is writing in it.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml

from upslope.errors import InputError
from upslope.run import machine

RECIPE, RECORD, LOCK = "recipe.yaml", "run.json", "run.lock"
CHECKPOINTS = "checkpoints"
ENTRIES = (
    RECIPE, "metrics.jsonl", "timings.jsonl", "rollouts", CHECKPOINTS, "model", "best", "report.html", "reward.log",
    "pictures", "tensorboard", "wandb", RECORD,
)  # fmt: skip
"""What a run folder holds, and so what ``overwrite`` may delete; the record last, so that it can be repeated."""

MAY_CHANGE = ("train.steps", "train.save_every", "report_to")
"""Recipe keys that cannot alter the steps already done."""

Mode = Literal["new", "resume", "overwrite"]
Status = Literal["finished", "stopped", "failed"]


def replace_file(path: Path, data: bytes, sync: bool = True) -> None:
    """Write ``path`` all or nothing: a temporary file beside it, then one rename; ``sync`` waits for the disk."""
    staging = path.with_name(f".{path.name}.tmp")
    try:
        with staging.open("wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(staging, path)
    except OSError:
        staging.unlink(missing_ok=True)
        raise


def plain(value: Any) -> Any:
    """``value`` as strict JSON: NaN and infinities are null; what JSON has no word for is written as text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return plain(value.tolist()) if hasattr(value, "tolist") else str(value)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """An open run folder, locked for this process until ``close``.

    ``resuming`` says that the folder held a run before and goes on with it, and ``earlier_status`` how that one
    ended (``running``: it was killed); ``id`` names the run across resumes; ``notices`` are things the user should
    hear about, such as another version of torch than the run began with.
    """

    path: Path
    id: str
    resuming: bool
    recipe_text: str
    earlier_status: str = ""
    notices: tuple[str, ...] = ()

    @classmethod
    def open(
        cls,
        path: Path,
        recipe_text: str,
        facts: Mapping[str, Any],
        mode: Mode,
        allow_change: Sequence[str] = (),
    ) -> RunFolder:
        """Make or reopen the folder, lock it, and write ``recipe.yaml`` and ``run.json``.

        ``facts`` go into ``run.json`` beside versions, hardware, git commit and command line. Raises ``InputError``
        if the folder is there and ``mode`` is ``new``; is in use; is not a run folder; cannot be written; has
        nothing to resume; or, on resume, if the recipe differs in keys other than ``MAY_CHANGE`` and
        ``allow_change`` (dotted, a section covers its keys).
        """
        path = Path(path)
        try:
            _refuse_wrong_kind(path, mode)
            path.mkdir(parents=True, exist_ok=True)
            _lock(path)
        except (OSError, ValueError) as error:  # ValueError: a name with NUL or half a character in it
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(str(path), f"it cannot be written ({reason})", "give another folder") from error
        try:
            record, notices = _prepare(path, recipe_text, mode, allow_change)
            earlier_status = record.get("status", "")
            attempt = machine.describe()
            record = {
                **record,
                **facts,
                **attempt,
                "id": record.get("id") or uuid.uuid4().hex[:12],
                "seed": facts.get("seed", _seed(recipe_text)),
                "started": record.get("started") or _now(),
                "attempts": [*record.get("attempts", []), {"started": _now(), "versions": attempt["versions"]}],
                "status": "running",
                "step": record.get("step", 0),
            }
            record.pop("ended", None)
            replace_file(path / RECORD, _json(record))
            replace_file(path / RECIPE, recipe_text.encode("utf-8", "backslashreplace"))
        except OSError as error:
            _unlock(path)
            reason = error.strerror or str(error)
            raise InputError(str(path), f"it cannot be written ({reason})", "give another folder") from error
        except BaseException:
            _unlock(path)
            raise
        return cls(path, record["id"], mode == "resume", recipe_text, earlier_status, tuple(notices))

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    def record(self) -> dict[str, Any]:
        """The content of ``run.json``."""
        return read_record(self.path)

    def update(self, **facts: Any) -> None:
        """Set keys of ``run.json``, such as ``step=120`` at a checkpoint."""
        replace_file(self.path / RECORD, _json({**self.record(), **facts}))

    def close(self, status: Status, step: int, **facts: Any) -> None:
        """Write the status and the last whole step, and give the folder free, whatever happens to the writing."""
        try:
            self.update(status=status, step=step, ended=_now(), **facts)
        finally:
            _unlock(self.path)


def read_record(path: Path) -> dict[str, Any]:
    """``run.json`` of a folder; empty if there is none, or none that can be read."""
    try:
        record = json.loads((path / RECORD).read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and "upslope" in record.get("versions", {}) else {}


def _json(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(plain(record), indent=1) + "\n").encode("ascii")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# ----------------------------------------------------------------------------------------------- what is there already
def _refuse_wrong_kind(path: Path, mode: Mode) -> None:
    """Errors that need no lock and must leave nothing behind."""
    for place in (path, *path.parents):
        if (place.exists() or place.is_symlink()) and not place.is_dir():
            raise InputError(str(path), f"{place} is a file", "give another name, or move the file away")
    if mode == "resume" and not path.exists():
        raise InputError(str(path), "there is no such run to resume", "check the name, or start it without --resume")


def _prepare(path: Path, recipe_text: str, mode: Mode, allow_change: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """What the folder's earlier run leaves to this one: its record, and notices. Empties the folder on overwrite."""
    record = read_record(path)
    content = _content(path)
    if mode == "resume":
        if not record:
            raise InputError(
                str(path),
                "there is no run here to resume (no run.json)",
                "check the name, or start it without --resume",
            )
        _refuse_changes(path, recipe_text, record, allow_change)
        return record, _version_notices(record)
    _refuse_content(path, content, record, mode)
    for name in ENTRIES:
        _delete(path / name)
    return {}, []


def _content(path: Path) -> list[str]:
    return sorted(item.name for item in path.iterdir() if item.name != LOCK and not item.name.startswith("."))


def _refuse_content(path: Path, content: Sequence[str], record: Mapping[str, Any], mode: Mode) -> None:
    if content and not record:
        shown = ", ".join(content[:3]) + (", ..." if len(content) > 3 else "")
        raise InputError(str(path), f"exists and is not a run folder (it holds {shown})", "give another name")
    # A run that failed before it did anything (a wrong model.name, say) leaves nothing that is worth a question.
    made = ("metrics.jsonl", "rollouts", CHECKPOINTS, "model")
    begun = bool(record.get("step")) or any((path / name).exists() for name in made)
    if content and mode == "new" and (begun or record.get("status") != "failed"):
        raise InputError(str(path), f"exists ({_progress(record)})", "use --resume, --overwrite or another name")


def occupied(path: Path) -> InputError | None:
    """What a new run in this folder would be refused for; None where it may begin. Changes nothing."""
    try:
        _refuse_wrong_kind(path, "new")
        if path.is_dir():
            if (path / LOCK).exists():
                _refuse_holder(path, _holder(path / LOCK))
            _refuse_content(path, _content(path), read_record(path), "new")
    except InputError as error:
        return error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        return InputError(str(path), f"it cannot be read ({reason})", "give another folder")
    return None


def _progress(record: Mapping[str, Any]) -> str:
    status = record.get("status", "unknown")
    # the lock is ours, so a run that says it is running was killed
    return f"{'interrupted' if status == 'running' else status}, step {record.get('step', 0)}"


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# --------------------------------------------------------------------------------------------------- recipe on resume
def _refuse_changes(path: Path, text: str, record: Mapping[str, Any], allow_change: Sequence[str]) -> None:
    try:
        old = _flat(yaml.safe_load((path / RECIPE).read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(
            str(path / RECIPE),
            f"the recipe of the run cannot be read ({error})",
            "put the recipe back, or start a new run",
        ) from error
    new = _flat(yaml.safe_load(text))
    absent = object()
    changed = [key for key in sorted({*old, *new}) if old.get(key, absent) != new.get(key, absent)]
    refused = [key for key in changed if not any(_covers(allowed, key) for allowed in (*MAY_CHANGE, *allow_change))]
    if refused:
        table = _table([("key", "old", "new"), *((key, _show(old, key), _show(new, key)) for key in refused)])
        raise InputError(
            str(path),
            f"the recipe is not the one that the run began with\n{table}\nThese keys may not change on resume",
            f"put the old values back, or accept the change with --allow-change {' --allow-change '.join(refused)}",
        )
    steps = new.get("train.steps")
    if record.get("status") == "finished" and isinstance(steps, int) and record.get("step", 0) >= steps:
        raise InputError(
            str(path), f"the run is finished: it is at step {record['step']} of {steps}", "raise train.steps to go on"
        )


def _flat(value: Any, trail: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; lists are values."""
    if isinstance(value, dict) and value:
        return {
            key: item
            for name, inner in value.items()
            for key, item in _flat(inner, f"{trail}.{name}" if trail else str(name)).items()
        }
    return {trail: value} if trail else {}


def _covers(allowed: str, key: str) -> bool:
    return key == allowed or key.startswith(f"{allowed}.")


def _show(values: Mapping[str, Any], key: str) -> str:
    text = json.dumps(values[key], default=str) if key in values else "(absent)"
    return text if len(text) <= 60 else text[:57] + "..."


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _seed(text: str) -> Any:
    flat = _flat(yaml.safe_load(text))
    return flat.get("seed", flat.get("train.seed"))


def _version_notices(record: Mapping[str, Any]) -> list[str]:
    old, new = record.get("versions", {}), machine.versions()
    moved = [f"{name} {old[name]} -> {new[name]}" for name in new if old.get(name, new[name]) != new[name]]
    return [f"resumed under other versions ({', '.join(moved)}): results may differ in rounding"] if moved else []


# ----------------------------------------------------------------------------------------------------------- the lock
def _lock(path: Path) -> None:
    """Create ``run.lock``. A lock whose process on this host is dead is taken over."""
    with _alone(path):
        file = path / LOCK
        if file.exists():
            _refuse_holder(path, _holder(file))
        replace_file(file, _json(machine.me()))


def _refuse_holder(path: Path, holder: Mapping[str, Any]) -> None:
    if not machine.is_dead(holder):
        raise InputError(
            str(path),
            f"it is in use by pid {holder.get('pid')} on host {holder.get('host')}",
            f"wait for that run or stop it; if that machine no longer runs it, delete {path / LOCK}",
        )


def _unlock(path: Path) -> None:
    with suppress(OSError), _alone(path):  # a lock left behind is stale as soon as this process ends
        file = path / LOCK
        if file.exists() and _holder(file) == machine.me():
            file.unlink()


def _holder(file: Path) -> dict[str, Any]:
    try:
        holder = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """For these few lines only this process looks at the lock file, so that two cannot take over the same stale one."""
    import fcntl  # not on Windows; imported here so that reading run folders works there

    handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: the lock file alone must do
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
