"""Shards end with their stage, and a stage goes on where it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from executors.host import execute
from executors.job import Job
from executors.stopping import STOPPED
from tests.executors.conftest import ENVIRONMENT, ROOT
from tests.executors.sharding.conftest import ASLEEP, inference_job

Notes = Callable[[], list[int]]


def started(job: Job) -> subprocess.Popen[bytes]:
    job.out.mkdir()
    path = job.out / "job.json"
    path.write_text(job.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "tests.executors.sharding.fake_host", str(path)]
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT | {"MLOC_ENGINE_IDLE": "9"}, start_new_session=True)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def rows_of(out: Path) -> int:
    return sum(path.read_text().count('"row"') for path in out.glob(".cache/shards/*/.cache/rows.jsonl"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, STOPPED), (signal.SIGKILL, -signal.SIGKILL)])
@pytest.mark.parametrize("whole_group", [True, False])
def test_shards_end_with_their_stage_and_the_next_run_goes_on(
    notes: Notes, tmp_path: Path, number: signal.Signals, code: int, whole_group: bool
) -> None:
    prompts = ["a", f"{ASLEEP} 1", "c", "d", f"{ASLEEP} 2", "f"]
    job = inference_job(tmp_path / "out", {"items": prompts}, 2)
    host = started(job)
    until(lambda: rows_of(job.out) >= 2 and {1, 4} <= set(notes()))
    shards = psutil.Process(host.pid).children()
    assert len(shards) == 2
    os.killpg(host.pid, number) if whole_group else host.send_signal(number)
    assert host.wait(30) == code
    until(lambda: not any(shard.is_running() and shard.status() != psutil.STATUS_ZOMBIE for shard in shards))
    kept, before = rows_of(job.out), len(notes())
    result = execute(job)
    assert len(notes()) - before == len(prompts) - kept and kept >= 2
    assert [item["index"] for item in result.payload["items"]] == list(range(6))


def test_a_shard_that_is_killed_from_outside_is_tried_again_alone(notes: Notes, tmp_path: Path) -> None:
    job = inference_job(tmp_path / "out", {"items": ["a", f"{ASLEEP} 1", "c", f"{ASLEEP} 2"]}, 2)
    host = started(job)
    until(lambda: {1, 3} <= set(notes()))
    psutil.Process(host.pid).children()[0].kill()
    assert host.wait(60) == 0
    assert sorted(notes()) in ([0, 1, 1, 2, 3], [0, 1, 2, 3, 3])
