"""An interrupted training goes on where it was, and ends with the same losses."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from executors.base import Result
from executors.host import execute
from executors.job import Job
from executors.training.checkpoints import MARKER, is_complete, mark_complete, newest_complete
from tests.executors.conftest import MakeJob, result_of, run_host, start_host

ROWS = [{"prompt": f"n{i}", "response": str(i * 7)} for i in range(64)]
STEPS = 40


def training_job(job: MakeJob, task_type: str, name: str, **training: Any) -> Job:
    settings = {"max_steps": STEPS, "learning_rate": 1e-3, "per_device_train_batch_size": 4, "logging_steps": 4}
    spec = {"data": {"prompts": ROWS}, "training": settings | training, "lora": {"r": 8, "dropout": 0.1}}
    if task_type == "sft":
        del spec["lora"]
    return job(task_type, spec, name=name)


def losses(job: Job) -> dict[int, float]:
    return losses_of(Result.model_validate(result_of(job)))


def losses_of(result: Result) -> dict[int, float]:
    history = result.payload["log_history"]
    return {line["step"]: line["loss"] for line in history if "loss" in line}


def kill_after(job: Job, step: int, number: signal.Signals) -> int:
    """Signal the host as soon as it is at a step with a complete checkpoint; returns its exit code."""
    process = start_host(job)
    end = time.monotonic() + 120
    while not any(
        is_complete(path) and int(path.name.split("-")[1]) >= step for path in (job.out / "checkpoints").glob("*-*")
    ):
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(number)
    return process.wait(timeout=60)


def checkpoints_from(folder: Path, step: int) -> list[Path]:
    return [path for path in folder.glob("checkpoint-*") if int(path.name.split("-")[1]) >= step]


@pytest.mark.slow
@pytest.mark.parametrize("task_type", ["lora_sft", pytest.param("sft", marks=pytest.mark.exhaustive)])
def test_kill_nine_at_half_then_the_same_losses(job: MakeJob, task_type: str) -> None:
    whole = training_job(job, task_type, "whole")
    assert run_host(whole)[0] == 0
    cut = training_job(job, task_type, "cut")
    assert kill_after(cut, STEPS // 2, signal.SIGKILL) == -signal.SIGKILL
    assert not (cut.out / "result.json").exists()
    assert run_host(cut)[0] == 0
    resumed_from = result_of(cut)["payload"]["resume_from_path"]
    assert int(Path(resumed_from).name.split("-")[1]) >= STEPS // 2
    assert losses(cut) == pytest.approx(losses(whole), rel=1e-6)
    assert result_of(cut)["metrics"]["train_loss"] == pytest.approx(result_of(whole)["metrics"]["train_loss"], rel=1e-6)
    assert result_of(cut)["metadata"]["weights_digest"] == result_of(whole)["metadata"]["weights_digest"]


def test_sigterm_writes_a_checkpoint_and_the_next_attempt_goes_on(job: MakeJob) -> None:
    one = training_job(job, "lora_sft", "term", max_steps=600, save_steps=500)
    process = start_host(one)
    progress = one.out / "logs" / "progress.jsonl"
    end = time.monotonic() + 60
    while not (progress.exists() and '"steps"' in progress.read_text()):
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    checkpoint = newest_complete(one.out / "checkpoints")
    assert checkpoint is not None
    step = int(checkpoint.name.split("-")[1])
    assert 0 < step < 500
    assert not (one.out / "result.json").exists() and not (one.out / "error.json").exists()
    assert run_host(one)[0] == 0
    assert result_of(one)["payload"]["resume_from_path"] == str(checkpoint)
    assert result_of(one)["payload"]["metrics"]["steps"] == 600


def test_fresh_starts_over(job: MakeJob) -> None:
    one = training_job(job, "lora_sft", "fresh", max_steps=4)
    execute(one)
    assert execute(one.model_copy(update={"fresh": True})).payload["resume_from_path"] is None


def test_resume_from_path_of_another_run(job: MakeJob) -> None:
    first = training_job(job, "lora_sft", "first", save_steps=20)
    expected = losses_of(execute(first))
    kept = sorted(path.name for path in (first.out / "checkpoints").glob("checkpoint-*"))
    assert kept == ["checkpoint-20", "checkpoint-40"]
    shutil.rmtree(first.out / "checkpoints" / "checkpoint-40")
    second = training_job(job, "lora_sft", "second", save_steps=20, resume_from_path=str(first.out / "checkpoints"))
    assert losses_of(execute(second)) == pytest.approx(expected, rel=1e-6)


def test_save_total_limit(job: MakeJob) -> None:
    one = training_job(job, "lora_sft", "limit", save_steps=5, save_total_limit=2)
    execute(one)
    kept = sorted(path.name for path in (one.out / "checkpoints").glob("checkpoint-*"))
    assert kept == ["checkpoint-35", "checkpoint-40"]


def test_half_written_checkpoint_is_skipped(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"x" * 100)
        if step != 15:
            mark_complete(folder)
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-15").exists()
    (tmp_path / "checkpoint-10" / "model.safetensors").write_bytes(b"x" * 50)
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-5"
    (tmp_path / "checkpoint-5" / MARKER).write_text(json.dumps({}))
    assert newest_complete(tmp_path) is None


def test_killed_after_the_last_step_trains_no_further(job: MakeJob) -> None:
    one = training_job(job, "lora_sft", "done")
    before = execute(one)
    shutil.rmtree(one.out / "final_lora")
    again = execute(one)
    assert again.payload["metrics"]["steps"] == STEPS
    assert losses_of(again) == losses_of(before)
    assert again.metadata["weights_digest"] == before.metadata["weights_digest"]
