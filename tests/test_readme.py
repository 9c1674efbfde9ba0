"""README's blocks, executed in order in one folder. Long runs are cut to a few steps; nothing else is changed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SHORT = " train.steps=2 train.eval_prompts=4 train.prompts=4"
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)


def shortened(block: str) -> str:
    """The shell block with two steps a run, eight prompts an evaluation and five updates on the grid; what pairs of own
    answers are made of has learned to end them."""
    lines = []
    for line in block.splitlines():
        if re.match(r"upslope (sft|reward|ppo|grpo|dpo) ", line) and not line.endswith("recipes/sft-sums.yaml"):
            line += SHORT
        if line.startswith("upslope pairs "):
            line = line.replace("--prompts 2048", "--prompts 32")
        if line.startswith("upslope eval "):
            line += " --prompts 8"
        if line.startswith("upslope grid"):
            line += " --iterations 5"
        lines.append(line)
    return "\n".join(lines)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("readme")
    for name in ("recipes", "worlds", "docs"):
        shutil.copytree(ROOT / name, place / name)
    return place


def run(command: list[str], folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "NO_COLOR": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_readme_has_blocks_of_both_kinds() -> None:
    assert {kind for kind, _ in BLOCKS} == {"bash", "python"}
    assert len(BLOCKS) >= 4


def case(number: int) -> Any:
    """A block by its number. The one with pairs trains five times on the real model, once in earnest: three minutes."""
    return pytest.param(number, marks=[pytest.mark.slow] if "upslope pairs" in BLOCKS[number][1] else [])


@pytest.mark.parametrize("number", [case(number) for number in range(len(BLOCKS))])
def test_readme_block_runs(number: int, folder: Path) -> None:
    kind, block = BLOCKS[number]
    if kind == "python":
        script = folder / f"block_{number}.py"
        script.write_text(block, "utf-8")
        out = run([sys.executable, str(script)], folder)
        assert out.strip()
        return
    run(["bash", "-euo", "pipefail", "-c", shortened(block)], folder)
    for name in re.findall(r"^upslope (?:sft|reward|ppo|grpo|dpo) +recipes/([\w-]+)\.yaml", block, re.MULTILINE):
        made = folder / "runs" / name
        assert (made / "model" / "model.safetensors").is_file() and (made / "report.html").is_file()
