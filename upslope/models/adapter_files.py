"""Adapters as files, in PEFT's layout: what is read, what is refused, whether the base is still the same.

``adapter_config.json`` names the base model and the layers, ``adapter_model.safetensors`` holds A and B. Plain peft
and plain transformers open what is written here. Beside that, the tensors' file notes a fingerprint of the base's
weights: an adapter on top of other weights would be silently wrong.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from upslope.errors import InputError
from upslope.models import bundled, tiny
from upslope.models.weights import METADATA, files_of, read_header, stored_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FINGERPRINT = "upslope_base_sha256"
SERVED = {
    "peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "peft_version", "r",
    "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern",
    "layers_to_transform", "layers_pattern", "init_lora_weights", "auto_mapping",
}  # fmt: skip
"""Settings of peft's LoraConfig that may differ from their defaults."""
PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Ways to draw an adapter's first weights that leave the base's weights alone."""


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """An adapter's directory: its configuration, and its base model as upslope names it."""

    directory: Path
    config: dict[str, Any]
    base: str

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor under its name in the file.

        Raises:
            InputError: the file is broken.
        """
        try:
            return load_file(self.directory / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise InputError("model.name", f"{self.directory / WEIGHTS} cannot be read: {str(error)[:200]}",
                             "copy the adapter again") from error  # fmt: skip


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter."""
    return (directory / CONFIG).is_file()


