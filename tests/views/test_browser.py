"""`upslope rollouts`: rows chosen, sorted and compared, the state behind the keys, and both through a real terminal."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import select
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.views.conftest import HOSTILE
from upslope.errors import InputError
from upslope.views.browser import Browser, loop, screen
from upslope.views.rollout_rows import ordered, pairs, read_step, steps_of, steps_with
from upslope.views.rollout_rows import select as choose
from upslope.views.rollouts_table import print_diff, print_rollouts

MakeRun = Callable[..., Path]
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")


def row(step: int, group: int, sample: int, prompt: str, completion: str, reward: float | None, **more: Any) -> Any:
    told = {"step": step, "prompt_id": prompt, "group": group, "sample": sample, "prompt": prompt}
    told |= {"completion": completion, "reward": reward, "advantage": (reward or 0) - 0.5, "parts": {"right": reward}}
    return {**told, "token_ids": list(range(len(completion) + 1)), "terminated": len(completion) < 4, **more}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three steps; prompt A is asked in all, B in the first and last, C in the second; sorted by nothing."""
    folder = tmp_path / "run"
    (folder / "rollouts").mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    steps = {
        1: [row(1, 0, 0, "A", "zero", 0.0), row(1, 0, 1, "A", "one", 1.0), row(1, 1, 0, "B", "b", 0.25)],
        2: [row(2, 0, 0, "A", "one", 1.0), row(2, 0, 1, "A", "one", 1.0), row(2, 1, 0, "C", "see", None)],
        10: [
            row(10, 0, 0, "B", "needle", 0.25, answer="b"), row(10, 0, 1, "B", "b", 1.0, extra={"note": "seen"}),
            row(10, 1, 0, "A", "two words here", 0.5), row(10, 1, 1, "A", "", -1.0),
        ],
    }  # fmt: skip
    for step, rows in steps.items():
        lines = "".join(json.dumps(one) + "\n" for one in rows)
        (folder / "rollouts" / f"step-{step:05d}.jsonl").write_text(lines)
    return folder


def texts(entries: Any) -> list[str]:
    return [entry.completion for entry in entries]


# ---------------------------------------------------------------------------------------------------------------- rows
def test_order_by_hand(run: Path) -> None:
    last = read_step(steps_of(run), 10)
    assert texts(ordered(last, "written")) == ["needle", "b", "two words here", ""]
    assert texts(ordered(last, "reward")) == ["b", "two words here", "needle", ""]
    assert texts(ordered(last, "reward", ascending=True)) == ["", "needle", "two words here", "b"]
    assert texts(ordered(last, "length")) == ["two words here", "needle", "b", ""]
    assert [entry.length for entry in ordered(last, "length")] == [15, 7, 2, 1]
    middle = read_step(steps_of(run), 2)
    assert texts(ordered(middle, "reward"))[-1] == texts(ordered(middle, "reward", ascending=True))[-1] == "see"


def test_search_looks_into_prompt_completion_and_answer(run: Path) -> None:
    last = read_step(steps_of(run), 10)
    assert texts(choose(last, search="NEED")) == ["needle"]
    assert texts(choose(last, search="b")) == ["needle", "b"]  # prompt B
    assert texts(choose(last, group=1)) == ["two words here", ""]
    assert texts(choose(last, group=1, search="words")) == ["two words here"]


def test_what_two_steps_have_in_common(run: Path) -> None:
    files = steps_of(run)
    found = pairs(read_step(files, 1), read_step(files, 10))
    assert [pair.prompt_id for pair in found] == ["B", "A"]
    assert (texts(found[1].before), texts(found[1].after)) == (["one", "zero"], ["two words here", ""])
    assert (steps_with(files, "A"), steps_with(files, "C"), steps_with(files, "Z")) == ([1, 2, 10], [2], [])


def test_a_step_that_is_not_there_and_a_run_without_rollouts(run: Path, make_run: MakeRun) -> None:
    with pytest.raises(InputError, match=r"there are those of 1, 2, 10\. Fix: give --step 2"):
        read_step(steps_of(run), 4)
    with pytest.raises(InputError, match="SFT writes none"):
        steps_of(make_run("sft"))


