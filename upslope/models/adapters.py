"""LoRA (arXiv:2106.09685) on a loaded model, in place, by peft's layers.

A linear layer W of the blocks becomes W x + (alpha / rank) B A x with A [rank, in], B [out, rank]. W is frozen and
keeps its dtype; A and B are trained, in at least float32, and so are their own master. The sampler runs the very same
modules: nothing is merged while training. B is 0 at the start, so the model is then exactly its base.

A reference policy and a critic share the frozen weights (``twin``).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from upslope.errors import InputError
from upslope.models.adapter_files import AdapterFiles
from upslope.models.memory import matching
from upslope.seeds import generator

NAME = "default"
"""peft's name for the one adapter that a model has."""


@dataclass(frozen=True, slots=True)
class Lora:
    """``targets`` are names or ends of names of linear layers; none: all in the decoder's blocks."""

    rank: int
    alpha: float
    targets: tuple[str, ...] = ()
    dropout: float = 0.0


class Dropout(nn.Module):
    """Dropout of an adapter's input, off unless ``dropping`` turns it on: evaluation modes do not touch it."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share, self.on = share, False

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, self.share, training=self.on)


def layers(model: nn.Module) -> dict[str, Any]:
    """The layers that carry an adapter, by name. Empty: the model has none."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def linear_names(model: Any) -> list[str]:
    """Names of the linear layers in the decoder's blocks: what LoRA may stand on."""
    inside = {id(module) for module in model.get_decoder().modules()}
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and id(module) in inside]


def chosen_layers(names: Sequence[str], targets: Sequence[str]) -> list[str]:
    """The layers that ``targets`` name (none: all), in the model's order.

    Raises:
        InputError: a target that names no layer, with the names that there are.
    """
    found = {target: matching(names, target) for target in targets}
    empty = [target for target, layers in found.items() if not layers]
    if empty or not names:
        seen = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in names)) or "none"
        problem = f"{', '.join(map(repr, empty)) or 'it'} matches 0 of the {len(names)} linear layers in the blocks"
        raise InputError("lora.targets", f"{problem}. Names seen: {seen}", "name some of these, or leave targets out")
    kept = {name for layers in found.values() for name in layers}
    return [name for name in names if name in kept or not targets]


