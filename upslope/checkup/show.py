"""`upslope check` in the terminal: what is there, one row as the model sees it, the reward tried, the bill, and what
looks wrong."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from upslope.checkup.facts import Bill, Checkup, Lengths, Trial
from upslope.views.numbers import duration, short, whole
from upslope.views.rendered import STYLES, Segment, row_table
from upslope.views.safe_text import clean

LABEL = 9
WARNING, GOOD, DIM, STRONG = "yellow", "green", "dim", "bold"
SHOWN_ROWS = 2
NAMES = {
    "answer": "the row's answer", "other": "another row's answer", "made-up": "made up", "empty": "nothing",
    "form": "the answer, put so",
}  # fmt: skip


def show(found: Checkup, console: Console) -> None:
    """Print all of it; into a file or a pipe without the spaces that fill up lines."""
    if console.is_terminal:
        _print(found, console)
        return
    with console.capture() as captured:
        _print(found, console)
    console.file.write("\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n")


def _print(found: Checkup, console: Console) -> None:
    title = Text(clean(found.recipe, 200), style=STRONG).append(f", for upslope {found.kind}", style="not bold")
    console.print(title)
    console.print()
    table = Table.grid(padding=(0, 1))
    table.add_column(width=LABEL, style=DIM, no_wrap=True)
    table.add_column(overflow="fold")
    for label, content in _rows(found):
        table.add_row(label, content)
    console.print(table)
    console.print()
    console.print(_verdict(found))


def _rows(found: Checkup) -> Iterator[tuple[str, RenderableType]]:
    model, rows, step = found.model, found.rows, found.step
    size = "size not known" if model.parameters is None else f"{_count(model.parameters)} parameters"
    if model.trained is not None and model.trained != model.parameters:
        size += f", {_count(model.trained)} of them trained"
    yield "model", Text(clean(model.name, 300), style=STRONG)
    yield "", Text(f"{clean(model.architecture, 60)}, {size}, context {whole(model.context)}")
    template = "chat template" if model.chat_template else "no chat template"
    stops = " ".join(clean(token, 40) for token in model.stop_tokens)
    yield "", Text(f"{model.dtype} on {model.device}, {template}, ends with {stops}")
    yield (
        "rows",
        Text(f"{whole(rows.train)} to train on, {whole(rows.heldout)} held out, from {clean(rows.source, 300)}"),
    )
    if rows.prompt:
        yield "", Text(f"prompts of {_lengths(rows.prompt)}")
    if found.pairs is not None and found.pairs.chosen and found.pairs.rejected:
        pairs = found.pairs
        both = (pairs.chosen, pairs.rejected)
        yield "", Text("chosen answers of {}, rejected ones of {}".format(*(_lengths(each) for each in both if each)))
        longer, shorter = whole(pairs.chosen_longer), whole(pairs.rejected_longer)
        yield "", Text(f"the chosen one is longer in {longer} pairs, shorter in {shorter}")
    if rows.trained and found.pairs is None:
        yield "", Text(f"{whole(rows.trained.total)} tokens to train on, {_lengths(rows.trained)} a row")
    if rows.answers:
        column = f" (column {clean(rows.answer_column, 60)})" if rows.answer_column else ""
        yield "", Text(f"right answers of {_lengths(rows.answers)}{column}")
    yield "a step", Text(_step(found))
    inner = step.steps * step.optimizer_steps
    passes = f"{_amount(step.passes)} passes over the rows (a pass is {_amount(step.steps_a_pass)} steps)"
    yield "the run", Text(f"{_many(step.steps, 'step')}, {passes}, {_many(inner, 'optimizer step')}")
    evaluated = _many(rows.evaluated, "held-out row") if rows.evaluated else "no held-out row"
    yield "", Text(f"evaluations on {evaluated}; all goes into {clean(found.folder, 300)}")
    yield "", Text()
    row = clean(found.rendered_row, 60)
    total = sum(segment.tokens for segment in found.rendered)
    yield "rendered", Text(f"training row {row}, {total} tokens, as the model is given it", style=DIM)
    after = []
    if step.completions:
        told = f"at most {step.longest_completion} tokens, {step.completions // step.prompts} times"
        after = [("sampled", Text(told, style=STYLES["sampled"]))]
    if found.rejected:
        after = [("rejected" if segment.kind == "trained" else _label(segment), Text(clean(segment.text, 1800)))
                 for segment in found.rejected]  # fmt: skip
    yield "", row_table(found.rendered, _label, after)
    for judge in found.judges:
        yield "", Text()
        yield "reward", Text(clean(judge, 300), style=DIM)
    if found.reward is not None:
        yield "", Text()
        reward = found.reward
        yield "reward", Text(f"{clean(reward.name, 200)}, {_time(reward.seconds)} a completion", style=DIM)
        yield "", _trials(reward.trials)
        if reward.compared and reward.right is not None:
            over = f"over {_many(reward.compared, 'row')}"
            yield "", Text(f"{over}: right answers earn {reward.right:.4g}, wrong ones {reward.wrong:.4g}")
    yield "", Text()
    yield "memory", _bill(found.memory, "the sizes of this model are not known")
    yield "disk", _bill(found.disk, "the size of this model is not known")


def _step(found: Checkup) -> str:
    step = found.step
    if not step.completions:
        return f"{whole(step.prompts)} {'pairs' if found.pairs is not None else 'rows'}"
    samples = step.completions // step.prompts
    times = f" x {samples} completions" if samples > 1 else ", one completion each"
    count = f" = {whole(step.completions)}" if samples > 1 else ""
    inner = f", {step.optimizer_steps} optimizer steps" if step.optimizer_steps > 1 else ""
    return f"{whole(step.prompts)} prompts{times}{count}, each of at most {step.longest_completion} tokens{inner}"


def _label(segment: Segment) -> str:
    return f"{segment.kind} {segment.tokens}"


def _trials(trials: tuple[Trial, ...]) -> Table:
    """The first rows' trials; the empty completion's and the form's always."""
    kept = list(dict.fromkeys(trial.prompt_id for trial in trials))[:SHOWN_ROWS]
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style=DIM, no_wrap=True)
    table.add_column(overflow="fold")
    for trial in trials:
        if trial.prompt_id not in kept and trial.what not in ("empty", "form"):
            continue
        value = "none" if trial.reward is None else f"{trial.reward:.4g}"
        style = STRONG if trial.what in ("answer", "form") else ""
        parts = ", ".join(f"{clean(name, 40)} {short(number)}" for name, number in trial.parts.items())
        text = Text(clean(trial.completion, 120) or '""')
        if len(trial.parts) > 1:
            text.append(f"  ({parts})", style=DIM)
        table.add_row(Text(value, style=style), NAMES.get(trial.what, trial.what), text)
    return table


