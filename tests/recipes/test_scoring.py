"""A recipe's reward: every way of writing it, what is refused and how, and short runs on several functions."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import upslope
from tests.recipes.support import Bench, bench, one_thread  # noqa: F401
from upslope.errors import InputError, InputErrors, RewardError
from upslope.recipes.configs import RECIPES, GrpoRecipe, SftRecipe
from upslope.recipes.reward_section import RewardSection
from upslope.recipes.scoring import name_functions, reward_parts
from upslope.recipes.setup import precheck
from upslope.run.recipe import load, read_text
from upslope.worlds import reward_builtin
from upslope.worlds.reward_menu import BUILTINS, builtin_part

FILE = "def f(completions):\n    return [1.0] * len(completions)\n\n\ndef g(completions): ...\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards.py").write_text(FILE)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1 + 1?", "answer": "2"}\n' * 3)
    return tmp_path


def recipe(folder: Path, reward: str, overrides: Sequence[str] = ()) -> GrpoRecipe:
    path = folder / "r.yaml"
    path.write_text("data: rows.jsonl\n" + textwrap.dedent(reward))
    loaded = load(path, GrpoRecipe, overrides)
    assert read_text(loaded.text, GrpoRecipe) == loaded.recipe  # the resolved recipe says the same
    return loaded.recipe


def parts(found: GrpoRecipe) -> list[tuple[Any, str | None, float, Any]]:
    return [(part.source, part.name, part.weight, part.options) for part in reward_parts(found.reward)]


F = ("rewards.py:f", None, 1.0, None)
NUMERIC = "upslope.worlds.reward_builtin:numeric"


@pytest.mark.parametrize(
    ("reward", "wanted"),
    [
        ("reward: rewards.py:f", [("rewards.py:f", None, 1.0, None)]),
        ("reward: [rewards.py:f, rewards.py:g]", [F, ("rewards.py:g", None, 1.0, None)]),
        ("reward: {builtin: numeric}", [(NUMERIC, "numeric", 1.0, {})]),
        ("reward: {builtin: numeric, tolerance: 0.5, timeout: 5}", [(NUMERIC, "numeric", 1.0, {"tolerance": 0.5})]),
        ("reward: {function: rewards.py:f, weight: 2, name: mine}", [("rewards.py:f", "mine", 2.0, None)]),
        (
            """
            reward:
              - rewards.py:f
              - {function: rewards.py:g, weight: -0.5}
              - builtin: numeric
                weight: 3
                name: right
                options: {relative: 0.1}
                tag: answer
            """,
            [("rewards.py:f", None, 1.0, None), ("rewards.py:g", None, -0.5, None),
             (NUMERIC, "right", 3.0, {"relative": 0.1, "tag": "answer"})],
        ),
        (
            "reward:\n  functions: [rewards.py:f, {builtin: numeric, weight: 0.5}]\n  on_error: drop_group\n",
            [("rewards.py:f", None, 1.0, None), (NUMERIC, "numeric", 0.5, {})],
        ),
    ],
)  # fmt: skip
def test_every_way_of_writing_a_reward(here: Path, reward: str, wanted: list[Any]) -> None:
    assert parts(recipe(here, reward)) == wanted


def test_the_command_line_may_change_it(here: Path) -> None:
    one = recipe(here, "reward: rewards.py:f", ["reward=rewards.py:g", "reward.memory_mb=null", "reward.env=[A_KEY]"])
    assert parts(one) == [("rewards.py:g", None, 1.0, None)] and one.reward.memory_mb is None
    assert one.reward.env == ("A_KEY",)
    several = recipe(
        here, "reward: rewards.py:f", ["reward.function=null", "reward.functions=[rewards.py:g, {builtin: exact}]"]
    )
    assert [part[0] for part in parts(several)] == ["rewards.py:g", "upslope.worlds.reward_builtin:exact"]
    instead = recipe(here, "reward: [rewards.py:f, {builtin: exact}]", ["reward=rewards.py:g"])
    assert parts(instead) == [("rewards.py:g", None, 1.0, None)]


@pytest.mark.parametrize(
    ("reward", "texts"),
    [
        ("", ["reward: is needed with data.path", "give reward: path/to/file.py:function or {builtin: numeric}"]),
        (
            "reward:\n  functions: [{weight: 2}]",
            [":3 reward.functions.0: a reward is either a function or builtin, neither"],
        ),
        ("reward: [{function: a.py:f, builtin: exact}]", ["a reward is either a function or builtin, both are given"]),
        ("reward: {function: a.py:f, functions: [b.py:g]}", ["reward.function", "both given", "keep one"]),
        (
            "reward: [{function: rewards.py:f, wieght: 2}]",
            [":2 reward.functions.0: unknown key wieght", "did you mean weight?"],
        ),
        ("reward: [{function: rewards.py:f, weight: much}]", ["reward.functions.0.weight: 'much' is not a number"]),
        ("reward: {functon: rewards.py:f}", ["reward.functon: unknown key. Did you mean reward.function"]),
        ("reward: {builtin: exact, name: two words}", ["reward.functions.0.name: 'two words' would be the name of a"]),
        ("reward: {function: rewards.py:f, env: [A=B]}", [":2 reward.env: 'A=B' is no name", "give names only"]),
        ("reward: [rewards.py:f, 3]", [":2 reward.functions.1: found 3", "path/to/file.py:function, or a mapping"]),
    ],
)
def test_what_the_schema_refuses(here: Path, reward: str, texts: list[str]) -> None:
    with pytest.raises(InputErrors) as caught:
        recipe(here, reward)
    assert all(text in str(caught.value) for text in texts), str(caught.value)


@pytest.mark.parametrize(
    ("reward", "text"),
    [
        ("reward: rewards.py:h", r"^reward.function: rewards.py has no 'h'. Functions: f, g"),
        ("reward: [rewards.py:f, nothing.py:f]", r"^reward.functions\[1\].function nothing.py: no such file"),
        (
            "reward: [rewards.py:f, {builtin: exakt}]",
            r"reward.functions\[1\].builtin: no built-in reward 'exakt'.*exact\?",
        ),
        ("reward: {builtin: numeric, tolerence: 1}", r"reward.functions\[0\].tolerence: .*did you mean tolerance\?"),
        ("reward: python:f", r"python:f was a function of the Python call .*put the function into a file"),
    ],
)
def test_what_is_not_there_is_told_before_anything_starts(here: Path, reward: str, text: str) -> None:
    with pytest.raises(InputError, match=text):
        precheck(recipe(here, reward))


def test_functions_of_a_python_call_get_names_and_weights() -> None:
    def f() -> None: ...

    other = lambda: None  # noqa: E731
    value, named = name_functions([f, "a.py:g", other, {"builtin": "exact"}, {"function": f, "weight": 2.0}], None)
    assert value == [
        "python:f", "a.py:g", "python:<lambda>", {"builtin": "exact"}, {"function": "python:f-3", "weight": 2.0}
    ]  # fmt: skip
    assert named == {"python:f": f, "python:<lambda>": other, "python:f-3": f}
    value, named = name_functions({"functions": [f], "timeout": 3}, None)
    assert value == {"functions": ["python:f"], "timeout": 3} and named == {"python:f": f}
    assert name_functions([f, "a.py:g"], [1.0, 0.5])[0] == [
        {"function": "python:f", "weight": 1.0}, {"function": "a.py:g", "weight": 0.5}
    ]  # fmt: skip
    for reward, weights in (([f], [1.0, 2.0]), (f, [1.0]), ([f], 3)):
        with pytest.raises(InputError, match="give reward="):
            name_functions(reward, weights)


def test_sft_may_do_without_a_reward(here: Path) -> None:
    assert reward_parts(RewardSection()) == ()
    assert SftRecipe(data={"path": "rows.jsonl"}).reward.entries == ()  # type: ignore[arg-type]
    assert set(RECIPES) >= {"sft", "ppo", "grpo"}


# ----------------------------------------------------------------------------------------------------------- short runs
def letters(completions: list[str], log_metric: Callable[[str, float], None], trainer_state: Any) -> list[float]:
    log_metric("progress", trainer_state.global_step / trainer_state.max_steps)
    return [sum(c.islower() for c in text) / max(1, len(text)) for text in completions]


def only_long(completions: list[str], **columns: Any) -> list[float | None]:
    return [None if len(text) < 3 else 1.0 for text in completions]


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_several_functions_are_logged_apart_and_summed(bench: Bench, kind: str) -> None:  # noqa: F811
    run = bench.run(
        kind, f"several-{kind}", reward=[letters, only_long, {"builtin": "length", "target": 4, "name": "size"}],
        reward_weights=[1.0, 0.0, -2.0],
    )  # fmt: skip
    last = run.metrics[-1]
    assert last["reward"] == pytest.approx(last["rewards/letters/mean"] - 2 * last["rewards/size/mean"])
    assert last["progress"] == 0.5 and last["eval/progress"] == 1.0  # before the second of two steps, and after it
    assert last["eval/reward"] == pytest.approx(last["eval/rewards/letters/mean"] - 2 * last["eval/rewards/size/mean"])
    lines = [json.loads(line) for line in (run.folder / "rollouts" / "step-00002.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["reward"] == pytest.approx(line["parts"]["letters"] - 2 * line["parts"]["size"])
        assert ("only_long" in line["parts"]) == (len(line["completion"]) >= 3)
    sizes = [line["parts"]["size"] for line in lines]
    assert last["rewards/size/mean"] == pytest.approx(sum(sizes) / len(sizes))


def test_rows_with_an_answer_and_a_builtin_reward_need_no_code(bench: Bench) -> None:  # noqa: F811
    run = bench.run("grpo", "no-code", reward={"builtin": "numeric"}, steps=1)
    last = run.metrics[-1]
    assert last["rewards/numeric/mean"] == last["reward"] and "eval/reward" in last
    found = upslope.evaluate(
        str(run.model), data=bench.rows, reward=["numeric.py:f", {"builtin": "exact"}][1], split="all", prompts=4
    )
    assert found.greedy.n == 4 and set(found.greedy.rewards) <= {0.0, 1.0}


def test_a_failing_function_stops_the_run_or_drops_its_groups(bench: Bench) -> None:  # noqa: F811
    def breaks(completions: list[str], answer: list[str]) -> list[float]:
        return [1.0 / int(text != "3") for text in answer]

    with pytest.raises(RewardError, match=r"^reward breaks: ZeroDivisionError"):
        bench.run("grpo", "stops", reward=[letters, breaks], eval_prompts=0)
    run = bench.run(
        "grpo", "drops", reward={"functions": [letters, breaks], "on_error": "drop_group"}, eval_prompts=0, steps=3
    )
    dropped = sum(line["dropped_groups"] for line in run.metrics if "dropped_groups" in line)
    rows = [json.loads(line) for path in (run.folder / "rollouts").iterdir() for line in path.read_text().splitlines()]
    assert dropped > 0 and len(rows) == (3 * 4 - dropped) * 3
    assert all(row["parts"]["breaks"] == 1.0 for row in rows)


# ---------------------------------------------------------------------------------------------------------------- docs
DOCS = Path(__file__).parents[2] / "docs"
BLOCKS = [
    (name, block)
    for name in ("rewards.md", "tasks.md")
    for block in re.findall(r"^```yaml\n(.*?)^```$", (DOCS / name).read_text("utf-8"), re.MULTILINE | re.DOTALL)
]


@pytest.mark.parametrize(("name", "block"), BLOCKS)
def test_a_yaml_block_of_the_docs_is_part_of_a_recipe(tmp_path: Path, name: str, block: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(("" if "data:" in block else "data: rows.jsonl\n") + block)
    found = load(path, GrpoRecipe).recipe
    for place, entry in enumerate(found.reward.entries):
        if entry.builtin is not None:
            builtin_part(entry.builtin, entry.options, where=f"{name} {place}")


def test_the_docs_name_every_builtin_with_its_options() -> None:
    table = re.findall(r"^\| `([\w-]+)` \| .* \| (.*) \|$", (DOCS / "rewards.md").read_text("utf-8"), re.MULTILINE)
    makers = {name: getattr(reward_builtin, entry.maker) for name, entry in BUILTINS.items()}
    assert {name: re.findall(r"`(\w+)`", options) for name, options in table} == {
        name: list(inspect.signature(maker).parameters) for name, maker in makers.items()
    }
