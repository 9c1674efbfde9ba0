"""Completions token by token: what each token's advantage was, how open the choice, and whether the sampler agreed."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, isfinite
from pathlib import Path
from typing import Any

from upslope.views.numbers import finite, short, whole
from upslope.views.page import Section, missing
from upslope.views.run_files import read_lines, require_run, rollout_files, spread
from upslope.views.safe_text import clean_html

SHOWN_STEPS = 6
MOST_ROWS, MOST_TOKENS, LONGEST = 16, 1200, 300
"""Of a step: completions, tokens in all (but for the first completion), and tokens of one completion."""
TAIL = 0.98
"""The scale ends at the largest absolute value of this share of the tokens: one outlier would pale all others."""
LEAST_GAP = 1e-3
"""Nats; the scale of differences of log-probabilities never ends below it, or rounding would look like a finding."""

Numbers = tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A line of rollouts/ with the numbers of its tokens; ``columns`` are as long as ``pieces``."""

    row: Mapping[str, Any]
    pieces: tuple[str, ...]
    columns: Mapping[str, Numbers]

    def number(self, name: str, token: int) -> float | None:
        """A token's number; None where the line has none."""
        found = self.columns.get(name)
        return None if found is None else found[token]


@dataclass(frozen=True, slots=True)
class Measure:
    """What tokens may be coloured by. ``key`` names its classes, ``note`` explains it under the legend."""

    key: str
    column: str
    label: str
    unit: str
    note: str
    signed: bool = True


MEASURES = (
    Measure(
        "a", "advantages", "advantage", "",
        "What the loss multiplied: blue tokens were pushed up, orange ones down.",
    ),
    Measure(
        "e", "entropies", "entropy", " nats",
        "Of the distribution that the token was drawn from: no colour where the policy was sure.", signed=False,
    ),
    Measure(
        "g", "gaps", "learner − sampler", " nats",
        "Log-probability of the learner minus that of the sampler, before the update. It should be near 0: the two "
        "are one policy, and what is left is rounding.",
    ),
)  # fmt: skip
COLUMNS = ("advantages", "entropies", "gaps", "logprobs", "values", "estimates", "true_advantages", "true_values")


# -------------------------------------------------------------------------------------------------------------- reading
def token_row(row: Mapping[str, Any]) -> TokenRow | None:
    """The numbers of a line's tokens; None where it has no token texts.

    A column of another length is left out. Advantages that the line does not list are its ``advantage``.
    """
    texts = row.get("pieces")
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        return None
    columns: dict[str, Numbers] = {}
    for name in COLUMNS:
        values = row.get(name)
        if isinstance(values, list) and len(values) == len(texts):
            columns[name] = tuple(finite({"value": value}, "value") for value in values)
    advantage = finite(row, "advantage")
    if "advantages" not in columns and "advantages" not in row and advantage is not None:
        columns["advantages"] = (advantage,) * len(texts)
    return TokenRow(row, tuple(texts), columns)


def read_token_rows(run: Path, limit: int = MOST_ROWS) -> dict[int, list[TokenRow]]:
    """By step, the rows that have the numbers of their tokens: six steps, evenly spread, with the first and the last.

    They are chosen among those with entropies, which a run tells of some steps only, if there are any.

    Raises ``InputError`` where ``run`` is not a run folder.
    """
    files = rollout_files(require_run(run))
    found = {}
    whole = [step for step, file in files.items() if _has_entropies(file)]
    for step in spread(whole or list(files), SHOWN_STEPS):
        lines = read_lines(files[step], limit)
        rows = [read for row in (lines.rows if lines else ()) if (read := token_row(row)) is not None]
        if rows:
            found[step] = rows
    return found


def _has_entropies(file: Path) -> bool:
    with file.open("rb") as lines:  # the first alone: read_lines counts the others
        return b'"entropies"' in lines.readline()


def scale_end(values: Iterable[float | None]) -> float:
    """Where a colour scale ends: the largest absolute value but for a tail of outliers; 0 without any."""
    sizes = sorted(abs(value) for value in values if value is not None and value != 0 and isfinite(value))
    return sizes[ceil(TAIL * len(sizes)) - 1] if sizes else 0.0


def signed(value: float | None) -> str:
    """A number with its sign; a true minus."""
    return f"+{short(value)}" if value is not None and value > 0 else minus(value)


def minus(value: float | None) -> str:
    """``short`` with a true minus."""
    text = short(value)
    return f"−{text[1:]}" if len(text) > 1 and text[0] == "-" else text


# -------------------------------------------------------------------------------------------------------------- section
def tokens_section(run: Path, title: str = "Token by token") -> Section:
    """Completions of six steps with their tokens coloured by advantage, entropy, or learner against sampler.

    A switch changes the measure; a token's numbers are told under the pointer and on focus (arrow keys). Raises
    ``InputError`` where ``run`` is not a run folder.
    """
    found = read_token_rows(run)
    if not found:
        return Section(title, missing("No row of rollouts/ has the numbers of its tokens."))
    shown = {step: _fitting(rows) for step, rows in found.items()}
    rows = [row for part in shown.values() for row in part]
    ends = {
        measure.key: scale_end(value for row in rows for value in row.columns.get(measure.column, ()))
        for measure in MEASURES
        if any(measure.column in row.columns for row in rows)
    }
    if ends.get("g"):
        ends["g"] = max(ends["g"], LEAST_GAP)
    blocks = "".join(
        f'<div class="token-step" data-step="{step}"><h3>Step {step}</h3>{_rows(part, ends)}</div>'
        for step, part in shown.items()
    )
    key = f"{zlib.crc32(blocks.encode('utf-8', 'replace')):08x}"
    counts = "; ".join(
        f"{len(part)} of {len(found[step])} rows of step {step}"
        for step, part in shown.items()
        if len(part) < len(found[step])
    )
    note = f'<p class="note">Shown: {counts}. The file holds the rest.</p>' if counts else ""
    return Section(
        title,
        f'<div class="tokens">{step_picker(shown)}<div class="token-bar"><div class="switch" role="radiogroup" '
        f'aria-label="colour tokens by">{_switch(ends, key)}</div>{_legends(ends)}'
        '<output class="token-read" aria-live="polite"><span class="hint">Point at a token, or Tab to one and use the '
        f"arrow keys: its numbers stand here.</span></output></div>{blocks}{note}</div>",
    )


