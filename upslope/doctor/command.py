"""`upslope doctor` in the terminal, or as JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from upslope.doctor.examine import LONGEST, RANK, SIZES, SLOTS, TOKENS, WAYS, Health, examine
from upslope.errors import MachineError
from upslope.views.safe_text import clean


def doctor_command(console: Console, as_json: bool) -> None:
    """Print what was found. Raises ``MachineError`` (exit code 3) where something that is needed is missing."""
    found = examine()
    if as_json:
        told = {"ok": not found.missing, "missing": list(found.missing), **asdict(found)}
        sys.stdout.write(json.dumps(told, indent=1) + "\n")
    else:
        _print(found, console)
    if found.missing:
        wanted = [name for name in found.missing if not name.startswith("python")]
        quoted = " ".join(f"'{name}'" for name in wanted)
        fix = f"pip install -U {quoted}" if wanted else "use a newer Python"
        raise MachineError("doctor", f"needed and not here: {', '.join(found.missing)}", fix)


def _print(found: Health, console: Console) -> None:
    hard = found.hardware
    rows: list[tuple[str, Text]] = [
        ("machine", Text(clean(hard.platform, 200))),
        ("", Text(f"{clean(hard.cpu, 120)}, {hard.cores} cores" + _and(hard.vector))),
        ("memory", Text(f"{_size(hard.available)} free of {_size(hard.memory)}")),
        ("disk", Text(f"{_size(hard.disk)} free here")),
        ("torch", Text(f"{hard.torch}, threads: {hard.threads}" if hard.torch else "cannot be imported")),
    ]
    if hard.cache:
        state = "the bundled model is there" if hard.bundled else "the bundled model is fetched at its first use"
        room = f"{_size(hard.cache_disk)} free"
        rows.insert(4, ("cache", Text(f"{clean(hard.cache, 300)}, {room}; {state}")))
    for device in hard.devices:
        kind = "bfloat16" if device.bfloat16 else "no bfloat16"
        rows.append(("device", Text(f"{clean(device.name, 100)}, {_size(device.free)} free of {_size(device.memory)}, "
                                    f"{kind}")))  # fmt: skip
    if hard.device:
        rows.append(("a run", Text(f"takes {hard.device} and computes in {hard.dtype}, unless told otherwise")))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in rows:
        grid.add_row(label, text)
    console.print(grid)
    console.print()
    console.print(_package_table(found))
    _variables(found, console)
    console.print()
    for what, holds, how in found.isolation:
        console.print(_mark(holds).append(f" {what}: {clean(how, 300)}", style="default"))
    console.print()
    console.print(_fit_table(found))


def _package_table(found: Health) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for name in ("package", "installed", "needs", "for"):
        table.add_column(name, overflow="fold")
    for package in found.packages:
        if package.extra == "dev":
            continue
        mark = _mark(package.ok) if not package.extra or package.ok else Text("-", style="dim")
        why = f"[{package.extra}]" if package.extra else package.why
        table.add_row(mark, package.name, package.installed or "-", package.needs, Text(why, style="dim"))
    return table


def _variables(found: Health, console: Console) -> None:
    if found.variables:
        console.print()
        for name, value in found.variables.items():
            console.print(Text(f"{name}=", style="dim").append(clean(value, 300), style="not dim"))
    for remark in found.remarks:
        console.print(Text("! ", style="yellow").append(clean(remark, 300), style="default"))


def _fit_table(found: Health) -> Table:
    where = "on the largest device" if found.hardware.devices else "in free memory"
    title = (
        f"Memory for training all weights / a LoRA of rank {RANK}; there are {_size(found.there)} {where}\n"
        f"({TOKENS} tokens at once in rows of {LONGEST}, {SLOTS} completions; for a recipe of yours: upslope check)"
    )
    table = Table(box=None, pad_edge=False, header_style="dim", title=title, title_justify="left", title_style="")
    table.add_column("model")
    for way in WAYS:
        table.add_column(way, justify="right", no_wrap=True)
    for size in SIZES:
        cells = []
        for fit in (fit for fit in found.fits if fit.size == size):
            cell = Text()
            for need, fit_in, gap in ((fit.full, fit.full_fits, " / "), (fit.lora, fit.lora_fits, "")):
                cell.append(
                    f"{need / 1e9:.1f}" if need < 99.5e9 else f"{need / 1e9:.0f}", style="" if fit_in else "red"
                )
                cell.append("" if fit_in else "!", style="red").append(gap)
            cells.append(cell.append(" GB"))
        table.add_row(size, *cells)
    table.caption = (
        "! does not fit; a lower train.micro_batch_tokens takes less"
        if not all(f.full_fits and f.lora_fits for f in found.fits)
        else None
    )
    table.caption_justify = "left"
    return table


def _mark(good: bool) -> Text:
    return Text("ok", style="green") if good else Text("no", style="bold red")


def _and(names: tuple[str, ...]) -> str:
    return f", {', '.join(names)}" if names else ""


def _size(size: int | None) -> str:
    return "an unknown amount" if size is None else f"{size / 1e9:.1f} GB"
