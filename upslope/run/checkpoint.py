"""Checkpoints that are complete or absent, never half there.

A checkpoint is written into a hidden folder, every file is synced to disk, the manifest comes last with the size
and SHA-256 of every file, and one rename makes it visible. Only then are older ones pruned. Reading takes the
newest checkpoint whose manifest and files verify, and says which files of a newer one did not. Tensors are
safetensors, everything else is JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from upslope.errors import InputError, MachineError
from upslope.types import State, Stateful

FORMAT = 1
MANIFEST = "manifest.json"
SPACE_MARGIN = 1.2
Order = tuple[int, int]
_LABEL = re.compile(r"step-(\d{5,})(?:-(\d{3,}))?")
_PART_FILE = re.compile(r"[A-Za-z_]\w*\.(?:json|safetensors)", re.ASCII)
_DISPLACED = ".displaced-"


# ----------------------------------------------------------------------------- operations that touch the disk, all here
def _make_folder(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)


def _write_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # the library hides errno in its text
        found = re.search(r"os error (\d+)", str(error))
        raise OSError(int(found.group(1)) if found else 0, str(error)) from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _rename(source: Path, target: Path) -> None:
    os.rename(source, target)


def _remove(path: Path) -> None:
    shutil.rmtree(path)


def _free_bytes(path: Path) -> int:
    return shutil.disk_usage(path).free


# --------------------------------------------------------------------------------------------------------------- labels
def label(order: Order) -> str:
    """Folder name: ``step-00010`` for (10, 0), the end of step 10; ``step-00010-003`` for (10, 3), inside step 10."""
    step, inner = order
    if step < 0 or inner < 0:
        raise ValueError(f"order {order}: expected two numbers that are not negative")
    return f"step-{step:05d}" + (f"-{inner:03d}" if inner else "")


def parse_label(name: str) -> Order | None:
    """The order that ``label`` wrote, or None for any other name."""
    found = _LABEL.fullmatch(name)
    if not found:
        return None
    order = (int(found.group(1)), int(found.group(2) or 0))
    return order if label(order) == name else None


def age(order: Order) -> tuple[int, float]:
    """Sorting key in order of time: (10, 1) < (10, 2) < (10, 0) < (11, 1), since (10, 0) is the *end* of step 10."""
    return order[0], order[1] or float("inf")


def labelled(directory: Path) -> list[tuple[Order, Path]]:
    """Visible checkpoint folders, oldest first; nothing is verified."""
    if not directory.is_dir():
        return []
    found = [(parse_label(path.name), path) for path in directory.iterdir() if path.is_dir()]
    return sorted(((order, path) for order, path in found if order), key=lambda item: age(item[0]))


# --------------------------------------------------------------------------------------------------------------- saving
def save(
    directory: Path,
    order: Order,
    parts: Mapping[str, Stateful],
    facts: Mapping[str, Any],
    keep: int = 1,
) -> Path:
    """Write the state of all ``parts`` as one checkpoint, then prune to the newest ``keep`` up to ``order``.

    ``facts`` (recipe hash, versions) go into the manifest. Checkpoints *after* ``order`` are pruned too: they
    failed to verify or belong to a future that was given up. Raises ``MachineError`` when the disk is full or
    fails; nothing that was visible before has then been touched. The caller must be the only writer of
    ``directory``.
    """
    if keep < 1:
        raise ValueError(f"keep={keep}: at least one checkpoint must be kept")
    name = label(order)
    staging = directory / f".tmp-{name}.{os.getpid()}"
    try:
        states = {part: _checked(part, stateful.state()) for part, stateful in parts.items()}
        _make_folder(directory)
        sweep(directory)
        _require_space(directory, states)
        _write_staging(staging, order, states, facts)
        target = _commit(staging, directory / name)
    except OSError as error:
        with suppress(OSError):
            sweep(directory)
        raise MachineError(
            str(directory / name),
            f"the checkpoint could not be written ({error.strerror or error}); older checkpoints are untouched",
            "free some space or mend the disk, or point the run at another disk",
        ) from error
    _prune(directory, order, keep)
    return target


def _checked(part: str, state: State) -> State:
    """Refuse what JSON would change in silence, so that no part comes back different from how it was saved."""
    if not re.fullmatch(r"[A-Za-z_]\w*", part, re.ASCII) or part == Path(MANIFEST).stem:
        raise ValueError(f"part {part!r}: a part's name is an identifier other than 'manifest'")
    for trail, value in _leaves(dict(state.values), part):
        if not (value is None or isinstance(value, bool | int | float | str)):
            raise TypeError(f"{trail}: {type(value).__name__} cannot be kept as JSON; use plain values, or a tensor")
    for key, tensor in state.tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{part}.{key}: expected a tensor, found {type(tensor).__name__}")
    return state


def _leaves(value: Any, trail: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{trail}: key {key!r} is not a string and would come back as one")
            yield from _leaves(item, f"{trail}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{trail}[{index}]")
    else:
        yield trail, value


def _require_space(directory: Path, states: Mapping[str, State]) -> None:
    needed = sum(
        tensor.numel() * tensor.element_size() for state in states.values() for tensor in state.tensors.values()
    )
    needed = int(SPACE_MARGIN * (needed + sum(len(json.dumps(dict(state.values))) for state in states.values())))
    free = _free_bytes(directory)
    if free < needed:
        raise OSError(f"it needs {needed / 1e6:.1f} MB and {free / 1e6:.1f} MB are free")


def _write_staging(staging: Path, order: Order, states: Mapping[str, State], facts: Mapping[str, Any]) -> None:
    _make_folder(staging)
    files: dict[str, dict[str, Any]] = {}
    for part, state in states.items():
        tensors, values = staging / f"{part}.safetensors", staging / f"{part}.json"
        _write_tensors(tensors, _storable(state.tensors))
        _write_bytes(values, (json.dumps(dict(state.values), indent=1) + "\n").encode("ascii"))
        for path in (tensors, values):
            _sync(path)
            files[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    body = {"format": FORMAT, "order": list(order), "facts": dict(facts), "files": files}
    _write_bytes(staging / MANIFEST, _sealed(body))
    _sync(staging / MANIFEST)
    _sync(staging)


def _commit(staging: Path, target: Path) -> Path:
    """Make ``staging`` visible by one rename; a folder in the way stands aside under a name that ``sweep`` undoes."""
    aside = target.with_name(_DISPLACED + target.name)
    if target.exists():
        _rename(target, aside)
    _rename(staging, target)
    _sync(target.parent)
    with suppress(OSError):  # committed; what is left of the old one is swept later
        if aside.exists():
            _remove(aside)
    return target


def _prune(directory: Path, order: Order, keep: int) -> None:
    current = labelled(directory)
    past = [path for other, path in current if age(other) <= age(order)]
    kept = set(past[-keep:])
    for _, path in current:
        if path not in kept:
            hidden = directory / f".tmp-{path.name}.{os.getpid()}"
            try:  # hidden first: a crash in the midst of deleting must not leave a broken checkpoint in view
                _rename(path, hidden)
                _remove(hidden)
            except OSError:  # a leftover costs space, not correctness; the next save tries again
                continue


def sweep(directory: Path) -> None:
    """Delete what interrupted saves left behind. Only for the run that holds the folder's lock."""
    for path in list(directory.glob(".*")) if directory.is_dir() else []:
        if path.name.startswith(_DISPLACED):
            home = path.with_name(path.name.removeprefix(_DISPLACED))
            if home.exists():
                _remove(path)
            else:
                _rename(path, home)
        elif path.name.startswith(".tmp-") and path.is_dir():
            _remove(path)


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detached, on the CPU, contiguous, and no two sharing memory, which safetensors refuses."""
    result: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, tensor in tensors.items():
        plain = tensor.detach().resolve_conj().resolve_neg().to("cpu").contiguous()
        memory = plain.untyped_storage().data_ptr()
        result[key] = plain.clone() if memory in seen else plain
        seen.add(memory)
    return result


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sealed(body: Mapping[str, Any]) -> bytes:
    """The manifest's bytes: ``body`` and, last, the SHA-256 of its text, so that the manifest too can be verified."""
    digest = hashlib.sha256(json.dumps(body, indent=1).encode("ascii")).hexdigest()
    return (json.dumps({**body, "sha256": digest}, indent=1) + "\n").encode("ascii")


