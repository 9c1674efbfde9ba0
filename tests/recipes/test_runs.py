"""Whole short runs: what they leave behind, and that a seed decides every byte of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import upslope
from tests import tiny
from tests.recipes.support import Bench, bench, digests, letters, metrics, one_thread
from upslope.models.networks import PolicyNetwork
from upslope.types import Batch

__all__ = ["bench", "one_thread"]
KINDS = ("sft", "ppo", "grpo")


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_leaves_metrics_rollouts_models_and_a_report(bench: Bench, kind: str) -> None:
    run = bench.run(kind, f"{kind}-first")
    steps = {"sft": 3, "ppo": 2, "grpo": 2}[kind]
    assert [row["step"] for row in run.metrics] == list(range(steps + 1))
    assert all("eval/reward" in run.metrics[step] for step in (0, 2, steps))
    assert json.loads((run.folder / "run.json").read_text())["status"] == "finished"
    assert "<html" in run.report.read_text("utf-8")
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {p.name for p in run.model.iterdir()}
    assert run.best == run.folder / "best" and (run.best / "model.safetensors").is_file()
    if kind == "sft":
        assert not (run.folder / "rollouts").exists()
        return
    width = {"ppo": 2 * 3, "grpo": 4 * 3}[kind]
    for step in (1, 2):
        lines = [
            json.loads(line) for line in (run.folder / "rollouts" / f"step-{step:05d}.jsonl").read_text().splitlines()
        ]
        assert len(lines) == width
        assert all(len(line["token_ids"]) == len(line["logprobs"]) > 0 for line in lines)
        assert [line["reward"] for line in lines] == pytest.approx(letters([], [line["completion"] for line in lines]))
        assert metrics(run)[step - 1]["reward"] == pytest.approx(sum(line["reward"] for line in lines) / width)
        assert metrics(run)[step - 1]["num_tokens"] > sum(len(line["token_ids"]) for line in lines)


@pytest.mark.parametrize("kind", KINDS)
def test_the_saved_model_has_in_plain_transformers_the_log_probabilities_that_we_have(bench: Bench, kind: str) -> None:
    run = bench.run(kind, f"{kind}-saved", eval_prompts=0)
    trained = AutoModelForCausalLM.from_pretrained(run.model, dtype=torch.float32).eval()
    start = AutoModelForCausalLM.from_pretrained(bench.model, dtype=torch.float32).eval()
    ids = torch.tensor([AutoTokenizer.from_pretrained(run.model)("say 3: 12345")["input_ids"]])
    stock = trained(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    assert not torch.allclose(trained(input_ids=ids).logits, start(input_ids=ids).logits, atol=1e-2)
    trained.set_attn_implementation("upslope")
    mask = torch.ones(1, ids.shape[1] - 1, dtype=torch.bool)
    ours = PolicyNetwork(trained)(Batch(ids, torch.tensor([ids.shape[1]]), mask, torch.zeros(1, dtype=torch.long)))
    torch.testing.assert_close(ours.logprobs[0], stock, rtol=1e-5, atol=1e-5)


def test_the_saved_model_is_the_trained_one_and_not_the_sampled_start(bench: Bench) -> None:
    """The last rollouts, rescored by the model that was saved a step before, have their own log-probabilities."""
    one, two = bench.run("grpo", "one", steps=1, eval_prompts=0), bench.run("grpo", "two", steps=2, eval_prompts=0)
    model = AutoModelForCausalLM.from_pretrained(one.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(one.model)
    line = json.loads((two.folder / "rollouts" / "step-00002.jsonl").read_text().splitlines()[0])
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": line["prompt"]}], tokenize=False, add_generation_prompt=True
    )
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([prompt + line["token_ids"]])
    logprobs = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    assert logprobs[len(prompt) - 1 :].tolist() == pytest.approx(line["logprobs"], abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_decides_every_byte_and_another_seed_differs(bench: Bench, kind: str) -> None:
    runs = [bench.run(kind, f"{kind}-seed-{name}", seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    same, again, other = [digests(run.folder) for run in runs]
    assert same == again
    assert "metrics.jsonl" in same and "model/model.safetensors" in same
    assert all(same[name] != other[name] for name in same if name.startswith(("metrics", "rollouts", "model/model")))


def test_a_built_in_task_brings_rows_and_reward(bench: Bench) -> None:
    task = {"task": "arithmetic", "options": {"digits": 1, "heldout": 8}}
    run = bench.run("grpo", "task", data=task, reward={}, steps=1)
    assert "rewards/exact_match/mean" in run.metrics[1]


@pytest.mark.parametrize("kind", ["smollm", "qwen3", "gemma3"])
def test_other_architectures_train_too(bench: Bench, tmp_path: Path, kind: str) -> None:
    model = tiny.directory(tmp_path / "model", kind)
    run = bench.run("ppo", f"ppo-{kind}", model=str(model), steps=1, eval_prompts=0)
    assert run.metrics[-1]["grad_norm"] > 0 and run.metrics[-1]["sampler_gap/max"] < 1e-4


def test_bfloat16_trains_with_float32_masters(bench: Bench) -> None:
    run = bench.run("grpo", "bfloat16", dtype="bfloat16", steps=1, eval_prompts=0)
    from safetensors.torch import load_file

    assert {tensor.dtype for tensor in load_file(run.model / "model.safetensors").values()} == {torch.bfloat16}
    assert run.metrics[-1]["grad_norm"] > 0


def test_a_step_with_gradient_checkpointing_is_the_same_step(bench: Bench) -> None:
    plain, saved = [
        bench.run("ppo", f"checkpointing-{on}", gradient_checkpointing=on, steps=1, eval_prompts=0)
        for on in (False, True)
    ]
    assert saved.metrics[-1] == pytest.approx(plain.metrics[-1], rel=1e-5, abs=1e-7)


def noting(
    prompts: list[object], completions: list[str], log_metric, log_extra, **columns: list[object]
) -> list[float]:  # type: ignore[no-untyped-def]
    """Logs a number and a note a row."""
    log_metric("mean_characters", sum(map(len, completions)) / len(completions))
    log_extra("characters", [len(text) for text in completions])
    return letters(list(prompts), completions)


def test_what_a_reward_logs_is_in_the_metrics_and_the_rollouts(bench: Bench) -> None:
    run = bench.run("grpo", "noting", reward=noting, steps=1)
    rows = [json.loads(line) for line in (run.folder / "rollouts" / "step-00001.jsonl").read_text().splitlines()]
    assert [row["extra"]["characters"] for row in rows] == [len(row["completion"]) for row in rows]
    mean = sum(len(row["completion"]) for row in rows) / len(rows)
    assert run.metrics[1]["mean_characters"] == pytest.approx(mean)
    assert run.metrics[1]["reward"] == pytest.approx(sum(row["reward"] for row in rows) / len(rows))


def sees_text(prompts: list[str], completions: list[str], **columns: list[object]) -> list[float]:
    """Fails unless the prompt is the row's own text."""
    if not all(isinstance(prompt, str) and prompt.startswith("say ") for prompt in prompts):
        raise ValueError(f"not the rows' prompts: {prompts[:2]}")
    return letters(list(prompts), completions)


def test_a_prompt_that_is_cut_is_whole_for_the_reward(bench: Bench) -> None:
    # 128 positions less 110 new tokens: the rendered prompts of some 40 tokens lose their beginnings.
    run = bench.run("grpo", "cut", reward=sees_text, steps=1, max_new_tokens=110, too_long="truncate", eval_prompts=0)
    assert run.model.is_dir()


def test_a_reward_that_does_not_always_apply_is_evaluated_where_it_does(bench: Bench) -> None:
    found = upslope.evaluate(
        str(bench.model), data=bench.rows, reward=sometimes, prompts=6, max_new_tokens=4, split="all"
    )
    assert [reward is None for reward in found.greedy.rewards] == [False, True, False, True, False, True]
    assert found.greedy.n == 3 and len(found.greedy.completions) == len(found.prompts) == 6


def sometimes(prompts: list[str], completions: list[str], **columns: list[object]) -> list[float | None]:
    """Applies to every other row."""
    return [1.0 if index % 2 == 0 else None for index in range(len(prompts))]
