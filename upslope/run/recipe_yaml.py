"""Reads and writes the YAML of recipes: a small and predictable part of YAML 1.2, with file and line of every key.

PyYAML's scanner and parser turn text into events; the values are made here, because its own constructor follows YAML
1.1 (``1e-5`` is text, ``on`` is true, ``0123`` is 83, ``12:30:00`` is 45000, a repeated key wins in silence). No tag is
read, so a recipe can make nothing but text, numbers, true/false, null, lists and mappings.
"""

from __future__ import annotations

import copy
import difflib
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from upslope.errors import InputError
from upslope.run.recipe_hints import is_secret_key, redact

LIMIT_BYTES = 1_000_000
LIMIT_NODES = 10_000
LIMIT_DEPTH = 20
COMMAND_LINE = "command line"

_EXAMPLE = "write keys and values, for example\n    train:\n      steps: 40\n  with two spaces before an inner key"
_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]{1,4000}")
_BASED = re.compile(r"0o[0-7]{1,4000}|0x[0-9a-fA-F]{1,3000}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_PLAIN = re.compile(r"(?:\.{0,2}/)?[A-Za-z_][A-Za-z0-9_.+/-]*(?::[A-Za-z0-9_.+/-]+)*")
_AMBIGUOUS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


@dataclass(slots=True)
class Draft:
    """A recipe in the making: plain values, where each key was given, and what is already known to be wrong."""

    source: str
    data: dict[str, Any] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)
    errors: list[InputError] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def place(self, key: str) -> str:
        """Where ``key`` or the nearest section around it was given: ``r.yaml:6``, ``command line``; else the source."""
        while key:
            if key in self.where:
                return self.where[key]
            key = key.rpartition(".")[0]
        return self.source

    def at(self, key: str) -> str:
        """``r.yaml:6 optim.lr``, the beginning of a message."""
        return f"{self.place(key)} {clean(key)}".strip()


def clean(text: str, limit: int = 80) -> str:
    """``text`` fit for a terminal: no control characters, no secrets, at most ``limit`` characters."""
    text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in redact(text))
    return text if len(text) <= limit else text[: limit - 3] + "..."


def shown(value: Any) -> str:
    """A value as the user would write it, short and without secrets, for messages."""
    if isinstance(value, str):
        return f"'{clean(value, 60)}'"
    if isinstance(value, bool) or value is None or isinstance(value, int | float):
        return clean(scalar_text(value), 60)
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key}: {'***' if is_secret_key(str(key)) else shown(item)}" for key, item in value.items())
        return clean("{" + inner + "}", 60)
    if isinstance(value, list | tuple):
        return clean("[" + ", ".join(shown(item) for item in value) + "]", 60)
    return f"a {type(value).__name__}"


