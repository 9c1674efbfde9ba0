"""The gridworld as a Gymnasium environment: ``gymnasium.make("upslope/Grid-v0", map=...)``.

Importing this module registers the environment and imports no torch; the first ``GridEnv`` does. From a program that
imports nothing else, ``gymnasium.make("upslope.worlds.grid_env:upslope/Grid-v0")`` does both.
"""

from __future__ import annotations

import os
import sys
from typing import Any, ClassVar, TypeAlias

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import registry
from PIL import Image, ImageDraw, ImageFont

from upslope.errors import InputError, MachineError

ENVIRONMENT = "upslope/Grid-v0"
MAX_EPISODE_STEPS = 1000

Outcome: TypeAlias = tuple[float, int, float, bool]
"""``(probability, next state, reward, whether the episode ends there)``."""

_WALL, _INK, _PAPER, _LINE, _FLOOR = "#8d9096", "#1c1d1f", "#ffffff", "#d5d7da", "#f6f6f4"
_GOOD, _BAD, _DEAR, _AGENT = "#5ea3d3", "#f1a340", "#e3dccb", "#1c1d1f"
_PIXELS, _LARGEST = 64, 1024  # a cell's side, and the picture's longer side in large worlds
_READABLE = 20  # the least side of a cell with a label
_FRAME_SECONDS = 0.25


