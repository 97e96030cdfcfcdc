"""From scores to advantages. Tensors are of shape (rollouts, tokens), answers to the left, padding masked."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_LARGEST_ERROR = 0.2
"""The proportional error of the KL controller is clipped to this, in both directions."""

Total = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes."""


def token_rewards(scores: Tensor, logprobs: Tensor, reference: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Reward of each token: the score at the last one, less `kl_coef` times the log ratio to the reference at all.

    `scores` has shape (rollouts,). Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", eq. 2.
    """
    rewards = -kl_coef * (logprobs - reference) * mask
    last = mask.sum(dim=1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores.to(rewards.dtype).unsqueeze(1))


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Return advantages and the returns that the value head learns (advantage + value).

    The value after the last token is 0. Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized
    Advantage Estimation", eq. 16.
    """
    values = values * mask
    following = torch.nn.functional.pad(values, (0, 1))[:, 1:]
    errors = (rewards + gamma * following - values) * mask
    advantages = torch.zeros_like(errors)
    carried = torch.zeros_like(errors[:, 0])
    for place in reversed(range(errors.shape[1])):
        carried = errors[:, place] + gamma * lam * carried
        advantages[:, place] = carried
    return advantages * mask, (advantages + values) * mask


def whitened(values: Tensor, mask: Tensor, total: Total, *, shift: bool = True) -> Tensor:
    """Scale to variance 1, and to mean 0 where `shift` is set, over the unmasked values of all processes."""
    count = total(mask.sum().to(values.dtype))
    mean = total((values * mask).sum()) / count
    variance = total(((values - mean).square() * mask).sum()) / count
    scaled = (values - mean) * torch.rsqrt(variance + 1e-8)
    return (scaled if shift else scaled + mean) * mask


def adapted(kl_coef: float, kl: float, target: float, rollouts: int, horizon: float) -> float:
    """The coefficient that pulls the divergence of a batch (nats a rollout) towards `target`.

    A batch changes it by at most a fifth of `rollouts / horizon`. Ziegler et al. 2019, §2.2, where that ratio is K.
    """
    error = min(max(kl / target - 1, -_LARGEST_ERROR), _LARGEST_ERROR)
    return kl_coef * (1 + error * rollouts / horizon)
