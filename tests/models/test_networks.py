"""Policy and value networks against a row-by-row computation with plain transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests import tiny
from upslope.models.networks import PolicyNetwork, ValueNetwork
from upslope.types import Batch

LENGTHS = [7, 19, 2, 12]


def batch(mask: str = "all", **changes: Any) -> Batch:
    rows = tiny.prompts(LENGTHS, seed=2)
    ids = torch.tensor([row + [0] * (max(LENGTHS) - len(row)) for row in rows])
    time = torch.arange(max(LENGTHS) - 1)
    real = time < torch.tensor(LENGTHS)[:, None] - 1
    wanted = real if mask == "all" else real & (time % 3 != 1)
    return Batch(ids, torch.tensor(LENGTHS), wanted, torch.arange(len(rows)), **changes)


def test_policy_scores_every_masked_target_at_the_batch_temperature_and_support() -> None:
    plain = tiny.model("llama", dtype=torch.float64)
    rows = batch("holes", temperature=0.6)
    support = torch.full((*rows.mask.shape, 3), -1)
    for row in (1, 3):  # rows 0 and 2 are free; in the others each second target has three choices
        for time in range(0, LENGTHS[row] - 1, 2):
            target = int(rows.targets[row, time])
            support[row, time] = torch.tensor([target, (target + 1) % tiny.VOCAB, (target + 5) % tiny.VOCAB])
    found = PolicyNetwork(tiny.served("llama", dtype=torch.float64))(batch("holes", temperature=0.6, support=support))
    for row, length in enumerate(LENGTHS):
        log_p = tiny.stock_log_probs(plain, rows.token_ids[row, :length], 0.6)
        for time in range(rows.mask.shape[1]):
            if not rows.mask[row, time]:
                assert found.logprobs[row, time] == 0 and found.entropy[row, time] == 0
                continue
            kept = [int(token) for token in support[row, time] if token >= 0] or list(range(tiny.VOCAB))
            local = log_p[time, kept].log_softmax(-1)
            place = kept.index(int(rows.targets[row, time]))
            torch.testing.assert_close(found.logprobs[row, time], local[place], atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(found.entropy[row, time], -(local.exp() * local).sum(), atol=1e-6, rtol=1e-6)


def test_padding_ids_change_nothing() -> None:
    network, rows = PolicyNetwork(tiny.served("gemma3")), batch()
    padding = torch.arange(max(LENGTHS)) >= rows.lengths[:, None]
    other = Batch(rows.token_ids.masked_fill(padding, 9), rows.lengths, rows.mask, rows.unit)
    assert torch.equal(network(rows).logprobs, network(other).logprobs)


def test_value_is_zero_before_training_and_its_head_learns() -> None:
    network = ValueNetwork(tiny.served("qwen3").get_decoder())
    found = network(batch())
    assert torch.count_nonzero(found.values) == 0 and torch.count_nonzero(found.last_value) == 0
    (found.values - 1).square().sum().backward()
    for parameter in network.head.parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0


def test_value_head_is_float32_over_a_bfloat16_decoder() -> None:
    decoder = tiny.served("llama", dtype=torch.bfloat16).get_decoder()
    network = ValueNetwork(decoder)
    assert network.head.weight.dtype == torch.float32
    found = network(batch())
    assert found.values.dtype == found.last_value.dtype == torch.float32
    assert next(decoder.parameters()).dtype == torch.bfloat16
    assert ValueNetwork(tiny.served("llama", dtype=torch.float64).get_decoder()).head.weight.dtype == torch.float64


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3"])
def test_values_stand_before_their_targets_and_last_value_after_the_last_token(kind: str) -> None:
    network, rows = with_random_head(kind), batch("holes")
    plain = tiny.model(kind).get_decoder()
    found = network(rows)
    for row, length in enumerate(LENGTHS):
        hidden = plain(input_ids=rows.token_ids[row, None, :length], use_cache=False).last_hidden_state[0]
        expected = (hidden @ network.head.weight[0] + network.head.bias).detach()  # [length]: V after token i
        torch.testing.assert_close(found.last_value[row], expected[-1], atol=1e-5, rtol=1e-5)
        for time in range(rows.mask.shape[1]):
            wanted = expected[time] if rows.mask[row, time] else torch.tensor(0.0)
            torch.testing.assert_close(found.values[row, time], wanted, atol=1e-5, rtol=1e-5)


def test_a_later_token_moves_no_earlier_value() -> None:
    network, rows = with_random_head("llama"), batch()
    before = network(rows)
    row, place = 1, 10
    ids = rows.token_ids.clone()
    ids[row, place] = 4 + (ids[row, place] - 3) % 60
    after = network(Batch(ids, rows.lengths, rows.mask, rows.unit))
    moved = (before.values - after.values).abs() > 1e-6
    assert not moved[row, :place].any()  # values[t] uses tokens 0..t only
    assert moved[row, place:].all()
    assert not moved[[0, 2, 3]].any()
    assert ((before.last_value - after.last_value).abs() > 1e-6).tolist() == [False, True, False, False]


def with_random_head(kind: str) -> ValueNetwork:
    network = ValueNetwork(tiny.served(kind).get_decoder())
    torch.manual_seed(4)
    torch.nn.init.normal_(network.head.weight)
    torch.nn.init.normal_(network.head.bias)
    return network
