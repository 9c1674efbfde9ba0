"""`upslope doctor`: versions against what is asked for, variables with secrets masked, sizes that fit."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import metadata
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from tests.test_cli import Desk, desk, models
from upslope.doctor import examine as doctor
from upslope.models import memory
from upslope.worlds.isolation import Isolation

__all__ = ["desk", "models"]
SECRET = "hf_thisIsASecret0123456789"


@pytest.fixture(scope="module")
def healthy() -> doctor.Health:
    return doctor.examine()


def test_the_core_packages_are_those_of_the_metadata(healthy: doctor.Health) -> None:
    core = {package.name: package for package in healthy.packages if not package.extra}
    asked = [text for text in metadata.requires("upslope") or () if "extra ==" not in text]
    assert len(core) == len(asked) and all(any(text.startswith(name) for text in asked) for name in core)
    assert core["torch"].installed == metadata.version("torch") and core["torch"].ok
    assert healthy.missing == ()


@pytest.mark.parametrize(
    ("needs", "ok"), [(">=1.0", True), (">=99", False), (f"=={metadata.version('rich')}", True), ("<1", False)]
)
def test_a_version_is_compared_with_its_floor(needs: str, ok: bool) -> None:
    found = doctor._package("rich", needs, "")
    assert (found.ok, found.installed) == (ok, metadata.version("rich"))


def test_a_build_suffix_does_not_hide_a_version() -> None:
    assert doctor._package("torch", ">=2.10", "").ok and not doctor._package("torch", ">=99", "").ok


def test_what_is_missing_is_exit_3_with_the_command_that_mends_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["torch>=2.10", "transformers>=99.0", "no-such-package-of-tests>=1.2", "wandb>=0.19 ; extra == 'track'"]
    monkeypatch.setattr(metadata, "requires", lambda name: asked)
    code, out, err = desk.upslope("doctor")
    assert code == 3 and "Fix: pip install -U 'transformers>=99.0' 'no-such-package-of-tests>=1.2'" in err
    assert "wandb" in out and "Traceback" not in err
    code, out, _ = desk.upslope("doctor", "--json")
    told = json.loads(out)
    assert code == 3 and told["missing"] == ["transformers>=99.0", "no-such-package-of-tests>=1.2"]


def test_all_is_well_is_exit_0(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:sk-0123456789abcdef0123@proxy")
    code, out, err = desk.upslope("doctor")
    assert code == 0 and err == ""
    assert "HF_TOKEN=*** (set, 26 characters)" in out and SECRET not in out and "sk-0123456789abcdef0123" not in out
    assert "WORLD_SIZE is 4, but a run is one process" in out
    code, out, _ = desk.upslope("doctor", "--json")
    told = json.loads(out)
    assert code == 0 and told["ok"] is True and SECRET not in out
    assert told["hardware"]["torch"].startswith(torch.__version__) and told["variables"]["WORLD_SIZE"] == "4"


def test_only_variables_that_are_set_are_shown() -> None:
    assert doctor.environment({"HF_HOME": "/x", "PATH": "/bin", "WANDB_API_KEY": "k" * 40}) == {
        "HF_HOME": "/x", "WANDB_API_KEY": "*** (set, 40 characters)",
    }  # fmt: skip
    assert doctor.environment({"HF_TOKEN": ""}) == {"HF_TOKEN": "(set, empty)"}


def test_remarks(healthy: doctor.Health) -> None:
    eight = replace(healthy.hardware, cores=8)
    said = doctor.remarks({"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}, eight)
    assert any("2 of 8 cores" in text for text in said) and any("hides every GPU" in text for text in said)
    assert any(text.startswith("offline") for text in said)
    quiet = doctor.remarks({"OMP_NUM_THREADS": "8", "CUDA_VISIBLE_DEVICES": "0", "HF_HUB_OFFLINE": "0"}, eight)
    assert not any("cores" in text or "GPU" in text or "offline" in text for text in quiet)


def test_what_isolates_rewards_is_told(monkeypatch: pytest.MonkeyPatch, desk: Desk) -> None:
    monkeypatch.setattr("upslope.worlds.isolation.isolation", lambda: Isolation(False, "python", "no Landlock here"))
    code, out, _ = desk.upslope("doctor")
    assert code == 0 and "no a sandbox for rewards that run a model's text: no Landlock here" in out


# --------------------------------------------------------------------------------------------------------------- sizes
@pytest.mark.parametrize(("size", "count"), [("0.135 B", 134_515_008), ("0.5 B", 494_032_768), ("1.5 B", 1_543_714_304),
                                             ("3 B", 3_085_938_688), ("7 B", 7_615_616_512)])  # fmt: skip
def test_the_sizes_are_those_of_the_models_they_stand_for(size: str, count: int) -> None:
    config = doctor.SIZES[size]
    assert memory.shape_of(config).parameters == count
    made: Any = (Qwen2Config if config["model_type"] == "qwen2" else LlamaConfig)(
        **{key: value for key, value in config.items() if key != "model_type"}
    )
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(made)
    network.tie_weights()
    assert sum(weight.numel() for weight in network.parameters()) == count


def test_a_size_fits_where_its_bill_does(healthy: doctor.Health) -> None:
    hardware = replace(healthy.hardware, dtype="bfloat16")
    table = {(fit.size, fit.way): fit for fit in doctor.fits(hardware, 10**10)}
    small = table["0.135 B", "sft"]
    shape = memory.shape_of(doctor.SIZES["0.135 B"])
    wanted = memory.bill(shape, dtype_bytes=2, tokens=doctor.TOKENS, longest=doctor.LONGEST, slots=doctor.SLOTS,
                         capacity=doctor.LONGEST)["peak"]  # fmt: skip
    assert small.full == wanted and small.full_fits == (wanted <= 10**10)
    assert not table["7 B", "ppo"].full_fits and table["7 B", "ppo"].lora < table["7 B", "ppo"].full
    assert all(fit.full_fits and fit.lora_fits for fit in doctor.fits(hardware, 10**12))
    assert table["0.5 B", "ppo"].full > table["0.5 B", "grpo, kl"].full > table["0.5 B", "grpo"].full


def test_it_works_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    real = builtins.__import__

    def without(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name == "torch":
            raise ImportError("no torch")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    found = doctor._hardware()
    assert found.torch == "" and found.cores >= 1 and found.memory
