"""Where rows come from: files, folders that ``datasets`` saved, and the hub. Plain dictionaries come out, or an
InputError."""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from upslope.errors import InputError

Row = dict[str, Any]
LONGEST_CELL = 1 << 30
"""Characters in a cell of a CSV file. Python's own limit, 131,072, is less than a long document."""
HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+?)(:(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?")


def kind_of(source: str) -> tuple[str, str]:
    """(reader, name in messages) of a source that exists, or of a hub dataset's name.

    Raises:
        InputError: nothing there (with names that are near), or a folder or type of file that is not read.
    """
    try:
        path = Path(source).expanduser()
        is_folder, is_file, exists = path.is_dir(), path.is_file(), path.exists()
    except (OSError, RuntimeError) as error:  # a name too long, a folder that may not be entered; ~nobody
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(source[:200], f"cannot be looked at: {reason}", "give a readable path") from None
    if is_folder:
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return "folder", path.name
        inside = sorted(file.name for file in path.iterdir() if file.suffix in READERS)[:3]
        fix = f"give the file: {path / inside[0]}" if inside else "give a file, or a folder written by save_to_disk"
        raise InputError(source, "is a folder, but not one that the datasets library saved", fix)
    if exists and not is_file:  # reading a pipe would wait for ever, a device would never end
        raise InputError(source, "is not a regular file", "give a file or a folder with rows")
    if exists:
        if path.suffix.lower() not in READERS:
            known = ", ".join(READERS)
            problem = f"files of type {path.suffix or 'none'!r} are not read, expected {known}"
            raise InputError(source, problem, f"convert it to one of {known}")
        return path.suffix.lower(), path.name
    if HUB_NAME.fullmatch(source) and path.suffix.lower() not in READERS and not path.parent.is_dir():
        return "hub", source
    near = []
    with suppress(OSError, ValueError):
        near = difflib.get_close_matches(path.name, [file.name for file in path.parent.iterdir()], n=3)
    elsewhere = "give a .jsonl, .json, .csv or .parquet file, a saved folder, or a hub dataset as org/name"
    raise InputError(source, "no such file or folder", f"did you mean {', '.join(near)}?" if near else elsewhere)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path.name}:{line}", f"not UTF-8 text: {error.reason} at byte {error.start}", "save it as UTF-8"
        ) from None
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}", "check the file's permissions") from None


def _bad_json(path: Path, line: int, error: json.JSONDecodeError) -> InputError:
    start = max(0, error.pos - 30)
    problem = f"{error.msg} at char {error.colno}, near {error.doc[start : start + 60]!r}"
    return InputError(f"{path.name}:{line}", problem, "correct the JSON of that line")


def _not_json(error: Exception) -> str:
    return "is nested too deeply" if isinstance(error, RecursionError) else "holds a number of thousands of digits"


def _object(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        raise InputError(
            place, f"found {type(value).__name__}, expected an object with columns", "write {...} for each row"
        )
    return value


def _read_jsonl(path: Path) -> Iterator[Row]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}", "check the file's permissions") from None
    with file:
        for number, data in enumerate(file, start=1):
            place = f"{path.name}:{number}"
            try:
                line = data.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if line:
                    yield _object(json.loads(line), place)
            except UnicodeDecodeError as error:
                raise InputError(
                    place, f"not UTF-8 text: {error.reason} at byte {error.start}", "save it as UTF-8"
                ) from None
            except json.JSONDecodeError as error:
                raise _bad_json(path, number, error) from None
            except (RecursionError, ValueError) as error:
                raise InputError(place, _not_json(error), "correct the JSON of that line") from None


def _read_json(path: Path) -> Iterator[Row]:
    text = _text(path)
    try:
        content = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # one object a line under the name .json, as many datasets have it
            yield from _read_jsonl(path)
            return
        raise _bad_json(path, error.lineno, error) from None
    except (RecursionError, ValueError) as error:
        raise InputError(path.name, _not_json(error), "correct its JSON") from None
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = content["data"]
    if not isinstance(content, list):
        raise InputError(
            path.name, f"holds one {type(content).__name__}, expected a list of rows", "write [{...}, {...}]"
        )
    for number, item in enumerate(content, start=1):
        yield _object(item, f"{path.name} row {number}")


def _read_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    header: list[str] = []
    try:
        for cells in reader:
            if not cells:
                continue
            if not header:
                header = cells
                if len(set(header)) < len(header):
                    raise InputError(
                        f"{path.name}:1", f"column names repeat: {', '.join(header)}", "name each column once"
                    )
                continue
            if len(cells) != len(header):
                problem = f"{len(cells)} cells, expected {len(header)} ({', '.join(header)})"
                raise InputError(f"{path.name}:{reader.line_num}", problem, "quote cells that hold commas")
            yield dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise InputError(
            f"{path.name}:{reader.line_num}", f"not valid CSV: {error}", "correct the quotes of that line"
        ) from None


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(
            path.name, f"not a readable Parquet file: {str(error).splitlines()[0]}", "write the file again"
        ) from None


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _split_of(found: Any, split: str, where: str) -> list[Row]:
    if hasattr(found, "keys"):  # a DatasetDict
        if split not in found:
            raise InputError(where, f"no split {split!r}. Splits: {', '.join(found)}", f"use one of {', '.join(found)}")
        found = found[split]
    return found.to_list()


def read_folder(path: Path, split: str) -> list[Row]:
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever its many formats raise, the folder cannot be used
        raise InputError(
            str(path), f"is not a readable saved dataset: {_line(error)}", "save it again with save_to_disk"
        ) from None
    return _split_of(found, split, path.name)


def read_hub(source: str, split: str) -> tuple[list[Row], str]:
    match = HUB_NAME.fullmatch(source)
    if match is None:
        raise InputError(source, "is not of the form org/name[:config][@revision]", "write it so")
    import datasets

    name, config, revision = match["name"], match["config"], match["revision"]
    try:
        found = datasets.load_dataset(name, config, split=split, revision=revision)
    except Exception as error:  # datasets, huggingface_hub and the network raise dozens of kinds
        raise _hub_error(source, split, error) from None
    return _split_of(found, split, source), revision or ""


def _hub_error(source: str, split: str, error: Exception) -> InputError:
    """One of five texts: offline, gated, not there, wrong split or config, anything else."""
    chain: list[BaseException] = []
    seen: BaseException | None = error
    while seen is not None and len(chain) < 8:
        chain.append(seen)
        seen = seen.__cause__ or seen.__context__
    text = " ".join(f"{type(link).__name__}: {link}" for link in chain)
    cause = _line(error)
    if re.search(r"gated|restricted", text, re.IGNORECASE):
        return InputError(source, f"is gated ({cause})", "accept its terms on the hub and set HF_TOKEN")
    if re.search(r"DatasetNotFoundError|RepositoryNotFound|RevisionNotFound", text):
        problem = f"no such dataset or revision on the hub, and no such file ({cause})"
        return InputError(source, problem, "check the spelling of org/name; for a private one set HF_TOKEN")
    if re.search(r"offline|Connect\w*Error|Timeout|Couldn't reach|Max retries", text, re.IGNORECASE):
        problem = f"the hub cannot be reached and it is not in the cache ({cause})"
        return InputError(source, problem, "go online once, unset HF_HUB_OFFLINE, or give a file")
    if isinstance(error, ValueError) and re.search(r"split|config", cause, re.IGNORECASE):
        return InputError(source, f"no such split or config (split {split!r}): {cause}", "write org/name:config")
    return InputError(source, f"cannot be loaded: {cause}", "see whether datasets.load_dataset can read it")


def _line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
