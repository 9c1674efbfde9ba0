"""Reward functions: what they are called with, what they may return, and every way in which they fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from upslope.errors import InputError, RewardError
from upslope.types import Prompt
from upslope.worlds.reward_process import Lost, start_file
from upslope.worlds.rewards import (
    Call,
    Failure,
    Group,
    RewardProcess,
    Score,
    call_of,
    check_source,
    score_groups,
)

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def writer(text: str) -> Path:
        path = tmp_path / "rewards.py"
        path.write_text(textwrap.dedent(text))
        return path

    return writer


def run(process: RewardProcess, completions: list, columns: dict | None = None, ids: list | None = None) -> list[Score]:
    names = [f"r{index}" for index in range(len(completions))]
    return process.score(["p"] * len(completions), completions, ids, columns or {}, names)


def values(scores: list[Score]) -> list[float | None]:
    return [score.value for score in scores]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone_within(pid: int, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not alive(pid)


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


# --------------------------------------------------------------------------------------------------- hangs and crashes
HANGS = {
    "loops": ("while True: pass", 2),
    "sleeps": ("import time; time.sleep(60)", 2),
    "in_c": ("import re; re.match(r'(a+)+$', 'a' * 50 + 'b')", 2),
    "ignores": ("import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)", 2),
}


@pytest.mark.parametrize("name", HANGS)
def test_a_hang_is_killed_in_time_tried_twice_and_its_line_named(write: Write, name: str) -> None:
    body, line = HANGS[name]
    path = write(f"def f(completions):\n    {body}\n")
    timeout = 0.3
    with RewardProcess(f"{path}:f", timeout) as process:
        call = call_of([Group(Prompt("7", "p"), ("a", "b"))])
        started = time.monotonic()
        with pytest.raises(RewardError) as caught:
            process.score(call.prompts, call.completions, None, {}, call.row_ids)
        assert 2 * timeout <= time.monotonic() - started < 2 * (timeout + 1)
    where = (
        f"reward rewards.py:f: no answer within 0.3 s, at rewards.py:{line} in f, tried twice (rows 7#0, 7#1). Fix: "
    )
    assert str(caught.value).startswith(where)


def test_an_async_hang_names_the_line_that_waits(write: Write) -> None:
    path = write("""
        import asyncio
        async def judge(text):
            await asyncio.sleep(0 if text == "a" else 60)
            return 1.0
        async def f(completions):
            return await asyncio.gather(*[judge(text) for text in completions])
    """)
    with RewardProcess(f"{path}:f", 0.4) as process, pytest.raises(RewardError, match=r"at rewards.py:4 in judge"):
        run(process, ["a", "b"])


def test_a_hang_that_passes_is_scored_by_the_second_try(write: Write, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = write(f"""
        import pathlib, time
        def f(completions):
            if not pathlib.Path({str(mark)!r}).exists():
                pathlib.Path({str(mark)!r}).touch()
                time.sleep(60)
            return [1.0] * len(completions)
    """)
    with RewardProcess(f"{path}:f", 0.4) as process:
        assert values(run(process, ["a", "b"])) == [1.0, 1.0]


def test_a_killed_hang_takes_its_children_along(write: Write, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    path = write(f"""
        import os, subprocess, time
        def f(completions):
            child = subprocess.Popen(["sleep", "60"])
            forked = os.fork()
            if forked:
                with open({str(pids)!r}, "a") as file:
                    print(os.getpid(), child.pid, forked, file=file)
            time.sleep(60)
    """)
    child = start_file(str(path), "f", (), None)
    assert child.exchange(b"", 10) == {"ready": True, "network": False}
    request = {"prompts": ["p"], "completions": ["c"], "completion_ids": None, "columns": {}}
    assert isinstance(child.exchange(json.dumps(request).encode() + b"\n", 0.5), Lost)
    found = [int(pid) for pid in pids.read_text().split()]
    assert len(found) == 3
    assert all(gone_within(pid, 1) for pid in found)
    child.close()


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (
            "print('last words'); os._exit(3)",
            r"its process ended \(exit code 3\) after 0.\d s; it last said: last words, tried twice",
        ),
        ("os.kill(os.getpid(), 9)", r"its process ended \(killed by SIGKILL\) after 0.\d s, tried twice"),
        (
            "import ctypes; ctypes.string_at(0)",
            r"\(killed by SIGSEGV\) after \d.\d s, at rewards.py:3 in f, tried twice",
        ),
    ],
)
def test_a_crash_is_an_error_with_its_cause(write: Write, body: str, text: str) -> None:
    path = write(f"import os\ndef f(completions):\n    {body}\n")
    with RewardProcess(f"{path}:f", 5) as process, pytest.raises(RewardError, match=text):
        run(process, ["a"])


def test_a_fork_that_comes_back_answers_once(write: Write) -> None:
    path = write(
        "import os\ncount = 0\ndef f(completions):\n    os.fork()\n    return [float(len(c)) for c in completions]\n"
    )
    with RewardProcess(f"{path}:f", 5) as process:
        assert [values(run(process, ["a" * n])) for n in range(1, 6)] == [[1.0], [2.0], [3.0], [4.0], [5.0]]


def test_no_worker_outlives_its_parent(write: Write, tmp_path: Path) -> None:
    path = write(f"""
        import os, time
        def f(completions):
            open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
            if completions == ["hang"]:
                os.rename({str(tmp_path / "pid")!r}, {str(tmp_path / "hanging")!r})
                while True: pass
            return [1.0]
    """)
    for completions, mark in ((["hang"], "hanging"), (["go"], "pid")):
        code = (
            "import sys, time\nfrom upslope.worlds.rewards import RewardProcess\n"
            f"process = RewardProcess({f'{path}:f'!r}, 60)\n"
            f"process.score(['p'], {completions!r}, None, {{}}, ['r'])\ntime.sleep(60)\n"
        )
        parent = subprocess.Popen([sys.executable, "-c", code])
        try:
            until = time.monotonic() + 10
            while not ((tmp_path / mark).exists() and (tmp_path / mark).read_text()) and time.monotonic() < until:
                time.sleep(0.02)
            worker = int((tmp_path / mark).read_text())
            assert alive(worker)
        finally:
            parent.send_signal(signal.SIGKILL)
            parent.wait()
        assert gone_within(worker, 2), mark


def test_an_interrupted_call_does_not_answer_the_next_one(write: Write) -> None:
    path = write(
        "import time\ndef f(completions):\n    time.sleep(0.3)\n    return [float(len(c)) for c in completions]\n"
    )

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with RewardProcess(f"{path}:f", 5) as process:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(KeyboardInterrupt):
                run(process, ["one"])
            again = process.attempt(call_of([Group(Prompt("1", "p"), ("eleven",))]))
            assert isinstance(again, list) and values(again) == [6.0]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ------------------------------------------------------------------------------------------------------- its own room
def test_prints_go_to_the_log_and_the_protocol_stays_whole(write: Write, tmp_path: Path) -> None:
    path = write("""
        import os, sys
        def f(completions):
            print('{"values": [9]}')
            sys.stderr.write("to stderr\\n")
            os.system("echo from a program")
            os.write(1, b"raw")
            os.chdir("/")
            return [0.5] * len(completions)
    """)
    log = tmp_path / "reward.log"
    here = os.getcwd()
    with RewardProcess(f"{path}:f", 5, log=log) as process:
        assert values(run(process, ["a"])) == [0.5]
        assert values(run(process, ["a", "b"])) == [0.5, 0.5]
    for text in ('{"values": [9]}', "to stderr", "from a program", "raw"):
        assert log.read_text().count(text) == 2
    assert os.getcwd() == here


@pytest.mark.parametrize("python_path", [None, "", os.pathsep])
def test_a_hostile_module_in_the_working_folder_is_not_imported(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python_path: str | None
) -> None:
    path = write("import json, helper_beside\ndef f(completions): ...\n")
    (tmp_path / "helper_beside.py").write_text("")
    for name in ("json", "asyncio", "numbers"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    if python_path is None:
        monkeypatch.delenv("PYTHONPATH", raising=False)
    else:
        monkeypatch.setenv("PYTHONPATH", python_path)
    with pytest.raises(RewardError, match="No module named 'helper_beside'"), RewardProcess(f"{path}:f", 5):
        pass
    path = write("import arithmetic\ndef f(completions): ...\n")  # the folder of our own script is closed to it too
    with pytest.raises(RewardError, match="No module named 'arithmetic'"), RewardProcess(f"{path}:f", 5):
        pass
    assert not (tmp_path / "marker").exists()


def test_sets_of_text_have_one_order_in_every_process(write: Write) -> None:
    path = write("def f(completions, log_extra):\n    log_extra('o', [list(set('abcdefgh'))])\n    return [0.0]\n")
    orders = []
    for _ in range(2):
        with RewardProcess(f"{path}:f", 5) as process:
            orders.append(run(process, ["a"])[0].extra["o"])
    assert orders[0] == orders[1]


def test_worker_needs_only_the_standard_library_and_this_package_for_its_own_rewards() -> None:
    worker = Path(sys.modules["upslope.worlds.rewards"].__file__ or "").with_name("reward_worker.py")
    check = "sys.exit(any(name in sys.modules for name in ('numpy', 'upslope')))"
    code = f"import sys, runpy\nrunpy.run_path({str(worker)!r})\n{check}"
    assert subprocess.run([sys.executable, "-I", "-S", "-c", code], check=False).returncode == 0
    with RewardProcess("upslope.worlds.arithmetic:exact_match", 5, "exact") as process:
        assert values(run(process, ["60", "6"], {"answer": ["60", "60"]})) == [1.0, 0.0]


# ----------------------------------------------------------------------------------------------------- Python functions
def test_a_closure_runs_in_a_forked_child_without_pickling() -> None:
    seen: list[int] = []
    opened = open(os.devnull)  # noqa: SIM115 (cannot be pickled, which is the point)

    def closure(completions: list[str], answer: list[str]) -> list[float]:
        seen.append(os.getpid())
        assert not opened.closed
        print("not on our screen")
        return [float(c == a) for c, a in zip(completions, answer, strict=True)]

    with RewardProcess(closure, 5) as process:
        assert values(run(process, ["a", "b"], {"answer": ["a", "a"]})) == [1.0, 0.0]
        assert process.name == process.where == "closure"
    assert seen == []
    opened.close()


def test_a_python_functions_failures_are_named_like_a_files(capfd: pytest.CaptureFixture) -> None:
    def raises(completions: list[str]) -> list[float]:
        return [1 / len(c) for c in completions]

    async def hangs(completions: list[str]) -> list[float]:
        import asyncio

        await asyncio.sleep(60)
        return []

    def dies(completions: list[str]) -> list[float]:
        print("dying")
        os._exit(4)

    line = raises.__code__.co_firstlineno
    with (
        RewardProcess(raises, 5) as process,
        pytest.raises(RewardError, match=rf"division by zero, at test_rewards.py:{line + 1} in .*row r1"),
    ):
        run(process, ["a", ""])
    line = hangs.__code__.co_firstlineno
    with (
        RewardProcess(hangs, 0.4) as process,
        pytest.raises(RewardError, match=rf"no answer within 0.4 s, at test_rewards.py:{line + 3} in hangs"),
    ):
        run(process, ["a"])
    with RewardProcess(dies, 5) as process, pytest.raises(RewardError, match=r"exit code 4.*it last said: dying"):
        run(process, ["a"])
    assert "dying" not in capfd.readouterr().out


def test_a_forked_child_computes_with_torch_beside_a_busy_parent() -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.randn(400, 400) @ torch.randn(400, 400)  # starts the parent's thread pool

        def sums(completions: list[str]) -> list[float]:
            return [float((torch.ones(400, 400) @ torch.ones(400, 400)).sum()) for _ in completions]

        with RewardProcess(sums, 5) as process:
            assert values(run(process, ["a"])) == [400.0**3]
    finally:
        torch.set_num_threads(before)


def test_two_forked_processes_do_not_hold_each_others_pipes() -> None:
    first = RewardProcess(lambda completions: [1.0] * len(completions), 5)
    second = RewardProcess(lambda completions: [2.0] * len(completions), 5)
    with first, second:
        assert (values(run(first, ["a"])), values(run(second, ["a"]))) == ([1.0], [2.0])
        started = time.monotonic()
        first.close()
        assert time.monotonic() - started < 0.5  # it saw the end at once; it was not waited for, then killed
        assert values(run(second, ["a"])) == [2.0]


# --------------------------------------------------------------------------------------------------------------- groups
GROUPS = [Group(Prompt(str(index), f"prompt {index}", {"index": index}), ("a", "bb")) for index in range(4)]
GROUP_SOURCE = """
    import pathlib, time
    calls = pathlib.Path(__file__).with_name("calls")
    def log(index):
        with calls.open("a") as file:
            print(len(index), file=file)
    def fine(completions, index):
        log(index)
        return [10.0 * i + len(c) for c, i in zip(completions, index)]
    def raises(completions, index):
        return [10.0 * i + (len(c) if i != 2 or c == "a" else 1 / 0) for c, i in zip(completions, index)]
    def hangs(completions, index):
        if 1 in index:
            time.sleep(60)
        return fine(completions, index)
    def shy(completions, index):
        if 3 in index and len(set(index)) > 1:
            raise RuntimeError("not together")
        return [None if i == 0 else 1.0 for i in index]
    def never(completions, index):
        return [None] * len(index)
