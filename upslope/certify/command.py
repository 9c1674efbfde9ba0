"""``upslope certify``: the table of every algorithm, or the verdict on a user's function."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

from rich.console import Console

from upslope.certify.functions import read_function
from upslope.certify.judgement import Judgement, print_judgement
from upslope.certify.lines import Line, print_lines

WIDE = 180
"""Columns of a table that goes to a file or a pipe."""


def judge(source: str) -> Judgement:
    """The verdict on ``path/to/file.py:function``. Raises ``InputError`` where it is no such function, or raises."""
    function = read_function(source)
    if function.kind == "loss":
        from upslope.certify.loss import judge_loss

        return judge_loss(function)
    from upslope.certify.advantage import judge_advantage

    return judge_advantage(function)


def algorithm_lines(trained: bool = True) -> Iterator[Line]:
    """Every line of the table, as it is found; ``trained=False`` leaves out the trainings."""
    from upslope.certify.common_lines import learner_lines, sampler_lines, sft_lines
    from upslope.certify.ground import ground
    from upslope.certify.grpo_lines import grpo_lines
    from upslope.certify.ppo_lines import ppo_lines
    from upslope.certify.preference_lines import preference_lines
    from upslope.certify.trainings import grid_lines, training_lines

    known = ground()
    for part in (learner_lines, sampler_lines, sft_lines, ppo_lines, grpo_lines, preference_lines):
        yield from part(known)
    yield from grid_lines(trained=trained)
    if trained:
        yield from training_lines()


def certify_command(source: str | None, as_json: bool, trained: bool = True) -> bool:
    """What ``upslope certify`` does; whether everything holds."""
    terminal = Console(highlight=False)
    console = terminal if terminal.is_terminal else Console(highlight=False, width=WIDE)
    if source is not None:
        judgement = judge(source)
        if as_json:
            console.print_json(json.dumps(judgement.as_json()))
        else:
            print_judgement(judgement, console)
        return judgement.certified
    begun, lines = time.perf_counter(), []
    with Console(stderr=True).status("certifying") as status:
        for line in algorithm_lines(trained):
            lines.append(line)
            status.update(f"certifying: {len(lines)} lines, {line.algorithm}")
    passed = all(line.passed for line in lines)
    seconds = time.perf_counter() - begun
    if as_json:
        found = {"passed": passed, "seconds": round(seconds, 1), "lines": [line.as_json() for line in lines]}
        console.print_json(json.dumps(found))
    else:
        print_lines(lines, console)
        console.print(f"{seconds:.0f} s", style="dim")
    return passed
