"""Writes the tables of the docs that are made from the source: ``python docs/tables.py``. A second; no torch.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``:

    keys KIND        every key of that recipe with its default and what documents it
    trl CONFIG KIND  the fields of a config of TRL (``trl.yaml``) and what a recipe of that kind says in their place, by
                     the very function that answers them in a recipe (``run/recipe_hints.py``)
    gallery          the ready recipes, from their own comments

Tests hold the pages against it. ``python docs/tables.py --check`` writes nothing and fails where a page is behind.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from upslope.recipes.configs import RECIPES
from upslope.run.recipe_errors import default, keys, section_of
from upslope.run.recipe_hints import FOREIGN, hint
from upslope.run.recipe_yaml import flow_text

DOCS = Path(__file__).resolve().parent
TABLE = re.compile(r"(<!-- table: ([^>]+?) -->\n).*?(<!-- end of table -->)", re.DOTALL)
TRL: dict[str, dict[str, Any]] = yaml.safe_load((DOCS / "trl.yaml").read_text("utf-8"))

MEASURED = {
    "sft-arithmetic": "14 s (README)",
    "ppo-arithmetic": "3 min (README)",
    "grpo-arithmetic": "1.6 min (README)",
}
"""Time on two cores where it was measured, and where that is told."""


def cell(text: str) -> str:
    """Fit for a cell: one line, and a bar is no border."""
    return " ".join(text.split()).replace("|", "\\|")


def code(value: Any) -> str:
    """A value as YAML, as code."""
    return f"`{cell(flow_text(value))}`"


def row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([row(*head), "|" + "---|" * len(head), *(row(*cells) for cells in rows)])


# ------------------------------------------------------------------------------------------------------------- recipes
def usual(schema: type[BaseModel], key: str) -> Any:
    """The default of a dotted key in a recipe of this kind: a recipe may give a section defaults of its own."""
    first, _, rest = key.partition(".")
    info = schema.model_fields[first]
    if not rest:
        return default(info)
    given = default(info)
    section = section_of(info.annotation)
    if isinstance(given, BaseModel) and "." not in rest:
        return getattr(given, rest)
    if section is None:
        raise KeyError(key)
    return usual(section, rest)


def choices(info: FieldInfo) -> list[Any]:
    """What a key may be, if that is a short list of words."""
    return list(get_args(info.annotation)) if get_origin(info.annotation) is Literal else []


def leaves(schema: type[BaseModel]) -> dict[str, FieldInfo]:
    """Every key that holds a value, no sections."""
    return {key: info for key, info in keys(schema).items() if section_of(info.annotation) is None}


def keys_table(kind: str) -> str:
    """Every key of a recipe: its default, the other choices, what it is. The algorithm's own keys come first."""
    schema = RECIPES[kind]
    own = (f"{kind}.", f"{kind}_model.")
    ordered = sorted(leaves(schema).items(), key=lambda item: not item[0].startswith(own))
    rows = []
    for key, info in ordered:
        text = cell(info.description or "")
        others = [word for word in choices(info) if word != usual(schema, key)]
        more = f"{text} Or: {', '.join(code(word) for word in others)}." if others else text
        rows.append([f"`{key}`", code(usual(schema, key)), more])
    return table(("key", "default", "what it is"), rows)


# ----------------------------------------------------------------------------------------------------------------- TRL
class Answer(NamedTuple):
    """Our key for a field of TRL's (None: there is none), and what differs."""

    ours: str | None
    why: str


def answer(name: str, kind: str) -> Answer | None:
    """What a recipe of that kind has in the place of a field of TRL's; None where nothing is known of it."""
    known = list(keys(RECIPES[kind]))
    if name in known and name not in FOREIGN:
        return Answer(name, "")
    found = hint(name, known)
    same = [key for key in found.near if key.rpartition(".")[2] == name]
    if not found.foreign and not same:
        return None
    return Answer(found.near[0] if found.near else None, found.why)


