"""From a name to a model that sampler and learner can share. Safetensors only, no remote code.

A name is a directory, a hub id, the bundled ``smollm2-135m-instruct`` or the made-up ``text-grid-tiny``. What can be
refused cheaply is refused before weights are read; after loading, our forward pass is compared with the stock one
(``verify``).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2.exceptions import TemplateError, TemplateSyntaxError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from upslope.errors import InputError, MachineError
from upslope.models import attention, bundled, tiny
from upslope.models.quiet import quiet
from upslope.models.verify import verify

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True, eq=False)
class Card:
    """What is known of a model before its weights are read.

    ``source`` is the directory or hub id behind ``name``; ``stop_ids`` are all end tokens of the generation config and
    the tokenizer; ``context`` is the number of positions.
    """

    name: str
    source: str
    tokenizer: Any
    context: int
    stop_ids: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A causal language model with upslope's attention, ready for sampler and learner."""

    model: Any
    card: Card
    device: torch.device
    dtype: torch.dtype


def choose_device(wanted: str) -> torch.device:
    """The device of a recipe's ``device`` key; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        MachineError: the device is not there.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", wanted):
        raise InputError("device", f"{wanted!r} is unknown", "use auto, cpu, cuda, cuda:N or mps")
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if wanted == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and not cuda:
        problem = f"{wanted} was asked for, but this torch ({torch.__version__}) sees no CUDA device"
        raise MachineError("device", problem, "set device: cpu, or install torch's CUDA build")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MachineError("device", f"{wanted} was asked for, but there are {torch.cuda.device_count()} CUDA devices",
                           "take a lower number")  # fmt: skip
    if device.type == "mps" and not mps:
        raise MachineError("device", "mps was asked for, but this machine has no Metal device", "set device: cpu")
    return device


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The dtype of the compute weights. ``auto``: bfloat16 where the device multiplies it in hardware, else float32."""
    if wanted != "auto" and wanted not in DTYPES:
        raise InputError("model.dtype", f"{wanted!r} is unknown", f"use auto, {', '.join(DTYPES)}")
    if wanted != "auto":
        if device.type == "cuda" and wanted == "bfloat16" and not torch.cuda.is_bf16_supported():
            raise MachineError("model.dtype", f"bfloat16 is not supported on {device}", "set model.dtype: float32")
        if device.type == "mps" and wanted == "float64":
            raise MachineError("model.dtype", "float64 is not supported on mps", "set device: cpu")
        return DTYPES[wanted]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else torch.float32
    return torch.float32


def locate(name: str, notice: Callable[[str], None] = lambda text: None) -> str:
    """The directory or hub id behind a name, with everything checked that needs no weights.

    Raises:
        InputError: no such directory, pickle weights, a GGUF file, remote code, a git-lfs pointer.
    """
    if name == bundled.NAME:
        return str(bundled.directory(notice))
    if (seed := tiny.seed_of(name)) is not None:
        return str(tiny.directory(seed))
    path = Path(name)
    if not path.exists():
        if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith((".", "/")):
            return name  # a hub id: transformers finds it in the cache or on the hub
        raise InputError("model.name", f"no such directory {name!r}, and no hub id (org/name)",
                         f"give a model directory, a hub id, or {bundled.NAME}")  # fmt: skip
    if path.is_file():
        kind = "a GGUF file" if path.suffix == ".gguf" else "a file"
        raise InputError("model.name", f"{name} is {kind}, a directory with config.json and safetensors was expected",
                         "give the directory of the unquantised model")  # fmt: skip
    if not (path / "config.json").is_file():
        found = ", ".join(sorted(entry.name for entry in path.iterdir())[:6]) or "nothing"
        adapter = (path / "adapter_config.json").is_file()
        hint = "give the adapter's merged model" if adapter else "give a model directory"
        raise InputError("model.name", f"{name} has no config.json (found: {found})", hint)
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        other = [entry.name for entry in path.iterdir() if entry.suffix in (".bin", ".pt", ".pth", ".ckpt", ".gguf")]
        found = f"only {', '.join(sorted(other)[:3])}" if other else "no weights"
        raise InputError(
            "model.name",
            f"{name} has {found}; weights are read from safetensors only (pickle runs code)",
            "convert them with safetensors' converter, or save_pretrained from a trusted machine",
        )
    for file in weights:
        with open(file, "rb") as stream:
            if stream.read(24).startswith(b"version https://git-lfs"):
                raise InputError("model.name", f"{file} is a git-lfs pointer, not weights", "run `git lfs pull` there")
    try:
        config = json.loads((path / "config.json").read_text("utf-8"))
    except ValueError as error:  # of JSON or of UTF-8
        raise InputError("model.name", f"{name}/config.json is not JSON: {_first_line(error)}",
                         "fetch the model again") from error  # fmt: skip
    if not isinstance(config, dict):
        raise InputError("model.name", f"{name}/config.json is not a JSON object", "fetch the model again")
    _refuse_remote_code(config, name)
    return name


def _refuse_remote_code(config: dict[str, Any], name: str) -> None:
    private = [key for key in ("auto_map", "_attn_implementation_internal") if config.get(key)]
    if private:
        raise InputError("model.name", f"{name}'s config.json asks for code of its own ({', '.join(private)})",
                         "use a model whose class is part of transformers; remote code is never run")  # fmt: skip


