"""Bad inputs 24 to 33: what a model's directory and an adapter may be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests import tiny
from tests.inputs.desk import Desk, edit_json, suggested
from tests.inputs.table import Mend, Table, key, override

TABLE = Table()
bad = TABLE.bad
CHECK = "check recipe.yaml --kind grpo"


def fetched_again(desk: Desk, place: Path) -> Mend:
    """The model as it was before something was done to it."""
    copy = desk.folder / f"{place.name}-whole"
    shutil.copytree(place, copy)

    def mend(desk: Desk, said: str) -> list[str]:
        shutil.rmtree(place)
        copy.rename(place)
        return []

    return mend


def other_model(desk: Desk, said: str) -> list[str]:
    """The fix is to give a model of the right kind."""
    return [f"model.name={desk.models / 'chat'}"]


# ------------------------------------------------------------------------------------------------------- the tokenizer
@bad(24, "no padding token", "finished at step 1", code=0)
def no_pad(desk: Desk) -> None:
    place = desk.model()
    edit_json(place / "tokenizer_config.json", pad_token=None)
    edit_json(place / "config.json", pad_token_id=None)


@bad(
    24,
    "the padding token is the end token: the end is trained on all the same",
    r"1 to train on, 1 token|trained 1",
    "stop 1",
    code=0,
    command="check recipe.yaml --kind sft",
)
def pad_is_eos(desk: Desk) -> None:
    desk.supervised()
    edit_json(desk.model() / "tokenizer_config.json", pad_token="<|im_end|>")


@bad(
    25,
    "no end token",
    "model.name: neither the tokenizer nor the generation config names an end token: every completion would run on",
    "set eos_token in the model's tokenizer_config.json",
)
def no_eos(desk: Desk) -> Mend:
    place = desk.model()
    desk.recipe["data"]["chat"] = "never"
    for name in ("config.json", "generation_config.json"):
        edit_json(place / name, eos_token_id=None)
    edit_json(place / "tokenizer_config.json", eos_token=None)

    def mend(desk: Desk, said: str) -> list[str]:
        edit_json(place / suggested(r"in the model's (tokenizer_config\.json)", said), eos_token="<|im_end|>")
        return []

    return mend


@bad(
    25,
    "an end token that never comes",
    r"of the completions were cut at the length limit of 4 tokens",
    "sampling.max_new_tokens is too small",
    code=0,
)
def endless(desk: Desk) -> None:
    desk.recipe["train"]["steps"] = 2


# ------------------------------------------------------------------------------------------------------- chat template
@bad(
    26,
    "conversations for a model without a chat template",
    "model.chat_template: conversational rows need a chat template, and the model has none",
    "set model.chat_template: chatml or a Jinja file",
)
def no_chat_template(desk: Desk) -> Mend:
    desk.rows([{"prompt": [{"role": "user", "content": f"say {n}"}]} for n in range(8)])
    desk.recipe["model"]["name"] = str(desk.models / "plain")
    return override(r"set (model\.chat_template: chatml)")


@bad(
    27,
    "a template that drops the system message",
    "data.system_prompt: the chat template drops the system message: the model never sees it",
    code=0,
    command=CHECK,
)
def system_dropped(desk: Desk) -> None:
    (desk.folder / "bare.jinja").write_text(
        "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
    )
    desk.recipe["model"]["chat_template"] = "bare.jinja"
    desk.recipe["data"]["system_prompt"] = "Be brief."


@bad(
    27,
    "a template that writes the start token a second time",
    r"prompts begin with two start tokens \(<\|im_start\|> <\|im_start\|>\)",
    code=0,
    command=CHECK,
)
def double_start(desk: Desk) -> None:
    place = desk.model()
    edit_json(place / "tokenizer_config.json", bos_token="<|im_start|>")
    template = (place / "chat_template.jinja").read_text()
    (place / "chat_template.jinja").write_text("<|im_start|><|im_start|>" + template)


@bad(
    27,
    "a template that rewrites earlier turns",
    r"row \d: the chat template rewrites earlier turns \(at message 2\)",
    "give one prompt/completion row for each assistant turn",
    command="sft recipe.yaml",
)
def rewritten_turns(desk: Desk) -> Mend:
    names = ("user", "assistant", "user", "assistant")
    talk = [{"role": role, "content": "ab"} for role in names]
    desk.supervised([{"messages": [{"role": "user", "content": f"say {n}"}, *talk[1:]]} for n in range(8)])
    (desk.folder / "last.jinja").write_text(
        "{% for m in messages %}{{ m['role'] if loop.last else '' }}{{ m['content'] }}<|im_end|>{% endfor %}"
    )
    desk.recipe["model"]["chat_template"] = "last.jinja"

    def mend(desk: Desk, said: str) -> list[str]:
        desk.rows([{"prompt": f"say {n}", "completion": "ab"} for n in range(8)])
        return []

    return mend


@bad(
    27,
    "a template that refuses the conversation",
    "model.chat_template: the template refuses a conversation: no system messages here",
    "check the roles and their order in your rows",
)
def refused_roles(desk: Desk) -> Mend:
    (desk.folder / "strict.jinja").write_text(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system messages here') }}{% endif %}"
        "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    )
    desk.recipe["model"]["chat_template"] = "strict.jinja"
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "say"}]
    desk.rows([{"prompt": [talk[0], {"role": "user", "content": f"say {n}"}]} for n in range(8)])

    def mend(desk: Desk, said: str) -> list[str]:
        desk.rows([{"prompt": [{"role": "user", "content": f"Be brief. say {n}"}]} for n in range(8)])
        return []

    return mend


# ------------------------------------------------------------------------------------------------- what does not match
@bad(
    28,
    "a tokenizer larger than the embedding",
    rf"model\.name: the tokenizer has {tiny.VOCAB} ids, the embedding "
    rf"{tiny.VOCAB - 3} rows: ids from {tiny.VOCAB - 3} would crash",
    "resize the embedding with transformers",
)
def larger_tokenizer(desk: Desk) -> Mend:
    place = desk.model(vocab_size=tiny.VOCAB - 3)

    def mend(desk: Desk, said: str) -> list[str]:
        from transformers import AutoModelForCausalLM

        network = AutoModelForCausalLM.from_pretrained(place)
        network.resize_token_embeddings(int(suggested(r"the tokenizer has (\d+) ids", said)))
        network.save_pretrained(place)
        return []

    return mend


@bad(
    30,
    "an adapter on layers that there are not",
    r"lora\.targets: 'c_attn' matches 0 of the 14 linear layers",
    "Names seen: down_proj, gate_proj, up_proj, k_proj, o_proj, q_proj, v_proj",
)
def no_such_layers(desk: Desk) -> Mend:
    desk.recipe["lora"] = {"rank": 2, "targets": ["c_attn"]}
    return lambda desk, said: [f"lora.targets=[{suggested('Names seen: ([a-z]+_proj)', said)}]"]


def adapter(desk: Desk) -> Path:
    """A run with lora on a model of the user's own, whose adapter the recipe then names."""
    place = desk.model()
    desk.write()
    code, _, said = desk.upslope("grpo", "recipe.yaml", "lora.rank=2", "out=first")
    assert code == 0, said
    desk.recipe["model"]["name"] = "first/model"
    return place


