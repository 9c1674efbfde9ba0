"""What a run leaves opens where people open models: transformers, peft, the hub's card reader, lm-eval."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import upslope
from tests.recipes.support import Bench, bench, one_thread
from upslope.api import FinishedRun

__all__ = ["bench", "one_thread"]
ROOT = Path(__file__).parents[2]
LM_EVAL = os.environ.get("UPSLOPE_LM_EVAL") or shutil.which("lm_eval")
WHOLE = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
         "generation_config.json", "README.md"}  # fmt: skip
ADAPTER = {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json",
           "chat_template.jinja", "README.md"}  # fmt: skip
TALK = [{"role": "user", "content": "say 7"}]


@pytest.fixture(scope="module")
def whole(bench: Bench) -> FinishedRun:
    return bench.run("sft", "whole", eval_prompts=0)


@pytest.fixture(scope="module")
def adapted(bench: Bench) -> FinishedRun:
    return bench.run("sft", "adapted", eval_prompts=0, lora={"rank": 2})


def greedy(model: Any, tokenizer: Any) -> str:
    ids = tokenizer.apply_chat_template(TALK, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = model.generate(**ids, max_new_tokens=8, do_sample=False)
    return str(tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))


def ours(run: FinishedRun, bench: Bench) -> str:
    """The greedy answer by our own renderer and sampler."""
    rows = bench.root / "one.jsonl"
    rows.write_text(json.dumps({"prompt": "say 7", "answer": "7"}) + "\n")
    found = upslope.evaluate(
        str(run.model), data=str(rows), reward={"builtin": "exact"}, split="all", max_new_tokens=8, dtype="float32",
        device="cpu",
    )  # fmt: skip
    return found.greedy.completions[0]


def test_the_files_have_their_usual_names(whole: FinishedRun, adapted: FinishedRun) -> None:
    assert {path.name for path in whole.model.iterdir()} == WHOLE
    assert {path.name for path in adapted.model.iterdir()} == ADAPTER


def test_transformers_answers_as_we_do(whole: FinishedRun, bench: Bench) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(whole.model), AutoTokenizer.from_pretrained(whole.model)
    assert greedy(model, tokenizer) == ours(whole, bench)
    ask = pipeline("text-generation", model=str(whole.model), device="cpu")
    said = ask(TALK, max_new_tokens=8, do_sample=False)[0]["generated_text"][-1]
    assert said == {"role": "assistant", "content": ours(whole, bench)}


def test_peft_answers_as_we_do_and_merges_to_what_we_merge(adapted: FinishedRun, bench: Bench) -> None:
    tokenizer = AutoTokenizer.from_pretrained(adapted.model)
    opened = AutoPeftModelForCausalLM.from_pretrained(adapted.model).eval()
    assert greedy(opened, tokenizer) == ours(adapted, bench)
    merged = upslope.merge(adapted.model, bench.root / "merged", "float32")
    network = AutoModelForCausalLM.from_pretrained(merged).eval()
    ids = tokenizer("say 7", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        by_adapter, by_merge = opened(input_ids=ids).logits, network(input_ids=ids).logits
        by_peft = opened.merge_and_unload()(input_ids=ids).logits
    torch.testing.assert_close(by_merge, by_adapter, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(by_merge, by_peft, atol=2e-5, rtol=1e-4)


def test_the_hub_reads_the_card(whole: FinishedRun, adapted: FinishedRun, bench: Bench) -> None:
    card = ModelCard.load(whole.model / "README.md").data
    assert (card.library_name, card.pipeline_tag, card.base_model) == (
        "transformers", "text-generation", str(bench.model)
    )  # fmt: skip
    assert ModelCard.load(adapted.model / "README.md").data.library_name == "peft"
    assert {"upslope", "sft", "lora"} <= set(ModelCard.load(adapted.model / "README.md").data.tags)


@pytest.mark.skipif(LM_EVAL is None, reason="lm_eval is not installed (UPSLOPE_LM_EVAL names its executable)")
@pytest.mark.parametrize("kind", ["whole", "adapted"])
def test_lm_eval_runs_a_task(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run: FinishedRun = request.getfixturevalue(kind)
    base = (
        json.loads((run.model / "adapter_config.json").read_text())["base_model_name_or_path"]
        if kind == "adapted"
        else ""
    )
    model = f"pretrained={base},peft={run.model}" if base else f"pretrained={run.model}"
    done = subprocess.run(
        [str(LM_EVAL), "--model", "hf", "--model_args", f"{model},dtype=float32,max_length=128", "--tasks",
         "upslope_sums,upslope_choices", "--include_path", "docs/examples/lm_eval", "--device", "cpu", "--batch_size",
         "4", "--apply_chat_template", "--output_path", str(tmp_path)],
        capture_output=True, text=True, timeout=280, check=False, cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = tmp_path.rglob("results_*.json")
    results = json.loads(file.read_text())["results"]
    assert 0.0 <= results["upslope_sums"]["exact_match,none"] <= 1.0
    assert 0.0 <= results["upslope_choices"]["acc,none"] <= 1.0
