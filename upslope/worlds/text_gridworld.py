"""Built-in task: walking a grid in words. Small enough that every text is known, and so the exact answer is too.

The prompt names the start, each move is one token (``U R D L``), and the score of a walk is its rewards: minus the step
cost for each move, plus the points of the terminal cell that ends it. A walk is at most ``horizon`` moves long.

Who may say what is a matter of ``allowed``, a function of prompt and text so far that the sampler asks: the legal moves
while the walk goes on, and after its end only the stop token. So each completion ends with a stop token, which makes
the cap as true an end as a terminal cell: nothing is bootstrapped, and no recipe needs to know. The forced stop has
log-probability 0 and adds nothing to a gradient. With ``vocabulary: full`` every token may be said while the walk goes
on, and one that is no legal move ends it with a penalty (``text_walks``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upslope.errors import InputError
from upslope.worlds import text_walks
from upslope.worlds.text_walks import MOVES, Rules

if TYPE_CHECKING:
    import numpy as np

    from upslope.types import Allowed, Example, Prompt, Rendering, Truth
    from upslope.worlds.gridworld import Cell, Gridworld
    from upslope.worlds.prefix_tree import PrefixTree

FOUR_BY_FOUR = """
 .   .  +5   .
+2  -1   .   .
 .   #   .   .
 .   .   #   .
