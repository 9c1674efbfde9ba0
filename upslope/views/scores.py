"""Scores of models in the terminal: means, intervals, answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from upslope.views.numbers import percent
from upslope.views.safe_text import clean


@runtime_checkable
class Paired(Protocol):
    """What is shown of pairs; ``recipes.sampled_pairs.SampledPairs`` is one."""

    @property
    def path(self) -> Path: ...
    @property
    def prompts(self) -> int: ...
    @property
    def answers(self) -> int: ...
    @property
    def pairs(self) -> int: ...
    @property
    def cut(self) -> int: ...
    @property
    def empty(self) -> int: ...
    @property
    def unscored(self) -> int: ...
    @property
    def mean(self) -> float: ...
    @property
    def chosen(self) -> float: ...
    @property
    def rejected(self) -> float: ...
    @property
    def longer(self) -> float: ...
    @property
    def first(self) -> Sequence[Mapping[str, Any]]: ...


@runtime_checkable
class Scored(Protocol):
    """What is shown of a score; ``recipes.evaluation.Score`` is one."""

    @property
    def mean(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def n(self) -> int: ...
    @property
    def rewards(self) -> tuple[float | None, ...]: ...
    @property
    def completions(self) -> tuple[str, ...]: ...


def with_interval(score: Scored) -> str:
    """``56.1 % (51.7-60.3)`` for rewards of 0 and 1, else ``0.42 (0.38 to 0.46)``."""
    if set(score.rewards) <= {0.0, 1.0, None}:
        return f"{100 * score.mean:.1f} % ({100 * score.low:.1f}-{100 * score.high:.1f})"
    return f"{score.mean:.3f} ({score.low:.3f} to {score.high:.3f})"


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], console: Console | None = None
) -> None:
    """A plain table; the first column on the left, numbers on the right."""
    table = Table(title=Text(clean(title, 200), style="bold"), title_justify="left", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(Text(clean(column, 80)), justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(str(cell), 200)) for cell in row))
    (console or Console(emoji=False, highlight=False)).print(table)


def print_evaluation(model: str, scores: Mapping[str, Scored], prompts: Sequence[str], show: int) -> None:
    """Mean reward with its 95 % interval for each way of answering, and the first answers."""
    console = Console(emoji=False, highlight=False)
    rows = [(name, with_interval(score), score.n) for name, score in scores.items()]
    print_table(model, ("answers", "mean reward (95 %)", "prompts"), rows, console)
    first = next(iter(scores.values()))
    for prompt, completion, reward in list(zip(prompts, first.completions, first.rewards, strict=True))[:show]:
        number = "none" if reward is None else f"{reward:.2f}"
        text = f"{number:>6}  {clean(prompt, 60)}  ->  {clean(completion, 100)}"
        console.print(Text(text), soft_wrap=True)


def print_pairs(found: Paired, show: int) -> None:
    """How many pairs there are and from what, the mean rewards of their sides, and the first of them."""
    console = Console(emoji=False, highlight=False)
    file = clean(str(found.path), 300)
    lines = [
        f"{found.pairs:,} pairs from {found.answers:,} answers to {found.prompts:,} prompts  ->  {file}",
        f"mean reward  chosen {found.chosen:.3f}  rejected {found.rejected:.3f}  all answers {found.mean:.3f}",
        f"the chosen answer is the longer one in {percent(found.longer)} of the pairs",
    ]
    if without := found.prompts - found.pairs:
        prompts = f"{without:,} prompt{'s' * (without > 1)}"
        lines.append(f"{prompts} gave no pair: no two usable answers of unequal reward")
    out = {"cut by the length limit": found.cut, "empty": found.empty, "without a reward": found.unscored}
    if any(out.values()):
        lines.append("answers left out: " + ", ".join(f"{count:,} {why}" for why, count in out.items() if count))
    for row in found.first[:show]:
        lines += ["", clean(_asked(row["prompt"]), 120)]
        lines += [f"{row[f'{side}_reward']:8.2f}  {clean(str(row[side]), 120)}" for side in ("chosen", "rejected")]
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _asked(prompt: Any) -> str:
    """A prompt of a row: text, or of a conversation its last message."""
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that a function of (done, all) moves, where somebody watches."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)
