"""A reward model: a decoder and one linear number at the last token of a text.

It is made from a causal language model (``fresh``), saved as a sequence classifier with one label that plain
transformers opens, and read back for scoring (``read_classifier``, ``load_classifier``).

transformers reads the score at the last token that is not padding. A stop token that is also the padding token would be
passed over, so a classifier is saved with a padding token of its own (``padding``).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from upslope.errors import InputError
from upslope.models import adapters, attention, loading
from upslope.models.attention import PackedRows
from upslope.models.loading import Card, LanguageModel
from upslope.models.quiet import quiet
from upslope.models.shared import SharedRows
from upslope.models.verify import BEYOND, SHORT, window_of
from upslope.types import Batch, ScoreEvaluation

HEAD = "score.weight"
FACTS = "upslope_scoring.json"
"""Beside the classifier: how its texts were rendered, for one who renders texts for it."""
PAD = "<|pad|>"
WHERE = "reward.model"


class ScoreNetwork(nn.Module):
    """s(text): a decoder and a linear head without a bias in float32, read at each row's last token.

    The head is zero at the start, so every text has score 0 and every preference probability 1/2.
    """

    def __init__(self, decoder: Any, weight: Tensor | None = None) -> None:
        super().__init__()
        self.decoder = decoder
        sample = next(decoder.parameters())
        dtype = torch.promote_types(sample.dtype, torch.float32)
        self.head = nn.Linear(decoder.config.hidden_size, 1, bias=False, dtype=dtype, device=sample.device)
        with torch.no_grad():
            if weight is None:
                nn.init.zeros_(self.head.weight)
            else:
                self.head.weight.copy_(weight)

    def forward(self, batch: Batch) -> ScoreEvaluation:
        """``scores`` [batch] of the whole rows. Rows of a unit share the pass over what they begin with."""
        layout = SharedRows(batch.token_ids, batch.lengths, batch.unit)
        out = self.decoder(input_ids=layout.token_ids, position_ids=layout.position_ids, use_cache=False, layout=layout)
        everyone = torch.arange(len(batch), device=batch.lengths.device)
        last = out.last_hidden_state[0][layout.source[everyone, batch.lengths - 1]]
        return ScoreEvaluation(self.head(last.to(self.head.weight.dtype))[:, 0])


def fresh(model: LanguageModel) -> ScoreNetwork:
    """A reward model that begins as this language model's decoder, shared and not copied.

    Raises:
        InputError: transformers has no sequence classifier of this kind, so that it could not be saved.
    """
    classifier_of(model.model.config, model.card.name)
    return ScoreNetwork(model.model.get_decoder())


def classifier_of(config: Any, name: str) -> Any:
    """transformers' sequence classifier on a model with this configuration, or InputError."""
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        problem = f"transformers has no sequence classifier for {name} (a {type(config).__name__})"
        raise InputError("model.name", problem, "use a Llama, Mistral, Qwen2, Qwen3, SmolLM or Gemma 3 kind of model")
    return MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]


# -------------------------------------------------------------------------------------------------------------- saving
def padding(tokenizer: Any, stop_ids: tuple[int, ...]) -> tuple[Any, int]:
    """The tokenizer with a padding token that ends no text, and its id: its own, another special one, or a new one."""
    words = copy.deepcopy(tokenizer)
    own = words.pad_token_id
    if own is None or own in stop_ids:
        kept = {*stop_ids, words.bos_token_id}
        spare = [token for token in sorted(words.all_special_ids) if token not in kept]
        if spare:
            words.pad_token = words.convert_ids_to_tokens(spare[0])
        else:
            words.add_special_tokens({"pad_token": PAD})
    words.padding_side = "right"
    return words, int(words.pad_token_id)


@quiet()
def save(network: ScoreNetwork, model: LanguageModel, directory: Path, card: str, facts: dict[str, Any]) -> None:
    """Write a sequence classifier with one label: safetensors, tokenizer, model card, and ``facts`` on rendering.

    An adapter is merged into the written weights: what is read back needs no peft. A model that was there is replaced
    only when the new one is whole. Raises ``MachineError`` where it cannot be written.
    """
    words, pad = padding(model.card.tokenizer, model.card.stop_ids)
    config = copy.deepcopy(model.model.config)
    shell_of = classifier_of(config, model.card.name)
    state = {f"{shell_of.base_model_prefix}.{name}": weight for name, weight in merged_state(network.decoder).items()}
    embedding = next(name for name in state if name.endswith("embed_tokens.weight"))
    if pad >= len(state[embedding]):  # the padding token is new: its row is never looked at
        room = state[embedding].new_zeros(pad + 1 - len(state[embedding]), state[embedding].shape[1])
        state[embedding] = torch.cat([state[embedding], room])
        config.get_text_config().vocab_size = len(state[embedding])
    config.get_text_config().pad_token_id = pad
    config.num_labels, config.id2label, config.label2id = 1, {0: "reward"}, {"reward": 0}
    config.dtype = model.dtype
    with torch.device("meta"):
        shell = shell_of(config)
    shell.load_state_dict({**state, HEAD: network.head.weight.detach()}, strict=True, assign=True)

    def write(staging: Path) -> None:
        shell.save_pretrained(staging)
        words.save_pretrained(staging)
        (staging / FACTS).write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", "utf-8")
        (staging / "README.md").write_text(card, "utf-8")

    loading.replace_directory(directory, write)


@torch.no_grad()
def merged_state(decoder: Any) -> dict[str, Tensor]:
    """The decoder's tensors by name, each adapter added in at least float32 and rounded once."""
    carrying = adapters.layers(decoder)
    state = {
        name.replace(".base_layer.", "."): tensor.detach()
        for name, tensor in decoder.state_dict().items()
        if ".lora_" not in name
    }
    for name, layer in carrying.items():
        weight = layer.base_layer.weight
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        state[f"{name}.weight"] = (wide + layer.get_delta_weight(adapters.NAME).to(wide.dtype)).to(weight.dtype)
    return state


