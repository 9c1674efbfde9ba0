"""Progress in a terminal and in a log, driven through the listener's calls with a clock of our own."""

from __future__ import annotations

import contextlib
import io
import math
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from upslope.run.folder import RunFolder
from upslope.run.session import Run
from upslope.views.report import write_report
from upslope.views.terminal import TerminalView

FACTS = {
    "run": "grpo-arithmetic",
    "recipe": "grpo",
    "model": "smollm2",
    "device": "cpu",
    "dtype": "float32",
    "steps": 20,
    "folder": "runs/grpo-arithmetic",
}
METRICS = {
    "loss": 0.2,
    "reward": 0.4,
    "reward_std": 0.3,
    "kl": 0.0123,
    "entropy": 0.85,
    "completions/mean_length": 12.3,
    "completions/min_length": 3.0,
    "completions/max_length": 24.0,
    "completions/clipped_ratio": 0.12,
    "frac_reward_zero_std": 0.25,
    "groups": 8.0,
}
TIMES = {
    "time/sampling": 1.2,
    "time/learning": 1.6,
    "time/step": 3.0,
    "tokens_per_second": 812.3,
    "learner_tokens_per_second": 1500.0,
}
EQUAL = {**METRICS, "frac_reward_zero_std": 1.0}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def plain(width: int = 100) -> tuple[TerminalView, io.StringIO, Clock]:
    file, clock = io.StringIO(), Clock()
    return TerminalView(Console(file=file, width=width, force_terminal=False), clock), file, clock


def live(width: int = 100, height: int = 50) -> tuple[TerminalView, io.StringIO, Clock]:
    file, clock = io.StringIO(), Clock()
    console = Console(file=file, width=width, height=height, force_terminal=True, color_system="truecolor", _environ={})
    return TerminalView(console, clock), file, clock


def shown(view: TerminalView, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False, _environ={})
    console.print(view.renderable())
    return console.file.getvalue()  # type: ignore[attr-defined]


def run(view: TerminalView, clock: Clock, steps: int = 5, **changes: Any) -> None:
    view.on_start(FACTS)
    for step in range(1, steps + 1):
        view.on_phase(step, "sampling", 3, 64)
        clock.now += 3.0
        view.on_step(step, {**METRICS, "reward": 0.1 * step, **changes}, TIMES)
        view.on_sample(step, "What is 16 + 44?", "60", 1.0)


# ---------------------------------------------------------------------------------------------------------- plain lines
def test_a_log_gets_exactly_one_line_a_step_without_escapes() -> None:
    view, file, clock = plain(width=40)  # a narrow console must not wrap the line either
    view.on_start(FACTS)
    before = file.getvalue()
    for step in range(1, 6):
        clock.now += 1.0
        view.on_phase(step, "sampling", 1, 2)
        view.on_step(step, EQUAL if step > 2 else METRICS, TIMES)
        view.on_sample(step, "p\nq", "\x1b[31m[/INST]", None)
    lines = file.getvalue()[len(before) :].splitlines()
    assert [re.match(r"step +(\d+)/20  ", line)[1] for line in lines] == ["1", "2", "3", "4", "5"]  # type: ignore[index]
    assert "\x1b" not in file.getvalue()
    assert not view.live


def test_the_line_holds_the_numbers() -> None:
    view, file, clock = plain()
    run(view, clock, steps=3)
    line = file.getvalue().splitlines()[-1]
    for part in ("reward  0.300", "std  0.300", "loss    0.200", "kl    0.012", "entropy   0.850", "length    12.3"):
        assert part in line
    for part in ("cut  12 %", "3.00 s", "812.3 tok/s", "left  51.0 s"):  # 17 steps of 3 s are left
        assert part in line
    assert line.isascii()


def test_columns_of_a_log_stay_aligned() -> None:
    view, file, clock = plain()
    view.on_start(FACTS)
    for step, reward in enumerate((0.5, None, math.nan, -0.25, 12.0), start=1):
        clock.now += 3.0
        view.on_step(step, {**METRICS, "reward": reward}, TIMES)
    lines = [line.split("  !")[0] for line in file.getvalue().splitlines() if line.startswith("step")]
    assert len({line.index("tok/s") for line in lines}) == 1 and len(lines) == 5


def test_evaluation_is_shown_at_the_steps_that_have_it() -> None:
    view, file, clock = plain()
    run(view, clock, steps=1)
    clock.now += 3
    view.on_step(2, {**METRICS, "eval/accuracy": 0.62}, TIMES)
    first, second = file.getvalue().splitlines()[-2:]
    assert "eval" not in first and "eval 0.620" in second


