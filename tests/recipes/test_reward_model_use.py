"""PPO and GRPO from a reward model as from a function: the same scores, one scale, cut answers, other tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, pstdev
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tests import tiny
from tests.recipes.pair_support import run
from tests.recipes.support import Bench, bench, digests, letters, metrics, one_thread, stopped_at
from upslope.errors import InputError, InputErrors, RewardError
from upslope.learner.learner import FrozenScorer
from upslope.models import loading, scoring
from upslope.recipes.reward_models import Judge, JudgeCard, Jury, check_models, read_judges, score_all
from upslope.recipes.reward_section import RewardSection
from upslope.text.rendering import Renderer
from upslope.types import Prompt
from upslope.worlds.rewards import Group

__all__ = ["bench", "one_thread"]

FACTS = {"chat": "auto", "system_prompt": None, "stop_ids": [2]}
STOP = 2


@pytest.fixture(scope="module")
def rm(bench: Bench) -> Path:
    """A reward model that prefers letters to digits, trained for a moment."""
    return run(bench, "reward", "judge", steps=8).model


@torch.no_grad()
def plain(directory: Path, rows: list[list[int]]) -> list[float]:
    """Raw scores by plain transformers, each text alone."""
    model = AutoModelForSequenceClassification.from_pretrained(directory)
    return [float(model(input_ids=torch.tensor([row])).logits[0, 0]) for row in rows]


def lines(folder: Path, step: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rollouts" / f"step-{step:05d}.jsonl").read_text().splitlines()]


def policy(bench: Bench) -> tuple[Renderer, loading.Card]:
    card = loading.read_card(str(bench.model))
    return Renderer(card.tokenizer, card.stop_ids), card


def judge_of(bench: Bench, directory: Path, **entry: Any) -> tuple[Judge, list[str]]:
    """The judge of ``reward: {model: directory, ...}`` beside the bench's policy, raw unless told."""
    section = RewardSection.model_validate({"model": str(directory), "normalize": 0, **entry})
    words, card = policy(bench)
    notices: list[str] = []
    (own,) = read_judges(section, words, card, notices.append)
    network = scoring.load_classifier(own.card, torch.device("cpu"), torch.float32)
    return Judge(own, FrozenScorer(network, 200), words), notices


def group(words: Renderer, prompt: str, answers: list[str], cut: tuple[int, ...] = ()) -> Group:
    ids = [tuple(words.completion(text))[: None if place not in cut else -1] for place, text in enumerate(answers)]
    return Group(Prompt(prompt, prompt), tuple(answers), tuple(ids))


# ---------------------------------------------------------------------------------------------------------- whole runs
@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_rewards_are_the_reward_models_scores_on_the_scale_of_run_json(kind: str, bench: Bench, rm: Path) -> None:
    reward = [{"model": rm, "normalize": 12}, {"function": letters, "weight": 0.0}]
    done = run(bench, kind, f"{kind}-rm", reward=reward)
    told = json.loads((done.folder / "run.json").read_text())["reward_models"]["reward_model"]
    assert told["samples"] == 12 and told["std"] > 0 and told["same_tokens"] and len(told["weights_sha256"]) == 64
    words, _ = policy(bench)
    rows = lines(done.folder, 1)
    texts = [[*words.prompt(row["prompt"]), *row["token_ids"]] for row in rows]
    raw = plain(rm, texts)
    wanted = [(score - told["mean"]) / told["std"] for score in raw]
    assert [row["reward"] for row in rows] == pytest.approx(wanted, abs=2e-4 / told["std"])
    assert [row["parts"]["reward_model"] for row in rows] == pytest.approx([row["reward"] for row in rows])
    first = metrics(done)[0]
    assert first["rewards/reward_model/raw"] == pytest.approx(fmean(raw), abs=1e-4)
    assert first["rewards/letters/mean"] == pytest.approx(fmean(letters([], [row["completion"] for row in rows])))
    assert {"eval/rewards/letters/mean", "eval/rewards/reward_model/mean", "eval/rewards/reward_model/raw"} <= set(
        done.metrics[0]
    )


def test_a_policy_learns_what_its_reward_model_prefers(bench: Bench, rm: Path) -> None:
    done = run(
        bench,
        "grpo",
        "learns",
        reward={"model": str(rm), "normalize": 32},
        steps=8,
        prompts=4,
        group=6,
        lr=2e-2,
        epochs=1,
        minibatches=1,
    )
    rows = metrics(done)
    assert abs(rows[0]["reward"]) < 1  # about the answers that the scale was taken on
    assert fmean(row["reward"] for row in rows[-3:]) > rows[0]["reward"] + 0.5