# --------------------------------------------------------------------------------------------------------------- tables
def table(width: int = 100, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    print_rollouts(options.pop("run"), console, **options)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_the_table_of_the_last_step(run: Path) -> None:
    lines = table(run=run).splitlines()
    assert lines[0] == "step 10 of 10: 4 of 4 completions, mean reward 0.188"
    assert lines[1].split() == ["group", "reward", "advantage", "tokens", "end", "prompt", "completion"]
    assert lines[2].split() == ["0", "0.250", "-0.250", "7", "cut", "B", "needle"]
    assert lines[5].split() == ["1", "-1.000", "-1.500", "1", "ended", "A", "(empty)"]


def test_search_without_a_step_goes_over_all(run: Path) -> None:
    lines = table(run=run, search="one").splitlines()
    assert lines[0].startswith("3 steps: 3 of 10 completions with 'one'")
    assert [line.split()[0] for line in lines[2:]] == ["1", "2", "2"]


def test_a_limit_says_how_many_more(run: Path) -> None:
    out = table(run=run, order="reward", limit=1)
    assert out.splitlines()[2].split()[1] == "1.000" and "3 more: --limit 0 shows all" in out
    assert "more" not in table(run=run, limit=0)


def test_a_group_that_is_not_there(run: Path) -> None:
    with pytest.raises(InputError, match="has no group 7; it has 0 to 1"):
        table(run=run, group=7)


def test_json_lines_are_the_rows_of_the_file(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table(run=run, order="reward", limit=2, as_json=True)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["completion"] for one in told] == ["b", "two words here"] and told[0]["extra"] == {"note": "seen"}


def test_the_difference_of_two_steps(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    print_diff(run, console, 1, 2)
    out = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1 prompt in both step 1 and step 2" in out
    assert re.search(r"step 1: mean reward 0\.500 +step 2: mean reward 1\.000", out)
    assert re.search(r"1\.000 +one +1\.000 +2x +one", out)
    print_diff(run, console, 1, 10, as_json=True)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["prompt_id"] for one in told] == ["B", "A"] and len(told[1]["steps"]["10"]) == 2


def test_steps_without_a_common_prompt_name_a_pair_that_has_one(run: Path) -> None:
    (run / "rollouts" / "step-00001.jsonl").write_text(json.dumps(row(1, 0, 0, "Z", "z", 0.0)) + "\n")
    with pytest.raises(InputError, match=r"no prompt was asked in both\. Fix: try --diff 10 2"):
        print_diff(run, Console(file=io.StringIO()), 1, 2)


# ---------------------------------------------------------------------------------------------------------------- keys
def press(browser: Browser, *keys: str) -> Browser:
    for key in keys:
        browser.press(key)
    return browser


@pytest.fixture
def browser(run: Path) -> Browser:
    return Browser.open(run)


def test_it_opens_at_the_last_step(browser: Browser) -> None:
    assert browser.step == 10 and browser.current() == browser.entries()[0]


def test_steps(browser: Browser) -> None:
    assert press(browser, "left").step == 2
    assert press(browser, "left", "left").step == 1 and browser.note == "this is the first step"
    assert press(browser, "end").step == 10 and press(browser, "right").note == "this is the last step so far"
    assert press(browser, "home").step == 1


def test_rows_and_their_ends(browser: Browser) -> None:
    assert press(browser, "down", "j").cursor == 2
    assert press(browser, "pagedown").cursor == 3 and press(browser, "up", "k").cursor == 1
    assert press(browser, "pageup").cursor == 0
    assert press(browser, "pagedown", "left").cursor == 2  # a shorter step: the last row


def test_sorting_and_the_other_way_round(browser: Browser) -> None:
    assert texts(press(browser, "r").rows()) == ["b", "two words here", "needle", ""]
    assert texts(press(browser, "r").rows()) == ["", "needle", "two words here", "b"]
    assert texts(press(browser, "t").rows())[0] == "two words here"
    assert texts(press(browser, "a").rows())[0] == "b"
    assert texts(press(browser, "o").rows()) == ["needle", "b", "two words here", ""]


def test_groups(browser: Browser) -> None:
    assert press(browser, "tab").current() == browser.entries()[2]
    assert press(browser, "tab").current() == browser.entries()[0]
    assert press(browser, "backtab").current() == browser.entries()[2]
    assert texts(press(browser, "down", "g").rows()) == ["two words here", ""] and browser.cursor == 1
    assert texts(press(browser, "tab").rows()) == ["needle", "b"]
    assert len(press(browser, "g").rows()) == 4 and browser.current() == browser.entries()[0]


def test_of_three_groups_tab_goes_on_and_shift_tab_back(browser: Browser, run: Path) -> None:
    rows = [row(11, group, 0, "A", f"g{group}", 1.0) for group in range(3)]
    (run / "rollouts" / "step-00011.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    browser.refresh()
    press(browser, "end")
    seen = []
    for key in ("tab", "tab", "tab", "backtab", "backtab"):
        current = press(browser, key).current()
        assert current is not None
        seen.append(current.completion)
    assert seen == ["g1", "g2", "g0", "g2", "g1"]


def test_search_as_it_is_typed(browser: Browser) -> None:
    assert texts(press(browser, "/", "n", "e").rows()) == ["needle"]
    assert len(press(browser, "backspace", "backspace").rows()) == 4
    assert texts(press(browser, "q", "backspace", "w", "o", "enter").rows()) == ["two words here"]
    assert browser.search == "wo" and browser.typing is None and not browser.done
    assert len(press(browser, "escape").rows()) == 4
    assert press(browser, "/", "x", "x", "escape").search == ""
    assert press(browser, "/", "x", "x", "enter").current() is None
    assert press(browser, "d", "down", "tab", "g", "r").current() is None


def test_the_same_prompt_in_earlier_steps(browser: Browser) -> None:
    pair = press(browser, "tab", "d").pair()
    assert browser.compared == 2 and pair is not None and texts(pair.before) == ["one", "one"]
    assert press(browser, "d").compared == 1 and press(browser, "d").compared is None
    assert browser.note == "no earlier step asked it"
    assert press(browser, "home", "pageup", "d").compared == 2  # nothing earlier: a later one
    assert press(browser, "down").compared is None  # another row: back to it alone
    assert press(browser, "end", "d").compared is not None and press(browser, "escape").compared is None


def test_a_prompt_asked_once(browser: Browser) -> None:
    press(browser, "left", "pagedown", "d")
    assert browser.compared is None and browser.note == "no other step asked this prompt"


def test_new_steps_are_seen(browser: Browser, run: Path) -> None:
    (run / "rollouts" / "step-00011.jsonl").write_text(json.dumps(row(11, 0, 0, "A", "new", 1.0)) + "\n")
    browser.refresh()
    assert texts(press(browser, "right").rows()) == ["new"]


def test_leaving_and_help(browser: Browser) -> None:
    assert press(browser, "?").helping and not press(browser, "q").done
    assert press(browser, "q").done and Browser.open(browser.folder).done is False


def drawn(browser: Browser, width: int = 80, height: int = 24) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=False)
    console.print(screen(browser, width, height))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 50), (60, 12), (40, 10)])