# ------------------------------------------------------------------------------------------------------------- reading
def read_classifier(name: str, notice: Callable[[str], None] = lambda text: None) -> tuple[Card, dict[str, Any]]:
    """What is known of a reward model before its weights are read, and how its texts were rendered ({}: not said).

    Raises:
        InputError: as ``loading.read_card``; no sequence classifier, or one with several labels.
    """
    try:
        card = loading.read_card(name, notice=notice, classifier=True)
    except InputError as error:
        raise InputError(WHERE, error.problem, error.fix) from error
    config = AutoConfig.from_pretrained(card.source, trust_remote_code=False)
    kinds = list(getattr(config, "architectures", None) or [])
    if card.adapter is not None or not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        found = "an adapter" if card.adapter is not None else f"a {', '.join(kinds) or type(config).__name__}"
        problem = f"{name} is {found}, a sequence classifier with one label was expected"
        raise InputError(WHERE, problem, "train a reward model with upslope reward, and give its model directory")
    if config.num_labels != 1:
        problem = f"{name} has {config.num_labels} labels, a reward model has one"
        raise InputError(WHERE, problem, "give a model that was trained with num_labels=1")
    file = Path(card.source) / FACTS
    facts = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    return card, facts if isinstance(facts, dict) else {}


@quiet()
def load_classifier(card: Card, device: torch.device, dtype: torch.dtype) -> ScoreNetwork:
    """The reward model of a card, frozen, with upslope's attention; compared with transformers' own at load.

    Raises:
        InputError: broken or missing weights, or an architecture that is not served.
    """
    config = AutoConfig.from_pretrained(card.source, trust_remote_code=False)
    no_dropout = {key: 0.0 for key in vars(config) if key.endswith(("dropout", "_pdrop"))}
    try:
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            card.source, dtype=dtype, attn_implementation="sdpa", trust_remote_code=False, use_safetensors=True,
            output_loading_info=True, ignore_mismatched_sizes=True, **no_dropout,
        )  # fmt: skip
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(WHERE, f"{card.name} cannot be loaded: {str(error).strip().splitlines()[0][:300]}",
                         "copy the reward model again") from error  # fmt: skip
    model, report = loaded
    if misfits := sorted([*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]):
        problem = f"{card.name} has no weights that fit {', '.join(misfits[:3])} of {type(model).__name__}"
        raise InputError(WHERE, problem, "give a sequence classifier with all of its weights")
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise InputError(WHERE, f"{card.name} ({type(model).__name__}) has another head than one linear layer `score`",
                         "give a reward model on a Llama, Mistral, Qwen2, Qwen3 or Gemma 3 kind of model")  # fmt: skip
    model = model.to(device).eval().requires_grad_(False)
    network = ScoreNetwork(model.base_model, head.weight).requires_grad_(False)
    _verify(model, network, card.name)
    model.set_attn_implementation(attention.NAME)
    stored = _stored_head(Path(card.source))
    if stored is not None:  # it may be wider than the weights' type
        with torch.no_grad():
            network.head.weight.copy_(stored)
    return network


def _stored_head(directory: Path) -> Tensor | None:
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            if HEAD in opened.keys():  # noqa: SIM118 (a file, no mapping)
                return opened.get_tensor(HEAD)
    return None


@torch.no_grad()
def _verify(model: Any, network: ScoreNetwork, name: str) -> None:
    """Raise ``InputError`` where our scores differ from transformers' by more than two of its kernels differ."""
    config = model.config.get_text_config()
    source = torch.Generator().manual_seed(0)
    longest = min(max(SHORT, window_of(config) + BEYOND), int(getattr(config, "max_position_embeddings", 1 << 30)))
    device = next(model.parameters()).device
    pad = config.pad_token_id
    rows = [torch.randint(0, config.vocab_size, (length,), generator=source) for length in (SHORT - 7, longest)]
    rows = [torch.where(row == pad, (row + 1) % config.vocab_size, row).to(device) for row in rows]
    found = {}
    try:
        for kernel in ("sdpa", "eager"):
            model.set_attn_implementation(kernel)
            found[kernel] = torch.stack([model(input_ids=row[None], use_cache=False).logits[0, 0] for row in rows])
        model.set_attn_implementation(attention.NAME)
        layout = PackedRows([len(row) for row in rows], device)
        out = network.decoder(
            input_ids=torch.cat(rows)[None], position_ids=layout.position_ids, use_cache=False, layout=layout
        )
        ends = torch.tensor([len(row) for row in rows], device=device).cumsum(0) - 1
        ours = network.head(out.last_hidden_state[0][ends].to(network.head.weight.dtype))[:, 0]
    except (NotImplementedError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(WHERE, f"{name} cannot be served by upslope's attention: {error}", _ALTERNATIVE) from error
    size = float(network.head.weight.norm()) * float(out.last_hidden_state[0][ends].norm(dim=-1).max())
    noise = float((found["sdpa"] - found["eager"]).abs().max())
    limit = 2 * noise + 8 * torch.finfo(model.dtype).eps * max(size, 1.0)
    gap = float((ours - found["sdpa"].to(ours.dtype)).abs().max())
    if not gap <= limit:
        raise InputError(WHERE, f"{name} computes something that upslope's attention does not: scores differ by "
                         f"{gap:.2e} (limit {limit:.2e})", _ALTERNATIVE)  # fmt: skip


_ALTERNATIVE = "use a reward model on a Llama, Mistral, Qwen2, Qwen3, SmolLM or Gemma 3 kind of model"
