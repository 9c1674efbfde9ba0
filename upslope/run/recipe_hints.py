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
_NO_PADDING = Foreign((), "rows are never padded to a common length")
_NO_OPTIONS = Foreign(("model.gradient_checkpointing",), "on or off, without options")
_BEST = Foreign((), "best/ always keeps the model of the best evaluation: highest eval/reward, else lowest eval_loss")
_EXACT = Foreign((), "--resume goes on as if the run had never stopped, always")
_EVALUATION = Foreign((), "evaluations give the loss (SFT) and the reward's mean")
_COMMAND = Foreign((), "each command does one thing; `upslope eval` is the one that evaluates")
_NO_LOSS = Foreign((), "the losses are the clipped surrogate of a token and of a sequence; see grpo.ratio")
_REFERENCE = Foreign((), "they are computed once, before the first step, always")
_BONUS = Foreign(
    ("ppo.entropy_decay", "grpo.entropy_decay"), "the weight of the entropy bonus stays, or falls on a line"
)
_DPO_LOSS = Foreign(("dpo.loss",), "sigmoid or ipo, without variants")
_SAME_REFERENCE = Foreign((), "the reference is the starting policy and stays so")
_NO_COMPILE = Foreign((), "the networks are run as they are")
_LENGTH = Foreign(("sft.max_tokens", "reward_model.max_tokens", "dpo.max_tokens", "sampling.max_new_tokens"))
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
    "reward_model_path": Foreign(("reward.functions",), "[{model: DIR}], beside functions of your own"),
    "reward_weights": Foreign(("reward.functions",), "each function has a weight beside it"),
    "missing_eos_penalty": Foreign(("reward.functions",), "[{model: DIR, missing_eos_penalty: 1}]"),
    # GRPO
    "num_generations": Foreign(("grpo.group", "ppo.samples")),
    "num_generations_eval": Foreign((), "evaluations sample one completion of each held-out prompt"),
    "num_sample_generations": _ALWAYS_LOGGED,
    "beta": Foreign(("grpo.kl_coef", "ppo.kl_coef", "dpo.beta"), "weight of the KL; 0 in GRPO and PPO: no reference"),
    "epsilon": Foreign(_RATIO_CLIP),
    "epsilon_high": Foreign(("grpo.clip_high", "ppo.clip")),
    "clip_range": Foreign(_RATIO_CLIP),
    "delta": Foreign((), "two-sided clipping is not offered; there are grpo.clip_low and grpo.clip_high"),
    "loss_type": Foreign(
        ("grpo.weighting", "dpo.loss"),
        "GRPO: dapo is token_mean, grpo sequence_mean, dr_grpo constant_length, all with grpo.scale; DPO: sigmoid, ipo",
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
    "ent_coef": Foreign(("ppo.entropy_coef", "grpo.entropy_coef")),
    "whiten_rewards": Foreign((), "rewards are not whitened; ppo.whiten whitens advantages"),
    "init_kl_coef": Foreign(("ppo.kl_coef", "grpo.kl_coef")),
    # what else TRL's and transformers' configs hold; docs/from-trl.md is made from this table
    "model_init_kwargs": Foreign(("model.name",), "dtype, checkpointing and template are keys of the section model"),
    "router_aux_loss_coef": Foreign((), "mixture-of-experts models are not served"),
    "cast_lm_head_to_fp32": Foreign((), "log-probabilities are computed in float32 whatever the weights' type is"),
    "activation_offloading": Foreign(("model.gradient_checkpointing",), "recomputed, not moved to another memory"),
    "activation_checkpointing": Foreign(("model.gradient_checkpointing",)),
    "activation_checkpointing_kwargs": _NO_OPTIONS,
    "gradient_checkpointing_kwargs": _NO_OPTIONS,
    "auto_find_batch_size": Foreign(("train.micro_batch_tokens",), "tokens at once; the result does not depend on it"),
    "pad_to_multiple_of": _NO_PADDING,
    "pad_token": _NO_PADDING,
    "packing_strategy": _NO_PADDING,
    "eval_packing": _NO_PADDING,
    "truncation_mode": Foreign(("sft.max_tokens", "data.too_long"), "how many rows are cut is said"),
    "precompute_ref_log_probs": _REFERENCE,
    "precompute_ref_batch_size": _REFERENCE,
    "center_rewards_coefficient": Foreign(("reward_model.center",), "weight of (chosen + rejected)^2"),
    "loss_weights": _DPO_LOSS,
    "label_smoothing": _DPO_LOSS,
    "use_weighting": _DPO_LOSS,
    "ld_alpha": _DPO_LOSS,
    "discopop_tau": _DPO_LOSS,
    "max_tool_calling_iterations": Foreign(("episode.max_turns",), "messages of the model; calls are one fewer"),
    "eos_token": Foreign((), "the model's own end tokens are used; its files say which"),
    "chat_template_kwargs": Foreign(("model.chat_template",), "a Jinja file; its options are written into it"),
    "temperature": Foreign(("sampling.temperature",)),
    "generation_kwargs": Foreign(("sampling.temperature",), "sampling has temperature, max_new_tokens and stop"),
    "stop_token_id": Foreign(("sampling.stop",), "the model's own end tokens always end a completion"),
    "cache_implementation": Foreign((), "the sampler keeps a cache of its own"),
    "use_cache": Foreign((), "the sampler keeps a cache of its own"),
    "use_bias_correction_kl": Foreign((), "the KL term is not multiplied by the ratio"),
    "off_policy_mask_threshold": Foreign((), "completions are always of the newest weights; a test sees to it"),
    "top_entropy_quantile": Foreign((), "every token of a completion is trained on"),
    "entropy_coef": Foreign(("ppo.entropy_coef", "grpo.entropy_coef"), "weight of the entropy bonus"),
    "multi_objective_aggregation": Foreign((), "rewards are summed by weight, and the sums compared within a group"),
    "local_rollout_forward_batch_size": Foreign(("train.micro_batch_tokens",), "in tokens"),
    "sft_model_path": Foreign(("model.name",), "reference and critic start from the same model"),
    "kl_estimator": Foreign(("grpo.kl_estimator",), "in PPO it is k1, the one whose gradient in a reward is the KL's"),
    "model_adapter_name": Foreign(("model.name",), "an adapter's directory as the model goes on with that adapter"),
    "ref_adapter_name": Foreign((), "the reference is the starting policy and stays so"),
    "world_size": _NO_LAUNCH,
    "num_total_batches": Foreign(("train.steps",), "the number of steps, not a result of other numbers"),
    "micro_batch_size": _BATCH,
    "local_batch_size": _BATCH,
    "local_mini_batch_size": Foreign(("train.minibatches",), "the number of minibatches in a pass, not their size"),
    "label_smoothing_factor": Foreign((), "the loss is the plain log-likelihood of the rows"),
    "neftune_noise_alpha": Foreign((), "no noise is added to embeddings"),
    "optim": _NO_ADAM,
    "optim_args": _NO_ADAM,
    "optim_target_modules": _NO_ADAM,
    "bf16_full_eval": Foreign(("model.dtype",), "one type for training and evaluation"),
    "fp16_full_eval": Foreign(("model.dtype",), "one type for training and evaluation"),
    "liger_kernel_config": Foreign((), "the loss never holds all logits at once, without further kernels"),
    "torch_empty_cache_steps": Foreign((), "memory is bounded by train.micro_batch_tokens"),
    "project": Foreign(("report_to",), "the project is set by WANDB_PROJECT or TRACKIO_PROJECT"),
    "include_num_input_tokens_seen": _ALWAYS_LOGGED,
    "include_for_metrics": _ALWAYS_LOGGED,
    "log_unique_prompts": _ALWAYS_LOGGED,
    "log_completions_hub_repo": _NO_HUB,
    "log_multimodal": Foreign((), "text models only"),
    "log_level": Foreign((), "the terminal says what matters; --debug shows tracebacks"),
    "log_level_replica": _NO_LAUNCH,
    "log_on_each_node": _NO_LAUNCH,
    "eval_on_start": Foreign((), "a run is evaluated before its first step whenever it is evaluated at all"),
    "eval_delay": Foreign(("train.eval_every",), "a number of steps; the first evaluation is before training"),
    "eval_accumulation_steps": Foreign((), "train.micro_batch_tokens bounds the memory, in evaluations too"),
    "load_best_model_at_end": _BEST,
    "metric_for_best_model": _BEST,
    "greater_is_better": _BEST,
    "save_only_model": Foreign((), "model/ is the model alone; a checkpoint holds all that --resume needs"),
    "save_on_each_node": _NO_LAUNCH,
    "enable_jit_checkpoint": Foreign((), "a run that is told to stop saves itself first, always"),
    "ignore_data_skip": _EXACT,
    "restore_callback_states_from_checkpoint": _EXACT,
    "full_determinism": Foreign((), "on a CPU a run repeats byte for byte, always"),
    "average_tokens_across_devices": Foreign((), "weights are computed on the whole step, always"),
    "label_names": _NO_PREPARE,
    "length_column_name": _NO_PREPARE,
    "train_sampling_strategy": Foreign((), "rows are always shuffled, by the seed"),
    "prediction_loss_only": _EVALUATION,
    "batch_eval_metrics": _EVALUATION,
    "do_train": _COMMAND,
    "do_eval": _COMMAND,
    "do_predict": _COMMAND,
    "debug": Foreign((), "it is an option of the command: --debug"),
    "skip_memory_metrics": Foreign((), "`upslope check` states the memory beforehand"),
    "local_rank": _NO_LAUNCH,
    # sections of the other recipes
    "sft": Foreign((), "a section of SFT recipes, which `upslope sft` runs"),
    "ppo": Foreign((), "a section of PPO recipes, which `upslope ppo` runs"),
    "grpo": Foreign((), "a section of GRPO recipes, which `upslope grpo` runs"),
    "reward_model": Foreign((), "a section of the recipes that `upslope reward` runs"),
    "dpo": Foreign((), "a section of DPO recipes, which `upslope dpo` runs"),
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
    "sapo_": _NO_LOSS,
    "vespo_": _NO_LOSS,
    "ref_model_": _SAME_REFERENCE,
    "f_divergence": _DPO_LOSS,
    "f_alpha": _DPO_LOSS,
    "entropy_coef_": _BONUS,
    "entropy_target": _BONUS,
    "use_adaptive_entropy": _BONUS,
    "transformers_": _NO_VLLM,
    "torch_": _NO_COMPILE,
    "trackio_": Foreign(("report_to",), "trackio's own environment variables apply"),
    "accelerator_": _NO_LAUNCH,
    "parallelism_": _NO_LAUNCH,
    "ds3_": _NO_LAUNCH,
    "eval_do_": _EVALUATION,
    "eval_use_": _EVALUATION,
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
