"""Known mistakes, planted in a copy of the real code: a named check must turn red, and stay green without them."""

from __future__ import annotations

import ast

import pytest

from tests.planted.mistakes import MISTAKES, SAMPLE
from tests.planted.workshop import ROOT, Mistake, Workshop, once

QUICK = [mistake for mistake in MISTAKES if mistake.name in SAMPLE]
REST = [mistake for mistake in MISTAKES if mistake.name not in SAMPLE]


# ---------------------------------------------------------------------------------------------------------- the list
def test_the_list_is_long_and_holds_real_bugs() -> None:
    assert len(MISTAKES) >= 25 and len({mistake.name for mistake in MISTAKES}) == len(MISTAKES)
    assert sum(bool(mistake.after) for mistake in MISTAKES) >= 10
    assert len(QUICK) == len(SAMPLE)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_each_edit_fits_one_place_and_each_check_exists(mistake: Mistake) -> None:
    """A refactoring that moves a line, or renames a check, fails here."""
    for file in mistake.files:
        text = (ROOT / file).read_text("utf-8")
        for _, old, new in (edit for edit in mistake.edits if edit[0] == file):
            once(text, old, file)
            text = text.replace(old, new)
        compile(text, file, "exec")
    for check in mistake.checks:
        path, _, name = check.partition("::")
        tree = ast.parse((ROOT / path).read_text("utf-8"))
        assert name.partition("[")[0] in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


# ------------------------------------------------------------------------------------------------ a check that fails
def caught(shop: Workshop, mistake: Mistake, score: dict[str, str]) -> None:
    """Each named check by itself must turn red."""
    by = []
    score[mistake.name] = ""
    with shop.planted(mistake.edits) as changed:
        for check in mistake.checks:
            found = shop.check([check], changed)
            assert found.caught, f"{check} is not red under {mistake.name!r}: exit {found.code}\n{found.log}"
            by.append(found.by)
    score[mistake.name] = ", ".join(by)


@pytest.mark.parametrize("mistake", QUICK, ids=lambda mistake: mistake.name)
def test_a_sample_of_the_mistakes_is_caught(shop: Workshop, mistake: Mistake, score: dict[str, str]) -> None:
    caught(shop, mistake, score)


@pytest.mark.slow
def test_the_checks_of_all_mistakes_are_green_without_a_mistake(shop: Workshop) -> None:
    found = shop.check(sorted({check for mistake in MISTAKES for check in mistake.checks}), timeout=900)
    assert found.code == 0 and found.passed >= len({check for mistake in MISTAKES for check in mistake.checks}), (
        found.log
    )


@pytest.mark.slow
@pytest.mark.parametrize("mistake", REST, ids=lambda mistake: mistake.name)
def test_every_other_mistake_is_caught(shop: Workshop, mistake: Mistake, score: dict[str, str]) -> None:
    caught(shop, mistake, score)


# ------------------------------------------------------------------------------------------- the suite's own mistakes
def test_an_edit_that_changes_nothing_is_not_caught(shop: Workshop) -> None:
    edit = ("upslope/maths/losses.py", "return -promoted(logprobs)", "return -1 * promoted(logprobs)")
    with shop.planted([edit]) as changed:
        found = shop.check(["tests/maths/test_losses.py::test_nll_is_minus_the_log_probability"], changed)
    assert found.code == 0 and found.passed == 1 and not found.caught


def test_an_edit_that_is_no_program_is_not_called_caught(shop: Workshop) -> None:
    edit = ("upslope/maths/losses.py", "return -promoted(logprobs)", "return -promted(logprobs)")
    with shop.planted([edit]) as changed:
        found = shop.check(["tests/maths/test_losses.py::test_nll_is_minus_the_log_probability"], changed)
    assert found.code == 1 and not found.caught


def test_a_file_that_the_checks_never_import_is_an_error(shop: Workshop) -> None:
    with pytest.raises(RuntimeError, match=r"views/page\.py was loaded from None"):
        shop.check(["tests/maths/test_losses.py::test_nll_is_minus_the_log_probability"], ["upslope/views/page.py"])


def test_text_that_does_not_occur_once_is_refused(shop: Workshop) -> None:
    for old, times in (("no such text", 0), ("promoted", 2)):
        with (
            pytest.raises(ValueError, match=rf"occurs (?:{times}|\d\d) times"),
            shop.planted([("upslope/maths/losses.py", old, "")]),
        ):
            pass