"""


def group_values(result: list[list[Score] | None]) -> list[list[float | None] | None]:
    return [None if scores is None else values(scores) for scores in result]


def test_healthy_groups_take_one_call(write: Write, tmp_path: Path) -> None:
    path = write(GROUP_SOURCE)
    with RewardProcess(f"{path}:fine", 5) as process:
        result, dropped = score_groups(process, GROUPS, "stop")
    assert group_values(result) == [[1.0, 2.0], [11.0, 12.0], [21.0, 22.0], [31.0, 32.0]]
    assert dropped == []
    assert (tmp_path / "calls").read_text().split() == ["8"]


def test_a_raising_group_stops_with_its_row_or_is_dropped_alone(write: Write) -> None:
    path = write(GROUP_SOURCE)
    with RewardProcess(f"{path}:raises", 5) as process:
        result, dropped = score_groups(process, GROUPS, "drop_group")
        assert group_values(result) == [[1.0, 2.0], [11.0, 12.0], None, [31.0, 32.0]]
        assert [index for index, _ in dropped] == [2]
        assert "ZeroDivisionError" in dropped[0][1] and "(row 2#1)" in dropped[0][1]
        with pytest.raises(RewardError, match=r"division by zero, at rewards.py:11 in .*\(row 2#1\)"):
            score_groups(process, GROUPS, "stop")


def test_a_hanging_group_is_found_in_a_fresh_process(write: Write) -> None:
    path = write(GROUP_SOURCE)
    with RewardProcess(f"{path}:hangs", 0.4) as process:
        started = time.monotonic()
        result, dropped = score_groups(process, GROUPS, "drop_group")
        assert time.monotonic() - started < 2 * (0.4 + 1) + 1
        assert group_values(result) == [[1.0, 2.0], None, [21.0, 22.0], [31.0, 32.0]]
        assert [index for index, _ in dropped] == [1]
        assert "no answer within 0.4 s, at rewards.py:14 in hangs" in dropped[0][1] and "1#0, 1#1" in dropped[0][1]
        with pytest.raises(RewardError, match=r"no answer within 0.4 s.*\(rows 1#0, 1#1\)"):
            score_groups(process, GROUPS, "stop")


def test_a_group_that_the_function_does_not_apply_to_is_no_culprit(write: Write) -> None:
    path = write(GROUP_SOURCE)
    with RewardProcess(f"{path}:shy", 5) as process:
        for groups in (GROUPS[:3], GROUPS):  # in one call; and one by one, since four together raise
            result, dropped = score_groups(process, groups, "stop")
            assert group_values(result) == [[None, None], *[[1.0, 1.0]] * (len(groups) - 1)]
            assert dropped == []


def test_a_function_that_never_applies_drops_or_stops(write: Write) -> None:
    path = write(GROUP_SOURCE)
    with RewardProcess(f"{path}:never", 5) as process:
        result, dropped = score_groups(process, GROUPS, "drop_group")
        assert result == [None] * 4
        assert [index for index, _ in dropped] == [0, 1, 2, 3]
        assert all("returned None for every completion" in reason for _, reason in dropped)
        with pytest.raises(RewardError, match="returned None for every completion"):
            score_groups(process, GROUPS, "stop")
        assert score_groups(process, [], "stop") == ([], [])


def test_values_cross_the_pipe_exactly_and_large_calls_too(write: Write) -> None:
    path = write("import json\ndef f(completions):\n    return [json.loads(c)[0] for c in completions]\n")
    numbers = [0.1 + 0.2, 1e-308, -1 / 3, 5e-324, 1.7976931348623157e308]
    texts = [json.dumps([number, "x" * 400_000]) for number in numbers]  # far above what a pipe holds
    with RewardProcess(f"{path}:f", 20) as process:
        assert values(run(process, texts)) == numbers


def test_a_process_that_does_not_read_is_killed_in_time(write: Write) -> None:
    path = write("import os\ndef f(completions, log_extra):\n    log_extra('pid', [os.getpid()])\n    return [0.0]\n")
    with RewardProcess(f"{path}:f", 0.4) as process:
        os.kill(run(process, ["a"])[0].extra["pid"], signal.SIGSTOP)
        started = time.monotonic()
        failure = process.attempt(call_of([Group(Prompt("1", "p"), ("x" * 3_000_000,))]))
        assert isinstance(failure, Failure) and failure.kind == "hung"
        assert time.monotonic() - started < 1.4
        assert values(run(process, ["a"])) == [0.0]
