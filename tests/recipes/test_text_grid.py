"""SFT, PPO and GRPO on the text gridworld, unchanged: whole runs against the exact answers of the prefix tree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import upslope
from tests.recipes.support import metrics, one_thread
from upslope.api import FinishedRun, execute
from upslope.errors import InputError, InputErrors
from upslope.learner.learner import FrozenScorer, Learner
from upslope.learner.optimizer import OptimizerSettings
from upslope.maths import kl
from upslope.models import loading, tiny
from upslope.models.networks import PolicyNetwork, ValueNetwork
from upslope.models.tree import tree_logprobs
from upslope.recipes import grpo, ppo
from upslope.recipes.configs import RECIPES, PpoRecipe, SamplingSection
from upslope.recipes.ppo import Networks
from upslope.recipes.rollouts import Harvest, _rollout
from upslope.recipes.run_rows import confined, sampling_of
from upslope.rollout.sampler import InProcessSampler
from upslope.run.recipe import load
from upslope.text.rendering import Renderer
from upslope.types import Confined
from upslope.worlds.arithmetic import Arithmetic
from upslope.worlds.prefix_tree import exact
from upslope.worlds.rewards import Score
from upslope.worlds.text_gridworld import TextGrid

__all__ = ["one_thread"]
RECIPE_FILES = Path(__file__).resolve().parents[2] / "recipes"
SHORT = {
    "sft": ["train.steps=2"],
    "ppo": ["train.steps=2", "train.prompts=22"],
    "grpo": ["train.steps=2", "train.prompts=11", "grpo.group=2"],
}


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny models of these tests lie in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UPSLOPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def run(kind: str, out: Path, *overrides: str) -> FinishedRun:
    loaded = load(RECIPE_FILES / f"{kind}-text-grid.yaml", RECIPES[kind], [*SHORT[kind], *overrides])
    return execute(loaded, listeners=[], path=out)


def mean_gap(model: Path | str, task: TextGrid) -> float:
    """Mean over the start cells of J* - J, exactly."""
    card = loading.read_card(str(model))
    network = loading.load(card, torch.device("cpu"), torch.float32).model
    words = Renderer(card.tokenizer, card.stop_ids)
    with torch.no_grad():
        gaps = []
        for start in task.starts:
            tree = task.tree(words, start)
            gaps.append(float(tree.best[0] - exact(tree, tree_logprobs(network, tree)).expected_return))
    return sum(gaps) / len(gaps)


# ---------------------------------------------------------------------------------------------------------- whole runs
@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_every_walk_of_a_run_is_legal_whole_and_scored_as_the_rules_say(kind: str, tmp_path: Path) -> None:
    done = run(kind, tmp_path / kind)
    task = TextGrid()
    seen = 0
    for path in sorted((done.folder / "rollouts").glob("*.jsonl")):
        for row in map(json.loads, path.read_text().splitlines()):
            words = row["completion"].split()
            start = task.grid.index[tuple(map(int, row["prompt"].split()[:2]))]  # type: ignore[index]
            assert row["reward"] == task.rules.score(start, words)
            assert row["terminated"] and row["logprobs"][-1] == 0.0  # the forced stop token
            # No penalty was paid: the walk is worth more than any early end.
            assert row["reward"] > task.rules.penalty(0) + 2 and 1 <= len(words) <= 5
            assert len(row["token_ids"]) == len(words) + 1
            seen += 1
    assert seen == 2 * 22
    for row in metrics(done):
        assert row["completions/clipped_ratio"] == 0
        assert row["sampler_gap/max"] < 1e-5  # the learner replays what was allowed
    assert -5 <= done.metrics[0]["eval/reward"] <= 24 / 11


def test_the_first_training_reward_is_near_the_exact_return(tmp_path: Path) -> None:
    """2 x 264 walks of the starting net; the mean of their scores is within 4 standard errors of the exact J."""
    done = run("ppo", tmp_path / "r", "train.prompts=264", "train.steps=1")
    task = TextGrid()
    expected = 24 / 11 - mean_gap("text-grid-tiny", task)
    rows = [json.loads(line) for line in (done.folder / "rollouts" / "step-00001.jsonl").read_text().splitlines()]
    scores = torch.tensor([row["reward"] for row in rows], dtype=torch.float64)
    assert len(scores) == 264
    assert abs(float(scores.mean()) - expected) < 4 * float(scores.std()) / len(scores) ** 0.5
    assert metrics(done)[0]["reward"] == pytest.approx(float(scores.mean()))


def test_sft_learns_the_optimal_walks(tmp_path: Path) -> None:
    done = run("sft", tmp_path / "sft", "train.steps=30")
    before, after = mean_gap("text-grid-tiny", TextGrid()), mean_gap(done.model, TextGrid())
    assert before > 4 and after < 2
    assert done.metrics[-1]["eval/reward"] > done.metrics[0]["eval/reward"] + 2


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_the_exact_gap_shrinks(kind: str, tmp_path: Path) -> None:
    sizes = {"ppo": ["train.prompts=66", "train.epochs=1"], "grpo": ["train.prompts=11", "grpo.group=8"]}[kind]
    done = run(kind, tmp_path / kind, "train.steps=12", *sizes)
    assert mean_gap(done.model, TextGrid()) < mean_gap("text-grid-tiny", TextGrid()) - 2


def test_an_evaluation_asks_what_is_allowed_too() -> None:
    found = upslope.evaluate("text-grid-tiny-5", task="text-grid", max_new_tokens=6, dtype="float32")
    task = TextGrid()
    for score in (found.greedy, found.sampled):
        assert score.n == 11
        for start, text, reward in zip(task.starts, score.completions, score.rewards, strict=True):
            state = task.grid.index[start]
            assert reward == task.rules.score(state, text.split()) > task.rules.penalty(0) + 2


# -------------------------------------------------------------------------------------------------------- PPO's targets
def walked(seed: int, count: int) -> tuple[Harvest, list[Any], Any, list[Any]]:
    """Sampled walks of every start, scored, as the recipe makes rollouts of them; the model and the trees."""
    task, model = TextGrid(), tiny.network(seed).eval()
    model.set_attn_implementation("upslope")
    tokens = tiny.tokenizer()
    words = Renderer(tokens, (tokens.eos_token_id,))
    sampling = sampling_of(SamplingSection(max_new_tokens=6), words, task)
    prompts = task.prompts("heldout")
    ids = [words.prompt(prompt.content) for prompt in prompts]
    groups = InProcessSampler(model, 64).sample(ids, count, sampling, list(range(len(ids))))
    rows, scores = [], []
    for number, (prompt, row, group) in enumerate(zip(prompts, ids, groups, strict=True)):
        columns = {name: [value] * count for name, value in prompt.columns.items()}
        points = task.reward([], [words.text(answer.token_ids) for answer in group], **columns)
        for sample, (answer, value) in enumerate(zip(group, points, strict=True)):
            rows.append(_rollout(prompt.id, number, sample, row, answer, Score(value), 1.0))
            scores.append(value)
    blank = [""] * len(rows)
    return Harvest(rows, blank, blank, 0), scores, model, [task.tree(words, start) for start in task.starts]


def networks(model: Any, reference: Any) -> Networks:
    """A critic that says something everywhere, beyond the end of a walk too."""
    critic = ValueNetwork(tiny.network(50).model)
    critic.decoder.set_attn_implementation("upslope")
    torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(0))
    torch.nn.init.constant_(critic.head.bias, 7.0)
    settings = OptimizerSettings(1e-3, 10, 0, "constant", 1.0)
    frozen: Any = None if reference is None else FrozenScorer(PolicyNetwork(reference))
    return Networks(Learner(PolicyNetwork(model), settings), Learner(critic, settings), frozen)


def test_the_cap_is_a_true_end_and_nothing_is_bootstrapped() -> None:
    """With trace 1 the critic's target is the walk's score at every token, whatever the critic says of the end."""
    found, scores, model, _ = walked(1, 6)
    recipe = PpoRecipe(data={"task": "text-grid"}, ppo={"trace": 1.0, "kl_coef": 0.0, "whiten": False})
    batch, targets, _ = ppo.learn_from(recipe, found, networks(model, None))
    moves = [row.completion_length - 1 for row in found.rollouts]
    assert moves.count(5) > 10 and min(moves) < 5  # some walks end at the cap, some on a terminal
    for row, score in enumerate(scores):
        learned = targets.returns[row][batch.mask[row]]
        assert len(learned) == moves[row] + 1
        assert torch.allclose(learned, torch.full_like(learned, score), atol=1e-4)


def test_the_reference_scores_among_what_was_allowed() -> None:
    """The metric ``kl`` is the mean of k3 over the tokens, computed from the trees of both nets."""
    found, _, model, trees = walked(2, 4)
    other = tiny.network(3).eval()
    other.set_attn_implementation("upslope")
    recipe = PpoRecipe(data={"task": "text-grid"}, ppo={"kl_coef": 0.1})
    _, targets, told = ppo.learn_from(recipe, found, networks(model, other))
    pieces, tokens = [], 0
    with torch.no_grad():
        tables = [(tree_logprobs(model, tree), tree_logprobs(other, tree)) for tree in trees]
    for row, rollout in enumerate(found.rollouts):
        tree, (ours, theirs) = trees[rollout.group], tables[rollout.group]
        node = 0
        for place in range(tree.prompt_length, len(rollout.token_ids)):
            tokens += 1
            if node < 0:
                continue  # the forced stop token: equal for both
            choice = tree.support[node].tolist().index(rollout.token_ids[place])
            pieces.append(kl.k3(ours[node, choice], theirs[node, choice]))
            assert abs(float(targets.old_logprobs[row, place - 1] - ours[node, choice])) < 1e-5
            node = int(tree.child[node, choice])
    wanted = float(torch.stack(pieces).sum()) / tokens
    assert wanted > 1e-3 and told["kl"] == pytest.approx(wanted, rel=1e-4)


# ------------------------------------------------------------------------------------------------------------ the hooks
def test_a_completion_must_have_room_for_the_longest_walk(tmp_path: Path) -> None:
    with pytest.raises((InputError, InputErrors), match="found 6, but completions of task text-grid take up to 8"):
        run("ppo", tmp_path / "r", "data.options.horizon=7")
    assert not (tmp_path / "r").exists()
    assert confined(Arithmetic()) is None and isinstance(confined(TextGrid(), 6), Confined)


def test_a_task_without_the_hook_allows_everything() -> None:
    words = Renderer(tiny.tokenizer(), (3,))
    settings = SamplingSection(max_new_tokens=9, temperature=0.5, stop=("x",))
    sampling = sampling_of(settings, words, None)
    assert sampling.allowed is None and sampling.max_new_tokens == 9 and sampling.temperature == 0.5
    assert sampling.stop_strings == ("x",) and sampling.stop_ids == (3,)
    assert sampling_of(settings, words, TextGrid()).allowed is not None


def test_a_tiny_model_is_named_by_its_seed_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = loading.locate("text-grid-tiny"), loading.locate("text-grid-tiny-0"), None
    other = loading.locate("text-grid-tiny-12")
    assert torch.equal(torch.get_rng_state(), before)
    assert first == again != other
    weights = [
        loading.load(loading.read_card(path), torch.device("cpu"), torch.float32).model for path in (first, other)
    ]
    for model, seed in zip(weights, (0, 12), strict=True):
        for name, tensor in tiny.network(seed).named_parameters():
            assert torch.equal(model.get_parameter(name), tensor), name
    assert not torch.equal(weights[0].lm_head.weight, weights[1].lm_head.weight)
    assert abs(float(weights[0].lm_head.weight.detach().std()) - 0.1) < 0.01
    with pytest.raises(InputError, match="no such directory 'text-grid-tiny-x'"):
        loading.locate("text-grid-tiny-x")


def test_the_tiny_tokenizer_begins_with_bos_and_reads_its_own_words() -> None:
    card = loading.read_card("text-grid-tiny")
    words = Renderer(card.tokenizer, card.stop_ids)
    assert words.prompt("0 1 <sep>")[0] == card.tokenizer.bos_token_id and not words.wraps
    assert words.text(words.completion("U R D L")) == "U R D L"
    assert (
        card.stop_ids == (card.tokenizer.eos_token_id,) and card.tokenizer.eos_token_id != card.tokenizer.pad_token_id
    )


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_the_loss_is_told_the_number_of_its_step(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, name = {"ppo": (ppo, "policy_loss"), "grpo": (grpo, "make_loss")}[kind]
    inner, seen = getattr(module, name), []

    def noted(recipe: Any, first: bool, step: int = 0) -> Any:
        seen.append((step, first))
        return inner(recipe, first, step)

    monkeypatch.setattr(module, name, noted)
    run(kind, tmp_path / kind, "train.steps=3", "train.epochs=1", "train.minibatches=2", "train.eval_prompts=0")
    assert seen == [(step, first) for step in range(3) for first in (True, False)]
