"""What a scoring process may not do: secrets, memory, the network; and the sandbox for what runs a model's text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from upslope.errors import InputError, MachineError, RewardError
from upslope.types import Prompt
from upslope.worlds.isolation import Isolation, Limits, environment, isolation
from upslope.worlds.reward_calls import RewardProcess
from upslope.worlds.rewards import Group, Part, RewardPanel, Score, score_groups

Write = Callable[[str], str]
MISSING = "" if "does not hold" in isolation().sandbox else isolation().sandbox  # a wall with a hole is no wall missing
needs_sandbox = pytest.mark.skipif(bool(MISSING), reason=MISSING)
needs_seccomp = pytest.mark.skipif(isolation().network != "seccomp", reason="no seccomp here")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def writer(text: str) -> str:
        path = tmp_path / "rewards.py"
        path.write_text(textwrap.dedent(text))
        return f"{path}:f"

    return writer


def run(process: RewardProcess, *completions: str) -> list[Score]:
    return process.score([""] * len(completions), completions, None, {}, [str(i) for i in range(len(completions))])


def extra(score: Score) -> dict[str, object]:
    return dict(score.extra)


# ---------------------------------------------------------------------------------------------------------- environment
def test_only_listed_variables_reach_a_scoring_process(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "ANYTHING", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("HF_HOME", "/somewhere")
    source = write("""
        import os, subprocess, sys
        def f(completions, log_extra):
            child = subprocess.check_output([sys.executable, "-c", "import os; print(*os.environ)"], text=True)
            log_extra("own", [sorted(os.environ)])
            log_extra("child", [child.split()])
            return [1.0]
    """)

    def own(completions, log_extra):  # type: ignore[no-untyped-def]
        import os

        log_extra("own", [sorted(os.environ)])
        return [1.0]

    with RewardProcess(source) as process:
        seen = extra(run(process, "a")[0])
    for names in seen.values():
        assert {"PATH", "HF_HOME"} <= set(names) and not any(  # type: ignore[call-overload]
            word in name
            for name in names
            for word in ("TOKEN", "KEY", "ANYTHING", "PROXY")  # type: ignore[attr-defined]
        )
    with RewardProcess(source, limits=Limits(environment=("OPENAI_API_KEY",), network=True)) as process:
        seen = extra(run(process, "a")[0])
    assert {"OPENAI_API_KEY", "HTTPS_PROXY"} <= set(seen["own"]) and "HF_TOKEN" not in seen["own"]  # type: ignore
    with RewardProcess(own) as process:  # a forked copy of this process
        assert "HF_TOKEN" not in extra(run(process, "a")[0])["own"]  # type: ignore[operator]
    assert os.environ["HF_TOKEN"] == "secret"


def test_the_environment_of_a_process() -> None:
    given = {"PATH": "p", "LC_ALL": "C", "PYTHONPATH": f"a{os.pathsep}{os.pathsep}b", "HF_TOKEN": "t", "HOME": "h"}
    assert environment(given, Limits()) == {
        "PATH": "p", "LC_ALL": "C", "PYTHONPATH": f"a{os.pathsep}b", "HOME": "h", "PYTHONHASHSEED": "0",
    }  # fmt: skip
    assert environment({**given, "PYTHONHASHSEED": "7"}, Limits())["PYTHONHASHSEED"] == "7"
    assert "HOME" not in environment(given, Limits(sandbox=True))


# --------------------------------------------------------------------------------------------------------------- memory
GREEDY = """
    held = []
    def f(completions):
        for text in completions:
            held.append(bytearray(int(text) << 20))
        return [1.0] * len(completions)
"""


@linux
def test_memory_is_limited_and_the_error_says_where(write: Write) -> None:
    with RewardProcess(write(GREEDY), limits=Limits(memory_mb=200)) as process:
        assert run(process, "50")[0].value == 1.0
        with pytest.raises(RewardError) as caught:
            run(process, "10", "500")
    assert (
        "MemoryError, at rewards.py:5 in f (row 1). Fix: make it take less, or raise reward.memory_mb (now 200)"
        in str(caught.value)
    )
    with RewardProcess(write(GREEDY), limits=Limits(memory_mb=None)) as process:
        assert run(process, "500")[0].value == 1.0


@linux
def test_memory_of_a_python_function_counts_from_what_this_process_has() -> None:
    ballast = bytearray(300 << 20)

    def own(completions: list[str]) -> list[float]:
        return [float(len(bytearray(int(text) << 20)) > 0) for text in completions]

    with RewardProcess(own, limits=Limits(memory_mb=200)) as process:
        assert run(process, "100")[0].value == 1.0
        with pytest.raises(RewardError, match="MemoryError"):
            run(process, "6000")  # far more than a test before this one may have freed and the fork may take again
    assert len(ballast) == 300 << 20


# -------------------------------------------------------------------------------------------------------------- network
ASKING = """
    import socket, urllib.request
    def f(completions):
        {body}
