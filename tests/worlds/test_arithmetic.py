"""The arithmetic task: its pool, its split, its two scores."""

from __future__ import annotations

import subprocess
import sys

import pytest

from upslope.errors import InputError
from upslope.worlds.arithmetic import Arithmetic, exact_match, lenient

COMPUTE = {"add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b}
SIGN = {"add": "+", "sub": "-", "mul": "*"}


def pairs(task: Arithmetic, split: str) -> list[tuple[int, int]]:
    found = []
    for prompt in task.prompts(split):
        what, being, a, sign, b = str(prompt.content).rstrip("?").split()
        assert (what, being, sign) == ("What", "is", SIGN[task.operation])
        assert prompt.id == f"{task.operation}-{a}-{b}"
        assert prompt.columns == {"answer": str(COMPUTE[task.operation](int(a), int(b)))}
        found.append((int(a), int(b)))
    return found


@pytest.mark.parametrize("operation", ["add", "mul"])
def test_every_pair_stands_once_and_swapped_pairs_share_a_split(operation: str) -> None:
    task = Arithmetic(operation)
    train, heldout = pairs(task, "train"), pairs(task, "heldout")
    assert len(heldout) in (512, 513)
    assert sorted(train + heldout) == [(a, b) for a in range(10, 100) for b in range(10, 100)]
    assert {(b, a) for a, b in heldout} == set(heldout)
    assert {(b, a) for a, b in train} == set(train)


def test_subtraction_is_never_negative_and_takes_every_ordered_pair() -> None:
    task = Arithmetic("sub", digits=1, heldout=10)
    assert sorted(pairs(task, "train") + pairs(task, "heldout")) == [(a, b) for a in range(10) for b in range(a + 1)]
    assert len(task.prompts("heldout")) == 10


def test_the_hand_example() -> None:
    by_id = {prompt.id: prompt for split in ("train", "heldout") for prompt in Arithmetic().prompts(split)}
    assert by_id["add-16-44"].content == "What is 16 + 44?"
    assert by_id["add-16-44"].columns == {"answer": "60"}


def test_split_depends_on_the_seed_and_on_nothing_else() -> None:
    assert Arithmetic(seed=3).prompts("heldout") == Arithmetic(seed=3).prompts("heldout")
    first, other = set(pairs(Arithmetic(seed=0), "heldout")), set(pairs(Arithmetic(seed=1), "heldout"))
    assert len(first & other) < 100  # 512 * 512 / 8100 = 32 by chance


def test_order_is_shuffled() -> None:
    found = pairs(Arithmetic(), "train")
    assert found != sorted(found)
    apart = sum((b, a) not in found[max(0, i - 1) : i + 2] for i, (a, b) in enumerate(found[:200]) if a != b)
    assert apart > 150  # a pair and its mirror image are not neighbours


def test_examples_are_the_prompts_with_the_bare_number() -> None:
    task = Arithmetic()
    for split in ("train", "heldout"):
        for prompt, example in zip(task.prompts(split), task.examples(split), strict=True):
            assert (example.id, example.prompt) == (prompt.id, prompt.content)
            assert example.completion == prompt.columns["answer"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"operation": "div"}, "'div' is unknown, expected one of add, sub, mul"),
        ({"digits": 0}, "found 0, expected 1, 2 or 3"),
        ({"digits": 4}, "found 4, expected 1, 2 or 3"),
        ({"digits": 1, "heldout": 512}, "found 512, expected 1 to 98"),
        ({"heldout": 0}, "found 0"),
    ],
)
def test_bad_parameters_are_input_errors(options: dict, text: str) -> None:
    with pytest.raises(InputError, match=text):
        Arithmetic(**options)


def test_largest_allowed_heldout_leaves_something_to_train_on() -> None:
    for seed in range(20):
        assert len(Arithmetic(digits=1, heldout=98, seed=seed).prompts("train")) >= 1


def test_unknown_split_is_an_input_error() -> None:
    with pytest.raises(InputError, match="'test' is unknown, expected train or heldout"):
        Arithmetic().prompts("test")


def test_reward_is_exact_match_of_the_stripped_text() -> None:
    completions = ["60", " 60\n", "60.", "16 + 44 = 60", "", "061", "60 60"]
    answer = ["60"] * 7
    expected = [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert exact_match(["p"] * 7, completions, answer=answer) == expected
    assert Arithmetic().reward(["p"] * 7, completions, answer=answer) == expected


def test_reward_reads_the_last_message_of_a_conversation() -> None:
    replies = [[{"role": "assistant", "content": "60"}], [{"role": "assistant", "content": "6"}]]
    assert exact_match([[]] * 2, replies, answer=["60", "60"]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("completion", "answer", "right"),
    [
        ("16 + 44 = 60.", "60", 1.0),
        ("The answer is 60", "60", 1.0),
        ("60.0", "60", 1.0),
        ("60 is what 16 + 44 is", "60", 0.0),
        ("it is -60", "60", 0.0),
        ("44-60", "60", 1.0),
        ("1,234", "1234", 1.0),
        ("160", "60", 0.0),
        ("no idea", "60", 0.0),
        ("", "60", 0.0),
        ("٦٠", "60", 0.0),
    ],
)
def test_lenient_takes_the_last_number(completion: str, answer: str, right: float) -> None:
    assert lenient([completion], [answer]) == [right]


def test_no_torch_is_imported_with_the_worlds_and_rows() -> None:
    code = (
        "import sys, upslope.worlds.task, upslope.worlds.rewards, upslope.worlds.reward_worker, upslope.text.rows\n"
        "from upslope.worlds.task import load_task\nload_task('arithmetic')\n"
        "sys.exit('torch' in sys.modules or 'datasets' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
