"""One Python function a recipe. Any recipe key is a keyword: ``steps=40``, ``lr=1e-5``, ``optim={"lr": 1e-5}``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from upslope.errors import InputError
from upslope.recipes.configs import RECIPES, Recipe
from upslope.recipes.conversations import name_tools
from upslope.recipes.scoring import RewardFunction, name_functions
from upslope.recipes.setup import precheck
from upslope.run.recipe import Loaded, build, load

if TYPE_CHECKING:
    from upslope.checkup.facts import Checkup
    from upslope.recipes.evaluation import Evaluation
    from upslope.recipes.sampled_pairs import SampledPairs
    from upslope.run.session import Listener
    from upslope.types import GridTraining
    from upslope.worlds.grid_truth import Exact
    from upslope.worlds.gridworld import Gridworld

Mode = Literal["new", "resume", "overwrite"]


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """What a run left in its folder."""

    folder: Path

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One mapping a step, as in ``metrics.jsonl``."""
        from upslope.run.metrics import read_metrics

        return read_metrics(self.folder / "metrics.jsonl")

    @property
    def model(self) -> Path:
        """The last model: a plain Hugging Face directory; of a run with ``lora``, the adapter in PEFT's layout."""
        return self.folder / "model"

    @property
    def best(self) -> Path:
        """The model of the best evaluation; the last one where nothing was evaluated."""
        found = self.folder / "best"
        return found if found.is_dir() else self.model

    @property
    def report(self) -> Path:
        """``report.html``: one self-contained page."""
        return self.folder / "report.html"


def sft(**keywords: Any) -> FinishedRun:
    """Supervised fine-tuning on rows with completions: ``sft(model=..., data="rows.jsonl", steps=100)``.

    ``out`` names the run folder (default ``runs/sft``, numbered), ``resume=True`` goes on with it, ``overwrite=True``
    starts it anew. Raises ``upslope.errors.InputError`` or ``InputErrors`` where something given cannot be used.
    """
    return _from_keywords("sft", keywords)


def ppo(**keywords: Any) -> FinishedRun:
    """PPO with a critic: ``ppo(model=..., data="rows.jsonl", reward=function, steps=40)``. See ``sft`` for the rest.

    ``reward`` is a function with TRL's signature, ``f(prompts, completions, **columns) -> list[float | None]``, or
    ``"path/to/file.py:function"``, or a built-in one, ``{"builtin": "numeric"}``; or a list of these, with
    ``reward_weights=[1.0, 0.5]`` where they do not weigh the same. Each runs in a process of its own.
    """
    return _from_keywords("ppo", keywords)


def grpo(**keywords: Any) -> FinishedRun:
    """GRPO: ``grpo(model=..., data="rows.jsonl", reward=function, steps=40)``. See ``ppo``."""
    return _from_keywords("grpo", keywords)


def reward_model(**keywords: Any) -> FinishedRun:
    """A reward model from preferences: ``reward_model(model=..., data="pairs.jsonl", steps=100)``, rows with ``chosen``
    and ``rejected``. Its ``.model`` is a sequence classifier with one label, for ``reward={"model": run.model}`` of
    ``ppo`` and ``grpo``. See ``sft`` for the rest."""
    return _from_keywords("reward", keywords)


def dpo(**keywords: Any) -> FinishedRun:
    """DPO on preferences: ``dpo(model=..., data="pairs.jsonl", beta=0.1, steps=100)``. See ``sft`` for the rest."""
    return _from_keywords("dpo", keywords)


def evaluate(model: str, **keywords: Any) -> Evaluation:
    """Score a model on held-out prompts: ``evaluate("runs/x/model", task="arithmetic")``, or ``data=`` and ``reward=``.

    See ``upslope.recipes.evaluation.evaluate`` for the keywords and the result.
    """
    from upslope.recipes.evaluation import evaluate as score

    return score(model, **keywords)


def sample_pairs(model: str, out: str | Path, **keywords: Any) -> SampledPairs:
    """Preferences from a model's own answers: ``sample_pairs("runs/x/model", "pairs.jsonl", data=..., reward=...)``.

    Several answers to each prompt, the best and the worst of them, by the reward, as rows for ``reward_model`` and
    ``dpo``. See ``upslope.recipes.sampled_pairs.sample_pairs`` for the keywords and the result.
    """
    from upslope.recipes.sampled_pairs import sample_pairs as write

    return write(model, out, **keywords)


