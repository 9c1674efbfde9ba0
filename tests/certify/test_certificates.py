"""Whole trainings on the text grid, measured exactly, by ``bench/certificates.py``: a process of its own for each
algorithm, for here every call is checked against its annotations, which would be most of the time."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 2 * 180
"""Processor time that the certificates of CI may take: three minutes of two cores."""


def start(cache: Path, *arguments: str) -> subprocess.Popen[str]:
    """``bench/certificates.py`` on one thread."""
    environment = {**os.environ, "UPSLOPE_CACHE": str(cache), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "bench" / "certificates.py"), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def rows(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """The certificates of a finished process."""
    out, err = process.communicate()
    assert process.returncode in (0, 1), err  # 1: too few passed, which the caller judges
    found: list[dict[str, Any]] = json.loads(out.splitlines()[-1])
    return found


def worst(found: list[dict[str, Any]]) -> dict[str, float]:
    return {f"net {row['seed']} on {row['map']}": round(row["worst"], 4) for row in found}


@pytest.mark.timeout(1800)
def test_ppo_and_grpo_reach_the_optimum_from_five_nets_in_three_minutes_of_two_cores(tmp_path: Path) -> None:
    """Seeds 0 to 4, named before any run. Both algorithms at once, a core each."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    seeds = ["--seeds", *map(str, range(5))]
    running = [start(tmp_path / kind, "--kinds", kind, *seeds) for kind in ("ppo", "grpo")]
    for process, kind in zip(running, ("ppo", "grpo"), strict=True):
        found = rows(process)
        assert [(row["kind"], row["seed"]) for row in found] == [(kind, seed) for seed in range(5)]
        assert all(row["passed"] for row in found), worst(found)
        assert (found[0]["critic_rmse"] is not None) == (kind == "ppo")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < SECONDS


@pytest.mark.slow
@pytest.mark.parametrize("twenty", [(), ("--seeds", "0", "--maps", "20")], ids=["nets", "maps"])
@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_eighteen_of_twenty_reach_the_optimum(kind: str, twenty: tuple[str, ...], tmp_path: Path) -> None:
    found = rows(start(tmp_path, "--kinds", kind, *twenty))
    assert len(worst(found)) == 20 and sum(row["passed"] for row in found) >= 18, worst(found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_beta_kl_to_the_fixed_point_is_small(kind: str, tmp_path: Path) -> None:
    found = rows(start(tmp_path, "--kinds", kind, "--beta", "1", "--seeds", *map(str, range(5))))
    assert len(found) == 5 and all(row["passed"] for row in found), found
    if kind == "grpo":  # k2 in the loss has a fixed point of its own, and it is not pi*
        assert all(row["kl"] > row["own_kl"] + 0.02 for row in found), found


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("harder", [("--prompt", "map"), ("--vocabulary", "full")])
@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_they_reach_it_from_drawn_maps_and_with_every_token(kind: str, harder: tuple[str, str], tmp_path: Path) -> None:
    """Nets 0 to 4, chosen before any run; one of the five may end in a local optimum."""
    found = rows(start(tmp_path, "--kinds", kind, "--seeds", *map(str, range(5)), *harder))
    assert len(found) == 5 and sum(row["passed"] for row in found) >= 4, worst(found)
