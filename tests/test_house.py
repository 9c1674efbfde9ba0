"""The house: imports go down only, files stay small, nothing unsafe, a recipe fits one screen."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "upslope"
FILES = sorted(ROOT.rglob("*.py"))
FLOORS = [
    {"cli", "cli_tools", "api", "demo", "gridrun", "chat", "checkup", "doctor", "init", "__init__", "__main__"},
    {"certify"},
    {"views", "recipes"},
    {"learner", "rollout", "run"},
    {"worlds", "models", "text"},
    {"types", "seeds", "errors"},
    {"maths"},
]
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
TOP = FLOORS[0]


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(tree: ast.AST, room: str) -> Iterator[tuple[int, str]]:
    """(line, room of upslope) of every import, in functions and under TYPE_CHECKING too, and by importlib's name."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, "(relative)"
                continue
            base = node.module or ""
            names = [f"{base}.{alias.name}" for alias in node.names] if base == "upslope" else [base]
        for name in names:
            parts = name.split(".")
            if parts[0] == "upslope":
                yield node.lineno, parts[1] if len(parts) > 1 else "__init__"


def faults_of(source: str, room: str) -> list[str]:
    """What is wrong with the imports of a file of this room."""
    found = []
    for line, other in imported_rooms(ast.parse(source), room):
        if other == room or (room in TOP and other in TOP):
            continue
        if other not in LEVEL:
            found.append(f"{line}: {other} is no room of the house")
        elif LEVEL[other] <= LEVEL[room]:
            found.append(f"{line}: {room} imports {other}, which is not below it")
    return found


def test_imports_go_down_only() -> None:
    faults = {path.name: faults_of(path.read_text("utf-8"), room_of(path)) for path in FILES}
    assert {name: found for name, found in faults.items() if found} == {}


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("maths", "from upslope.types import Batch"),
        ("text", "def f():\n    from upslope.models import loading"),
        ("recipes", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from upslope.views.page import Page"),
        ("learner", "import upslope.run.session"),
        ("recipes", "from upslope import api"),
        ("types", "from upslope.errors import InputError"),
        ("run", "from . import folder"),
        ("run", "from upslope.nowhere import thing"),
    ],
)
def test_an_import_that_goes_up_or_across_is_found(room: str, source: str) -> None:
    assert faults_of(source, room)
    assert not faults_of("import torch\nfrom upslope.maths import kl", "learner")


def test_every_room_has_its_floor() -> None:
    rooms = {room_of(path) for path in FILES}
    assert rooms - set(LEVEL) == set()
    assert {"maths", "learner", "recipes", "views", "cli"} <= rooms


def test_files_stay_small() -> None:
    assert {path.name: n for path in FILES if (n := len(path.read_text("utf-8").splitlines())) > 450} == {}


def imports_of(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_maths_imports_torch_jaxtyping_and_the_standard_library_only() -> None:
    """But for one sparse linear solve, which is scipy's."""
    import sys

    allowed = {"torch", "jaxtyping", "upslope"} | set(sys.stdlib_module_names)
    for path in (ROOT / "maths").glob("*.py"):
        more = {"scipy"} if path.name == "mdp.py" else set()
        assert imports_of(ast.parse(path.read_text("utf-8"))) <= allowed | more, path.name


def test_recipes_can_be_checked_without_torch() -> None:
    """Files that are read before a recipe's errors are told: no import of torch at their top level."""
    early = [
        "api.py", "cli.py", "errors.py", "recipes/configs.py", "recipes/setup.py", "recipes/run_rows.py",
        "recipes/evaluation.py", "recipes/answering.py", "recipes/sampled_pairs.py",
    ]  # fmt: skip
    for name in early:
        tree = ast.parse((ROOT / name).read_text("utf-8"))
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        assert not imports_of(top) & {"torch", "transformers", "safetensors"}, name


# -------------------------------------------------------------------------------------------------------------- unsafe
ALLOWED: dict[tuple[str, str], str] = {
    ("worlds/reward_worker.py", "exec_module"): "loads the user's own reward file, in its own process",
    ("worlds/tool_worker.py", "exec_module"): "loads the user's own tools, in their own process",
}


def unsafe(tree: ast.AST) -> Iterator[str]:
    """Calls and imports that run code from data."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            yield from (
                name for name in names if name.split(".")[0] in ("pickle", "dill", "cloudpickle", "marshal", "shelve")
            )
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in (
            "eval",
            "exec",
            "os.system",
            "os.popen",
            "torch.load",
            "yaml.load",
            "yaml.unsafe_load",
            "yaml.full_load",
        ):
            yield called
        if called.endswith(".exec_module"):
            yield "exec_module"
        for keyword in node.keywords:
            said = isinstance(keyword.value, ast.Constant) and keyword.value.value
            on = said is not False if isinstance(keyword.value, ast.Constant) else True
            if keyword.arg in ("shell", "trust_remote_code") and on:
                yield f"{keyword.arg}="
            if keyword.arg == "use_safetensors" and said is not True:
                yield "use_safetensors="


def test_nothing_runs_code_from_data() -> None:
    found = {}
    for path in FILES:
        name = path.relative_to(ROOT).as_posix()
        faults = [fault for fault in unsafe(ast.parse(path.read_text("utf-8"))) if (name, fault) not in ALLOWED]
        if faults:
            found[name] = faults
    assert found == {}


def test_the_allow_list_holds_nothing_that_is_not_there() -> None:
    for name, fault in ALLOWED:
        assert fault in list(unsafe(ast.parse((ROOT / name).read_text("utf-8")))), name


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from pickle import loads", "torch.load(p)", "yaml.load(s)",
     "eval(x)", "exec(x)", "run(c, shell=True)",
     "A.from_pretrained(n, trust_remote_code=yes)"],
)  # fmt: skip
def test_what_is_unsafe_is_found(source: str) -> None:
    assert list(unsafe(ast.parse(source)))
    assert not list(unsafe(ast.parse("model.eval(); yaml.safe_load(s); run(c, shell=False)")))


# --------------------------------------------------------------------------------------------------------------- style
def functions(path: Path) -> dict[str, ast.FunctionDef]:
    tree = ast.parse(path.read_text("utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("recipe", ["sft", "ppo", "grpo", "reward", "dpo"])
def test_train_fits_one_screen(recipe: str) -> None:
    train = functions(ROOT / "recipes" / f"{recipe}.py")["train"]
    assert 10 < (train.end_lineno or 0) - train.lineno + 1 <= 60


def test_every_public_function_of_maths_says_what_it_computes() -> None:
    checked = 0
    for path in (ROOT / "maths").glob("*.py"):
        for name, node in functions(path).items():
            if not name.startswith("_"):
                checked += 1
                assert len(ast.get_docstring(node) or "") > 20, f"{path.name}: {name}"
    assert checked > 20


def test_nothing_names_a_machine_that_it_was_written_on() -> None:
    for path in FILES:
        text = path.read_text("utf-8")
        assert f"{ROOT.parent}/" not in text and f"{Path.home()}/" not in text, path.name
