"""Prompts to scored rollouts, and their numbers: what PPO and GRPO do alike before they differ.

Evaluation is the same path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, pstdev
from typing import Any, TypeVar

import torch

from upslope.errors import RewardError
from upslope.recipes.configs import RewardSection
from upslope.recipes.conversations import Talk, talk_metrics
from upslope.recipes.curriculum import Curriculum
from upslope.recipes.loop import Clock
from upslope.recipes.reward_models import score_all
from upslope.recipes.setup import Workshop
from upslope.seeds import derive, permutation
from upslope.types import Completion, Message, Prompt, Rollout
from upslope.worlds.rewards import Group, Score

Row = TypeVar("Row")


@dataclass(frozen=True, eq=False)
class Harvest:
    """The scored rollouts of a step, group by group, with the texts for the log."""

    rollouts: list[Rollout]
    prompts: list[str]
    completions: list[str]
    dropped: int
    logged: Mapping[str, float] = field(default_factory=dict)
    """What the reward function gave to ``log_metric``."""

    @property
    def scores(self) -> list[float]:
        return [rollout.score for rollout in self.rollouts]

    def groups(self, size: int) -> torch.Tensor:
        """[prompts, group] rewards, float64."""
        return torch.tensor(self.scores, dtype=torch.float64).reshape(-1, size)

    def keep(self, rows: Sequence[int]) -> Harvest:
        """Only these rollouts."""
        pick = lambda items: [items[row] for row in rows]  # noqa: E731
        return replace(
            self, rollouts=pick(self.rollouts), prompts=pick(self.prompts), completions=pick(self.completions)
        )

    def __add__(self, other: Harvest) -> Harvest:
        return Harvest(
            self.rollouts + other.rollouts, self.prompts + other.prompts, self.completions + other.completions,
            self.dropped + other.dropped, {**self.logged, **other.logged},
        )  # fmt: skip


def rows_of_step(prompts: Sequence[Row], count: int, step: int, seed: int) -> list[Row]:
    """The rows of step ``step`` (from 0): one permutation a pass over the data, derived from the seed alone."""
    places = [divmod(place, len(prompts)) for place in range(step * count, (step + 1) * count)]
    orders = {epoch: permutation(seed, len(prompts), "prompts", epoch) for epoch, _ in places}
    return [prompts[orders[epoch][index]] for epoch, index in places]


def harvest(
    shop: Workshop, prompts: Sequence[Prompt], samples: int, seeds: Sequence[int], reward: RewardSection, clock: Clock,
    step: int, first_group: int = 0, phase: str = "sampling",
) -> Harvest:  # fmt: skip
    """Sample ``samples`` completions of each prompt and score them. A group that cannot be scored is left out and
    counted.

    A reward of ``None`` says that the function does not apply: its group is left out too, for it cannot be compared.
    """
    run, renderer = shop.run, shop.renderer
    # Only data.too_long: truncate lets prompts come here that this shortens.
    longest = shop.sampler.context - shop.room
    ids = [renderer.prompt(prompt.content)[-longest:] for prompt in prompts]
    shop.sampler.progress = lambda done, total: run.phase(step, phase, done, total)
    completions = _said(shop, ids, samples, seeds, clock)
    texts = [[answer_text(shop, completion) for completion in group] for group in completions]
    run.phase(step, "reward" if phase == "sampling" else phase)
    with clock("reward"):
        groups = [
            Group(prompt, tuple(answers), tuple(c.token_ids for c in group), _messages(group))
            for prompt, answers, group in zip(prompts, texts, completions, strict=True)
        ]
        complete = step - (phase == "sampling")  # steps that the model has learned from
        scores, failed = score_all(_process(shop), groups, reward.on_error, complete)
    for _, reason in failed:
        run.notice(f"step {step}: a group was left out: {reason}")
    for prompt in [p for p, found in zip(prompts, scores, strict=True) if found and not _applies(found)]:
        run.notice(f"step {step}: a group was left out: no reward applies to a completion of row {prompt.id}")
    rollouts, shown, answers = [], [], []
    number = first_group
    for prompt, prompt_ids, group, group_texts, group_scores in zip(
        prompts, ids, completions, texts, scores, strict=True
    ):
        if group_scores is None or not _applies(group_scores):
            continue
        for sample, (completion, score) in enumerate(zip(group, group_scores, strict=True)):
            rollouts.append(
                _rollout(prompt.id, number, sample, prompt_ids, completion, score, shop.sampling.temperature)
            )
        shown += [shown_prompt(prompt)] * samples
        answers += [_shown(completion, text) for completion, text in zip(group, group_texts, strict=True)]
        number += 1
    if not rollouts:
        raise RewardError(
            f"step {step}", f"none of {len(prompts)} groups could be scored", "correct the reward function"
        )
    logged = {str(name): value for name, value in _process(shop).take_metrics().items()}
    if shop.talks is not None:
        logged |= talk_metrics([[talk for talk in group if isinstance(talk, Talk)] for group in completions])
    if isinstance(shop.train, Curriculum) and phase == "sampling" and first_group == 0:
        logged |= shop.train.hear([rollout.score for rollout in rollouts])
    return Harvest(rollouts, shown, answers, len(prompts) - (number - first_group), logged)


def _said(
    shop: Workshop, ids: Sequence[Sequence[int]], samples: int, seeds: Sequence[int], clock: Clock
) -> Sequence[Sequence[Completion | Talk]]:
    """Completions of each prompt, or conversations where there are tools, whose time is counted apart."""
    with clock("sampling"):
        if shop.talks is None:
            return shop.sampler.sample(ids, samples, shop.sampling, seeds)
        found = shop.talks.play(shop.sampler, shop.sampling, ids, samples, seeds)
    clock.move("sampling", "tools", shop.talks.toolbox.take_seconds())
    return found


def _applies(scores: Sequence[Score]) -> bool:
    """Whether all completions of a group were scored, so that they can be compared."""
    return all(score.value is not None for score in scores)


def answer_text(shop: Workshop, completion: Completion | Talk) -> str:
    """The text that a reward function sees: without the stop token, cut before a stop string; of a conversation the
    last message's."""
    if isinstance(completion, Talk):
        return completion.text
    text = shop.renderer.text(completion.token_ids)
    ends = [text.find(stop) for stop in shop.sampling.stop_strings if stop in text]
    return text[: min(ends)] if ends else text