def merge(adapter: str | Path, out: str | Path, dtype: str = "auto") -> Path:
    """Merge a LoRA adapter into its base model and write a plain model directory: ``merge("runs/x/model", "merged")``.

    ``dtype`` is auto (the base's own), float32, bfloat16 or float64. See ``upslope.models.merging.merge``.
    """
    from upslope.models.merging import merge as write

    return write(str(adapter), Path(out), dtype)


def check(recipe: str | Path, *overrides: str, show: bool = True, **keywords: Any) -> Checkup:
    """What `upslope check` finds out about a recipe, before anything is trained.

    Either a recipe's file with overrides, ``check("recipe.yaml", "train.steps=5")``, or a kind with the keywords of its
    function, ``check("grpo", model=..., data="rows.jsonl", reward=function)``. Prints what the command prints unless
    ``show`` is false; ``.findings`` is what looks wrong. Raises what the run would raise, in its words.
    """
    from upslope.checkup.gather import check as gather
    from upslope.checkup.kinds import kind_of
    from upslope.checkup.show import show as display
    from upslope.models.quiet import quiet

    function: RewardFunction | None = None
    if str(recipe) in RECIPES:
        kind = str(recipe)
        keywords, function = _with_reward(keywords)
        loaded = build(keywords, RECIPES[kind], called(kind))
        if overrides:
            raise InputError("upslope.check()", "overrides are for a recipe's file", "give keywords")
    else:
        kind = keywords.pop("kind", None)
        if keywords or kind not in (None, *RECIPES):
            odd = next(iter(keywords), f"kind {kind!r}")
            fix = f"give overrides such as 'train.steps=5', and kind as one of {', '.join(RECIPES)}"
            raise InputError("upslope.check()", f"{odd} is not understood beside a recipe's file", fix)
        kind = kind or kind_of(Path(recipe), overrides)
        loaded = load(recipe, RECIPES[kind], overrides)
    with quiet():
        found = gather(loaded, function)
    if show:
        # a cell of a notebook takes plain text; rich would send it escape sequences and an empty page
        terminal = sys.stdout.isatty()
        display(
            found, Console(force_terminal=terminal, force_jupyter=False, emoji=False, highlight=False, markup=False)
        )
    return found


def gridworld(map: str | Path | None = None, **options: Any) -> Gridworld:
    """A gridworld from the text of a map, or from the file at a path; without one, the built-in 6x6 world.

    ``options`` are ``step_cost`` (1), ``slip`` (0) and ``blocked`` ("mask" or "bump"); see
    ``upslope.worlds.gridworld`` for the map's tokens and the errors.
    """
    from upslope.worlds import gridworld as grids

    if map is None:
        return grids.parse(grids.SIX_BY_SIX, **options)
    as_file = isinstance(map, Path) or ("\n" not in map and Path(map).suffix == ".txt")
    return grids.read(map, **options) if as_file else grids.parse(str(map), **options)


def solve(world: Gridworld, discount: float = 1.0) -> Exact:
    """The exact solution of a gridworld: ``optimal_values``, ``optimal_actions``, ``optimal_return``, and ``measure``
    for any policy and critic. See ``upslope.worlds.grid_truth.Exact``."""
    from upslope.worlds.grid_truth import solve as exactly

    return exactly(world, discount)


def grid(world: Gridworld | None = None, learn: str = "ppo", **settings: Any) -> GridTraining:
    """Learn on a gridworld and record it beside the exact answers: ``grid(world, learn="ppo", seed=0)``.

    ``learn`` is ppo, grpo, values, policy, reinforce or q-learning; ``settings`` are keys of
    ``upslope.recipes.grid_config.GridRecipe``. Raises InputError or InputErrors where something given cannot be used.
    """
    from upslope.gridrun import recipe_of
    from upslope.recipes.grid import train

    return train(gridworld() if world is None else world, recipe_of(learn, settings, "upslope.grid()"))