def test_a_resumed_run_keeps_its_scale_and_is_the_same_run(
    bench: Bench,
    rm: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keywords: dict[str, Any] = {"reward": {"model": str(rm), "normalize": 9}, "save_every": 1}
    straight = run(bench, "ppo", "straight", **keywords)
    with stopped_at("1:2", monkeypatch):
        run(bench, "ppo", "broken", **keywords)
    again = run(bench, "ppo", "broken", **keywords, resume=True)
    assert digests(again.folder) == digests(straight.folder)
    record = [json.loads((done.folder / "run.json").read_text())["reward_models"] for done in (straight, again)]
    assert record[0] == record[1]
    state = json.loads((straight.folder / "checkpoints" / "step-00002" / "judge_reward_model.json").read_text())
    held = state.get("values", state)
    assert held["mean"] == record[0]["reward_model"]["mean"] and held["std"] == record[0]["reward_model"]["std"]


def test_a_resumed_run_refuses_another_reward_model(
    bench: Bench,
    rm: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import shutil

    copy = tmp_path / "rm"
    shutil.copytree(rm, copy)
    with stopped_at("1:0", monkeypatch):
        run(bench, "grpo", "swapped", reward={"model": str(copy), "normalize": 4})
    shutil.rmtree(copy)
    shutil.copytree(bench.root / "judge" / "best", copy)
    model = tiny.load(bench.model)
    scoring.save(scoring.fresh(model), model, copy, "", FACTS)
    with pytest.raises(InputError, match="holds other weights than this run began with"):
        run(bench, "grpo", "swapped", reward={"model": str(copy), "normalize": 4}, resume=True)


# --------------------------------------------------------------------------------------------------------------- judges
def test_the_scale_is_that_of_the_reference_answers(bench: Bench, rm: Path) -> None:
    judge, _ = judge_of(bench, rm)
    words, _ = policy(bench)
    groups = [group(words, f"say {n}", ["abc", "77", "a7"]) for n in range(4)]
    raw, _ = judge.raw(groups)
    judge.calibrate(groups, lambda text: None)
    assert (judge.mean, judge.std) == (fmean(raw), pstdev(raw)) and judge.samples == 12
    values = [score.value or 0.0 for scored in judge.scores(groups) for score in scored]
    assert fmean(values) == pytest.approx(0, abs=1e-9) and pstdev(values) == pytest.approx(1)
    flat: list[str] = []
    judge.calibrate([group(words, "say 1", ["abc"])] * 3, flat.append)
    assert judge.std == 1.0 and "the same score" in flat[0]


def test_a_cut_completion_is_scored_as_it_is_or_pays_the_penalty(bench: Bench, rm: Path) -> None:
    words, _ = policy(bench)
    asked = [group(words, "say 1", ["abc", "abc"], cut=(1,))]
    rows = [[*words.prompt("say 1"), *ids] for ids in asked[0].completion_ids or ()]
    assert rows[0][:-1] == rows[1] and rows[0][-1] == STOP
    for penalty in (None, 1.5):
        judge, _ = judge_of(bench, rm, missing_eos_penalty=penalty)
        found = [score.value for score in judge.scores(asked)[0]]
        raw = plain(rm, rows)
        assert found == pytest.approx([raw[0], raw[1] - (penalty or 0.0)], abs=1e-4)


def test_an_answer_that_a_stop_string_ended_is_not_cut_and_gets_its_end_token(bench: Bench, rm: Path) -> None:
    words, _ = policy(bench)
    ids = tuple(words.completion("abc\nrest"))[:-1]
    judge, _ = judge_of(bench, rm, missing_eos_penalty=9.0)
    found = judge.scores([Group(Prompt("1", "say 1"), ("abc",), (ids,))])[0][0].value
    assert found == pytest.approx(plain(rm, [[*words.prompt("say 1"), *words.completion("abc")]])[0], abs=1e-4)


def other_tokenizer(bench: Bench, rm: Path, folder: Path, template: str | None = None) -> Path:
    """The same reward model behind a tokenizer that numbers two letters the other way round, or another template."""
    import shutil

    shutil.copytree(rm, folder)
    words = json.loads((folder / "tokenizer.json").read_text())
    if template is None:
        vocabulary = words["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
        (folder / "tokenizer.json").write_text(json.dumps(words))
    else:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def test_another_tokenizer_reads_the_text_anew(bench: Bench, rm: Path, tmp_path: Path) -> None:
    judge, notices = judge_of(bench, other_tokenizer(bench, rm, tmp_path / "rm"), missing_eos_penalty=2.0)
    assert not judge.card.same and "another tokenizer" in notices[0]
    words, _ = policy(bench)
    asked = [group(words, "say 1", ["aab", "aab"], cut=(1,))]
    own = judge.card.renderer
    full = [*own.prompt("say 1"), *own.completion("aab")]
    assert full[-4:-1] != [*words.completion("aab")][:-1]
    raw = plain(rm, [full, full[:-1]])
    assert [s.value for s in judge.scores(asked)[0]] == pytest.approx([raw[0], raw[1] - 2.0], abs=1e-4)
    with pytest.raises(RewardError, match="a prompt of token ids"):
        judge.scores([Group(Prompt("1", (5, 6)), ("a",), ((5, 2),))])


def test_another_template_or_system_prompt_does_too(bench: Bench, rm: Path, tmp_path: Path) -> None:
    shouted = tiny.CHATML.replace("assistant\n", "assistant\n>")
    judge, notices = judge_of(bench, other_tokenizer(bench, rm, tmp_path / "rm", shouted))
    assert "another chat template" in notices[0] and not judge.card.same
    facts = json.loads((rm / scoring.FACTS).read_text())
    again = other_tokenizer(bench, rm, tmp_path / "system", tiny.CHATML)
    (again / scoring.FACTS).write_text(json.dumps({**facts, "system_prompt": "Be brief."}))
    judge, notices = judge_of(bench, again)
    assert "system prompt" in notices[0]
    text = judge.card.renderer.tokenizer.decode(judge._prompt(Prompt("1", "say 1")))
    assert "Be brief." in text


def test_the_same_tokenizer_takes_the_ids_as_they_are(bench: Bench, rm: Path) -> None:
    judge, notices = judge_of(bench, rm)
    assert judge.card.same and not notices
    words, _ = policy(bench)
    odd = (*words.tokenizer.convert_tokens_to_ids(["a", "<unk>", "b"]), STOP)  # no text is written so
    found = judge.raw([Group(Prompt("1", "say 1"), ("ab",), (odd,))])[0]
    assert found == pytest.approx(plain(rm, [[*words.prompt("say 1"), *odd]]), abs=1e-4)


def test_a_text_beyond_its_context_is_an_error(bench: Bench, rm: Path) -> None:
    judge, _ = judge_of(bench, rm)
    words, _ = policy(bench)
    with pytest.raises(RewardError, match=r"row say 1 take \d+ tokens, it reads 128"):
        judge.scores([group(words, "say 1", ["a" * 120])])


def test_functions_and_models_are_summed_with_their_weights(bench: Bench, rm: Path) -> None:
    judge, _ = judge_of(bench, rm, weight=0.5, name="taste")
    words, _ = policy(bench)
    asked = [group(words, "say 1", ["abc", "7"])]
    alone, _ = score_all(Jury(None, (judge,)), asked, "stop")
    raw, _ = judge.raw(asked)
    assert [s.value for s in alone[0] or ()] == pytest.approx([0.5 * value for value in raw])
    assert [dict(s.parts) for s in alone[0] or ()] == [{"taste": pytest.approx(value)} for value in raw]
    assert Jury(None, (judge,)).take_metrics() == {"rewards/taste/raw": pytest.approx(fmean(raw))}


# ------------------------------------------------------------------------------------------------------------- refused
def test_what_is_no_reward_model_is_told_before_torch(bench: Bench, rm: Path, tmp_path: Path) -> None:
    for reward, said in [
        ({"model": "nowhere"}, "no such directory 'nowhere'"),
        ({"model": str(bench.model)}, "is a LlamaForCausalLM, a sequence classifier with one label was expected"),
        ({"model": str(rm.parent)}, f"give {rm}"),
        ([{"model": str(rm)}, {"model": str(rm)}], "two reward models are called 'reward_model'"),
    ]:
        with pytest.raises(InputError, match=said):
            check_models(RewardSection.model_validate(reward))
    with pytest.raises((InputError, InputErrors), match="no such directory"):
        run(bench, "grpo", "refused", reward={"model": "nowhere"})
    with pytest.raises(InputError, match="is a reward model"):
        run(bench, "grpo", "refused2", model=str(rm))


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ({"function": "a.py:f", "normalize": 4}, "normalize is for a reward model"),
        ([{"model": "x", "builtin": "exact"}], "a reward is either a function, builtin or a model, both are given"),
        ([{"model": "x", "sandbox": True}], "a reward model runs no text"),
        ([{"model": "x", "normalise": 4}], "did you mean normalize"),
    ],
)
def test_what_does_not_go_together(reward: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RewardSection.model_validate(reward)


def test_a_score_that_is_not_finite_is_an_error(bench: Bench) -> None:
    words, card = policy(bench)
    entry = RewardSection.model_validate({"model": "x"}).entries[0]
    broken: Any = SimpleNamespace(evaluate=lambda batch: SimpleNamespace(scores=torch.full((len(batch),), torch.nan)))
    judge = Judge(JudgeCard("reward_model", "reward.model", entry, card, words, True), broken, words)
    with pytest.raises(RewardError, match="is not finite"):
        judge.scores([group(words, "say 1", ["a"])])
