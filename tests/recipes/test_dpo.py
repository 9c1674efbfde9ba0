"""DPO: its loss and gradient by a plain forward, the reference computed once, resuming, adapters."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM

from tests import tiny
from tests.learner.support import gradients
from tests.recipes.pair_support import run
from tests.recipes.support import Bench, bench, digests, letters, metrics, one_thread, stopped_at
from tests.recipes.test_reward_model import some_pairs
from upslope.learner.learner import Learner
from upslope.learner.optimizer import OptimizerSettings
from upslope.models.networks import PolicyNetwork
from upslope.recipes import dpo
from upslope.recipes.configs import DpoRecipe
from upslope.recipes.pairs import fit_pairs, read_pairs
from upslope.recipes.reward import pair_weights
from upslope.text.collation import collate_pairs
from upslope.text.rendering import Renderer
from upslope.types import Encoded

__all__ = ["bench", "one_thread"]

BETA = 0.3


@pytest.fixture(scope="module")
def trained(bench: Bench) -> Any:
    return run(bench, "dpo", "dpo", steps=6, save_every=3, reward=letters, max_new_tokens=6)


def whole_logprob(stock: Any, row: Encoded) -> torch.Tensor:
    """log pi(answer) of one row, by plain transformers."""
    logs = tiny.stock_log_probs(stock, row.token_ids)
    first = row.trainable.index(True)
    targets = torch.tensor(row.token_ids[first:])
    return logs[first - 1 :].gather(1, targets[:, None]).sum()


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_the_loss_and_its_gradient_are_the_papers_by_a_plain_forward(loss: str) -> None:
    """Each pair a micro-batch of its own; the reference is another model; sums over tokens, not means."""
    pairs = some_pairs()
    recipe = DpoRecipe.model_validate({"data": "pairs.jsonl", "dpo": {"loss": loss, "beta": BETA}})
    stock, other = tiny.model(dtype=torch.float64), tiny.model(seed=1, dtype=torch.float64)
    rows = [row for pair in pairs for row in (pair.chosen, pair.rejected)]
    with torch.no_grad():
        reference = torch.stack([whole_logprob(other, row) for row in rows])
    learner: Learner[Any] = Learner(
        PolicyNetwork(tiny.served(dtype=torch.float64)), OptimizerSettings(1e-3, 10), micro_batch_tokens=20
    )
    batch = collate_pairs(pairs)
    weights = pair_weights(len(pairs)).double()
    found = learner.gradient(batch, dpo.DpoTargets(batch.mask, reference), weights, dpo.make_loss(recipe))
    ours = gradients(learner)
    ratios = torch.stack([whole_logprob(stock, row) for row in rows]) - reference
    gap = ratios[0::2] - ratios[1::2]
    wanted = -logsigmoid(BETA * gap) if loss == "sigmoid" else (gap - 1 / (2 * BETA)) ** 2
    wanted.mean().backward()
    assert found["loss"] == pytest.approx(float(wanted.detach().mean()), rel=1e-6)
    assert found["rewards/margins"] == pytest.approx(BETA * float(gap.detach().mean()), rel=1e-5)
    assert found["rewards/chosen"] == pytest.approx(BETA * float(ratios.detach()[0::2].mean()), rel=1e-5)
    assert found["rewards/accuracies"] == pytest.approx(float((gap > 0).double().mean()))
    assert found["rewards/chosen"] - found["rewards/rejected"] == pytest.approx(found["rewards/margins"])
    logps = torch.stack([whole_logprob(stock, row) for row in rows]).detach()
    assert found["logps/rejected"] == pytest.approx(float(logps[1::2].mean()), rel=1e-6)
    for name, parameter in stock.named_parameters():
        if parameter.grad is not None and f"model.{name}" in ours:
            torch.testing.assert_close(ours[f"model.{name}"], parameter.grad, rtol=1e-4, atol=1e-6)
    assert sum(f"model.{name}" in ours for name, _ in stock.named_parameters()) > 10


def test_it_starts_at_its_reference_and_learns_what_is_preferred(trained: Any) -> None:
    rows = trained.metrics
    assert rows[0]["eval_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert rows[0]["eval/rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert rows[1]["loss"] == pytest.approx(math.log(2), abs=1e-4) and abs(rows[1]["rewards/margins"]) < 1e-4
    assert rows[-1]["eval/rewards/accuracies"] > 0.9 and rows[-1]["eval_loss"] < 0.5
    assert rows[-1]["rewards/margins"] > 0.5
    names = {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen",
             "logps/rejected", "entropy", "loss", "grad_norm", "lr", "num_tokens"}  # fmt: skip
    assert names <= set(rows[1])
    assert "eval/reward" in rows[0] and rows[-1]["eval/reward"] > rows[0]["eval/reward"]  # letters are preferred
    AutoModelForCausalLM.from_pretrained(trained.model)


def test_the_reference_is_the_starting_model_and_kept_in_the_checkpoint(bench: Bench, trained: Any) -> None:
    table = load_file(trained.folder / "checkpoints" / "step-00006" / "reference.safetensors")["logprobs"]
    stock = AutoModelForCausalLM.from_pretrained(bench.model)
    recipe = DpoRecipe.model_validate({"data": {"path": str(bench.root / "pairs.jsonl"), "heldout": 4}})
    read = read_pairs(recipe.data, 0)
    words = Renderer(tiny.tokenizer(), (2,))
    pairs = fit_pairs([*read.train, *read.heldout], words, 128, recipe.data, "", print, "")
    with torch.no_grad():
        wanted = torch.tensor([[whole_logprob(stock, side) for side in (p.chosen, p.rejected)] for p in pairs])
    torch.testing.assert_close(table, wanted, rtol=1e-4, atol=1e-4)


def test_a_resumed_run_is_the_same_run(
    bench: Bench,
    trained: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keywords: dict[str, Any] = {"steps": 6, "save_every": 3, "reward": letters, "max_new_tokens": 6}
    with stopped_at("2:0", monkeypatch):
        run(bench, "dpo", "stopped", **keywords)
    again = run(bench, "dpo", "stopped", **keywords, resume=True)
    same = digests(again.folder)
    assert same == digests(trained.folder) and len(same) > 10


def test_a_run_that_goes_on_with_more_steps_asks_its_reference_anew(bench: Bench) -> None:
    """At first three pairs were looked at; the others are asked of the starting model, not the trained one."""
    short = run(bench, "dpo", "longer", steps=1, prompts=3, save_every=1, eval_prompts=0)
    table = load_file(short.folder / "checkpoints" / "step-00001" / "reference.safetensors")["logprobs"]
    known = ~table.isnan().any(1)
    assert int(known.sum()) == 3 and len(table) == 16
    longer = run(bench, "dpo", "longer", steps=6, prompts=3, save_every=1, eval_prompts=0, resume=True)
    after = load_file(longer.folder / "checkpoints" / "step-00006" / "reference.safetensors")["logprobs"]
    assert torch.equal(after[known], table[known]) and int((~after.isnan().any(1)).sum()) == 12
    whole = run(bench, "dpo", "at-once", steps=6, prompts=3, save_every=6, eval_prompts=0)
    wanted = load_file(whole.folder / "checkpoints" / "step-00006" / "reference.safetensors")["logprobs"]
    torch.testing.assert_close(after, wanted, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_an_adapters_reference_is_its_frozen_base(bench: Bench) -> None:
    done = run(bench, "dpo", "adapter", steps=6, lora={"rank": 4, "dropout": 0.1}, lr=3e-3, loss="ipo", beta=0.5)
    rows = done.metrics
    assert rows[0]["eval_loss"] == pytest.approx(1.0, abs=1e-4)  # (0 - 1 / (2 beta))^2
    assert rows[-1]["eval_loss"] < 0.7 and metrics(done)[-1]["rewards/accuracies"] > 0.7
    config = json.loads((done.model / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"].endswith("start") and config["task_type"] == "CAUSAL_LM"


def test_micro_batches_change_nothing(bench: Bench, trained: Any) -> None:
    whole = run(bench, "dpo", "whole", steps=2, micro_batch_tokens=4096, eval_every=0, eval_prompts=0)
    for ours, theirs in zip(metrics(whole), metrics(trained), strict=False):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
