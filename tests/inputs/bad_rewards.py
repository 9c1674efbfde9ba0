"""Bad inputs 34 to 41: what a reward function may do, and what the numbers of a run may say."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tests.inputs.desk import REWARD, Desk, suggested
from tests.inputs.table import Mend, Table

TABLE = Table()
bad = TABLE.bad


def reward(desk: Desk, body: str, **settings: Any) -> Mend:
    """A reward of one line that is spoilt; the fix puts the right line there."""
    head = "import math, os, sys, time\ndef score(prompts, completions, **columns):\n"
    (desk.folder / "rewards.py").write_text(f"{head}    return {body}\n")
    if settings:
        desk.recipe["reward"] = {"function": "rewards.py:score", **settings}

    def mend(desk: Desk, said: str) -> list[str]:
        (desk.folder / "rewards.py").write_text(REWARD)
        return []

    return mend


# -------------------------------------------------------------------------------------------------------- the function
@bad(
    34,
    "no such function in the file",
    r"reward\.function: rewards\.py has no 'scroe'\. Functions: score",
    r"did you mean rewards\.py:score\?",
)
def no_such_function(desk: Desk) -> Mend:
    desk.recipe["reward"] = "rewards.py:scroe"
    return lambda desk, said: ["reward=" + suggested(r"did you mean (rewards\.py:score)\?", said)]


@bad(34, "no such file", r"reward\.function reward\.py: no such file", r"did you mean rewards\.py\?")
def no_such_file(desk: Desk) -> Mend:
    desk.recipe["reward"] = "reward.py:score"
    return lambda desk, said: [f"reward={suggested('did you mean ([a-z]+.py)', said)}:score"]


@bad(34, "a file without a function", r"reward\.function: 'rewards\.py' is not of the form path/to/file\.py:function")
def no_function(desk: Desk) -> Mend:
    desk.recipe["reward"] = "rewards.py"
    return lambda desk, said: ["reward=rewards.py:score"]


@bad(34, "not Python", r"reward\.function rewards\.py:1: not valid Python: .*was never closed", "correct that line")
def not_python(desk: Desk) -> Mend:
    mend = reward(desk, "0")
    (desk.folder / "rewards.py").write_text("def score(prompts, completions\n")
    return mend


@bad(
    34,
    "no such built-in reward",
    r"reward\S*\.builtin: no built-in reward 'numerical'\. Built in: exact, numeric, ",
    r"did you mean numeric\?",
)
def no_such_builtin(desk: Desk) -> Mend:
    desk.recipe["reward"] = {"builtin": "numerical"}

    def mend(desk: Desk, said: str) -> list[str]:
        desk.recipe["reward"] = {"builtin": suggested(r"did you mean (\w+)\?", said)}
        return []

    return mend


@bad(
    35,
    "it raises",
    r"reward rewards\.py:score: ZeroDivisionError: .*, at rewards\.py:3 in \S+ \(row \d#\d\)",
    "correct the function; run it on that row alone to see it",
)
def reward_raises(desk: Desk) -> Mend:
    mend = reward(desk, "[1 / 0 for text in completions]")

    def corrected(desk: Desk, said: str) -> list[str]:
        line = int(suggested(r"at rewards\.py:(\d+)", said)) - 1
        assert "1 / 0" in (desk.folder / "rewards.py").read_text().splitlines()[line]
        return list(mend(desk, said))

    return corrected


@bad(35, "it raises on one row, whose group may be dropped", r"ValueError: no five.*\(row \d#\d\)", code=0)
def reward_raises_on_one_row(desk: Desk) -> None:
    (desk.folder / "rewards.py").write_text(
        "def score(prompts, completions, answer, **columns):\n    if '5' in answer:\n"
        "        raise ValueError('no five')\n    return [len(text) for text in completions]\n"
    )
    desk.recipe["reward"] = {"function": "rewards.py:score", "on_error": "drop_group"}
    desk.recipe["train"] |= {"prompts": 7}
    desk.recipe["data"]["heldout"] = 1


def returning(body: str, found: str) -> Callable[[Desk], Mend]:
    """What a function may return that is no reward; ``found`` is what the message says of it."""

    def make(desk: Desk) -> Mend:
        return reward(desk, body)

    name = re.sub(r"\W+", "_", body)
    make.__name__ = f"returns_{name}"
    wanted = "return one finite number, or None, for each completion"
    bad(36, f"it returns {body}", r"reward rewards\.py:score: " + found, wanted)(make)
    return make


RETURNS = [
    returning("[0.5] * (len(completions) - 1)", "returned 1 values for 2 completions"),
    returning("0.5", "returned float, expected a list of 2 numbers, one per completion"),
    returning("['good' for _ in completions]", "returned str 'good' for a completion, expected a number or None"),
    returning("[math.nan for _ in completions]", "returned nan for a completion, expected a finite number"),
    returning("[math.inf for _ in completions]", "returned inf for a completion, expected a finite number"),
]


@bad(
    36,
    "it returns None for all",
    "returned None for every completion, so nothing is rewarded",
    "return a number for the rows that it applies to",
)
def returns_none(desk: Desk) -> Mend:
    return reward(desk, "[None for _ in completions]")


@bad(36, "it returns true and false, which are 1 and 0", r"finished at step 1 of 1.*reward 1\b", code=0)
def returns_bools(desk: Desk) -> None:
    reward(desk, "[True for _ in completions]")


@bad(36, "it returns an array", r"finished at step 1 of 1.*reward 0\.5", code=0)
def returns_an_array(desk: Desk) -> None:
    reward(desk, "__import__('numpy').full(len(completions), 0.5)")


@bad(
    37,
    "it hangs",
    r"reward rewards\.py:score: no answer within 0\.5 s, at rewards\.py:3 in score",
    r"make it answer in time, or raise reward\.timeout",
)
def reward_hangs(desk: Desk) -> Mend:
    return reward(desk, "time.sleep(1000)", timeout=0.5)


@bad(37, "it ends its process", r"its process ended \(exit code 7\)", "keep the function from ending its process")
def reward_exits(desk: Desk) -> Mend:
    return reward(desk, "os._exit(7)")


@bad(37, "it prints, forks and changes the folder: the run does not notice", "finished at step 1", code=0)
def reward_misbehaves(desk: Desk) -> None:
    (desk.folder / "rewards.py").write_text(
        "import os, sys\ndef score(prompts, completions, **columns):\n"
        "    print('\\x1b[31mscoring', len(completions)); sys.stdout.flush()\n    os.chdir('/')\n"
        "    child = os.fork()\n    if child == 0:\n        os._exit(0)\n    os.waitpid(child, 0)\n"
        "    return [len(text) for text in completions]\n"
    )


# --------------------------------------------------------------------------------------------- what a run's numbers say
@bad(
    38,
    "all rewards equal",
    r"\d/\d groups have equal rewards \(mean 0\) so the gradient is 0; usual causes: answer format "
    "never matched",
    code=0,
)
def equal_rewards(desk: Desk) -> None:
    reward(desk, "[0.0 for _ in completions]")


@bad(39, "a loss of 0 at the first step", r"loss is .*: it starts at ~0 by design .*watch reward", code=0)
def zero_loss(desk: Desk) -> None:
    desk.recipe["grpo"] |= {"baseline": "mean"}


@bad(
    40,
    "completions all cut",
    r"100 % of the completions were cut at the length limit of 1 tokens?",
    "sampling.max_new_tokens is too small",
    code=0,
)
def all_cut(desk: Desk) -> None:
    desk.recipe["sampling"]["max_new_tokens"] = 1


@bad(
    41,
    "sampler and learner disagree at step 1",
    r"SEVERE: sampler and learner disagree: mean \|difference of log-prob\| "
    r"0\.9",
    "usual causes: stale sampler weights, another dtype or attention",
    code=0,
    note="stale weights stand for themselves: what the sampler notes of its draws is moved by 0.9 nats",
)
def disagreement(desk: Desk) -> None:
    from dataclasses import replace

    from upslope.rollout.sampler import InProcessSampler

    honest = InProcessSampler.sample

    def stale(self: Any, *arguments: Any, **keywords: Any) -> Any:
        found = honest(self, *arguments, **keywords)
        return [[replace(one, logprobs=tuple(p - 0.9 for p in one.logprobs)) for one in group] for group in found]

    desk.patch.setattr(InProcessSampler, "sample", stale)


ALL: list[Any] = TABLE.rows
