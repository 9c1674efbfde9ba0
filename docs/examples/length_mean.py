"""The same loss, each completion divided by its own length. `upslope certify` says what that does."""

import torch


def loss(logprobs, old_logprobs, advantages, mask):
    ratio = (logprobs - old_logprobs).exp()
    clipped = ratio.clamp(0.8, 1.2)
    per_token = -torch.min(ratio * advantages, clipped * advantages) * mask
    return per_token / mask.sum(dim=1, keepdim=True).clamp(min=1)
