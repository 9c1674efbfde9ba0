"""Every bad input gets an answer that names where, what and the fix; the fix is applied, and the run starts."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import time
from collections.abc import Iterator

import pytest

from tests import tiny
from tests.inputs import messages
from tests.inputs.bad_inputs import COUNT, INPUTS, ident
from tests.inputs.desk import Desk, desk, models
from tests.inputs.table import Bad
from tests.recipes.support import one_thread

__all__ = ["desk", "models", "one_thread"]
SECONDS = 5.0
UNSAFE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def spent() -> float:
    """Seconds of work by this process and its children: on a busy machine the clock says more."""
    return sum(os.times()[:4])


WRITE = os.environ.get("UPSLOPE_MESSAGES") == "write"
MESSAGES: dict[int, str] = {} if WRITE else messages.read()
"""What docs/messages.md shows, by number."""


@pytest.fixture(scope="module", autouse=True)
def page() -> Iterator[None]:
    """Makes the page anew where that is asked for."""
    yield
    if WRITE:
        messages.PAGE.write_text(messages.markdown(MESSAGES), "utf-8")


RAN: set[str] = set()
"""Desks that were run after a fix: many fixes lead to the same one."""


def fingerprint(desk: Desk, row: Bad, more: list[str]) -> str:
    """Everything that the command would read, and the command; what the test changed in the process makes it unique."""
    desk.write()
    digest = hashlib.sha256(repr((row.then, more, row.make.__name__ if row.note else "")).encode())
    for path in sorted(desk.folder.rglob("*")):
        if path.is_file() and not path.relative_to(desk.folder).parts[0].startswith("__"):
            content = path.read_bytes()
            if path.name == "run.json":  # the failed attempt's: times and an id
                content = b"a run"
            digest.update(repr((str(path.relative_to(desk.folder)), content)).encode())
    return digest.hexdigest()


def run(desk: Desk, command: str, *more: str) -> tuple[int, str]:
    desk.write()
    code, out, err = desk.upslope(*shlex.split(command), *more)
    return code, out + err


def test_the_table_has_every_number() -> None:
    assert {row.number for row in INPUTS} == set(range(1, COUNT + 1))
    assert len({ident(row) for row in INPUTS}) == len(INPUTS) > 100


@pytest.mark.skipif(WRITE, reason="the page is being made")
def test_the_page_shows_every_number_and_how_many_forms_there_are() -> None:
    assert set(MESSAGES) == set(range(1, COUNT + 1)), (
        "make it by UPSLOPE_MESSAGES=write pytest tests/inputs/test_bad_inputs.py"
    )
    assert messages.PAGE.read_text("utf-8") == messages.markdown(MESSAGES)


@pytest.mark.parametrize("row", INPUTS, ids=ident)
def test_a_bad_input_is_named_and_its_fix_works(desk: Desk, row: Bad) -> None:
    mend = row.make(desk)
    begun, clock = spent(), time.monotonic()
    code, said = run(desk, row.command)
    worked, waited = spent() - begun, time.monotonic() - clock
    assert code == row.code, said
    for pattern in row.says:
        assert re.search(pattern, said), f"{pattern}\nis not in\n{said}"
    assert "Traceback" not in said and str(tiny.__file__) not in said and not UNSAFE.search(said)
    if code:
        errors = re.findall(r"^error: .*(?:\n(?!error: ).*)*", said, re.MULTILINE)
        assert errors and all(re.search(r"Fix: \S", error) for error in errors), said
    if row is messages.SHOWN[row.number]:
        text = messages.told(row, said, desk)
        if WRITE:
            MESSAGES[row.number] = text
        assert messages.alike(text) == messages.alike(MESSAGES[row.number]) != "", (
            f"docs/messages.md shows otherwise: {text}"
        )
    assert worked < SECONDS and waited < 4 * SECONDS, (worked, waited)
    assert (mend is None) == (code == 0)
    if mend is None:
        return
    more = list(mend(desk, said))
    state = fingerprint(desk, row, more)
    if state in RAN:  # exactly this desk was run before
        return
    code, said = run(desk, row.then, *more)
    if code == 2 and "--overwrite" in said and "--overwrite" not in more:  # the first attempt left a folder behind
        code, said = run(desk, row.then, *more, "--overwrite")
    assert code == 0, said
    if row.then.startswith(("grpo", "sft", "reward")):
        folder = next((text.removeprefix("out=") for text in more if text.startswith("out=")), "out")
        made = {path.name for path in (desk.folder / folder / "model").iterdir()}
        assert made & {"model.safetensors", "adapter_model.safetensors"}
    RAN.add(state)
