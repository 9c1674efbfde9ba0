from __future__ import annotations

import builtins
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from upslope.errors import InputError
from upslope.run.session import Listener
from upslope.run.trackers import trackers


def facts(folder: Path, **more: Any) -> dict[str, Any]:
    own = {"folder": str(folder), "run": folder.name, "id": "abc123", "resumed": False, "resumed_step": 0}
    return {**own, **more}


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    names = accumulator.Tags()["scalars"]
    return {name: [(event.step, event.value) for event in accumulator.Scalars(name)] for name in names}


def test_tensorboard_events_read_back(tmp_path: Path) -> None:
    (listener,) = trackers(["tensorboard"])
    assert isinstance(listener, Listener)
    assert not list(tmp_path.iterdir())
    listener.on_start(facts(tmp_path))
    listener.on_step(1, {"reward": 0.5, "kl": None, "bad": float("nan"), "n": 3}, {"update": 0.25})
    listener.on_step(2, {"reward": 0.75}, {"update": 0.125})
    listener.on_notice("n")
    listener.on_phase(1, "p", 0, 1)
    listener.on_sample(1, "p", "c", None)
    listener.on_end({})
    assert events(tmp_path) == {
        "reward": [(1, 0.5), (2, 0.75)],
        "n": [(1, 3.0)],
        "time/update": [(1, 0.25), (2, 0.125)],
    }


def test_tensorboard_hides_the_steps_that_a_resumed_run_does_again(tmp_path: Path) -> None:
    (first,) = trackers(["tensorboard"])
    first.on_start(facts(tmp_path))
    for step in (1, 2, 3):
        first.on_step(step, {"reward": float(step)}, {})
    first.on_end({})
    (second,) = trackers(["tensorboard"])
    second.on_start(facts(tmp_path, resumed=True, resumed_step=1))
    for step in (2, 3):
        second.on_step(step, {"reward": 10.0 * step}, {})
    second.on_end({})
    assert events(tmp_path) == {"reward": [(1, 1.0), (2, 20.0), (3, 30.0)]}


class FakePackage(types.ModuleType):
    """Stands for wandb and trackio: notes every call."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, Any]] = []

    def init(self, **arguments: Any) -> FakePackage:
        self.calls.append(("init", arguments))
        return self

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.calls.append(("log", (metrics, step)))

    def finish(self) -> None:
        self.calls.append(("finish", None))


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("wandb", {"name": "a", "id": "abc123"}),
        ("trackio", {"name": "a-abc123", "embed": False}),  # embed would open a server
    ],
)
def test_wandb_and_trackio_hear_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, own: dict[str, Any]
) -> None:
    fake = FakePackage(name)
    monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.setenv(f"{name.upper()}_PROJECT", "mine")
    (listener,) = trackers([name])
    assert isinstance(listener, Listener) and fake.calls == []
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "recipe.yaml").write_text("optim: {lr: 0.1}")
    listener.on_start(facts(tmp_path / "a"))
    listener.on_step(7, {"reward": 0.5, "kl": None, "bad": float("inf")}, {"update": 2.0})
    listener.on_end({})
    if name == "wandb":
        own = {**own, "dir": str(tmp_path / "a")}
    started: dict[str, Any] = {"project": "mine", "config": {"optim": {"lr": 0.1}}, "resume": "allow", **own}
    assert fake.calls == [
        ("init", started),
        ("log", ({"reward": 0.5, "time/update": 2.0}, 7)),
        ("finish", None),
    ]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    module = "torch.utils.tensorboard" if name == "tensorboard" else name
    monkeypatch.setitem(sys.modules, module, None)  # importing it raises ImportError
    with pytest.raises(InputError, match=rf"{name} is not installed.*pip install 'upslope\[track\]'") as raised:
        trackers([name])
    assert raised.value.exit_code == 2


def test_an_unknown_name_is_an_error_with_the_nearest_one() -> None:
    with pytest.raises(InputError, match=r"unknown tracker 'tensorbord'\. Fix: did you mean tensorboard"):
        trackers(["tensorbord"])
    with pytest.raises(InputError, match="choose from tensorboard, wandb, trackio"):
        trackers(["nowhere"])


def test_nothing_is_imported_when_nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def watched(name: str, *rest: Any) -> Any:
        assert not name.startswith(("wandb", "trackio", "torch.utils.tensorboard"))
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", watched)
    monkeypatch.setattr("importlib.import_module", watched)
    assert trackers([]) == []


def test_a_name_given_twice_is_one_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", FakePackage("wandb"))
    assert len(trackers(["wandb", "wandb"])) == 1
