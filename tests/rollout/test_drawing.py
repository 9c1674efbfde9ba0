"""How one token is drawn: its random number, its distribution, what may be drawn, how much room there is."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from upslope.rollout.drawing import allowed_ids, draw, randomness, room
from upslope.types import Sampling


def test_a_random_number_belongs_to_seed_sample_and_position_whatever_the_count() -> None:
    whole = randomness(7, 3, 200)
    assert whole.dtype == torch.float64 and bool(((whole >= 0) & (whole < 1)).all())
    for count in (1, 2, 5, 63, 199):
        assert torch.equal(randomness(7, 3, count), whole[:count])


def test_random_numbers_of_other_seeds_samples_and_positions_differ() -> None:
    streams = torch.stack([randomness(seed, sample, 50) for seed in (0, 1, 2**40) for sample in (0, 1, 2)])
    assert streams.flatten().unique().numel() == streams.numel()


def test_random_numbers_are_the_same_on_every_machine() -> None:
    # Written down once (BLAKE2b key, Philox): a change here changes every run of every user.
    golden = [0.14257444332811497, 0.8689824546928488, 0.4718460967036737]
    assert randomness(0, 0, 3).tolist() == golden


def test_each_id_takes_the_stretch_of_the_unit_interval_that_its_probability_says() -> None:
    p = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    points = torch.tensor([0.0, 0.0999, 0.1001, 0.2999, 0.3001, 0.5999, 0.6001, 0.9999], dtype=torch.float64)
    ids, logprobs = draw(p.log().expand(8, 4), points, Sampling(1, ()))
    assert ids.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    torch.testing.assert_close(logprobs, p.log()[ids])


def test_logprobs_are_under_the_distribution_that_was_drawn_from() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]], dtype=torch.float64).expand(2000, 4)
    points = torch.linspace(0, 0.9999, 2000, dtype=torch.float64)
    for sampling, support, scores in [
        (Sampling(1, (), temperature=0.5), None, [0.0, 2.0, 4.0, 6.0]),
        (Sampling(1, (), top_k=2), None, [-torch.inf, -torch.inf, 2.0, 3.0]),
        (Sampling(1, (), top_p=0.7), None, [-torch.inf, -torch.inf, 2.0, 3.0]),  # 0.644 < 0.7 <= 0.644 + 0.237
        (Sampling(1, ()), [(0, 2)] * 2000, [0.0, -torch.inf, 2.0, -torch.inf]),
        (
            Sampling(1, (), top_k=1),
            [(0, 2)] * 2000,
            [-torch.inf, -torch.inf, 2.0, -torch.inf],
        ),  # top of what is allowed
    ]:
        expected = torch.tensor(scores, dtype=torch.float64).log_softmax(-1)
        ids, logprobs = draw(logits, points, sampling, support)
        torch.testing.assert_close(logprobs, expected[ids])
        assert set(ids.tolist()) == set(torch.isfinite(expected).nonzero()[:, 0].tolist())


def test_rows_have_supports_of_their_own_and_none_is_the_whole_vocabulary() -> None:
    logits, points = torch.zeros(3, 5), torch.full((3,), 0.99, dtype=torch.float64)
    ids, logprobs = draw(logits, points, Sampling(1, ()), [(1,), None, (0, 3)])
    assert ids.tolist() == [1, 4, 3]
    torch.testing.assert_close(logprobs.exp(), torch.tensor([1.0, 0.2, 0.5]))


def test_greedy_takes_the_largest_with_probability_one() -> None:
    ids, logprobs = draw(
        torch.tensor([[1.0, 9.0, 9.0, 2.0]]), torch.tensor([0.7], dtype=torch.float64), Sampling(1, (), 0.0)
    )
    assert ids.tolist() == [1] and logprobs.tolist() == [0.0]


def test_bfloat16_logits_are_promoted() -> None:
    logits = torch.randn(4, 30, generator=torch.Generator().manual_seed(0)).bfloat16()
    points = torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64)
    ids, logprobs = draw(logits, points, Sampling(1, ()))
    exact = logits.double().log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs.double(), exact, atol=1e-6, rtol=0)


def test_allowed_is_a_list_or_a_function_of_prompt_and_answer_and_comes_back_sorted_once_each() -> None:
    assert allowed_ids(Sampling(1, ()), [1], []) is None
    assert allowed_ids(Sampling(1, (), allowed=[9, 4, 9]), [1], []) == (4, 9)
    seen: list[tuple[list[int], list[int]]] = []

    def rule(prompt: Sequence[int], so_far: Sequence[int]) -> list[int]:
        seen.append((list(prompt), list(so_far)))
        return [len(so_far)]

    assert allowed_ids(Sampling(1, (), allowed=rule), [5, 6], [7]) == (1,)
    assert seen == [([5, 6], [7])]


def test_a_rule_that_allows_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no token after \[7, 8\]"):
        allowed_ids(Sampling(1, (), allowed=lambda prompt, so_far: []), [5], [7, 8])


@pytest.mark.parametrize("ids", [(-1,), (3, 5), (2, 900)])
def test_an_allowed_id_outside_the_vocabulary_is_an_error(ids: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="vocabulary of 5"):
        draw(torch.zeros(1, 5), torch.zeros(1, dtype=torch.float64), Sampling(1, ()), [ids])


def test_room_is_max_new_tokens_or_what_the_context_leaves() -> None:
    sampling = Sampling(10, ())
    assert room([1] * 5, sampling, 100) == 10
    assert room([1] * 90, sampling, 100) == 10
    assert room([1] * 93, sampling, 100) == 7
    assert room([1] * 99, sampling, 100) == 1
    for length in (100, 101):
        with pytest.raises(ValueError, match=f"a prompt of {length} tokens leaves no room in a context of 100"):
            room([1] * length, sampling, 100)
    with pytest.raises(ValueError, match="empty prompt"):
        room([], sampling, 100)