"""
LOUD = "urllib.request.urlopen('http://127.0.0.1:{port}/'); return [1.0]"
QUIET = """try:
            socket.create_connection(("127.0.0.1", {port}), timeout=1)
            return [1.0]
        except OSError:
            return [0.0]"""


@pytest.mark.parametrize(("body", "text"), [(LOUD, "urlopen error|PermissionError"), (QUIET, "asked for the network")])
def test_the_network_is_refused_and_never_a_silent_zero(write: Write, body: str, text: str) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        source = write(ASKING.format(body=body.format(port=port)))
        with RewardProcess(source) as process, pytest.raises(RewardError, match=text) as caught:
            run(process, "a")
        assert "Fix: set reward.network: true if it needs the network" in str(caught.value)
        server.settimeout(0.05)
        with pytest.raises(TimeoutError):
            server.accept()
        quiet = write(ASKING.format(body=QUIET.format(port=port)))
        with RewardProcess(quiet, limits=Limits(network=True)) as process:
            assert run(process, "a")[0].value == 1.0
        server.accept()[0].close()


@needs_seccomp
def test_programs_that_a_reward_starts_have_no_network_either(write: Write) -> None:
    source = write("""
        import subprocess, sys
        def f(completions):
            code = "import socket; socket.socket(socket.AF_INET)"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            return [float("PermissionError" in done.stderr)]
    """)
    with RewardProcess(source) as process:
        assert run(process, "a")[0].value == 1.0


def test_sockets_of_the_event_loop_and_of_this_machine_are_not_the_network(write: Write) -> None:
    source = write("""
        import asyncio, socket, subprocess, multiprocessing
        async def f(completions):
            a, b = socket.socketpair()
            await asyncio.sleep(0)
            child = await asyncio.create_subprocess_exec("true")
            return [float(await child.wait() == 0)] * len(completions)
    """)
    with RewardProcess(source) as process:
        assert run(process, "a")[0].value == 1.0


def test_where_the_kernel_does_not_help_pythons_own_sockets_are_refused(tmp_path: Path) -> None:
    code = """
        import socket, sys
        from upslope.worlds import isolation, kernel_walls
        def no(): raise kernel_walls.Refused("not here")
        kernel_walls.deny_network = no
        watch = isolation.confine(isolation.Limits(memory_mb=None))
        for attempt in (lambda: socket.socket(), lambda: socket.getaddrinfo("localhost", 80)):
            try:
                attempt()
            except PermissionError:
                print("refused", watch.tried)
        socket.socketpair()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["refused True"] * 2


# -------------------------------------------------------------------------------------------------------------- sandbox
RUNS = """
    import math
    def f(completions, log_extra, answer=None):
        results = []
        for text in completions:
            names = {}
            exec(text, names)
            results.append(names.get("result"))
        log_extra("result", results)
        return [1.0] * len(completions)
"""


def attack(payload: str, then: str) -> str:
    """A completion that tells whether ``payload`` came through, whatever stops it."""
    lines = textwrap.indent(textwrap.dedent(payload).strip(), "    ")
    return f"try:\n{lines}\n    result = {then!r}\nexcept BaseException as error:\n    result = type(error).__name__\n"


