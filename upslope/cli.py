"""The command line: one command a recipe, and the few others around them.

Exit codes: 0 done, 2 your input, 3 the environment, 1 our bug, 130 and 143 stopped and resumable.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.text import Text

from upslope import api, cli_tools
from upslope.errors import InputError, UpslopeError
from upslope.recipes.configs import RECIPES
from upslope.run.recipe import load
from upslope.run.recipe_yaml import parse_value
from upslope.views.safe_text import clean

app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Reinforcement-learning post-training that you can check: from a gridworld to SFT, PPO and GRPO.",
)  # fmt: skip
LONGEST_LINE = 20_000
EXTRA = {"ignore_unknown_options": True}  # --train.steps 50 is an override, too
RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file, e.g. recipes/grpo-arithmetic.yaml")]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(metavar="[KEY=VALUE]...", help="Override recipe keys, e.g. optim.lr=1e-5 train.steps=50"),
]
Model = Annotated[str, typer.Argument(help="A model directory, a hub id, or smollm2-135m-instruct.")]
Task = Annotated[Optional[str], typer.Option(help="A built-in task, e.g. arithmetic.")]  # noqa: UP045
Data = Annotated[Optional[str], typer.Option(help="Your rows.")]  # noqa: UP045
Reward = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        help="file.py:function or '{builtin: numeric}', as in a recipe; several: their sum; none: the task's own."
    ),
]
Columns = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(metavar="OURS=YOURS", help="As data.columns, e.g. prompt=question; may be given several times."),
]
Prompts = Annotated[int, typer.Option(min=1, help="At most so many prompts.")]
Split = Annotated[str, typer.Option(help="heldout, train or all")]
Heldout = Annotated[
    float, typer.Option(min=0, help="Of --data, as the recipe's data.heldout: a share, or a number of rows.")
]
SystemPrompt = Annotated[Optional[str], typer.Option(help="As the recipe's data.system_prompt.")]  # noqa: UP045
TooLong = Annotated[str, typer.Option(help="As the recipe's data.too_long: error, drop or truncate.")]
OnBadRow = Annotated[str, typer.Option(help="As the recipe's data.on_bad_row: error or skip.")]
Seed = Annotated[
    int, typer.Option(min=0, help="The training run's seed: it decides the split, and what is drawn by chance.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps")]
Tools = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(help="file.py:function that the model may call; may be given several times."),
]
Sandbox = Annotated[
    bool, typer.Option("--sandbox", help="With tools: they run what the model writes, so wall them in.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run that the folder holds.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete the run that the folder holds, and start anew.")]
Allow = Annotated[
    list[str] | None,
    typer.Option("--allow-change", metavar="KEY", help="With --resume: a recipe key that may differ."),
]


def _train(
    kind: str, recipe: Path, overrides: list[str] | None, resume: bool, overwrite: bool, allow: list[str] | None
) -> None:
    if resume and overwrite:
        raise InputError("command line", "--resume and --overwrite exclude each other", "give one of them")
    loaded = load(recipe, RECIPES[kind], overrides or ())
    mode: api.Mode = "resume" if resume else "overwrite" if overwrite else "new"
    done = api.execute(loaded, mode, allow_change=allow or ())
    _say(f"model   {done.model}")
    _say(f"report  {done.report}")


TRAININGS = {
    "sft": "Supervised fine-tuning. Further arguments override recipe keys: optim.lr=1e-5 train.steps=50.",
    "ppo": "PPO with a critic. Further arguments override recipe keys: ppo.kl_coef=0.05 model.name=runs/sft/model.",
    "reward": "A reward model from preferences. Further arguments override recipe keys: optim.lr=1e-5 train.steps=50.",
    "dpo": "DPO: preferences without a reward model. Further arguments override recipe keys: dpo.beta=0.05.",
    "grpo": "GRPO. Further arguments override recipe keys: grpo.group=16 model.name=runs/sft/model.",
}
"""A command each; its help text."""


def _training_command(kind: str) -> None:
    def command(
        recipe: RecipeFile,
        overrides: Overrides = None,
        resume: Resume = False,
        overwrite: Overwrite = False,
        allow_change: Allow = None,
    ) -> None:
        _train(kind, recipe, overrides, resume, overwrite, allow_change)

    app.command(name=kind, help=TRAININGS[kind], context_settings=EXTRA)(command)


for _kind in TRAININGS:
    _training_command(_kind)


@app.command(name="eval")
def evaluate(
    model: Model,
    task: Task = None,
    data: Data = None,
    reward: Reward = None,
    columns: Columns = None,
    prompts: Prompts = 512,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    split: Split = "heldout",
    heldout: Heldout = 0.1,
    system_prompt: SystemPrompt = None,
    too_long: TooLong = "error",
    on_bad_row: OnBadRow = "error",
    tools: Tools = None,
    max_turns: Annotated[int, typer.Option(min=2, help="With tools: messages that the model may write.")] = 4,
    budget: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="With tools: tokens after the prompt, results among them."),
    ] = None,
    sandbox: Sandbox = False,
    seed: Seed = 0,
    device: Device = "auto",
    show: Annotated[int, typer.Option(min=0, help="Print so many answers.")] = 5,
) -> None:
    """Score a model on held-out prompts, greedy and sampled, with 95 % intervals."""
    from upslope.views.scores import counting, print_evaluation

    _one_source(task, data)
    with _as_options(), counting("answers") as progress:
        found = api.evaluate(
            model, task=task, data=data, reward=_reward(reward), columns=_columns(columns), prompts=prompts,
            max_new_tokens=max_new_tokens, split=split, heldout=heldout, system_prompt=system_prompt, seed=seed,
            device=device, too_long=too_long, on_bad_row=on_bad_row, tools=tools or None, max_turns=max_turns,
            budget=budget, sandbox=sandbox, progress=progress,
        )  # fmt: skip
    print_evaluation(found.model, {"greedy": found.greedy, "sampled": found.sampled}, found.prompts, show)


@app.command()
def pairs(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="PAIRS", help="The file to write, e.g. pairs.jsonl.")],
    task: Task = None,
    data: Data = None,
    reward: Reward = None,
    columns: Columns = None,
    prompts: Prompts = 1024,
    samples: Annotated[int, typer.Option(min=2, help="Answers to each prompt.")] = 4,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    temperature: Annotated[float, typer.Option(min=0.01)] = 1.0,
    split: Split = "train",
    heldout: Heldout = 0.1,
    system_prompt: SystemPrompt = None,
    too_long: TooLong = "error",
    on_bad_row: OnBadRow = "error",
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write over the file if it is there.")] = False,
    show: Annotated[int, typer.Option(min=0, max=5, help="Print so many pairs.")] = 2,
) -> None:
    """Preferences from a model's own answers: the best and the worst of several, for reward and dpo."""
    from upslope.views.scores import counting, print_pairs

    _one_source(task, data)
    with _as_options(), counting("answers") as progress:
        found = api.sample_pairs(
            model, out, task=task, data=data, reward=_reward(reward), columns=_columns(columns), prompts=prompts,
            samples=samples, max_new_tokens=max_new_tokens, temperature=temperature, split=split, heldout=heldout,
            system_prompt=system_prompt, seed=seed, device=device, too_long=too_long, on_bad_row=on_bad_row,
            overwrite=overwrite, progress=progress,
        )  # fmt: skip
    print_pairs(found, show)