@bad(
    31,
    "an adapter whose base holds other weights",
    r"model\.name: .*mine holds other weights than those that the adapter "
    "first/model was trained on",
    "put that model back",
)
def other_base(desk: Desk) -> Mend:
    place = adapter(desk)
    mend = fetched_again(desk, place)
    tiny.directory(place, seed=1)
    return mend


@bad(
    31,
    "an adapter whose base was moved",
    r"the base model of the adapter first/model is not at .*mine",
    r"put it back there, or set base_model_name_or_path in first/model/adapter_config\.json",
)
def moved_base(desk: Desk) -> Mend:
    place = adapter(desk)
    place.rename(desk.folder / "elsewhere")

    def mend(desk: Desk, said: str) -> list[str]:
        file = desk.folder / suggested(r"in (\S+adapter_config\.json)", said)
        edit_json(file, base_model_name_or_path=str(desk.folder / "elsewhere"))
        return []

    return mend


@bad(
    31,
    "an adapter for a model of other shapes",
    r"model\.name: .*lora_A.*has shape \(2, 32\), the base needs \(2, 48\)",
)
def misfitting_adapter(desk: Desk) -> Mend:
    place = adapter(desk)
    mend = fetched_again(desk, place)
    tiny.directory(place, hidden_size=48, num_attention_heads=6)
    _forget_the_base(desk.folder / "first" / "model")
    return mend


