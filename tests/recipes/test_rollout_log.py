"""What a run writes down of single tokens, against the trees, the rewards and the models that it came from."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest
import torch

from tests import tiny
from tests.recipes.support import Bench, bench, one_thread
from tests.recipes.test_text_grid import cache
from tests.recipes.test_text_grid import run as walk
from upslope.api import FinishedRun
from upslope.models import loading
from upslope.models.tree import tree_logprobs
from upslope.recipes.rollout_log import ROWS, SCORED_EVERY, TRUE_PROMPTS, log_rows, scored_in
from upslope.recipes.rollouts import Harvest
from upslope.recipes.setup import Workshop
from upslope.text.collation import collate_rollouts
from upslope.text.rendering import Renderer
from upslope.types import Batch, PolicyEvaluation, Rollout
from upslope.worlds.prefix_tree import exact
from upslope.worlds.text_gridworld import TextGrid

__all__ = ["bench", "cache", "one_thread"]
ROUNDED = {"rel": 1e-3, "abs": 1e-5}
"""4 significant digits, of numbers that float32 computed."""


def lines_of(run: FinishedRun, step: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "rollouts" / f"step-{step:05d}.jsonl").read_text().splitlines()]


def along(task: TextGrid, model: Path | str, line: dict[str, Any]) -> list[dict[str, float]]:
    """Entropy, log-probability, A^pi and the expected score at each choice of a line's walk, from the tree."""
    card = loading.read_card(str(model))
    network = loading.load(card, torch.device("cpu"), torch.float32).model
    words = Renderer(card.tokenizer, card.stop_ids)
    tree = task.tree(words, tuple(map(int, line["prompt_id"].split("-"))))  # type: ignore[arg-type]
    with torch.no_grad():
        logprobs = tree_logprobs(network, tree)
    found, node, told = exact(tree, logprobs), 0, []
    entropy = -(found.probabilities * logprobs.masked_fill(~tree.legal, 0.0)).sum(1)
    for token in line["token_ids"][:-1]:
        choice = tree.support[node].tolist().index(token)
        told.append(
            {
                "entropies": float(entropy[node]), "logprobs": float(logprobs[node, choice]),
                "true_advantages": float(found.advantages[node, choice]),
                "true_values": float(tree.so_far[node] + found.values[node]),
            }
        )  # fmt: skip
        node = int(tree.child[node, choice])
    assert node < 0  # the walk is whole
    return told


@pytest.fixture(scope="module")
def walked(cache: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, FinishedRun]:
    root = tmp_path_factory.mktemp("walked")
    sizes = ("grpo.group=3", "train.prompts=11")
    return {
        "ppo": walk("ppo", root / "ppo"),
        "grpo": walk("grpo", root / "grpo", *sizes),
        "one": walk("grpo", root / "one", *sizes, "train.steps=1", "optim.decay=constant"),
        "two": walk("grpo", root / "two", *sizes, "train.steps=2", "optim.decay=constant"),
    }


@pytest.mark.parametrize(("name", "step", "model"), [("ppo", 1, None), ("grpo", 1, None), ("two", 2, "one")])
def test_entropy_and_truth_are_those_of_the_policy_that_sampled(
    walked: dict[str, FinishedRun], name: str, step: int, model: str | None
) -> None:
    """In step 1 the starting net; in step 2 the model that the same run, ended after step 1, saved."""
    task, sampled = TextGrid(), "text-grid-tiny" if model is None else walked[model].model
    lines = lines_of(walked[name], step)
    solved = [line for line in lines[:ROWS] if "true_values" in line]
    assert len(solved) >= TRUE_PROMPTS
    for line in solved[:5]:
        wanted = along(task, sampled, line)
        for column in ("entropies", "true_advantages", "true_values", "logprobs"):
            assert line[column][:-1] == pytest.approx([numbers[column] for numbers in wanted], **ROUNDED), column
        assert line["true_advantages"][-1] is None and line["entropies"][-1] == 0.0  # the forced stop token
        assert line["gaps"] == pytest.approx([0.0] * len(line["token_ids"]), abs=1e-5)


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_the_first_rows_alone_carry_columns_and_fewer_prompts_the_truth(
    walked: dict[str, FinishedRun], name: str
) -> None:
    lines = lines_of(walked[name], 1)
    assert len(lines) > ROWS
    assert ["pieces" in line for line in lines] == [row < ROWS for row in range(len(lines))]
    assert not any(set(line) & {"entropies", "gaps", "advantages", "values"} for line in lines[ROWS:])
    starts = list(dict.fromkeys(line["prompt"] for line in lines[:ROWS]))
    assert len(starts) > TRUE_PROMPTS
    assert {line["prompt"] for line in lines if "true_advantages" in line} == set(starts[:TRUE_PROMPTS])
    for line in lines[:ROWS]:
        assert "".join(line["pieces"]) == line["completion"] + " <eos>"
        columns = set(line) & {"pieces", "entropies", "gaps", "advantages", "values", "true_values"}
        assert {len(line[column]) for column in columns} == {len(line["token_ids"])}
        numbers = [n for column in columns - {"pieces"} for n in line[column] if n is not None]
        assert all(n == float(f"{n:.4g}") for n in numbers)


