"""What is said about unknown keys: names of other libraries, near names, secrets."""

from __future__ import annotations

import re

import pytest

from upslope.errors import InputErrors
from upslope.recipes.configs import RECIPES, GrpoRecipe, PpoRecipe, SftRecipe
from upslope.run.recipe import read_text
from upslope.run.recipe_errors import keys
from upslope.run.recipe_hints import FOREIGN, hint, is_secret_key, redact


def said(text: str) -> list[str]:
    with pytest.raises(InputErrors) as caught:
        read_text("data: rows.jsonl\nreward: rewards.py:correct\n" + text, GrpoRecipe, "r.yaml")
    return [str(error) for error in caught.value.errors]


# ---------------------------------------------------------------------------------------------------------------- hints
TRL = """learning_rate num_generations max_completion_length per_device_train_batch_size gradient_accumulation_steps
beta epsilon epsilon_high num_train_epochs max_steps output_dir bf16 loss_type scale_rewards reward_funcs
model_name_or_path torch_dtype dataset_name warmup_steps lr_scheduler_type max_grad_norm logging_steps
save_steps eval_steps num_ppo_epochs kl_coef cliprange vf_coef lam gamma temperature top_p max_prompt_length
max_length packing use_vllm steps_per_generation num_iterations mask_truncated_completions
importance_sampling_level vllm_mode lora_r push_to_hub hub_model_id fsdp_config weight_decay adam_beta1
dataloader_num_workers run_name resume_from_checkpoint whiten_rewards cliprange_value response_length
num_mini_batches missing_eos_penalty warmup_ratio dataset_train_split gradient_checkpointing report_to
attn_implementation"""


@pytest.mark.parametrize("name", TRL.split())
@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_names_of_trl_and_transformers_get_an_answer(name: str, recipe: str) -> None:
    schema = RECIPES[recipe]
    if name in keys(schema):
        return
    near, why, _ = hint(name, list(keys(schema)))
    assert (near and set(near) <= set(keys(schema))) or len(why) > 12, (near, why)


@pytest.mark.parametrize(
    ("name", "recipe", "ours"),
    [
        ("learning_rate", "sft", "optim.lr"),
        ("num_generations", "grpo", "grpo.group"),
        ("num_generations", "ppo", "ppo.samples"),
        ("beta", "grpo", "grpo.kl_coef"),
        ("beta", "ppo", "ppo.kl_coef"),
        ("epsilon", "grpo", "grpo.clip_low"),
        ("cliprange", "ppo", "ppo.clip"),
        ("kl_coef", "ppo", "ppo.kl_coef"),
        ("gamma", "ppo", "ppo.discount"),
        ("entropy_coeff", "grpo", "grpo.entropy_coef"),
        ("entropy_coef_max", "grpo", "grpo.entropy_decay"),
        ("use_adaptive_entropy", "ppo", "ppo.entropy_decay"),
        ("lam", "ppo", "ppo.trace"),
        ("max_completion_length", "grpo", "sampling.max_new_tokens"),
        ("max_length", "sft", "sft.max_tokens"),
        ("num_train_epochs", "sft", "train.steps"),
        ("output_dir", "sft", "out"),
        ("reward_funcs", "grpo", "reward.functions"),
        ("model_name_or_path", "ppo", "model.name"),
    ],
)
def test_hints_lead_to_the_key_that_is_meant(name: str, recipe: str, ours: str) -> None:
    assert hint(name, list(keys(RECIPES[recipe]))).near[0] == ours
    assert hint(f"train.{name}", list(keys(RECIPES[recipe]))).near[0] == ours


def test_the_same_name_in_another_section_goes_before_a_near_or_foreign_name() -> None:
    assert hint("ppo.clip_norm", list(keys(PpoRecipe))).near == ("optim.clip_norm",)  # not the near ppo.clip
    assert hint("max_tokens", list(keys(SftRecipe))).near == ("sft.max_tokens",)  # not sampling.max_new_tokens


def test_every_hint_points_at_a_key_of_some_recipe() -> None:
    known = {key for schema in RECIPES.values() for key in keys(schema)}
    assert {ours for foreign in FOREIGN.values() for ours in foreign.ours} <= known
    mentioned = {word for item in FOREIGN.values() for word in re.findall(r"\b[a-z_]+\.[a-z_]+\b", item.why)}
    assert mentioned - {"metrics.jsonl"} <= known


def test_a_foreign_name_without_a_counterpart_says_why() -> None:
    (found,) = said("use_vllm: true\n")
    assert found == (
        "r.yaml:3 use_vllm: unknown key: completions are sampled in this process, with the weights that are trained. "
        "Fix: remove it."
    )


# -------------------------------------------------------------------------------------------------------------- secrets
@pytest.mark.parametrize(
    "name", ["token", "hf_token", "api_key", "apiKey", "OPENAI_API_KEY", "password", "client-secret"]
)
def test_secret_keys(name: str) -> None:
    assert is_secret_key(name)


@pytest.mark.parametrize(
    "name", ["eos_token", "pad_token", "max_new_tokens", "max_tokens", "micro_batch_tokens", "key"]
)
def test_keys_that_are_no_secrets(name: str) -> None:
    assert not is_secret_key(name)


def test_no_key_of_our_recipes_is_taken_for_a_secret() -> None:
    assert [key for schema in RECIPES.values() for key in keys(schema) if is_secret_key(key)] == []


def test_secrets_reach_no_message() -> None:
    canary = "sk-abcdefghijklmnopqrstuvwxyz012345"
    text = (
        f"optim:\n  lr: {canary}\nwandb_api_key: canary1\ndata2: {{password: canary2}}\n"
        + f"{canary}: 1\nseed: [{canary}]\n"
    )
    found = "\n".join(said(text))
    assert canary not in found and "canary1" not in found and "canary2" not in found
    assert redact(f"x {canary} y") == "x *** y"


def test_messages_carry_no_control_characters() -> None:
    (found,) = said('"\\e]52;c;x\\a": 1\n')
    assert "\x1b" not in found and "\x07" not in found
    (found,) = said('device: "\\e[31m"\n')
    assert "\x1b" not in found
