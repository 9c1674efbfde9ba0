"""`upslope rollouts` on a terminal: the completions of a run by step and group, sorted, searched and compared by keys.

``Browser`` is the state and what a key does to it, without a terminal; ``browse`` runs it on one. Files are read when a
step is shown, so it can be used while the run goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from upslope.views.keys import ReadKey, raw_keys
from upslope.views.numbers import percent, short, whole
from upslope.views.rollout_rows import (
    Entry,
    Order,
    Pair,
    mean_reward,
    ordered,
    pairs,
    read_step,
    select,
    steps_of,
    steps_with,
)
from upslope.views.rollouts_table import diff_table, signed
from upslope.views.run_files import rollout_files
from upslope.views.safe_text import clean

WAIT = 1.0
"""Seconds without a key after which the folder is looked at for new steps."""
SORT_KEYS: dict[str, Order] = {"r": "reward", "a": "advantage", "t": "length", "o": "written"}
LONGEST = 20_000
"""Cells of one text that the details show."""
HELP = (
    ("left right", "the step before, the step after; home end: the first, the last"),
    ("up down", "a completion; page up, page down: ten"),
    ("tab, shift+tab", "the next, the last group; g: this group alone, or all"),
    ("r a t o", "sort by reward, advantage, tokens, or as written; again: the other way round"),
    ("/", "search prompts, completions and answers"),
    ("escape", "back: from a comparison, a search, a single group"),
    ("d", "this prompt in another step beside this one; again: an earlier one"),
    ("space b", "scroll the text below"),
    ("q", "leave"),
)
SHORT_HELP = "←→ step  ↑↓ row  tab group  r a t o sort  / search  d diff  ? help  q quit"


@dataclass(slots=True)
class Browser:
    """Where one is: a step of ``files``, the row under the cursor, the order, the search, what is compared."""

    folder: Path
    files: dict[int, Path]
    step: int
    cursor: int = 0
    order: Order = "written"
    ascending: bool = False
    search: str = ""
    group: int | None = None
    typing: str | None = None
    helping: bool = False
    compared: int | None = None
    note: str = ""
    scroll: int = 0
    done: bool = False
    _read: dict[int, list[Entry]] = field(default_factory=dict)

    @classmethod
    def open(cls, run: Path | str, step: int | None = None) -> Browser:
        """At a step, by default the last. Raises ``InputError`` where there is nothing to show."""
        files = steps_of(run)
        browser = cls(Path(run), files, max(files) if step is None else step)
        browser.entries()
        return browser

    # ------------------------------------------------------------------------------------------------- what is shown
    def entries(self, step: int | None = None) -> list[Entry]:
        """All completions of a step, read once."""
        number = self.step if step is None else step
        if number not in self._read:
            self._read = {kept: self._read[kept] for kept in list(self._read)[-3:]}
            self._read[number] = read_step(self.files, number)
        return self._read[number]

    def rows(self) -> list[Entry]:
        """The completions listed: of the step, chosen and sorted."""
        return ordered(select(self.entries(), self.group, self.search), self.order, self.ascending)

    def current(self) -> Entry | None:
        rows = self.rows()
        return rows[min(self.cursor, len(rows) - 1)] if rows else None

    def pair(self) -> Pair | None:
        """This prompt in the compared step and in this one."""
        current = self.current()
        if self.compared is None or current is None:
            return None
        found = pairs(self.entries(self.compared), self.entries())
        return next((pair for pair in found if pair.prompt_id == current.prompt_id), None)

    def refresh(self) -> None:
        """Take in steps that were written meanwhile."""
        self.files = rollout_files(self.folder) or self.files

    # -------------------------------------------------------------------------------------------------- what keys do
    def press(self, key: str) -> None:
        """Do what the key says."""
        self.note = ""
        if self.typing is not None:
            self._type(key)
            return
        if self.helping:
            self.helping = False
            return
        if key in SORT_KEYS:
            order = SORT_KEYS[key]
            self.ascending = not self.ascending if order == self.order else False
            self.order, self.cursor, self.scroll = order, 0, 0
            return
        action = _KEYS.get(key)
        if action is not None:
            action(self)

    def _type(self, key: str) -> None:
        if self.typing is None:
            return
        if key == "enter":
            self.search, self.typing = self.typing, None
        elif key == "escape":
            self.search, self.typing = "", None
        elif key == "backspace":
            self.typing = self.typing[:-1]
        elif len(key) == 1:
            self.typing += key
        if self.typing is not None:
            self.search = self.typing
        self.cursor = self.scroll = 0

    def to_step(self, step: int) -> None:
        """Show that step; the cursor stays at its row, the group does not."""
        self.step, self.group, self.compared, self.scroll = step, None, None, 0
        self.move(0)

    def by_steps(self, by: int) -> None:
        known = list(self.files)
        place = known.index(self.step) + by
        if 0 <= place < len(known):
            self.to_step(known[place])
        else:
            self.note = "this is the last step so far" if by > 0 else "this is the first step"

    def move(self, by: int) -> None:
        """The cursor, by so many rows, within the list."""
        self.cursor = max(0, min(self.cursor + by, len(self.rows()) - 1))
        self.scroll = 0
        if by:
            self.compared = None

    def by_groups(self, by: int) -> None:
        """The first completion of the next or the last group."""
        current = self.current()
        groups = sorted({entry.group for entry in self.entries() if entry.group is not None})
        if current is None or current.group is None or not groups:
            self.note = "these completions have no groups"
            return
        wanted = groups[(groups.index(current.group) + by) % len(groups)]
        if self.group is not None:
            self.group = wanted
        rows = self.rows()
        self.cursor = next((place for place, entry in enumerate(rows) if entry.group == wanted), self.cursor)
        self.compared, self.scroll = None, 0

    def only_group(self) -> None:
        """This group alone, or all groups again; the cursor stays at its completion."""
        current = self.current()
        self.group = current.group if self.group is None and current is not None else None
        rows = self.rows()
        self.cursor = next((n for n, e in enumerate(rows) if current is not None and e.place == current.place), 0)

    def compare(self) -> None:
        """This prompt in the nearest earlier step that asked it, then in those before; else in a later one."""
        current = self.current()
        if current is None:
            return
        asked = [step for step in steps_with(self.files, current.prompt_id) if step != self.step]
        earlier = [step for step in asked if step < (self.compared or self.step)]
        later = [step for step in asked if step > self.step]
        if earlier:
            self.compared = earlier[-1]
        elif self.compared is None and later:
            self.compared = later[0]
        else:
            self.note = "no other step asked this prompt" if self.compared is None else "no earlier step asked it"
            self.compared = None

    def drop(self) -> None:
        """Back from a comparison; else from a search; else from a single group."""
        if self.compared is not None:
            self.compared = None
        elif self.search:
            self.search = ""
        elif self.group is not None:
            self.only_group()

    def leave(self) -> None:
        self.done = True

    def start_typing(self) -> None:
        self.typing = self.search

    def show_help(self) -> None:
        self.helping = True

    def scroll_by(self, lines: int) -> None:
        self.scroll = max(0, self.scroll + lines)


_KEYS: dict[str, Callable[[Browser], None]] = {
    "q": Browser.leave, "end of file": Browser.leave,
    "left": lambda b: b.by_steps(-1), "h": lambda b: b.by_steps(-1),
    "right": lambda b: b.by_steps(1), "l": lambda b: b.by_steps(1),
    "home": lambda b: b.to_step(min(b.files)), "end": lambda b: b.to_step(max(b.files)),
    "up": lambda b: b.move(-1), "k": lambda b: b.move(-1), "down": lambda b: b.move(1), "j": lambda b: b.move(1),
    "pageup": lambda b: b.move(-10), "pagedown": lambda b: b.move(10),
    "tab": lambda b: b.by_groups(1), "backtab": lambda b: b.by_groups(-1), "g": Browser.only_group,
    "escape": Browser.drop, "/": Browser.start_typing, "d": Browser.compare, "?": Browser.show_help,
    " ": lambda b: b.scroll_by(5), "b": lambda b: b.scroll_by(-5),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------- on the screen
def screen(browser: Browser, width: int, height: int) -> RenderableType:
    """The whole screen, ``height`` lines of at most ``width`` cells."""
    if browser.helping:
        return _help()
    rows = browser.rows()
    listed = max(min(len(rows), (height - 4) // 2), 3)
    rule = Text("─" * width, style="dim", no_wrap=True)
    parts: list[RenderableType] = [_head(browser, rows, width), _list(browser, rows, listed), rule]
    room = max(height - listed - 4, 3)
    parts.append(_below(browser, room, width))
    return Group(*parts, _foot(browser, width))


def _head(browser: Browser, rows: list[Entry], width: int) -> Text:
    known = list(browser.files)
    place = f"{known.index(browser.step) + 1} of {len(known)}" if browser.step in known else ""
    entries = browser.entries()
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"{clean(browser.folder.resolve().name, 60)}  step {browser.step}", style="bold")
    count = f"{whole(len(rows))} of {whole(len(entries))}" if len(rows) < len(entries) else whole(len(entries))
    text.append(f" ({place})  {count} completions, mean reward {short(mean_reward(rows))}")
    cut = [entry for entry in rows if entry.end == "cut"]
    if cut:
        text.append(f", {percent(len(cut) / len(rows))} cut")
    way = "" if browser.order == "written" and not browser.ascending else f"  by {browser.order}"
    text.append(way + (", ascending" if browser.ascending else ""), style="cyan")
    if browser.group is not None:
        text.append(f"  group {browser.group} only", style="cyan")
    if browser.search and browser.typing is None:
        text.append(f"  /{clean(browser.search, 40)}", style="cyan")
    text.truncate(width, overflow="ellipsis")
    return text


def _list(browser: Browser, rows: list[Entry], listed: int) -> Table:
    """The rows around the cursor."""
    table = Table(box=None, pad_edge=False, expand=True, header_style="dim")
    table.add_column("", width=1, no_wrap=True)
    for name in ("group", "reward", "advantage", "tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("end", no_wrap=True)
    for name in ("prompt", "completion"):
        table.add_column(name, no_wrap=True, overflow="ellipsis", ratio=1)
    cursor = min(browser.cursor, max(len(rows) - 1, 0))
    first = max(0, min(cursor - listed // 2, len(rows) - listed))
    for place, entry in enumerate(rows[first : first + listed], start=first):
        cells = (whole(entry.group), short(entry.reward), signed(entry.advantage), whole(entry.length), entry.end)
        texts = [Text(clean(text, 200)) for text in (entry.prompt, entry.completion or "(empty)")]
        here = place == cursor
        tone = "green" if (entry.advantage or 0) > 0 else "red" if (entry.advantage or 0) < 0 else ""
        table.add_row(
            ">" if here else "", *(Text(cell, style=tone if n == 2 else "") for n, cell in enumerate(cells)), *texts,
            style="reverse" if here else "",
        )  # fmt: skip
    for _ in range(listed - len(rows[first : first + listed])):
        table.add_row(*[""] * 8)
    return table


def _below(browser: Browser, room: int, width: int) -> RenderableType:
    """The completion under the cursor in full, or the comparison, in ``room`` lines."""
    current = browser.current()
    if current is None:
        return _padded([Text("nothing matches: escape drops the search", style="dim")], room)
    console = Console(width=width, color_system="truecolor", force_terminal=True)
    pair = browser.pair()
    content: RenderableType = diff_table(pair, most=20) if pair is not None else _details(current)
    options = console.options.update(width=width)
    lines = console.render_lines(content, options, pad=False)
    last = max(len(lines) - room, 0)
    browser.scroll = min(browser.scroll, last)
    kept = lines[browser.scroll : browser.scroll + room]
    texts = [Text.assemble(*((part.text, part.style or "") for part in line), no_wrap=True) for line in kept]
    if last > browser.scroll and texts:
        texts[-1] = Text(f"... {last - browser.scroll + 1} more lines: space scrolls", style="dim")
    return _padded(texts, room)


def _padded(lines: list[Text], room: int) -> Group:
    return Group(*lines, *(Text() for _ in range(room - len(lines))))


def _details(entry: Entry) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("prompt", Text(clean(entry.prompt, LONGEST, keep_breaks=True)))
    if entry.answer is not None:
        table.add_row("answer", Text(clean(entry.answer, LONGEST, keep_breaks=True)))
    completion = clean(entry.completion, LONGEST, keep_breaks=True) or "(empty)"
    table.add_row("completion", Text(completion, style="bold"))
    numbers = f"reward {short(entry.reward)}, advantage {signed(entry.advantage)}, {whole(entry.length)} tokens"
    if len(entry.parts) > 1:
        numbers += "; " + ", ".join(f"{clean(name, 60)} {short(value)}" for name, value in entry.parts.items())
    table.add_row("numbers", Text(numbers, style="cyan"))
    extra = entry.row.get("extra")
    if isinstance(extra, dict):
        for name, value in extra.items():
            table.add_row(clean(str(name), 30), Text(clean(str(value), LONGEST, keep_breaks=True)))
    table.add_row("row", Text(f"prompt {clean(entry.prompt_id, 200)}, sample {whole(_sample(entry))}", style="dim"))
    return table


def _sample(entry: Entry) -> float | None:
    value = entry.row.get("sample")
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _foot(browser: Browser, width: int) -> Text:
    if browser.typing is not None:
        return Text(f"/{clean(browser.typing, max(width - 3, 1))}█" if browser.typing else "/█", style="bold")
    text = Text(browser.note or SHORT_HELP, style="yellow" if browser.note else "dim", no_wrap=True)
    text.truncate(width, overflow="ellipsis")
    return text


def _help() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, meaning in HELP:
        table.add_row(key, meaning)
    table.add_row("", Text("any key goes back", style="dim"))
    return table


def browse(run: Path | str, console: Console, descriptor: int, step: int | None = None) -> None:
    """Browse on the terminal behind ``descriptor`` until q or Ctrl-C; the screen is given back as it was."""
    browser = Browser.open(run, step)
    with raw_keys(descriptor) as read:
        loop(browser, console, read)


def loop(browser: Browser, console: Console, read: ReadKey) -> None:
    """Draw, wait for a key, do what it says."""
    picture = lambda: screen(browser, console.width, console.height)  # noqa: E731
    with Live(get_renderable=picture, console=console, auto_refresh=False, screen=True) as display:
        try:
            while not browser.done:
                display.refresh()
                key = read(WAIT)
                if key is None:
                    browser.refresh()
                else:
                    browser.press(key)
        except KeyboardInterrupt:
            return
