"""The sampler on a real model, SmolLM2-135M-Instruct, against plain transformers. Needs the package index once."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests import tiny
from upslope.models import bundled, loading
from upslope.models.loading import LanguageModel
from upslope.rollout.reference import ReferenceSampler
from upslope.rollout.sampler import InProcessSampler
from upslope.text.rendering import Renderer
from upslope.types import Completion, Sampling

pytestmark = pytest.mark.slow
QUESTIONS = ["What is 2 + 3?", "Name the capital of France and one river in it.", "Write a haiku about rain.", "Hi"]


@cache
def language_model(dtype: torch.dtype) -> LanguageModel:
    return loading.load(loading.read_card(bundled.NAME), torch.device("cpu"), dtype)


@cache
def stock(dtype: torch.dtype) -> Any:
    return AutoModelForCausalLM.from_pretrained(bundled.directory(), dtype=dtype).eval()


def setting(dtype: torch.dtype) -> tuple[InProcessSampler, list[list[int]], Renderer]:
    model = language_model(dtype)
    renderer = Renderer(model.card.tokenizer, model.card.stop_ids)
    sampler = InProcessSampler(model.model, model.card.context, slots=5, decode=renderer.text)
    return sampler, [renderer.prompt(question) for question in QUESTIONS], renderer


@torch.no_grad()
def disagreement(prompts: list[list[int]], found: list[list[Completion]], dtype: torch.dtype) -> torch.Tensor:
    """|difference| of each sampled token's log-probability from a plain forward over the whole text."""
    gaps = []
    for prompt, group in zip(prompts, found, strict=True):
        for completion in group:
            log_p = tiny.stock_log_probs(stock(dtype), [*prompt, *completion.token_ids])[len(prompt) - 1 :]
            expected = log_p.gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0]
            gaps.append((torch.tensor(completion.logprobs) - expected).abs())
    return torch.cat(gaps)


def test_greedy_tokens_equal_generate() -> None:
    sampler, prompts, renderer = setting(torch.float32)
    found = sampler.sample(prompts, 1, Sampling(24, renderer.stop_ids, temperature=0.0), [0] * 4)
    for prompt, (answer,) in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        whole = stock(torch.float32).generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=list(renderer.stop_ids),
        )
        assert list(answer.token_ids) == whole[0, len(prompt) :].tolist()
    assert "Paris" in renderer.text(found[1][0].token_ids)


def test_samples_equal_the_reference_sampler_token_for_token() -> None:
    sampler, prompts, renderer = setting(torch.float32)
    sampling = Sampling(10, renderer.stop_ids, temperature=0.9)
    reference = ReferenceSampler(stock(torch.float32), sampler.context, renderer.text)
    ours, expected = (one.sample(prompts[:3], 2, sampling, [5, 6, 7]) for one in (sampler, reference))
    for group, truth in zip(ours, expected, strict=True):
        for a, b in zip(group, truth, strict=True):
            assert a.token_ids == b.token_ids and a.stopped == b.stopped
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def test_logprobs_equal_a_plain_forward_in_float32() -> None:
    sampler, prompts, renderer = setting(torch.float32)
    found = sampler.sample(prompts, 2, Sampling(32, renderer.stop_ids), [1, 2, 3, 4])
    assert float(disagreement(prompts, found, torch.float32).max()) < 1e-4


def test_bfloat16_logprobs_differ_from_a_plain_forward_as_two_stock_kernels_do() -> None:
    sampler, prompts, renderer = setting(torch.bfloat16)
    found = sampler.sample(prompts, 2, Sampling(32, renderer.stop_ids), [1, 2, 3, 4])
    gaps = disagreement(prompts, found, torch.bfloat16)
    plain = [[stated(prompt, completion) for completion in group] for prompt, group in zip(prompts, found, strict=True)]
    stock(torch.bfloat16).set_attn_implementation("eager")
    try:
        noise = disagreement(prompts, plain, torch.bfloat16)
    finally:
        stock(torch.bfloat16).set_attn_implementation("sdpa")
    print(f"bf16, {len(gaps)} tokens: ours against stock: mean {float(gaps.mean()):.4f}, max {float(gaps.max()):.4f}")
    print(f"stock eager against stock sdpa: mean {float(noise.mean()):.4f}, max {float(noise.max()):.4f}")
    assert float(noise.mean()) > 0
    assert float(gaps.mean()) < 1.5 * float(noise.mean()) and float(gaps.max()) < 3 * float(noise.max())


@torch.no_grad()
def stated(prompt: list[int], completion: Completion) -> Completion:
    """The completion with the log-probabilities that stock bfloat16 with its default kernel gives it."""
    log_p = tiny.stock_log_probs(stock(torch.bfloat16), [*prompt, *completion.token_ids])[len(prompt) - 1 :]
    chosen = log_p.gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0]
    return replace(completion, logprobs=tuple(chosen.tolist()))


def test_a_real_chat_template_is_rendered_as_transformers_renders_it() -> None:
    _, prompts, renderer = setting(torch.float32)
    for question, prompt in zip(QUESTIONS, prompts, strict=True):
        messages = [{"role": "user", "content": question}]
        expected = renderer.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
        assert prompt == list(expected["input_ids"] if hasattr(expected, "keys") else expected)
    assert renderer.tokenizer.convert_ids_to_tokens(renderer.stop_id) == "<|im_end|>"