def _bill(bill: Bill | None, unknown: str) -> Text:
    if bill is None:
        return Text(unknown, style=DIM)
    text = Text(f"about {_gigabytes(bill.needed)}")
    if bill.there is not None:
        enough = bill.needed <= bill.there
        where = clean(bill.where, 200)
        text.append(f" of {_gigabytes(bill.there)} {where}", style="" if enough else WARNING)
    told = sorted(((size, name) for name, size in bill.parts.items() if size), reverse=True)
    text.append("\n" + ", ".join(f"{name} {_gigabytes(size)}" for size, name in told), style=DIM)
    return text


def _verdict(found: Checkup) -> RenderableType:
    """What the run would say of itself, and what looks wrong, as a list."""
    table = Table.grid(padding=(0, 1))
    table.add_column(style=WARNING, no_wrap=True)
    table.add_column(overflow="fold")
    for notice in found.notices:
        table.add_row("note", Text(clean(notice, 2000)))
    for finding in found.findings:
        said = Text(clean(finding.where, 200), style=STRONG)
        table.add_row(
            "-",
            said.append(f": {clean(finding.text, 2000)}{'' if finding.text.endswith('?') else '.'}", style="not bold"),
        )
    if not found.findings:
        return (
            Group(table, Text("Nothing looks wrong.", style=GOOD))
            if found.notices
            else Text("Nothing looks wrong.", style=GOOD)
        )
    count = "1 thing looks" if len(found.findings) == 1 else f"{len(found.findings)} things look"
    return Group(Text(f"{count} wrong:", style=WARNING), table)


def _lengths(lengths: Lengths) -> str:
    if lengths.shortest == lengths.longest:
        return f"{whole(lengths.longest)} token{'s' if lengths.longest > 1 else ''}"
    return f"{whole(lengths.shortest)} to {whole(lengths.longest)} tokens (median {whole(lengths.median)})"


def _many(number: int, what: str) -> str:
    return f"{whole(number)} {what}" + ("" if number == 1 else "s")


def _count(number: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.{2 if unit == 'B' else 1}f} {unit}"
    return whole(number)


def _amount(number: float) -> str:
    return f"{number:.2g}" if number < 10 else whole(number)


def _time(seconds: float) -> str:
    return "under 1 ms" if seconds < 1e-3 else duration(seconds)


def _gigabytes(size: int) -> str:
    if size < 1e6:
        return f"{size / 1e3:.0f} kB"
    return f"{size / 1e6:.0f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"
