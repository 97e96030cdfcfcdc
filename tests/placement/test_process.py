"""Work in its own process group: watched while it runs, and ended as a whole."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from executors.group import end_group
from executors.progress import ProgressTail
from mloc_dagster.placement.local.process import Ended, last_lines, run_job
from mloc_dagster.spec.base import Json
from tests.waiting import wait_for

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(99)"])
print(child.pid, flush=True)
time.sleep(99)
"""  # noqa: E501


def job_of(folder: Path, raw: dict[str, Json]) -> Path:
    out = folder / "out"
    out.mkdir()
    job = {"task_id": "1/s", "task_name": "t", "stage": "s", "raw": raw, "out": str(out), "on_cpu": True}
    (out / "job.json").write_text(json.dumps(job))
    return out / "job.json"


def run(job: Path, cancelled: Callable[[], bool] = lambda: False, timeout: float | None = None, **more: Any) -> Ended:
    report = more.get("report", lambda progress: None)
    return run_job(job, job.parent / "logs", report=report, cancelled=cancelled, timeout=timeout)


def pids(job: Path) -> list[int]:
    """Of the work and of its child process, once they are there."""
    file = job.parent / "pids"
    wait_for(lambda: file.is_file() and len(file.read_text().split()) == 2, "the work to start")
    return [int(pid) for pid in file.read_text().split()]


def gone(numbers: list[int]) -> bool:
    return not any(psutil.pid_exists(n) and psutil.Process(n).status() != psutil.STATUS_ZOMBIE for n in numbers)


def test_a_job_runs_to_its_end_and_tells_its_progress(tmp_path: Path) -> None:
    job = job_of(tmp_path, {"task_type": "echo", "echo": "hello"})
    logs = job.parent / "logs"
    logs.mkdir()
    (logs / "progress.jsonl").write_text('{"done": 99}\n')  # of an earlier attempt
    seen: list[dict[str, Json]] = []
    assert run(job, report=seen.append) == Ended(0)
    assert json.loads((job.parent / "result.json").read_text())["payload"] == {"ok": True, "echo": "hello"}
    assert [(entry["done"], entry["total"], entry["unit"]) for entry in seen] == [(1, 1, "rows")]


def test_it_is_not_given_the_settings_of_dagster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_ANYTHING", "x")
    monkeypatch.setenv("OTHER_NAME", "there")
    job = job_of(tmp_path, {"task_type": "echo", "echo": ["${OTHER_NAME}", "${DAGSTER_ANYTHING}"]})
    assert run(job).code != 0
    error = json.loads((job.parent / "error.json").read_text())
    assert error["kind"] == "user" and "${DAGSTER_ANYTHING} is not set" in error["message"]
    assert "is not set" in last_lines(job.parent / "logs" / "stdout.log")


def test_a_cancelled_job_is_ended_with_its_children(tmp_path: Path, nap: None) -> None:
    job = job_of(tmp_path, {"task_type": "nap", "plugin": {"seconds": 60}})
    ended = run(job, cancelled=lambda: len(pids(job)) == 2)
    assert ended.cancelled and not ended.timed_out and ended.code != 0
    assert gone(pids(job)) and not (job.parent / "result.json").exists()


def test_a_job_that_takes_too_long_is_ended_with_its_children(tmp_path: Path, nap: None) -> None:
    job = job_of(tmp_path, {"task_type": "nap", "plugin": {"seconds": 60}})
    started: list[int] = []
    thread = threading.Thread(target=lambda: started.extend(pids(job)))
    thread.start()
    assert run(job, timeout=4).timed_out
    thread.join()
    assert gone(started)


def test_an_interruption_of_the_watcher_ends_the_work(tmp_path: Path, nap: None) -> None:
    job = job_of(tmp_path, {"task_type": "nap", "plugin": {"seconds": 60}})

    def interrupted() -> bool:
        pids(job)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(job, cancelled=interrupted)
    assert gone(pids(job))


def test_what_ignores_a_request_to_end_is_killed_after_the_grace() -> None:
    child = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, start_new_session=True)
    assert child.stdout is not None
    grandchild = int(child.stdout.readline())
    begun = time.monotonic()
    assert end_group(child, 0.5) == -9
    assert 0.5 <= time.monotonic() - begun < 10
    wait_for(lambda: gone([child.pid, grandchild]), "the group to end", 10)
    child.stdout.close()


def test_only_whole_lines_that_are_objects_are_progress(tmp_path: Path) -> None:
    path, seen = tmp_path / "progress.jsonl", []
    tail = ProgressTail(path)
    tail.read(seen.append)
    for text, count in (('{"done": 1}\n{"do', 1), ('ne": 2}\n', 2), ('not json\n[3]\n7\n{"done": 3}\n', 3)):
        with path.open("a") as file:
            file.write(text)
        tail.read(seen.append)
        assert [entry["done"] for entry in seen] == list(range(1, count + 1))


def test_the_last_lines_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"\xff\n" + b"".join(b"line %d\n" % n for n in range(100_000)))
    assert last_lines(log, 2) == "line 99998\nline 99999"
    assert len(last_lines(log).splitlines()) == 30
    assert last_lines(tmp_path / "none") == ""