def test_a_warning_is_told_in_full_once_and_then_in_short_while_it_lasts() -> None:
    view, file, _ = plain()
    view.on_start(FACTS)
    for step, metrics in enumerate((METRICS, EQUAL, EQUAL, METRICS, EQUAL), start=1):
        view.on_step(step, metrics, TIMES)
    lines = file.getvalue().splitlines()[-5:]
    assert ["8/8 groups have equal rewards" in line for line in lines] == [False, True, False, False, True]
    assert lines[2].endswith("! (equal groups)") and "!" not in lines[3]


def test_loading_is_announced_and_long_phases_send_a_heartbeat() -> None:
    view, file, clock = plain()
    view.on_start(FACTS)
    view.on_phase(0, "loading", 0, 0)
    view.on_phase(1, "sampling", 0, 64)
    clock.now += 29
    view.on_phase(1, "sampling", 10, 64)
    assert file.getvalue().splitlines()[1:] == ["loading"]
    clock.now += 2
    view.on_phase(1, "sampling", 12, 64)
    view.on_phase(1, "sampling", 13, 64)
    assert file.getvalue().splitlines()[2:] == ["step 1: sampling 12/64, 31.0 s so far"]


def test_an_evaluation_before_training_is_a_line_and_does_not_spoil_the_time_left() -> None:
    view, file, clock = plain()
    view.on_start(FACTS)
    clock.now += 100.0
    view.on_step(0, {"eval/accuracy": 0.1}, {})
    assert file.getvalue().splitlines()[-1].split() == ["step", "0/20", "-", "left", "-", "eval", "0.100"]
    clock.now += 3.0
    view.on_step(1, METRICS, TIMES)
    assert "left  57.0 s" in file.getvalue().splitlines()[-1]  # 19 steps of 3 s


def test_the_end_is_one_line_with_the_result_and_the_folder() -> None:
    view, file, clock = plain()
    run(view, clock, steps=4)
    view.on_end({"status": "stopped"})
    assert file.getvalue().splitlines()[-1] == (
        "stopped at step 4 of 20, in 12.0 s, reward 0.400, runs/grpo-arithmetic"
    )


def test_notices_are_one_clean_line() -> None:
    view, file, _ = plain()
    view.on_notice("3 prompts dropped\n\x1b[2J[/INST]")
    assert file.getvalue() == "3 prompts dropped\\n[2J[/INST]\n"


def test_a_console_without_unicode_gets_plain_replaced_text() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii", newline="\n")
    view = TerminalView(Console(file=file, force_terminal=True), Clock())
    view.on_start({"run": "größe"})
    view.on_step(1, METRICS, TIMES)
    assert not view.live
    assert raw.getvalue().startswith(b"gr??e\nstep ")


