"""The in-process sampler against the reference sampler, token for token, in float32 on tiny models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import tiny
from upslope.rollout.reference import ReferenceSampler
from upslope.rollout.sampler import InProcessSampler
from upslope.types import Completion, Sampling

CONTEXT = 128
STOP = 2
TOKENIZER = tiny.tokenizer()
JOB = Sampling(12, (STOP,))
LENGTHS = [6, 1, 19, 11]
"""Ragged; one prompt is longer than the sliding windows (12 and 8)."""


def decode(ids: Sequence[int]) -> str:
    return str(TOKENIZER.decode(list(ids)))


def reference(kind: str = "llama") -> ReferenceSampler:
    return ReferenceSampler(tiny.model(kind), CONTEXT, decode)


def fast(kind: str = "llama", slots: int = 128) -> InProcessSampler:
    return InProcessSampler(tiny.served(kind), CONTEXT, slots, decode)


def seeds(count: int, first: int = 40) -> list[int]:
    return list(range(first, first + count))


def assert_same(ours: list[list[Completion]], expected: list[list[Completion]]) -> None:
    assert [len(group) for group in ours] == [len(group) for group in expected]
    for group, truth in zip(ours, expected, strict=True):
        for a, b in zip(group, truth, strict=True):
            assert a.token_ids == b.token_ids
            assert (a.stopped, a.support, a.weights_version) == (b.stopped, b.support, b.weights_version)
            assert a.logprobs == pytest.approx(b.logprobs, abs=2e-5)


def tokens(found: list[list[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[completion.token_ids for completion in group] for group in found]


# -------------------------------------------------------------------------------------------- equal to the reference
@pytest.mark.parametrize("kind", list(tiny.KINDS))
def test_equals_the_reference_token_for_token_and_its_logprobs_a_plain_forward(kind: str) -> None:
    prompts = tiny.prompts(LENGTHS)
    found = fast(kind, slots=5).sample(prompts, 3, JOB, seeds(4))
    assert_same(found, reference(kind).sample(prompts, 3, JOB, seeds(4)))
    plain = tiny.model(kind)
    for prompt, group in zip(prompts, found, strict=True):
        for completion in group:
            log_p = tiny.stock_log_probs(plain, [*prompt, *completion.token_ids])[len(prompt) - 1 :].detach()
            expected = log_p.gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0]
            assert float((torch.tensor(completion.logprobs) - expected).abs().max()) < 1e-4


JOBS: dict[str, Sampling] = {
    "cold": Sampling(8, (STOP,), temperature=0.3),
    "hot": Sampling(8, (STOP,), temperature=1.7),
    "greedy": Sampling(8, (STOP,), temperature=0.0),
    "top_k": Sampling(8, (STOP,), top_k=3),
    "top_p": Sampling(8, (STOP,), top_p=0.4),
    "both": Sampling(8, (STOP,), temperature=0.8, top_k=9, top_p=0.9),
    "several stop ids": Sampling(30, (STOP, *range(5, 20))),
    "stop string": Sampling(30, (STOP,), stop_strings=("0", "ab", "Z"), allowed=list(range(4, 40))),
    "no stop": Sampling(8, ()),
    "list": Sampling(8, (STOP,), allowed=[9, 5, 7, STOP]),
    "function": Sampling(8, (STOP,), allowed=lambda prompt, so_far: [4 + len(so_far), 30 + len(prompt) % 7, STOP]),
}  # fmt: skip


@pytest.mark.parametrize("name", list(JOBS))
def test_every_way_of_sampling_equals_the_reference(name: str) -> None:
    prompts = tiny.prompts([3, 9, 5], seed=4)
    found = fast(slots=4).sample(prompts, 3, JOBS[name], seeds(3))
    assert_same(found, reference().sample(prompts, 3, JOBS[name], seeds(3)))


IDS = st.integers(4, tiny.VOCAB - 1)
SAMPLINGS = st.builds(
    Sampling,
    max_new_tokens=st.integers(1, 9),
    stop_ids=st.lists(st.integers(2, 30), max_size=12).map(tuple),
    temperature=st.sampled_from([0.0, 0.6, 1.0, 1.4]),
    stop_strings=st.sampled_from([(), ("a",), ("3", "q", "X")]),
    allowed=st.one_of(st.none(), st.lists(st.integers(2, 40), min_size=1, max_size=20)),
    top_k=st.sampled_from([0, 1, 4]),
    top_p=st.sampled_from([1.0, 0.7]),
)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    prompts=st.lists(st.lists(IDS, min_size=1, max_size=20), min_size=1, max_size=4),
    samples=st.integers(1, 4), slots=st.integers(1, 7), sampling=SAMPLINGS, first=st.integers(0, 2**62),
)  # fmt: skip
def test_random_mixes_of_jobs_equal_the_reference(
    prompts: list[list[int]], samples: int, slots: int, sampling: Sampling, first: int
) -> None:
    found = fast("mistral", slots).sample(prompts, samples, sampling, seeds(len(prompts), first))
    assert_same(found, reference("mistral").sample(prompts, samples, sampling, seeds(len(prompts), first)))


# ------------------------------------------------------------------------------------------------- how completions end
def test_the_stop_token_is_part_of_the_completion_and_ends_it() -> None:
    sampling = Sampling(100, (STOP, 7, 8), allowed=[STOP, 7, 8, *range(10, 30)])
    found = [c for group in fast().sample(tiny.prompts([4, 8]), 20, sampling, seeds(2)) for c in group]
    ends = {completion.token_ids[-1] for completion in found if completion.stopped}
    assert ends == {STOP, 7, 8}  # each of the stop ids ended some completion
    for completion in found:
        assert not {STOP, 7, 8} & set(completion.token_ids[:-1])
        assert completion.stopped == (completion.token_ids[-1] in {STOP, 7, 8})
        assert len(completion.token_ids) == len(completion.logprobs) == len(completion.support or ())


def test_a_stop_string_ends_a_completion_where_the_text_first_holds_it() -> None:
    digits = [token for token in range(tiny.VOCAB) if decode([token]) in "0123" and decode([token])]
    assert len(digits) == 4
    sampling = Sampling(60, (STOP,), stop_strings=("12", "30"), allowed=digits)
    found = fast().sample(tiny.prompts([5]), 12, sampling, seeds(1))[0]
    for completion in found:
        text = decode(completion.token_ids)
        assert completion.stopped and (text.endswith("12") or text.endswith("30"))
        assert "12" not in text[:-1] and "30" not in text[:-1]
    assert len({completion.token_ids for completion in found}) > 3


def test_a_stop_string_without_decode_is_an_error() -> None:
    for sampler in (InProcessSampler(tiny.served(), CONTEXT), ReferenceSampler(tiny.model(), CONTEXT)):
        with pytest.raises(ValueError, match="decode="):
            sampler.sample([[5]], 1, Sampling(3, (), stop_strings=("a",)), [0])


def test_the_length_runs_out_unstopped() -> None:
    found = fast().sample(tiny.prompts([5, 2]), 4, Sampling(6, ()), seeds(2))
    assert all(len(c.token_ids) == 6 and not c.stopped for group in found for c in group)


def test_a_stop_token_at_the_last_place_counts_as_stopped() -> None:
    rule = lambda prompt, so_far: [STOP] if len(so_far) == 3 else [9, 10]  # noqa: E731
    (completion,) = fast().sample([[5, 6]], 1, Sampling(4, (STOP,), allowed=rule), [1])[0]
    assert len(completion.token_ids) == 4 and completion.stopped


def test_an_empty_answer_is_its_stop_token_alone() -> None:
    for sampler in (fast(slots=2), reference()):
        found = sampler.sample(tiny.prompts([4, 7]), 3, Sampling(9, (STOP,), allowed=[STOP]), seeds(2))
        assert tokens(found) == [[(STOP,)] * 3] * 2
        assert all(c.stopped and c.logprobs == (0.0,) and c.support == ((STOP,),) for group in found for c in group)


def test_a_prompt_near_the_context_limit_leaves_less_room() -> None:
    prompts = tiny.prompts([CONTEXT - 3, 4, CONTEXT - 1])
    found = fast().sample(prompts, 2, Sampling(8, ()), seeds(3))
    assert [[len(c.token_ids) for c in group] for group in found] == [[3, 3], [8, 8], [1, 1]]
    assert not any(c.stopped for group in found for c in group)
    assert_same(found, reference().sample(prompts, 2, Sampling(8, ()), seeds(3)))


@pytest.mark.parametrize("length", [CONTEXT, CONTEXT + 5])
def test_a_prompt_beyond_the_context_is_an_error(length: int) -> None:
    for sampler in (fast(), reference()):
        with pytest.raises(ValueError, match=f"a prompt of {length} tokens leaves no room in a context of {CONTEXT}"):
            sampler.sample([[5], [5] * length], 1, JOB, seeds(2))


def test_the_support_of_each_position_is_recorded_and_kept_to() -> None:
    rule = lambda prompt, so_far: [20 + len(so_far), 40, 4 + len(prompt)]  # noqa: E731
    prompts = tiny.prompts([3, 6])
    for prompt, group in zip(prompts, fast().sample(prompts, 5, Sampling(4, (), allowed=rule), seeds(2)), strict=True):
        for completion in group:
            assert completion.support == tuple((4 + len(prompt), 20 + place, 40) for place in range(4))
            assert all(token in ids for token, ids in zip(completion.token_ids, completion.support, strict=True))
    assert all(c.support is None for group in fast().sample(prompts, 1, JOB, seeds(2)) for c in group)


# ------------------------------------------------------------------------------------- neighbours, slots, order, seeds
@pytest.mark.parametrize("slots", [1, 2, 3, 8])
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_tokens_do_not_depend_on_the_number_of_slots(kind: str, slots: int) -> None:
    prompts = tiny.prompts([6, 1, 19, 11, 3])  # 15 completions: more work than slots; groups larger than slots
    found = fast(kind, slots).sample(prompts, 3, JOB, seeds(5))
    assert_same(found, fast(kind).sample(prompts, 3, JOB, seeds(5)))
    assert len({len(c.token_ids) for group in found for c in group}) > 1  # slots became free at different times


def test_tokens_do_not_depend_on_which_prompts_are_beside_them_or_in_which_order() -> None:
    prompts = tiny.prompts([6, 1, 19, 11, 3])
    whole = fast(slots=4).sample(prompts, 2, JOB, seeds(5))
    for rows in ([4, 2, 0], [1], [3, 1, 4, 0, 2], [2, 2]):
        part = fast(slots=3).sample([prompts[row] for row in rows], 2, JOB, [seeds(5)[row] for row in rows])
        assert_same(part, [whole[row] for row in rows])


def test_samples_do_not_depend_on_how_many_there_are() -> None:
    prompts = tiny.prompts([6, 11])
    many = fast(slots=4).sample(prompts, 7, JOB, seeds(2))
    few = fast(slots=4).sample(prompts, 2, JOB, seeds(2))
    assert_same(few, [group[:2] for group in many])


def test_a_shorter_limit_gives_the_beginning_of_the_same_completion() -> None:
    prompts = tiny.prompts([6, 11])
    long = fast().sample(prompts, 3, Sampling(20, ()), seeds(2))
    short = fast().sample(prompts, 3, Sampling(5, ()), seeds(2))
    assert tokens(short) == [[c.token_ids[:5] for c in group] for group in long]


def test_a_seed_repeats_and_another_seed_differs() -> None:
    prompts = tiny.prompts([6, 6])
    sampler = fast()
    first = sampler.sample(prompts, 4, JOB, [1, 2])
    assert sampler.sample(prompts, 4, JOB, [1, 2]) == first
    other = sampler.sample(prompts, 4, JOB, [3, 2])
    assert tokens(other)[0] != tokens(first)[0] and tokens(other)[1] == tokens(first)[1]
    assert len(set(tokens(first)[0])) > 1  # samples of one seed differ


def test_equal_prompts_with_other_seeds_draw_otherwise() -> None:
    (prompt,) = tiny.prompts([6])
    found = tokens(fast().sample([prompt, prompt], 3, JOB, [1, 2]))
    assert found[0] != found[1]


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    sampler, prompts = fast(), tiny.prompts([6])
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = sampler.sample(prompts, 2, JOB, [1])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert sampler.sample(prompts, 2, JOB, [1]) == first


# ------------------------------------------------------------------------------------ the work that is done
def test_what_all_prompts_begin_with_is_run_once() -> None:
    model = tiny.served()
    sampler = InProcessSampler(model, CONTEXT, slots=8)
    widths: list[int] = []
    hook = model.get_decoder().embed_tokens.register_forward_hook(
        lambda module, args, out: widths.append(args[0].numel())
    )
    prompts = [[5, 6, 7, 8, 9, number, *range(20, 20 + number)] for number in (3, 4, 6)]
    found = sampler.sample(prompts, 2, JOB, seeds(3))
    hook.remove()
    assert widths[0] == 5 + 4 + 5 + 7
    alone = [sampler.sample([prompt], 2, JOB, [seed])[0] for prompt, seed in zip(prompts, seeds(3), strict=True)]
    assert all(
        [c.token_ids for c in group] == [c.token_ids for c in other] for group, other in zip(found, alone, strict=True)
    )


def test_a_prompt_is_run_once_for_its_group_and_finished_rows_cost_nothing() -> None:
    model = tiny.served()
    sampler = InProcessSampler(model, CONTEXT, slots=8)
    widths: list[int] = []
    model.get_decoder().embed_tokens.register_forward_hook(lambda module, args, out: widths.append(args[0].numel()))
    prompts = tiny.prompts([6, 9])
    ends = lambda prompt, so_far: [STOP] if len(so_far) == (3 if len(prompt) == 6 else 5) else [9]  # noqa: E731
    sampler.sample(prompts, 4, Sampling(20, (STOP,), allowed=ends), seeds(2))
    # One pass over both prompts gives the first tokens; three passes for eight rows; two more for the four that go on.
    assert widths == [15, 8, 8, 8, 4, 4]


def test_freed_slots_are_filled_with_waiting_prompts() -> None:
    model = tiny.served()
    sampler = InProcessSampler(model, CONTEXT, slots=2)
    widths: list[int] = []
    model.get_decoder().embed_tokens.register_forward_hook(lambda module, args, out: widths.append(args[0].numel()))
    prompts = tiny.prompts([2, 3, 4, 5])
    ends = lambda prompt, so_far: [STOP] if len(so_far) == len(prompt) else [9]  # noqa: E731
    found = sampler.sample(prompts, 1, Sampling(20, (STOP,), allowed=ends), seeds(4))
    assert [len(group[0].token_ids) for group in found] == [3, 4, 5, 6]
    # Prompts of 2 and 3 start together; after 2 steps the first ends and the prompt of 4 takes its slot, and so on.
    assert widths == [5, 2, 2, 4, 2, 5, 2, 2, 2, 1, 1]


def test_progress_counts_up_to_all_completions() -> None:
    seen: list[tuple[int, int]] = []
    sampler = InProcessSampler(tiny.served(), CONTEXT, 3, progress=lambda done, total: seen.append((done, total)))
    sampler.sample(tiny.prompts([4, 2, 7]), 2, JOB, seeds(3))
    assert seen[-1] == (6, 6) and {total for _, total in seen} == {6}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_no_prompts_give_no_completions() -> None:
    assert fast().sample([], 4, JOB, []) == reference().sample([], 4, JOB, []) == []


@pytest.mark.parametrize("count", [1, 3])
def test_prompts_and_seeds_must_be_as_many(count: int) -> None:
    for sampler in (fast(), reference()):
        with pytest.raises(ValueError):
            sampler.sample([[5], [6]], 1, JOB, seeds(count))


def test_a_model_in_training_mode_is_given_back_as_it_was() -> None:
    model = tiny.served()
    model.train()
    sampler = InProcessSampler(model, CONTEXT)
    expected = fast().sample([[5, 6]], 2, JOB, [0])
    assert sampler.sample([[5, 6]], 2, JOB, [0]) == expected
    assert model.training
    with pytest.raises(ValueError):
        sampler.sample([[5]], 1, Sampling(3, (), allowed=lambda prompt, so_far: []), [0])
    assert model.training  # after an error as well


def test_sampling_leaves_weights_and_gradients_alone() -> None:
    model = tiny.served()
    before = [parameter.clone() for parameter in model.parameters()]
    InProcessSampler(model, CONTEXT).sample([[5, 6]], 2, JOB, [0])
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, model.parameters(), strict=True))


# ------------------------------------------------------------------------------------ weights and versions
def changed(kind: str = "llama") -> Any:
    return tiny.model(kind, seed=9)


@pytest.mark.parametrize("make", [fast, reference])
def test_load_takes_the_weights_and_stamps_their_version(make: Any) -> None:
    sampler, prompts = make(), tiny.prompts([6, 3])
    before = sampler.sample(prompts, 2, JOB, seeds(2))
    assert {c.weights_version for group in before for c in group} == {0}
    other = changed()
    sampler.load(other.named_parameters(), 5)
    after = sampler.sample(prompts, 2, JOB, seeds(2))
    assert {c.weights_version for group in after for c in group} == {5} and sampler.version == 5
    expected = ReferenceSampler(other, CONTEXT).sample(prompts, 2, JOB, seeds(2))
    assert tokens(after) == tokens(expected) != tokens(before)


def test_load_copies_into_tied_and_half_precision_weights() -> None:
    model = tiny.served("qwen2", dtype=torch.bfloat16)
    master = [(name, parameter.detach()) for name, parameter in tiny.model("qwen2", seed=9).named_parameters()]
    InProcessSampler(model, CONTEXT).load(master, 1)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, dict(master)[name].bfloat16())
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def test_shared_weights_are_not_copied() -> None:
    model = tiny.served()
    places = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    versions = {name: parameter._version for name, parameter in model.named_parameters()}
    InProcessSampler(model, CONTEXT).load(model.named_parameters(), 3)
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == places
    assert {name: parameter._version for name, parameter in model.named_parameters()} == versions


def test_a_learner_step_without_load_shows_in_the_version_stamp() -> None:
    model, learner_version = tiny.served(), 0
    sampler = InProcessSampler(model, CONTEXT)
    with torch.no_grad():
        model.lm_head.weight.add_(0.1)
    learner_version += 1  # ... and load is forgotten
    stale = sampler.sample([[5, 6]], 2, JOB, [0])[0]
    assert {completion.weights_version for completion in stale} == {0} != {learner_version}
    sampler.load(model.named_parameters(), learner_version)
    assert {c.weights_version for c in sampler.sample([[5, 6]], 2, JOB, [0])[0]} == {learner_version}


def test_weights_of_another_model_are_an_error() -> None:
    for sampler in (fast(), reference()):
        with pytest.raises(KeyError, match=r"nonesuch"):
            sampler.load([("nonesuch.weight", torch.zeros(1))], 1)
