"""``upslope demo``: the whole ladder in one go, from a gridworld to SFT, PPO and GRPO on a real language model."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from upslope import api
from upslope.recipes.configs import RECIPES
from upslope.run.recipe import build

if TYPE_CHECKING:
    from upslope.recipes.evaluation import Evaluation

MODEL = "smollm2-135m-instruct"
PROMPTS = 512
"""Held-out prompts of the table."""
RAW_TOKENS, ANSWER_TOKENS = 24, 8
"""The raw model answers in sentences, the trained ones with a number."""
DATA = {"task": "arithmetic"}


@dataclass(frozen=True, slots=True)
class Plan:
    """How long each rung is."""

    sft: int = 15
    ppo: int = 15
    grpo: int = 40
    prompts: int = PROMPTS
    eval_prompts: int = 64


def show_grid(out: Path, seed: int, console: Console) -> list[tuple[str, Path, str]]:
    """The first rung: solve the built-in world, let every learner loose on it, write its pictures and its live page.

    Returns what the report shows of it: title, picture, words.
    """
    from upslope.gridrun import LEARNERS, recipe_of, run_grid
    from upslope.worlds.gridworld import SIX_BY_SIX, parse

    recipes = [recipe_of(name, {"seed": seed}, "upslope demo") for name in LEARNERS]
    found = run_grid(parse(SIX_BY_SIX), recipes, out, console, "the built-in world")
    return [(title, found.pictures[name], words) for name, (title, words) in GRID_STORY.items()
            if name in found.pictures]  # fmt: skip


GRID_STORY = {
    "solution": (
        "The first rung: a gridworld, solved exactly",
        "Every move costs 1. A cell is worth its best neighbour less 1; the ends are worth their points. The arrows go "
        "to the best neighbour, several where two are equally good. By value iteration: no network yet.",
    ),
    "sweeps": (
        "Values spread from the ends",
        "Each sweep of value iteration gives every cell its best neighbour less 1.",
    ),
    "ppo": (
        "The same learned by two networks: PPO",
        "A value network predicts, a policy network moves; both learn from walks. Beside the exact solution above.",
    ),
    "ppo-walk": (
        "One walk: prediction, return, gain",
        "Where a move did better than predicted its gain is positive: the value goes up and the move becomes likelier.",
    ),
    "ppo-clip": (
        "The clip",
        "How much likelier a move became (ratio) against what it gained. Beyond the clip there is no further push.",
    ),
    "curves": (
        "Every learner against the exact answer",
        "J is the expected score over all starts, computed exactly at each point; the dashed line is the best. "
        "grid/grid.html replays each training and lets you change the world.",
    ),
    "ppo-film": ("PPO learning", "The value network's numbers and the policy's arrows, update by update."),
}


def run_demo(out: Path, seed: int, quick: bool) -> None:
    """Grid, raw model, SFT, PPO and GRPO each from the SFT model, SFT alone for the same time; a table and
    ``report.html``."""
    console = Console(emoji=False, highlight=False)
    plan = Plan(3, 2, 2, 32, 16) if quick else Plan()
    begun = time.perf_counter()
    console.rule("1  A gridworld: solved exactly, then learned", align="left")
    story = show_grid(out / "grid", seed, console)

    rungs = Rungs(out, seed, plan, console)
    console.rule(f"2  {MODEL} before training", align="left")
    rungs.score("before", MODEL, RAW_TOKENS)
    console.rule(f"3  SFT: {plan.sft} steps of 16 answered rows", align="left")
    rungs.train(
        "sft", "sft", MODEL, {"train": {"steps": plan.sft, "prompts": 16}, "optim": {"lr": 5e-5, "decay": "linear"}}
    )
    console.rule(f"4  PPO from there: {plan.ppo} steps, a reward of 0 or 1 and a critic", align="left")
    start = str(out / "sft" / "model")
    rungs.train("ppo", "ppo", start, {**ppo_settings(plan)})
    console.rule(f"5  GRPO from the same start: {plan.grpo} steps, a reward of 0 or 1 and no critic", align="left")
    rungs.train("grpo", "grpo", start, {**grpo_settings(plan)})
    spent = rungs.seconds["sft"] + max(rungs.seconds["ppo"], rungs.seconds["grpo"])
    steps = max(plan.sft, round(plan.sft * spent / rungs.seconds["sft"]))
    console.rule(f"6  SFT alone for the same time: {steps} steps", align="left")
    rungs.train(
        "sft-alone", "sft", MODEL, {"train": {"steps": steps, "prompts": 16}, "optim": {"lr": 5e-5, "decay": "linear"}}
    )

    report = write_demo_report(out, rungs, story, time.perf_counter() - begun)
    console.rule("Held-out accuracy", align="left")
    rungs.print_table()
    console.print(WORDS, style="dim")
    console.print(
        f"report: {report}   ({(time.perf_counter() - begun) / 60:.1f} minutes in all)", markup=False, soft_wrap=True
    )


def ppo_settings(plan: Plan) -> dict[str, Any]:
    """64 prompts, one answer each: the critic learns from many different prompts, and its rate falls to settle it."""
    return {
        "train": {"steps": plan.ppo, "prompts": 64, "epochs": 2, "minibatches": 2},
        "optim": {"lr": 1e-5, "decay": "linear"},
        "ppo": {"samples": 1, "kl_coef": 0.05},
    }


def grpo_settings(plan: Plan) -> dict[str, Any]:
    return {
        "train": {"steps": plan.grpo, "prompts": 8},
        "optim": {"lr": 1e-5, "decay": "linear"},  # at 2e-5 some seeds lost late what they had won
        "grpo": {"group": 8, "kl_coef": 0.005},
    }


COLUMNS = ("model", "greedy (95 %)", "sampled (95 %)", "last number", "training")
NAMES = {
    "before": "before",
    "sft": "after SFT",
    "ppo": "after SFT + PPO",
    "grpo": "after SFT + GRPO",
    "sft-alone": "SFT alone as long",
}
WORDS = (
    "Exact match on two-digit sums that were never trained on, swapped pairs excluded too. Before training the model "
    "answers in sentences, which are no exact match; `last number` forgives that. PPO and GRPO see no answers, "
    "only a reward of 0 or 1 for their own; SFT alone sees the answers, and where answers exist it is hard to beat."
)


class Rungs:
    """Trains and scores, and remembers what the table needs."""

    def __init__(self, out: Path, seed: int, plan: Plan, console: Console) -> None:
        self.out, self.seed, self.plan, self.console = out, seed, plan, console
        self.seconds: dict[str, float] = {}
        self.scores: dict[str, Evaluation] = {}

    def train(self, name: str, kind: str, model: str, settings: Mapping[str, Any]) -> None:
        """Run a recipe into ``out/name`` and score its last model."""
        settings = dict(settings)
        settings["train"] = {"eval_every": 10, "eval_prompts": self.plan.eval_prompts, **settings["train"]}
        keys = {
            "seed": self.seed,
            "model": model,
            "data": DATA,
            "sampling": {"max_new_tokens": ANSWER_TOKENS},
            **settings,
        }
        api.execute(build(keys, RECIPES[kind], "upslope demo"), "overwrite", path=self.out / name)
        self.seconds[name] = training_seconds(self.out / name)
        self.score(name, str(self.out / name / "model"), ANSWER_TOKENS)

    def score(self, name: str, model: str, tokens: int) -> None:
        """Held-out accuracy, greedy and sampled."""
        with self.console.status(f"scoring {NAMES[name]} on {self.plan.prompts} held-out prompts"):
            self.scores[name] = api.evaluate(
                model, task="arithmetic", prompts=self.plan.prompts, max_new_tokens=tokens, seed=self.seed
            )
        self.console.print(f"{NAMES[name]}: {self.row(name)[1]} greedy", markup=False)

    def row(self, name: str) -> tuple[str, str, str, str, str]:
        """A line of the table."""
        from upslope.views.scores import with_interval

        found = self.scores[name]
        seconds = self.seconds.get(name, 0.0) + (self.seconds["sft"] if name in ("ppo", "grpo") else 0.0)
        spent = f"{seconds:.0f} s" if seconds else "-"
        return (
            NAMES[name],
            with_interval(found.greedy),
            with_interval(found.sampled),
            f"{100 * self.lenient(name):.1f} %",
            spent,
        )

    def lenient(self, name: str) -> float:
        """Share of greedy answers whose last number is right."""
        from upslope.worlds.arithmetic import Arithmetic, lenient

        found = self.scores[name].greedy.completions
        answers = [prompt.columns["answer"] for prompt in Arithmetic().prompts("heldout")[: len(found)]]
        return sum(lenient(found, answers)) / len(found)

    def print_table(self) -> None:
        from upslope.views.scores import print_table

        print_table("", COLUMNS, [self.row(name) for name in NAMES], self.console)


def training_seconds(run: Path) -> float:
    """Seconds that a run trained, evaluations apart."""
    rows = [json.loads(line) for line in (run / "timings.jsonl").read_text().splitlines()]
    return float(sum(row["time/step"] - row.get("time/evaluation", 0.0) for row in rows if row["step"] > 0))


def write_demo_report(out: Path, rungs: Rungs, story: Sequence[tuple[str, Path, str]], seconds: float) -> Path:
    """One self-contained page with everything that the demo showed, from the first rung on."""
    from upslope.views import page, sections, tokens
    from upslope.views.report import write_page

    runs = {"SFT": out / "sft", "PPO": out / "ppo", "GRPO": out / "grpo"}
    parts = [
        *(page.image_section(title, picture, words) for title, picture, words in story),
        page.table_section("Held-out accuracy", COLUMNS, [rungs.row(name) for name in NAMES], WORDS),
        sections.curves_section(runs, "Curves"),
        sections.rollouts_section(out / "grpo", title="GRPO: completions, rewards, advantages"),
        sections.rollouts_section(out / "ppo", title="PPO: completions, rewards, advantages"),
        tokens.tokens_section(out / "ppo", "PPO, token by token"),
        sections.phase_section(out / "grpo", "Where GRPO's time went"),
        sections.phase_section(out / "ppo", "Where PPO's time went"),
        sections.facts_section(out / "grpo"),
    ]
    subtitle = f"{MODEL} on two-digit addition, seed {rungs.seed}, {seconds / 60:.1f} minutes"
    return write_page(out / "report.html", page.page("upslope demo: from a gridworld to GRPO", subtitle, parts))
