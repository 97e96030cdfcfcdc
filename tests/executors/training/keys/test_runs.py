"""Keys that are ours: short trainings of each trainer show what they change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from executors.base import ExecutorError, Result
from executors.host import execute
from tests.executors.training.keys.capture import job_of
from tests.executors.training.keys.files import loaded, with_keys
from tests.executors.training.keys.table import DPO, GRPO, LORA_SFT, PPO, REWARD, SAMPLING, SFT, TRAINERS

SHORT = {"training.batch_size": 8, "training.learning_rate": 1e-3, "training.logging_steps": 1}
STEPS_OF_EPOCH = dict.fromkeys(TRAINERS, 1) | {GRPO: 8}
"""Eight rows in batches of eight; GRPO answers one prompt eight times."""


def train(trainer: str, out: Path, model: Path, **given: Any) -> Result:
    """Train on a file with these keys."""
    few = {"generation.max_new_tokens": 4} if trainer in SAMPLING else {}
    keys = {name if "." in name else f"training.{name}": value for name, value in given.items()}
    return execute(job_of(loaded(with_keys(trainer, SHORT | few | keys)), out, model))


def checkpoints(out: Path) -> list[str]:
    return sorted(path.name.removeprefix("checkpoint-") for path in (out / "checkpoints").glob("checkpoint-*"))


def losses(result: Result) -> list[float]:
    return [line["loss"] for line in result.payload["log_history"] if "loss" in line]


@pytest.fixture(scope="module", params=TRAINERS)
def saved(request: pytest.FixtureRequest, blank: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A trainer, and what three steps of it left that were saved as a file asked."""
    out = tmp_path_factory.mktemp("saved") / "out"
    found = train(request.param, out, blank, max_steps=3, save_freq=1, save_total_limit=2, save_model=False)
    assert not {"final_model_path", "final_lora_path"} & set(found.payload)
    (out / "losses.txt").write_text(" ".join(map(str, losses(found))))
    return request.param, out


def test_what_is_saved(saved: tuple[str, Path], blank: Path, tmp_path: Path) -> None:
    """save_steps, save_total_limit and save_model; without them the newest of what comes by itself, and the weights."""
    trainer, out = saved
    assert checkpoints(out) == ["2", "3"] and not list(out.glob("final_*"))
    plain = train(trainer, tmp_path / "plain", blank, max_steps=3)
    assert checkpoints(tmp_path / "plain") == ["3"]
    assert plain.payload["final_lora_path" if trainer == LORA_SFT else "final_model_path"]


def test_training_goes_on_from_a_path(saved: tuple[str, Path], blank: Path, tmp_path: Path) -> None:
    trainer, out = saved
    path = str(out / "checkpoints" / "checkpoint-2")
    found = train(trainer, tmp_path / "on", blank, max_steps=3, resume_from_path=path, save_strategy="no")
    assert found.payload["resume_from_path"] == path and checkpoints(tmp_path / "on") == []
    expected = [float(text) for text in (out / "losses.txt").read_text().split()]
    assert len(expected) == 3 and losses(found) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_when_it_is_saved(trainer: str, blank: Path, tmp_path: Path) -> None:
    """At the end of each of two epochs, whose steps follow from num_train_epochs; not by `save_strategy: steps`."""
    one = STEPS_OF_EPOCH[trainer]
    found = train(trainer, tmp_path / "out", blank, num_train_epochs=2, save_strategy="epoch")
    assert found.payload["metrics"]["steps"] == 2 * one
    assert checkpoints(tmp_path / "out") == sorted((str(one), str(2 * one)))


@pytest.mark.parametrize("trainer", [DPO, REWARD, PPO])
def test_dropout_that_the_trainer_turns_off_is_told(trainer: str, blank: Path, tmp_path: Path) -> None:
    given = {"max_steps": 1, "lora.dropout": 0.3, "lora.r": 2}
    told = "lora.dropout 0.3 is not applied: training.disable_dropout is true"
    assert told in train(trainer, tmp_path / "off", blank, **given).metadata["warnings"]
    on = train(trainer, tmp_path / "on", blank, **given, disable_dropout=False)
    assert told not in on.metadata["warnings"]


def test_an_adapter_that_is_trained_on_keeps_its_settings(blank: Path, tmp_path: Path) -> None:
    first = train(SFT, tmp_path / "first", blank, **{"max_steps": 1, "lora.r": 4, "lora.target_modules": ["q_proj"]})
    load = {"checkpoint.load.path": first.payload["final_lora_path"], "max_steps": 1}
    asked = {"lora.r": 8, "lora.alpha": 32, "lora.target_modules": ["q_proj", "v_proj"]}
    told = train(SFT, tmp_path / "second", blank, **load, **asked).metadata["warnings"]
    end = "is not used: the adapter of checkpoint.load has"
    assert told == [f"lora.r 8 {end} 4", f"lora.target_modules ['q_proj', 'v_proj'] {end} ['q_proj']"]
    same = {"lora.r": 4, "lora.target_modules": "all-linear"}
    assert train(SFT, tmp_path / "third", blank, **load, **same).metadata["warnings"] == []


@pytest.mark.parametrize("trainer", [SFT, DPO])
def test_an_adapter_beside_full_training_is_told(trainer: str, blank: Path, tmp_path: Path) -> None:
    found = train(trainer, tmp_path, blank, **{"max_steps": 1, "lora.r": 4, "model.adapter.type": "full"})
    assert "lora is not used: model.adapter.type is full" in found.metadata["warnings"]
    assert "final_model_path" in found.payload


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"lora.target_modules": ["nowhere"]}, "(?i)target.modules"),
        ({"lora.task_type": "NOTHING"}, "NOTHING"),
        ({"lr_scheduler_type": "zigzag"}, "zigzag"),
    ],
)
def test_a_value_that_the_library_refuses_is_told(
    trainer: str, given: dict[str, Any], fault: str, blank: Path, tmp_path: Path
) -> None:
    if trainer == "reward" and "lora.task_type" in given:  # its head is a classifier's, whatever the file says
        warnings = train(trainer, tmp_path, blank, max_steps=1, **given).metadata["warnings"]
        assert any(fault in str(warning) for warning in warnings)
        return
    with pytest.raises(ExecutorError, match=fault):
        train(trainer, tmp_path, blank, max_steps=1, **given)