def _messages(group: Sequence[Completion | Talk]) -> tuple[tuple[Message, ...], ...] | None:
    talks = [completion for completion in group if isinstance(completion, Talk)]
    return tuple(talk.messages for talk in talks) if talks else None


def _shown(completion: Completion | Talk, text: str) -> str:
    """A completion for the log: of a conversation all that was said."""
    return completion.shown if isinstance(completion, Talk) else text


def _process(shop: Workshop) -> Any:
    if shop.reward is None:
        raise ValueError("this run has no reward function")
    return shop.reward


def _rollout(
    prompt_id: str,
    group: int,
    sample: int,
    prompt: Sequence[int],
    completion: Completion | Talk,
    score: Score,
    temperature: float,
) -> Rollout:
    before, count = len(prompt), len(completion.token_ids)
    if score.value is None:
        raise ValueError("a rollout needs a reward")
    if isinstance(completion, Talk):
        return completion.played.rollout(
            prompt_id, group, sample, prompt, temperature, float(score.value), score.parts, score.extra
        )
    return Rollout(
        prompt_id, group, sample,
        token_ids=(*prompt, *completion.token_ids),
        action_mask=(False,) * before + (True,) * count,
        logprobs=(0.0,) * before + completion.logprobs,
        rewards=(0.0,) * (before + count - 1) + (float(score.value),),
        terminated=completion.stopped,
        weights_version=completion.weights_version,
        temperature=temperature,
        support=None if completion.support is None else (None,) * before + completion.support,
        parts=dict(score.parts),
        extra=dict(score.extra),
    )  # fmt: skip


def shown_prompt(prompt: Prompt) -> str:
    content = prompt.content
    if isinstance(content, str):
        return content
    if content and isinstance(content[0], int):
        return " ".join(map(str, content))
    return "\n".join(f"{message['role']}: {message['content']}" for message in content)  # type: ignore[index, call-overload]


def check_versions(rollouts: Sequence[Rollout], version: int) -> None:
    """On-policy means: sampled with the learner's newest weights. A forgotten ``sampler.load`` is found here."""
    stale = {rollout.weights_version for rollout in rollouts} - {version}
    if stale:
        raise RuntimeError(
            f"rollouts of weights version {sorted(stale)} meet a learner at version {version}: sampler.load is missing"
        )


def statistics(found: Harvest, group: int) -> dict[str, float]:
    """Metrics of a step's rollouts, under TRL's names where the thing is the same."""
    lengths = [rollout.completion_length for rollout in found.rollouts]
    ended = [length for length, rollout in zip(lengths, found.rollouts, strict=True) if rollout.terminated]
    rewards = found.groups(group)
    spread = rewards.max(1).values == rewards.min(1).values
    metrics = {
        "reward": fmean(found.scores),
        "completions/mean_length": fmean(lengths),
        "completions/min_length": float(min(lengths)),
        "completions/max_length": float(max(lengths)),
        "completions/clipped_ratio": 1 - len(ended) / len(lengths),
        "num_tokens": float(sum(len(rollout.token_ids) for rollout in found.rollouts)),
        "groups": float(len(rewards)),
        "dropped_groups": float(found.dropped),
    }
    if group > 1:  # a single completion has nothing to differ from
        metrics |= {
            "reward_std": float(rewards.std(1, correction=0).mean()),
            "frac_reward_zero_std": float(spread.double().mean()),
        }
    if ended:
        metrics["completions/mean_terminated_length"] = fmean(ended)
    metrics = {**found.logged, **metrics}
    for name, values in _by_function(found).items():
        metrics |= {f"rewards/{name}/mean": fmean(values), f"rewards/{name}/std": pstdev(values)}
    return metrics


def _by_function(found: Harvest) -> dict[str, list[float]]:
    """The unweighted rewards by each function, of the completions to which it applied."""
    names = sorted({name for rollout in found.rollouts for name in rollout.parts})
    return {name: [row.parts[name] for row in found.rollouts if name in row.parts] for name in names}


def evaluate(
    shop: Workshop, prompts: Sequence[Prompt], clock: Clock, step: int, reward: RewardSection, greedy: bool = True
) -> dict[str, float]:
    """Held-out prompts, one completion each, greedy by default: the reward's mean apart from the training reward."""
    if not prompts or shop.reward is None:
        return {}
    settings = replace(shop.sampling, temperature=0.0) if greedy else shop.sampling
    seeds = [derive(0, "evaluation", index) for index in range(len(prompts))]
    with clock("evaluation"):
        found = harvest(replace(shop, sampling=settings), prompts, 1, seeds, reward, Clock(), step, phase="evaluation")
    lengths = [rollout.completion_length for rollout in found.rollouts]
    parts = _by_function(found)
    return {
        **({f"eval/rewards/{name}/mean": fmean(values) for name, values in parts.items()} if len(parts) > 1 else {}),
        **{f"eval/{name}": value for name, value in found.logged.items()},
        "eval/reward": fmean(found.scores),
        "eval/mean_length": fmean(lengths),
        "eval/clipped_ratio": 1 - fmean(float(rollout.terminated) for rollout in found.rollouts),
    }
