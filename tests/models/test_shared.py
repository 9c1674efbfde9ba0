"""Rows with a common beginning are run once over it, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tiny
from upslope.models.networks import PolicyNetwork, ValueNetwork
from upslope.models.shared import SHORTEST_ROOT, SharedRows, common_prefixes
from upslope.types import Batch

PROMPTS = tiny.prompts([17, 5, 9], seed=7)
TAILS = tiny.prompts([6, 3, 11, 4, 2, 8, 1], seed=8)
GROUPS = {
    "groups": [
        (0, PROMPTS[0] + TAILS[0]), (0, PROMPTS[0] + TAILS[1]), (0, PROMPTS[0] + TAILS[2]), (1, PROMPTS[1] + TAILS[3]),
    ],
    "interleaved": [
        (5, PROMPTS[0] + TAILS[0]), (2, PROMPTS[1] + TAILS[1]), (5, PROMPTS[0] + TAILS[2]), (2, PROMPTS[1] + TAILS[4]),
    ],
    "one begins the other": [(0, PROMPTS[0]), (0, PROMPTS[0] + TAILS[5]), (1, PROMPTS[2] + TAILS[6]), (1, PROMPTS[2])],
    "equal rows": [(0, PROMPTS[2]), (0, PROMPTS[2]), (0, PROMPTS[2])],
    "nothing in common": [(0, [4, *PROMPTS[0]]), (0, [5, *PROMPTS[0]]), (1, PROMPTS[2])],
    "alone": [(0, PROMPTS[0]), (1, PROMPTS[1]), (2, PROMPTS[2])],
    "one beginning for all": [
        (0, PROMPTS[2] + TAILS[0]), (0, PROMPTS[2] + TAILS[1]), (1, PROMPTS[2] + TAILS[2]),
        (1, PROMPTS[2] + TAILS[2][:4] + [7]),
        (2, PROMPTS[2]), (3, PROMPTS[2] + TAILS[3]),
    ],
}  # fmt: skip


def batch(name: str) -> Batch:
    """The rows of a case."""
    units, rows = zip(*GROUPS[name], strict=True)
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.tensor([[*row, *[0] * (int(lengths.max()) - len(row))] for row in rows])
    time = torch.arange(ids.shape[1] - 1)
    mask = (time < lengths[:, None] - 1) & (time % 5 != 2)
    return Batch(ids, lengths, mask, torch.tensor(units))


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3"])
@pytest.mark.parametrize("name", list(GROUPS))
def test_sharing_changes_neither_numbers_nor_gradients(name: str, kind: str) -> None:
    model = tiny.served(kind, dtype=torch.float64)
    network = ValueNetwork(model.get_decoder())
    torch.nn.init.normal_(network.head.weight, generator=torch.Generator().manual_seed(0))
    factors = torch.randn(batch(name).mask.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    rows = batch(name)
    for parts in (
        [rows],
        [rows.take([row]) for row in range(len(rows))],
    ):  # all together; each row alone, nothing shared
        policies, values = [PolicyNetwork(model)(part) for part in parts], [network(part) for part in parts]
        logprobs, entropy = (torch.cat([getattr(p, field) for p in policies]) for field in ("logprobs", "entropy"))
        value, last = torch.cat([v.values for v in values]), torch.cat([v.last_value for v in values])
        objective = (factors * (logprobs + 0.3 * entropy + value)).sum() + last.sum()
        found.append([logprobs, entropy, value, last, *torch.autograd.grad(objective, list(model.parameters()))])
    for shared, apart in zip(*found, strict=True):
        torch.testing.assert_close(shared, apart, atol=1e-5, rtol=1e-5)


def test_a_prompt_is_run_once_for_its_group() -> None:
    counts = {name: SharedRows(*layout_inputs(name)).token_ids.shape[1] for name in GROUPS}
    assert counts["groups"] == 17 + 6 + 3 + 11 + (5 + 4)
    assert counts["interleaved"] == 17 + 6 + 11 + 5 + 3 + 2
    assert counts["one begins the other"] == 17 + 8 + 9 + 1
    assert counts["equal rows"] == 9
    assert counts["nothing in common"] == 18 + 18 + 9
    assert counts["alone"] == 17 + 5 + 9
    assert counts["one beginning for all"] == 9 + (6 + 3) + (4 + 7 + 1) + 0 + 4


def common_length(rows: list[list[int]]) -> int:
    length = 0
    while all(len(row) > length for row in rows) and len({row[length] for row in rows}) == 1:
        length += 1
    return length


def layout_inputs(name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = batch(name)
    return rows.token_ids, rows.lengths, rows.unit


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 1), min_size=1, max_size=6)), min_size=1, max_size=6)
)
def test_prefixes_and_places_equal_a_brute_force(cases: list[tuple[int, list[int]]]) -> None:
    rows = [row for _, row in cases]
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    lengths, unit = torch.tensor([len(row) for row in rows]), torch.tensor([number for number, _ in cases])
    _, prefix = common_prefixes(ids, lengths, unit)
    layout = SharedRows(ids, lengths, unit)
    for index, (number, row) in enumerate(cases):
        mates = [other for other_number, other in cases if other_number == number]
        assert int(prefix[index]) == common_length(mates)
        places = layout.source[index, : len(row)]
        assert layout.token_ids[0, places].tolist() == row
        assert layout.position_ids[0, places].tolist() == list(range(len(row)))
    assert layout.token_ids.shape == layout.position_ids.shape
    units = {number: common_length([row for n, row in cases if n == number]) for number, _ in cases}
    root = common_length([row for _, row in cases]) if len(units) > 1 else 0
    root = root if root >= SHORTEST_ROOT else 0
    stretches = root + sum(length - root for length in units.values())
    assert layout.token_ids.shape[1] == stretches + sum(len(row) - units[number] for number, row in cases)
