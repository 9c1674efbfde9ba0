"""Training progress in the cell of a notebook: one panel that is redrawn in place, warnings kept under it.

Jupyter, JupyterLab, VS Code and Colab run a kernel; its output is no terminal, and a line a step would fill the page.
IPython is never imported here: where a kernel runs, it is loaded already.
"""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

from upslope.views.progress import Progress, Sample
from upslope.views.safe_text import clean
from upslope.views.terminal import WARNING, end_line, panel

WIDTH = 100
PAUSE = 0.5
"""Seconds between two redrawings while a phase goes on; the end of a step is always drawn."""
NOTICES = 8
"""Notices that stay in view, the last ones."""
PAGE = "<pre style=\"line-height:1.25;font-family:Menlo,Consolas,'DejaVu Sans Mono',monospace\">{code}</pre>"


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return getattr(shell, "kernel", None) is not None


class NotebookView:
    """A listener of a run that shows it in the output of the cell that started it.

    ``display`` is ``IPython.display.display``, unless another is given. ``clock`` gives seconds. What the page gets is
    HTML of escaped text, and the same as plain text for front ends without HTML.
    """

    def __init__(self, display: Callable[..., Any] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._display = display or sys.modules["IPython"].display.display
        self._progress = Progress(clock)
        self._handle: Any = None
        self._drawn = float("-inf")
        self._lock = threading.Lock()

    # ---------------------------------------------------------------------------------------------- what the run tells
    def on_start(self, facts: Mapping[str, Any]) -> None:
        with self._lock:
            self._progress.start(facts)
        self._draw()

    def on_phase(self, step: int, phase: str, done: int, total: int) -> None:
        with self._lock:
            fresh = self._progress.enter(step, phase, done, total)
        self._draw(only_after=0.0 if fresh and phase == "loading" else PAUSE)

    def on_step(self, step: int, metrics: Mapping[str, Any], timings: Mapping[str, Any]) -> None:
        with self._lock:
            self._progress.add(step, metrics, timings)
        self._draw()

    def on_notice(self, text: str) -> None:
        with self._lock:
            self._progress.notices.append(text)
        self._draw()

    def on_sample(self, step: int, prompt: str, completion: str, reward: float | None) -> None:
        with self._lock:
            self._progress.sample = Sample(step, prompt, completion, reward)

    def on_end(self, summary: Mapping[str, Any]) -> None:
        with self._lock:
            self._progress.summary = dict(summary)
            self._progress.phase = None
        self._draw()

    # ------------------------------------------------------------------------------------------------------- the cell
    def renderable(self) -> RenderableType:
        """The panel as it stands, with the last notices and, at the end, how the run ended."""
        with self._lock:
            parts: list[RenderableType] = [panel(self._progress, WIDTH)]
            parts += [Text(clean(text, 2000), style=WARNING) for text in self._progress.notices[-NOTICES:]]
            if self._progress.summary is not None:
                parts.append(Text(end_line(self._progress), style="bold"))
            return Group(*parts)

    def bundle(self) -> dict[str, str]:
        """What the cell shows: the same as HTML and as plain text."""
        # no file of the console's own: it prints into the record alone
        console = Console(
            file=io.StringIO(), record=True, width=WIDTH, force_terminal=True, force_jupyter=False,
            color_system="truecolor", markup=False, emoji=False, highlight=False,
        )  # fmt: skip
        console.print(self.renderable())
        shown = console.export_text(clear=False)
        return {"text/html": console.export_html(inline_styles=True, code_format=PAGE), "text/plain": shown}

    def _draw(self, only_after: float = 0.0) -> None:
        now = self._progress.clock()
        if now - self._drawn < only_after:
            return
        self._drawn = now
        if self._handle is None:
            self._handle = self._display(self.bundle(), raw=True, display_id=True)
        else:
            self._handle.update(self.bundle(), raw=True)
