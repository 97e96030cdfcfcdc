"""Rewards, advantages and whitening against the formulas, written out for one answer at a time."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from executors.training.ppo.advantages import adapted, generalized_advantages, token_rewards, whitened

LENGTHS = (5, 1, 3)
"""Tokens of three answers; all are padded to five."""


def drawn(seed: int) -> list[list[float]]:
    draw = random.Random(seed)
    return [[draw.uniform(-2, 2) for _ in range(length)] for length in LENGTHS]


def tensor(rows: list[list[float]], padding: float = 99.0) -> Tensor:
    """Rows padded on the right with what must not count."""
    return torch.tensor([row + [padding] * (max(LENGTHS) - len(row)) for row in rows], dtype=torch.float64)


MASK = tensor([[1.0] * length for length in LENGTHS], padding=0.0).long()


def unpadded(found: Tensor) -> list[list[float]]:
    assert torch.all(found[MASK == 0] == 0)
    return [row[:length] for row, length in zip(found.tolist(), LENGTHS, strict=True)]


def test_the_score_is_at_the_last_token_and_the_divergence_at_all() -> None:
    logprobs, reference, scores = drawn(1), drawn(2), [1.0, -2.0, 0.5]
    found = token_rewards(torch.tensor(scores, dtype=torch.float64), tensor(logprobs), tensor(reference), MASK, 0.3)
    expected = [[-0.3 * (p - q) for p, q in zip(*pair, strict=True)] for pair in zip(logprobs, reference, strict=True)]
    for row, score in zip(expected, scores, strict=True):
        row[-1] += score
    assert unpadded(found) == [pytest.approx(row) for row in expected]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.7, 0.0)])
def test_generalized_advantages(gamma: float, lam: float) -> None:
    rewards, values = drawn(3), drawn(4)
    advantages, returns = generalized_advantages(tensor(rewards, 0.0), tensor(values), MASK, gamma, lam)
    expected = [plain_advantages(*pair, gamma, lam) for pair in zip(rewards, values, strict=True)]
    assert unpadded(advantages) == [pytest.approx(row) for row in expected]
    learned = [[a + v for a, v in zip(*pair, strict=True)] for pair in zip(expected, values, strict=True)]
    assert unpadded(returns) == [pytest.approx(row) for row in learned]


def plain_advantages(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """The sum of discounted errors, term by term (Schulman et al. 2016, eq. 16)."""
    after = [*values[1:], 0.0]
    errors = [r + gamma * v_next - v for r, v, v_next in zip(rewards, values, after, strict=True)]
    return [
        sum((gamma * lam) ** (later - place) * errors[later] for later in range(place, len(errors)))
        for place in range(len(errors))
    ]


@pytest.mark.parametrize("shift", [True, False])
def test_whitened_over_unmasked_tokens_of_all_processes(shift: bool) -> None:
    rows = drawn(5)
    flat = [value for row in rows for value in row]
    mean = sum(flat) / len(flat)
    deviation = (sum((value - mean) ** 2 for value in flat) / len(flat)) ** 0.5
    expected = [[(value - mean) / deviation + (0 if shift else mean) for value in row] for row in rows]
    alone = whitened(tensor(rows), MASK, lambda value: value, shift=shift)
    assert unpadded(alone) == [pytest.approx(row, rel=1e-6) for row in expected]
    twins = whitened(tensor(rows), MASK, lambda value: 2 * value, shift=shift)
    torch.testing.assert_close(twins, alone)


def test_equal_advantages_stay_finite() -> None:
    assert torch.all(whitened(torch.ones(2, 3), torch.ones(2, 3), lambda value: value) == 0)


def test_the_coefficient_follows_the_divergence() -> None:
    assert adapted(0.2, kl=6.0, target=6.0, rollouts=100, horizon=1000) == pytest.approx(0.2)
    assert adapted(0.2, kl=6.6, target=6.0, rollouts=100, horizon=1000) == pytest.approx(0.2 * 1.01)
    assert adapted(0.2, kl=60.0, target=6.0, rollouts=100, horizon=1000) == pytest.approx(0.2 * 1.02)
    assert adapted(0.2, kl=-1.0, target=6.0, rollouts=100, horizon=1000) == pytest.approx(0.2 * 0.98)
