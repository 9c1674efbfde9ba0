"""What a recipe may say: one frozen pydantic model a recipe. Imports no torch, so that errors come at once.

A field is documented by the string under it; ``upslope`` shows those strings. Unknown keys are errors everywhere.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from upslope.recipes.episode_section import EpisodeSection
from upslope.recipes.preference_sections import DpoSection, RewardModelSection
from upslope.recipes.reward_section import RewardSection
from upslope.recipes.sections import Positive, Rate, Section, Share


class ModelSection(Section):
    name: str = "smollm2-135m-instruct"
    """A model directory, a hub id, or `smollm2-135m-instruct` (bundled: needs only the package index)."""
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Type of the compute weights; the optimizer keeps a float32 master.

    auto: bfloat16 where the device multiplies it fast."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third more time, much less memory."""
    chat_template: str | None = None
    """A Jinja file that replaces the model's chat template, or `chatml`."""
    exact: bool = False
    """Sampler and learner agree to the last bit, in float32 or float64 and at twice the time: for checking."""


class LoraSection(Section):
    rank: Positive = 16
    """Rows of A and columns of B in W + (alpha / rank) B A."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """The product B A is scaled by alpha / rank; null: twice the rank."""
    targets: tuple[str, ...] = ()
    """Linear layers by name or the end of it, e.g. `[q_proj, v_proj]`; none: all in the decoder's blocks."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs set to 0 in training steps (not where completions are sampled: PPO, GRPO)."""

    @property
    def scale_alpha(self) -> float:
        """``alpha``, or what stands for it."""
        return 2.0 * self.rank if self.alpha is None else self.alpha


LORA_RATE = 10.0
"""LoRA learns best at about ten times the rate that suits all weights: so much higher are the defaults with `lora`."""


class DataSection(Section):
    task: str | None = None
    """A built-in task (`arithmetic`). Give either this or `path`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the built-in task, e.g. `{digits: 2}`."""
    path: str | None = None
    """Your rows: a .jsonl, .json, .csv or .parquet file, a datasets folder, or a hub id."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Our column name: yours, e.g. `{prompt: question}`."""
    heldout: Annotated[float, Field(ge=0)] = 0.1
    """Rows kept for evaluation: a share below 1, or a number of rows. Equal prompts never fall on both sides."""
    system_prompt: str | None = None
    """A system message before each conversation that has none. null: what the chat template does by itself."""
    chat: Literal["auto", "always", "never"] = "auto"
    """Render plain prompts as a user's message: auto does so where the model has a chat template."""
    too_long: Literal["error", "drop", "truncate"] = "error"
    """What to do with prompts that leave no room for the completion. The count is always said."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What to do with a row whose prompt, completion or preference is missing, empty or of another type: stop before
    anything is trained, or leave it out and say how many. A file that cannot be read is an error either way."""

    @model_validator(mode="after")
    def _one_source(self) -> DataSection:
        if (self.task is None) == (self.path is None):
            found = "neither is given" if self.task is None else "both are given"
            raise ValueError(f"exactly one of data.task and data.path is needed, {found}")
        return self


class SamplingSection(Section):
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Divides the logits, in the sampler and in the learner."""
    max_new_tokens: Positive = 64
    """A completion ends here at the latest."""
    cut: Literal["bootstrap", "end"] = "bootstrap"
    """PPO: one that is cut there is worth what the critic expects after it, beside its score; or its score alone."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion, beside the model's own end tokens."""
    slots: Positive = 128
    """Completions that are sampled at once: memory against speed. Each keeps room for a prompt and `max_new_tokens`."""


class OptimSection(Section):
    lr: Rate = 1e-5
    """Peak learning rate of AdamW (betas 0.9, 0.99; no weight decay)."""
    warmup: Annotated[int, Field(ge=0)] = 5
    """Optimizer steps of linear warm-up."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up: constant, or down to a tenth of `lr` if every planned optimizer step is taken."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the gradient."""


class TrainSection(Section):
    steps: Positive = 100
    """Training steps. In SFT, reward and DPO a step is one optimizer step; in PPO and GRPO one batch of rollouts."""
    prompts: Positive = 8
    """Prompts (SFT: rows; reward and DPO: pairs) in a step."""
    epochs: Positive = 1
    """Passes over each batch of rollouts. (SFT, reward and DPO repeat their rows until `steps` are done.)"""
    minibatches: Positive = 1
    """Optimizer steps in a pass."""
    micro_batch_tokens: Positive = 4096
    """Tokens that go through the network at once: memory against speed, never the result."""
    eval_every: Annotated[int, Field(ge=0)] = 10
    """Evaluate on held-out rows every so many steps and at the end; 0: only at the end."""
    eval_prompts: Annotated[int, Field(ge=0)] = 128
    """Held-out rows in an evaluation; 0: never evaluate."""
    save_every: Annotated[int, Field(ge=0)] = 0
    """Write a checkpoint every so many steps; 0: only when stopped."""


