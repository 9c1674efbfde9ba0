"""Runs named checks on a copy of the project, again and again: a process that has torch and transformers loaded and
forks a child for each run. The child imports upslope anew, from the copy, under the same pytest settings as ever; so a
run costs about a second instead of the ten that a fresh interpreter needs for its imports.

This file is the server (``python forge.py``: jobs and results are lines of JSON) and must not import upslope.
``workshop.py`` is the client.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any


class Watch:
    """A pytest plugin that keeps what failed, and how many checks passed."""

    def __init__(self) -> None:
        self.failed: list[dict[str, str]] = []
        self.passed = 0

    def pytest_runtest_makereport(self, item: Any, call: Any) -> None:
        if call.excinfo is None:
            self.passed += call.when == "call"
        elif call.excinfo.typename not in ("Skipped", "XFailed"):
            lines = str(call.excinfo.value).strip().splitlines() or [""]
            kinds = [kind.__name__ for kind in call.excinfo.type.__mro__]
            self.failed.append(
                {"check": item.nodeid, "when": call.when, "kinds": " ".join(kinds), "said": lines[0][:200]}
            )


def work(job: dict[str, Any]) -> dict[str, Any]:
    """In the child: pytest on ``checks`` inside ``root``; what failed, and from where the changed files came."""
    import pytest
    from hypothesis import Phase, settings

    # The first failing example will do: no time is spent on a smaller one.
    settings.register_profile("planted", phases=[Phase.explicit, Phase.generate], database=None, deadline=None)
    settings.load_profile("planted")
    root = job["root"]
    os.chdir(root)
    here = Path(__file__).resolve().parent
    sys.path[:] = [root, *(entry for entry in sys.path if entry and Path(entry).resolve() != here)]
    os.environ["PYTHONPATH"] = root
    sys.dont_write_bytecode = bool(job["changed"])
    watch = Watch()
    # pytest's own time limit goes by the clock: see ``forked``.
    quiet = ["-x", "-q", "--tb=short", "--disable-warnings", "-p", "no:cacheprovider", "-o", "timeout=0"]
    code = int(pytest.main([*quiet, "--hypothesis-seed=0", "-m", job["marks"], *job["checks"]], plugins=[watch]))
    loaded = {}
    for name in ["upslope/__init__.py", *job["changed"]]:
        module = sys.modules.get(name.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
        loaded[name] = None if module is None else os.path.realpath(str(module.__file__))
    return {"code": code, "failed": watch.failed, "passed": watch.passed, "loaded": loaded}


def forked(job: dict[str, Any]) -> dict[str, Any]:
    """``work`` in a child. ``late``: it used ``timeout`` seconds of CPU, which a busy machine does not change.
    ``stuck``: it took ten times as long by the clock, or ended without an answer; that says nothing of the checks.
    """
    begun = time.monotonic()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            os.setpgid(0, 0)
            limit = math.ceil(job["timeout"])
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
            log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            for stream, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
                os.dup2(source, stream)
            answer = json.dumps(work(job)).encode()
            sys.stdout.flush()
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(answer)
        finally:
            os._exit(0)
    os.close(writer)
    os.set_blocking(reader, False)
    pieces: list[bytes] = []
    ended = 0
    while not ended:
        pieces.append(_some(reader))
        if time.monotonic() - begun > 10 * job["timeout"]:
            os.kill(child, signal.SIGKILL)
        ended, status, _ = os.wait4(child, os.WNOHANG)
        time.sleep(0.01)
    pieces.append(_some(reader))
    os.close(reader)
    seconds = {"seconds": time.monotonic() - begun}
    late = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU
    text = b"".join(pieces)
    if late or not text:
        return {"code": -1, "failed": [], "passed": 0, "loaded": {}, "late": late, "stuck": not late, **seconds}
    return {**json.loads(text), "late": False, "stuck": False, **seconds}


def _some(reader: int) -> bytes:
    try:
        return os.read(reader, 1 << 20)
    except BlockingIOError:
        return b""


def serve() -> None:
    """One job a line from standard input, one result a line to standard output."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print while they load is no result
    import beartype
    import hypothesis
    import jaxtyping
    import pydantic
    import pytest
    import safetensors.torch
    import torch
    import transformers
    from transformers import Gemma3ForCausalLM, LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM

    torch.set_num_threads(1)
    loaded = [beartype, hypothesis, jaxtyping, pydantic, pytest, safetensors, transformers, Gemma3ForCausalLM]
    loaded += [LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM]
    if len(loaded) < 12 or "upslope" in sys.modules:
        raise RuntimeError("the server must load the libraries and must not load upslope")
    for line in sys.stdin:
        out.write(json.dumps(forked(json.loads(line))) + "\n")
        out.flush()


if __name__ == "__main__":
    serve()
