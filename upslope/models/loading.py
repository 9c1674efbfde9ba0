"""From a name to a model that sampler and learner can share. Safetensors only, no remote code.

A name is a directory, a hub id, the bundled ``smollm2-135m-instruct`` or the made-up ``text-grid-tiny``; a directory or
hub id may hold a LoRA adapter, which names its base. What can be refused cheaply is refused before weights are read;
after loading, our forward pass is compared with the stock one (``verify``).
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
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from jinja2.exceptions import TemplateError, TemplateSyntaxError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils.peft_utils import find_adapter_config_file

from upslope.errors import InputError, MachineError
from upslope.models import adapter_files, adapters, attention, bundled, tiny
from upslope.models.adapter_files import AdapterFiles
from upslope.models.quiet import quiet
from upslope.models.verify import verify
from upslope.models.weights import stored_tensors

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True, eq=False)
class Card:
    """What is known of a model before its weights are read.

    ``source`` is the directory or hub id behind ``name``, and that of its base model if ``name`` is an ``adapter``;
    ``stop_ids`` are all end tokens of the generation config and the tokenizer; ``context`` is the number of positions.
    """

    name: str
    source: str
    tokenizer: Any
    context: int
    stop_ids: tuple[int, ...]
    adapter: AdapterFiles | None = None

    @property
    def base(self) -> str:
        """The model without its adapter, as it was named."""
        return self.name if self.adapter is None else self.adapter.base


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A causal language model with upslope's attention, ready for sampler and learner.

    With an adapter its base is frozen; without one all weights are trainable.
    """

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
            version = "".join(map(str, torch.cuda.get_device_capability(device)))
            problem = f"bfloat16 is not supported on {device} (sm_{version})"
            raise MachineError("model.dtype", problem, "set model.dtype: float32, which takes twice the memory")
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
    try:
        there = path.exists()
    except OSError as error:  # a name too long, a folder that may not be entered
        raise InputError("model.name", f"{name[:200]} cannot be looked at: {error.strerror}",
                         "give a model directory") from error  # fmt: skip
    if not there:
        if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith((".", "/")):
            return name  # a hub id: transformers finds it in the cache or on the hub
        raise InputError("model.name", f"no such directory {name!r}, and no hub id (org/name)",
                         f"give a model directory, a hub id, or {bundled.NAME}")  # fmt: skip
    if not path.is_dir():
        kind = "a GGUF file" if path.suffix == ".gguf" else "a file"
        raise InputError("model.name", f"{name} is {kind}, a directory with config.json and safetensors was expected",
                         "give the directory of the unquantised model")  # fmt: skip
    if adapter_files.is_adapter(path):
        return name
    if not (path / "config.json").is_file():
        found = ", ".join(sorted(entry.name for entry in path.iterdir())[:6]) or "nothing"
        raise InputError("model.name", f"{name} has no config.json (found: {found})", "give a model directory")
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
    stored_tensors(path)  # a shard that is missing or cut short is told now, not after a minute of loading
    try:
        config = json.loads((path / "config.json").read_text("utf-8"))
    except ValueError as error:  # of JSON or of UTF-8
        raise InputError("model.name", f"{name}/config.json is not JSON: {_first_line(error)}",
                         "fetch the model again") from error  # fmt: skip
    if not isinstance(config, dict):
        raise InputError("model.name", f"{name}/config.json is not a JSON object", "fetch the model again")
    _refuse_remote_code(config, name)
    return name


def _refuse_quantised(config: dict[str, Any], name: str) -> None:
    """Quantised weights take no gradient, and our packed steps read plain matrices."""
    found = config.get("quantization_config")
    if found:
        kind = found.get("quant_method", "some method") if isinstance(found, dict) else "some method"
        raise InputError("model.name", f"{name} is quantised ({kind}), and quantised weights cannot be trained here",
                         "give the unquantised model, and lora.rank=16 to save memory")  # fmt: skip


def _refuse_remote_code(config: dict[str, Any], name: str) -> None:
    private = [key for key in ("auto_map", "_attn_implementation_internal") if config.get(key)]
    if private:
        raise InputError("model.name", f"{name}'s config.json asks for code of its own ({', '.join(private)})",
                         "use a model whose class is part of transformers; remote code is never run")  # fmt: skip


def read_card(
    name: str, chat_template: str | None = None, notice: Callable[[str], None] = lambda text: None,
    classifier: bool = False,
) -> Card:  # fmt: skip
    """Locate a model and read its config and tokenizer, with the recipe's chat template where it gives one.

    An adapter's tokenizer is its own if it has one, else that of its base. ``classifier``: a sequence classifier is
    wanted (``scoring``), not a language model.

    Raises:
        InputError: as ``locate`` and ``adapter_files.read``, a reward model in a language model's place, no tokenizer,
            no such chat template, or one that is not Jinja.
    """
    source = words = _fetched(locate(name, notice))
    adapter = adapter_files.read(Path(source)) if adapter_files.is_adapter(Path(source)) else None
    if adapter is not None:
        source = locate(adapter.base, notice)
        adapter_files.check_base(adapter, source)
        words = words if any((Path(words) / file).is_file() for file in TOKENIZERS) else source
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(words, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        here = "" if Path(name).is_dir() else f", and there is no folder {name} here"
        raise InputError("model.name", f"no config and tokenizer can be loaded from {name}: {_first_line(error)}{here}",
                         "check the name, or the directory's config.json and tokenizer.json") from error  # fmt: skip
    _refuse_remote_code(config.to_dict(), name)
    _refuse_quantised(config.to_dict(), name)
    kinds = [str(kind) for kind in getattr(config, "architectures", None) or []]
    if not classifier and any(kind.endswith("ForSequenceClassification") for kind in kinds):
        # One with tied embeddings would load as a language model without a word.
        raise InputError("model.name", f"{name} is a reward model ({kinds[0]}), a causal language model was expected",
                         f"give it as reward: {{model: {name}}}, and a language model here")  # fmt: skip
    if chat_template == "chatml":
        tokenizer.chat_template = CHATML
    elif chat_template is not None:
        file = Path(chat_template)
        if len(file.name) > 255 or not file.is_file():
            raise InputError("model.chat_template", f"no such file {chat_template}", "give a Jinja file, or chatml")
        tokenizer.chat_template = _template(file, tokenizer)
    try:
        generation = GenerationConfig.from_pretrained(source)
    except OSError:
        generation = None
    context = int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 2048)
    return Card(name, source, tokenizer, context, stop_ids(generation, config, tokenizer), adapter)