@needs_sandbox
def test_a_payload_can_neither_write_reach_read_secrets_nor_start_anything(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPSLOPE_CANARY", "canary-7d3")
    (tmp_path / "private").write_text("canary-7d3")
    marker, private = str(tmp_path / "marker"), str(tmp_path / "private")
    payloads = {
        "write": f"open({marker!r}, 'w').write('x')",
        "write here": "open('marker', 'w').write('x')",
        "write to tmp": "import tempfile; tempfile.mkstemp()",
        "write as os": f"import os; os.open({marker!r}, os.O_CREAT | os.O_WRONLY)",
        "make a folder": f"import os; os.mkdir({marker!r})",
        "remove": f"import os; os.remove({private!r})",
        "truncate": f"import os; os.truncate({private!r}, 0)",
        "read": f"open({private!r}).read()",
        "read parent": "import os; open(f'/proc/{os.getppid()}/environ', 'rb').read()",
        "read memory": "import os; open(f'/proc/{os.getppid()}/mem', 'rb').read(1)",
        "passwords": "open('/etc/passwd').read()",
        "socket": "import socket; socket.create_connection(('127.0.0.1', 9))",
        "local socket": "import socket; socket.socket(socket.AF_UNIX).connect('/run/x')",
        "program": "import subprocess; subprocess.run(['true'])",
        "shell": f"import os\nif os.system('touch {marker}') != 0: raise PermissionError",
        "fork": "import os\nwhile True: os.fork()",
        "threads may, processes may not": "import multiprocessing as m; m.get_context('fork').Process().start()",
        "kill parent": "import os; os.kill(os.getppid(), 9)",
        "kill group": "import os; os.killpg(0, 9)",
        "limits": "import resource as r; r.setrlimit(r.RLIMIT_AS, (r.RLIM_INFINITY, r.RLIM_INFINITY))",
        "trace": "import ctypes, os\nif ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) < 0: raise PermissionError",
    }
    texts = [attack(payload, "came through") for payload in payloads.values()]
    secret = "import os; result = [name for name, value in os.environ.items() if 'canary' in value.lower()]"
    with RewardProcess(write(RUNS), limits=Limits(sandbox=True)) as process:
        scores = run(process, *texts, secret, "result = math_is_there = __import__('math').sqrt(9)")
        alive = run(process, "result = 1")[0]
    results = {name: score.extra["result"] for name, score in zip(payloads, scores, strict=False)}
    assert results.pop("limits") in ("PermissionError", "ValueError")
    assert set(results.values()) == {"PermissionError"}, results
    assert scores[-2].extra["result"] == [] and scores[-1].extra["result"] == 3.0 and alive.value == 1.0
    assert not (tmp_path / "marker").exists() and (tmp_path / "private").read_text() == "canary-7d3"


@needs_sandbox
def test_the_same_payloads_come_through_outside_the_sandbox(write: Write, tmp_path: Path) -> None:
    """So that the test above cannot pass for another reason."""
    marker = tmp_path / "marker"
    texts = [
        attack(f"open({str(marker)!r}, 'w').write('x')", "came through"),
        attack("import os; open(f'/proc/{os.getppid()}/environ', 'rb').read()", "came through"),
        attack("import os; os.kill(os.getppid(), 0)", "came through"),
        attack("import subprocess; subprocess.run(['true'])", "came through"),
    ]
    with RewardProcess(write(RUNS)) as process:
        assert [score.extra["result"] for score in run(process, *texts)] == ["came through"] * 4
    assert marker.exists()


@needs_sandbox
def test_a_payload_leaves_nothing_behind_for_the_next_call(write: Write) -> None:
    with RewardProcess(write(RUNS), limits=Limits(sandbox=True)) as process:
        run(process, "import sys; sys.modules['math'].sqrt = lambda x: 'mine'")
        assert run(process, "import math; result = math.sqrt(4)")[0].extra["result"] == 2.0


@needs_sandbox
@pytest.mark.parametrize(
    ("payload", "text"),
    [
        ("while True: pass", r"no answer within 0.6 s"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", r"its sandboxed call ended \(killed by SIGSEGV\)"),
        ("import os; os._exit(0)", r"its sandboxed call ended \(no answer\)"),
        ("[bytearray(1 << 30) for _ in range(64)]", r"MemoryError"),
        (
            "import sys; [sys.stdout.write('x' * (1 << 20)) for _ in range(64)]; sys.stdout.flush()",
            r"OSError|too large",
        ),
        ("raise SystemExit", r"SystemExit"),
    ],
)
def test_a_payload_that_hangs_crashes_or_floods_is_an_error(
    write: Write, payload: str, text: str, tmp_path: Path
) -> None:
    limits, log = Limits(sandbox=True, memory_mb=500), tmp_path / "log"
    with RewardProcess(write(RUNS), timeout=0.6 if "while" in payload else 20, limits=limits, log=log) as process:
        started = time.monotonic()
        with pytest.raises(RewardError, match=text):
            run(process, payload)
        assert time.monotonic() - started < 10
        assert run(process, "result = 1")[0].value == 1.0
    assert log.stat().st_size < 40 << 20


@needs_sandbox
@pytest.mark.parametrize(
    "reply",
    [
        "nonsense\n", "[1]\n", '{"values": [NaN], "extra": {}, "metrics": {}}\n',
        '{"values": [1, 1], "extra": {}, "metrics": {}}\n', '{"values": ["a"], "extra": {}, "metrics": {}}\n',
        '{"values": [1], "extra": {"a": 3}, "metrics": {}}\n', '{"values": [1], "extra": {}, "metrics": {"m": []}}\n',
        "[" * 100_000 + "\n", "",
    ],
)  # fmt: skip
def test_a_forged_reply_is_an_error_and_not_a_score(write: Write, reply: str) -> None:
    forge = f"""
        import os
        for descriptor in range(3, 64):
            try:
                os.write(descriptor, {reply!r}.encode())
            except OSError:
                pass
        os._exit(0)
    """
    with (
        RewardProcess(write(RUNS), limits=Limits(sandbox=True)) as process,
        pytest.raises(RewardError, match="tried twice"),
    ):
        run(process, textwrap.dedent(forge))


@needs_sandbox
def test_async_functions_columns_and_prints_work_in_the_sandbox(write: Write, tmp_path: Path) -> None:
    source = write("""
        import asyncio
        async def f(completions, answer, log_metric, completion_ids):
            print("scoring")
            await asyncio.sleep(0.01)
            log_metric("m", 2.0)
            return [float(eval(c) == a) for c, a in zip(completions, answer)]
    """)
    log = tmp_path / "log"
    with RewardPanel([Part(source, sandbox=True)], log=log) as panel:
        group = Group(Prompt("1", "p", {"answer": 4}), ("2 + 2", "5"), ((1,), (2,)))
        scores, _ = score_groups(panel, [group], "stop")
        assert [score.value for score in scores[0] or ()] == [1.0, 0.0] and panel.take_metrics() == {"m": 2.0}
    assert log.read_text() == "scoring\n"


@needs_sandbox
def test_a_sandboxed_function_that_wants_a_file_is_told_what_to_do(write: Write, tmp_path: Path) -> None:
    (tmp_path / "words").write_text("a b")
    read = f"open({str(tmp_path / 'words')!r}).read()"
    late = write(f"def f(completions):\n    return [float(c in {read}) for c in completions]\n")
    told = "its calls run in a sandbox: let it read files when it is loaded"
    with RewardProcess(late, limits=Limits(sandbox=True)) as process, pytest.raises(RewardError, match=told):
        run(process, "a")
    early = write(f"words = {read}\ndef f(completions):\n    return [float(c in words) for c in completions]\n")
    with RewardProcess(early, limits=Limits(sandbox=True)) as process:
        assert run(process, "a")[0].value == 1.0


def test_a_python_function_cannot_be_sandboxed() -> None:
    def own(completions: list[str]) -> list[float]:
        return [1.0]

    with pytest.raises(InputError, match="put it into a file and give"):
        RewardPanel([Part(own, sandbox=True)])


# ---------------------------------------------------------------------------------------------- what this machine holds
def test_isolation_says_what_holds_here() -> None:
    found = isolation()
    assert isinstance(found, Isolation) and len(found.lines) == 4
    if sys.platform.startswith("linux"):
        assert found.memory
    assert [holds for _, holds, _ in found.lines] == [True, found.memory, found.network == "seccomp", not found.sandbox]
    refused = Isolation(False, "python", "this kernel has no Landlock")
    assert refused.lines[3][1:] == (False, "this kernel has no Landlock")


@needs_sandbox
def test_where_the_kernel_refuses_a_wall_nothing_is_scored(write: Write) -> None:
    """A filter that refuses Landlock's calls, as an old kernel does, put around a whole program."""
    code = f"""
        import errno
        from upslope.errors import MachineError
        from upslope.worlds import kernel_walls as walls
        from upslope.worlds.isolation import Limits, isolation
        from upslope.worlds.reward_calls import RewardProcess
        refuse = [(0x15, 0, 1, 444), (0x06, 0, 0, 0x50000 | errno.ENOSYS), (0x06, 0, 0, 0x7FFF0000)]
        walls._load(refuse)
        try:
            RewardProcess({write(RUNS)!r}, limits=Limits(sandbox=True)).__enter__()
        except MachineError as error:
            print(error)
        print(isolation().sandbox)
        with RewardProcess({write(RUNS)!r}) as process:
            print(process.score([""], ["x = 1"], None, {{}}, ["0"])[0].value)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    first, second, third = done.stdout.strip().split("\n")
    assert first.startswith(
        "reward rewards.py:f: runs what the model wrote, so it needs the sandbox, and there is none here"
    )
    assert "no Landlock" in first and "no Landlock" in second and third == "1.0"


@needs_sandbox
@pytest.mark.parametrize("wall", ["allow_only_computing", "allow_reading_only"])
def test_the_trial_notices_a_missing_wall(wall: str) -> None:
    code = f"""
        from upslope.worlds import isolation, kernel_walls
        kernel_walls.{wall} = lambda *given: None
        try:
            isolation.rehearse(isolation.Limits(sandbox=True))
        except OSError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    missed = {"allow_only_computing": "start a process", "allow_reading_only": "read a file, read another process"}[
        wall
    ]
    assert "the sandbox does not hold on this machine" in done.stdout and missed in done.stdout


def test_the_report_of_a_trial_is_json() -> None:
    from upslope.worlds import reward_worker

    command = [sys.executable, "-P", reward_worker.__file__, json.dumps({"probe": True})]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout)) == {"memory", "network", "sandbox"}


def test_a_machine_error_is_no_input_error() -> None:
    assert MachineError("a", "b", "c").exit_code == 3
