"""What `spec.training` means for PPO, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from executors.training.ppo.settings import PPOConfig


def settings(tmp_path: Path, **values: Any) -> PPOConfig:
    return PPOConfig(output_dir=str(tmp_path), use_cpu=True, **values)


@pytest.mark.parametrize(
    ("values", "rollouts", "mini_batch"),
    [
        ({}, 8, 8),
        ({"gradient_accumulation_steps": 3}, 24, 24),
        ({"num_mini_batches": 4}, 8, 2),
        ({"mini_batch_size": 2}, 8, 2),
        ({"mini_batch_size": 4, "num_mini_batches": 2}, 8, 4),
    ],
)
def test_sizes(tmp_path: Path, values: Any, rollouts: int, mini_batch: int) -> None:
    config = settings(tmp_path, **values)
    assert (config.rollouts, config.local_mini_batch) == (rollouts, mini_batch)


@pytest.mark.parametrize(
    ("values", "limit", "target"),
    [
        ({}, None, None),
        ({"target_kl": 0.1}, 0.1, None),
        ({"target_kl": 0.1, "early_stopping": False}, None, None),
        ({"adap_kl_ctrl": True}, None, 6.0),
        ({"adap_kl_ctrl": True, "target_kl": 2}, None, 2.0),
        ({"adap_kl_ctrl": True, "target": 3, "target_kl": 0.1, "early_stopping": True}, 0.1, 3.0),
    ],
)
def test_what_target_kl_does(tmp_path: Path, values: Any, limit: float | None, target: float | None) -> None:
    config = settings(tmp_path, **values)
    assert (config.kl_limit, config.kl_target) == (limit, target)


def test_keys_without_effect_are_told(tmp_path: Path) -> None:
    assert settings(tmp_path, target_kl=0.1).unread == []
    assert settings(tmp_path, target_kl=2, adap_kl_ctrl=True).unread == []
    (one,) = settings(tmp_path, target_kl=0.1, early_stopping=False).unread
    assert "target_kl is not used" in one
    assert "target is not used" in settings(tmp_path, target=6).unread[0]


def test_numbers_may_be_written_as_yaml_reads_them(tmp_path: Path) -> None:
    assert settings(tmp_path, gamma="99e-2").gamma == 0.99


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"gamma": 1.5}, r"gamma is 1.5, not in 0..1"),
        ({"cliprange": "wide"}, "cliprange is 'wide', which is no number"),
        ({"lam": -1}, "lam is -1, not in 0..1"),
        ({"horizon": 0}, "horizon is 0, not at least 1"),
        ({"mini_batch_size": 3}, "mini_batch_size 3 does not divide the 8 rollouts"),
        ({"num_mini_batches": 16}, "num_mini_batches 16 does not divide the 8 rollouts"),
        ({"mini_batch_size": 2, "num_mini_batches": 2}, "is not the 8 rollouts"),
        ({"early_stopping": True}, "no target_kl to stop at"),
    ],
)
def test_faults(tmp_path: Path, values: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        settings(tmp_path, **values)