def trl_table(config: str, kind: str) -> str:
    """A row a field that has a counterpart, then a row a reason for those that have none."""
    fields, rows, absent = TRL[config], [], {}
    for name, value in fields.items():
        found = answer(name, kind)
        if found is None:
            raise KeyError(f"{config}.{name}: run/recipe_hints.py says nothing of it")
        if found.ours is None:
            absent.setdefault(found.why, []).append(name)
            continue
        shown = code(usual(RECIPES[kind], found.ours)) if found.ours in leaves(RECIPES[kind]) else "-"
        rows.append([f"`{name}`", f"`{cell(str(value))}`", f"`{found.ours}`", shown, cell(found.why)])
    parts = [table(("TRL", "its default", "here", "our default", "what differs"), rows)]
    if absent:
        gone = [[", ".join(f"`{name}`" for name in names), cell(why)] for why, names in absent.items()]
        parts.append(table(("not there", "because"), gone))
    return "\n\n".join(parts)


# ------------------------------------------------------------------------------------------------------------- gallery
class Ready(NamedTuple):
    """A ready recipe: its first sentence, the command in its comments, what it needs beside the bundled model."""

    name: str
    kind: str
    about: str
    command: str
    needs: str


def files_of(content: Any, key: str = "") -> Iterator[str]:
    """Files and folders that a recipe names: its rows, functions in files, what other runs leave."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield from files_of(value, str(name))
    elif isinstance(content, list):
        for value in content:
            yield from files_of(value, key)
    elif isinstance(content, str):
        file = content.partition(":")[0]
        if file.endswith(".py") or file.startswith("runs/") or key == "path":
            yield file


def ready(path: Path) -> Ready:
    """What a recipe's own comments say of it.

    Raises:
        ValueError: no first line, or no command ``upslope KIND recipes/FILE`` in its comments.
    """
    text = path.read_text("utf-8")
    comments = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
    paragraph = " ".join(comments[: comments.index("")] if "" in comments else comments)
    commands = [line for line in comments if re.match(rf"upslope \w+ recipes/{re.escape(path.name)}", line)]
    if not paragraph or not commands:
        raise ValueError(f"{path.name}: its first lines should say what it is, then `upslope KIND recipes/{path.name}`")
    kind = commands[0].split()[1]
    about, _, stated = paragraph.partition(" Needs: ")
    needs = [stated.strip()] if stated else []
    made = [word.partition("=")[2] for word in commands[0].split() if "=runs/" in word]
    needs += [f"`{file}`" for file in dict.fromkeys([*made, *files_of(yaml.safe_load(text))])]
    return Ready(path.stem, kind, about, commands[0], ", ".join(needs) or "nothing")


def recipes() -> list[Ready]:
    """All ready recipes, by name."""
    return [ready(path) for path in sorted((DOCS.parent / "recipes").glob("*.yaml"))]


def gallery_table() -> str:
    """A section for each kind that has ready recipes."""
    parts = []
    for kind, schema in RECIPES.items():
        rows = [
            [
                f"[{item.name}](../recipes/{item.name}.yaml)", cell(item.about), f"`{cell(item.command)}`", item.needs,
                MEASURED.get(item.name, "-"),
            ]
            for item in recipes()
            if item.kind == kind
        ]  # fmt: skip
        if rows:
            about = cell(schema.__doc__ or "").partition(": ")[2] or kind
            head = table(("recipe", "what it does", "command", "needs", "on two cores"), rows)
            title = kind.upper() if len(kind) < 5 else kind.capitalize()
            parts.append(f"## {title}\n\n{about[:1].upper()}{about[1:]}\n\n{head}")
    return "\n\n".join(parts)


# --------------------------------------------------------------------------------------------------------------- pages
MAKERS: dict[str, Callable[..., str]] = {"keys": keys_table, "trl": trl_table, "gallery": gallery_table}


def renewed(text: str) -> str:
    """The text of a page with its tables as they should be today."""

    def fill(found: re.Match[str]) -> str:
        name, *arguments = found[2].split()
        return f"{found[1]}\n{MAKERS[name](*arguments)}\n\n{found[3]}"

    return TABLE.sub(fill, text)


def pages() -> Iterator[Path]:
    """The pages that have such tables."""
    yield from (path for path in sorted(DOCS.glob("*.md")) if TABLE.search(path.read_text("utf-8")))


def main() -> int:
    behind = [path for path in pages() if renewed(path.read_text("utf-8")) != path.read_text("utf-8")]
    if "--check" not in sys.argv:
        for path in behind:
            path.write_text(renewed(path.read_text("utf-8")), "utf-8")
    sys.stdout.write("".join(f"{path.name}\n" for path in behind))
    return 1 if behind and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
