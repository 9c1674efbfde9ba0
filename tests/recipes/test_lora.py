"""LoRA in SFT, PPO and GRPO: nothing but the adapter learns, the reference is the base, a run resumes bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import upslope
from tests import tiny
from tests.models.adapter_support import logprobs, plain, rows, stock_logprobs, storages, with_peft
from tests.recipes.support import Bench, bench, digests, metrics, one_thread, sevens, stopped_at
from upslope.api import FinishedRun
from upslope.cli import app
from upslope.errors import InputError, InputErrors
from upslope.learner.learner import Learner
from upslope.learner.optimizer import OptimizerSettings
from upslope.models import adapters
from upslope.models.adapters import Lora
from upslope.models.networks import PolicyNetwork
from upslope.recipes import ppo, setup
from upslope.recipes.configs import GrpoRecipe, PpoRecipe, SftRecipe
from upslope.rollout.sampler import InProcessSampler
from upslope.run.recipe import build, load, read_text
from upslope.types import Sampling

__all__ = ["bench", "one_thread"]
SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {"lora": {"rank": 4, "dropout": 0.2}, "decay": "cosine"},
    "ppo": {"lora": {"rank": 4}, "decay": "linear", "target_kl": None},
    "grpo": {"lora": {"rank": 4, "targets": ["q_proj", "down_proj"]}, "kl_coef": 0.1},
}


def run(bench: Bench, kind: str, out: str, **keywords: Any) -> FinishedRun:
    return bench.run(kind, out, save_every=100, seed=3, **{**SETTINGS[kind], **keywords})


@pytest.fixture(scope="module")
def whole(bench: Bench) -> dict[str, FinishedRun]:
    return {kind: run(bench, kind, f"lora-{kind}") for kind in SETTINGS}


# ------------------------------------------------------------------------------------------------------------- training
@pytest.mark.parametrize("kind", list(SETTINGS))
def test_only_the_adapter_moves_and_only_it_is_saved(
    bench: Bench, whole: dict[str, FinishedRun], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    kept: list[Any] = []
    prepare = setup.prepare
    module = __import__(f"upslope.recipes.{kind}", fromlist=["prepare"])
    monkeypatch.setattr(module, "prepare", lambda *given: kept.append(prepare(*given)) or kept[0])
    again = run(bench, kind, f"moves-{kind}")
    names = {name.replace(".base_layer", ""): weight for name, weight in kept[0].model.model.named_parameters()}
    for name, weight in load_file(bench.model / "model.safetensors").items():
        assert torch.equal(names[name], weight), name
    assert all(weight.any() for name, weight in names.items() if "lora_B" in name)
    assert digests(again.folder) == digests(whole[kind].folder)
    (place,) = (again.folder / "checkpoints").glob("step-*")
    for part in ("policy", "critic") if kind == "ppo" else ("policy",):
        held = {name.partition(".")[2] for name in load_file(place / f"{part}.safetensors")}
        assert all(".lora_" in name or name.startswith("head.") for name in held), held
        assert any(name.startswith("head.") for name in held) == (part == "critic")


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_the_policy_starts_where_its_reference_is(whole: dict[str, FinishedRun], kind: str) -> None:
    first, last = metrics(whole[kind])[0], metrics(whole[kind])[-1]
    if kind == "ppo":  # measured when the rollouts were collected
        assert first["kl"] == 0.0 < last["kl"]
    assert first["sampler_gap/max"] < 1e-5  # the sampler spoke with the very adapter that the learner scores
    assert last["sampler_gap/max"] < 1e-5
    assert last["kl"] > 0


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_in_the_first_minibatch_the_ratio_is_one_and_the_kl_nothing(bench: Bench, kind: str) -> None:
    done = run(bench, kind, f"first-{kind}", steps=1, epochs=1, minibatches=1, eval_every=0)
    (row,) = metrics(done)
    if kind == "ppo":
        assert row["ratio/mean"] == row["ratio/max"] == 1.0
    assert row["clip_ratio"] == 0.0
    assert row["kl"] == 0.0 and row["approx_kl"] == 0.0 and row["grad_norm"] > 0


def test_ppo_s_three_networks_share_one_base(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[ppo.Networks] = []
    build_networks = ppo.build
    monkeypatch.setattr(ppo, "build", lambda *given: kept.append(build_networks(*given)) or kept[0])
    run(bench, "ppo", "shared", steps=1)
    policy, critic, reference = kept[0].policy.network, kept[0].critic.network, kept[0].reference.network  # type: ignore[union-attr]
    base = sum(storages(tiny.load(bench.model).model).values())
    adapter = sum(4 * weight.numel() for weight in adapters.adapter_parameters(policy).values())
    head = 4 * (32 + 1)
    assert sum(storages(policy, critic, reference).values()) == base + 2 * adapter + head
    ours, theirs = adapters.adapter_parameters(policy), adapters.adapter_parameters(critic)
    assert any(not torch.equal(ours[f"model.{n.replace('decoder', 'model', 1)}"], w) for n, w in theirs.items())


def test_grpo_with_an_adapter_learns(bench: Bench) -> None:
    done = bench.run(
        "grpo", "learns", reward=sevens, steps=12, prompts=4, group=8, epochs=1, minibatches=1, eval_prompts=0,
        lora={"rank": 4}, lr=3e-2,
    )  # fmt: skip
    rewards = [row["reward"] for row in metrics(done)]
    assert sum(rewards[-3:]) / 3 > 0.5 > 5 * rewards[0]


# ------------------------------------------------------------------------------------------------------ resume, go on
@pytest.mark.parametrize(("kind", "place"), [("sft", "2"), ("ppo", "1:3"), ("grpo", "2:1")])
def test_stopped_and_resumed_is_never_stopped(
    bench: Bench, whole: dict[str, FinishedRun], monkeypatch: pytest.MonkeyPatch, kind: str, place: str
) -> None:
    out = f"lora-{kind}-{place.replace(':', '-')}"
    with stopped_at(place, monkeypatch):
        run(bench, kind, out)
    assert digests(run(bench, kind, out, resume=True).folder) == digests(whole[kind].folder)


def test_dropout_makes_a_difference_in_sft_and_comes_from_the_seed(bench: Bench, whole: dict[str, FinishedRun]) -> None:
    without = run(bench, "sft", "no-dropout", lora={"rank": 4})
    first = [metrics(done)[0]["loss"] for done in (whole["sft"], without)]
    assert first[0] == first[1]  # B is still 0
    assert metrics(whole["sft"])[1]["loss"] != metrics(without)[1]["loss"]


def test_each_step_drops_other_inputs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    dropping = adapters.dropping
    monkeypatch.setattr(adapters, "dropping", lambda model, seed: seeds.append(seed) or dropping(model, seed))
    for seed in (3, 4):
        bench.run("sft", f"seeds-{seed}", lora={"rank": 4, "dropout": 0.2}, seed=seed, eval_prompts=0)
    assert len(seeds) == len(set(seeds)) == 6


def test_resuming_on_another_base_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = tiny.directory(tmp_path / "model")
    with stopped_at("1", monkeypatch):
        run(bench, "grpo", "base-changes", model=str(model))
    tiny.directory(tmp_path / "model", seed=1)
    with pytest.raises(InputError, match="holds other weights than this run began with"):
        run(bench, "grpo", "base-changes", model=str(model), resume=True)
    tiny.directory(tmp_path / "model")
    assert run(bench, "grpo", "base-changes", model=str(model), resume=True).model.is_dir()


@pytest.mark.parametrize("kind", ["sft", "ppo", "grpo"])
def test_a_run_goes_on_with_an_adapter(bench: Bench, whole: dict[str, FinishedRun], kind: str) -> None:
    start = whole["grpo"].model
    keywords = {key: value for key, value in SETTINGS[kind].items() if key != "lora"}
    done = bench.run(kind, f"on-{kind}", model=str(start), seed=4, **keywords)
    config = json.loads((done.model / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(bench.model)  # not the adapter that it began from
    assert config["target_modules"] == ["down_proj", "q_proj"] and config["r"] == 4
    before, after = (load_file(place / "adapter_model.safetensors") for place in (start, done.model))
    assert before.keys() == after.keys() and all(not torch.equal(before[name], after[name]) for name in before)
    if kind == "ppo":
        assert metrics(done)[0]["kl"] == 0.0  # against the adapter it began from


def test_going_on_with_other_settings_is_refused(bench: Bench, whole: dict[str, FinishedRun]) -> None:
    start = str(whole["grpo"].model)
    with pytest.raises(InputError, match=r"rank 4, alpha 8 on q_proj, down_proj.* rank 8, alpha 16.*leave lora out"):
        run(bench, "grpo", "other-rank", model=start, lora={"rank": 8})
    assert run(bench, "grpo", "same", model=start, steps=1).model.is_dir()


def test_an_adapter_s_dropout_is_off_where_completions_are_sampled(bench: Bench, whole: dict[str, FinishedRun]) -> None:
    start = str(whole["sft"].model)
    assert json.loads((whole["sft"].model / "adapter_config.json").read_text())["lora_dropout"] == 0.2
    done = bench.run("grpo", "from-sft", model=start, steps=1, epochs=1, minibatches=1, kl_coef=0.1)
    assert json.loads((done.model / "adapter_config.json").read_text())["lora_dropout"] == 0.2
    for given, share in (({}, 0.2), ({"lora": {"rank": 4, "dropout": 0.1}}, 0.1), ({"lora": {"rank": 4}}, 0.0)):
        more = bench.run("sft", f"dropout-{share}", model=start, steps=1, eval_prompts=0, **given)
        assert json.loads((more.model / "adapter_config.json").read_text())["lora_dropout"] == share
    assert metrics(done)[0]["kl"] == 0.0 and metrics(done)[0]["sampler_gap/max"] < 1e-5


# ---------------------------------------------------------------------------------------------------- what comes out
@pytest.mark.parametrize("place", ["model", "best"])
def test_the_run_s_adapter_opens_in_plain_peft_and_merges(
    bench: Bench, whole: dict[str, FinishedRun], place: str, tmp_path: Path
) -> None:
    folder = whole["ppo"].folder / place
    ours = logprobs(tiny.load(folder).model, rows())
    torch.testing.assert_close(
        stock_logprobs(with_peft(bench.model, folder), rows()).detach(), ours, atol=1e-5, rtol=1e-5
    )
    result = CliRunner().invoke(app, ["merge", str(folder), str(tmp_path / "merged")])
    assert result.exit_code == 0 and result.output.strip() == str(tmp_path / "merged")
    torch.testing.assert_close(stock_logprobs(plain(tmp_path / "merged"), rows()).detach(), ours, atol=1e-5, rtol=1e-5)
    words = (folder / "README.md").read_text()
    assert f"base_model: {bench.model}" in words and "library_name: peft" in words and "- lora" in words


def test_an_adapter_is_evaluated_like_a_model(bench: Bench, whole: dict[str, FinishedRun], tmp_path: Path) -> None:
    reward = tmp_path / "rewards.py"
    reward.write_text(
        "def letters(prompts, completions, **_):\n    return [sum(map(str.islower, c)) / 9 for c in completions]"
    )
    merged = upslope.merge(whole["ppo"].model, tmp_path / "merged")
    scores = [
        upslope.evaluate(
            str(model),
            data=bench.rows,
            reward=f"{reward}:letters",
            prompts=4,
            max_new_tokens=6,
            split="all",
            dtype="float32",  # in bfloat16 the merged weights are rounded, and a draw may fall on another token
        )
        for model in (whole["ppo"].model, merged)
    ]
    assert scores[0].greedy.completions == scores[1].greedy.completions
    assert scores[0].sampled.rewards == scores[1].sampled.rewards


def test_the_weights_door_carries_an_adapter_to_another_sampler(bench: Bench) -> None:
    policy, other = tiny.load(bench.model).model, tiny.load(bench.model).model
    for model in (policy, other):
        adapters.add(model, Lora(4, 8.0), seed=0)
    learner: Learner[Any] = Learner(PolicyNetwork(policy), OptimizerSettings(1e-2, 1))
    near, far = InProcessSampler(policy, 128), InProcessSampler(other, 128)
    prompts, sampling = tiny.prompts([7, 12]), Sampling(8, (2,))
    before = far.sample(prompts, 2, sampling, [1, 2])
    with torch.no_grad():
        for weight in learner.optimizer.master.values():
            weight.add_(0.3)
    sent = dict(learner.weights())
    assert set(sent) == {name for name, _ in policy.named_parameters()}
    for sampler in (near, far):
        sampler.load(learner.weights(), 1)
    after = far.sample(prompts, 2, sampling, [1, 2])
    assert after == near.sample(prompts, 2, sampling, [1, 2]) and after != before
    assert {found.weights_version for group in after for found in group} == {1}


# -------------------------------------------------------------------------------------------------------- the recipe
BASE = "data: {task: arithmetic}\n"


def test_without_the_section_all_weights_are_trained_and_a_resolved_recipe_says_so() -> None:
    loaded = build({"data": {"task": "arithmetic"}}, GrpoRecipe)
    assert loaded.recipe.lora is None and "\nlora: null " in loaded.text
    assert read_text(loaded.text, GrpoRecipe) == loaded.recipe
    assert read_text(BASE + "lora: {}\n", GrpoRecipe).lora is not None
    assert read_text(BASE + "lora:\n", GrpoRecipe).lora is None
    given = build({"data": {"task": "arithmetic"}, "lora": {"rank": 4, "targets": ["q_proj"]}}, GrpoRecipe)
    assert read_text(given.text, GrpoRecipe) == given.recipe


def test_default_rates_are_ten_times_those_of_all_weights_and_given_ones_stand(tmp_path: Path) -> None:
    for schema in (SftRecipe, GrpoRecipe, PpoRecipe):
        usual, lora = (read_text(BASE + more, schema) for more in ("", "lora: {rank: 4}\n"))
        assert lora.optim.lr == pytest.approx(10 * usual.optim.lr) and lora.optim.decay == usual.optim.decay
    critic = read_text(BASE + "lora: {rank: 4}\nppo: {samples: 2}\noptim: {decay: cosine}\n", PpoRecipe)
    assert critic.ppo.critic_lr == pytest.approx(1e-4) and critic.ppo.critic_head_lr == 2e-3 and critic.ppo.samples == 2
    assert critic.optim.lr == pytest.approx(1e-4) and critic.optim.decay == "cosine"
    file = tmp_path / "r.yaml"
    file.write_text(BASE + "optim: {lr: 2e-5}\n")
    loaded = load(file, GrpoRecipe, ["lora.rank=8"])
    assert loaded.recipe.optim.lr == 2e-5 and loaded.recipe.lora is not None and loaded.recipe.lora.rank == 8
    assert any("r.yaml:2 optim.lr" in text and "ten times" in text for text in loaded.notices)
    file.write_text(BASE)
    assert any(
        text.startswith("optim.lr: 0.0001, ten times") for text in load(file, GrpoRecipe, ["lora.rank=8"]).notices
    )
    assert not load(file, GrpoRecipe).notices


@pytest.mark.parametrize("schema", [GrpoRecipe, PpoRecipe])
def test_dropout_is_refused_where_completions_are_sampled(schema: Any) -> None:
    with pytest.raises(InputErrors, match=r"lora\.dropout: must be 0 .*another policy.*Fix: remove lora\.dropout"):
        read_text(BASE + "lora: {dropout: 0.1}\n", schema)
    assert read_text(BASE + "lora: {dropout: 0.1}\n", SftRecipe).lora is not None


@pytest.mark.parametrize(
    ("lora", "words"),
    [("{rank: 0}", "must be > 0"), ("{alpha: -1}", "must be > 0"), ("{dropout: 1.0}", "must be < 1"),
     ("{targets: q_proj}", "is not a list"), ("8", "was given for a section"), ("{r: 8}", "unknown key"),
     ("{lora_alpha: 8}", "called lora.alpha here"), ("{target_modules: [q_proj]}", "called lora.targets here")],
)  # fmt: skip
def test_wrong_settings_are_named(lora: str, words: str) -> None:
    with pytest.raises(InputErrors) as caught:
        read_text(BASE + f"lora: {lora}\n", GrpoRecipe, "r.yaml")
    assert words in str(caught.value) and "r.yaml:2" in str(caught.value)


def test_targets_that_match_nothing_are_told_before_weights_are_read(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("upslope.models.loading.stock", lambda *given: pytest.fail("weights were read"))
    with pytest.raises(InputError, match=r"lora\.targets: 'c_attn' matches 0 of the 14 .*Names seen: .*q_proj"):
        run(bench, "grpo", "no-such-target", lora={"targets": ["c_attn"]})