@pytest.mark.parametrize("keys", [(), ("tab", "d"), ("/", "z"), ("?",), ("left", "r", "g")])
def test_the_screen_fits(browser: Browser, width: int, height: int, keys: tuple[str, ...]) -> None:
    lines = drawn(press(browser, *keys), width, height)
    assert len(lines) <= (24 if keys == ("?",) else height) and max(map(len, lines)) <= width


def test_the_screen_shows_the_row_in_full(browser: Browser) -> None:
    lines = drawn(press(browser, "down"))
    whole = "\n".join(lines)
    assert lines[0].startswith("run  step 10 (3 of 3)  4 completions, mean reward 0.188, 50 % cut")
    assert next(line for line in lines if line.startswith(">")).split()[1:5] == ["0", "1.000", "+0.500", "2"]
    assert re.search(r"completion b\s", whole) and re.search(r"note +seen", whole) and "prompt B, sample 1" in whole
    assert lines[-1].startswith("←→ step")


def test_a_long_completion_scrolls(browser: Browser, run: Path) -> None:
    long = "\n".join(f"line {n}" for n in range(100))
    (run / "rollouts" / "step-00012.jsonl").write_text(json.dumps(row(12, 0, 0, "A", long, 1.0)) + "\n")
    browser.refresh()
    press(browser, "end")
    assert any("line 3" in line for line in drawn(browser)) and any(
        "more lines: space" in line for line in drawn(browser)
    )
    press(browser, *[" "] * 40)
    lines = drawn(browser)
    assert any("line 99" in line for line in lines) and not any("line 3 " in line for line in lines)
    press(browser, *["b"] * 60)
    assert any("line 0" in line for line in drawn(browser))


