"""Hints for keys that a recipe does not have: near names, names of TRL and transformers, and secrets."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import NamedTuple

SECRET_VALUE = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|AKIA[0-9A-Z]{12,}|gh[opsu]_[A-Za-z0-9]{20,}|github_pat_\w{20,})"
)
_SECRET_KEY = re.compile(
    r"(?:token|apikey|accesskey|secretkey|privatekey|secret|password|passwd|passphrase|credentials?|useauthtoken)$"
)
_TEXT_TOKEN = re.compile(r"(?:^|[_-])(?:pad|eos|bos|unk|sep|cls|mask|stop|end|start|image|tool|special|per)[_-]?token$")


def is_secret_key(name: str) -> bool:
    """Whether a key by its name holds a secret: ``token``, ``api_key``, ``wandb_api_key``; ``eos_token`` does not."""
    lower = name.rpartition(".")[2].lower()
    return bool(_SECRET_KEY.search(re.sub(r"[-_ ]", "", lower))) and not _TEXT_TOKEN.search(lower)


def redact(text: str) -> str:
    """``text`` with what looks like a key of Hugging Face, OpenAI, AWS or GitHub put out of sight."""
    return SECRET_VALUE.sub("***", text)


class Foreign(NamedTuple):
    """What a key of another library is called here: ``ours`` in order of preference, perhaps none; what differs."""

    ours: tuple[str, ...]
    why: str = ""


_NO_VLLM = Foreign((), "completions are sampled in this process, with the weights that are trained")
_LORA = Foreign(("lora.rank",), "lora: {rank: 16} trains an adapter; without the section all weights are trained")
_NO_QUANT = Foreign((), "weights are not quantised; model.dtype sets their type")
_NO_HUB = Foreign((), "nothing is uploaded; the run folder's model/ is a plain model directory")
_NO_FILTER = Foreign(
    (), "the learner scores the distribution that was sampled from, so training samples without filters"
)
_NO_ADAM = Foreign((), "AdamW's constants are fixed (betas 0.9, 0.99; no weight decay)")
_NO_LAUNCH = Foreign((), "a recipe says nothing of processes")
_ALWAYS_LOGGED = Foreign((), "every step is written to metrics.jsonl, and completions to rollouts/")
_NO_SCHEDULE = Foreign(("optim.decay",), "constant, linear or cosine")
_ROWS = Foreign(("data.path",), "a rows file, a datasets folder or a hub id")
_NO_PREPARE = Foreign((), "rows are read as they are; data.columns maps column names")
_LENGTH = Foreign(("sft.max_tokens", "sampling.max_new_tokens"))
_BATCH = Foreign(
    ("train.prompts",),
    "it counts prompts (rows in SFT), not completions; memory is bounded by train.micro_batch_tokens",
)
_RATIO_CLIP = ("grpo.clip_low", "ppo.clip")

FOREIGN: dict[str, Foreign] = {
    # optimizer and schedule
    "learning_rate": Foreign(("optim.lr",)),
    "warmup_steps": Foreign(("optim.warmup",)),
    "warmup_ratio": Foreign(("optim.warmup",), "a number of optimizer steps, not a share"),
    "lr_scheduler_type": _NO_SCHEDULE,
    "lr_scheduler_kwargs": _NO_SCHEDULE,
    "max_grad_norm": Foreign(("optim.clip_norm",)),
    "gradient_clipping": Foreign(("optim.clip_norm",)),
    "weight_decay": _NO_ADAM,
    "adam_beta1": _NO_ADAM,
    "adam_beta2": _NO_ADAM,
    "adam_epsilon": _NO_ADAM,
    # length of the run and size of a step
    "max_steps": Foreign(("train.steps",)),
    "total_episodes": Foreign(("train.steps",), "a run is counted in steps of train.prompts prompts"),
    "num_train_epochs": Foreign(("train.steps",), "a run is counted in steps, not in passes over the rows"),
    "per_device_train_batch_size": _BATCH,
    "per_device_eval_batch_size": Foreign((), "train.micro_batch_tokens bounds the memory, in evaluations too"),
    "train_batch_size": _BATCH,
    "batch_size": _BATCH,
    "generation_batch_size": _BATCH,
    "gradient_accumulation_steps": Foreign(
        (), "a step is cut into micro-batches by train.micro_batch_tokens, which never changes the gradient"
    ),
    "num_iterations": Foreign(("train.epochs",), "passes over each batch of rollouts"),
    "num_ppo_epochs": Foreign(("train.epochs",), "passes over each batch of rollouts"),
    "ppo_epochs": Foreign(("train.epochs",), "passes over each batch of rollouts"),
    "num_mini_batches": Foreign(("train.minibatches",)),
    "mini_batch_size": Foreign(("train.minibatches",), "the number of minibatches in a pass, not their size"),
    "steps_per_generation": Foreign(("train.minibatches",), "optimizer steps in a pass over a batch of rollouts"),
    # evaluation, saving, logging
    "eval_steps": Foreign(("train.eval_every",)),
    "eval_strategy": Foreign(("train.eval_every",), "a number of steps; 0: only at the end"),
    "evaluation_strategy": Foreign(("train.eval_every",), "a number of steps; 0: only at the end"),
    "save_steps": Foreign(("train.save_every",)),
    "save_strategy": Foreign(("train.save_every",), "a number of steps; 0: only when stopped"),
    "save_total_limit": Foreign((), "only the newest complete checkpoint is kept"),
    "logging_steps": _ALWAYS_LOGGED,
    "logging_strategy": _ALWAYS_LOGGED,
    "logging_dir": Foreign(("out",)),
    "log_completions": _ALWAYS_LOGGED,
    "num_completions_to_print": _ALWAYS_LOGGED,
    "disable_tqdm": Foreign((), "off a terminal there is one plain line a step"),
    "output_dir": Foreign(("out",)),
    "run_name": Foreign(("out",)),
    "overwrite_output_dir": Foreign((), "it is an option of the command: --overwrite"),
    "resume_from_checkpoint": Foreign((), "it is an option of the command: --resume"),
    "data_seed": Foreign(("seed",), "one seed; every random number derives from it"),
    "push_to_hub": _NO_HUB,
    # model
    "model_name_or_path": Foreign(("model.name",)),
    "model_id": Foreign(("model.name",)),
    "model_revision": Foreign(("model.name",), "a model directory or a hub id"),
    "torch_dtype": Foreign(("model.dtype",)),
    "bf16": Foreign(("model.dtype",), "model.dtype: bfloat16"),
    "fp16": Foreign((), "float16 is not offered; model.dtype: bfloat16 has float32's range"),
    "tf32": Foreign((), "model.dtype sets the type of the weights"),
    "load_in_4bit": _NO_QUANT,
    "load_in_8bit": _NO_QUANT,
    "quantization_config": _NO_QUANT,
    "use_peft": _LORA,
    "peft_config": _LORA,
    "lora_r": Foreign(("lora.rank",)),
    "lora_alpha": Foreign(("lora.alpha",)),
    "lora_dropout": Foreign(("lora.dropout",)),
    "lora_target_modules": Foreign(("lora.targets",)),
    "target_modules": Foreign(("lora.targets",)),
    "trust_remote_code": Foreign((), "code from model repositories is never run"),
    "attn_implementation": Foreign((), "upslope brings its own attention for sampling and training"),
    "use_liger_kernel": Foreign((), "the loss never holds all logits at once, without further kernels"),
    "device_map": Foreign(("device",)),
    "use_cpu": Foreign(("device",), "device: cpu"),
    "no_cuda": Foreign(("device",), "device: cpu"),
    "disable_dropout": Foreign((), "sampling and scoring never use dropout"),
    "deepspeed": _NO_LAUNCH,
    # rows
    "dataset_name": _ROWS,
    "dataset_path": _ROWS,
    "dataset": _ROWS,
    "train_file": _ROWS,
    "train_dataset": _ROWS,
    "dataset_config": Foreign(("data.path",), "a hub id may be written org/name:config"),
    "dataset_train_split": Foreign(("data.heldout",), "held-out rows are split off by upslope"),
    "dataset_test_split": Foreign(("data.heldout",), "held-out rows are split off by upslope"),
    "eval_dataset": Foreign(("data.heldout",), "held-out rows are split off by upslope"),
    "dataset_text_field": Foreign(("data.columns",), "our column name: yours"),
    "dataset_num_proc": _NO_PREPARE,
    "dataset_kwargs": _NO_PREPARE,
    "remove_unused_columns": Foreign((), "further columns are kept and go to the reward function"),
    "shuffle_dataset": Foreign((), "rows are always shuffled, by the seed"),
    "max_prompt_length": Foreign(("data.too_long",), "prompts are never cut in silence; say what to do with long ones"),
    "max_length": _LENGTH,
    "max_seq_length": _LENGTH,
    "max_seq_len": _LENGTH,
    "packing": Foreign((), "rows are never padded to a common length, so there is nothing to pack"),
    "padding_free": Foreign((), "rows are never padded to a common length"),
    "completion_only_loss": Foreign((), "only completions are trained on, always"),
    "assistant_only_loss": Foreign((), "only the assistant's turns are trained on, always"),
    "chat_template_path": Foreign(("model.chat_template",)),
    # sampling
    "max_completion_length": Foreign(("sampling.max_new_tokens",)),
    "response_length": Foreign(("sampling.max_new_tokens",)),
    "max_tokens": Foreign(("sampling.max_new_tokens",)),
    "stop_strings": Foreign(("sampling.stop",)),
    "stop_token": Foreign(("sampling.stop",), "the model's own end tokens always end a completion"),
    "top_p": _NO_FILTER,
    "top_k": _NO_FILTER,
    "min_p": _NO_FILTER,
    "repetition_penalty": _NO_FILTER,
    "use_vllm": _NO_VLLM,
    "use_transformers_paged": _NO_VLLM,
    "use_transformers_continuous_batching": _NO_VLLM,
    # reward
    "reward_funcs": Foreign(("reward.functions",), "a list of files and functions"),
    "reward_fn": Foreign(("reward.function",)),
    "reward_model_path": Foreign(("reward.function",), "a function of your own, which may load a model"),
    "reward_weights": Foreign(("reward.functions",), "each function has a weight beside it"),
    "missing_eos_penalty": Foreign((), "a penalty belongs into the reward function"),
    # GRPO
    "num_generations": Foreign(("grpo.group", "ppo.samples")),
    "num_generations_eval": Foreign((), "evaluations sample one completion of each held-out prompt"),
    "num_sample_generations": _ALWAYS_LOGGED,
    "beta": Foreign(("grpo.kl_coef", "ppo.kl_coef"), "weight of the KL term; 0: no reference model"),
    "epsilon": Foreign(_RATIO_CLIP),
    "epsilon_high": Foreign(("grpo.clip_high", "ppo.clip")),
    "clip_range": Foreign(_RATIO_CLIP),
    "delta": Foreign((), "two-sided clipping is not offered; there are grpo.clip_low and grpo.clip_high"),
    "loss_type": Foreign(
        ("grpo.weighting",), "dapo: token_mean, grpo: sequence_mean, dr_grpo: constant_length with grpo.scale: none"
    ),
    "scale_rewards": Foreign(("grpo.scale",), "group: std, none: none"),
    "importance_sampling_level": Foreign(("grpo.ratio",)),
    "mask_truncated_completions": Foreign(("grpo.truncated",), "grpo.truncated: mask"),
    "sync_ref_model": Foreign((), "the reference is the starting policy and stays so"),
    # PPO
    "kl_coef": Foreign(("ppo.kl_coef", "grpo.kl_coef")),
    "gamma": Foreign(("ppo.discount",)),
    "lam": Foreign(("ppo.trace",), "lambda of GAE"),
    "gae_lambda": Foreign(("ppo.trace",)),
    "lambda": Foreign(("ppo.trace",)),
    "cliprange": Foreign(_RATIO_CLIP),
    "cliprange_value": Foreign(("ppo.value_clip",)),
    "vf_coef": Foreign((), "the critic is a network of its own; ppo.critic_lr is its learning rate"),
    "value_coef": Foreign((), "the critic is a network of its own; ppo.critic_lr is its learning rate"),
    "ent_coef": Foreign(("ppo.entropy_coef",)),
    "whiten_rewards": Foreign((), "rewards are not whitened; ppo.whiten whitens advantages"),
    "init_kl_coef": Foreign(("ppo.kl_coef", "grpo.kl_coef")),
    # sections of the other recipes
    "sft": Foreign((), "a section of SFT recipes, which `upslope sft` runs"),
    "ppo": Foreign((), "a section of PPO recipes, which `upslope ppo` runs"),
    "grpo": Foreign((), "a section of GRPO recipes, which `upslope grpo` runs"),
    "<<": Foreign((), "YAML's merge keys are not read; write the keys out"),
}
_PREFIXES: dict[str, Foreign] = {
    "vllm_": _NO_VLLM,
    "lora_": _LORA,
    "bnb_": _NO_QUANT,
    "hub_": _NO_HUB,
    "fsdp": _NO_LAUNCH,
    "ddp_": _NO_LAUNCH,
    "adam_": _NO_ADAM,
    "logging_": _ALWAYS_LOGGED,
    "dataloader_": _NO_PREPARE,
}


class Hint(NamedTuple):
    """Keys that may be meant, best first; for a key of another library (``foreign``) also what differs."""

    near: tuple[str, ...]
    why: str = ""
    foreign: bool = False


def hint(key: str, known: Sequence[str]) -> Hint:
    """What may be meant by the unknown dotted ``key``, among the ``known`` keys and sections of a recipe.

    In order: the same last name in another section; a key of TRL or transformers; a near name in the same section; a
    near name anywhere (difflib's ratio of matching characters).
    """
    section, _, leaf = key.rpartition(".")
    last = {path: path.rpartition(".")[2] for path in known}
    elsewhere = tuple(path for path in known if last[path] == leaf and path != key)
    if elsewhere:
        return Hint(elsewhere)
    foreign = FOREIGN.get(leaf) or next((item for name, item in _PREFIXES.items() if leaf.startswith(name)), None)
    if foreign is None and section not in known:
        foreign = FOREIGN.get(section)
    if foreign is not None:
        ours = tuple(name for name in foreign.ours if name in known)[:1]
        why = foreign.why if ours or not foreign.ours else f"{foreign.why}; this recipe has none".removeprefix("; ")
        return Hint(ours, why, True)
    siblings = {last[path]: path for path in known if path.rpartition(".")[0] == section}
    near = [siblings[name] for name in difflib.get_close_matches(leaf, siblings, n=2, cutoff=0.6)]
    if not near:
        near = difflib.get_close_matches(key, known, n=2, cutoff=0.75)
        names = difflib.get_close_matches(leaf, sorted(set(last.values())), n=2, cutoff=0.75)
        near += [path for name in names for path in known if last[path] == name]
    return Hint(tuple(dict.fromkeys(near))[:2])