class GridEnv(gymnasium.Env[int, int]):
    """A gridworld to act in. The map's language, ``slip`` and ``blocked`` are those of ``worlds.gridworld``.

    ``map`` is a map's text, a ``Gridworld`` (which has its own cost, slip and blocked) or None, the built-in 6x6. An
    observation is the number of a state: ``world.cells[observation]`` is the cell. Actions 0 to 3 are up, right, down,
    left (``world.ACTIONS``). The reward of a move is minus the cost of its departing cell, plus the points of the
    terminal cell it enters; the episode ends there (``terminated``). ``info["action_mask"]`` is int8 [4], 1 where a
    move exists; ``info["prob"]`` is the probability of what happened.

    Under ``blocked="mask"`` a move into a wall does not exist. One that is chosen all the same, by an agent that does
    not read the mask, stays for certain and costs the move, as in Taxi; ``P`` says so too.

    ``P[s][a]`` is the table of toy-text environments, ``desc`` the map's rows, ``initial_state_distrib`` where episodes
    start. ``reset(options={"start": (row, column)})`` starts in a free cell of your choice.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array", "human"], "render_fps": 4}  # noqa: RUF012
    ACTION_COUNT: ClassVar[int] = 4

    def __init__(
        self,
        map: Any = None,
        step_cost: float = 1.0,
        slip: float = 0.0,
        blocked: str = "mask",
        render_mode: str | None = None,
    ) -> None:
        from upslope.worlds.gridworld import SIX_BY_SIX, Gridworld, parse  # here, for it loads torch

        if isinstance(map, Gridworld):
            if (step_cost, slip, blocked) != (1.0, 0.0, "mask"):
                raise InputError("map", "a Gridworld has its own step_cost, slip and blocked", "give the map as text")
            self.world = map
        elif map is None or isinstance(map, str):
            self.world = parse(SIX_BY_SIX if map is None else map, step_cost, slip, blocked)  # type: ignore[arg-type]
        else:
            raise InputError(
                "map", f"found a {type(map).__name__}, expected text or a Gridworld", "give the map's text"
            )
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            modes = ", ".join(self.metadata["render_modes"])
            raise InputError("render_mode", f"found {render_mode!r}, expected one of {modes}", "use 'rgb_array'")
        if render_mode == "human":
            _check_display()
        world = self.world
        self.render_mode = render_mode
        self.observation_space = spaces.Discrete(len(world.cells))  # type: ignore[assignment]
        self.action_space = spaces.Discrete(self.ACTION_COUNT)  # type: ignore[assignment]
        self.desc = world.text.splitlines()
        self.initial_state_distrib = world.start_distribution().numpy()
        self.P: dict[int, dict[int, list[Outcome]]] = {
            state: {action: self._outcomes(state, action) for action in range(self.ACTION_COUNT)}
            for state in range(len(world.cells))
        }
        self._state = int(self.initial_state_distrib.argmax())
        self._window: Any = None

    def _outcomes(self, state: int, action: int) -> list[Outcome]:
        world, cell = self.world, self.world.cells[state]
        if cell in world.terminals:
            return [(1.0, state, 0.0, True)]
        reached = world.outcomes(cell, action) if world.exists(cell, action) else ((1.0, cell),)
        return [
            (chance, world.index[there], world.terminals.get(there, 0.0) - world.cost(cell), there in world.terminals)
            for chance, there in reached
            if chance > 0
        ]

    def action_mask(self, state: int) -> np.ndarray:
        """int8 [4]: 1 for the moves that exist in ``state``."""
        cell = self.world.cells[state]
        return np.array([self.world.exists(cell, action) for action in range(self.ACTION_COUNT)], dtype=np.int8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """Start an episode, in ``options["start"]`` or where ``initial_state_distrib`` draws it."""
        super().reset(seed=seed)
        options = options or {}
        if unknown := sorted(set(options) - {"start"}):
            raise InputError(f"reset options {unknown[0]!r}", "is not known, expected 'start'", "leave it out")
        if "start" in options:
            self._state = self._start(options["start"])
        else:
            self._state = _draw(self.initial_state_distrib, self.np_random)
        if self.render_mode == "human":
            self.render()
        return self._state, {"action_mask": self.action_mask(self._state), "prob": 1.0}

    def _start(self, start: Any) -> int:
        try:
            cell = tuple(int(part) for part in start)
        except (TypeError, ValueError):
            cell = ()
        if cell not in self.world.index or cell in self.world.terminals:
            raise InputError(
                "reset options 'start'",
                f"found {start!r}, expected (row, column) of a free cell, counted from 0",
                f"give one such as {self.world.starts[0]}",
            )
        return self.world.index[cell]  # type: ignore[index]

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict[str, Any]]:
        """Make a move. ``truncated`` is always False: time limits are ``gymnasium.make``'s."""
        outcomes = self.P[self._state].get(int(action))
        if outcomes is None:
            raise InputError("action", f"found {action}, expected 0 to {self.ACTION_COUNT - 1}", "choose one of these")
        chance, self._state, reward, done = outcomes[_draw([outcome[0] for outcome in outcomes], self.np_random)]
        if self.render_mode == "human":
            self.render()
        return self._state, reward, done, False, {"action_mask": self.action_mask(self._state), "prob": chance}

    def render(self) -> Any:
        """Text with the agent's cell in brackets (ansi), an image [height, width, 3] uint8 (rgb_array), or a window."""
        if self.render_mode is None:
            gymnasium.logger.warn("render() without a render_mode: give gymnasium.make(..., render_mode='rgb_array')")
            return None
        if self.render_mode == "ansi":
            return self._text()
        picture = self._picture()
        if self.render_mode == "rgb_array":
            return picture
        self._show(picture)
        return None

    def _text(self) -> str:
        here = self.world.cells[self._state]
        tokens = [line.split() for line in self.desc]
        width = max(len(token) for line in tokens for token in line)
        return "\n".join(
            "".join(
                f"[{token.rjust(width)}]" if (row, column) == here else f" {token.rjust(width)} "
                for column, token in enumerate(line)
            ).rstrip()
            for row, line in enumerate(tokens)
        )

    def _picture(self) -> np.ndarray:
        """Walls grey, terminals blue or orange with their points, costly cells tinted, the agent a disc."""
        world, here = self.world, self.world.cells[self._state]
        side = max(4, min(_PIXELS, _LARGEST // max(world.rows, world.columns)))
        image = Image.new("RGB", (world.columns * side + 1, world.rows * side + 1), _WALL)
        draw = ImageDraw.Draw(image)
        for cell in world.cells:
            left, top = cell[1] * side, cell[0] * side
            points = world.terminals.get(cell)
            color = _GOOD if points is not None and points >= 0 else _BAD if points is not None else _FLOOR
            if cell in world.costs:
                color = _DEAR
            draw.rectangle((left, top, left + side, top + side), fill=color, outline=_LINE if side >= 8 else None)
            label = f"{points:+g}" if points is not None else f"~{world.costs[cell]:g}" if cell in world.costs else ""
            if world.starts_given and cell in world.starts:
                label = f"S{label}"
            middle = (left + side / 2, top + side / 2)
            if cell == here:
                radius = side * 0.32
                disc = (middle[0] - radius, middle[1] - radius, middle[0] + radius, middle[1] + radius)
                draw.ellipse(disc, fill=_AGENT, outline=_PAPER, width=max(1, side // 16))
            if label and side >= _READABLE:
                font = ImageFont.load_default(min(side * 0.34, side * 1.5 / len(label)))
                draw.text(middle, label, fill=_PAPER if cell == here else _INK, font=font, anchor="mm")
        return np.asarray(image, dtype=np.uint8).copy()

    def _show(self, picture: np.ndarray) -> None:
        from matplotlib import pyplot

        if self._window is None:
            figure, axes = pyplot.subplots()
            axes.set_axis_off()
            self._window = (figure, axes.imshow(picture))
        self._window[1].set_data(picture)
        pyplot.pause(_FRAME_SECONDS)

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._window is not None:
            from matplotlib import pyplot

            pyplot.close(self._window[0])
            self._window = None


def _draw(probabilities: Any, random: np.random.Generator) -> int:
    """An index, by inversion. The last one of positive probability takes what rounding leaves of the unit."""
    edges = np.cumsum(probabilities)
    return int(np.searchsorted(edges, random.random() * edges[-1], side="right"))


def _check_display() -> None:
    import matplotlib

    backend = matplotlib.get_backend().lower()  # resolves to a window where one can be opened, else to agg
    windowless = backend in ("agg", "pdf", "ps", "svg", "cairo", "template", "pgf") or "inline" in backend
    no_screen = sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    if windowless or no_screen:
        raise MachineError(
            "render_mode 'human'",
            "found no display that matplotlib can open a window on",
            "use render_mode='rgb_array' or 'ansi'",
        )


def register() -> None:
    """Register ``upslope/Grid-v0`` with Gymnasium, once. Its episodes are cut off after 1000 moves."""
    if ENVIRONMENT not in registry:
        gymnasium.register(id=ENVIRONMENT, entry_point=f"{__name__}:GridEnv", max_episode_steps=MAX_EPISODE_STEPS)


register()