def test_a_log_file_is_no_live_view_even_with_force_color(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with (tmp_path / "log").open("w") as file:
        monkeypatch.setattr("sys.stdout", file)
        view = TerminalView()
        view.on_start(FACTS)
        view.on_step(1, METRICS, TIMES)
    assert not view.live and "\x1b" not in (tmp_path / "log").read_text()


def test_a_terminal_that_went_away_does_not_end_the_run() -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    view = TerminalView(Console(file=Broken(), force_terminal=False), Clock())
    view.on_start(FACTS)
    view.on_step(1, METRICS, TIMES)
    view.on_end({})


def test_a_full_disk_does_not_end_the_run() -> None:
    file = io.TextIOWrapper(io.FileIO("/dev/full", "w"), encoding="utf-8")
    view = TerminalView(Console(file=file, force_terminal=False), Clock())
    view.on_notice("the disk is full")
    with contextlib.suppress(OSError):
        file.close()


# ----------------------------------------------------------------------------------------------------------- live panel
def test_the_panel_shows_step_share_time_left_and_phase() -> None:
    view, _, clock = live()
    run(view, clock, steps=5)
    view.on_phase(6, "sampling", 48, 64)
    clock.now += 2.0
    text = shown(view)
    view.close()
    assert "grpo-arithmetic: grpo, smollm2 on cpu (float32)" in text
    assert "step 5/20" in text and "25 %" in text
    assert "17.0 s elapsed, 43.0 s left" in text  # 15 steps of 3 s, 2 s of the first already gone
    assert re.search(r"now +sampling 48/64  step 6, 2.00 s", text)


def test_the_panel_shows_metrics_with_their_course() -> None:
    view, _, clock = live()
    run(view, clock, steps=5)
    clock.now += 3.0
    view.on_step(6, {**METRICS, "reward": 0.2, "eval/accuracy": 0.6}, TIMES)
    text = shown(view)
    view.close()
    assert re.search(r"reward +0.200  ▁▃▅▆█▃  std 0.300, best 0.500", text)
    assert re.search(r"held-out +0.600  ▄  accuracy", text)
    assert re.search(r"length +12.3 .* 3 to 24 tokens, 12 % cut", text)
    assert re.search(r"time +3.00 s a step · sampling 40 % · learning 53 % · 812.3 tok/s sampled", text)
    assert re.search(r"health +nothing wrong", text)


def test_an_evaluation_stays_in_the_panel_until_the_next_one() -> None:
    view, _, clock = live()
    run(view, clock, steps=1, **{"eval/accuracy": 0.61})
    view.on_step(2, METRICS, TIMES)
    text = shown(view)
    view.close()
    assert re.search(r"held-out +0.610", text)


def test_the_panel_of_sft_and_of_ppo_show_their_own_metrics() -> None:
    view, _, clock = live()
    view.on_start({**FACTS, "recipe": "sft"})
    view.on_step(1, {"loss": 1.5, "mean_token_accuracy": 0.7, "eval_loss": 1.4}, TIMES)
    sft = shown(view)
    view.close()
    assert re.search(r"loss +1.500", sft) and re.search(r"accuracy +0.700", sft) and re.search(r"held-out +1.400", sft)
    assert "reward" not in sft and "entropy" not in sft
    view, _, clock = live()
    run(view, clock, steps=2, explained_variance=0.42, value_loss=0.1)
    ppo = shown(view)
    view.close()
    assert re.search(r"critic +0.420 .*explained variance, loss 0.100", ppo)


def test_the_panel_tells_what_is_wrong() -> None:
    view, _, clock = live()
    run(view, clock, steps=2, frac_reward_zero_std=1.0)
    text = shown(view)
    view.close()
    assert "! 8/8 groups have equal rewards" in text


def test_model_text_in_the_panel_is_text() -> None:
    view, file, clock = live()
    run(view, clock, steps=1)
    view.on_sample(1, "a\nb [/INST]", "\x1b]52;c;aGk=\x07[bold]x[/bold]" + "y" * 500, 0.5)
    text = shown(view)
    view.close()
    assert "a\\nb [/INST]" in text and "]52;c;aGk=[bold]x[/bold]yyy" in text and "…" in text
    assert "\x1b]52" not in file.getvalue() and "\x07" not in file.getvalue()


@pytest.mark.parametrize("width", [20, 28, 40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    view, _, clock = live(width=width)
    run(view, clock, steps=3, frac_reward_zero_std=1.0)
    text = shown(view, width)
    view.close()
    assert max(map(len, text.splitlines())) <= width


def test_the_live_view_gives_the_terminal_back_when_the_run_raises() -> None:
    view, file, clock = live()
    with pytest.raises(RuntimeError), view:
        run(view, clock, steps=1)
        raise RuntimeError("training failed")
    written = file.getvalue()
    assert "\x1b[?25l" in written and written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")  # the cursor is back
    assert not [
        thread for thread in threading.enumerate() if "Live" in type(thread).__name__ or "_Refresh" in str(thread)
    ]
    view.close()


def test_the_live_view_ends_with_the_result() -> None:
    view, file, clock = live()
    run(view, clock, steps=2)
    view.on_notice("a [/INST] notice")
    view.on_end({"status": "finished"})
    written = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert "a [/INST] notice" in written
    assert "finished at step 2 of 20, in 6.00 s, reward 0.200, runs/grpo-arithmetic" in written


def test_a_real_run_drives_the_view_and_leaves_a_folder_that_can_be_reported(tmp_path: Path) -> None:
    view, file, _ = plain()
    folder = RunFolder.open(tmp_path / "run", "seed: 1\n", {"recipe": "grpo"}, "new")
    with Run(folder, save_every=0, listeners=[view]) as session:
        session.start({"recipe": "grpo", "steps": 2})
        for step in (1, 2):
            session.phase(step, "sampling", 1, 2)
            session.sample(step, "p", "c", 1.0)
            session.log(step, {**METRICS, "kl": math.nan}, TIMES)
            session.rollouts(step, [{"group": 0, "prompt": "p\ud800", "completion": "c", "reward": math.nan}])
        session.finish({})
    lines = file.getvalue().splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["run:", "grpo,"],
        ["step", "1/2"],
        ["step", "2/2"],
        ["finished", "at"],
    ]
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "finished" in page and '<p class="missing">' not in page and "p\ufffd" in page


VALUE = st.none() | st.floats() | st.integers() | st.text(max_size=5) | st.booleans()
ROW = st.dictionaries(st.sampled_from([*METRICS, *TIMES, "eval/accuracy", "explained_variance"]), VALUE)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from([*FACTS]), VALUE), st.lists(st.tuples(ROW, ROW), max_size=4), VALUE)
def test_nothing_that_a_run_tells_makes_a_view_raise(
    facts: dict[str, Any], steps: list[tuple[dict[str, Any], dict[str, Any]]], status: Any
) -> None:
    for view, _, clock in (plain(), live()):
        with view:
            view.on_start(facts)
            for step, (metrics, timings) in enumerate(steps, start=1):
                clock.now += 1.0
                view.on_phase(step, "learning", 0, 0)
                view.on_step(step, metrics, timings)
            shown(view)
            view.on_end({"status": status})
