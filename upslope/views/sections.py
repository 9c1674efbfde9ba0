"""What a report shows of a run folder, one function a section. A missing file is said in the page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from upslope.views.charts import COLORS, SMOOTHING, Point, Series, line_chart, smoothing
from upslope.views.health import findings
from upslope.views.numbers import duration, finite, percent, short, whole
from upslope.views.page import Section, missing
from upslope.views.progress import PHASES
from upslope.views.run_files import (
    Lines,
    flat,
    read_facts,
    read_lines,
    read_steps,
    read_text,
    require_run,
    rollout_files,
    spread,
)
from upslope.views.safe_text import clean_html

Row = dict[str, Any]
_REPEATED = re.compile(r"attempts\.\d+\.versions\..*")  # the versions of the last attempt stand in the table anyway
SHOWN_STEPS = 6
TEXT_LIMIT = 1500

# (title, metric, the same measured on held-out rows, share of 1, note)
CHARTS: tuple[tuple[str, str, str | None, bool, str], ...] = (
    ("Reward", "reward", "eval/reward", False, "mean of the step's completions"),
    ("Held-out accuracy", "eval/accuracy", None, True, "on prompts never trained on"),
    ("Loss", "loss", "eval_loss", False, "nats a token"),
    ("Pairs with the chosen answer ahead", "accuracy", None, True, "by the reward model's score, in the step"),
    ("Score of chosen less rejected", "margin", "eval/margin", False, "of the reward model"),
    ("Calibration error", "eval/calibration_error", None, False, "how sure against how often right, held-out pairs"),
    ("Pairs with the chosen answer ahead", "rewards/accuracies", "eval/rewards/accuracies", True, "by log(pi / ref)"),
    ("Implicit reward of chosen less rejected", "rewards/margins", "eval/rewards/margins", False, "beta log(pi / ref)"),
    ("Log-probability of chosen answers", "logps/chosen", None, False, "nats a whole answer"),
    ("Accuracy of the next token", "mean_token_accuracy", None, True, "on the rows of the step"),
    ("KL to the reference", "kl", None, False, "nats"),
    ("Entropy", "entropy", None, False, "nats a token"),
    ("Completion length", "completions/mean_length", None, False, "tokens"),
    ("Cut by the length limit", "completions/clipped_ratio", None, True, "share of completions"),
    ("Groups with equal rewards", "frac_reward_zero_std", None, True, "share; they teach nothing"),
    ("Explained variance of the critic", "explained_variance", None, False, "1: perfect; 0: no better than the mean"),
    ("Loss of the critic", "value_loss", None, False, ""),
    ("Clipped ratios", "clip_ratio", None, False, "share of tokens"),
    ("Sampler against learner", "sampler_gap/mean", None, False, "mean |difference of log-prob|, nats"),
    ("Gradient norm", "grad_norm", None, False, "before clipping"),
)


def _points(rows: Iterable[Row], name: str) -> tuple[Point, ...]:
    """(step, value) of the rows that have a finite value."""
    pairs = ((finite(row, "step"), finite(row, name)) for row in rows)
    return tuple((step, value) for step, value in pairs if step is not None and value is not None)


def _band(rows: Iterable[Row]) -> tuple[tuple[float, float, float], ...]:
    """(step, shortest, longest) completion."""
    ends = (
        (finite(row, "step"), *(finite(row, f"completions/{end}_length") for end in ("min", "max"))) for row in rows
    )
    return tuple((step, low, high) for step, low, high in ends if None not in (step, low, high))  # type: ignore[misc]


def curves_section(runs: Mapping[str, Path], title: str = "Curves") -> Section:
    """The metrics of one or several runs over their steps, a chart a metric, runs over one another.

    ``runs`` maps the name in the legend to the run folder. A chart appears where any run has its metric. Raises
    ``InputError`` where a path is not a run folder.
    """
    read = {name: read_steps(require_run(path) / "metrics.jsonl") for name, path in runs.items()}
    notes = [missing(f"{name}: no steps in metrics.jsonl, so no curves.") for name, rows in read.items() if not rows]
    single = len(runs) == 1
    every = [row for rows in read.values() for row in rows]
    by_group = any("reward" in row for row in every)
    logged = [finite(row, "step") or 0.0 for rows in read.values() for row in rows]
    ends = (min(logged), max(logged)) if logged else None
    charts = []
    for heading, metric, heldout, share, note in _charts(read):
        series = []
        for color, (name, rows) in enumerate(read.items()):
            band = _band(rows) if single and metric == "completions/mean_length" else ()
            label = "" if single else name
            if single and heldout and any(heldout in row for row in rows):
                label = "training"
            marked = metric.startswith("eval")
            series.append(Series(label, _points(rows, metric), color, marked=marked, band=band))
            if heldout:
                series.append(Series("held-out", _points(rows, heldout), color, marked=True))
        if heldout and not any(metric in row for rows in read.values() for row in rows):
            note = "on rows never trained on"
        if metric == "loss" and by_group:
            note = "of the policy; about 0 by design in GRPO"
        if metric == "loss" and any("accuracy" in row or "rewards/accuracies" in row for row in every):
            note = "a pair"
        if single and metric == "completions/mean_length" and series[0].band:
            note = "tokens; shaded: shortest to longest"
        charts.append(line_chart(heading, note, series, share, ends))
    drawn = "".join(charts)
    if any(smoothing(len(rows)) > 1 for rows in read.values()):
        notes.append(f'<p class="note">{SMOOTHING}</p>')
    legend = "" if single else f'<div class="legend">{_legend(read)}</div>'
    return Section(title, "".join(notes) + (f'{legend}<div class="charts">{drawn}</div>' if drawn else ""))


def _legend(names: Iterable[str]) -> str:
    return "".join(f'<span class="k c{i % COLORS}">{clean_html(name, 60)}</span>' for i, name in enumerate(names))


def _charts(read: Mapping[str, Sequence[Row]]) -> list[tuple[str, str, str | None, bool, str]]:
    """What to draw: held-out numbers over the training ones for one run, beside them for several."""
    charts: list[tuple[str, str, str | None, bool, str]] = []
    for heading, metric, heldout, share, note in CHARTS:
        if heldout is None or len(read) == 1:
            charts.append((heading, metric, heldout, share, note))
        else:
            charts.append((heading, metric, None, share, note))
            charts.append((f"{heading}, held-out", heldout, None, share, "on rows never trained on"))
    return charts + _own_rewards(read)


def _own_rewards(read: Mapping[str, Sequence[Row]]) -> list[tuple[str, str, str | None, bool, str]]:
    """A chart for each reward function, where there are several."""
    names = sorted({key for rows in read.values() for row in rows for key in row if key.startswith("rewards/")})
    means = [name for name in names if name.endswith("/mean")]
    return [(f"Reward: {name[8:-5]}", name, None, False, "mean") for name in means] if len(means) > 1 else []


def summary_section(run: Path, title: str = "Result") -> Section:
    """The few numbers that a reader asks for first, and what the health checks found on the way."""
    folder = require_run(run)
    rows, times = read_steps(folder / "metrics.jsonl"), read_steps(folder / "timings.jsonl")
    facts = read_facts(folder) or {}
    if not rows:
        return Section(title, missing("No step was logged: metrics.jsonl is missing or empty."))
    cards = [("steps", f"{finite(rows[-1], 'step'):,.0f}")]
    if facts.get("status"):
        cards.insert(0, ("status", clean_html(str(facts["status"]), 40)))
    for label, metric in (("reward", "reward"), ("loss", "loss")):
        values = [value for _, value in _points(rows, metric)]
        if values and (metric == "reward" or not any("reward" in row for row in rows)):
            recent = values[-10:]
            first = f", from {short(values[0])}" if len(values) > 1 else ""
            cards.append((f"{label}, last {len(recent)} steps{first}", short(sum(recent) / len(recent))))
    for label, metric in (("accuracy", "eval/accuracy"), ("reward", "eval/reward"), ("loss", "eval_loss")):
        values = [value for _, value in _points(rows, metric)]
        if values:
            first = f", from {short(values[0])}" if len(values) > 1 else ""
            cards.append((f"held-out {label}{first}", short(values[-1])))
    kls = _points(rows, "kl")
    if kls:
        cards.append(("nats of KL to the reference", short(kls[-1][1])))
    seconds = [value for step, value in _points(times, "time/step") if step > 0]
    if seconds:
        cards.append((f"in steps, median {duration(median(seconds))}", duration(sum(seconds))))
    markup = "".join(f'<div class="card"><b>{value}</b><span>{label}</span></div>' for label, value in cards)
    return Section(title, f'<div class="cards">{markup}</div>{_health(rows)}')


def _health(rows: Sequence[Row]) -> str:
    """Each kind of finding once: in how many steps, which, and its last sentence."""
    told: dict[str, list[tuple[float, str]]] = {}
    steps_taken = sum(1 for row in rows if row["step"] > 0)  # step 0 is the evaluation before training
    for index, row in enumerate(rows):
        for finding in findings(row, rows[:index]):
            told.setdefault(finding.kind, []).append((row["step"], finding.text))
    told.pop("loss near 0", None)  # a note for who watches the first step
    if not told:
        return f'<h3>Health</h3><p class="good">Nothing wrong in {steps_taken} steps.</p>'
    parts = []
    for kind, found in told.items():
        steps = f"step {found[0][0]:.0f}" if len(found) == 1 else f"steps {found[0][0]:.0f} to {found[-1][0]:.0f}"
        where = f"{len(found)} of {steps_taken} steps ({steps})"
        last = clean_html(found[-1][1], 800)
        parts.append(f'<p class="finding"><b>{clean_html(kind, 40)}</b>, {where}. Last: {last}</p>')
    return "<h3>Health</h3>" + "".join(parts)


# ------------------------------------------------------------------------------------------------------------- rollouts
ROLLOUT_COLUMNS = ("group", "prompt", "completion", "reward", "advantage", "tokens", "end")


def rollouts_section(
    run: Path, steps: Sequence[int] | None = None, limit: int = 32, title: str = "Sampled completions"
) -> Section:
    """A table of sampled completions with a choice of step; columns sort by a click.

    ``steps``: which of the run's rollouts to show (default: six, evenly spread, with the first and the last);
    ``limit``: rows a step. Advantages are coloured against the largest one shown, blue above 0, orange below. Raises
    ``InputError`` where ``run`` is not a run folder.
    """
    files = rollout_files(require_run(run))
    if not files:
        return Section(title, missing("rollouts/ holds no step-*.jsonl, so there are no completions to show."))
    chosen = spread(list(files), SHOWN_STEPS) if steps is None else [step for step in steps if step in files]
    notes = [
        missing(f"rollouts/step-{step:05d}.jsonl is not in this run; its steps: {', '.join(map(str, files))}.")
        for step in (steps or ())
        if step not in files
    ]
    read = {step: lines for step in chosen if (lines := read_lines(files[step], limit)) is not None}
    if not read:
        return Section(title, "".join(notes))
    rows = [row for lines in read.values() for row in lines.rows]
    largest = max((abs(finite(row, "advantage") or 0.0) for row in rows), default=0.0) or 1.0
    options = "".join(
        f'<option value="{step}"{" selected" if step == max(read) else ""}>step {step}</option>' for step in read
    )
    right = ("group", "reward", "advantage", "tokens")
    head = "".join(
        f'<th scope="col" class="n">{name}</th>' if name in right else f'<th scope="col">{name}</th>'
        for name in ROLLOUT_COLUMNS
    )
    bodies = "".join(_rollouts_body(step, lines, largest) for step, lines in read.items())
    earlier, later = (
        f'<button type="button" aria-label="{name}">{sign}</button>'
        for name, sign in (("earlier", "←"), ("later", "→"))
    )
    return Section(
        title,
        f'{"".join(notes)}<div class="rollouts">'
        f'<div class="picker">{earlier}<select aria-label="step">{options}</select>{later}</div>'
        f'<div class="scroll"><table class="sortable"><thead><tr>{head}</tr></thead>{bodies}</table></div></div>'
        f'<p class="note">{_counts(read)} Control characters are removed from texts.</p>',
    )


def _counts(read: Mapping[int, Lines]) -> str:
    """How many rows of each step are shown."""
    told: dict[str, list[int]] = {}
    for step, lines in read.items():
        total = len(lines.rows) + lines.bad + lines.more
        bad = f" ({lines.bad} not readable)" if lines.bad else ""
        told.setdefault(f"{len(lines.rows)} of {total} rows{bad}", []).append(step)
    return "; ".join(f"{text} of step {', '.join(map(str, steps))}" for text, steps in told.items()) + "."


def _rollouts_body(step: int, lines: Lines, largest: float) -> str:
    parts, group = [], object()
    for row in lines.rows:
        first = row.get("group") != group
        group = row.get("group")
        parts.append(_rollout(row, largest, first))
    return f'<tbody data-step="{step}">{"".join(parts)}</tbody>'


def _rollout(row: Row, largest: float, first: bool) -> str:
    reward, advantage, group = (finite(row, name) for name in ("reward", "advantage", "group"))
    tokens = row.get("token_ids")
    length = len(tokens) if isinstance(tokens, list) else None
    tone = 'class="n"'
    if advantage:
        size = min(abs(advantage) / largest, 1.0)
        tone = f'class="n adv {"up" if advantage > 0 else "down"}" style="--size:{size:.2f}"'
    parts = row.get("parts")
    tip = ""
    if isinstance(parts, dict) and parts:
        tip = f' title="{clean_html(", ".join(f"{name} {_value(value)}" for name, value in parts.items()), 400)}"'
    end = "ended" if row.get("terminated") is True else "cut" if row.get("terminated") is False else "-"
    marks = (' class="first"' if first else "", ' class="cut"' if end == "cut" else "")
    return (
        f"<tr{marks[0]}>{_numeric('group', whole(group), group)}"
        f'<td class="text" data-label="prompt">{_content(row.get("prompt"))}{_answer(row)}</td>'
        f'<td class="text" data-label="completion">{_content(row.get("completion"))}</td>'
        f"{_numeric('reward', short(reward), reward, tip)}"
        f"{_numeric('advantage', short(advantage), advantage, tone=tone)}"
        f'{_numeric("tokens", whole(length), length)}<td{marks[1]} data-label="end">{end}</td></tr>'
    )


def _numeric(label: str, text: str, value: float | None, tip: str = "", tone: str = 'class="n"') -> str:
    sort = "" if value is None else f' data-value="{value!r}"'
    return f'<td {tone} data-label="{label}"{sort}{tip}>{text}</td>'


def _value(value: Any) -> str:
    return short(float(value)) if isinstance(value, int | float) else str(value)


def _content(value: Any) -> str:
    """Text as it is; a conversation with its roles; anything else as Python writes it."""
    if isinstance(value, list) and all(isinstance(turn, dict) and "content" in turn for turn in value):
        value = "\n".join(f"{turn.get('role', '?')}: {turn['content']}" for turn in value)
    if value is None:
        return "-"
    text = value if isinstance(value, str) else str(value)
    return clean_html(text, TEXT_LIMIT) if text else '<span class="cut">(empty)</span>'


def _answer(row: Row) -> str:
    answer = row.get("answer")
    return "" if answer is None else f'<br><span class="note">answer: {clean_html(str(answer), 200)}</span>'


# ------------------------------------------------------------------------------------------------------- time and facts
def phase_section(run: Path, title: str = "Where the time went") -> Section:
    """Seconds and share of each phase over the run, and tokens a second. Raises ``InputError`` for no run folder."""
    rows = read_steps(require_run(run) / "timings.jsonl")
    if not rows:
        return Section(title, missing("timings.jsonl is missing or empty, so the phases are not known."))
    totals = {name: sum(value for _, value in _points(rows, f"time/{name}")) for name in PHASES}
    totals = {name: seconds for name, seconds in totals.items() if seconds > 0}
    steps = sum(value for _, value in _points(rows, "time/step"))
    rest = steps - sum(totals.values())
    if rest > 0.005 * steps:
        totals["other"] = rest
    whole_time = sum(totals.values())
    colors = {name: f"c{index % COLORS}" for index, name in enumerate((*PHASES, "other"))}
    bar = "".join(
        f'<span class="{colors[name]}" style="flex:{seconds / whole_time:.4f}" title="{name}"></span>'
        for name, seconds in totals.items()
    )
    taken = max(sum(1 for row in rows if row["step"] > 0), 1)
    rows_of_phases = "".join(
        f'<tr><td><span class="k {colors[name]}">{name}</span></td><td class="n">{percent(seconds / whole_time)}</td>'
        f'<td class="n">{duration(seconds)}</td><td class="n">{duration(seconds / taken)}</td></tr>'
        for name, seconds in totals.items()
    )
    phases = (
        f'<div class="phases"><div class="bar">{bar}</div><table><thead><tr><th>phase</th><th class="n">share</th>'
        f'<th class="n">in all</th><th class="n">a step</th></tr></thead><tbody>{rows_of_phases}</tbody></table></div>'
        if totals
        else ""
    )
    cards = "".join(
        f'<div class="card"><b>{short(median(values))}</b><span>tokens a second {label} (median)</span></div>'
        for label, metric in (("sampled", "tokens_per_second"), ("learned from", "learner_tokens_per_second"))
        if (values := [value for _, value in _points(rows, metric)])
    )
    chart = line_chart("Seconds a step", "evaluations included", [Series("", _points(rows, "time/step"))])
    left = f'<div>{phases}<div class="cards" style="margin-top:14px">{cards}</div></div>'
    return Section(title, f'<div class="halves">{left}{chart}</div>')


def facts_section(run: Path, title: str = "What was run, and on what") -> Section:
    """Everything in run.json (versions, hardware, seed, git, command) and the recipe as it was resolved."""
    folder = require_run(run)
    facts = read_facts(folder)
    if facts is None:
        shown = missing("run.json is missing or is not JSON, so versions, hardware and seed are not known.")
    else:
        cells = "".join(
            f'<tr><th scope="row">{clean_html(key, 80)}</th><td>{clean_html(_fact(key, value), 2000)}</td></tr>'
            for key, value in flat(facts)
            if not (key.startswith("attempts.1.") or _REPEATED.fullmatch(key))
        )
        shown = f'<div class="scroll"><table class="facts"><tbody>{cells}</tbody></table></div>'
    recipe = read_text(folder / "recipe.yaml")
    if recipe is None:
        return Section(title, shown + missing("recipe.yaml is missing."))
    return Section(
        title, f"{shown}<details><summary>recipe.yaml</summary><pre>{clean_html(recipe, 100_000)}</pre></details>"
    )


def _fact(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key.endswith("_bytes") and isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value / 2**30:,.1f} GiB"
    return str(value) if not isinstance(value, bool) else ("yes" if value else "no")
