"""`upslope doctor`: what this machine can do, whether the packages are new enough, which environment variables matter,
and what size of model would fit."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from upslope.models import memory
from upslope.run import machine, resources

PYTHON = (3, 11)
REASONS = {
    "torch": "older ones run code hidden in weight files (CVE-2026-24747)",
    "transformers": "attention by registration; before 5.3 a config.json could run code (CVE-2026-4372)",
    "peft": "LoRA adapters",
    "datasets": "Parquet, saved folders, hub datasets",
    "gguf": "reads the bundled model's file",
    "accelerate": "transformers asks for it to load the bundled model",
}
VARIABLES = (
    "UPSLOPE_CACHE", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_TOKEN", "HF_ENDPOINT",
    "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK",
    "WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_DIR", "TRACKIO_DIR", "TRACKIO_SPACE_ID",
    "CUDA_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ENABLE_MPS_FALLBACK",
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "LD_PRELOAD", "TMPDIR",
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "NO_COLOR", "COLUMNS",
)  # fmt: skip
"""Environment variables that change what a run does or where it looks."""
SECRETS = ("HF_TOKEN", "WANDB_API_KEY")

_QWEN: dict[str, Any] = {"model_type": "qwen2", "vocab_size": 151_936, "tie_word_embeddings": True}
SIZES: dict[str, dict[str, Any]] = {
    "0.135 B": {
        "model_type": "llama", "vocab_size": 49_152, "tie_word_embeddings": True, "hidden_size": 576,
        "num_hidden_layers": 30, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3,
    },
    "0.5 B": {
        **_QWEN, "hidden_size": 896, "num_hidden_layers": 24, "intermediate_size": 4864, "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    "1.5 B": {
        **_QWEN, "hidden_size": 1536, "num_hidden_layers": 28, "intermediate_size": 8960, "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
    "3 B": {
        **_QWEN, "hidden_size": 2048, "num_hidden_layers": 36, "intermediate_size": 11_008, "num_attention_heads": 16,
        "num_key_value_heads": 2,
    },
    "7 B": {
        **_QWEN, "hidden_size": 3584, "num_hidden_layers": 28, "intermediate_size": 18_944, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152_064, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""Sizes of SmolLM2-135M and of Qwen2.5, as in their config.json."""
