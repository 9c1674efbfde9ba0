"""Reward functions: what they are called with, what they may return, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.worlds.reward_support import Write, run, values, write
from upslope.errors import InputError, RewardError
from upslope.types import Prompt
from upslope.worlds.rewards import Call, Group, RewardProcess, Score, call_of, check_source

__all__ = ["write"]


# ------------------------------------------------------------------------------------------------------- check_source
SOURCE = """
    raise RuntimeError("this file must not be run")
    from helpers import imported as renamed
    def accuracy(prompts, completions): ...
    async def length(completions): ...
    made = object()
    if made:
        def conditional(completions): ...
    try:
        import fast
    except ImportError:
        def slow(completions): ...
"""


@pytest.mark.parametrize("name", ["accuracy", "length", "renamed", "made", "conditional", "slow", "fast"])
def test_check_source_finds_names_without_running_the_file(write: Write, name: str) -> None:
    path = write(SOURCE)
    found = check_source(f"{path}:{name}")
    assert (found.path, found.function, found.shown) == (path, name, "rewards.py")


def test_check_source_names_functions_and_the_nearest_one(write: Write) -> None:
    path = write(SOURCE)
    with pytest.raises(InputError) as caught:
        check_source(f"{path}:acuracy")
    assert "rewards.py has no 'acuracy'. Functions: accuracy, length" in str(caught.value)
    assert f"did you mean {path}:accuracy?" in str(caught.value)


def test_check_source_errors_say_what_was_found(write: Write, tmp_path: Path) -> None:
    path = write("def f(:\n")
    for source, text in (
        (str(path), "not of the form path/to/file.py:function"),
        (f"{path}:two words", "not of the form"),
        (f"{tmp_path}/reward.py:f", "no such file. Fix: did you mean rewards.py?"),
        (f"{tmp_path}/nowhere/x.py:f", "no such file. Fix: give the path"),
        (f"{tmp_path}:f", "is a folder"),
        (f"{path}:f", r"rewards.py:1: not valid Python"),
        ("upslope.worlds.arithmetic:exact_mach", "did you mean upslope.worlds.arithmetic:exact_match"),
        ("upslope.worlds.nothing:f", "no such file"),
    ):
        with pytest.raises(InputError, match=text):
            check_source(source)
    write("x = 1\0")
    with pytest.raises(InputError, match=r"rewards.py(:\S+)?: (not valid|cannot be read as) Python"):
        check_source(f"{path}:x")


def test_a_star_import_leaves_the_name_to_the_process(write: Write) -> None:
    path = write("from os.path import *\n")
    with RewardProcess(f"{path}:basename", 5) as process, pytest.raises(RewardError, match="needs 'p'"):
        run(process, ["a"])
    with pytest.raises(RewardError, match="cannot be loaded: AttributeError"), RewardProcess(f"{path}:nothing", 5):
        pass


# ------------------------------------------------------------------------------------------------------- the signature
def test_columns_ids_and_logs_arrive_by_name(write: Write) -> None:
    path = write("""
        def f(completions, answer, completion_ids, log_extra, log_metric):
            log_extra("seen", [len(ids) for ids in completion_ids])
            log_metric("share", 0.25)
            log_metric("share", 0.75)
            return [c == a for c, a in zip(completions, answer)]
    """)
    with RewardProcess(f"{path}:f", 5, "right") as process:
        scores = run(process, ["a", "b"], {"answer": ["a", "a"], "unused": [1, 2]}, [[1, 2, 3], [4]])
        assert scores == [Score(1.0, {"right": 1.0}, {"seen": 3}), Score(0.0, {"right": 0.0}, {"seen": 1})]
        assert process.take_metrics() == {"share": 0.5}
        assert process.take_metrics() == {}


def test_a_function_with_keywords_gets_all_and_a_plain_one_only_what_it_takes(write: Write) -> None:
    path = write("""
        def every(prompts, **rest):
            names = sorted(rest)
            rest["log_extra"]("names", [names] * len(prompts))
            return [1] * len(prompts)
        def plain(completions):
            return [len(c) for c in completions]
        def wanting(completions, environment, answer):
            return [1] * len(completions)
    """)
    with RewardProcess(f"{path}:every", 5) as process:
        given = ["answer", "completion_ids", "completions", "log_extra", "log_metric", "trainer_state"]
        assert run(process, ["x"], {"answer": ["a"]}, [[1]])[0].extra == {"names": given}
        given.remove("completion_ids")
        assert run(process, ["x"], {"answer": ["a"]})[0].extra == {"names": given}
    with RewardProcess(f"{path}:plain", 5) as process:
        assert values(run(process, ["abc", ""], {"answer": ["a", "b"]}, [[1], [2]])) == [3.0, 0.0]
    with RewardProcess(f"{path}:wanting", 5) as process, pytest.raises(RewardError) as caught:
        run(process, ["abc"], {"answer": ["a"]})
    assert "it needs 'environment', and no such column comes with the rows (columns: answer)" in str(caught.value)


def test_async_functions_are_awaited_in_one_loop(write: Write) -> None:
    path = write("""
        import asyncio
        loops = []
        async def one(text):
            await asyncio.sleep(0.01)
            return float(len(text))
        async def f(completions, **_):
            loops.append(asyncio.get_running_loop())
            assert len(set(map(id, loops))) == 1
            return await asyncio.gather(*map(one, completions))
    """)
    with RewardProcess(f"{path}:f", 5) as process:
        assert values(run(process, ["a", "bcd"])) == [1.0, 3.0]
        assert values(run(process, ["ab"])) == [2.0]


def test_none_means_does_not_apply_and_numbers_of_all_kinds_are_read(write: Write) -> None:
    path = write("""
        import numpy
        from fractions import Fraction
        def f(completions):
            return [None, True, 3, 0.1, Fraction(1, 4), numpy.float32(0.5), numpy.int64(2), numpy.array(7.0)]
        def array(completions):
            return numpy.arange(len(completions))
    """)
    with RewardProcess(f"{path}:f", 20) as process:
        scores = run(process, ["x"] * 8)
        assert values(scores) == [None, 1.0, 3.0, 0.1, 0.25, 0.5, 2.0, 7.0]
        assert scores[0].parts == {} and scores[1].parts == {"f": 1.0}
    with RewardProcess(f"{path}:array", 20) as process:
        assert values(run(process, ["x"] * 3)) == [0.0, 1.0, 2.0]


def test_groups_become_one_call_with_messages_where_the_rows_are_conversations() -> None:
    chat = Prompt("c", ({"role": "user", "content": "why"},), {"answer": "x"})
    plain = Prompt("p", "why", {"level": 2})
    call = call_of([Group(chat, ("a", "b"), ((1,), (2, 3))), Group(plain, ("c",), ((4,),))])
    assert call.prompts == [[{"role": "user", "content": "why"}]] * 2 + ["why"]
    assert call.completions == [[{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": "b"}], "c"]
    assert call.columns == {"answer": ["x", "x", None], "level": [None, None, 2]}
    assert call.completion_ids == [(1,), (2, 3), (4,)]
    assert call.row_ids == ["c#0", "c#1", "p#0"]
    assert call.only(1) == Call(
        [call.prompts[1]], [call.completions[1]], [(2, 3)], {"answer": ["x"], "level": [None]}, ["c#1"]
    )
    assert call_of([Group(plain, ("c",))]).completion_ids is None


def test_columns_of_data_files_travel_and_reserved_names_are_refused(write: Write) -> None:
    import datetime
    import decimal

    import numpy

    path = write("""
        def f(completions, column, log_extra):
            log_extra("got", column)
            return [0.0] * len(completions)
    """)
    sent = [numpy.array([1, 2]), numpy.float32(0.5), datetime.date(2026, 1, 2), decimal.Decimal("0.5"), "\ud800", None]
    with RewardProcess(f"{path}:f", 5) as process:
        got = [score.extra["got"] for score in run(process, ["x"] * 6, {"column": sent})]
        assert got == [[1, 2], 0.5, "2026-01-02", 0.5, "\ud800", None]
        with pytest.raises(InputError, match="column 'completions': is the name of an argument"):
            run(process, ["x"], {"completions": ["y"]})
        with pytest.raises(InputError, match="holds bytes, which is not JSON"):
            run(process, ["x"], {"column": [b"raw"]})


def test_no_completions_no_call(write: Write) -> None:
    path = write("def f(completions):\n    raise ValueError\n")
    with RewardProcess(f"{path}:f", 5) as process:
        assert run(process, []) == []


# ---------------------------------------------------------------------------------------------------- wrong answers
@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("[1.0] * 7", "returned 7 values for 8 completions"),
        ("[1.0] * 9", "returned 9 values for 8 completions"),
        ("1.0", "returned float, expected a list of 8 numbers, one per completion"),
        ("None", "returned NoneType, expected a list of 8 numbers"),
        ("{'a': 1}", "returned dict, expected a list"),
        ("(1.0 for _ in completions)", "returned generator, expected a list"),
        (
            "[1.0] * 3 + ['good'] + [1.0] * 4",
            r"returned str 'good' for a completion, expected a number or None \(row r3\)",
        ),
        ("[{}] + [1.0] * 7", r"returned dict \{\} for a completion, expected a number or None \(row r0\)"),
        ("[1.0] * 7 + [float('nan')]", r"returned nan for a completion, expected a finite number \(row r7\)"),
        ("[0, -float('inf')] + [0] * 6", r"returned -inf for a completion, expected a finite number \(row r1\)"),
        ("[10 ** 400] + [0] * 7", r"returned 1000+ for a completion, expected a finite number \(row r0\)"),
        ("[1j] + [0] * 7", r"returned complex 1j for a completion"),
        (
            "[None] * 8",
            r"returned None for every completion, so nothing is rewarded \(rows r0, r1, r2, r3 and 4 more\)",
        ),
        ("log_extra('x', [1]) or [1.0] * 8", r"log_extra\('x'\) got 1 values for 8 completions"),
    ],
)
def test_what_is_not_a_reward_for_each_completion_is_an_error(write: Write, body: str, text: str) -> None:
    path = write(f"def f(completions, log_extra):\n    return {body}\n")
    with RewardProcess(f"{path}:f", 5) as process, pytest.raises(RewardError, match=f"^reward rewards.py:f: {text}"):
        run(process, ["x"] * 8)


def test_an_exception_names_the_users_own_last_line_and_the_row(write: Write) -> None:
    path = write("""
        import json
        def parse(text):
            return json.loads(text)["score"]
        def f(completions, **_):
            return [parse(text) for text in completions]
    """)
    with RewardProcess(f"{path}:f", 5) as process:
        good = '{"score": 1}'
        with pytest.raises(RewardError) as caught:
            run(process, [good, good, "not json\x1b[31m", good])
        assert str(caught.value).startswith(
            "reward rewards.py:f: json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0), "
            "at rewards.py:4 in parse (row r2). Fix:"
        )
        assert values(run(process, [good])) == [1.0]  # the process goes on


def test_an_exception_without_a_row_of_its_own_names_all_rows(write: Write) -> None:
    path = write("""
        def f(completions):
            if len(completions) > 1:
                raise RuntimeError("only together \\x1b[31m")
            return [1.0]
    """)
    with RewardProcess(f"{path}:f", 5) as process, pytest.raises(RewardError) as caught:
        run(process, ["a", "b"])
    assert "RuntimeError: only together  [31m, at rewards.py:4 in f (rows r0, r1)" in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_an_exit_is_an_error_too(write: Write) -> None:
    path = write("import sys\ndef f(completions):\n    sys.exit(0)\n")
    with (
        RewardProcess(f"{path}:f", 5) as process,
        pytest.raises(RewardError, match=r"SystemExit: 0, at rewards.py:3 in f"),
    ):
        run(process, ["a"])


def test_a_file_that_cannot_be_loaded_says_where(write: Write) -> None:
    path = write("import nothing_of_that_name\ndef f(completions): ...\n")
    with pytest.raises(RewardError) as caught, RewardProcess(f"{path}:f", 5):
        pass
    assert "cannot be loaded: ModuleNotFoundError: No module named 'nothing_of_that_name', at rewards.py:1" in str(
        caught.value
    )
    path = write("f = 3\n")
    with pytest.raises(RewardError, match="f is int, not a function"), RewardProcess(f"{path}:f", 5):
        pass
    path = write("while True: pass\ndef f(completions): ...\n")
    text = r"did not load within 1.5 s, at rewards.py:1 in <module>"
    with pytest.raises(RewardError, match=text), RewardProcess(f"{path}:f", 5, start_timeout=1.5):
        pass
