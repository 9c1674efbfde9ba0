"""An adapter merged into its base: a plain model directory that needs no peft.

W + (alpha / rank) B A is computed in float32 (float64 for float64 weights) a layer at a time and rounded once, to the
type that the base is stored in.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from upslope.errors import InputError
from upslope.models import adapter_files, loading
from upslope.models.loading import DTYPES, LanguageModel
from upslope.models.quiet import quiet


@quiet()
def merge(adapter: str, out: Path, dtype: str = "auto") -> Path:
    """Write the merged model of an adapter's directory (or hub id) to ``out``; of every kind that peft merges.

    ``dtype`` is the type of the written weights; auto: the base's own.

    Raises:
        InputError: not an adapter, or one that cannot be merged; its base is missing or another; ``out`` is not empty.
        MachineError: it cannot be written.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise InputError("dtype", f"{dtype!r} is unknown", f"use auto, {', '.join(DTYPES)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(str(out), "there is something already", "give another folder")
    card = loading.read_card(adapter)
    if card.adapter is None:
        raise InputError("adapter", f"{adapter} is no adapter (it has no {adapter_files.CONFIG})",
                         "give an adapter's directory, such as runs/NAME/model of a run with lora")  # fmt: skip
    model = merged(loading.stock(card, DTYPES.get(dtype, "auto")), card.adapter)
    weight = next(model.parameters())
    text = (
        f"---\nbase_model: {card.base}\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- upslope\n"
        f"---\n\n# {card.base} with the adapter {Path(adapter).name}\n\nMerged by `upslope merge`.\n"
    )
    loading.save(LanguageModel(model, card, weight.device, weight.dtype), out, text)
    return out


def merged(model: Any, files: adapter_files.AdapterFiles) -> Any:
    """The stock model with the adapter in its weights, each layer computed in at least float32 and rounded once.

    Raises:
        InputError: the adapter does not fit, changes weights that stand in two places, or cannot be merged by peft.
    """
    from peft import PeftModel

    fix = "give it the base model that it was trained on, or train without such layers"
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            whole = PeftModel.from_pretrained(model, str(files.directory))
            carrying = {name: layer for name, layer in whole.named_modules() if hasattr(layer, "base_layer")}
            _refuse_tied(whole, carrying, files)
            for layer in carrying.values():
                base = layer.get_base_layer()
                stored = next(base.parameters()).dtype
                base.to(torch.promote_types(stored, torch.float32))
                layer.merge(safe_merge=True)
                base.to(stored)
            plain: Any = whole.merge_and_unload()
    except (ValueError, RuntimeError, KeyError, NotImplementedError, AttributeError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        problem = f"the adapter cannot be merged into {files.base}: {reason}"
        raise InputError(str(files.directory), problem, fix) from error
    return plain


def _refuse_tied(whole: Any, carrying: dict[str, Any], files: adapter_files.AdapterFiles) -> None:
    """A layer whose weight is used elsewhere too (an output head tied to the embedding) would change that as well."""
    owners: dict[int, list[str]] = {}
    for name, module in whole.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None:
            owners.setdefault(weight.data_ptr(), []).append(name)
    for name, layer in carrying.items():
        others = owners.get(layer.get_base_layer().weight.data_ptr(), [])
        if len(others) > 1:
            leaf = name.rpartition(".")[2]
            problem = f"it changes {leaf}, whose weights are another layer's too (tied): merging would change both"
            raise InputError(str(files.directory), problem, f"train an adapter without {leaf}")
