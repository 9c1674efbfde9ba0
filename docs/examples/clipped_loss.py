"""PPO's clipped surrogate as a user might write it. `upslope certify` certifies it."""

import torch


def loss(logprobs, old_logprobs, advantages, mask):
    ratio = (logprobs - old_logprobs).exp()
    clipped = ratio.clamp(0.8, 1.2)
    return -torch.min(ratio * advantages, clipped * advantages) * mask