def _one_source(task: str | None, data: str | None) -> None:
    if (task is None) == (data is None):
        raise InputError(
            "command line", "exactly one of --task and --data is needed", "give --task arithmetic or --data rows.jsonl"
        )


@contextlib.contextmanager
def _as_options() -> Iterator[None]:
    """What to do is said in options, where errors speak of a recipe's keys: there is no recipe here."""
    try:
        yield
    except InputError as error:
        fix = error.fix.replace("map it: data.columns.", "give data.columns.").replace("give reward:", "give --reward")
        fix = re.sub(r"\bdata\.columns\.(\w+): (\S+)", r"--columns \1=\2", fix)
        fix = re.sub(r"\b(?:data|sampling)\.(\w+):?", lambda key: "--" + key[1].replace("_", "-"), fix)
        fix = re.sub(r"\bmax_new_tokens\b", "--max-new-tokens", fix)
        where = re.sub(r"^data\.columns\.\w+", "--columns", error.where).replace("reward.function", "--reward")
        where = {"reward": "--reward", "sample_pairs()": "upslope pairs"}.get(where, where)
        raise InputError(where, error.problem, fix) from None


def _columns(given: list[str] | None) -> dict[str, str]:
    pairs = [text.partition("=") for text in given or ()]
    if wrong := ["".join(pair) for pair in pairs if not all(pair)]:
        raise InputError(
            "--columns", f"found {wrong[0]!r}, expected OURS=YOURS", "give, e.g., --columns prompt=question"
        )
    return {ours: yours for ours, _, yours in pairs}


