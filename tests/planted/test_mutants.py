"""The generator of mutants, by hand; and a sample of the mutants themselves, in the slow suite."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from tests.planted import mutants as script
from tests.planted.generator import Mutant, mutants
from tests.planted.survivors import judged
from tests.planted.workshop import Workshop

STRIDE = 12
"""The slow suite runs every twelfth mutant of a file; ``python -m tests.planted.mutants`` runs all of all."""


def made(source: str, functions: set[str] | None = None) -> set[str]:
    """What the mutants of a source look like."""
    return {mutant.apply(source) for mutant in mutants(source, "f.py", functions)}


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("y = a + b\n", {"y = (a - b)\n"}),
        ("y = a & ~b\n", {"y = (a | ~b)\n", "y = a & (b)\n"}),
        ("y = a < b\n", {"y = (a <= b)\n", "y = (a > b)\n"}),
        ("y = a and b\n", {"y = (a or b)\n"}),
        ("y = 0 <= a\n", {"y = (0 < a)\n", "y = (0 > a)\n", "y = (1) <= a\n"}),
        ("y = 0 < a <= b\n", {"y = (0 <= a <= b)\n", "y = (0 < a < b)\n", "y = (1) < a <= b\n"}),
        ("y = True\n", {"y = (False)\n"}),
        ("y = 'k3'\n", {"y = ('not k3')\n"}),
        ("y += x\n", {"y -= x\n", "pass\n"}),
        ("y = a if b else c\n", {"y = (c if b else a)\n", "y = a if (not b) else c\n"}),
        ("y = x.amax(dim=d)\n", {"y = (x.amin(dim=d))\n", "y = (x.amax())\n"}),
        ("y = x.clamp(min=m)\n", {"y = (x.clamp())\n", "y = (x)\n"}),
        ("y = f(a, b, c)\n", {"y = (f(b, a, c))\n", "y = (f(a, c, b))\n"}),
        ("y = promoted(x)\n", {"y = (x)\n"}),
        ("while True:\n    break\n", {"while (False):\n    break\n", "while (not True):\n    break\n",
                                     "while True:\n    continue\n"}),
        ("if b:\n    raise E(1 + 2)\n", {"if (not b):\n    raise E(1 + 2)\n", "if b:\n    pass\n"}),
        ("def f(a: 'x' = 1) -> 'y':\n    'text'\n    return a\n",
         {"def f(a: 'x' = (2)) -> 'y':\n    'text'\n    return a\n"}),
        ("é = 'ü'; y = a * b\n", {"é = ('not ü'); y = a * b\n", "é = 'ü'; y = (a / b)\n"}),
        ("import a\nfrom b import c\n@d(1)\nclass E:\n    f: int\n", set()),
    ],
)  # fmt: skip
def test_each_rule_by_hand(source: str, wanted: set[str]) -> None:
    assert made(source) == wanted


def test_only_the_named_functions_are_changed() -> None:
    source = "X = 1\n\n\ndef f():\n    return 2\n\n\ndef g():\n    def h():\n        return 3\n    return h\n"
    assert made(source, {"g"}) == {source.replace("return 3", "return (4)")}
    assert made(source, set()) == set()


@pytest.mark.parametrize("file", script.TARGETS)
def test_every_mutant_of_the_project_is_another_program_and_has_a_key_of_its_own(file: str) -> None:
    found = script.of_file(file)
    source = (script.ROOT / "upslope" / file).read_text("utf-8")
    assert len({mutant.key for mutant in found}) == len(found) > 5
    for mutant in found[:: max(1, len(found) // 20)]:
        changed = mutant.apply(source)
        assert changed != source and ast.parse(changed)
        assert source[mutant.begin : mutant.end] == mutant.old and mutant.place in source


def test_the_named_tests_and_functions_exist() -> None:
    for file, (tests, functions) in script.TARGETS.items():
        assert all((script.ROOT / test).is_file() for test in tests)
        tree = ast.parse((script.ROOT / "upslope" / file).read_text("utf-8"))
        assert (functions or set()) <= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_what_is_known_is_not_run_again_and_the_score_counts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {mutant.key: "killed" for mutant in script.of_file("maths/kl.py")}
    known[next(iter(known))] = "survived"
    resume = tmp_path / "resume.json"
    resume.write_text(json.dumps({f"maths/kl.py {script.fingerprint('maths/kl.py')}": known}))
    found = script.run(["maths/kl.py"], None, 0, 1.0, resume)
    assert found == {"maths/kl.py": known} and capsys.readouterr().out.startswith("0 mutants to run")
    monkeypatch.setattr("sys.argv", ["mutants", "--files", "kl", "--jobs", "0", "--resume", str(resume)])
    script.main()
    killed = len(known) - 1
    assert f"{killed:4} of {len(known):4} killed ({100 * killed / len(known):5.1f} %), 1 survived" in (
        capsys.readouterr().out
    )


# --------------------------------------------------------------------------------------------------------- the ledger
def test_every_judged_survivor_is_a_mutant_of_the_code_as_it_is() -> None:
    """A line of ``survivors.md`` that fits no mutant any more must go."""
    names = {mutant.name for file in script.TARGETS for mutant in script.of_file(file)}
    assert [name for name in judged() if name not in names] == []


def sample(file: str) -> list[Mutant]:
    return script.of_file(file)[::STRIDE]


def squares() -> dict[str, Mutant]:
    """Mutants of ``d^2 / 2``."""
    return {mutant.new: mutant for mutant in script.of_file("maths/kl.py") if ".square() / 2" in mutant.place}


def test_a_mutant_is_killed_and_the_copy_is_as_before(shop: Workshop) -> None:
    assert script.verdict(shop, squares()["(3)"], 120.0) == "killed"  # d^2 / 3
    before = (shop.copy / "upslope/maths/kl.py").read_text("utf-8")
    assert before == (script.ROOT / "upslope/maths/kl.py").read_text("utf-8")


@pytest.mark.slow
def test_a_mutant_that_changes_no_number_survives_and_is_judged(shop: Workshop) -> None:
    turned = squares()["(difference(ref_logprobs, logprobs))"]  # (-d)^2 / 2
    assert script.verdict(shop, turned, 120.0) == "survived" and turned.name in judged()


@pytest.mark.slow
@pytest.mark.parametrize("file", script.TARGETS)
def test_a_sample_of_the_mutants_is_killed_or_judged(shop: Workshop, file: str) -> None:
    """Every survivor of the sample stands in ``survivors.md``."""
    survived = [mutant.name for mutant in sample(file) if script.verdict(shop, mutant, 120.0) == "survived"]
    assert [name for name in survived if name not in judged()] == []