# ---------------------------------------------------------------------------------------------------------------- files
def read_file(path: Path) -> str:
    """The text of a recipe file.

    Raises:
        InputError: no such file (near names are given), a directory, over 1 MB, not UTF-8, not readable.
    """
    where = clean(str(path), 200)
    try:
        if path.is_dir():
            raise InputError(where, "is a directory, expected a recipe file", _nearby(path, "*.y*ml"))
        if not path.exists():
            raise InputError(where, *_missing(path))
        if not path.is_file():
            raise InputError(where, "is not a regular file", "give a recipe file, such as r.yaml")
        with path.open("rb") as file:
            content = file.read(LIMIT_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = clean(getattr(error, "strerror", None) or str(error))
        raise InputError(where, f"cannot be read ({reason})", "check the name and its permissions") from error
    if len(content) > LIMIT_BYTES:
        raise InputError(where, "is larger than 1 MB, which no recipe is", "give the recipe; rows go to data.path")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        problem = f"is not UTF-8 text (byte 0x{content[error.start]:02x})"
        raise InputError(f"{where}:{line}", problem, "save the file as UTF-8") from error


def _nearby(folder: Path, pattern: str) -> str:
    names = sorted(item.name for item in folder.glob(pattern))[:5]
    return "give one of its files: " + ", ".join(clean(name) for name in names) if names else "give a .yaml file"


def _missing(path: Path) -> tuple[str, str]:
    problem, fix = f"no such file {clean(path.name)}", "check the name; `upslope init` writes a first recipe"
    if not path.parent.is_dir():
        return f"{problem}, nor a folder {clean(str(path.parent))}", fix
    names = [entry.name for entry in os.scandir(path.parent) if entry.is_file()]
    same = [name for name in sorted(names) if Path(name).stem == path.stem]
    near = [clean(name) for name in (same or difflib.get_close_matches(path.name, names, n=3))][:3]
    return (f"{problem}. Near: {', '.join(near)}", f"give {near[0]}") if near else (problem, fix)


# --------------------------------------------------------------------------------------------------------------- values
def resolve(text: str) -> Any:
    """The value of an unquoted scalar by the core schema of YAML 1.2: null, bool, int, float, else the text itself."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    special = _SPECIAL.fullmatch(text)
    if special:
        return float(special[1] + "inf") if special[2] else math.nan
    return text


def parse(text: str, source: str) -> Draft:
    """The mapping that ``text`` holds, with the line of each key; repeated keys are kept as ``errors``.

    Raises:
        InputError: not YAML, tabs, tags, too many aliases, empty, more than one document, not a mapping.
    """
    draft = Draft(source)
    draft.data = _document(text, draft, "")
    return draft


def parse_value(text: str, key: str) -> Any:
    """The value of an override: quoted text, a flow list or mapping, else a scalar taken whole (``a: b`` is text)."""
    text = text.strip()
    if not text.startswith(("[", "{", '"', "'")):
        return resolve(text)
    draft = Draft(COMMAND_LINE, where={key: COMMAND_LINE})
    value = _document(text, draft, key)
    if draft.errors:
        raise draft.errors[0]
    return value


def _document(text: str, draft: Draft, key: str) -> Any:
    inner = bool(key)
    reading = _Reading(draft, _events(text, draft, key), numbered=not inner)
    next(reading.events)  # the start of the stream
    event = next(reading.events)
    if isinstance(event, yaml.StreamEndEvent):
        raise InputError(draft.source, "is empty, expected a mapping of keys", _EXAMPLE)
    event = next(reading.events)
    if not inner and not isinstance(event, yaml.MappingStartEvent):
        blank = isinstance(event, yaml.ScalarEvent) and event.value == ""
        found = "is empty" if blank else f"holds {_kind(event)}"
        raise InputError(reading.place(event), f"{found}, expected a mapping of keys", _EXAMPLE)
    value = _node(reading, event, key, 0)[0]
    next(reading.events)  # the end of the document
    event = next(reading.events)
    if not isinstance(event, yaml.StreamEndEvent):
        raise InputError(reading.place(event), "a second document begins here", "keep one recipe in a file")
    return value


@dataclass(slots=True)
class _Reading:
    draft: Draft
    events: Iterator[Any]
    numbered: bool
    nodes: int = 0
    anchors: dict[str, tuple[Any, int]] = field(default_factory=dict)

    def place(self, event: Any) -> str:
        return f"{self.draft.source}:{_line(event)}" if self.numbered else self.draft.source


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _events(text: str, draft: Draft, key: str) -> Iterator[Any]:
    try:
        yield from yaml.parse(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line if mark else 0
        where = draft.at(key) if key else f"{draft.source}:{line + 1}"
        raise InputError(where, *_syntax(text, line, str(error.problem or error.context))) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        reason = clean(str(getattr(error, "reason", error)))
        raise InputError(
            draft.at(key), f"holds a character that YAML does not allow ({reason})", "remove it"
        ) from error


def _syntax(text: str, line: int, problem: str) -> tuple[str, str]:
    lines = text.splitlines() or [""]
    near = lines[max(0, line - 1) : line + 1]
    if any(re.match(r" *\t", item) for item in near):
        return "a line is indented with a tab, expected spaces", "put two spaces in place of each tab"
    if "mapping values are not allowed" in problem and len(near) == 2 and near[0].strip() and ":" not in near[0]:
        return f"line {line} has no ': '", "write key: value"
    if "mapping values are not allowed" in problem:
        return (
            "a second ': ' in a line, or an inner key that is not indented",
            'put text with ": " in quotes, or indent inner keys by two spaces',
        )
    if "could not find expected ':'" in problem:
        return "a key without ': ' and a value", "write key: value"
    if "cannot start any token" in problem:
        return f"not YAML ({clean(problem)})", "put the text in quotes"
    return f"not YAML ({clean(problem)})", "check quotes, brackets and indentation on this line and the one above"


def _kind(event: Any) -> str:
    if isinstance(event, yaml.SequenceStartEvent):
        return "a list"
    if isinstance(event, yaml.MappingStartEvent):
        return "a mapping"
    return clean(event.value) or "nothing" if isinstance(event, yaml.ScalarEvent) else "an alias"


def _node(reading: _Reading, event: Any, key: str, depth: int) -> tuple[Any, int]:
    """The value that begins at ``event`` and how many nodes it has, aliases written out."""
    if isinstance(event, yaml.AliasEvent):
        if event.anchor not in reading.anchors:
            raise InputError(
                reading.place(event), f"*{clean(str(event.anchor))} is not defined above", "write the value"
            )
        known, size = reading.anchors[event.anchor]
        _count(reading, event, size)
        return copy.deepcopy(known), size
    _count(reading, event, 1)
    if depth > LIMIT_DEPTH:
        raise InputError(reading.place(event), f"more than {LIMIT_DEPTH} levels deep", "flatten the values")
    if event.tag not in (None, "!"):
        raise InputError(reading.place(event), f"the tag {clean(event.tag)} is not read in recipes", "remove the tag")
    start = reading.nodes
    value: Any
    if isinstance(event, yaml.ScalarEvent):
        value = resolve(event.value) if event.style is None and event.tag is None else event.value
    elif isinstance(event, yaml.SequenceStartEvent):
        value = []
        while not isinstance(item := next(reading.events), yaml.SequenceEndEvent):
            value.append(_node(reading, item, key, depth + 1)[0])
    else:
        value = _mapping(reading, key, depth)
    size = reading.nodes - start + 1
    if event.anchor is not None:
        reading.anchors[event.anchor] = (value, size)
    return value, size


def _mapping(reading: _Reading, key: str, depth: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    first: dict[str, tuple[int, str]] = {}
    while not isinstance(event := next(reading.events), yaml.MappingEndEvent):
        if not isinstance(event, yaml.ScalarEvent):
            raise InputError(reading.place(event), f"a key is {_kind(event)}, expected a name", "write name: value")
        name, line = event.value, _line(event)
        path = f"{key}.{name}" if key else name
        item = next(reading.events)
        text = "***" if is_secret_key(name) else _kind(item)
        if name in values:
            before, old = first[name]
            places = f"line {before}: {old}, line {line}: {text}" if reading.numbered else f"{old}, {text}"
            where = f"{reading.place(event)} {clean(path)}"
            reading.draft.errors.append(InputError(where, f"given twice ({places})", "keep one"))
            saved = dict(reading.draft.where)
            _node(reading, item, path, depth + 1)
            reading.draft.where = saved
            continue
        first[name] = (line, text)
        if reading.numbered and depth == 0 and "." in name:
            section, _, leaf = clean(name).rpartition(".")
            fix = f"write\n    {section}:\n      {leaf}: ...\n  with two spaces before the inner key"
            problem = "dotted keys are for the command line; a file has sections"
            reading.draft.errors.append(InputError(f"{reading.place(event)} {clean(name)}", problem, fix))
            _node(reading, item, "", depth + 1)
            continue
        if reading.numbered:
            reading.draft.where[path] = reading.place(event)
        values[name] = _node(reading, item, path, depth + 1)[0]
    return values


def _count(reading: _Reading, event: Any, size: int) -> None:
    reading.nodes += size
    if reading.nodes > LIMIT_NODES:
        problem = f"more than {LIMIT_NODES} values, aliases written out"
        raise InputError(reading.place(event), problem, "write values in place of aliases (*name)")


# -------------------------------------------------------------------------------------------------------------- writing
def scalar_text(value: Any, flow: bool = False) -> str:
    """A scalar as YAML that this reader and one for YAML 1.1 read back alike; floats keep every bit."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            return ".nan" if math.isnan(value) else (".inf" if value > 0 else "-.inf")
        text = float.__repr__(value)
        return text if "." in text else text.replace("e", ".0e")  # YAML 1.1 takes 1e-05 for text
    text = str(value)
    plain = _PLAIN.fullmatch(text) and text.lower() not in _AMBIGUOUS and not (flow and ":" in text)
    return text if plain else '"' + "".join(map(_escaped, text)) + '"'


def _escaped(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    if char.isprintable() and char != "\ufeff":
        return char
    if char == "\n":
        return "\\n"
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def flow_text(value: Any) -> str:
    """A plain value on one line: ``{digits: 2}``, ``[a, b]`` or a scalar."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(str(key))}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    return scalar_text(value)


def _key(name: str) -> str:
    text = scalar_text(name, flow=True)
    return text if len(text) < 1000 else f"? {text} "  # YAML wants a mark before keys beyond 1024 characters


def _flow(value: Any) -> str:
    return flow_text(value) if isinstance(value, Mapping | list | tuple) else scalar_text(value, flow=True)