def _reward(given: list[str] | None) -> Any:
    """The options as a recipe's ``reward``: each is read as YAML, and several are a list."""
    values = [parse_value(text, "--reward") for text in given or ()]
    return values[0] if len(values) == 1 else values or None


@app.command()
def chat(
    model: Model,
    system_prompt: Annotated[Optional[str], typer.Option()] = None,  # noqa: UP045
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.7,
    top_p: Annotated[float, typer.Option(min=0.01, max=1.0)] = 0.95,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    device: Annotated[str, typer.Option()] = "auto",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    tools: Tools = None,
    max_turns: Annotated[int, typer.Option(min=2, help="With tools: messages that an answer may take.")] = 4,
    sandbox: Sandbox = False,
) -> None:
    """Talk with a model. An empty line ends the conversation."""
    from upslope.chat import converse

    converse(model, system_prompt, temperature, top_p, max_new_tokens, device, seed, tools or (), max_turns, sandbox)


@app.command()
def merge(
    adapter: Annotated[str, typer.Argument(help="runs/NAME/model of a run with lora, or any PEFT directory.")],
    out: Annotated[Path, typer.Argument(help="The folder to write, new or empty.")],
    dtype: Annotated[str, typer.Option(help="Type of the written weights: auto (as the base), float32 ...")] = "auto",
) -> None:
    """Merge a LoRA adapter into its base model: a plain model directory that needs no peft."""
    _say(str(api.merge(adapter, out, dtype)))


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write report.html of a run: one self-contained page."""
    from upslope.views.report import write_report

    _say(str(write_report(run)))


@app.command()
def grid(
    map_file: Annotated[
        Optional[Path], typer.Argument(metavar="[MAP]", help="A map in a text file; none: the built-in 6x6.")  # noqa: UP045
    ] = None,
    step_cost: Annotated[float, typer.Option(help="What a move costs, in points.")] = 1.0,
    slip: Annotated[float, typer.Option(help="Probability that a move goes to one of its two sides.")] = 0.0,
    blocked: Annotated[str, typer.Option(help="Moves into walls: mask (there are none) or bump (stay).")] = "mask",
    discount: Annotated[float, typer.Option(help="gamma, a move.")] = 1.0,
    learn: Annotated[
        Optional[str], typer.Option(help="values, policy, ppo, grpo, reinforce or q-learning; none: all.")  # noqa: UP045
    ] = None,
    features: Annotated[str, typer.Option(help="What networks see of a cell: one-hot, xy or fourier.")] = "one-hot",
    iterations: Annotated[Optional[int], typer.Option(help="Batches of walks; none: the learner's default.")] = None,  # noqa: UP045
    seeds: Annotated[int, typer.Option(min=1, help="Train with so many seeds.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    size: Annotated[
        Optional[int], typer.Option(min=10, max=200, help="The catch: a generated world so wide, table and network.")  # noqa: UP045
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the pictures and the live page.")] = Path("runs/grid"),
) -> None:
    """A gridworld: solved exactly, learned by networks, drawn; a table and a live page (grid.html) at the end."""
    from upslope.gridrun import grid_command

    settings: dict[str, Any] = {"discount": discount, "features": features}
    if iterations is not None:
        settings["iterations"] = iterations
    world = {"step_cost": step_cost, "slip": slip, "blocked": blocked}
    grid_command(map_file, world, learn, settings, range(seed, seed + seeds), size, out)


@app.command()
def certify(
    function: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(metavar="[FILE.py:FUNCTION]", help="Your loss or advantage function; none: every algorithm."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out the trainings.")] = False,
) -> None:
    """Every algorithm, or your own loss, against exact answers: a table. Exit code 1 if something does not hold."""
    from upslope.certify.command import certify_command

    if not certify_command(function, as_json, trained=not quick):
        sys.exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the demo's runs and report.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0)] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A short ladder of a few steps: to see that it runs.")] = False,
) -> None:
    """The whole ladder on a real model: grid, SFT, PPO, GRPO, a table and a report. About 13 minutes on two cores."""
    from upslope.demo import run_demo

    run_demo(out, seed, quick)


cli_tools.register(app)


def main() -> None:
    """Run a command and turn errors into messages and exit codes. ``--debug`` shows tracebacks."""
    # A thread that waits for its fellows soon sleeps instead of spinning: on a machine that does other work too,
    # spinning makes a training step several times as long. Read when torch is loaded, so it must stand before that.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app(standalone_mode=False)
    except UpslopeError as error:
        if debug:
            traceback.print_exception(error)
        for one in getattr(error, "errors", (error,)):
            _complain(str(one) if error.exit_code >= 128 else f"error: {one}")
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            _complain(error.format_message())  # type: ignore[attr-defined]
            sys.exit(2)
        if hasattr(error, "format_message"):  # a wrong option or command
            _complain(f"error: command line: {error.format_message()} Fix: see `upslope --help`.")
            sys.exit(2)
        if debug:
            traceback.print_exception(error)
        ran_out = _ran_out(error)
        if ran_out is not None:
            _complain(f"error: {ran_out}")
            sys.exit(3)
        if not debug:
            _complain(_bug(error))
        sys.exit(1)


def _say(text: str, stderr: bool = False) -> None:
    """Lines of plain text: what comes from files and models cannot act on the terminal, and ``:100:`` is no emoji."""
    console = Console(stderr=stderr, highlight=False)
    for line in text.split("\n"):
        console.print(Text(clean(line, LONGEST_LINE)), soft_wrap=True)


def _complain(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it any more
        _say(text, stderr=True)


def _ran_out(error: Exception) -> str | None:
    """What to say where the machine's memory or disk ran out; None of any other error."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    no_memory = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text  # torch's, of GPU and CPU
    if isinstance(error, MemoryError) or no_memory:
        fix = "lower train.micro_batch_tokens, set model.gradient_checkpointing: true, or train an adapter (lora.rank)"
        return f"memory: it ran out ({text}). Fix: {fix}."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        return f"{error.filename or 'disk'}: {error.strerror}. Fix: free some space, or give another folder by out."
    return None


def _bug(error: Any) -> str:
    """Keep the traceback in a file: it is our fault, and a report needs it."""
    handle, name = tempfile.mkstemp(prefix="upslope-bug-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write("".join(traceback.format_exception(error)))
    what = f"this is a bug in upslope: {type(error).__name__}: {error}"
    return f"error: {what}. Fix: report it with {name}, or see it with --debug."
