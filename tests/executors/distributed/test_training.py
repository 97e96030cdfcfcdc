"""Several processes train as one: the same losses, one result, one checkpoint; and end together."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from executors.job import Job
from executors.training.checkpoints import newest_complete
from tests.executors.conftest import MakeJob, error_of, result_of, run_host, start_host

ROWS = [{"prompt": f"n{i}", "response": str(i * 7)} for i in range(64)]
STEPS = 12

pytestmark = pytest.mark.slow


def training_job(job: MakeJob, name: str, replicas: int = 1, **training: Any) -> Job:
    settings = {"max_steps": STEPS, "learning_rate": 1e-3, "logging_steps": 2, "per_device_train_batch_size": 4}
    spec = {
        "data": {"prompts": ROWS}, "training": settings | training, "lora": {"r": 8, "dropout": 0.0},
        "resources": {"replicas": replicas},
    }  # fmt: skip
    return job("lora_sft", spec, name=name)


def losses(job: Job) -> dict[int, float]:
    history = result_of(job)["payload"]["log_history"]
    return {line["step"]: line["loss"] for line in history if "loss" in line}


def test_two_processes_learn_as_one_with_the_same_global_batch(job: MakeJob) -> None:
    one = training_job(job, "one")
    assert run_host(one)[0] == 0
    two = training_job(job, "two", per_device_train_batch_size=2, nproc_per_node=2)
    code, output = run_host(two)
    assert code == 0, output
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    result = result_of(two)
    assert result["payload"]["world_size"] == result["metadata"]["world_size"] == 2
    assert result_of(one)["metadata"]["world_size"] == 1
    assert (two.out / "logs" / "rank-1.log").exists()
    groups = training_job(job, "groups", per_device_train_batch_size=2, replicas=2)  # two torchruns that meet
    code, output = run_host(groups)
    assert code == 0, output
    assert losses(groups) == losses(two)


def test_sigterm_ends_all_at_one_step_and_the_next_attempt_goes_on(job: MakeJob) -> None:
    long = training_job(job, "term", nproc_per_node=2, max_steps=400, save_steps=1000)
    process = start_host(long)
    wait_for(long.out / "logs" / "progress.jsonl", '"steps"')
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    checkpoint = newest_complete(long.out / "checkpoints")
    assert checkpoint is not None and {"rng_state_0.pth", "rng_state_1.pth"} <= {p.name for p in checkpoint.iterdir()}
    assert 0 < int(checkpoint.name.split("-")[1]) < 400
    assert run_host(long)[0] == 0
    assert result_of(long)["payload"]["resume_from_path"] == str(checkpoint)
    assert result_of(long)["payload"]["metrics"]["steps"] == 400


def test_a_killed_process_ends_all_and_is_told(job: MakeJob) -> None:
    long = training_job(job, "killed", nproc_per_node=2, max_steps=5000)
    process = start_host(long)
    wait_for(long.out / "logs" / "progress.jsonl", '"steps"')
    family = psutil.Process(process.pid).children(recursive=True)
    ranks = [child for child in family if "executors.distributed.worker" in child.cmdline()]
    next(child for child in ranks if child.environ().get("RANK") == "1").kill()
    assert process.wait(timeout=90) == 1
    assert "training process 1 was killed" in error_of(long)["message"]
    psutil.wait_procs(family, timeout=10)
    assert not [child for child in family if child.is_running()]


def test_the_host_takes_its_processes_along(job: MakeJob) -> None:
    long = training_job(job, "orphans", nproc_per_node=2, max_steps=5000)
    process = start_host(long)
    wait_for(long.out / "logs" / "progress.jsonl", '"steps"')
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    psutil.wait_procs(family, timeout=60)
    assert not [child for child in family if child.is_running()]


def test_a_fault_of_the_user_is_told_once_without_a_traceback(job: MakeJob) -> None:
    bad = training_job(job, "bad", nproc_per_node=2)
    raw = {**bad.raw, "data": {"prompts": [{"prompt": "a", "response": 7}]}}
    assert run_host(bad.model_copy(update={"raw": raw}))[0] == 2
    assert "row 0: 'response' is 7" in error_of(bad)["message"]


def wait_for(file: Path, text: str) -> None:
    end = time.monotonic() + 120
    while not (file.exists() and text in file.read_text()):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    "task_type", [*(pytest.param(one, marks=pytest.mark.exhaustive) for one in ("reward", "dpo")), "grpo"]
)
def test_other_trainers_in_two_processes(job: MakeJob, task_type: str) -> None:
    pairs = [{"prompt": f"n{i}", "chosen": str(i * 7), "rejected": str(i * 3)} for i in range(1, 33)]
    data = {"prompts": [{"prompt": row["prompt"]} for row in pairs]} if task_type == "grpo" else {"preferences": pairs}
    spec = {"data": data, "training": {"max_steps": 4, "learning_rate": 1e-3, "logging_steps": 1}}
    if task_type == "grpo":
        spec |= {"reward_model": {"type": "function", "identifier": "length"}, "generation": {"max_new_tokens": 6}}
        spec["training"] |= {"num_generations": 2}
    told = {}
    for name, processes in (("one", 1), ("two", 2)):
        training = {**spec["training"], "per_device_train_batch_size": 4 // processes, "nproc_per_node": processes}
        made = job(task_type, {**spec, "training": training}, name=f"{task_type}-{name}")
        code, output = run_host(made)
        assert code == 0, output
        assert result_of(made)["payload"]["world_size"] == processes
        told[name] = losses(made)
    assert len(told["two"]) == 4
    if task_type != "grpo":  # two processes sample with random numbers of their own
        assert told["two"] == pytest.approx(told["one"], rel=1e-3)