def add(model: Any, lora: Lora, seed: int) -> None:
    """Give the model a new adapter and freeze the rest. A is uniform within 1 / sqrt(in), drawn from the seed; B is 0.

    Raises:
        InputError: targets that name no layer.
    """
    from peft import LoraConfig

    names = chosen_layers(linear_names(model), lora.targets)
    targets = list(lora.targets) or list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    config = LoraConfig(
        r=lora.rank, lora_alpha=_whole(lora.alpha), lora_dropout=lora.dropout, target_modules=targets,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    _inject(model, config, names)
    with torch.no_grad():
        for name, layer in layers(model).items():
            weight = layer.lora_A[NAME].weight
            bound = weight.shape[1] ** -0.5
            drawn = generator(seed, "lora", name).uniform(-bound, bound, tuple(weight.shape))
            weight.copy_(torch.from_numpy(drawn))


def attach(model: Any, files: AdapterFiles) -> None:
    """Give the model the adapter of a directory, to be used or trained further, and freeze the rest.

    Raises:
        InputError: it was made for another model: layers that this one has not, or other shapes.
    """
    from peft import LoraConfig

    config = LoraConfig.from_pretrained(str(files.directory))
    config.init_lora_weights, config.inference_mode = True, False
    try:
        _inject(model, config)
    except (ValueError, KeyError) as error:
        raise _misfit(files, str(error).splitlines()[0][:200]) from error
    outside = [name for name in layers(model) if name not in _bases(model)]
    if outside:
        problem = f"{files.directory} adapts {', '.join(outside[:3])}; layers in the decoder's blocks are served"
        raise InputError("model.name", problem, f"merge it first: upslope merge {files.directory} OUT")
    own = {_file_name(name): parameter for name, parameter in adapter_parameters(model).items()}
    given = files.tensors()
    if odd := sorted(own.keys() ^ given.keys()):
        which = "the base has no" if odd[0] in given else "the adapter has no"
        raise _misfit(files, f"{which} {odd[0].removeprefix(PREFIX)}" + (f" and {len(odd) - 1} more" * (len(odd) > 1)))
    with torch.no_grad():
        for name, parameter in own.items():
            if parameter.shape != given[name].shape:
                shapes = f"{tuple(given[name].shape)}, the base needs {tuple(parameter.shape)}"
                raise _misfit(files, f"{name.removeprefix(PREFIX)} has shape {shapes}")
            parameter.copy_(given[name])


def go_on(model: Any, lora: Lora | None, name: str) -> None:
    """Check that an attached adapter is the one that a recipe asks for (None: whatever it is).

    Raises:
        InputError: other rank, alpha or layers.
    """
    if lora is None:
        return
    found, names = layers(model), _bases(model)
    has = {(layer.r[NAME], float(layer.lora_alpha[NAME])) for layer in found.values()}
    wanted = chosen_layers(names, lora.targets)
    if has == {(lora.rank, lora.alpha)} and set(found) == set(wanted):
        return
    ranks = " or ".join(f"rank {rank}, alpha {alpha:g}" for rank, alpha in sorted(has))
    raise InputError(
        "lora",
        f"{name} is an adapter of {ranks} on {_leaves(found)}; the recipe asks for rank {lora.rank}, alpha "
        f"{lora.alpha:g} on {_leaves(wanted)}",
        "leave lora out of the recipe to train this adapter further",
    )


def set_dropout(model: Any, share: float) -> None:
    """Replace the adapter's dropout; 0 takes it out."""
    model.peft_config[NAME].lora_dropout = share
    for layer in layers(model).values():
        layer.lora_dropout[NAME] = Dropout(share) if share > 0 else nn.Identity()


@contextmanager
def dropping(model: Any, seed: int) -> Iterator[None]:
    """The adapter's dropout is on inside, its random numbers drawn from ``seed``; without any, nothing happens."""
    gates = [module for module in model.modules() if isinstance(module, Dropout)]
    if not gates:
        yield
        return
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for gate in gates:
            gate.on = True
        try:
            yield
        finally:
            for gate in gates:
                gate.on = False


# -------------------------------------------------------------------------------------------------- copies that share
def twin(module: Any) -> Any:
    """A copy with trainable weights of its own, which shares every frozen one; of a fully trained module, a copy."""
    return copy.deepcopy(module, {id(weight): weight for weight in module.parameters() if not weight.requires_grad})


def reference(model: Any) -> Any:
    """The policy as it is now, frozen: the bare base where the adapter says nothing yet, at no memory of its own."""
    other = twin(model).requires_grad_(False)
    found = layers(other)
    if found and not any(bool(layer.lora_B[NAME].weight.any()) for layer in found.values()):
        for name, layer in found.items():
            parent, _, leaf = name.rpartition(".")
            setattr(other.get_submodule(parent), leaf, layer.base_layer)
        del other.peft_config
    return other


# ------------------------------------------------------------------------------------------------------------- saving
PREFIX = "base_model.model."
"""What peft puts before a tensor's name."""


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's parameters, by the name that they have in the model."""
    return {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}


def exported(model: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """peft's configuration of the adapter as plain values, and its tensors under peft's names."""
    config = model.peft_config[NAME].to_dict()
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    tensors = {_file_name(name): parameter.detach() for name, parameter in adapter_parameters(model).items()}
    return {**plain, "inference_mode": True}, tensors


def _file_name(name: str) -> str:
    return PREFIX + name.replace(f".{NAME}.", ".")


def _inject(model: Any, config: Any, expected: Sequence[str] | None = None) -> None:
    """Put peft's layers in (which freezes everything else), and widen the adapter to at least float32."""
    from peft import inject_adapter_in_model

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # its own start is thrown away
        warnings.simplefilter("ignore")
        inject_adapter_in_model(config, model, adapter_name=NAME)
    if expected is not None and set(layers(model)) != set(expected):
        odd = sorted(set(layers(model)) ^ set(expected))
        raise InputError("lora.targets", f"peft reads the targets differently: {', '.join(odd[:3])}",
                         "give the layers' whole names")  # fmt: skip
    for parameter in adapter_parameters(model).values():
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
        parameter.requires_grad_(True)
    set_dropout(model, float(config.lora_dropout or 0.0))


def _bases(model: Any) -> list[str]:
    """``linear_names`` of a model that carries an adapter: as they were before."""
    names = [name for name in linear_names(model) if ".lora_" not in name]
    return [name.removesuffix(".base_layer") for name in names]


def _leaves(names: Mapping[str, Any] | Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in names))


def _whole(number: float) -> int:
    """A whole number as such; peft takes others just as well, whatever its type says."""
    return int(number) if number == int(number) else number  # type: ignore[return-value]


def _misfit(files: AdapterFiles, problem: str) -> InputError:
    return InputError(
        "model.name",
        f"the adapter {files.directory} does not fit its base model {files.base}: {problem}",
        f"set base_model_name_or_path in {files.directory}/adapter_config.json to the model that it was trained on",
    )