def test_what_ppo_estimated_is_gae_of_the_values_beside_it(walked: dict[str, FinishedRun]) -> None:
    """The recipe's trace, no discount, the score on the last token; what the loss used is that, whitened."""
    trace = 0.95
    lines = lines_of(walked["ppo"], 1)[:ROWS]
    used, raw = [], []
    for line in lines:
        values, estimate, wanted = [*line["values"], 0.0], 0.0, []
        for place in reversed(range(len(line["token_ids"]))):
            reward = line["reward"] if place == len(line["token_ids"]) - 1 else 0.0
            estimate = reward + values[place + 1] - values[place] + trace * estimate
            wanted.insert(0, estimate)
        assert line["estimates"] == pytest.approx(wanted, rel=2e-3, abs=2e-3)
        used += line.get("advantages", [line["advantage"]] * len(wanted))
        raw += line["estimates"]
    (x, y), (dx, dy) = (used[0], raw[0]), (used[-1] - used[0], raw[-1] - raw[0])
    assert dy > 0.1 or dy < -0.1
    scale = dx / dy
    assert scale > 0 and used == pytest.approx([x + scale * (value - y) for value in raw], abs=5e-3)


def test_grpo_has_one_number_a_walk_and_lists_it_once(walked: dict[str, FinishedRun]) -> None:
    lines = lines_of(walked["grpo"], 1)
    assert not any("advantages" in line or "values" in line for line in lines)
    for group in range(11):
        walks = [line for line in lines if line["group"] == group]
        for line in walks:
            rewards = [other["reward"] for other in walks]
            others = [other["reward"] for other in walks if other is not line]
            scale = pstdev(rewards) or 1.0  # the recipe's grpo.scale is std
            assert line["advantage"] == pytest.approx((line["reward"] - fmean(others)) / scale, abs=1e-3)


def test_completions_that_are_not_trained_on_have_no_advantage_that_was_used(bench: Bench) -> None:
    run = bench.run("grpo", "log-masked", steps=1, eval_prompts=0, truncated="mask", max_new_tokens=2)
    lines = lines_of(run, 1)
    cut = [line for line in lines if not line["terminated"] and line["advantage"]]
    assert cut
    for line in cut:
        assert line["advantages"] == [0.0] * len(line["token_ids"])
        others = [other["reward"] for other in lines if other["group"] == line["group"] and other is not line]
        assert line["advantage"] == pytest.approx(line["reward"] - sum(others) / len(others), abs=1e-5)


class Told:
    """A policy that says given numbers of the rows that it is asked about."""

    def __init__(self, logprobs: torch.Tensor, entropy: torch.Tensor) -> None:
        self.logprobs, self.entropy, self.asked = logprobs, entropy, 0

    def evaluate(self, batch: Batch) -> PolicyEvaluation:
        self.asked = len(batch)
        return PolicyEvaluation(self.logprobs, self.entropy).take(range(len(batch)))


