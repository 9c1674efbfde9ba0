"""The Gymnasium environment: Gymnasium's checker, its table and its moves against the exact arrays, its pictures."""

from __future__ import annotations

import itertools
import subprocess
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from upslope.errors import InputError, MachineError
from upslope.maths import bellman
from upslope.worlds import grid_env
from upslope.worlds.grid_env import GridEnv
from upslope.worlds.gridworld import SIX_BY_SIX, parse
from upslope.worlds.mdp import from_gymnasium, start_distribution

SMALL = """
 .  ~3  +5
 .   #  -1
 S   .   S
"""
KINDS: list[dict[str, Any]] = [{}, {"blocked": "bump"}, {"slip": 0.25}, {"slip": 0.25, "blocked": "bump"}]


def names(kind: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in kind.items()) or "mask"


# ----------------------------------------------------------------------------------------------------------- Gymnasium
@pytest.mark.parametrize("kind", KINDS, ids=names)
@pytest.mark.parametrize("render_mode", [None, "ansi", "rgb_array"])
def test_gymnasiums_checker_passes(kind: dict[str, Any], render_mode: str | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*not having a spec.*")
        check_env(GridEnv(SMALL, render_mode=render_mode, **kind))


def in_a_fresh_process(program: str) -> list[str]:
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


def test_make_finds_it_without_an_import_of_upslope() -> None:
    program = """
import gymnasium
env = gymnasium.make("upslope.worlds.grid_env:upslope/Grid-v0", map="S . +5", slip=0.5)
print(env.spec.id, env.spec.max_episode_steps, env.observation_space.n, env.unwrapped.world.slip)
print(env.reset(seed=0)[0], env.reset(options={"start": (0, 1)})[0])
"""
    assert in_a_fresh_process(program) == ["upslope/Grid-v0 1000 3 0.5", "0 1"]


def test_an_import_registers_it_and_loads_no_torch() -> None:
    program = """
import sys
import upslope.worlds.grid_env
import gymnasium
print(gymnasium.spec("upslope/Grid-v0").entry_point, "torch" in sys.modules)
"""
    assert in_a_fresh_process(program) == ["upslope.worlds.grid_env:GridEnv False"]


def test_registering_twice_is_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grid_env.register()
        grid_env.register()
    assert gymnasium.spec("upslope/Grid-v0").max_episode_steps == 1000


def test_a_time_limit_truncates_and_does_not_terminate() -> None:
    env = gymnasium.make("upslope/Grid-v0", map=". . +5", max_episode_steps=3)
    env.reset(seed=0, options={"start": (0, 0)})
    ends = [env.step(0)[2:4] for _ in range(3)]  # into the border
    assert ends == [(False, False), (False, False), (False, True)]


# ----------------------------------------------------------------------------------------------- the table is the world
@pytest.mark.parametrize("slip", [0.0, 0.25, 0.1, 1.0])
def test_the_table_of_a_bumping_world_is_its_arrays(slip: float) -> None:
    world = parse(SMALL, slip=slip, blocked="bump")
    env = GridEnv(world)
    found, expected = from_gymnasium(env), world.mdp()
    assert torch.equal(found.terminal, expected.terminal) and torch.equal(found.available, expected.available)
    assert torch.equal(found.transition, expected.transition)
    if slip in (0.0, 0.25):  # sums without rounding
        assert torch.equal(found.reward, expected.reward)
    torch.testing.assert_close(found.reward, expected.reward, atol=1e-14, rtol=0)
    assert torch.equal(start_distribution(env), world.start_distribution())


@pytest.mark.parametrize("slip", [0.0, 0.25])
def test_the_table_of_a_masked_world_is_its_arrays_where_moves_exist_and_else_stays(slip: float) -> None:
    world = parse(SMALL, slip=slip)
    found, expected = from_gymnasium(GridEnv(world)), world.mdp()
    exists = expected.available
    assert torch.equal(found.transition[exists], expected.transition[exists])
    assert torch.equal(found.reward[exists], expected.reward[exists])
    masked = ~exists & ~expected.terminal.unsqueeze(1)
    assert masked.sum() > 5
    costs = torch.tensor([world.cost(cell) for cell in world.cells], dtype=torch.float64)
    stays = torch.eye(len(world.cells), dtype=torch.float64).unsqueeze(1).expand_as(found.transition)
    assert torch.equal(found.transition[masked], stays[masked])
    assert torch.equal(found.reward[masked], -costs.unsqueeze(1).expand_as(found.reward)[masked])
    torch.testing.assert_close(bellman.optimal_values(found, 1.0), bellman.optimal_values(expected, 1.0))


@pytest.mark.parametrize("kind", KINDS, ids=names)
def test_moves_follow_the_exact_arrays(kind: dict[str, Any]) -> None:
    """Every state and move 300 times: frequencies of next states within 4.5 standard errors, rewards on average."""
    env = GridEnv(SMALL, **kind)
    world, mdp, samples = env.world, env.world.mdp(), 300
    env.reset(seed=7)
    for cell in set(world.cells) - set(world.terminals):
        state = world.index[cell]
        for action in mdp.available[state].nonzero().flatten().tolist():
            counts, paid = torch.zeros(len(world.cells), dtype=torch.float64), 0.0
            for _ in range(samples):
                env.reset(options={"start": cell})
                there, reward, terminated, truncated, info = env.step(action)
                counts[there], paid = counts[there] + 1, paid + reward
                assert terminated == (world.cells[there] in world.terminals) and not truncated
                assert info["prob"] in [chance for chance, _, _, _ in env.P[state][action]]
            chance = mdp.transition[state, action]
            spread = (chance * (1 - chance) / samples).sqrt()
            assert ((counts / samples - chance).abs() <= 4.5 * spread + 1e-12).all()
            assert paid / samples == pytest.approx(mdp.reward[state, action].item(), abs=0.7 if world.slip else 1e-9)


def test_a_masked_move_that_is_chosen_all_the_same_stays_and_costs() -> None:
    env = GridEnv(SMALL, slip=0.25)
    state, info = env.reset(seed=0, options={"start": (0, 1)})
    assert info["action_mask"].tolist() == [0, 1, 0, 1]  # the border above, a wall below
    for _ in range(20):
        there, reward, terminated, _, info = env.step(0)
        assert (there, reward, terminated, info["prob"]) == (state, -3.0, False, 1.0)


def test_a_walk_by_hand() -> None:
    env = GridEnv(SMALL)
    assert env.desc == parse(SMALL).text.splitlines()
    state, info = env.reset(seed=0, options={"start": (2, 0)})
    assert env.world.cells[state] == (2, 0) and info["action_mask"].dtype == np.int8
    walked = [env.step(action)[:3] for action in (0, 0, 1, 1)]
    at = env.world.index
    assert walked == [
        (at[(1, 0)], -1.0, False),
        (at[(0, 0)], -1.0, False),
        (at[(0, 1)], -1.0, False),
        (at[(0, 2)], -3.0 + 5.0, True),
    ]
    assert env.step(0)[:3] == (at[(0, 2)], 0.0, True)  # over is over


# ------------------------------------------------------------------------------------------------------- start and seed
def test_the_built_in_map_is_the_default() -> None:
    assert GridEnv().world.text == parse(SIX_BY_SIX).text
    assert GridEnv(step_cost=0.5, slip=0.1, blocked="bump").world.step_cost == 0.5


def test_episodes_start_where_the_map_says() -> None:
    env = GridEnv(SMALL)
    env.reset(seed=3)
    starts = [env.world.cells[env.reset()[0]] for _ in range(200)]
    assert set(starts) == {(2, 0), (2, 2)} and 60 < starts.count((2, 0)) < 140


def test_seeds_repeat() -> None:
    def play(seed: int) -> list[Any]:
        env = GridEnv(slip=0.3)
        env.action_space.seed(seed)
        found: list[Any] = [env.reset(seed=seed)[0]]
        for _ in range(50):
            found.append(env.step(int(env.action_space.sample()))[:3])
            if found[-1][2]:
                found.append(env.reset()[0])
        return found

    assert play(1) == play(1) != play(2)


@pytest.mark.parametrize("random", [0.0, 0.5, 1 - 2**-53])
def test_what_has_probability_0_is_never_drawn(random: float) -> None:
    draw = getattr(grid_env._draw, "__wrapped__", grid_env._draw)  # past the type check
    assert draw([0.0, 1.0, 0.0], SimpleNamespace(random=lambda: random)) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("start", [(0, 2), (1, 1), (9, 9), (0,), "a", 3, (-1, 0)])
def test_a_start_that_is_no_free_cell_is_refused(start: Any) -> None:
    env = GridEnv(SMALL)
    with pytest.raises(InputError, match="expected \\(row, column\\) of a free cell"):
        env.reset(options={"start": start})


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(InputError, match="'begin': is not known"):
        GridEnv(SMALL).reset(options={"begin": (0, 0)})
    with pytest.raises(InputError, match="render_mode: found 'video'"):
        GridEnv(render_mode="video")
    with pytest.raises(InputError, match="map: found a int"):
        GridEnv(3)
    with pytest.raises(InputError, match="action: found 4, expected 0 to 3"):
        GridEnv(SMALL).step(4)
    with pytest.raises(InputError, match="has its own step_cost"):
        GridEnv(parse(SMALL), slip=0.1)
    with pytest.raises(InputError, match="map row 1, column 1"):
        GridEnv("? +5")


# ------------------------------------------------------------------------------------------------------------ rendering
def test_text_shows_the_map_and_the_agent() -> None:
    env = GridEnv("S ~3 +5\n. # .", render_mode="ansi")
    env.reset(seed=0)
    assert env.render() == "[ S] ~3  +5\n  .   #   ."
    env.step(1)
    assert env.render() == "  S [~3] +5\n  .   #   ."


def color(name: str) -> tuple[int, ...]:
    return tuple(int(name[i : i + 2], 16) for i in (1, 3, 5))


def test_the_picture_shows_walls_ends_costs_and_the_agent_where_they_are() -> None:
    env = GridEnv(SMALL, render_mode="rgb_array")
    env.reset(seed=0, options={"start": (2, 1)})
    picture = env.render()
    assert picture.dtype == np.uint8 and picture.shape == (3 * 64 + 1, 3 * 64 + 1, 3)

    def at(row: int, column: int, share: float = 0.12) -> tuple[int, ...]:
        return tuple(int(x) for x in picture[int((row + share) * 64), int((column + share) * 64)])

    assert at(1, 1) == color(grid_env._WALL) and at(0, 0) == color(grid_env._FLOOR)
    assert at(0, 2) == color(grid_env._GOOD) and at(1, 2) == color(grid_env._BAD) and at(0, 1) == color(grid_env._DEAR)
    assert at(2, 1, 0.5) == color(grid_env._AGENT) and at(2, 0, 0.35) != color(grid_env._AGENT)
    env.step(1)
    moved = env.render()
    assert (moved != picture).any() and tuple(moved[160, 146]) == color(grid_env._AGENT)


def test_a_large_world_has_a_picture_of_bounded_size() -> None:
    text = "\n".join(" ".join("+5" if (r, c) == (5, 5) else "." for c in range(60)) for r in range(40))
    env = GridEnv(text, render_mode="rgb_array")
    env.reset(seed=0)
    height, width, _ = env.render().shape
    assert width <= 1025 and height <= 1025 and width / height == pytest.approx(1.5, abs=0.01)


def test_render_without_a_mode_says_so() -> None:
    env = GridEnv(SMALL)
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None


def test_a_window_without_a_display_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matplotlib.get_backend", lambda: "agg")
    with pytest.raises(MachineError, match=r"found no display.*render_mode='rgb_array'"):
        GridEnv(render_mode="human")


def test_a_window_shows_every_step_and_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import pyplot

    monkeypatch.setattr(pyplot, "switch_backend", pyplot.switch_backend)
    pyplot.switch_backend("agg")
    monkeypatch.setattr(grid_env, "_check_display", lambda: None)
    shown: list[np.ndarray] = []
    env = GridEnv(SMALL, render_mode="human")
    monkeypatch.setattr(pyplot, "pause", lambda seconds: shown.append(env._window[1].get_array().copy()))
    env.reset(seed=0, options={"start": (2, 0)})
    env.step(0)
    env.step(0)
    assert len(shown) == 3 and all((a != b).any() for a, b in itertools.pairwise(shown))
    assert len(pyplot.get_fignums()) == 1
    env.close()
    env.close()
    assert pyplot.get_fignums() == []
