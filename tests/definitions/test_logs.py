"""The log of a run: whole lines and letters wherever blocks end; a replay has its task's output; no link leads out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import DagsterInstance, DagsterRun

from mloc_dagster.definitions import logs
from mloc_dagster.definitions.execution import REPLAY_OF, TASK_ID
from mloc_dagster.definitions.instance import open_instance
from mloc_dagster.definitions.logs import TaskLog
from mloc_dagster.store.home import Home


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DagsterInstance]:
    home = Home(tmp_path / "home")
    monkeypatch.setenv("MLOC_HOME", str(home.root))
    monkeypatch.setenv("DAGSTER_HOME", str(home.dagster))
    with open_instance(home) as found:
        yield found


def run_of(instance: DagsterInstance, before: DagsterRun | None = None) -> DagsterRun:
    tags = {TASK_ID: before.run_id, REPLAY_OF: before.run_id} if before else {}
    parent = before.run_id if before else None
    return instance.run_storage.add_run(DagsterRun(job_name="j", tags=tags, parent_run_id=parent, root_run_id=parent))


def written(instance: DagsterInstance, run: DagsterRun, data: bytes, stage: str = "a") -> Path:
    path = Home.current().run_folder(run.run_id, stage) / "logs" / "stdout.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_lines_and_letters_are_whole_wherever_they_were_cut(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_BLOCK", 3)
    run = run_of(instance)
    text = "größer ✓\r\nzwei\n\ndrei ohne Ende"
    data = text.encode()
    log, path, found = TaskLog(instance, Home.current(), run.run_id, "a"), written(instance, run, b""), []
    for end in range(0, len(data) + 1, 2):
        path.write_bytes(data[:end])
        found += log.new()
    path.write_bytes(data)
    assert [*found, *log.new(last=True)] == [f"a | {line}" for line in text.splitlines()]
    path.write_bytes(b"anew\n")
    assert list(log.new(last=True)) == ["a | anew"]


def test_a_replay_has_the_output_of_its_task(instance: DagsterInstance) -> None:
    first = run_of(instance)
    again = run_of(instance, first)
    written(instance, first, b"done before\n")
    work = Home.current().work / "digest"
    (work / "logs").mkdir(parents=True)
    (work / "logs" / "stdout.log").write_text("goes on\n")
    (work / "job.json").write_text(json.dumps({"task_id": f"{first.run_id}/b"}))
    assert list(TaskLog(instance, Home.current(), again.run_id).new()) == ["a | done before", "b | goes on"]
    assert list(TaskLog(instance, Home.current(), again.run_id, "b").new()) == ["b | goes on"]


def test_a_log_that_is_a_link_to_elsewhere_tells_nothing(instance: DagsterInstance, tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("secret\n")
    run = run_of(instance)
    path = written(instance, run, b"")
    path.unlink()
    path.symlink_to(secret)
    assert list(TaskLog(instance, Home.current(), run.run_id).new(last=True)) == []


def test_a_line_without_end_is_not_held_for_ever(instance: DagsterInstance) -> None:
    run = run_of(instance)
    written(instance, run, b"x" * 300_000)
    found = list(TaskLog(instance, Home.current(), run.run_id).new())
    assert sum(len(line) - len("a | ") for line in found) > 200_000 and max(map(len, found)) < 200_000
