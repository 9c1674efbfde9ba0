"""Training a reward model: its loss, its numbers, what it saves, and that a resumed run is the same run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests import tiny
from tests.learner.support import gradients
from tests.recipes.pair_support import pairs_file, run
from tests.recipes.support import Bench, bench, digests, metrics, one_thread, stopped_at
from upslope.errors import InputError, InputErrors
from upslope.learner.learner import Learner
from upslope.learner.optimizer import OptimizerSettings
from upslope.models import scoring
from upslope.recipes import reward
from upslope.recipes.configs import RewardRecipe
from upslope.recipes.pairs import read_pairs
from upslope.text.collation import collate_pairs
from upslope.types import Encoded, EncodedPair

__all__ = ["bench", "one_thread"]


@pytest.fixture(scope="module")
def trained(bench: Bench) -> Any:
    return run(bench, "reward", "reward", steps=12, save_every=6)


def some_pairs(count: int = 5) -> list[EncodedPair]:
    rows = tiny.prompts([6 + n % 3 for n in range(2 * count)], seed=5)

    def side(n: int, row: list[int]) -> Encoded:
        ids = (4 + n, 5, 6, *row, 2)
        return Encoded(str(n), ids, (False,) * 3 + (True,) * (len(row) + 1))

    return [EncodedPair(str(n), side(n, rows[2 * n]), side(n, rows[2 * n + 1]), 0.25 * n) for n in range(count)]


def recipe(**own: Any) -> RewardRecipe:
    return RewardRecipe.model_validate({"data": "pairs.jsonl", "reward_model": own})


def test_the_loss_and_its_gradient_are_bradley_terrys_by_a_plain_forward() -> None:
    """Cut into micro-batches of a pair each, against autograd of the formula on stock logits of each row alone."""
    served = tiny.served(dtype=torch.float64)
    head = torch.randn(1, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    network = scoring.ScoreNetwork(served.get_decoder(), head)
    pairs, settings = some_pairs(), recipe(center=0.3)
    learner: Learner[Any] = Learner(network, OptimizerSettings(1e-3, 10), micro_batch_tokens=20)
    goal = reward.PairTargets(torch.tensor([p.margin for p in pairs], dtype=torch.float64).repeat_interleave(2))
    weights = reward.pair_weights(len(pairs)).double()
    found = learner.gradient(collate_pairs(pairs), goal, weights, reward.make_loss(settings))
    ours = gradients(learner)
    stock = tiny.model(dtype=torch.float64)
    score_head = head.clone().requires_grad_()
    total, high, low, right = torch.zeros((), dtype=torch.float64), -math.inf, math.inf, 0
    for pair in pairs:
        scores = []
        for row in (pair.chosen, pair.rejected):
            hidden = stock.model(input_ids=torch.tensor([row.token_ids])).last_hidden_state[0, -1]
            scores.append((score_head @ hidden)[0])
        total = total - logsigmoid(scores[0] - scores[1] - pair.margin) + 0.3 * (scores[0] + scores[1]) ** 2
        told = [float(score.detach()) for score in scores]
        high, low = max(high, *told), min(low, *told)
        right += int(scores[0] > scores[1])
    mean = total / len(pairs)
    mean.backward()
    assert found["loss"] == pytest.approx(float(mean.detach()), rel=1e-6)
    assert found["accuracy"] == pytest.approx(right / len(pairs)) and 0 < right < len(pairs)
    assert found["high/max"] == pytest.approx(high, rel=1e-5) and -found["low/max"] == pytest.approx(low, rel=1e-5)
    torch.testing.assert_close(ours["head.weight"], score_head.grad, rtol=1e-3, atol=1e-6)
    for name, parameter in stock.model.named_parameters():
        torch.testing.assert_close(ours[f"decoder.{name}"], parameter.grad, rtol=1e-3, atol=1e-6)


def test_it_learns_what_is_preferred_and_says_how_sure_it_is(trained: Any) -> None:
    rows = trained.metrics
    assert rows[0]["eval_loss"] == pytest.approx(math.log(2), rel=1e-6) and rows[0]["eval/accuracy"] == 0.5
    assert rows[-1]["eval/accuracy"] > 0.9 and rows[-1]["eval_loss"] < 0.3 < rows[0]["eval_loss"]
    step = rows[1]
    assert {
        "loss",
        "accuracy",
        "margin",
        "mean_reward",
        "min_reward",
        "max_reward",
        "grad_norm",
        "lr",
        "num_tokens",
    } <= set(step)
    assert step["min_reward"] <= step["mean_reward"] <= step["max_reward"]
    assert 0 <= rows[-1]["eval/calibration_error"] <= 0.5
    table = json.loads((trained.folder / "run.json").read_text())["summary"]["reliability"]
    assert sum(row["pairs"] for row in table) == 4 and all(0.5 <= row["confidence"] <= 1 for row in table)
    assert sum(row["pairs"] * row["accuracy"] for row in table) / 4 == pytest.approx(rows[-1]["eval/accuracy"])


@torch.no_grad()
def test_plain_transformers_scores_its_own_texts_as_the_run_did(trained: Any, bench: Bench) -> None:
    """From text: the template and tokenizer of the directory, padding on the right; the last evaluation comes out."""
    words = AutoTokenizer.from_pretrained(trained.model)
    model = AutoModelForSequenceClassification.from_pretrained(trained.model)
    data = RewardRecipe.model_validate({"data": {"path": str(bench.root / "pairs.jsonl"), "heldout": 4}}).data
    heldout = read_pairs(data, 0).heldout
    texts = [
        words.apply_chat_template(
            [{"role": "user", "content": pair.prompt}, {"role": "assistant", "content": said}], tokenize=False
        ).rstrip("\n")
        for pair in heldout for said in (pair.chosen, pair.rejected)
    ]  # fmt: skip
    batch = words(texts, padding=True, return_tensors="pt", add_special_tokens=False)
    batch.pop("token_type_ids", None)
    scores = model(**batch).logits[:, 0]
    loss = -logsigmoid(scores[0::2] - scores[1::2]).mean()
    assert float(loss) == pytest.approx(trained.metrics[-1]["eval_loss"], abs=1e-5)
    assert (trained.folder / "best" / "model.safetensors").is_file()


def test_a_resumed_run_is_the_same_run(
    bench: Bench,
    trained: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with stopped_at("5:0", monkeypatch):
        run(bench, "reward", "stopped", steps=12, save_every=6)
    again = run(bench, "reward", "stopped", steps=12, save_every=6, resume=True)
    same = digests(again.folder)
    assert same == digests(trained.folder) and len(same) > 10


def test_an_adapter_learns_and_leaves_a_whole_classifier(bench: Bench) -> None:
    done = run(bench, "reward", "adapter", steps=12, lora={"rank": 4, "dropout": 0.1}, lr=3e-2)
    assert metrics(done)[-1]["accuracy"] >= 0.75
    record = json.loads((done.folder / "run.json").read_text())
    assert 0 < record["trained_parameters"] < record["parameters"]
    base = AutoModelForSequenceClassification.from_pretrained(done.model).model.state_dict()
    start = tiny.model().model.state_dict()
    assert torch.equal(base["embed_tokens.weight"], start["embed_tokens.weight"])
    assert not torch.equal(base["layers.0.mlp.up_proj.weight"], start["layers.0.mlp.up_proj.weight"])


def test_equal_answers_and_long_ones_are_counted(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [json.loads(line) for line in Path(pairs_file(tmp_path / "p.jsonl")).read_text().splitlines()]
    rows[3]["rejected"] = rows[3]["chosen"]
    rows[4]["chosen"] = "x" * 90
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        InputError, match=r"1 of \d+ (training|held-out) pairs exceed 60 tokens.*reward_model.max_tokens"
    ):
        run(bench, "reward", "long", data=str(path), reward_model={"max_tokens": 60})
    told: list[str] = []

    class Ear:
        def __getattr__(self, name: str) -> Any:
            return (lambda text: told.append(text)) if name == "on_notice" else (lambda *given: None)

    run(bench, "reward", "dropped", data=str(path), too_long="drop", steps=1,
        reward_model={"max_tokens": 60}, listeners=[Ear()])  # fmt: skip
    assert any("1 of 16 rows have equal chosen and rejected answers" in text for text in told)
    assert any("exceed 60 tokens: 1 left out" in text for text in told)


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"data": {"task": "arithmetic"}}, "brings no preferences"),
        ({"data": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"prompts": 99}, "train.prompts"),
        ({"sampling": {"temperature": 1}}, "sampling"),
        ({"reward": "r.py:f"}, "reward"),
        ({"reward_model": {"centre": 1}}, "center"),
    ],
)
def test_what_cannot_be_used_is_named(bench: Bench, keywords: dict[str, Any], said: str) -> None:
    with pytest.raises((InputError, InputErrors), match=said):
        run(bench, "reward", "refused", **keywords)
