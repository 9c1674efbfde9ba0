"""Long answers: what a completion that the limit cut is worth, thinking before the answer, room and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from tests.recipes.support import Bench, bench, metrics, one_thread
from tests.recipes.test_ppo import fixed, rollout
from upslope.errors import InputError, InputErrors
from upslope.models.attention import SlotCache
from upslope.recipes import ppo
from upslope.recipes.configs import GrpoRecipe, PpoRecipe
from upslope.rollout.sampler import InProcessSampler
from upslope.types import Sampling
from upslope.worlds.reward_builtin import exact, json_schema, numeric
from upslope.worlds.reward_menu import builtin_part

__all__ = ["bench", "one_thread"]
TASK: dict[str, Any] = {"task": "arithmetic"}


# ------------------------------------------------------------------------------------------ cut completions, by hand
@pytest.mark.parametrize(
    ("way", "cut"),
    [("bootstrap", [1.0 + 0.5 - 0.2, 1.0 + 0.5 - 0.4]), ("end", [1.0 - 0.2, 1.0 - 0.4])],
)
def test_a_cut_completion_is_worth_its_score_and_perhaps_what_the_critic_expects_after_it(
    way: str, cut: list[float]
) -> None:
    """Discount and trace 1: A_t = score + bootstrap - V_t. Row 0 stopped with score 2, row 1 was cut with score 1."""
    rows = [rollout(2, 2.0, True), rollout(2, 1.0, False)]
    found, networks = fixed(rows, [[0.3, 0.7], [0.2, 0.4]], [0.9, 0.5], old=-1.0, ref=None)
    recipe = PpoRecipe.model_validate(
        {"data": TASK, "ppo": {"kl_coef": 0, "whiten": False, "trace": 1.0}, "sampling": {"cut": way}}
    )
    _, targets, _ = ppo.learn_from(recipe, found, networks)
    assert targets.advantages[0, 1:3].tolist() == pytest.approx([2.0 - 0.3, 2.0 - 0.7])
    assert targets.advantages[1, 1:3].tolist() == pytest.approx(cut)
    assert targets.returns[1, 1:3].tolist() == pytest.approx([a + v for a, v in zip(cut, [0.2, 0.4], strict=True)])


def test_bootstrapping_stays_the_default_and_cut_completions_are_counted_either_way(bench: Bench) -> None:
    assert PpoRecipe.model_validate({"data": TASK}).sampling.cut == "bootstrap"
    with pytest.raises(ValueError, match=r"sampling\.cut is for PPO"):
        GrpoRecipe.model_validate({"data": TASK, "sampling": {"cut": "end"}})
    ways: tuple[str, ...] = ("bootstrap", "end")
    rows = [metrics(bench.run("ppo", f"cut-{way}", cut=way, steps=1, eval_prompts=0))[0] for way in ways]
    assert rows[0]["completions/clipped_ratio"] == rows[1]["completions/clipped_ratio"] > 0
    assert rows[0]["returns/mean"] != rows[1]["returns/mean"] or rows[0]["value/mean"] == 0


# --------------------------------------------------------------------------------------------------- after the thinking
THOUGHT = "<think>Perhaps 5? No, 2 + 2.</think> It is 4."


def test_only_what_follows_the_thinking_is_read() -> None:
    right = ["4"] * 5
    said = [THOUGHT, "<think>4", "4", "<think>4</think> It is 5.", "<think>a</think> 5 <think>b</think> 4"]
    assert numeric(after="think")(said, answer=right) == [1.0, 0.0, 0.0, 0.0, 1.0]
    assert numeric()(said, answer=right) == [1.0, 1.0, 1.0, 0.0, 1.0]
    assert exact(after="think")(["<think>x</think>\n4\n", "4"], answer=["4", "4"]) == [1.0, 0.0]
    inner = "<think><answer>4</answer></think><answer>5</answer>"
    assert numeric(after="think", tag="answer")([inner, THOUGHT], answer=["5", "4"]) == [1.0, 0.0]
    schema = {"type": "object", "required": ["a"]}
    assert json_schema(schema, after="think")(['<think>{}</think>{"a": 1}', '{"a": 1}']) == [1.0, 0.0]


def test_a_recipe_names_it_as_an_option() -> None:
    part = builtin_part("numeric", {"after": "think", "tolerance": 0.1})
    assert part.options == {"after": "think", "tolerance": 0.1}
    with pytest.raises(InputError, match=r"reward\.after: found 3, expected text"):
        builtin_part("exact", {"after": 3})


# ------------------------------------------------------------------------------------------------------ room and memory
@pytest.mark.parametrize(
    ("new_tokens", "problem"),
    [
        (128, r"sampling\.max_new_tokens: 128 new tokens leave no room for a prompt in a context of 128"),
        (110, r"prompts exceed 18 tokens \(context 128 less 110 new ones\).*lower sampling\.max_new_tokens to \d+"),
    ],
)
def test_a_prompt_and_its_completion_must_fit_the_context_before_anything_is_sampled(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, new_tokens: int, problem: str
) -> None:
    monkeypatch.setattr(InProcessSampler, "sample", lambda *given: pytest.fail("it sampled"))
    with pytest.raises((InputError, InputErrors), match=problem):
        bench.run("grpo", f"room-{new_tokens}", max_new_tokens=new_tokens)


def test_fewer_slots_take_less_memory_and_give_the_same_completions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny.load(tiny.directory(tmp_path / "model", max_position_embeddings=1200))
    held: list[int] = []
    allocate = SlotCache.allocate.__func__  # type: ignore[attr-defined]

    def counting(cls: Any, *given: Any) -> Any:
        cache = allocate(cls, *given)
        held.append(sum(tensor.numel() for tensor in (*cache.keys, *cache.values)))
        return cache

    monkeypatch.setattr(SlotCache, "allocate", classmethod(counting))
    prompts, sampling = tiny.prompts([5, 9]), Sampling(40, (999,))
    found, most = [], []
    for slots in (8, 2):
        sampler = InProcessSampler(loaded.model, loaded.card.context, slots)
        found.append([[c.token_ids for c in group] for group in sampler.sample(prompts, 4, sampling, [1, 2])])
        most.append(max(held))
        held.clear()
    assert found[0] == found[1]
    assert most[0] == 4 * most[1]


def test_a_completion_of_a_thousand_tokens_is_sampled_and_scored_alike(tmp_path: Path) -> None:
    """Sampled token by token in its slot, and scored in one pass by the stock model."""
    directory = tiny.directory(tmp_path / "model", max_position_embeddings=1200)
    loaded = tiny.load(directory)
    prompt = tiny.prompts([40])[0]
    ((found,),) = InProcessSampler(loaded.model, loaded.card.context).sample([prompt], 1, Sampling(1024, (999,)), [7])
    assert len(found.token_ids) == 1024 and not found.stopped
    stock = tiny.model("llama", max_position_embeddings=1200)
    with torch.no_grad():
        scores = tiny.stock_log_probs(stock, [*prompt, *found.token_ids])[len(prompt) - 1 :]
    wanted = scores.gather(1, torch.tensor(found.token_ids)[:, None])[:, 0]
    assert float((wanted - torch.tensor(found.logprobs)).abs().max()) < 1e-3


def test_slots_and_the_soft_penalty_are_keys_of_a_recipe() -> None:
    given = {
        "data": TASK, "sampling": {"max_new_tokens": 1024, "slots": 16},
        "reward": [{"builtin": "numeric", "after": "think"}, {"builtin": "overlong", "limit": 1024, "buffer": 256}],
        "grpo": {"truncated": "mask"},
    }  # fmt: skip
    recipe = GrpoRecipe.model_validate(given)
    assert recipe.sampling.slots == 16 and recipe.reward.entries[1].options == {"limit": 1024, "buffer": 256}
    assert GrpoRecipe.model_validate({"data": TASK}).sampling.slots == 128