def test_hostile_rollouts_are_shown_as_text(browser: Browser, run: Path) -> None:
    bad = row(13, 0, 0, HOSTILE, HOSTILE + "[bold]", 1.0, extra={HOSTILE: HOSTILE}, answer=HOSTILE)
    lines = json.dumps(bad) + "\n" + json.dumps({**bad, "completion": [{"role": "\x1b[2J", "content": HOSTILE}]}) + "\n"
    (run / "rollouts" / "step-00013.jsonl").write_text(lines + '{"torn": \n[1]\n')
    browser.refresh()
    press(browser, "end", "d", "/", "\x1b", "[", "enter")
    plain = table(run=run, width=300), table(run=run, width=300, search="INST")
    for shown in ("\n".join(drawn(press(browser, "escape"), 120)), *plain):
        assert "[/INST]" in shown and not CONTROLS.search(shown)
    press(browser, "down")
    assert not CONTROLS.search("\n".join(drawn(browser, 120)))


def test_the_loop_ends_with_ctrl_c(browser: Browser) -> None:
    def interrupted(timeout: float) -> str | None:
        raise KeyboardInterrupt

    loop(browser, Console(file=io.StringIO(), force_terminal=True, width=80, height=24), interrupted)


# ------------------------------------------------------------------------------------------------ in a real terminal
class Terminal:
    """The command in a pseudo-terminal: keys go in, the bytes of the screen come out."""

    def __init__(self, *arguments: str, width: int = 100, height: int = 30) -> None:
        self.seen = b""
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.environ |= {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}
            os.environ.pop("COLUMNS", None)
            os.execv(sys.executable, [sys.executable, "-m", "upslope", *arguments])
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def wait(self, pattern: str, seconds: float = 60.0) -> str:
        """What was written since the last wait, once the pattern is in it."""
        until, text = time.monotonic() + seconds, ""
        while not re.search(pattern, text):
            assert time.monotonic() < until, f"{pattern} never came: {text[-2000:]!r}"
            ready, _, _ = select.select([self.master], [], [], 0.2)
            if ready:
                try:
                    self.seen += os.read(self.master, 65536)
                except OSError:
                    break
            text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", self.seen.decode("utf-8", "replace"))
        self.seen = b""
        return text

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def end(self) -> int:
        """The exit code."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.master)
                return os.waitstatus_to_exitcode(status)
            try:  # what it still writes must be read, or it waits for us
                if select.select([self.master], [], [], 0.05)[0]:
                    self.seen += os.read(self.master, 65536)
            except OSError:
                time.sleep(0.05)
        os.kill(self.pid, 9)
        raise AssertionError("it did not end")


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    yield Terminal


def test_browsing_in_a_terminal(run: Path, terminal: Callable[..., Terminal]) -> None:
    screen_ = terminal("rollouts", str(run))
    assert "needle" in screen_.wait("q quit")
    screen_.type("\x1b[D")
    assert "see" in screen_.wait(r"(?s)step 2 \(2 of 3\).*q quit")  # the whole screen, which may come in pieces
    screen_.type("\x1b[Cr")
    screen_.wait("by reward")
    screen_.type("/needle\r")
    assert "needle" in screen_.wait(r"(?s)(/needle|1 of 4).*q quit")
    screen_.type("q")
    assert screen_.end() == 0