def read(directory: Path) -> AdapterFiles:
    """The adapter in a directory, with everything checked that needs no weights of the base.

    Raises:
        InputError: whole weights beside it, pickle weights, a git-lfs pointer, broken JSON, no base named, or a base
            that is not where it was.
    """
    whole = [file.name for file in sorted(directory.glob("*.safetensors")) if file.name != WEIGHTS]
    if whole:
        problem = f"{directory} holds a whole model ({whole[0]}) and an adapter ({CONFIG})"
        raise InputError("model.name", problem, f"move {CONFIG} away, or the whole model's files")
    if not (directory / WEIGHTS).is_file():
        other = sorted(file.name for file in directory.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        found = f"only {', '.join(other[:3])}" if other else "no weights"
        raise InputError(
            "model.name",
            f"the adapter {directory} has {found}; weights are read from safetensors only (pickle runs code)",
            "save it again with peft's save_pretrained, on a machine where it is trusted",
        )
    with open(directory / WEIGHTS, "rb") as stream:
        if stream.read(24).startswith(b"version https://git-lfs"):
            problem = f"{directory / WEIGHTS} is a git-lfs pointer, not weights"
            raise InputError("model.name", problem, "run `git lfs pull` there")
    stored_tensors(directory)  # a file that is cut short is told now
    try:
        config = json.loads((directory / CONFIG).read_text("utf-8"))
    except ValueError as error:  # of JSON or of UTF-8
        raise InputError("model.name", f"{directory / CONFIG} is not JSON: {str(error)[:200]}",
                         "fetch the adapter again") from error  # fmt: skip
    if not isinstance(config, dict):
        raise InputError("model.name", f"{directory / CONFIG} is not a JSON object", "fetch the adapter again")
    files = AdapterFiles(directory, config, _base(directory, config))
    if Path(files.base).is_dir() and is_adapter(Path(files.base)):
        raise InputError("model.name", f"the base of the adapter {directory} is an adapter itself: {files.base}",
                         f"merge that one first: upslope merge {files.base} OUT")  # fmt: skip
    return files


def _base(directory: Path, config: dict[str, Any]) -> str:
    """The base model: a directory that exists, a name that upslope knows, or a hub id."""
    named = config.get("base_model_name_or_path")
    where = f"base_model_name_or_path in {directory / CONFIG}"
    if not isinstance(named, str) or not named.strip():
        raise InputError("model.name", f"the adapter {directory} names no base model", f"set {where}")
    last = Path(named).name
    if Path(named).is_dir():
        return named
    # A name of our own, or its folder in the cache of another machine.
    if last == bundled.NAME or tiny.seed_of(last) is not None:
        return last
    if found := re.fullmatch(rf"({tiny.NAME}-\d+)-form{tiny.FORM}", last):
        return found[1]
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", named):
        return named
    raise InputError("model.name", f"the base model of the adapter {directory} is not at {named}",
                     f"put it back there, or set {where} to where it is now")  # fmt: skip


def refuse_unserved(files: AdapterFiles) -> None:
    """Raise ``InputError`` for a kind of adapter that is merged by peft, but not trained or sampled with here."""
    from peft import LoraConfig

    config, fix = files.config, f"merge it first: upslope merge {files.directory} OUT"
    kind = config.get("peft_type")
    if kind != "LORA":
        raise InputError("model.name", f"{files.directory} is an adapter of type {kind}, LORA was expected", fix)
    usual = {item.name: getattr(LoraConfig(), item.name) for item in fields(LoraConfig)}
    empty: tuple[Any, ...] = (None, False, [], {}, "", "none")
    odd = sorted(
        key for key, value in config.items()
        if key in usual and key not in SERVED and value != usual[key] and not (value in empty and usual[key] in empty)
        and key not in ("runtime_config",)
    )  # fmt: skip
    start = config.get("init_lora_weights", True)
    if start not in PLAIN_STARTS and start is not None:
        odd.append("init_lora_weights")
    if odd:
        shown = ", ".join(f"{key}: {str(config[key])[:60]}" for key in odd)
        raise InputError("model.name", f"the adapter {files.directory} uses {shown}, which is not served", fix)


# ------------------------------------------------------------------------------------------------------ the same base?
def fingerprint(directory: Path) -> str | None:
    """sha256 over name, dtype, shape and the first, middle and last 64 bytes of every tensor of a model directory.

    It does not depend on how the tensors are spread over files. Training changes all weights, so parts tell. None
    where there are no safetensors.
    """
    parts: list[bytes] = []
    for file in files_of(directory):
        with open(file, "rb") as stream:
            entries, first = read_header(stream, file.stat().st_size)
            for name, entry in entries.items():
                if name == METADATA:
                    continue
                begin, end = entry["data_offsets"]
                seen = []
                for place in (begin, (begin + end) // 2, max(begin, end - 64)):
                    stream.seek(first + place)
                    seen.append(stream.read(min(64, end - place)))
                parts.append(repr((name, entry["dtype"], entry["shape"])).encode() + b"".join(seen))
    return hashlib.sha256(b"\0".join(sorted(parts))).hexdigest() if parts else None


def check_base(files: AdapterFiles, source: str) -> None:
    """Raise ``InputError`` where the adapter notes which weights it was trained on and ``source`` holds others."""
    with safe_open(files.directory / WEIGHTS, "pt") as opened:
        noted = (opened.metadata() or {}).get(FINGERPRINT)
    found = fingerprint(Path(source)) if noted and Path(source).is_dir() else None
    if found is not None and found != noted:
        raise InputError(
            "model.name",
            f"{source} holds other weights than those that the adapter {files.directory} was trained on",
            "put that model back, or train the adapter again",
        )


# ------------------------------------------------------------------------------------------------------------- writing
def write(directory: Path, config: dict[str, Any], tensors: dict[str, Tensor], source: str) -> None:
    """Write an adapter on top of the model at ``source``, a directory (noted by its whole path) or a hub id."""
    base = Path(source)
    noted = fingerprint(base) if base.is_dir() else None
    named = str(base.resolve()) if base.is_dir() else source
    whole = {**config, "base_model_name_or_path": named, "task_type": "CAUSAL_LM"}
    (directory / CONFIG).write_text(json.dumps(whole, indent=2, sort_keys=True, default=str) + "\n", "utf-8")
    data = save(
        {name: tensor.contiguous().cpu() for name, tensor in tensors.items()},
        {"format": "pt", **({FINGERPRINT: noted} if noted else {})},
    )
    (directory / WEIGHTS).write_bytes(_ordered(data))


def _ordered(data: bytes) -> bytes:
    """The same safetensors file with its metadata sorted: the library writes several notes in an order of chance."""
    entries, end = read_header(io.BytesIO(data), len(data))
    entries[METADATA] = dict(sorted(entries[METADATA].items()))
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]