def test_the_numbers_stand_at_their_tokens() -> None:
    """Two rows by hand: prompts of 2 and 3 tokens, answers of 3 and 1; target t is the token t + 1."""
    words = Renderer(tiny.tokenizer(), (2,))
    a, b, c = words.tokenizer("abc", add_special_tokens=False)["input_ids"]
    sides = [((9, 9), (a, b, 2), (-1.0, -2.0, -0.5), 1.0), ((9, 9, 9), (c,), (-0.25,), 0.0)]
    rollouts = [
        Rollout(
            "p", number, 0, (*prompt, *answer), (False,) * len(prompt) + (True,) * len(answer),
            (0.0,) * len(prompt) + sampled, (0.0,) * (len(prompt) + len(answer) - 1) + (score,), True, 0,
        )
        for number, (prompt, answer, sampled, score) in enumerate(sides)
    ]  # fmt: skip
    found = Harvest(rollouts, ["first", "second"], ["ab", "c"], 0)
    nothing: Any = None
    shop = Workshop(nothing, nothing, words, nothing, nothing, [], [], [], [], None)
    learner = torch.tensor([[0.0, -0.9, -2.0000004, -0.512345], [0.0, 0.0, -0.25, 0.0]], dtype=torch.float64)
    entropy = torch.tensor([[0.0, 1.23456, 2.0, 3.0], [0.0, 0.0, 0.5, 0.0]], dtype=torch.float64)
    policy, batch = Told(learner, entropy), collate_rollouts(rollouts)
    gains = torch.tensor([[7.0, 1.0, -1.0, 3.0], [7.0, 7.0, -0.5, 7.0]])
    values = torch.tensor([[0.0, 0.1, 0.2, 0.3], [0.0, 0.0, 0.4, 0.0]])
    first, second = log_rows(shop, found, 5, policy, batch, gains, batch.mask, {"values": values})
    assert policy.asked == 2
    assert first["advantage"] == 1.0 and second["advantage"] == -0.5
    assert first["advantages"] == [1.0, -1.0, 3.0] and "advantages" not in second  # one number, which the row has
    assert first["gaps"] == [0.1, 0.0, -0.01235] and second["gaps"] == [0.0]  # rounding is no difference
    assert first["entropies"] == [1.235, 2.0, 3.0] and second["entropies"] == [0.5]
    assert first["values"] == [0.1, 0.2, 0.3] and second["values"] == [0.4]
    assert first["pieces"] == ["a", "b", "<|im_end|>"] and second["pieces"] == ["c"]
    assert (first["step"], first["prompt"], first["completion"], first["reward"]) == (5, "first", "ab", 1.0)
    plain = log_rows(shop, found, 5, None, batch, gains, batch.mask, {"values": values})
    for whole, less in zip((first, second), plain, strict=True):
        assert less == {name: value for name, value in whole.items() if name not in ("entropies", "gaps")}


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_entropies_are_told_of_the_first_each_tenth_and_the_last_step(bench: Bench, kind: str) -> None:
    run = bench.run(kind, f"every-{kind}", steps=SCORED_EVERY + 2, eval_prompts=0)
    told = {step for step in range(1, SCORED_EVERY + 3) if "entropies" in lines_of(run, step)[0]}
    assert told == {1, SCORED_EVERY, SCORED_EVERY + 2}
    assert all("pieces" in lines_of(run, step)[0] for step in range(1, SCORED_EVERY + 3))
    assert [step for step in range(1, 26) if scored_in(step, 25)] == [1, 10, 20, 25]


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_other_language_runs_have_columns_but_no_truth(bench: Bench, kind: str) -> None:
    lines = lines_of(bench.run(kind, f"log-{kind}", steps=1, eval_prompts=0), 1)
    for line in lines:
        plain = "".join(piece for piece in line["pieces"] if piece not in tiny.SPECIAL)
        assert len(line["pieces"]) == len(line["token_ids"]) and line["completion"] == plain
        assert max(map(abs, line["gaps"])) < 1e-4 and min(line["entropies"]) > 0
        assert not set(line) & {"true_advantages", "true_values"}
        assert ("values" in line) == (kind == "ppo")
