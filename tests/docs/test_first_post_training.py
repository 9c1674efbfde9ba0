"""first-post-training.md: a walk, every command of it, with a tiny model and two steps."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests import tiny
from tests.docs.pages import blocks, source
from tests.docs.shell import Shell, commands, shown_in
from tests.recipes.support import one_thread

__all__ = ["one_thread"]
TEXT = source("first-post-training.md")
BLOCKS = blocks(TEXT)
MODEL = "smollm2-135m-instruct"
SHORT = " train.steps=2 train.prompts=2 train.eval_prompts=2 sampling.max_new_tokens=8"


def shorter(line: str) -> str:
    """A training of two steps, an evaluation of four prompts."""
    if re.match(r"upslope (sft|grpo) ", line):
        line += SHORT + (" grpo.group=3" if " grpo " in line else "")
    if line.startswith("upslope eval "):
        line += " --prompts 4"
    return line


def pairs() -> list[tuple[str, str]]:
    """Each block of commands, and the block of text that follows it at once ('' where none does)."""
    found = []
    for number, block in enumerate(BLOCKS):
        if block.kind == "bash":
            after = BLOCKS[number + 1] if number + 1 < len(BLOCKS) else None
            found.append((block.text, after.text if after is not None and after.kind == "text" else ""))
    return found


def walk(shell: Shell, model: str) -> dict[str, str]:
    """What each block prints, by its first command."""
    return {text.splitlines()[0]: shell.run(text.replace(MODEL, model)) for text, _ in pairs()}


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(tmp_path, capsys, monkeypatch, shorter)


def test_the_walk(shell: Shell) -> None:
    model = tiny.directory(shell.folder / "tiny", max_position_embeddings=512)
    printed = walk(shell, str(model))
    check(shell.folder, printed)


@pytest.mark.slow
def test_the_walk_with_the_real_model(shell: Shell) -> None:
    printed = walk(shell, MODEL)
    check(shell.folder, printed)


def check(folder: Path, printed: dict[str, str]) -> None:
    """What the walk must have made and said, whatever the model."""
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    assert len(rows) == 600 and all(len(set(row["words"])) == 3 for row in rows)
    assert all(word in row["prompt"] for row in rows for word in row["words"])
    assert len((folder / "answered.jsonl").read_text().splitlines()) == 16
    for name in ("sft", "grpo"):
        assert (folder / "runs" / name / "model" / "model.safetensors").is_file(), name
        assert (folder / "runs" / name / "report.html").is_file(), name
    assert (folder / "runs" / "lora" / "model" / "adapter_model.safetensors").is_file()
    lines = [json.loads(line) for line in (folder / "runs" / "grpo" / "metrics.jsonl").read_text().splitlines()]
    assert {"rewards/uses_words/mean", "rewards/one_sentence/mean", "eval/reward", "kl"} <= set(lines[-1])
    everything = "".join(printed.values())
    assert "greedy" in everything and "sampled" in everything and "step 2/2" in everything
    never = next(text for first, text in printed.items() if first.startswith("cat > never.py"))
    assert "have equal rewards (mean 0) so the gradient is 0" in never
    data = printed[next(first for first in printed if first.startswith("cat > rows.py"))]
    shown = next(after for text, after in pairs() if text.startswith("cat > rows.py"))
    assert not shown_in(shown, data)


def test_the_reward_functions_pay_what_the_page_says(tmp_path: Path) -> None:
    code = next(text for text, _ in pairs() if text.startswith("cat > rewards.py"))
    names: dict[str, object] = {}
    exec(code.partition("\n")[2].rpartition("PYTHON")[0], names)
    uses, one = names["uses_words"], names["one_sentence"]
    assert callable(uses) and callable(one)
    said = ["The teacher ate soup.", "Dragons eat soup", "It rained."]
    assert uses(completions=said, words=[["teacher", "dragon", "soup"]] * 3) == [2 / 3, 2 / 3, 0.0]
    texts = [
        "The cat sleeps under a lamp.",
        "The cat. The lamp.",
        "A cat sleeps.",
        "no capital in this one here.",
        "Is it so?",
    ]
    assert one(completions=texts) == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_every_section_of_the_walk_is_there() -> None:
    """Rows, reward, check, SFT, evaluation, GRPO, reading, what to do, LoRA, chat, elsewhere: each has its command."""
    lines = [line for text, _ in pairs() for line in commands(text)]
    for beginning in (
        "cat > rows.py", "cat > rewards.py", "upslope check sft.yaml", "upslope sft ", "upslope eval ", "upslope grpo ",
        "upslope rollouts ", "upslope check grpo.yaml lora.rank=16", "python elsewhere.py",
    ):  # fmt: skip
        assert any(line.startswith(beginning) for line in lines), beginning
    assert any("| upslope chat runs/grpo/model" in line for line in lines)
    assert not re.search(r"@[A-Z0-9]+@", TEXT)
