"""Both losses against the formulas, written out token by token."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from executors.training.ppo.losses import policy_loss, value_loss

COUNT = 40


def drawn(seed: int, spread: float) -> list[float]:
    draw = random.Random(seed)
    return [draw.gauss(0, spread) for _ in range(COUNT)]


def padded(values: list[float]) -> Tensor:
    """Two rows, each with two tokens of padding that must not count."""
    rows = torch.tensor(values, dtype=torch.float64).reshape(2, -1)
    return torch.nn.functional.pad(rows, (0, 2), value=3.0)


MASK = torch.nn.functional.pad(torch.ones(2, COUNT // 2), (0, 2)).long()


def test_policy_loss() -> None:
    now, old, advantages, clip = drawn(1, 0.4), drawn(2, 0.1), drawn(3, 1.0), 0.2
    loss, approx_kl, clipped = 0.0, 0.0, 0
    for p, q, a in zip(now, old, advantages, strict=True):
        ratio = math.exp(p - q)
        bound = min(max(ratio, 1 - clip), 1 + clip)
        loss += -min(ratio * a, bound * a)
        clipped += bound * a < ratio * a
        approx_kl += ratio - 1 - (p - q)
    found = policy_loss(padded(now), padded(old), padded(advantages), MASK, clip)
    assert float(found.loss) == pytest.approx(loss)
    assert float(found.approx_kl) == pytest.approx(approx_kl)
    assert int(found.clipped) == clipped > 5


def test_value_loss() -> None:
    now, old, returns, clip = drawn(4, 1.0), drawn(5, 1.0), drawn(6, 1.0), 0.2
    loss, clipped = 0.0, 0
    for v, before, target in zip(now, old, returns, strict=True):
        near = before + min(max(v - before, -clip), clip)
        loss += 0.5 * max((v - target) ** 2, (near - target) ** 2)
        clipped += (near - target) ** 2 > (v - target) ** 2
    found = value_loss(padded(now), padded(old), padded(returns), MASK, clip)
    assert float(found.loss) == pytest.approx(loss)
    assert int(found.clipped) == clipped > 5


def test_a_token_that_has_gained_enough_has_no_gradient() -> None:
    logprobs = torch.tensor([[0.5, 0.5, -0.5, 0.0]], requires_grad=True)
    advantages = torch.tensor([[1.0, -1.0, -1.0, 1.0]])
    policy_loss(logprobs, torch.zeros(1, 4), advantages, torch.ones(1, 4), 0.2).loss.backward()
    assert logprobs.grad is not None
    gradient = logprobs.grad[0].tolist()
    assert gradient[0] == gradient[2] == 0
    assert gradient[1] == pytest.approx(math.exp(0.5)) and gradient[3] == pytest.approx(-1.0)


def test_at_the_sampling_policy_the_divergence_is_zero() -> None:
    logprobs = padded(drawn(7, 1.0))
    found = policy_loss(logprobs, logprobs, padded(drawn(8, 1.0)), MASK, 0.2)
    assert float(found.approx_kl) == int(found.clipped) == 0