"""
"""The built-in 4x4 map: 11 free cells, ends worth +5, +2 and -1. From each cell the best end beats the next by 2 points
or more, and a walk of random moves of at most 5 finds it at least once in 8."""
CHOICES: dict[str, tuple[str, ...]] = {
    "walls": ("mask", "bump"),
    "prompt": ("coordinate", "map"),
    "vocabulary": ("moves", "full"),
    "examples": ("optimal", "random"),
}


class TextGrid:
    """Prompts are the start cells of a map, for both splits: what is asked is whether the policy is optimal on them.

    Args:
        map: ``4x4`` or ``6x6`` (built in), the path of a file, or the map's text; see ``gridworld``.
        horizon: most moves in a walk.
        step_cost: what a move costs, where the map says nothing else.
        walls: ``mask`` (a move into a wall does not exist) or ``bump`` (it stays, and costs).
        prompt: ``coordinate`` (``row column <sep>``) or ``map`` (the drawn map, ``@`` at the start, then ``<sep>``).
        vocabulary: ``moves`` (only legal moves may be said) or ``full`` (any token may).
        examples: supervised rows are ``optimal`` walks (each best move equally likely) or ``random`` ones.
        repeats: how often each start occurs among the training prompts, and walks of each in the supervised rows.
        seed: decides the supervised walks.

    Raises:
        InputError: an unknown choice, a map that cannot be read, ``horizon`` or ``repeats`` below 1.
    """

    name = "text-grid"
    reward_source = "upslope.worlds.text_walks:score"

    def __init__(
        self, map: str = "4x4", horizon: int = 5, step_cost: float = 1.0, walls: str = "mask",
        prompt: str = "coordinate", vocabulary: str = "moves", examples: str = "optimal", repeats: int = 32,
        seed: int = 0,
    ) -> None:  # fmt: skip
        given = {"walls": walls, "prompt": prompt, "vocabulary": vocabulary, "examples": examples}
        for option, value in given.items():
            if value not in CHOICES[option]:
                words = " or ".join(CHOICES[option])
                raise InputError(f"data.options.{option}", f"found {value!r}, expected {words}", f"use {words}")
        for option, number in (("horizon", horizon), ("repeats", repeats)):
            if number < 1:
                raise InputError(f"data.options.{option}", f"found {number}, expected at least 1", "raise it")
        self.grid = _grid(map, step_cost, walls)
        self.rules = rules_of(self.grid, horizon)
        self.prompt_kind, self.vocabulary, self.example_kind = prompt, vocabulary, examples
        self.repeats, self.seed = repeats, seed
        self.longest = horizon + 1
        """Tokens of the longest completion: the moves and the stop token."""

    def __repr__(self) -> str:
        return f"TextGrid({self.grid.rows}x{self.grid.columns}, horizon={self.rules.horizon}, {self.vocabulary})"

    @property
    def starts(self) -> tuple[Cell, ...]:
        """Cells where walks begin: those marked ``S``, or all free ones."""
        return self.grid.starts

    def content(self, start: Cell) -> str:
        """The text of the prompt of a start cell, its words separated by spaces."""
        if self.prompt_kind == "coordinate":
            return f"{start[0]} {start[1]} <sep>"
        lines = (
            " ".join(self._drawn((row, column), start) for column in range(self.grid.columns))
            for row in range(self.grid.rows)
        )
        return " / ".join(lines) + " <sep>"

    def _drawn(self, cell: Cell, start: Cell) -> str:
        if cell in self.grid.walls:
            return "#"
        if cell in self.grid.terminals:
            return _spelt(self.grid.terminals[cell], signed=True)
        own = f" ~ {_spelt(self.grid.costs[cell])}" if cell in self.grid.costs else ""
        return ("@" if cell == start else ".") + own

    def prompts(self, split: str) -> list[Prompt]:
        """One prompt a start cell, ``repeats`` times over for ``train``."""
        from upslope.types import Prompt

        line = self.rules.to_json()
        once = [
            Prompt(
                _id(start), self.content(start),
                {"start": self.grid.index[start], "rules": line, "row": start[0], "column": start[1]},
            )
            for start in self.starts
        ]  # fmt: skip
        return once * self._times(split)

    def examples(self, split: str) -> list[Example]:
        """Drawn walks from each start: ``repeats`` of each for ``train``, one for ``heldout``."""
        from upslope.seeds import generator
        from upslope.types import Example

        rows = []
        for start in self.starts:
            draw = generator(self.seed, "text-grid examples", split, *start)
            walks = [self._walk(start, draw) for _ in range(self._times(split))]
            rows += [Example(f"{_id(start)}-{n}", self.content(start), walk) for n, walk in enumerate(walks)]
        return rows

    def _times(self, split: str) -> int:
        if split not in ("train", "heldout"):
            raise InputError(
                "text-grid split", f"{split!r} is unknown, expected train or heldout", "use train or heldout"
            )
        return self.repeats if split == "train" else 1

    def _walk(self, start: Cell, draw: np.random.Generator) -> str:
        said: list[str] = []
        state, rules = self.grid.index[start], self.rules
        table = rules.optimal_values() if self.example_kind == "optimal" else []
        while not rules.ends(state, len(said)):
            left = rules.horizon - len(said)
            moves = rules.best_moves(state, left, table) if table else rules.legal(state)
            move = moves[int(draw.integers(len(moves)))]
            said.append(MOVES[move])
            state = _next(rules, state, move)
        return " ".join(said)

    def reward(self, prompts: list[Any], completions: list[Any], **columns: list[Any]) -> list[float | None]:
        """The points of each walk; see ``text_walks.score``."""
        return text_walks.score(prompts, completions, **columns)

    # ------------------------------------------------------------------------------------------------- what may be said
    def allowed(self, renderer: Rendering) -> Allowed:
        """Who may say what, for ``Sampling.allowed``: see the top of this file.

        Raises:
            InputError: the tokenizer does not give each move a token of its own, or two starts the same prompt.
        """
        moves, stop = move_ids(renderer), (renderer.stop_id,)
        everything = tuple(range(len(renderer.tokenizer))) if self.vocabulary == "full" else ()
        starts = {tuple(renderer.prompt(self.content(start))): self.grid.index[start] for start in self.starts}
        if len(starts) < len(self.starts):
            raise InputError(
                "model.name",
                f"its tokenizer gives {len(self.starts)} start cells only {len(starts)} different prompts",
                "use model: text-grid-tiny, and maps of at most 20 rows and columns",
            )
        rules = self.rules
        after = [
            {moves[move]: there for move, there in enumerate(nexts) if there is not None} for nexts in rules.following
        ]
        choices = [everything or tuple(sorted(nexts)) for nexts in after]

        def allowed(prompt: Sequence[int], so_far: Sequence[int]) -> Sequence[int]:
            state = starts[tuple(prompt)]
            for token in so_far:
                there = after[state].get(token)
                if there is None:  # an illegal token, or more after the end
                    return stop
                state = there
            return stop if rules.ends(state, len(so_far)) else choices[state]

        return allowed

    def tree(self, renderer: Rendering, start: Cell) -> PrefixTree:
        """All texts after the prompt of a start cell; see ``prefix_tree``."""
        from upslope.worlds.prefix_tree import grow

        everything = range(len(renderer.tokenizer)) if self.vocabulary == "full" else ()
        prompt = renderer.prompt(self.content(start))
        return grow(self.rules, self.grid.index[start], prompt, move_ids(renderer), renderer.stop_id, everything)

    def truth(self, renderer: Rendering) -> Truth:
        """The exact advantages and values of a policy along its walks, for the log; see ``text_truth``."""
        from upslope.worlds.text_truth import truth_of

        starts = {tuple(renderer.prompt(self.content(start))): start for start in self.starts}
        return truth_of(self.rules, self.grid.index, starts, lambda start: self.tree(renderer, start))


def move_ids(renderer: Rendering) -> tuple[int, ...]:
    """The tokens of the moves.

    Raises:
        InputError: the tokenizer has no token of its own for each of them.
    """
    ids = renderer.completion(" ".join(MOVES))[:-1]
    alone = [renderer.completion(move)[:-1] for move in MOVES]
    if [[token] for token in ids] != alone or len(set(ids)) < len(MOVES):
        raise InputError(
            "model.name", f"its tokenizer has no token of its own for each of {' '.join(MOVES)} between spaces",
            "use model: text-grid-tiny",
        )  # fmt: skip
    return tuple(ids)


def rules_of(grid: Gridworld, horizon: int) -> Rules:
    """The rules of walks on a grid of at most ``horizon`` moves.

    Raises:
        InputError: the grid is slippery: then a text would not say where its walk is.
    """
    if grid.slip > 0:
        raise InputError("slip", f"found {grid.slip}, expected 0: a text does not show where it slipped", "set slip: 0")
    following: list[tuple[int | None, ...]] = []
    rewards: list[tuple[float, ...]] = []
    for cell in grid.cells:
        outcomes = [
            grid.outcomes(cell, move)[0][1] if grid.exists(cell, move) else None
            for move in range(len(MOVES))
            if cell not in grid.terminals
        ]
        following.append(tuple(None if there is None else grid.index[there] for there in outcomes))
        gains = [None if there is None else grid.terminals.get(there, 0.0) - grid.cost(cell) for there in outcomes]
        rewards.append(tuple(gain or 0.0 for gain in gains))
    return Rules(tuple(following), tuple(rewards), tuple(cell in grid.terminals for cell in grid.cells), horizon)


def _grid(text: str, step_cost: float, walls: str) -> Gridworld:
    from upslope.worlds import gridworld

    named = {"4x4": FOUR_BY_FOUR, "6x6": gridworld.SIX_BY_SIX}
    read: Callable[..., Gridworld] = gridworld.parse
    if text not in named and len(text.split()) == 1:
        if not Path(text).is_file():
            names = " or ".join(named)
            raise InputError(
                "data.options.map", f"no map and no file is named {text!r}", f"use {names}, a file, or a map's text"
            )
        read = gridworld.read
    try:
        return read(named.get(text, text), step_cost=step_cost, blocked=walls)
    except InputError as error:
        raise InputError(f"data.options, {error.where}", error.problem, error.fix) from error


def _spelt(number: float, signed: bool = False) -> str:
    if number != int(number):
        raise InputError(
            "data.options.prompt", f"a drawn map spells whole numbers only, found {number:g}", "use prompt: coordinate"
        )
    return f"{'+' if number >= 0 else '-'} {abs(int(number))}" if signed else str(int(number))


def _next(rules: Rules, state: int, move: int) -> int:
    there = rules.following[state][move]
    if there is None:
        raise ValueError(f"move {MOVES[move]} does not exist in state {state}")
    return there


def _id(start: Cell) -> str:
    return f"{start[0]}-{start[1]}"
