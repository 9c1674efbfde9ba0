"""Reward models as files: plain transformers opens them and gives the same scores: kinds, padding, adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests import tiny
from upslope.errors import InputError
from upslope.models import adapters, loading, scoring
from upslope.models.adapters import Lora
from upslope.models.loading import LanguageModel
from upslope.models.scoring import ScoreNetwork
from upslope.text.collation import collate_texts

FACTS = {"chat": "auto", "system_prompt": None, "stop_ids": [2]}
CPU = torch.device("cpu")


def network_of(model: LanguageModel, seed: int = 0) -> ScoreNetwork:
    """A reward model with a head that is not zero."""
    network = scoring.fresh(model)
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        network.head.weight.copy_(torch.randn(network.head.weight.shape, generator=source))
    return network


def texts() -> list[list[int]]:
    """Ragged, in units of two that share a beginning, each ending with the stop token."""
    rows = tiny.prompts([9, 4, 17, 11], seed=3)
    shared = [rows[0], [*rows[0][:6], *rows[1]], rows[2], [*rows[2][:12], *rows[3]]]
    return [[*row, 2] for row in shared]


@torch.no_grad()
def ours(network: ScoreNetwork) -> torch.Tensor:
    return network(collate_texts(texts(), [0, 0, 1, 1])).scores


@torch.no_grad()
def plain(directory: Path, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What plain transformers says of the right-padded batch, with the padding token of the directory's tokenizer."""
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=dtype)
    words = AutoTokenizer.from_pretrained(directory)
    batch = words.pad({"input_ids": texts()}, padding=True, padding_side="right", return_tensors="pt")
    assert int(batch["attention_mask"].sum()) == sum(map(len, texts()))  # no token of a text counts as padding
    return model(**batch).logits[:, 0]


@pytest.mark.parametrize("kind", list(tiny.KINDS))
def test_plain_transformers_opens_it_and_gives_the_same_scores(kind: str, tmp_path: Path) -> None:
    model = tiny.load(tiny.directory(tmp_path / "start", kind))
    network = network_of(model)
    scoring.save(network, model, tmp_path / "rm", "# card\n", FACTS)
    found = ours(network)
    assert float(found.std()) > 0.1
    torch.testing.assert_close(plain(tmp_path / "rm"), found, rtol=0, atol=1e-5)
    config = json.loads((tmp_path / "rm" / "config.json").read_text())
    assert config["architectures"][0].endswith("ForSequenceClassification") and config["id2label"] == {"0": "reward"}
    card, facts = scoring.read_classifier(str(tmp_path / "rm"))
    again = scoring.load_classifier(card, CPU, torch.float32)
    torch.testing.assert_close(ours(again), found, rtol=0, atol=1e-6)
    assert facts == FACTS and not any(weight.requires_grad for weight in again.parameters())


def test_the_score_is_read_at_the_stop_token_though_it_pads(tmp_path: Path) -> None:
    """A tokenizer whose padding is its end token, as SmolLM's: transformers would read the token before it."""
    tiny.directory(tmp_path / "start")
    words = tiny.tokenizer()
    words.pad_token = "<|im_end|>"
    words.save_pretrained(tmp_path / "start")
    model = tiny.load(tmp_path / "start")
    assert model.card.tokenizer.pad_token_id == 2
    network = network_of(model)
    scoring.save(network, model, tmp_path / "rm", "", FACTS)
    pad = AutoTokenizer.from_pretrained(tmp_path / "rm").pad_token_id
    assert pad not in (None, 2) and json.loads((tmp_path / "rm" / "config.json").read_text())["pad_token_id"] == pad
    torch.testing.assert_close(plain(tmp_path / "rm"), ours(network), rtol=0, atol=1e-5)