# -------------------------------------------------------------------------------------------------------------- reading
@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint: folder, order (step, optimizer steps inside it), the saver's facts, names of its parts."""

    path: Path
    order: Order
    facts: Mapping[str, Any]
    parts: tuple[str, ...]

    def read(self, part: str) -> State:
        """The state of one part; tensors are on the CPU."""
        tensors = load_file(self.path / f"{part}.safetensors")
        # clone: loaded tensors are views of the mapped file at odd addresses, and alignment may change rounding
        copied = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()}
        return State(tensors=copied, values=json.loads((self.path / f"{part}.json").read_bytes()))

    def restore(self, parts: Mapping[str, Stateful]) -> None:
        """Restore every part; an ``InputError`` unless ``parts`` are, by name, exactly those that were saved."""
        missing, extra = sorted(set(parts) - set(self.parts)), sorted(set(self.parts) - set(parts))
        if missing or extra:
            problem = " and ".join(
                ([f"it holds no {', '.join(missing)}"] if missing else [])
                + ([f"it holds {', '.join(extra)}, which this run does not have"] if extra else [])
            )
            raise InputError(str(self.path), problem, "resume with the recipe that wrote it, or start a new run")
        for name, part in parts.items():
            part.restore(self.read(name))


def latest(directory: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose manifest, sizes and SHA-256 sums verify, and a notice for each newer that does not.

    Reads only, so another process may call it during a run. ``(None, [])`` where nothing was saved.
    """
    notices: list[str] = []
    for order, path in reversed(labelled(directory)):
        checkpoint, fault = verify(path, order)
        if checkpoint:
            return checkpoint, notices
        notices.append(f"checkpoint {path} skipped: {fault}")
    return None, notices


def verify(path: Path, order: Order) -> tuple[Checkpoint | None, str]:
    """The checkpoint at ``path`` and "", or None and what is wrong, naming the file."""
    try:
        raw = (path / MANIFEST).read_bytes()
        content = json.loads(raw)
        if not isinstance(content, dict):
            return None, f"{MANIFEST} is damaged"
        body = {key: value for key, value in content.items() if key != "sha256"}
        if _sealed(body) != raw:
            return None, f"{MANIFEST} is damaged"
        if body["format"] != FORMAT:
            return None, f"{MANIFEST} has format {body['format']}, this version reads format {FORMAT}"
        if tuple(body["order"]) != order:
            return None, f"{MANIFEST} says it is {label((body['order'][0], body['order'][1]))}"
        for name, expected in body["files"].items():
            fault = _file_fault(path, name, expected)
            if fault:
                return None, fault
        parts = tuple(name.removesuffix(".json") for name in body["files"] if name.endswith(".json"))
        return Checkpoint(path, order, body["facts"], parts), ""
    except FileNotFoundError:
        return None, f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        return None, f"{MANIFEST} cannot be read ({error})"


def _file_fault(path: Path, name: str, expected: Mapping[str, Any]) -> str:
    file = path / name
    if not _PART_FILE.fullmatch(name):
        return f"{MANIFEST} lists {name!r}, which is no checkpoint file"
    if not file.is_file():
        return f"{name} is missing"
    size = file.stat().st_size
    if size != expected["bytes"]:
        return f"{name} has {size} bytes, expected {expected['bytes']}"
    return "" if _sha256(file) == expected["sha256"] else f"{name} is damaged (its SHA-256 differs)"
