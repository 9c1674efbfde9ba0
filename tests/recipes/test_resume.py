"""Stopped after any optimizer step and resumed, a run leaves the bytes that it would have left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.recipes.support import Bench, bench, digests, one_thread, rows_file, stopped_at
from upslope.api import FinishedRun
from upslope.errors import InputError, InputErrors
from upslope.rollout.sampler import InProcessSampler

__all__ = ["bench", "one_thread"]
PLACES = {
    "sft": ["1", "2", "3"],
    "ppo": ["1:1", "1:2", "1:3", "1:4", "1", "2:1", "2:2", "2:3", "2:4", "2"],
    "grpo": ["1:1", "1:2", "1:3", "1:4", "1", "2:1", "2:2", "2:3", "2:4", "2"],
}
SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {"decay": "cosine", "weighting": "sequence_mean"},
    "ppo": {"eval_every": 1, "decay": "linear", "warmup": 2, "target_kl": None},
    "grpo": {"eval_every": 1, "decay": "linear", "warmup": 2, "kl_coef": 0.1, "clip_low": 0.01, "clip_high": 0.01},
}


@pytest.fixture(scope="module")
def whole(bench: Bench) -> dict[str, dict[str, str]]:
    """What the uninterrupted runs leave, by kind."""
    return {kind: digests(_run(bench, kind, f"whole-{kind}").folder) for kind in PLACES}


def _run(bench: Bench, kind: str, out: str, **keywords: Any) -> FinishedRun:
    # save_every beyond the last step: a final checkpoint, to compare, and none before it but the stop's own
    return bench.run(kind, out, save_every=100, seed=3, **SETTINGS[kind], **keywords)


@pytest.mark.parametrize(("kind", "place"), [(kind, place) for kind, places in PLACES.items() for place in places])
def test_stopped_and_resumed_is_never_stopped(
    bench: Bench, whole: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch, kind: str, place: str
) -> None:
    out = f"{kind}-stopped-{place.replace(':', '-')}"
    with stopped_at(place, monkeypatch):
        _run(bench, kind, out)
    resumed = digests(_run(bench, kind, out, resume=True).folder)
    assert resumed == whole[kind]
    assert {"policy.safetensors", "loop.json", "metrics.json"} <= {name.rpartition("/")[2] for name in resumed}
    assert ("critic.safetensors" in {name.rpartition("/")[2] for name in resumed}) == (kind == "ppo")


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_the_interrupted_passes_go_on_with_the_rollouts_that_were_saved(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with stopped_at("1:2", monkeypatch):
        _run(bench, kind, f"{kind}-sampled", steps=1, eval_prompts=0)
    calls = []
    monkeypatch.setattr(InProcessSampler, "sample", lambda *arguments: calls.append(arguments))
    run = _run(bench, kind, f"{kind}-sampled", steps=1, eval_prompts=0, resume=True)
    assert calls == [] and [row["step"] for row in run.metrics] == [0, 1]


def test_a_run_stopped_twice_is_still_the_same(
    bench: Bench, whole: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for index, place in enumerate(("1:3", "2:2")):
        with stopped_at(place, monkeypatch):
            _run(bench, "ppo", "twice", resume=index > 0)
    assert digests(_run(bench, "ppo", "twice", resume=True).folder) == whole["ppo"]


def test_resuming_with_another_learning_rate_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with stopped_at("1", monkeypatch):
        _run(bench, "sft", "changed")
    from upslope.errors import InputError

    with pytest.raises((InputError, InputErrors), match=r"optim\.lr"):
        _run(bench, "sft", "changed", resume=True, lr=5e-3)


def test_resuming_with_other_rows_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = Path(rows_file(tmp_path / "rows.jsonl"))
    with stopped_at("1:1", monkeypatch):
        bench.run("grpo", "other-rows", data=str(rows))
    before = rows.read_text()
    rows.write_text(before.replace("say 3", "say three"))
    with pytest.raises(InputError, match="other rows"):
        bench.run("grpo", "other-rows", data=str(rows), resume=True)
    rows.write_text(before)
    assert bench.run("grpo", "other-rows", data=str(rows), resume=True).model.is_dir()