class GrpoSection(Section):
    group: Positive = 8
    """Completions of one prompt, compared with each other."""
    baseline: Literal["mean", "leave_one_out"] = "leave_one_out"
    """What a completion's reward is compared with: the group's mean, or the mean of the others."""
    scale: Literal["none", "std"] = "none"
    """Divide the advantages of a group by their standard deviation (paper), or not (Dr. GRPO)."""
    weighting: Literal["token_mean", "sequence_mean", "constant_length"] = "token_mean"
    """How tokens weigh: DAPO's token mean, the paper's mean a sequence, or Dr. GRPO's constant length."""
    ratio: Literal["token", "sequence"] = "token"
    """Importance ratio of each token (PPO's), or one of the whole completion (GSPO)."""
    clip_low: Annotated[float, Field(gt=0, le=1)] = 0.2
    """The ratio is clipped below 1 - clip_low."""
    clip_high: Annotated[float, Field(gt=0)] = 0.28
    """The ratio is clipped above 1 + clip_high."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL term against the starting policy; 0: no reference model is kept."""
    kl_estimator: Literal["k2", "k3"] = "k2"
    """At each token, k2's gradient is KL(pi || ref)'s and k3's (the paper's choice) KL(ref || pi)'s."""
    entropy_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the entropy bonus."""
    entropy_decay: Literal["constant", "linear"] = "constant"
    """The entropy bonus stays, or falls on a line to 0 after the last step: explore first, then settle."""
    truncated: Literal["keep", "mask"] = "keep"
    """Train on completions that the length limit cut, or leave them out of the loss (they stay in the baseline)."""
    resample: Annotated[int, Field(ge=0)] = 0
    """Rounds of fresh prompts drawn in place of groups whose rewards are all equal (DAPO's dynamic sampling)."""


class PpoSection(Section):
    samples: Positive = 1
    """Completions of one prompt. The critic learns more from many prompts than from many completions of few."""
    discount: Share = 1.0
    """gamma, a token."""
    trace: Share = 0.95
    """lambda of GAE."""
    clip: Rate = 0.2
    """The ratio is clipped to 1 - clip .. 1 + clip."""
    value_clip: Annotated[float, Field(gt=0)] | None = None
    """The critic may move by at most this from its values at collection; null: the plain squared error."""
    critic_lr: Rate = 1e-5
    """Peak learning rate of the critic's network."""
    critic_head_lr: Rate = 2e-3
    """Peak learning rate of the critic's new head, which begins at 0 and must get somewhere in few steps."""
    critic_warmup: Annotated[int, Field(ge=0)] = 0
    """Steps in which only the critic learns."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.05
    """Weight of k1 against the starting policy, subtracted from each token's reward; 0: no reference model."""
    entropy_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the entropy bonus."""
    entropy_decay: Literal["constant", "linear"] = "constant"
    """The entropy bonus stays, or falls on a line to 0 after the last step: explore first, then settle."""
    target_kl: Annotated[float, Field(gt=0)] | None = 0.1
    """Stop the passes of a step when the policy has moved this far (mean k3 to the collecting policy); null: never."""
    whiten: bool = True
    """Advantages to mean 0 and variance 1 over the batch."""
    freeze_critic: bool = False
    """Keep the critic at its zero start: the control that shows what the critic is worth."""


class SftSection(Section):
    max_tokens: Positive = 2048
    """Longest row, prompt and completion."""
    weighting: Literal["token_mean", "sequence_mean"] = "token_mean"
    """How tokens weigh in a step."""


class Recipe(Section):
    """Keys that every training recipe has."""

    kind: ClassVar[str] = ""
    out: str | None = None
    """Run folder; default runs/ and the recipe's name."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Every random number derives from it."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    """auto | cpu | cuda | cuda:N | mps."""
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Trackers, beside metrics.jsonl which is always written."""
    model: ModelSection = ModelSection()
    lora: LoraSection | None = None
    """Train a LoRA adapter on the frozen model; null: train all weights. Default learning rates are then ten times."""
    data: DataSection
    optim: OptimSection = OptimSection()
    train: TrainSection = TrainSection()

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_recipe(cls, value: Any) -> Any:
        """A recipe's own defaults of a section hold for each key that is not given, not only where none is given."""
        if isinstance(value, dict):
            value = dict(value)
            for name, field in cls.model_fields.items():
                if isinstance(field.default, Section) and isinstance(value.get(name), dict):
                    value[name] = {**field.default.model_dump(exclude_unset=True), **value[name]}
        return value

    @model_validator(mode="after")
    def _only_a_critic_expects(self) -> Recipe:
        if self.kind != "ppo" and getattr(self, "sampling", SamplingSection()).cut == "end":
            raise ValueError("sampling.cut is for PPO, whose critic it is about. Fix: remove it (GRPO: grpo.truncated)")
        return self

    @model_validator(mode="before")
    @classmethod
    def _model_from_text(cls, value: Any) -> Any:
        if isinstance(value, dict):
            value = dict(value)
            for key, name in (("model", "name"), ("data", "path")):
                if isinstance(value.get(key), str):
                    value[key] = {name: value[key]}
        return value

    @model_validator(mode="before")
    @classmethod
    def _rates_of_lora(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("lora") is None:
            return value
        value = dict(value)
        for section, key in (("optim", "lr"), ("ppo", "critic_lr")):
            if section not in cls.model_fields:
                continue
            usual = cls.model_fields[section].default
            given = value.get(section, usual.model_dump(exclude={key}))
            if isinstance(given, dict) and key not in given:
                value[section] = {**given, key: round(LORA_RATE * getattr(usual, key), 12)}
        return value


class SftRecipe(Recipe):
    """`upslope sft`: imitate the completions of the rows."""

    kind: ClassVar[str] = "sft"
    optim: OptimSection = OptimSection(lr=5e-5)
    train: TrainSection = TrainSection(prompts=16)
    sampling: SamplingSection = SamplingSection()
    """How held-out prompts are answered in evaluations."""
    reward: RewardSection = RewardSection()
    """Scores held-out answers; without one, evaluations give the loss only."""
    episode: EpisodeSection | None = None
    """Tools that the rows call and that held-out answers may call; null: none."""
    sft: SftSection = SftSection()


class RolloutRecipe(Recipe):
    """Keys of the recipes that learn from their own completions."""

    sampling: SamplingSection = SamplingSection()
    reward: RewardSection = RewardSection()
    episode: EpisodeSection | None = None
    """Conversations with tools; null: one answer a prompt."""

    @model_validator(mode="after")
    def _reward_is_known(self) -> RolloutRecipe:
        if self.data.path is not None and not self.reward.entries:
            raise ValueError(
                "reward is needed with data.path: give reward: path/to/file.py:function or {builtin: numeric}"
            )
        return self

    @model_validator(mode="after")
    def _no_dropout(self) -> RolloutRecipe:
        if self.lora is not None and self.lora.dropout > 0:
            raise ValueError(
                "lora.dropout must be 0 where completions are sampled: the learner would score them under another "
                "policy than the one that sampled them. Fix: remove lora.dropout"
            )
        return self


def _whole_groups(train: TrainSection) -> None:
    if train.minibatches > train.prompts:
        raise ValueError(
            f"train.minibatches ({train.minibatches}) is more than train.prompts ({train.prompts}): "
            "the completions of one prompt stay together"
        )


class GrpoRecipe(RolloutRecipe):
    """`upslope grpo`: compare the completions of one prompt with each other."""

    kind: ClassVar[str] = "grpo"
    grpo: GrpoSection = GrpoSection()

    @model_validator(mode="after")
    def _group_of_two(self) -> GrpoRecipe:
        if self.grpo.group < 2:
            raise ValueError("grpo.group must be at least 2: GRPO compares completions of one prompt (got 1)")
        _whole_groups(self.train)
        return self


class PpoRecipe(RolloutRecipe):
    """`upslope ppo`: a policy and a critic, both trained at the same time."""

    kind: ClassVar[str] = "ppo"
    optim: OptimSection = OptimSection(decay="linear")
    train: TrainSection = TrainSection(prompts=64, epochs=2, minibatches=2)
    ppo: PpoSection = PpoSection()

    @model_validator(mode="after")
    def _minibatches_fit(self) -> PpoRecipe:
        _whole_groups(self.train)
        return self


class RewardRecipe(Recipe):
    """`upslope reward`: learn to score completions, from pairs of a better and a worse one."""

    kind: ClassVar[str] = "reward"
    optim: OptimSection = OptimSection(lr=2e-5, decay="linear")
    train: TrainSection = TrainSection(prompts=32, eval_prompts=256)
    reward_model: RewardModelSection = RewardModelSection()


class DpoRecipe(Recipe):
    """`upslope dpo`: learn from pairs of a better and a worse completion, without a reward."""

    kind: ClassVar[str] = "dpo"
    optim: OptimSection = OptimSection(lr=2e-6, decay="linear")
    train: TrainSection = TrainSection(prompts=16)
    sampling: SamplingSection = SamplingSection()
    """How held-out prompts are answered in evaluations."""
    reward: RewardSection = RewardSection()
    """Scores held-out answers; without one, evaluations are on the pairs only."""
    dpo: DpoSection = DpoSection()


PAIRED = (RewardRecipe, DpoRecipe)
"""Recipes that learn from preferences."""
RECIPES: dict[str, type[Recipe]] = {
    recipe.kind: recipe for recipe in (SftRecipe, RewardRecipe, PpoRecipe, GrpoRecipe, DpoRecipe)
}