def read_card(name: str, chat_template: str | None = None, notice: Callable[[str], None] = lambda text: None) -> Card:
    """Locate a model and read its config and tokenizer, with the recipe's chat template where it gives one.

    Raises:
        InputError: as ``locate``, no tokenizer, no such chat template, or one that is not Jinja.
    """
    source = locate(name, notice)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError("model.name", f"no config and tokenizer can be loaded from {name}: {_first_line(error)}",
                         "check the name, or the directory's config.json and tokenizer.json") from error  # fmt: skip
    _refuse_remote_code(config.to_dict(), name)
    if chat_template == "chatml":
        tokenizer.chat_template = CHATML
    elif chat_template is not None:
        file = Path(chat_template)
        if not file.is_file():
            raise InputError("model.chat_template", f"no such file {chat_template}", "give a Jinja file, or chatml")
        tokenizer.chat_template = _template(file, tokenizer)
    try:
        generation = GenerationConfig.from_pretrained(source)
    except OSError:
        generation = None
    context = int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 2048)
    return Card(name, source, tokenizer, context, stop_ids(generation, config, tokenizer))


def _template(file: Path, tokenizer: Any) -> str:
    try:
        text = file.read_text("utf-8")
        # By transformers' own environment: its templates may hold tags that plain Jinja does not know.
        tokenizer.apply_chat_template([{"role": "user", "content": "?"}], chat_template=text, tokenize=False)
    except TemplateSyntaxError as error:
        problem = f"{file} is not a Jinja template: {error.message} (line {error.lineno})"
        raise InputError("model.chat_template", problem, "correct that line") from error
    except UnicodeDecodeError as error:
        raise InputError("model.chat_template", f"{file} is not UTF-8 text", "save it as UTF-8") from error
    except (TemplateError, TypeError):
        pass  # it may well refuse this conversation and take the user's
    return text


@quiet()
def load(card: Card, device: torch.device, dtype: torch.dtype, gradient_checkpointing: bool = False) -> LanguageModel:
    """Load, check and prepare a causal language model: upslope's attention, dropout off.

    Raises:
        InputError: not a causal language model, broken or missing weights, a tokenizer larger than the embedding, or an
            architecture that the registered attention does not serve.
    """
    name = card.name
    try:
        config = AutoConfig.from_pretrained(card.source, trust_remote_code=False)
        no_dropout = {key: 0.0 for key in vars(config) if key.endswith(("dropout", "_pdrop"))}
        # Missing and misshapen weights are reported, not raised: transformers fills them with random numbers.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            card.source, dtype=dtype, attn_implementation="sdpa", trust_remote_code=False, use_safetensors=True,
            output_loading_info=True, ignore_mismatched_sizes=True, **no_dropout,
        )  # fmt: skip
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            "model.name",
            f"{name} is no causal language model that transformers loads: {_first_line(error)}",
            "give a decoder-only model with whole safetensors weights that fit its config.json",
        ) from error
    model, report = loaded
    if misfits := sorted([*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]):
        shown = ", ".join(misfits[:3]) + (f" and {len(misfits) - 3} more" if len(misfits) > 3 else "")
        raise InputError("model.name", f"{name} has no weights that fit {shown} of {type(model).__name__}",
                         "give a causal language model with all of its weights")  # fmt: skip
    rows, known = int(model.get_input_embeddings().weight.shape[0]), len(card.tokenizer)
    if known > rows:
        raise InputError(
            "model.name",
            f"the tokenizer has {known} ids, the embedding {rows} rows: ids from {rows} would crash",
            "resize the embedding with transformers and save the model again",
        )
    model = model.to(device).eval()
    verify(model, name)
    model.set_attn_implementation(attention.NAME)
    if gradient_checkpointing:
        # Stock layers checkpoint only in training mode; dropout is zero, so nothing else changes.
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    return LanguageModel(model, card, device, dtype)


def stop_ids(generation: GenerationConfig | None, config: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every end token: of the generation config (all of them; else of the config) and of the tokenizer."""
    listed = getattr(generation, "eos_token_id", None)
    listed = getattr(config, "eos_token_id", None) if listed is None else listed
    ids = [listed] if isinstance(listed, int) else list(listed or [])
    return tuple(dict.fromkeys([*ids, *([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [])]))


@quiet()
def save(language_model: LanguageModel, directory: Path, card: str) -> None:
    """Write a plain Hugging Face directory: safetensors, tokenizer, chat template, generation config, model card.

    A model that was there is replaced only when the new one is whole. Raises ``MachineError`` where it cannot be
    written.
    """
    staging = directory.with_name(f".{directory.name}.tmp")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        language_model.model.save_pretrained(staging)
        language_model.card.tokenizer.save_pretrained(staging)
        (staging / "README.md").write_text(card, "utf-8")
        shutil.rmtree(directory, ignore_errors=True)
        staging.rename(directory)
    except (OSError, SafetensorError) as error:
        problem = f"the model could not be saved: {_first_line(error)}"
        raise MachineError(str(directory), problem, "free some space, or allow writing there") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
