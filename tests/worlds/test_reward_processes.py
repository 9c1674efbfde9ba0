"""The process of a reward function: hangs, crashes, its own room, forks of this process, what crosses the pipe."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.worlds.reward_support import Write, run, values, write
from upslope.errors import RewardError
from upslope.types import Prompt
from upslope.worlds.reward_process import Lost, start_file
from upslope.worlds.rewards import Failure, Group, RewardProcess, call_of

__all__ = ["write"]
HERE = Path(__file__).name


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
        pytest.raises(RewardError, match=rf"division by zero, at {HERE}:{line + 1} in .*row r1"),
    ):
        run(process, ["a", ""])
    line = hangs.__code__.co_firstlineno
    with (
        RewardProcess(hangs, 0.4) as process,
        pytest.raises(RewardError, match=rf"no answer within 0.4 s, at {HERE}:{line + 3} in hangs"),
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


# ------------------------------------------------------------------------------------------------------------ the pipe
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
