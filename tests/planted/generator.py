"""Small changes of Python source, made by rule from its syntax tree: what a mutation tool does.

Our own, for the known tools fight with this project. mutmut 3.8 runs pytest again and again in one process, where
jaxtyping's hook refuses ("cannot check these packages because they are already imported: upslope"). cosmic-ray 8.7
starts an interpreter for each mutant, of which loading torch and transformers takes ten seconds and the checks one, and
edits the files of the checkout itself. ``forge.py`` forks instead, and works on a copy.

Rules: another operator (arithmetic, comparison, boolean, in an assignment), an operator left out (``-x``, ``~x``,
``not x``), a number plus 1, the other truth value, another string, a sibling of a function (min and max, any and all,
zeros_like and ones_like, ...), a keyword argument left out, two arguments exchanged, a method left out of a chain
(``x.clamp(...)`` becomes ``x``), a function left out (``promoted(x)`` becomes ``x``), the branches of a conditional
expression exchanged, a condition negated, a statement left out. Untouched: docstrings, annotations, decorators,
imports, messages of exceptions.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

SWAPS: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.RShift: ast.LShift,
    ast.And: ast.Or, ast.Or: ast.And, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
}  # fmt: skip
BOUNDS: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.Lt), ast.GtE: (ast.Gt, ast.Lt)
}  # fmt: skip
PAIRS = [
    ("max", "min"), ("amax", "amin"), ("maximum", "minimum"), ("any", "all"), ("zeros_like", "ones_like"),
    ("zeros", "ones"), ("new_zeros", "new_ones"), ("exp", "expm1"), ("cumsum", "cumprod"), ("isposinf", "isneginf"),
]  # fmt: skip
SIBLINGS = {**dict(PAIRS), **{second: first for first, second in PAIRS}}
SIBLINGS |= {"sum": "mean", "mean": "sum", "sqrt": "square", "square": "abs", "abs": "square", "rsqrt": "sqrt"}
LEFT_OUT = {
    "abs", "sqrt", "square", "exp", "log", "clamp", "masked_fill", "detach", "sort", "softmax", "log_softmax", "clone",
    "to", "long", "cpu", "copy", "nan_to_num", "cumsum", "roll", "double",
}  # fmt: skip
"""Methods without which an expression still is one."""
FUNCTIONS_LEFT_OUT = {"promoted", "below_overflow", "float", "bool", "list", "sorted", "reversed", "deepcopy", "abs"}

COMMUTATIVE = {"max", "min", "maximum", "minimum"}


@dataclass(frozen=True, slots=True)
class Mutant:
    """``new`` in the place of ``source[begin:end]``. ``place`` is the text of its line, ``column`` where in it."""

    file: str
    line: int
    place: str
    column: int
    begin: int
    end: int
    old: str
    new: str
    rule: str

    @property
    def key(self) -> str:
        """Its name while the file is as it is."""
        return f"{self.file}:{self.line}:{self.column}: {' '.join(f'{self.old} -> {self.new}'.split())}"

    @property
    def name(self) -> str:
        """Its name wherever its line is moved to."""
        return f"{self.file}: {self.place} @{self.column}: {' '.join(f'{self.old} -> {self.new}'.split())}"

    def apply(self, source: str) -> str:
        return source[: self.begin] + self.new + source[self.end :]


def mutants(source: str, file: str, functions: set[str] | None = None) -> list[Mutant]:
    """All mutants of a module, in order of their places; of these ``functions`` (and methods) alone, if given."""
    tree = ast.parse(source)
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line.encode()))
    raw = source.encode()

    def place(line: int, column: int) -> int:
        return len(raw[: starts[line - 1] + column].decode())

    found: dict[tuple[int, int, str], Mutant] = {}
    for node, changed, rule in _walk(tree, functions, False):
        begin, end = place(node.lineno, node.col_offset), place(node.end_lineno, node.end_col_offset)
        old, new = source[begin:end], changed if isinstance(changed, str) else ast.unparse(changed)
        if new == ast.unparse(node):
            continue
        if isinstance(node, ast.expr):
            new = f"({new})"
        first = source[place(node.lineno, 0) :].partition("\n")[0]
        column = begin - place(node.lineno, 0) - (len(first) - len(first.lstrip()))
        mutant = Mutant(file, node.lineno, first.strip(), column, begin, end, old, new, rule)
        found.setdefault((begin, end, new), mutant)
    return sorted(found.values(), key=lambda mutant: (mutant.begin, mutant.end, mutant.new))


def _walk(node: Any, functions: set[str] | None, inside: bool) -> Iterator[tuple[Any, Any, str]]:
    """(node, its replacement, rule) of ``node`` and everything in it that may be changed."""
    if isinstance(node, ast.FunctionDef) and functions is not None and not inside:
        inside = node.name in functions
    if functions is None or inside:
        for changed, rule in _changes(node):
            yield node, changed, rule
        if isinstance(node, ast.If | ast.IfExp | ast.While) and not isinstance(node.test, ast.Compare | ast.UnaryOp):
            yield node.test, ast.UnaryOp(ast.Not(), node.test), "condition negated"
    for child in _children(node):
        yield from _walk(child, functions, inside)


def _children(node: Any) -> Iterator[Any]:
    if isinstance(node, ast.Import | ast.ImportFrom | ast.Raise | ast.JoinedStr):
        return
    if isinstance(node, ast.FunctionDef):
        yield from (default for default in [*node.args.defaults, *node.args.kw_defaults] if default is not None)
        yield from node.body
    elif isinstance(node, ast.ClassDef):
        yield from node.body
    elif isinstance(node, ast.AnnAssign):
        if node.value is not None and not _is_name(node.annotation, "TypeAlias"):
            yield node.value
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return  # a docstring
    elif isinstance(node, ast.Assign) and any(_is_name(target, "__all__") for target in node.targets):
        return
    else:
        yield from ast.iter_child_nodes(node)


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _with(node: Any, **fields: Any) -> Any:
    """A copy of the node with other fields."""
    changed = deepcopy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _changes(node: Any) -> Iterator[tuple[Any, str]]:
    if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in SWAPS:
        yield _with(node, op=SWAPS[type(node.op)]()), "operator"
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        for kind in BOUNDS.get(type(node.ops[0]), (SWAPS[type(node.ops[0])],) if type(node.ops[0]) in SWAPS else ()):
            yield _with(node, ops=[kind()]), "comparison"
    elif isinstance(node, ast.Compare):
        for place, op in enumerate(node.ops):
            for kind in BOUNDS.get(type(op), ())[:1]:
                yield _with(node, ops=[*node.ops[:place], kind(), *node.ops[place + 1 :]]), "comparison"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Invert | ast.Not):
        yield node.operand, "operator left out"
    elif isinstance(node, ast.Constant):
        yield from _constants(node)
    elif isinstance(node, ast.IfExp):
        yield _with(node, body=node.orelse, orelse=node.body), "branches exchanged"
    elif isinstance(node, ast.Call):
        yield from _calls(node)
    if isinstance(node, ast.Raise | ast.AugAssign | ast.Continue) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        yield "pass", "statement left out"
    elif isinstance(node, ast.Break):
        yield "continue", "statement left out"


def _constants(node: Any) -> Iterator[tuple[Any, str]]:
    if isinstance(node.value, bool):
        yield _with(node, value=not node.value), "constant"
    elif isinstance(node.value, int | float):
        yield _with(node, value=node.value + 1), "constant"
    elif isinstance(node.value, str):
        yield _with(node, value=f"not {node.value}"), "constant"


def _calls(node: Any) -> Iterator[tuple[Any, str]]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in SIBLINGS:
        sibling = SIBLINGS[name]
        func = _with(node.func, attr=sibling) if isinstance(node.func, ast.Attribute) else _with(node.func, id=sibling)
        yield _with(node, func=func), "sibling"
    for place in range(len(node.keywords)):
        if node.keywords[place].arg is not None:
            rest = [*node.keywords[:place], *node.keywords[place + 1 :]]
            yield _with(node, keywords=rest), "keyword left out"
    starred = any(isinstance(argument, ast.Starred) for argument in node.args)
    if len(node.args) >= 2 and name not in COMMUTATIVE and not starred:
        for first in range(len(node.args) - 1):
            swapped = list(node.args)
            swapped[first], swapped[first + 1] = swapped[first + 1], swapped[first]
            yield _with(node, args=swapped), "arguments exchanged"
    if isinstance(node.func, ast.Attribute) and name in LEFT_OUT and not _is_name(node.func.value, "torch"):
        yield node.func.value, "method left out"
    if name in FUNCTIONS_LEFT_OUT and isinstance(node.func, ast.Name) and len(node.args) == 1:
        yield node.args[0], "function left out"
