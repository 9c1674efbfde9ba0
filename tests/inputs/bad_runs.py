"""Bad inputs 42 to 46: the run folder, resuming, the device, launchers, versions."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

from tests import tiny
from tests.inputs.desk import Desk, suggested
from tests.inputs.table import Mend, Table, key

TABLE = Table()
bad = TABLE.bad
RESUME = "grpo recipe.yaml --resume"


def first_run(desk: Desk, *overrides: str, stop: str = "", code: int = 0) -> Path:
    """A run in ``out``, finished or, with ``stop``, stopped after that step."""
    if stop:
        desk.patch.setenv("UPSLOPE_STOP_AFTER", stop)
    done, _, said = desk.train(*overrides)
    assert done == (143 if stop else code), said
    desk.patch.delenv("UPSLOPE_STOP_AFTER", raising=False)
    return desk.folder / "out"


def stopped(desk: Desk) -> Path:
    desk.recipe["train"]["steps"] = 2
    return first_run(desk, stop="1:0")


# ---------------------------------------------------------------------------------------------------------- the folder
@bad(
    42,
    "the folder holds a finished run",
    r"out: exists \(finished, step 1\)",
    "use --resume, --overwrite or another name",
)
def folder_in_use(desk: Desk) -> Mend:
    first_run(desk)
    return lambda desk, said: [suggested(r"(--overwrite)", said)]


@bad(
    42,
    "the folder holds something else",
    r"out: exists and is not a run folder \(it holds notes\.txt\)",
    "give another name",
)
def folder_of_notes(desk: Desk) -> Mend:
    (desk.folder / "out").mkdir()
    (desk.folder / "out" / "notes.txt").write_text("mine")
    return lambda desk, said: ["out=another"]


@bad(42, "a file where the folder should be", r"out: out is a file", "give another name, or move the file away")
def file_in_the_way(desk: Desk) -> Mend:
    (desk.folder / "out").write_text("mine")
    return lambda desk, said: ["out=another"]


@bad(
    42,
    "a folder that cannot be written",
    r"/proc/out: it cannot be written \(No such file or directory\)",
    "give another folder",
    note="the tests may run as root, whom no permission stops: a place that the kernel forbids",
)
def read_only(desk: Desk) -> Mend:
    desk.recipe["out"] = "/proc/out"
    return lambda desk, said: ["out=out"]


@bad(42, "a name that no folder can have", r"it cannot be written \(File name too long\)")
def long_name(desk: Desk) -> Mend:
    desk.recipe["out"] = "a" * 300
    return lambda desk, said: ["out=out"]


@bad(42, "another run is writing there", r"out: it is in use by pid \d+ on host ", "wait for that run or stop it")
def locked(desk: Desk) -> Mend:
    lock = desk.folder / "out" / "run.lock"
    lock.parent.mkdir()
    start = Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19]
    lock.write_text(json.dumps({"pid": 1, "host": socket.gethostname(), "start": start}))

    def mend(desk: Desk, said: str) -> list[str]:
        (desk.folder / suggested(r"delete (\S+run\.lock)", said)).unlink()
        return []

    return mend


@bad(
    42,
    "the disk is full when the model is saved",
    r"out/model: the model could not be saved: .*No space left on device",
    "free some space",
    code=3,
    note="safetensors raises what a full disk makes it raise; the real one is in test_process",
)
def full_disk(desk: Desk) -> Mend:
    from transformers import LlamaForCausalLM

    def full(*arguments: Any, **keywords: Any) -> None:
        raise OSError(28, "No space left on device")

    desk.patch.setattr(LlamaForCausalLM, "save_pretrained", full)

    def mend(desk: Desk, said: str) -> list[str]:
        desk.patch.undo()
        desk.patch.chdir(desk.folder)
        return ["--overwrite"]

    return mend


@bad(
    42,
    "too little disk, said before the start",
    r"out: about 0\.0 GB are needed, 0\.0 GB are free at out",
    "Give another out, or make room",
    code=0,
    command="check recipe.yaml --kind grpo",
    note="the system is made to say that 1 kB is free",
)
def little_disk(desk: Desk) -> None:
    from upslope.run import resources

    desk.patch.setattr(resources, "disk_free", lambda path: 1000)


# ------------------------------------------------------------------------------------------------------------ resuming
@bad(
    43,
    "nothing to resume",
    r"out: there is no such run to resume",
    "check the name, or start it without --resume",
    command=RESUME,
    then="grpo recipe.yaml",
)
def nothing_to_resume(desk: Desk) -> Mend:
    return lambda desk, said: []


@bad(
    43,
    "another learning rate",
    r"the recipe is not the one that the run began with\n  key +old +new\n  optim\.lr +1e-05 "
    r"+0\.0003\nThese keys may not change on resume",
    command=RESUME,
)
def changed_recipe(desk: Desk) -> Mend:
    stopped(desk)
    desk.recipe["optim"] = {"lr": 3e-4}
    return lambda desk, said: suggested(r"accept the change with (--allow-change optim\.lr)", said).split()


@bad(
    43,
    "other rows",
    r"data\.path: rows\.jsonl holds other rows than this run began with",
    "put the old rows back",
    command=RESUME,
)
def changed_rows(desk: Desk) -> Mend:
    stopped(desk)
    old = (desk.folder / "rows.jsonl").read_bytes()
    desk.rows([{"prompt": f"tell {n}"} for n in range(8)])

    def mend(desk: Desk, said: str) -> list[str]:
        (desk.folder / "rows.jsonl").write_bytes(old)
        return []

    return mend


@bad(
    43,
    "another model under the old name",
    r"model\.name: mine holds other weights than this run began with",
    command=RESUME,
)
def changed_model(desk: Desk) -> Mend:
    place = desk.model()
    stopped(desk)
    tiny.directory(place, seed=1)

    def mend(desk: Desk, said: str) -> list[str]:
        suggested("(put the old model back)", said)
        tiny.directory(place)
        return []

    return mend


@bad(
    43,
    "a checkpoint of a newer version",
    r"no checkpoint can be used: .*step-00001 skipped: manifest\.json has format 2, "
    "this version reads format 1",
    command=RESUME,
    then="grpo recipe.yaml",
)
def newer_checkpoint(desk: Desk) -> Mend:
    from upslope.run import checkpoint

    manifest = stopped(desk) / "checkpoints" / "step-00001" / "manifest.json"
    body = {name: value for name, value in json.loads(manifest.read_text()).items() if name != "sha256"}
    manifest.write_bytes(checkpoint._sealed({**body, "format": 2}))
    return lambda desk, said: [suggested(r"start again with (--overwrite)", said)]


@bad(
    43,
    "a damaged checkpoint",
    r"no checkpoint can be used: .*step-00001 skipped: \w+\.safetensors is damaged",
    command=RESUME,
    then="grpo recipe.yaml",
)
def damaged_checkpoint(desk: Desk) -> Mend:
    kept = (stopped(desk) / "checkpoints" / "step-00001").glob("*.safetensors")
    file = max(kept, key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    return lambda desk, said: [suggested(r"start again with (--overwrite)", said)]


@bad(
    43,
    "a run that is finished",
    r"out: the run is finished: it is at step 1 of 1",
    "raise train.steps to go on",
    command=RESUME,
)
def finished_run(desk: Desk) -> Mend:
    desk.recipe["train"]["save_every"] = 1
    first_run(desk)
    return lambda desk, said: [suggested(r"raise (train\.steps)", said) + "=2"]


# ---------------------------------------------------------------------------------------------------------- the device
@bad(
    44,
    "no CUDA",
    r"device: cuda was asked for, but this torch \(\S+\) sees no CUDA device",
    "set device: cpu",
    code=3,
    note="a driver that is too old shows itself to torch in the same way",
)
def no_cuda(desk: Desk) -> Mend:
    import torch

    desk.patch.setattr(torch.cuda, "is_available", lambda: False)
    desk.recipe["device"] = "cuda"
    return key("device", "set device: (cpu)")


@bad(
    44,
    "a GPU's number out of range",
    r"device: cuda:3 was asked for, but there are 1 CUDA devices",
    "take a lower number",
    code=3,
    command="check recipe.yaml --kind grpo",
    note="torch is told that there is one GPU",
)
def no_such_gpu(desk: Desk) -> Mend:
    import torch

    for name, answer in {"is_available": True, "device_count": 1, "mem_get_info": (8 * 10**9, 16 * 10**9)}.items():
        desk.patch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    desk.recipe["device"] = "cuda:3"
    return lambda desk, said: ["device=cuda:0"]


@bad(44, "no Metal", "device: mps was asked for, but this machine has no Metal device", code=3)
def no_metal(desk: Desk) -> Mend:
    import torch

    desk.patch.setattr(torch.backends.mps, "is_available", lambda: False)
    desk.recipe["device"] = "mps"
    return key("device", "set device: (cpu)")


@bad(
    44,
    "2 GB of memory for a larger run",
    r"memory: about 0\.6 GB are needed, 0\.1 GB are free in main memory",
    r"lora: \{rank: 16\}",
    code=0,
    command="check recipe.yaml --kind grpo",
    note="the system is made to say that 100 MB are free",
)
def little_memory(desk: Desk) -> None:
    from upslope.run import resources

    desk.patch.setattr(resources, "memory", lambda: resources.Memory(10**8, 10**8))


@bad(
    44,
    "memory that ends during a step",
    r"memory: it ran out \(.*can't allocate memory: you tried to allocate",
    r"lower train\.micro_batch_tokens",
    code=3,
    note="the learner raises torch's error",
)
def out_of_memory(desk: Desk) -> Mend:
    from upslope.learner.learner import Learner

    honest = Learner.gradient
    words = "[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"

    def gradient(self: Any, *arguments: Any, **keywords: Any) -> Any:
        raise RuntimeError(words)

    desk.patch.setattr(Learner, "gradient", gradient)

    def mend(desk: Desk, said: str) -> list[str]:
        desk.patch.setattr(Learner, "gradient", honest)
        return [suggested(r"lower (train\.micro_batch_tokens)", said) + "=256", "--overwrite"]

    return mend


# ------------------------------------------------------------------------------------------------ launchers, versions
@bad(
    45,
    "WORLD_SIZE set by a launcher or by accident",
    r"WORLD_SIZE: is '2' in the environment, as torchrun and accelerate "
    "set it, but a run is one process",
    "unset WORLD_SIZE",
)
def world_size(desk: Desk) -> Mend:
    desk.patch.setenv("WORLD_SIZE", "2")

    def mend(desk: Desk, said: str) -> list[str]:
        desk.patch.delenv(suggested(r"unset (WORLD_SIZE)", said))
        return []

    return mend


@bad(
    46,
    "transformers below the floor",
    r"transformers: is 5\.1\.0, \S+ is needed",
    r"pip install -U 'transformers",
    code=3,
    note="the package's metadata is made to say 5.1.0",
)
def old_transformers(desk: Desk) -> Mend:
    from upslope.run import machine

    honest = machine._version
    desk.patch.setattr(machine, "_version", lambda name: "5.1.0" if name == "transformers" else honest(name))

    def mend(desk: Desk, said: str) -> list[str]:
        desk.patch.setattr(machine, "_version", honest)
        return []

    return mend


@bad(
    46,
    "a tracker that is not installed",
    r"report_to: wandb is not installed",
    r"pip install 'upslope\[track\]', or leave "
    "wandb out",
)
def no_tracker(desk: Desk) -> Mend:
    desk.patch.setitem(sys.modules, "wandb", None)
    desk.recipe["report_to"] = ["wandb"]
    return lambda desk, said: ["report_to=[]"]


ALL: list[Any] = TABLE.rows
