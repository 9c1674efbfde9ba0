"""Preference rows: every way of writing one, and what is said of those that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from upslope.errors import InputError
from upslope.recipes.configs import DataSection
from upslope.recipes.pairs import fit_pairs, questions
from upslope.text.collation import collate_pairs, collate_texts
from upslope.text.preferences import peek_pairs, to_pairs
from upslope.text.rendering import Renderer
from upslope.types import Pair

ASK = {"role": "user", "content": "Hi"}


def say(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def one(row: dict[str, Any]) -> Pair:
    pairs, equal = to_pairs([row], "rows.jsonl")
    assert equal == 0 and pairs[0].id == "1"
    return pairs[0]


WAYS: list[tuple[dict[str, Any], Any, str, str]] = [
    ({"prompt": "Hi", "chosen": "Hello", "rejected": "No"}, "Hi", "Hello", "No"),
    ({"input": "Hi", "chosen": "Hello", "rejected": "No"}, "Hi", "Hello", "No"),
    ({"prompt": [ASK], "chosen": [say("Hello")], "rejected": [say("No")]}, (ASK,), "Hello", "No"),
    ({"prompt": [ASK], "chosen": "Hello", "rejected": "No"}, (ASK,), "Hello", "No"),
    ({"chosen": [ASK, say("Hello")], "rejected": [ASK, say("No")]}, (ASK,), "Hello", "No"),
    ({"prompt": "Hi", "chosen": [ASK, say("Hello")], "rejected": [ASK, say("No")]}, (ASK,), "Hello", "No"),
    (
        {"chosen": [ASK, say("Yes?"), ASK, say("Hello")], "rejected": [ASK, say("Yes?"), ASK, say("No")]},
        (ASK, say("Yes?"), ASK), "Hello", "No",
    ),
    ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, "The sky is", " blue.", " green."),
    ({"chosen": "Q: 1?\nA: 1 1", "rejected": "Q: 1?\nA: 1"}, "Q: 1?\nA:", " 1 1", " 1"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "prompt", "chosen", "rejected"), WAYS)
def test_every_way_of_writing_a_pair(row: dict[str, Any], prompt: Any, chosen: str, rejected: str) -> None:
    pair = one(row)
    assert (pair.prompt, pair.chosen, pair.rejected) == (prompt, chosen, rejected)
    assert pair.joined == ("prompt" not in row and "input" not in row and isinstance(row["chosen"], str))


def test_bad_pairs_are_left_out_where_that_is_asked_for_and_equal_ones_are_counted_apart() -> None:
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    rows = [{**good, "chosen": None}, {**good, "rejected": "b"}, good, {**good, "margin": "much"}]
    left_out: list[int] = []
    pairs, equal = to_pairs(rows, "rows", left_out)
    assert ([pair.id for pair in pairs], equal, left_out) == (["3"], 1, [1, 4])


def test_other_columns_and_the_margin_go_along() -> None:
    pair = one({"prompt": "a", "chosen": "b", "rejected": "c", "margin": "0.5", "answer": 7})
    assert pair.margin == 0.5 and pair.columns == {"answer": 7}


def test_equal_answers_are_left_out_and_counted() -> None:
    rows = [{"prompt": str(n), "chosen": "a", "rejected": "a" if n % 2 else "b"} for n in range(6)]
    pairs, equal = to_pairs(rows, "r")
    assert [pair.id for pair in pairs] == ["1", "3", "5"] and equal == 3
    with pytest.raises(InputError, match="in all 2 rows chosen and rejected are equal"):
        to_pairs([rows[1], rows[3]], "r")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"messages": [ASK, say("x")]}, r"need the columns chosen and rejected; found messages, rows for upslope sft"),
    ({"prompt": "a", "completion": "b"}, r"found prompt and completion.*run upslope sft"),
    ({"prompt": "a", "chosen": "b"}, r"column 'rejected' not in r\. Columns: prompt, chosen"),
    ({"prompt": "a", "better": "b", "worse": "c"}, r"map it: data\.columns\.chosen: better"),
    ({"question": "a", "chosen": "It is 4", "rejected": "It is 5"}, r"map it: data\.columns\.prompt: question"),
    ({"prompt": "a", "chosen": "b", "rejected": ""}, r"row 1: rejected is empty"),
    ({"prompt": "a", "chosen": None, "rejected": "b"}, r"row 1: chosen is null"),
    ({"prompt": None, "chosen": "a", "rejected": "b"}, r"row 1: prompt is null"),
    ({"prompt": "a", "chosen": "b", "rejected": [say("c")]}, r"one of chosen and rejected is text and the other"),
    ({"chosen": "yes", "rejected": "no"}, r"no beginning in common"),
    (
        {"chosen": [ASK, say("a")], "rejected": [{"role": "user", "content": "Ho"}, say("b")]},
        r"different messages|expected one",
    ),
    ({"chosen": [ASK, say("a"), ASK, say("b")], "rejected": [ASK, say("c")]}, r"expected one: the last answer"),
    ({"chosen": [ASK], "rejected": [ASK]}, r"ends with the turn of user"),
    (
        {"prompt": "Ho", "chosen": [ASK, say("a")], "rejected": [ASK, say("b")]},
        r"prompt is not what chosen and rejected begin",
    ),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": "much"}, r"margin is str 'much', expected a number"),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": float("inf")}, r"margin is float 'inf'"),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": True}, r"margin is bool"),
]


@pytest.mark.parametrize(("row", "said"), BAD)
def test_a_row_that_is_no_pair_is_named(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        to_pairs([row], "r")
    path = tmp_path / "r.jsonl"
    if row.get("margin") != float("inf"):
        path.write_text(json.dumps(row) + "\n")
        with pytest.raises(InputError):
            peek_pairs(str(path))


def test_preferences_given_to_sft_are_told_which_column_to_train_on() -> None:
    from upslope.text.rows import to_examples

    with pytest.raises(InputError, match=r"map it: data\.columns\.completion: chosen"):
        to_examples([{"prompt": "a", "chosen": "b", "rejected": "c"}], "r")


# ------------------------------------------------------------------------------------------------------------ rendered
def renderer(chat: bool = True) -> Renderer:
    return Renderer(tiny.tokenizer(chat), (2,))


def fitted(
    pairs: list[Pair], words: Renderer, limit: int = 100, too_long: Any = "error"
) -> tuple[list[Any], list[str]]:
    notices: list[str] = []
    data = DataSection(path="rows.jsonl", too_long=too_long)
    return fit_pairs(pairs, words, limit, data, "dpo.max_tokens", notices.append, "training"), notices


def test_both_sides_are_rendered_as_sft_renders_them_and_batched_as_units() -> None:
    words = renderer()
    pairs = [one({"prompt": "Hi", "chosen": "Hello", "rejected": "No"}), one(WAYS[4][0])]
    encoded, _ = fitted(pairs, words)
    batch = collate_pairs(encoded)
    assert batch.unit.tolist() == [0, 0, 1, 1]
    prompt = words.prompt("Hi")
    for row, text in ((0, "Hello"), (1, "No"), (2, "Hello"), (3, "No")):
        wanted = [*prompt, *words.completion(text)]
        assert batch.token_ids[row, : int(batch.lengths[row])].tolist() == wanted
        assert batch.targets[row][batch.mask[row]].tolist() == words.completion(text)
    assert int(batch.token_ids[0, int(batch.lengths[0]) - 1]) == words.stop_id


def test_texts_to_be_scored_have_no_targets() -> None:
    batch = collate_texts([[5, 6, 7], [5, 6]], [0, 0])
    assert batch.lengths.tolist() == [3, 2] and not bool(batch.mask.any()) and batch.unit.tolist() == [0, 0]
    assert torch.equal(batch.token_ids, torch.tensor([[5, 6, 7], [5, 6, 0]]))


def test_a_text_without_a_prompt_is_no_chat() -> None:
    pair = one({"chosen": "The sky is blue.", "rejected": "The sky is green."})
    with pytest.raises(InputError, match=r"1 rows have no prompt.*data.chat: never"):
        fitted([pair], renderer())
    encoded, _ = fitted([pair], renderer(chat=False))
    assert tiny.tokenizer(False).decode(list(encoded[0].chosen.token_ids[:-1])) == "The sky is blue."


def test_pairs_that_are_too_long() -> None:
    words = renderer(chat=False)
    pairs = [one({"prompt": "0123456789", "chosen": "ab", "rejected": "abcd"}),
             Pair("2", "01", "c" * 20, "d"), Pair("3", "0", "a", "b")]  # fmt: skip
    with pytest.raises(InputError, match=r"2 of 3 training pairs exceed 12 tokens: rows 1 \(15\), 2 \(23\)"):
        fitted(pairs, words, 12)
    kept, notices = fitted(pairs, words, 12, "drop")
    assert [pair.id for pair in kept] == ["3"] and "2 left out" in notices[0]
    kept, notices = fitted(pairs, words, 12, "truncate")
    assert [pair.id for pair in kept] == ["1", "3"] and "1 left out, 1 with the beginning of the prompt" in notices[0]
    ids = words.tokenizer
    assert ids.decode(list(kept[0].chosen.token_ids[:-1])) == "3456789ab"
    assert ids.decode(list(kept[0].rejected.token_ids[:-1])) == "3456789abcd"
    assert len(kept[0].rejected.token_ids) == 12 and sum(kept[0].rejected.trainable) == 5
    with pytest.raises(InputError, match=r"0 training pairs are left \(read 1, too long 1\)"):
        fitted(pairs[1:2], words, 12, "truncate")


def test_each_prompt_is_asked_once() -> None:
    rows = [{"prompt": "a", "chosen": str(n), "rejected": "x"} for n in range(3)] + [
        {"prompt": "b", "chosen": "0", "rejected": "x"}]  # fmt: skip
    assert [prompt.content for prompt in questions(to_pairs(rows, "r")[0])] == ["a", "b"]
