"""What a model's safetensors files hold, read from their headers: names, types and shapes, without the weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from upslope.errors import InputError

LONGEST_HEADER = 100_000_000
"""Bytes; what the safetensors library accepts at most."""
INDEX = "model.safetensors.index.json"
METADATA = "__metadata__"


@dataclass(frozen=True, slots=True)
class Stored:
    """One stored tensor: its type as safetensors names it (``BF16``) and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)


def stored_tensors(directory: Path) -> dict[str, Stored]:
    """Every tensor of the directory's safetensors files, by name.

    Raises:
        InputError: a file that is cut short or is no safetensors file, or a shard that the index names is missing.
    """
    found: dict[str, Stored] = {}
    for file in files_of(directory):
        found |= _header(file)
    return found


def files_of(directory: Path) -> list[Path]:
    """The files that hold the weights: those of the index where there is one, else every safetensors file.

    Raises:
        InputError: a file that the index names is missing.
    """
    index = directory / INDEX
    if not index.is_file():
        single = directory / "model.safetensors"
        return [single] if single.is_file() else sorted(directory.glob("*.safetensors"))
    try:
        named = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError("model.name", f"{index} is no index of shards ({type(error).__name__})",
                         "fetch the model again") from error  # fmt: skip
    files = [directory / str(name) for name in named]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        problem = f"{directory} lacks {len(missing)} of {len(files)} weight files: {', '.join(missing[:3])}"
        raise InputError("model.name", problem, "fetch the model again")
    return files


def read_header(stream: BufferedIOBase, size: int) -> tuple[dict[str, Any], int]:
    """The entries of a safetensors file of ``size`` bytes as it has them, ``__metadata__`` among them, and the place
    where the tensors begin.

    Raises:
        ValueError: no header, one that is cut short, or one that is not JSON.
    """
    stream.seek(0)
    length = int.from_bytes(stream.read(8), "little")
    if size < 8 or not 2 <= length <= min(LONGEST_HEADER, size - 8):
        raise ValueError("its header is cut short" if size - 8 < length < LONGEST_HEADER else "no header")
    entries: dict[str, Any] = json.loads(stream.read(length))
    return entries, 8 + length


def _header(file: Path) -> dict[str, Stored]:
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            header, begin = read_header(stream, size)
        tensors: dict[str, Any] = {name: value for name, value in header.items() if name != METADATA}
        found = {name: Stored(str(value["dtype"]), _shape(value["shape"])) for name, value in tensors.items()}
        end = max((int(value["data_offsets"][1]) for value in tensors.values()), default=0)
    except OSError as error:
        raise InputError("model.name", f"{file} cannot be read: {error.strerror}",
                         "check the file's permissions") from error  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        reason = str(error) if type(error) is ValueError else "its header is damaged"
        raise InputError("model.name", f"{file} is no whole safetensors file ({reason})",
                         "fetch the model again") from error  # fmt: skip
    if size < begin + end:
        problem = f"{file} is cut short: {size:,} bytes, its header says {begin + end:,}"
        raise InputError("model.name", problem, "fetch the model again")
    return found


def _shape(value: Any) -> tuple[int, ...]:
    shape = tuple(int(size) for size in value)
    if any(size < 0 for size in shape):
        raise ValueError("a negative size")
    return shape


def parameters(tensors: Mapping[str, Stored], tied: bool = False) -> int:
    """Number of parameters. ``tied``: the output head is the embedding, so a stored copy of it does not count."""
    return sum(tensor.count for name, tensor in tensors.items() if not (tied and name == "lm_head.weight"))


def find(source: str) -> dict[str, Stored] | None:
    """The tensors behind a directory or a hub id; of a hub id from the cache, else from the hub's headers alone.

    None where they are not to be had (the hub is out of reach, the repository has no safetensors). Raises InputError
    for a directory as ``stored_tensors``.
    """
    path = Path(source)
    if path.is_dir():
        return stored_tensors(path) or None
    from huggingface_hub import get_safetensors_metadata, try_to_load_from_cache

    cached = try_to_load_from_cache(source, "config.json")
    if isinstance(cached, str) and any(Path(cached).parent.glob("*.safetensors")):
        return stored_tensors(Path(cached).parent)
    try:
        meta = get_safetensors_metadata(source)
    except Exception:  # the hub's client and the network raise dozens of kinds, and a count is a convenience
        return None
    return {
        name: Stored(str(info.dtype), tuple(info.shape))
        for file in meta.files_metadata.values()
        for name, info in file.tensors.items()
    }
