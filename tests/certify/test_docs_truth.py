"""docs/truth.md: its examples are executed and print what stands there; its table has the lines of today."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from upslope import cli
from upslope.certify import command
from upslope.certify.lines import number

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "truth.md").read_text("utf-8")
BLOCKS = re.findall(r"^```([a-z]*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [text for kind, text in BLOCKS if kind == "console"]
LONG = ("text grid: trained", "6x6: PPO trained", "6x6: its critic")


def stripped(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").splitlines()]


@pytest.mark.parametrize("block", COMMANDS, ids=lambda block: block.split("/")[-1].splitlines()[0])
def test_a_command_prints_what_stands_under_it(
    block: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _, shown = block.partition("\n")
    words = first.removeprefix("$ ").split()
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", words)
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert stripped(capsys.readouterr().out) == stripped(shown)
    assert code == ("NOT CERTIFIED" in shown)


def test_one_example_certifies_and_one_does_not() -> None:
    verdicts = [stripped(block)[2] for block in COMMANDS]
    assert verdicts == ["CERTIFIED", "NOT CERTIFIED", "NOT CERTIFIED"]
    assert "divides each completion by its own length" in COMMANDS[1]


def test_the_code_on_the_page_is_that_of_the_examples() -> None:
    sources = [text for kind, text in BLOCKS if kind == "python"]
    files = re.findall(r"`docs/examples/(\w+\.py)`", PAGE)
    assert len(sources) == len(files) == 3
    for source, name in zip(sources, files, strict=True):
        assert source == (ROOT / "docs" / "examples" / name).read_text("utf-8")


def test_the_table_has_every_line_of_today_with_its_exact_answer() -> None:
    (table,) = [text for kind, text in BLOCKS if kind == "text"]
    rows = [line.split() for line in table.splitlines()]
    today = list(command.algorithm_lines(trained=False))
    assert all(line.passed for line in today) and len(today) >= 35
    for line in today:
        wanted = f"{line.algorithm} {line.checked} {number(line.exact)}".split()
        assert any(row[: len(wanted)] == wanted for row in rows), wanted
    trained = [row for row in rows if any(" ".join(row[1:]).startswith(words) for words in LONG)]
    assert len(rows) - len(trained) - len(today) == 4 and len(trained) == 4  # head, rule, blank, last line
    assert f"{len(today) + 4} of {len(today) + 4} lines hold." in table


def test_links_of_the_page_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", PAGE) if "://" not in link]
    assert links and all((ROOT / "docs" / link).is_file() for link in links)
