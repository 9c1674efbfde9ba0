"""``report.html``: one page about a run, or about several, made of sections.

Build other pages from the same parts: ``page("Seeds", "three of them", [curves_section(runs), table_section(...)])``.
"""

from __future__ import annotations

import os
from pathlib import Path

from upslope.errors import MachineError
from upslope.views.page import Section, image_section, page, table_section, text_section
from upslope.views.run_files import read_facts, require_run
from upslope.views.sections import (
    curves_section,
    facts_section,
    phase_section,
    rollouts_section,
    summary_section,
)
from upslope.views.token_truth import has_truth, truth_section
from upslope.views.tokens import read_token_rows, tokens_section

__all__ = [
    "Section",
    "curves_section",
    "facts_section",
    "image_section",
    "page",
    "phase_section",
    "rollouts_section",
    "summary_section",
    "table_section",
    "text_section",
    "tokens_section",
    "truth_section",
    "write_page",
    "write_report",
]


def write_page(path: Path, content: str) -> Path:
    """Writes a page whole or not at all, and returns its path. Raises ``MachineError`` where it cannot be written."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(content, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise MachineError(str(path), f"cannot be written ({error.strerror})", "free space or allow writing") from error
    return path


def write_report(run: Path) -> Path:
    """Writes ``report.html`` of a run folder of any recipe and returns its path.

    What is shown follows from the files and metrics that are there; a missing file is said in the page. Raises
    ``InputError`` where ``run`` is not a run folder.
    """
    folder = require_run(run)
    facts = read_facts(folder) or {}
    name = str(facts.get("name") or facts.get("run") or folder.resolve().name)
    told = [str(facts[key]) for key in ("recipe", "model", "device", "dtype", "status") if _plain(facts.get(key))]
    sections = [summary_section(folder), curves_section({name: folder})]
    if (folder / "rollouts").is_dir() or facts.get("recipe") in ("ppo", "grpo"):
        sections.append(rollouts_section(folder))
    if read_token_rows(folder):
        sections.append(tokens_section(folder))
    if has_truth(folder) and (folder / "rollouts").is_dir():
        sections.append(truth_section(folder))
    sections += [phase_section(folder), facts_section(folder)]
    return write_page(folder / "report.html", page(name, " · ".join(told), sections))


def _plain(value: object) -> bool:
    return isinstance(value, str | int | float) and value != ""
