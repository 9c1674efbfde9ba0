"""A small client of Chromium's DevTools protocol over a pipe (``--remote-debugging-pipe``): no package, no port.

Commands go to the browser's file descriptor 3 and replies come from its 4, as JSON that ends in a zero byte.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
NONE_FOUND = f"no browser: none of {', '.join(NAMES)} is on the PATH (Debian: apt-get install chromium)"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
# Moves the two ends of the pipes to descriptors 3 and 4 before the browser takes the process over.
_LAUNCHER = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for end, place in zip(ends, (3, 4)):
    os.dup2(end, place, inheritable=True)
os.execv(sys.argv[3], sys.argv[3:])
"""
_KEYS = {
    "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "ArrowLeft": 37, "Enter": 13, "Tab": 9, "Home": 36, "End": 35,
}  # fmt: skip


def find_browser() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class Page:
    """A tab. ``events`` holds everything it reported: console, exceptions, requests, log entries."""

    write: int
    read: int
    session: str | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    buffer: bytes = b""
    last: int = 0

    def send(self, method: str, timeout: float = 30.0, **parameters: Any) -> dict[str, Any]:
        """Sends a command and returns its result. Raises RuntimeError on an error, TimeoutError on silence."""
        self.last += 1
        message: dict[str, Any] = {"id": self.last, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + timeout
        while True:
            reply = self._receive(end, method)
            if reply.get("id") == self.last:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']}")
                return reply["result"]
            self.events.append(reply)

    def _receive(self, end: float, what: str) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.read], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise TimeoutError(f"the browser did not answer {what}")
            found = os.read(self.read, 1 << 20)
            if not found:
                raise RuntimeError(f"the browser ended before it answered {what}")
            self.buffer += found
        line, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(line)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression (a promise is awaited). Raises RuntimeError where it throws."""
        reply = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in reply:
            raise RuntimeError(json.dumps(reply["exceptionDetails"])[:2000])
        return reply["result"].get("value")

    def open(self, path: Path) -> None:
        self.send("Page.navigate", url=path.resolve().as_uri())
        for _ in range(400):
            if self.evaluate("location.protocol === 'file:' && document.readyState === 'complete'"):
                # A page in smooth motion is not where it was measured when the click arrives.
                self.evaluate("document.documentElement.style.scrollBehavior = 'auto'")
                return
            time.sleep(0.02)
        raise TimeoutError(f"{path} did not load")

    def size(self, width: int, height: int, dark: bool = False) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def mouse(self, kind: str, x: float, y: float, down: bool = False) -> None:
        """``kind``: mousePressed, mouseMoved, mouseReleased; in pixels of the viewport."""
        button = "none" if kind == "mouseMoved" and not down else "left"
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=int(down), clickCount=1)

    def click(self, x: float, y: float) -> None:
        self.mouse("mousePressed", x, y, down=True)
        self.mouse("mouseReleased", x, y)

    def click_on(self, selector: str) -> None:
        """A real click in the middle of an element, scrolled into view first."""
        self.click(*self.middle(selector))

    def middle(self, selector: str) -> tuple[float, float]:
        """The middle of an element in pixels of the viewport, after it has been scrolled into view."""
        left, top, width, height = self.box(selector)
        return left + width / 2, top + height / 2

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of an element, after it has been scrolled into view."""
        self.evaluate(
            "new Promise(done => { const before = scrollY; "
            f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'nearest'}}); "
            # Where a click lands is only certain once the scrolled page has been put on the screen.
            "if (scrollY === before) done(); else requestAnimationFrame(() => requestAnimationFrame(done)); })"
        )
        found = self.evaluate(
            f"(() => {{ const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect(); "
            "return [b.x, b.y, b.width, b.height]; })()"
        )
        return found[0], found[1], found[2], found[3]

    def key(self, key: str) -> None:
        """A real key press: a name such as ``ArrowUp``, or one character."""
        text: dict[str, Any] = {} if key in _KEYS and key != "Enter" else {"text": "\r" if key == "Enter" else key}
        code = _KEYS.get(key, ord(key.upper()) if len(key) == 1 else 0)
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def screenshot(self, path: Path, whole: bool = True) -> Path:
        picture = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(picture["data"]))
        return path

    def complaints(self) -> list[str]:
        """Console errors and warnings, exceptions, log entries (a violated security policy is one)."""
        found = []
        for event in self.events:
            kind, said = event.get("method"), event.get("params", {})
            if kind == "Runtime.exceptionThrown" or kind == "Log.entryAdded":
                found.append(json.dumps(said)[:600])
            elif kind == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning", "assert"):
                found.append(json.dumps(said["args"])[:600])
        return found

    def requests(self) -> list[str]:
        """Addresses that the page asked for, its own file and data: addresses left out."""
        asked = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith(("file:", "data:"))]


@contextmanager
def browser(path: str) -> Iterator[Page]:
    """A fresh browser with one tab; it and its profile are gone at the end."""
    to_browser, from_browser = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(prefix="upslope-browser-", ignore_cleanup_errors=True) as profile:
        ends = (to_browser[0], from_browser[1])
        command = [sys.executable, "-c", _LAUNCHER, *map(str, ends), path, *FLAGS, f"--user-data-dir={profile}"]
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, pass_fds=ends, stdin=quiet, stdout=quiet, stderr=quiet)
        for end in ends:
            os.close(end)
        page = Page(to_browser[1], from_browser[0])
        try:
            target = page.send("Target.createTarget", url="about:blank")["targetId"]
            page.session = page.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for room in ("Page", "Runtime", "Log", "Network"):
                page.send(f"{room}.enable")
            yield page
            page.session = None
            page.send("Browser.close")
            process.wait(timeout=10)
        finally:
            for end in (page.write, page.read):
                os.close(end)
            if process.poll() is None:
                process.kill()
                process.wait()