def draw(world: Gridworld, what: Exact | GridTraining, path: str | Path) -> Path:
    """A picture of an exact solution, or of what a training ended with: values and policy, as a PNG."""
    from upslope.maths.bellman import greedy_policy
    from upslope.types import GridTraining
    from upslope.views.grid import grid_figure
    from upslope.views.grid_canvas import save

    if isinstance(what, GridTraining):
        last, title = what.last, f"{what.algorithm}, seed {what.seed}"
        values = last.values if last.values is not None else solve(world, what.discount).policy_values(last.policy)
        return save(grid_figure(world, values, last.policy, title), path)
    return save(grid_figure(world, what.optimal_values, greedy_policy(what.optimal_actions), "Solved exactly"), path)


def _from_keywords(kind: str, keywords: dict[str, Any]) -> FinishedRun:
    keywords = dict(keywords)
    mode: Mode = "resume" if keywords.pop("resume", False) else "new"
    mode = "overwrite" if keywords.pop("overwrite", False) else mode
    allow = keywords.pop("allow_change", ())
    listeners = keywords.pop("listeners", None)
    keywords, function = _with_reward(keywords)
    loaded = build(keywords, RECIPES[kind], called(kind))
    return execute(
        loaded, mode, listeners, function, allow, path=None if loaded.recipe.out else _next_folder(kind, mode)
    )


def called(kind: str) -> str:
    """The Python function of a kind of recipe, for messages: ``upslope.grpo()``."""
    return f"upslope.{'reward_model' if kind == 'reward' else kind}()"


def _with_reward(keywords: dict[str, Any]) -> tuple[dict[str, Any], RewardFunction | None]:
    """The keywords with Python functions in ``reward`` and ``tools`` named, as a recipe wants them, and the
    functions."""
    keywords = dict(keywords)
    weights = keywords.pop("reward_weights", None)
    tools: dict[str, Callable[..., Any]] = {}
    if keywords.get("tools") is not None:
        keywords["tools"], tools = name_tools(keywords["tools"])
    elif isinstance(keywords.get("episode"), Mapping) and keywords["episode"].get("tools") is not None:
        named, tools = name_tools(keywords["episode"]["tools"])
        keywords["episode"] = {**keywords["episode"], "tools": named}
    if weights is None and keywords.get("reward") is None:
        return keywords, tools or None
    keywords["reward"], functions = name_functions(keywords.get("reward"), weights)
    return keywords, {**functions, **tools}


def execute(
    loaded: Loaded[Any], mode: Mode = "new", listeners: Sequence[Listener] | None = None,
    reward: RewardFunction | None = None, allow_change: Sequence[str] = (), path: Path | None = None,
) -> FinishedRun:  # fmt: skip
    """Run a loaded recipe in its folder and write its report. Everything that needs no torch is checked before it is
    imported.

    ``path`` defaults to the recipe's ``out``, else ``runs/`` and the recipe's name. ``listeners`` hear the progress;
    default: a view on the terminal, or in the cell of a notebook.
    """
    recipe: Recipe = loaded.recipe
    precheck(recipe, reward)
    from upslope.run.folder import RunFolder
    from upslope.run.session import Run
    from upslope.run.trackers import trackers
    from upslope.views.notebook import NotebookView, in_notebook
    from upslope.views.report import write_report
    from upslope.views.terminal import TerminalView

    path = path or Path(recipe.out or Path("runs") / loaded.name)
    view = NotebookView if in_notebook() else TerminalView
    hear = [*([view()] if listeners is None else listeners), *trackers(recipe.report_to)]
    rung = importlib.import_module(f"upslope.recipes.{recipe.kind}")
    folder = RunFolder.open(path, loaded.text, {"recipe": recipe.kind}, mode, allow_change)
    with Run(folder, save_every=recipe.train.save_every, listeners=hear) as run:
        for notice in loaded.notices:
            run.notice(notice)
        rung.start(recipe, run, reward)
    write_report(path)
    return FinishedRun(path)


def _next_folder(kind: str, mode: Mode) -> Path:
    """The next free ``runs/KIND-N``: a call from Python has no recipe file to be named after."""
    names = [found.name.rpartition("-")[2] for found in Path("runs").glob(f"{kind}-*")]
    last = max((int(name) for name in names if name.isdecimal()), default=0)
    if mode == "resume":
        raise InputError(called(kind), "resume=True needs the run's folder", f"give out='runs/{kind}-{last or 1}'")
    return Path("runs") / f"{kind}-{last + 1}"
