"""GRPO's advantage, divided by the group's standard deviation."""


def advantage(rewards):
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / (rewards.std(dim=1, keepdim=True, correction=0) + 1e-4)
