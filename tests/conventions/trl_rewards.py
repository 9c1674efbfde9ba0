"""Reward functions as TRL's scripts have them. The same file runs under TRL's GRPOTrainer: bench/same_rewards.py."""

import asyncio
import re


def think_format_reward(completions, **kwargs):
    """1 for a completion that thinks within tags before it answers, else 0."""
    pattern = r"^<think>(?!.*<think>)(.*?)</think>.*$"
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if re.match(pattern, content, re.DOTALL | re.MULTILINE) else 0.0 for content in contents]


def digit_reward(prompts, completions, answer, completion_ids, trainer_state, log_extra, log_metric, **kwargs):
    """Share of the answer's digits that occur; all that TRL hands a function is asked for."""
    rewards = []
    for completion, truth in zip(completions, answer):  # noqa: B905 (as scripts have it)
        text = completion[0]["content"]
        rewards.append(None if truth is None else sum(digit in text for digit in truth) / len(truth))
    log_extra("truth", list(answer))
    log_metric("ids", sum(len(ids) for ids in completion_ids) / len(completion_ids))
    log_metric("progress", trainer_state.global_step / trainer_state.max_steps)
    return rewards


async def length_judge(prompts, completions, **kwargs):
    """As a judge that is asked over HTTP: one coroutine a completion."""

    async def ask(completion):
        await asyncio.sleep(0.001)
        return min(1.0, len(completion[0]["content"]) / 10)

    return await asyncio.gather(*(ask(completion) for completion in completions))