def test_a_tokenizer_without_another_special_token_gets_one(tmp_path: Path) -> None:
    """Every special token ends text: a new one is added, with a row in the embedding."""
    model = tiny.load(tiny.directory(tmp_path / "start"))
    words = model.card.tokenizer
    stops = tuple(words.all_special_ids)
    card = loading.Card(model.card.name, model.card.source, words, 128, stops)
    _, pad = scoring.padding(words, stops)
    assert pad == len(words) == tiny.VOCAB
    network = network_of(model)
    whole = LanguageModel(model.model, card, model.device, model.dtype)
    scoring.save(network, whole, tmp_path / "rm", "", FACTS)
    found = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    assert found.get_input_embeddings().weight.shape[0] == tiny.VOCAB + 1 == found.config.vocab_size
    torch.testing.assert_close(plain(tmp_path / "rm"), ours(network), rtol=0, atol=1e-5)
    assert len(words) == tiny.VOCAB  # the policy's own tokenizer is as it was


def test_an_adapter_is_merged_into_what_is_saved(tmp_path: Path) -> None:
    model = tiny.load(tiny.directory(tmp_path / "start"))
    adapters.add(model.model, Lora(4, 8.0), seed=0)
    with torch.no_grad():
        for name, weight in adapters.adapter_parameters(model.model).items():
            weight.copy_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))))
    network = network_of(model)
    found = ours(network)
    assert float((found - ours(network_of(tiny.load(tmp_path / "start")))).abs().max()) > 1e-2
    scoring.save(network, model, tmp_path / "rm", "", FACTS)
    assert not (tmp_path / "rm" / "adapter_config.json").exists()
    torch.testing.assert_close(plain(tmp_path / "rm"), found, rtol=0, atol=1e-5)


def test_a_bfloat16_reward_model_keeps_its_head_in_float32(tmp_path: Path) -> None:
    model = tiny.load(tiny.directory(tmp_path / "start"), torch.bfloat16)
    network = network_of(model)
    scoring.save(network, model, tmp_path / "rm", "", FACTS)
    card, _ = scoring.read_classifier(str(tmp_path / "rm"))
    again = scoring.load_classifier(card, CPU, torch.bfloat16)
    assert torch.equal(again.head.weight, network.head.weight) and again.head.weight.dtype == torch.float32
    assert torch.equal(ours(again), ours(network))


def test_a_new_reward_model_gives_everything_0(tmp_path: Path) -> None:
    network = scoring.fresh(tiny.load(tiny.directory(tmp_path / "start")))
    assert ours(network).tolist() == [0.0] * 4


# -------------------------------------------------------------------------------------------------------------- refused
def saved(tmp_path: Path) -> Path:
    model = tiny.load(tiny.directory(tmp_path / "start"))
    scoring.save(network_of(model), model, tmp_path / "rm", "", FACTS)
    return tmp_path / "rm"


def test_a_language_model_is_no_reward_model_and_the_other_way_round(tmp_path: Path) -> None:
    directory = saved(tmp_path)
    with pytest.raises(InputError, match=r"is a LlamaForCausalLM, a sequence classifier with one label was expected"):
        scoring.read_classifier(str(tmp_path / "start"))
    with pytest.raises(InputError, match=r"is a reward model \(LlamaForSequenceClassification\).*reward: \{model: "):
        loading.read_card(str(directory))


def test_one_with_several_labels_is_refused(tmp_path: Path) -> None:
    directory = saved(tmp_path)
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    config["id2label"], config["label2id"] = {"0": "a", "1": "b"}, {"a": 0, "b": 1}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="has 2 labels, a reward model has one"):
        scoring.read_classifier(str(directory))


def test_one_without_its_head_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    directory = saved(tmp_path)
    tensors = load_file(directory / "model.safetensors")
    del tensors[scoring.HEAD]
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    card, _ = scoring.read_classifier(str(directory))
    with pytest.raises(InputError, match=r"has no weights that fit score\.weight"):
        scoring.load_classifier(card, CPU, torch.float32)


def test_a_forward_that_is_not_ours_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison at load sees a difference in our attention."""
    from upslope.models import attention

    directory = saved(tmp_path)
    card, _ = scoring.read_classifier(str(directory))
    true = attention.attend
    monkeypatch.setattr(attention, "attend", lambda *given: true(*given) * 1.05)
    with pytest.raises(InputError, match="computes something that upslope's attention does not"):
        scoring.load_classifier(card, CPU, torch.float32)
