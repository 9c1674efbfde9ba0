"""The live page as a file: what is stored, what is refused, what it may load. (In a browser: test_grid_page_live.)"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.views.grid_page_records import record
from upslope.errors import InputError, MachineError
from upslope.maths.bellman import optimal_values, policy_values
from upslope.views.grid_page import grid_page, write_grid_page
from upslope.worlds.gridworld import SIX_BY_SIX, parse


def stored(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="page-data">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


def test_the_page_names_its_script_by_hash_and_allows_nothing_else() -> None:
    page = grid_page(parse(SIX_BY_SIX), [], 1.0)
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy and f"script-src 'sha256-{digest}'" in policy[1] and policy[1].startswith("default-src 'none'")
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!#)", page)
    assert "http:" not in page.replace("http://www.w3.org/2000/svg", "") and "https:" not in page
    assert page.count("<script") == 2


def test_the_world_is_stored_whole() -> None:
    world = parse("S ~2.5 # +1.25\n. S~0 -3 .", step_cost=0.3, slip=0.125, blocked="bump")
    found = stored(grid_page(world, [], 0.95))["world"]
    assert found == {
        "rows": 2, "columns": 4, "step_cost": 0.3, "slip": 0.125, "blocked": "bump", "discount": 0.95,
        "cells": [
            [".", None, True], [".", 2.5, False], ["#"], ["t", 1.25],
            [".", None, False], [".", 0.0, True], ["t", -3.0], [".", None, False],
        ],
    }  # fmt: skip


def test_every_snapshot_has_the_exact_values_of_its_policy() -> None:
    world = parse(SIX_BY_SIX, slip=0.1, blocked="bump")
    training = record(world, count=4, discount=0.9)
    data = stored(grid_page(world, [training], 1.0))
    mdp = world.mdp()
    for kept, snapshot in zip(data["trainings"][0]["snapshots"], training.snapshots, strict=True):
        exact = policy_values(mdp, snapshot.policy, 0.9)
        assert kept["exact"] == pytest.approx(exact.tolist(), rel=1e-5, abs=1e-12)
        assert kept["policy"] == pytest.approx(snapshot.policy.flatten().tolist(), rel=1e-5)
        assert snapshot.values is not None
        assert kept["values"] == pytest.approx(snapshot.values.tolist(), rel=1e-5, abs=1e-12)
    assert data["best"]["0.9"] == pytest.approx(optimal_values(mdp, 0.9).tolist(), rel=1e-5, abs=1e-12)
    lines = data["trainings"][0]["curve"]
    truth = training.last.truth
    assert lines[-1][:2] == [training.last.iteration, training.last.moves]
    assert truth.critic_rmse is not None and truth.critic_worst is not None
    policy_facts = (truth.optimal_return, truth.expected_return, truth.value_gap, truth.optimal_share)
    assert lines[-1][2:] == pytest.approx([*policy_facts, truth.critic_rmse, truth.critic_worst], rel=1e-5)


def test_numbers_without_bound_are_stored_as_words() -> None:
    world = parse("+5 . # .")
    training = record(world, count=2, critic=False)
    data = stored(grid_page(world, [training], 1.0))
    walled_in = world.index[0, 3]
    assert data["trainings"][0]["snapshots"][0]["exact"][walled_in] == "-inf"
    assert data["best"]["1.0"][walled_in] == "-inf"
    assert data["trainings"][0]["snapshots"][0]["values"] is None


def test_six_runs_of_sixty_snapshots_stay_below_two_megabytes(tmp_path: Path) -> None:
    world = parse(SIX_BY_SIX)
    first = record(world, count=60)
    runs = [dataclasses.replace(first, seed=seed) for seed in range(6)]
    assert write_grid_page(tmp_path / "grid.html", world, runs, 1.0).stat().st_size < 2_000_000


def test_a_large_world_keeps_fewer_tables_but_all_of_its_curve() -> None:
    side = 60
    rows = [["."] * side for _ in range(side)]
    rows[0][0] = "+5"
    world = parse("\n".join(map(" ".join, rows)))
    policy = torch.zeros(side * side, 4, dtype=torch.float64)
    for state, cell in enumerate(world.cells):  # straight to the corner, so that it ends
        policy[state, 0 if cell[0] else 3] = 1.0
    small = record(parse("+5 . ."), count=2)
    snapshot = dataclasses.replace(small.last, policy=policy, values=torch.zeros(side * side), walk=())
    training = dataclasses.replace(small, snapshots=(snapshot,) * 30, visits=torch.zeros(side * side, dtype=torch.long))
    page = grid_page(world, [training], 1.0)
    data = stored(page)
    kept = [entry["at"] for entry in data["trainings"][0]["snapshots"]]
    assert 2 <= len(kept) < 30 and kept[0] == 0 and kept[-1] == 29
    assert len(data["trainings"][0]["curve"]) == 30
    assert len(page) < 4_000_000 and data["editable"] is False
    assert data["trainings"][0]["snapshots"][0]["exact"][-1] == 5 - 2 * (side - 1)


def test_names_and_settings_cannot_break_out_of_the_page() -> None:
    world = parse("+5 . .")
    hostile = "</script><img src=x onerror=alert(1)>\u202e"
    training = dataclasses.replace(record(world, count=2), algorithm=hostile, settings={hostile: hostile})
    page = grid_page(world, [training], 1.0)
    assert page.count("</script") == 2 and "<img" not in page and "\u202e" not in page
    assert stored(page)["trainings"][0]["settings"][0][1].startswith("</script><img")


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    world = parse("+5 . .")
    training = record(world, count=2)
    with pytest.raises(InputError, match="between 0 and 1"):
        grid_page(world, [], 1.5)
    with pytest.raises(InputError, match=r"snapshot 0: .*do not fit 4 states"):
        grid_page(parse("+5 . . ."), [training], 1.0)
    with pytest.raises(InputError, match="no snapshot"):
        grid_page(world, [dataclasses.replace(training, snapshots=())], 1.0)
    astray = dataclasses.replace(training.last.walk[0], next_state=7)
    wrong = dataclasses.replace(training, snapshots=(dataclasses.replace(training.last, walk=(astray,)),))
    with pytest.raises(InputError, match="its walk leaves"):
        grid_page(world, [wrong], 1.0)
    with pytest.raises(MachineError):
        write_grid_page(tmp_path / "nowhere" / "grid.html", world, [], 1.0)