def _fetched(source: str) -> str:
    """The local copy of an adapter that lies on the hub; anything else as it is."""
    if Path(source).exists():
        return source
    try:
        if find_adapter_config_file(source) is None:
            return source
        return snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"])
    except (OSError, ValueError, HfHubHTTPError):
        return source  # whatever is wrong is told when its config is read


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
    """Load, check and prepare a causal language model: upslope's attention, dropout off, its adapter where it has one.

    Raises:
        InputError: as ``stock``; an architecture that the registered attention does not serve; an adapter that does
            not fit, or of a kind that is not served.
    """
    if card.adapter is not None:
        adapter_files.refuse_unserved(card.adapter)
    model = stock(card, dtype).to(device).eval()
    verify(model, card.base)
    model.set_attn_implementation(attention.NAME)
    if card.adapter is not None:
        adapters.attach(model, card.adapter)
    if gradient_checkpointing:
        # Stock layers checkpoint only in training mode; dropout is zero, so nothing else changes.
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    return LanguageModel(model, card, device, dtype)


def stock(card: Card, dtype: torch.dtype | str) -> Any:
    """The stock model at ``card.source``, without an adapter, in ``dtype`` (``auto``: as it is stored).

    Raises:
        InputError: not a causal language model, broken or missing weights, a tokenizer larger than the embedding.
    """
    name = card.base
    try:
        config = AutoConfig.from_pretrained(card.source, trust_remote_code=False)
        no_dropout = {key: 0.0 for key in vars(config) if key.endswith(("dropout", "_pdrop"))}
        # Missing and misshapen weights are reported, not raised: transformers fills them with random numbers.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            card.source, dtype=dtype, attn_implementation="sdpa", trust_remote_code=False, use_safetensors=True,
            output_loading_info=True, ignore_mismatched_sizes=True, **no_dropout,
        )  # fmt: skip
    except (OSError, ValueError, SafetensorError) as error:
        raise no_language_model(name, error) from error
    model, report = loaded
    if misfits := sorted([*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]):
        shown = ", ".join(misfits[:3]) + (f" and {len(misfits) - 3} more" if len(misfits) > 3 else "")
        raise InputError("model.name", f"{name} has no weights that fit {shown} of {type(model).__name__}",
                         "give a causal language model with all of its weights")  # fmt: skip
    check_vocabulary(name, len(card.tokenizer), int(model.get_input_embeddings().weight.shape[0]))
    return model


def no_language_model(name: str, error: Exception) -> InputError:
    """What transformers says of a model that it does not load as a causal language model."""
    return InputError(
        "model.name",
        f"{name} is no causal language model that transformers loads: {_first_line(error)}",
        "give a decoder-only model with whole safetensors weights that fit its config.json",
    )


def check_vocabulary(name: str, known: int, rows: int) -> None:
    """Raise InputError where the tokenizer has more ids (``known``) than the embedding has ``rows``."""
    if known > rows:
        raise InputError(
            "model.name",
            f"the tokenizer has {known} ids, the embedding {rows} rows: ids from {rows} would crash",
            "resize the embedding with transformers and save the model again",
        )


def stop_ids(generation: GenerationConfig | None, config: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every end token: of the generation config (all of them; else of the config) and of the tokenizer."""
    listed = getattr(generation, "eos_token_id", None)
    listed = getattr(config, "eos_token_id", None) if listed is None else listed
    ids = [listed] if isinstance(listed, int) else list(listed or [])
    return tuple(dict.fromkeys([*ids, *([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [])]))


@quiet()
def save(language_model: LanguageModel, directory: Path, card: str) -> None:
    """Write a plain Hugging Face directory: safetensors, tokenizer, chat template, generation config, model card.

    Of a model with an adapter, a PEFT directory with the adapter alone. A model that was there is replaced only when
    the new one is whole. Raises ``MachineError`` where it cannot be written.
    """

    def write(staging: Path) -> None:
        if adapters.layers(language_model.model):
            adapter_files.write(staging, *adapters.exported(language_model.model), language_model.card.source)
        else:
            language_model.model.save_pretrained(staging)
        language_model.card.tokenizer.save_pretrained(staging)
        (staging / "README.md").write_text(card, "utf-8")

    replace_directory(directory, write)


def replace_directory(directory: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a new folder, then put it in the place of ``directory``; MachineError where that fails."""
    staging = directory.with_name(f".{directory.name}.tmp")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        write(staging)
        shutil.rmtree(directory, ignore_errors=True)
        staging.rename(directory)
    except (OSError, SafetensorError) as error:
        problem = f"the model could not be saved: {_first_line(error)}"
        raise MachineError(str(directory), problem, "free some space, or allow writing there") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
