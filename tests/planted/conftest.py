"""The score of the planted mistakes, after the tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.planted.workshop import Workshop, workshop

SCORE = pytest.StashKey[dict[str, str]]()


@pytest.fixture(scope="session")
def score(request: pytest.FixtureRequest) -> dict[str, str]:
    """By mistake: the check that turned red, or '' where none did."""
    return request.config.stash.setdefault(SCORE, {})


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """A copy of the project in which anything may be planted."""
    with workshop(tmp_path_factory.mktemp("planted")) as made:
        yield made


def pytest_terminal_summary(terminalreporter: Any) -> None:
    found: dict[str, str] = terminalreporter.config.stash.get(SCORE, {})
    if not found:
        return
    caught = sum(map(bool, found.values()))
    terminalreporter.section(f"planted mistakes: {caught} of {len(found)} caught")
    for name, by in found.items():
        if not by or terminalreporter.config.option.verbose > 0:
            terminalreporter.write_line(f"{name}: {by or 'NOT CAUGHT'}")
