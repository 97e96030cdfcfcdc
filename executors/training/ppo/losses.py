"""The losses of PPO, as sums over tokens, so that parts of a mini-batch add up to the whole whatever their sizes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PolicyLoss(NamedTuple):
    """Sums over the unmasked tokens; only `loss` carries a gradient."""

    loss: Tensor
    approx_kl: Tensor
    """Divergence of the policy from the one that sampled, in nats."""
    clipped: Tensor
    """Number of tokens whose clipped term counted."""


class ValueLoss(NamedTuple):
    """Sums over the unmasked tokens; only `loss` carries a gradient."""

    loss: Tensor
    clipped: Tensor


def policy_loss(logprobs: Tensor, sampled: Tensor, advantages: Tensor, mask: Tensor, cliprange: float) -> PolicyLoss:
    """The clipped surrogate, negated. `sampled` are the log probabilities at the time of sampling.

    Schulman et al. 2017, "Proximal Policy Optimization Algorithms", eq. 7. The divergence is estimated by
    (ratio - 1) - log ratio, which is never negative (Schulman 2020, "Approximating KL Divergence", k3).
    """
    log_ratio = (logprobs - sampled) * mask
    ratio = log_ratio.exp()
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    with torch.no_grad():
        approx_kl = ((ratio - 1 - log_ratio) * mask).sum()
        bound = ((clipped > plain) * mask).sum()
    return PolicyLoss((torch.maximum(plain, clipped) * mask).sum(), approx_kl, bound)


def value_loss(values: Tensor, sampled: Tensor, returns: Tensor, mask: Tensor, cliprange: float) -> ValueLoss:
    """Half the squared error, where a step of more than `cliprange` from the value while sampling gains nothing.

    Huang et al. 2024, "The N+ Implementation Details of RLHF with PPO", detail on value clipping.
    """
    plain = (values - returns).square()
    near = sampled + (values - sampled).clamp(-cliprange, cliprange)
    clipped = (near - returns).square()
    bound = ((clipped > plain) * mask).sum().detach()
    return ValueLoss(0.5 * (torch.maximum(plain, clipped) * mask).sum(), bound)