LONGEST, TOKENS, SLOTS, RANK = 512, 4096, 64, 16
"""The run that is priced: rows of so many tokens, so many at once through the network, so many completions at once."""
WAYS = {
    "sft": {"slots": SLOTS}, "grpo": {"slots": SLOTS}, "grpo, kl": {"slots": SLOTS, "reference": True},
    "ppo": {"slots": SLOTS, "reference": True, "critic": True},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Package:
    """``installed`` is empty where it is missing; ``extra`` names the extra that asks for it, empty for the core."""

    name: str
    installed: str
    needs: str
    ok: bool
    extra: str
    why: str


@dataclass(frozen=True, slots=True)
class Device:
    """An accelerator; bytes."""

    name: str
    memory: int
    free: int
    bfloat16: bool


@dataclass(frozen=True, slots=True)
class Hardware:
    """``vector`` are the processor's features that count here, ``threads`` those that torch uses."""

    platform: str
    cpu: str
    cores: int
    vector: tuple[str, ...]
    memory: int | None
    available: int | None
    disk: int | None
    cache: str
    cache_disk: int | None
    bundled: bool
    torch: str
    threads: int
    devices: tuple[Device, ...]
    device: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Fit:
    """Bytes that a model of this size needs, all weights trained and as an adapter, and whether that is there."""

    size: str
    way: str
    full: int
    lora: int
    full_fits: bool
    lora_fits: bool


@dataclass(frozen=True, slots=True)
class Health:
    """Everything that the doctor found. ``remarks`` are things to know about the environment."""

    python: str
    packages: tuple[Package, ...]
    hardware: Hardware
    variables: Mapping[str, str]
    isolation: tuple[tuple[str, bool, str], ...]
    fits: tuple[Fit, ...]
    there: int | None
    remarks: tuple[str, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """What is needed and is not there, as a requirement each."""
        short = () if sys.version_info >= PYTHON else (f"python>={PYTHON[0]}.{PYTHON[1]}",)
        return (*short, *(f"{p.name}{p.needs}" for p in self.packages if not p.ok and not p.extra))


def examine() -> Health:
    """Look at everything. Needs no torch: what is missing is part of the answer."""
    hardware = _hardware()
    there = max((device.memory for device in hardware.devices), default=hardware.available or hardware.memory)
    variables = environment(os.environ)
    return Health(
        platform.python_version(), packages(), hardware, variables, _isolation(), fits(hardware, there), there,
        remarks(variables, hardware),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ packages
def packages(of: str = "upslope") -> tuple[Package, ...]:
    """What the package asks for by its own metadata, beside what is installed; extras last."""
    from packaging.requirements import Requirement

    try:
        asked = [Requirement(text) for text in metadata.requires(of) or ()]
    except metadata.PackageNotFoundError:
        return ()
    found = []
    for requirement in asked:
        marker = requirement.marker
        always = marker is None or marker.evaluate({"extra": ""})
        extra = (
            "" if always else next((name for name in _extras(of) if marker and marker.evaluate({"extra": name})), "")
        )
        if not always and not extra:
            continue  # for another system
        found.append(_package(requirement.name, str(requirement.specifier), extra))
    return tuple(sorted(found, key=lambda package: package.extra))


def _extras(of: str) -> list[str]:
    return list(metadata.metadata(of).get_all("Provides-Extra") or ())


def _package(name: str, needs: str, extra: str) -> Package:
    from packaging.specifiers import SpecifierSet

    try:
        installed = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Package(name, "", needs, False, extra, REASONS.get(name, ""))
    ok = SpecifierSet(needs).contains(installed.partition("+")[0], prereleases=True)
    return Package(name, installed, needs, ok, extra, REASONS.get(name, ""))


# ------------------------------------------------------------------------------------------------------------- machine
def _hardware() -> Hardware:
    known, here = machine.describe(), resources.memory()
    base = Hardware(
        str(known["platform"]), str(known["cpu"]), int(known["cores"]), (), here.total, here.available,
        resources.disk_free(Path.cwd()), "", None, False, "", 0, (), "", "",
    )  # fmt: skip
    try:
        import torch

        from upslope.models import bundled, loading
    except (ImportError, OSError):  # what is not there is told with the packages
        return base
    cache = bundled.cache_root()
    features = {
        "AVX2": torch.cpu._is_avx2_supported, "AVX-512": torch.cpu._is_avx512_supported,
        "AVX-512 bfloat16": torch.cpu._is_avx512_bf16_supported, "AMX": torch.cpu._is_amx_tile_supported,
    }  # fmt: skip
    device = loading.choose_device("auto")
    build = "CUDA " + str(torch.version.cuda) if torch.version.cuda else "CPU"
    return replace(
        base, cache=str(cache), cache_disk=resources.disk_free(cache),
        bundled=(cache / bundled.NAME / "config.json").is_file(),
        vector=tuple(name for name, has in features.items() if has()), torch=f"{torch.__version__} ({build})",
        threads=torch.get_num_threads(), devices=_devices(torch), device=str(device),
        dtype=str(loading.choose_dtype("auto", device)).removeprefix("torch."),
    )  # fmt: skip


def _devices(torch: Any) -> tuple[Device, ...]:
    found = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(number)
        major, minor = torch.cuda.get_device_capability(number)
        name = f"cuda:{number} {torch.cuda.get_device_name(number)} (sm_{major}{minor})"
        found.append(Device(name, total, free, major >= 8))
    if torch.backends.mps.is_available():
        total = resources.memory().total or 0
        found.append(Device("mps (Metal, shares main memory)", total, total, False))
    return tuple(found)


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """The variables that matter and are set, secrets masked."""
    found = {}
    for name in VARIABLES:
        if name not in given:
            continue
        value = given[name]
        if name in SECRETS:
            value = f"{machine.MASK} (set, {len(value)} characters)" if value else "(set, empty)"
        found[name] = machine.masked([f"{name}={value}"])[0].partition("=")[2] if name not in SECRETS else value
    return found


def remarks(variables: Mapping[str, str], hardware: Hardware) -> tuple[str, ...]:
    """What follows from the variables and the machine, where a user may not expect it."""
    said = []
    if variables.get("WORLD_SIZE", "1") not in ("", "1"):
        said.append(f"WORLD_SIZE is {variables['WORLD_SIZE']}, but a run is one process: unset it if nobody meant it")
    if variables.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        said.append("CUDA_VISIBLE_DEVICES hides every GPU")
    if any(variables.get(name, "").upper() in ("1", "TRUE", "YES", "ON") for name in (
        "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"
    )):  # fmt: skip
        said.append("offline: models and datasets of the hub are taken from the cache only")
    threads = variables.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and 0 < int(threads) < hardware.cores:
        said.append(f"OMP_NUM_THREADS holds torch to {threads} of {hardware.cores} cores")
    if not shutil.which("git"):
        said.append("git is not installed: run.json will not say which commit a run came from")
    return tuple(said)


def _isolation() -> tuple[tuple[str, bool, str], ...]:
    from upslope.worlds.isolation import isolation

    return isolation().lines


def fits(hardware: Hardware, there: int | None) -> tuple[Fit, ...]:
    """What each size of model needs for each recipe, and whether ``there`` bytes do."""
    width = 2 if hardware.dtype in ("", "bfloat16") else 4
    found = []
    for size, config in SIZES.items():
        shape = memory.shape_of(config)
        for way, options in WAYS.items():
            needs = [
                memory.bill(shape, dtype_bytes=width, adapter=adapter, tokens=TOKENS, longest=LONGEST,
                            capacity=LONGEST, **options)["peak"]  # type: ignore[arg-type]
                for adapter in (None, memory.Adapter(RANK))
            ]  # fmt: skip
            full, lora = needs
            found.append(Fit(size, way, full, lora, there is None or full <= there, there is None or lora <= there))
    return tuple(found)
