"""Certificates of trainings: the settings are the recipes', what is measured is right, short runs do not pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from upslope.certify import trainings
from upslope.certify.ground import SMALL, network, paths, renderer
from upslope.certify.trainings import Certificate, certify_training, choice_optimum, fair, generated_maps
from upslope.maths.advantages import group_relative
from upslope.models.tree import tree_logprobs
from upslope.recipes import grpo
from upslope.recipes.configs import GrpoRecipe
from upslope.types import PolicyEvaluation
from upslope.worlds.prefix_tree import PrefixTree, exact, sequence_kl, soft_optimum
from upslope.worlds.text_gridworld import TextGrid

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UPSLOPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_the_settings_are_those_of_the_recipe_file(kind: str) -> None:
    text = yaml.safe_load((RECIPES / f"{kind}-text-grid.yaml").read_text())
    text["optim"]["lr"] = float(text["optim"]["lr"])
    if kind == "ppo":
        text["ppo"] |= {key: float(text["ppo"][key]) for key in ("critic_lr", "critic_head_lr")}
    assert trainings.SETTINGS[kind] == text


def short(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    few = {"steps": 1, "prompts": 22 if kind == "ppo" else 11, "epochs": 1, "minibatches": 1}
    monkeypatch.setitem(trainings.SETTINGS, kind, {**trainings.SETTINGS[kind], "train": few})
    monkeypatch.setitem(trainings.PENALISED, kind, {**trainings.PENALISED[kind], "train": few})


@pytest.mark.parametrize(("kind", "beta"), [("ppo", 0.0), ("grpo", 0.0), ("ppo", 1.0), ("grpo", 1.0)])
def test_a_short_run_is_measured_and_does_not_pass(kind: str, beta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    short(monkeypatch, kind)
    found = certify_training(kind, 3, beta=beta)
    assert found.worst >= found.mean > 0.05 and not found.passed
    assert (found.critic_rmse is not None) == (kind == "ppo")
    assert (found.kl is not None) == (beta > 0) and (found.own_kl is not None) == (beta > 0 and kind == "grpo")
    assert found.seconds > 0


@pytest.mark.parametrize(("prompt", "vocabulary"), [("map", "moves"), ("coordinate", "full")])
def test_drawn_maps_and_every_token_take_more_steps(
    prompt: str, vocabulary: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    short(monkeypatch, "grpo")
    monkeypatch.setitem(trainings.LONGER, "grpo", {"steps": 2})
    monkeypatch.setitem(trainings.WALKING_ABOUT, "train", {**trainings.WALKING_ABOUT["train"], "steps": 1})
    found = certify_training("grpo", 3, folder=tmp_path, prompt=prompt, vocabulary=vocabulary)
    assert found.worst >= found.mean > 0.05 and not found.passed
    (run, *before) = sorted(tmp_path.iterdir())
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert recipe["train"]["steps"] == 2
    options = recipe["data"]["options"]
    assert (options["prompt"], options["vocabulary"]) == (prompt, vocabulary)
    assert [folder.name for folder in before] == ([f"{run.name}-start"] if vocabulary == "full" else [])
    assert recipe["model"]["name"] == (str(before[0] / "model") if before else "text-grid-tiny-3")


@pytest.mark.parametrize(("prompt", "vocabulary"), [("map", "moves"), ("coordinate", "full")])
def test_a_penalty_beside_a_drawn_map_or_every_token_is_refused(prompt: str, vocabulary: str) -> None:
    """Their net begins elsewhere, or trains for longer: what is measured would be held against the wrong start."""
    with pytest.raises(ValueError, match="only coordinate and moves"):
        certify_training("ppo", 0, beta=1.0, prompt=prompt, vocabulary=vocabulary)


def test_what_passes() -> None:
    base = {"kind": "ppo", "seed": 0, "map": "4x4", "mean": 0.0, "critic_rmse": None, "seconds": 1.0}
    assert Certificate(beta=0.0, worst=0.049, kl=None, own_kl=None, **base).passed  # type: ignore[arg-type]
    assert not Certificate(beta=0.0, worst=0.051, kl=None, own_kl=None, **base).passed  # type: ignore[arg-type]
    assert not Certificate(beta=0.0, worst=float("nan"), kl=None, own_kl=None, **base).passed  # type: ignore[arg-type]
    assert Certificate(beta=1.0, worst=9.0, kl=0.019, own_kl=None, **base).passed  # type: ignore[arg-type]
    grpo = base | {"kind": "grpo"}
    assert not Certificate(beta=1.0, worst=9.0, kl=0.019, own_kl=0.021, **grpo).passed  # type: ignore[arg-type]


def test_the_fixed_point_of_k2_is_where_its_gradient_ends_and_not_the_soft_optimum() -> None:
    """grad J - beta sum_h d(h) grad KL(pi(.|h) || ref(.|h)), the visits d held fixed, in the logits of each choice."""
    task, beta = TextGrid(SMALL, horizon=4), 1.5
    tree = task.tree(renderer(), task.starts[0])
    with torch.no_grad():
        reference = tree_logprobs(network(1), tree)
    fixed = choice_optimum(tree, reference, beta)

    def gradient(logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone().requires_grad_()
        table = logits.masked_fill(~tree.legal, -torch.inf).log_softmax(1)
        known = exact(tree, table)
        ours, theirs = torch.where(tree.legal, table, 0.0), torch.where(tree.legal, reference, 0.0)
        kl = (torch.where(tree.legal, ours.exp(), 0.0) * (ours - theirs)).sum(1)
        value = known.expected_return - beta * (known.occupancy.detach() * kl).sum()
        return torch.autograd.grad(value, logits)[0]

    assert float(gradient(torch.where(tree.legal, fixed, 0.0)).abs().max()) < 1e-10
    assert float(gradient(torch.where(tree.legal, reference, 0.0)).abs().max()) > 1e-3
    soft = soft_optimum(tree, reference, beta).logprobs
    assert float(gradient(torch.where(tree.legal, soft, 0.0)).abs().max()) > 1e-3
    assert float(sequence_kl(tree, fixed, soft)) > 1e-3


def expected_gradient(tree: PrefixTree, logits: Tensor, reference: Tensor, beta: float, scale: str) -> Tensor:
    """The expected gradient of the recipe's own loss in the logits of each choice: all pairs of texts as groups of two,
    through ``group_relative``, ``weigh`` and ``make_loss`` with the settings of a certificate with beta."""
    keys = trainings.PENALISED["grpo"]["grpo"] | {"group": 2, "scale": scale, "kl_coef": beta}
    recipe = GrpoRecipe.model_validate({"data": {"task": "text-grid"}, "sampling": {"max_new_tokens": 5}, "grpo": keys})
    logits = logits.clone().requires_grad_()
    table = logits.masked_fill(~tree.legal, -torch.inf).log_softmax(1)
    texts = paths(tree)
    longest = max(map(len, texts)) + 1  # and the stop token, of log-probability 0

    def rows(numbers: Tensor) -> Tensor:
        found = [torch.stack([numbers[node, choice] for node, choice in text]) for text in texts]
        return torch.stack([torch.nn.functional.pad(row, (0, longest - len(row))) for row in found])

    mask = torch.tensor([[place <= len(text) for place in range(longest)] for text in texts])
    ours, theirs = rows(table), rows(reference)
    chance = ours.detach().sum(1).exp()
    first, second = torch.cartesian_prod(torch.arange(len(texts)), torch.arange(len(texts))).T
    scores = tree.leaf_scores
    relative = group_relative(torch.stack([scores[first], scores[second]], 1), "leave_one_out", scale)
    total = table.new_zeros(())
    for rows_of, gains in ((first, relative[:, 0]), (second, relative[:, 1])):
        goal = grpo.GrpoTargets(
            mask[rows_of], gains[:, None] * mask[rows_of], ours[rows_of].detach(), ours[rows_of].detach(),
            theirs[rows_of],
        )  # fmt: skip
        loss, _ = grpo.make_loss(recipe, first=True)(PolicyEvaluation(ours[rows_of], 0 * ours[rows_of]), goal)
        weights = grpo.weigh(recipe, mask[rows_of]).to(torch.float64) * len(rows_of)
        total = total + (weights * loss * (chance[first] * chance[second])[:, None]).sum()
    return torch.autograd.grad(total, logits)[0]


def test_the_fixed_point_is_that_of_the_recipes_own_loss_and_division_by_std_would_move_it() -> None:
    task, beta = TextGrid(SMALL, horizon=4), 1.5
    tree = task.tree(renderer(), task.starts[0])
    with torch.no_grad():
        reference = torch.where(tree.legal, tree_logprobs(network(1), tree), 0.0)
    fixed = torch.where(tree.legal, choice_optimum(tree, tree_logprobs(network(1), tree).detach(), beta), 0.0)
    assert float(expected_gradient(tree, fixed, reference, beta, "none").abs().max()) < 1e-7  # weights are float32
    assert float(expected_gradient(tree, reference, reference, beta, "none").abs().max()) > 1e-2
    assert float(expected_gradient(tree, fixed, reference, beta, "std").abs().max()) > 1e-2


def test_generated_maps_keep_the_built_in_maps_rule() -> None:
    assert fair(TextGrid(horizon=5))
    found = list(generated_maps(4))
    assert len(set(found)) == 4 and found == list(generated_maps(4))
    others = list(generated_maps(2, first=1000))
    assert len({*found, *others}) == 6 and all(fair(TextGrid(text, horizon=5)) for text in others)
    for text in found:
        assert fair(TextGrid(text, horizon=5)) and {"+8", "+2", "-1"} <= set(text.split())
    for unfair in ("S . . . . . +5", "+2 S +2", "+2 S . +4", "S . +1"):
        # too far; a tie; 1 against 2; the best end earns -1 and standing about costs 5: fair
        assert fair(TextGrid(unfair, horizon=5)) == (unfair == "S . +1")
