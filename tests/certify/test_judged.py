"""Users' functions are judged right: the verdict, the bias by name, and the numbers beside it."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch

from tests.certify.losses_for_tests import RIGHT, RIGHT_ADVANTAGES, WRONG, WRONG_ADVANTAGES, user
from upslope.certify import advantage, loss
from upslope.certify.judgement import Judgement
from upslope.certify.probes import Probe, ask, rows_of
from upslope.maths.advantages import group_relative


@cache
def judged_loss(name: str) -> Judgement:
    call = RIGHT[name][0] if name in RIGHT else WRONG[name][0]
    return loss.judge_loss(user(call, "loss"))


@cache
def judged_advantage(name: str) -> Judgement:
    call = RIGHT_ADVANTAGES[name] if name in RIGHT_ADVANTAGES else WRONG_ADVANTAGES[name][0]
    return advantage.judge_advantage(user(call, "advantage"))


def measured(found: Judgement, begins: str) -> float:
    (value,) = [measure.found for measure in found.measures if measure.checked.startswith(begins)]
    assert isinstance(value, float)
    return value


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_loss_is_certified_and_described(name: str) -> None:
    found = judged_loss(name)
    assert found.certified, found.findings
    assert RIGHT[name][1] in {finding.name for finding in found.findings}
    assert abs(measured(found, "cosine with the policy gradient") - 1) < 1e-6
    assert measured(found, "length of its") == pytest.approx(1 / 256 if name.startswith("in place") else 1, rel=1e-5)
    assert measured(found, "ascent") == pytest.approx(10 / 3, abs=1e-4)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_loss_is_not_and_its_bias_is_named(name: str) -> None:
    found, (_, bias, words) = judged_loss(name), WRONG[name]
    assert not found.certified
    assert bias in found.biases
    texts = [finding.text for finding in found.findings if finding.name == bias]
    assert any(words in text for text in texts), texts


def test_a_right_loss_has_no_bias_of_any_name_and_a_wrong_one_few() -> None:
    """Naming everything would also name the right one."""
    assert all(len(judged_loss(name).biases) <= 2 for name in WRONG if name != "shifted")
    assert [judged_loss(name).biases for name in RIGHT] == [()] * len(RIGHT)


@pytest.mark.parametrize("name", RIGHT_ADVANTAGES)
def test_a_right_advantage_is_certified(name: str) -> None:
    found = judged_advantage(name)
    assert found.certified, found.findings
    assert abs(measured(found, "cosine with the policy gradient") - 1) < 1e-9
    assert measured(found, "ascent") == pytest.approx(10 / 3, abs=1e-4)


@pytest.mark.parametrize("name", WRONG_ADVANTAGES)
def test_a_wrong_advantage_is_not_and_its_bias_is_named(name: str) -> None:
    found, (_, bias, words) = judged_advantage(name), WRONG_ADVANTAGES[name]
    assert not found.certified
    assert bias in found.biases
    assert any(words in finding.text for finding in found.findings if finding.name == bias), found.findings


# --------------------------------------------------------------------------------------------------------- the numbers
def test_the_cosine_stands_beside_a_bias_of_direction_and_only_there() -> None:
    length = next(f for f in judged_loss("sequence mean").findings if f.name == "length")
    value = measured(judged_loss("sequence mean"), "cosine with the policy")
    assert f"cosine {value:.4f}" in length.text and 0.9 < value < 1 - 1e-5
    assert "cosine" not in next(f for f in judged_loss("wrong side").findings if f.name == "clip side").text
    assert measured(judged_loss("sign"), "cosine with the policy") == pytest.approx(-1)


def test_a_length_bias_ends_at_another_answer_than_the_best() -> None:
    """Long answers worth 10 / 8 a token lose against two prompts with 1 for a single token: J = 2/3, not 10/3."""
    assert measured(judged_loss("sequence mean"), "ascent") == pytest.approx(2 / 3, abs=1e-3)
    assert measured(judged_loss("sign"), "ascent") == pytest.approx(0, abs=1e-3)
    assert measured(judged_advantage("std"), "ascent") == pytest.approx(2 / 3, abs=1e-3)
    assert measured(judged_advantage("batch mean"), "ascent") == pytest.approx(10 / 3, abs=1e-3)


def test_std_scaling_weighs_prompts_as_theory_says() -> None:
    """w_G(p) at p = .1: 2.85 for G = 16 and 1.69 for G = 4, the population deviation."""
    found = judged_advantage("std")
    assert measured(found, "weight at p = 0.1, G = 16") == pytest.approx(2.85, abs=0.01)
    assert measured(found, "weight at p = 0.1, G = 4") == pytest.approx(1.69, abs=0.01)
    assert measured(judged_advantage("leave one out"), "weight at p = 0.1, G = 16") == pytest.approx(1, abs=1e-12)
    assert measured(judged_advantage("group mean"), "length of its") == pytest.approx(3 / 4, abs=1e-12)


def test_the_expected_gradient_of_groups_is_that_of_drawn_ones() -> None:
    """300,000 drawn groups of 3, |z| < 4.5 in each logit; so enumeration and probabilities belong together."""
    question = advantage.QUESTIONS[6]
    call = user(WRONG_ADVANTAGES["std of a sample"][0], "advantage")
    wanted, spread = advantage.expected(call, question, 3, None)
    p, rewards = torch.tensor(question.p).double(), torch.tensor(question.rewards).double()
    drawn = torch.multinomial(p.expand(300_000, 3), 3, replacement=True, generator=torch.Generator().manual_seed(1))
    gains = call(rewards=rewards[drawn])
    estimates = (gains[..., None] * (torch.nn.functional.one_hot(drawn, 3) - p)).mean(1)
    z = (estimates.mean(0) - wanted) / (estimates.std(0) / len(drawn) ** 0.5)
    assert float(z.abs().max()) < 4.5
    assert float(estimates.var(0).sum()) * 3 == pytest.approx(spread * float(wanted @ wanted), rel=0.02)


def test_an_exact_baseline_has_the_least_variance_and_rloo_less_than_reinforce() -> None:
    told = next(m for m in judged_loss("plain ratio").measures if m.checked.startswith("variance"))
    words = str(told.wanted).split()
    reinforce, rloo = float(words[1].rstrip(",")), float(words[-1])
    assert float(told.found) < rloo < reinforce or float(told.found) < reinforce  # type: ignore[arg-type]
    alone = judged_advantage("no baseline"), judged_advantage("leave one out")
    assert measured(alone[0], "variance") > measured(alone[1], "variance")
    assert f"REINFORCE {measured(alone[0], 'variance'):.3g}" in str(
        next(m for m in alone[0].measures if m.checked.startswith("variance")).wanted
    )


def test_a_silent_group_is_judged_also_where_only_rounding_differs() -> None:
    def careless(rewards: torch.Tensor) -> torch.Tensor:
        spread = rewards.std(1, keepdim=True)
        return (rewards - rewards.mean(1, keepdim=True)) / torch.where(spread > 0, spread, 1.0)

    found = advantage.judge_advantage(user(careless, "advantage"))
    assert "rounding" in found.biases
    ours = advantage.judge_advantage(user(lambda rewards: group_relative(rewards, "mean", "std"), "advantage"))
    assert ours.biases == ("std",)


def test_a_push_is_minus_the_losss_derivative_by_hand() -> None:
    """loss = -r A at r = 1.5: push 1.5 A; what stands under the mask is 0."""
    probe = rows_of((2, 1), (2.0, -1.0), -1.0)
    moved = Probe(probe.logprobs, probe.logprobs - torch.tensor(1.5).double().log(), probe.advantages, probe.mask)
    answer = ask(user(RIGHT["plain ratio"][0], "loss"), moved)
    assert torch.allclose(answer.push, torch.tensor([[3.0, 3.0], [-1.5, 0.0]], dtype=torch.float64))


def test_a_judgement_is_plain_json() -> None:
    for found in (judged_loss("sequence mean"), judged_advantage("std without epsilon")):
        again = json.loads(json.dumps(found.as_json(), allow_nan=False))
        assert again["certified"] is False and again["findings"][0]["kind"] in ("bias", "note")
        assert {"checked", "wanted", "found"} == set(again["measures"][0])
