"""`upslope check` on preferences and reward models: pairs rendered, their lengths, what looks wrong."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests import tiny
from tests.recipes.support import one_thread
from upslope.checkup.facts import Checkup
from upslope.checkup.gather import check
from upslope.checkup.show import show
from upslope.errors import InputError
from upslope.models import scoring
from upslope.recipes.configs import RECIPES
from upslope.run.recipe import build

__all__ = ["one_thread"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.directory(tmp_path_factory.mktemp("model") / "start")


def rows(count: int = 60) -> list[dict[str, Any]]:
    """The chosen answer is longer as often as shorter."""
    lengths = [(1 + n % 3, 1 + (n // 3 + 1) % 3) for n in range(count)]
    return [{"prompt": f"say {n}", "chosen": "abc"[:a], "rejected": "777"[:b]} for n, (a, b) in enumerate(lengths)]


def found(model: Path, folder: Path, told: list[dict[str, Any]], kind: str = "reward", **keywords: Any) -> Checkup:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in told))
    base = {"model": str(model), "data": str(path), "heldout": 20, "prompts": 4, "steps": 5, "device": "cpu",
            "dtype": "float32", "out": str(folder / "out")}  # fmt: skip
    return check(build({**base, **keywords}, RECIPES[kind], "upslope.reward_model()"))


def printed(checkup: Checkup) -> str:
    out = io.StringIO()
    show(checkup, Console(file=out, width=140, highlight=False))
    return out.getvalue()


def findings(checkup: Checkup) -> dict[str, str]:
    return {finding.kind: finding.text for finding in checkup.findings}


@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_pairs_are_counted_measured_and_shown(kind: str, model: Path, tmp_path: Path) -> None:
    checkup = found(model, tmp_path, rows(), kind)
    assert not checkup.findings
    assert (checkup.rows.train, checkup.rows.heldout) == (40, 20)
    pairs = checkup.pairs
    assert pairs is not None and pairs.chosen is not None and pairs.rejected is not None
    assert pairs.chosen.shortest == 2 and pairs.chosen.longest == 4  # one to three letters and the end token
    assert 0 < pairs.chosen_longer + pairs.rejected_longer < 40
    text = printed(checkup)
    assert "4 pairs" in text and "the chosen one is longer in" in text and "rejected" in text
    first = "".join(segment.text for segment in checkup.rendered)
    assert first.startswith("<|im_start|>user\nsay ") and first.endswith("<|im_end|>")
    assert [segment.kind for segment in checkup.rejected] == ["trained", "stop"]
    assert "7" in checkup.rejected[0].text and checkup.rejected[0].text not in first
    assert json.loads(checkup.json())["pairs"]["rows"] == 60
    assert checkup.step.completions == 0 and checkup.step.optimizer_steps == 1 and checkup.memory is not None


def test_the_share_of_longer_chosen_answers_is_the_one_by_hand(model: Path, tmp_path: Path) -> None:
    told = [{"prompt": f"say {n}", "chosen": "abcd" if n % 10 else "a", "rejected": "77"} for n in range(50)]
    checkup = found(model, tmp_path, told, heldout=0)
    pairs = checkup.pairs
    assert pairs is not None and (pairs.chosen_longer, pairs.rejected_longer) == (45, 5)
    assert "the longer answer is the chosen one in 90 % of the pairs" in findings(checkup)["length tells"]
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in told]
    assert (
        "the shorter answer is the chosen one in 90 %"
        in findings(found(model, tmp_path, turned, heldout=0))["length tells"]
    )


def test_equal_contradicting_and_marked_pairs_are_told(model: Path, tmp_path: Path) -> None:
    told = rows()
    told[1]["rejected"] = told[1]["chosen"]
    told[2] = {**told[3], "chosen": told[3]["rejected"], "rejected": told[3]["chosen"]}
    plain = [{**row, "margin": 0.5} for row in told]
    said = findings(found(model, tmp_path, plain, "dpo"))
    assert "1 of 60 rows" in said["equal pairs"] and "1 pairs have the two answers" in said["contradicting pairs"]
    assert "pairs have a margin, which DPO does not use" in said["margin"]
    assert "margin" not in findings(found(model, tmp_path, plain, "reward"))


def test_texts_without_a_prompt_are_said_to_be_cut(tmp_path: Path) -> None:
    bare = tiny.directory(tmp_path / "bare", chat=False)
    told = [{"chosen": f"say {n}: a", "rejected": f"say {n}: 7"} for n in range(40)]
    said = findings(found(bare, tmp_path, told))
    assert "rows have no prompt" in said["no prompt"]


def test_what_stops_the_run_stops_the_check(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found prompt and completion, rows for upslope sft"):
        found(model, tmp_path, [{"prompt": "a", "completion": "b"}] * 20)
    with pytest.raises(InputError, match="exceed 20 tokens"):
        found(model, tmp_path, rows(), reward_model={"max_tokens": 20})


def test_a_reward_model_is_named_with_how_it_reads_and_what_it_weighs(model: Path, tmp_path: Path) -> None:
    whole = tiny.load(model)
    facts = {"chat": "auto", "system_prompt": None, "stop_ids": [2]}
    scoring.save(scoring.fresh(whole), whole, tmp_path / "rm", "", facts)
    told = [{"prompt": f"say {n}"} for n in range(40)]
    kind = {"reward": {"model": str(tmp_path / "rm")}, "group": 4, "max_new_tokens": 6}
    checkup = found(model, tmp_path, told, "grpo", **kind)
    assert checkup.judges == (f"{tmp_path / 'rm'} (reward_model), reads the sampled tokens as they are",)
    assert "reads the sampled tokens" in printed(checkup)
    weights = sum(weight.numel() for weight in scoring.fresh(whole).parameters())
    assert checkup.memory is not None and checkup.memory.parts["reward models"] == 4 * weights
    (tmp_path / "rm" / scoring.FACTS).write_text(json.dumps({**facts, "system_prompt": "Be brief."}))
    again = found(model, tmp_path, told, "grpo", **kind)
    assert "rendered anew" in again.judges[0] and any(
        "another chat template or system prompt" in n for n in again.notices
    )