def step_picker(steps: Iterable[int]) -> str:
    """Buttons and a choice of step for the ``data-step`` elements beside it; the last step is chosen."""
    listed = list(steps)
    options = "".join(
        f'<option value="{step}"{" selected" if step == max(listed) else ""}>step {step}</option>' for step in listed
    )
    earlier, later = (
        f'<button type="button" aria-label="{name}">{sign}</button>'
        for name, sign in (("earlier", "←"), ("later", "→"))
    )
    return f'<div class="picker">{earlier}<select aria-label="step">{options}</select>{later}</div>'


def _fitting(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """The first rows, as many as a page should hold."""
    kept: list[TokenRow] = []
    used = 0
    for row in rows:
        used += min(len(row.pieces), LONGEST)
        if kept and used > MOST_TOKENS:
            break
        kept.append(row)
    return kept


def _switch(ends: Mapping[str, float], key: str) -> str:
    there = [measure for measure in MEASURES if measure.key in ends]
    chosen = next((measure for measure in there if ends[measure.key]), there[0] if there else None)
    return "".join(
        f'<label><input type="radio" class="by-{measure.key}" name="measure-{key}"'
        f"{' checked' if measure is chosen else ''}><span>{measure.label}</span></label>"
        for measure in there
    )


def _legends(ends: Mapping[str, float]) -> str:
    parts = []
    for measure in MEASURES:
        end = ends.get(measure.key)
        if end is None:
            continue
        low = f"≤ {signed(-end)}" if measure.signed else "0"
        high = f"≥ {signed(end) if measure.signed else short(end)}{measure.unit}"
        scale = f'<span>{low}</span><i class="scale{" signed" if measure.signed else ""}"></i><span>{high}</span>'
        parts.append(
            f'<div class="token-legend of-{measure.key}">'
            f'<div class="scale-line">{scale if end else "<span>0 at every token shown</span>"}</div>'
            f"<p>{clean_html(measure.note)}</p></div>"
        )
    return "".join(parts)


def _rows(rows: Sequence[TokenRow], ends: Mapping[str, float]) -> str:
    parts, before = [], object()
    for row in rows:
        group = (row.row.get("group"), str(row.row.get("prompt")))
        if group != before:
            prompt = row.row.get("prompt")
            text = prompt if isinstance(prompt, str) else str(prompt)
            parts.append(f'<p class="token-prompt">{clean_html(text, 600)}</p>')
            before = group
        parts.append(_row(row, ends))
    return "".join(parts)


def _row(row: TokenRow, ends: Mapping[str, float]) -> str:
    reward, sample = finite(row.row, "reward"), finite(row.row, "sample")
    advantage = finite(row.row, "advantage")
    stopped = row.row.get("terminated")
    end = '<span class="cut">cut</span>' if stopped is False else ""
    head = f"<span>reward <b>{minus(reward)}</b></span><span>advantage <b>{signed(advantage)}</b></span>{end}"
    texts = "".join(_token(row, place, ends) for place in range(min(len(row.pieces), LONGEST)))
    more = len(row.pieces) - LONGEST
    rest = f'<span class="note"> … {whole(more)} more tokens</span>' if more > 0 else ""
    label = f"completion {whole(sample)}, reward {short(reward)}"
    return (
        f'<div class="token-row"><div class="token-head">{head}</div>'
        f'<div class="token-text" role="group" aria-label="{clean_html(label, 80)}">{texts}{rest}</div></div>'
    )


def _token(row: TokenRow, place: int, ends: Mapping[str, float]) -> str:
    style = []
    for measure in MEASURES:
        value = row.number(measure.column, place)
        end = ends.get(measure.key)
        if value and end:
            style.append(f"--{measure.key}:{min(max(value / end, -1.0), 1.0):.2g}")
    told = [
        signed(row.number("advantages", place)),
        short(row.number("entropies", place)),
        signed(row.number("gaps", place)),
        signed(row.number("logprobs", place)),
        signed(row.number("values", place)) if "values" in row.columns else "",
    ]
    painted = f' style="{";".join(style)}"' if style else ""
    focus = "0" if place == 0 else "-1"
    return f'<span class="t" tabindex="{focus}" data-n="{"|".join(told)}"{painted}>{_shown(row.pieces[place])}</span>'


def _shown(piece: str) -> str:
    """A token's text with its invisible parts made visible."""
    text = clean_html(piece, 200)
    if not text:
        return '<i class="ws">·</i>'
    return text.replace("\n", '<i class="ws">↵</i>\n').replace("\t", '<i class="ws">⇥</i>\t')
