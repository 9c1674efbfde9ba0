"""``path/to/file.py:function``: found and checked without being run, so that a misspelt reward is an error at once."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from upslope.errors import InputError

PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class RewardSource:
    """A function in a file. ``shown`` is the file's name in messages; ``search`` are folders that the file may import
    from."""

    path: Path
    function: str
    shown: str
    search: tuple[str, ...] = ()


def check_source(source: str, where: str = "reward.function") -> RewardSource:
    """Read ``path/to/file.py:function`` and see that both exist, without running the file.

    ``upslope.room.module:function`` names a reward that ships with this package. ``where`` is the key in messages.

    Raises:
        InputError: not of that form, no such file, not Python, or no such function (with those that are there).
    """
    text, colon, function = source.rpartition(":")
    if not colon or not text or not function.isidentifier():
        raise InputError(
            where, f"{source!r} is not of the form path/to/file.py:function", "write file and function with a colon"
        )
    ours = text.startswith("upslope.") and not text.endswith(".py")
    try:
        path = PACKAGE.joinpath(*text.split(".")[1:]).with_suffix(".py") if ours else Path(text).expanduser()
        missing = path.is_dir() or not path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, ~nobody, no name at all
        reason = getattr(error, "strerror", None) or str(error)
        problem = f"cannot be looked at: {reason}"
        raise InputError(f"{where} {text[:200]}", problem, "give the path of a .py file") from None
    if not missing and not path.is_file():
        raise InputError(f"{where} {text}", "is not a regular file", "give the path of a .py file")
    if missing:
        near = []
        if path.parent.is_dir():
            near = difflib.get_close_matches(path.name, [other.name for other in path.parent.glob("*.py")], n=3)
        found = "is a folder, expected a Python file" if path.is_dir() else "no such file"
        raise InputError(
            f"{where} {text}", found, f"did you mean {', '.join(near)}?" if near else "give the path of a .py file"
        )
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as error:
        raise InputError(
            f"{where} {path.name}:{error.lineno}", f"not valid Python: {error.msg}", "correct that line"
        ) from None
    except (ValueError, OSError, RecursionError, MemoryError) as error:  # NUL bytes; unreadable; nested too deeply
        raise InputError(f"{where} {path.name}", f"cannot be read as Python: {error}", "give a .py file") from None
    functions, others, open_ended = _top_level_names(tree.body)
    if function not in functions and function not in others and not open_ended:
        problem = f"{path.name} has no {function!r}. Functions: {', '.join(functions) or 'none'}"
        near = difflib.get_close_matches(function, [*functions, *others], n=1)
        raise InputError(
            where, problem, f"did you mean {text}:{near[0]}?" if near else f"name a function of {path.name}"
        )
    return RewardSource(path.resolve(), function, path.name, (str(PACKAGE.parent),) if ours else ())


def _top_level_names(body: Sequence[ast.stmt]) -> tuple[list[str], list[str], bool]:
    """Functions, other names, and whether there may be names that only running the file would show."""
    functions: list[str] = []
    others: list[str] = []
    open_ended = False
    for statement in body:
        match statement:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                functions.append(name)
            case ast.ClassDef(name=name):
                others.append(name)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                open_ended = open_ended or any(alias.name == "*" for alias in names)
                others.extend(alias.asname or alias.name for alias in names)
            case ast.Assign() | ast.AnnAssign():
                names_set = [
                    n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
                ]
                others.extend(names_set)
            case ast.If() | ast.Try() | ast.With():
                blocks = [*statement.body, *getattr(statement, "orelse", []), *getattr(statement, "finalbody", [])]
                blocks.extend(inner for handler in getattr(statement, "handlers", []) for inner in handler.body)
                more, also, unknown = _top_level_names(blocks)
                functions, others, open_ended = [*functions, *more], [*others, *also], open_ended or unknown
    return functions, others, open_ended