def _forget_the_base(adapter: Path) -> None:
    """As an adapter from elsewhere, which notes no fingerprint of its base."""
    from safetensors.torch import load_file, save_file

    file = adapter / "adapter_model.safetensors"
    save_file(load_file(file), file, {"format": "pt"})


# --------------------------------------------------------------------------------------------------------- the weights
@bad(
    32,
    "pickled weights",
    r"model\.name: mine has only pytorch_model\.bin; weights are read from safetensors only "
    r"\(pickle runs code\)",
)
def pickled(desk: Desk) -> Mend:
    place = desk.model()
    mend = fetched_again(desk, place)
    (place / "model.safetensors").rename(place / "pytorch_model.bin")
    return mend


@bad(
    32,
    "a GGUF file",
    r"model\.name: mine\.gguf is a GGUF file, a directory with config\.json and safetensors was expected",
)
def gguf(desk: Desk) -> Mend:
    (desk.folder / "mine.gguf").write_bytes(b"GGUF")
    desk.recipe["model"]["name"] = "mine.gguf"
    return other_model


@bad(32, "a git-lfs pointer", r"model\.name: mine/model\.safetensors is a git-lfs pointer, not weights", "git lfs pull")
def lfs_pointer(desk: Desk) -> Mend:
    place = desk.model()
    mend = fetched_again(desk, place)
    (place / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n")
    return mend


@bad(
    32,
    "weights cut short",
    r"model\.name: mine/model\.safetensors is cut short: [\d,]+ bytes, its header says [\d,]+",
    "fetch the model again",
)
def cut_short(desk: Desk) -> Mend:
    place = desk.model()
    mend = fetched_again(desk, place)
    whole = (place / "model.safetensors").read_bytes()
    (place / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    return mend


@bad(
    32,
    "a shard that is missing",
    r"model\.name: mine lacks 1 of 2 weight files: model-00002-of-00002\.safetensors",
    "fetch the model again",
)
def missing_shard(desk: Desk) -> Mend:
    place = desk.model()
    mend = fetched_again(desk, place)
    (place / "model.safetensors").rename(place / "model-00001-of-00002.safetensors")
    files = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return mend


@bad(32, "a directory without a model", r"model\.name: mine has no config\.json \(found: notes\.txt\)")
def no_model(desk: Desk) -> Mend:
    (desk.folder / "mine").mkdir()
    (desk.folder / "mine" / "notes.txt").write_text("to do")
    desk.recipe["model"]["name"] = "mine"
    return other_model


@bad(
    32,
    "code in a model's directory",
    r"model\.name: mine's config\.json asks for code of its own \(auto_map\)",
    "remote code is never run",
)
def remote_code(desk: Desk) -> Mend:
    place = desk.model()
    mend = fetched_again(desk, place)
    edit_json(place / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Evil"})
    (place / "modeling.py").write_text("raise SystemExit('remote code ran')")
    return mend


@bad(
    33,
    "an encoder and decoder",
    r"model\.name: mine is no causal language model that transformers loads: .*T5Config",
    "give a decoder-only model",
)
def encoder_decoder(desk: Desk) -> Mend:
    place = desk.model()
    edit_json(place / "config.json", model_type="t5", architectures=["T5ForConditionalGeneration"])
    return other_model


@bad(
    33,
    "a classifier",
    r"model\.name: mine is a reward model \(LlamaForSequenceClassification\), a causal language model was expected",
    r"give it as reward: \{model: mine\}, and a language model here",
)
def classifier(desk: Desk) -> Mend:
    from transformers import LlamaForSequenceClassification

    place = desk.model()
    LlamaForSequenceClassification(tiny.model("llama").config).save_pretrained(place)
    return other_model


@bad(
    33,
    "a model of images and text",
    r"model\.name: mine is no causal language model|attention",
    command="grpo recipe.yaml",
)
def images_and_text(desk: Desk) -> Mend:
    place = desk.model()
    edit_json(place / "config.json", model_type="llava", architectures=["LlavaForConditionalGeneration"])
    return other_model


@bad(
    33,
    "a quantised model",
    r"model\.name: mine is quantised \(gptq\), and quantised weights cannot be trained here",
    "give the unquantised model",
)
def quantised(desk: Desk) -> Mend:
    place = desk.model()
    edit_json(place / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    return other_model


ALL: list[Any] = TABLE.rows
__all__ = ["ALL", "key"]
