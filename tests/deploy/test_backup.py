"""Backup and restore of a deployment in use: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus

from mloc_dagster.definitions.instance import open_instance
from mloc_dagster.definitions.submit import submit_file
from mloc_dagster.plan import compile_plan
from mloc_dagster.spec import load_file
from mloc_dagster.store.home import Home
from tests.cli.conftest import processes_of
from tests.definitions.conftest import get, home, installed, nap, status, write
from tests.definitions.test_daemon import NAP, daemon, queued_home
from tests.docker_engine import ROOT
from tests.postgres import missing, postgres_server
from tests.waiting import wait_for

__all__ = ["home", "installed", "nap", "queued_home"]
BACKUP, RESTORE = ROOT / "deploy" / "backup.sh", ROOT / "deploy" / "restore.sh"


@pytest.fixture(params=["postgres", pytest.param("sqlite", marks=pytest.mark.exhaustive)])
def database(request: pytest.FixtureRequest, queued_home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The home keeps its runs in a database; gives the address of an empty one on another server, for the restore."""
    if request.param == "sqlite":
        monkeypatch.delenv("DATABASE_URL", raising=False)
        yield ""
        return
    if missing():
        pytest.skip(missing())
    settings = yaml.safe_load((queued_home.dagster / "dagster.yaml").read_text())
    settings["storage"] = {
        "custom": {
            "module": "mloc_dagster.store.postgres",
            "class": "PostgresStorage",
            "config": {"postgres_url": {"env": "DATABASE_URL"}},
        }
    }
    (queued_home.dagster / "dagster.yaml").write_text(yaml.safe_dump(settings))
    with postgres_server() as first, postgres_server() as second:
        monkeypatch.setenv("DATABASE_URL", first.database("mloc"))
        yield second.database("mloc")


def script(file: Path, *arguments: object, code: int = 0) -> str:
    done = subprocess.run([str(file), *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    return (done.stdout if code == 0 else done.stderr).strip()


def submit(instance: DagsterInstance, home: Home, name: str, seconds: float) -> str:
    path = write(home.root.parent / f"{name}.yaml", NAP, owner="ann", seconds=seconds, gpus=2)
    return submit_file(instance, home, compile_plan(load_file(path)))


def of_task(instance: DagsterInstance, run_id: str) -> list[DagsterRun]:
    """All runs of a task, its later attempts too."""
    task = get(instance, run_id).job_name
    return [run for run in instance.get_runs() if run.job_name == task]


def of_the_home(home: Home) -> list[psutil.Process]:
    """Processes of the home beside this one; the servers of PostgreSQL, which inherit the environment, are others."""
    return [one for one in processes_of(home.root.parent) if one.pid != os.getpid() and one.name() != "postgres"]


def end_everything(home: Home) -> None:
    """The machine is gone: nothing of the home runs any more."""
    for process in of_the_home(home):
        process.kill()
    wait_for(lambda: not of_the_home(home), "the end of all processes")


@pytest.mark.postgres
@pytest.mark.slow
def test_finished_running_and_waiting_tasks_come_back(
    queued_home: Home, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_instance(queued_home) as instance, daemon(queued_home):
        finished = submit(instance, queued_home, "finished", 0.2)
        assert status(instance, finished) is DagsterRunStatus.SUCCESS
        running = submit(instance, queued_home, "running", 8)
        wait_for(lambda: get(instance, running).status is DagsterRunStatus.STARTED, "the run to begin")
        waiting = submit(instance, queued_home, "waiting", 0.2)
        wait_for(lambda: get(instance, waiting).status is DagsterRunStatus.QUEUED, "the run to wait")
        before = {path: path.read_bytes() for path in queued_home.results.rglob("*") if path.is_file()}
        backup = script(BACKUP, queued_home.root, tmp_path / "backups")
        end_everything(queued_home)
    queued_home.root.rename(tmp_path / "lost")
    if database:
        monkeypatch.setenv("DATABASE_URL", database)
    script(RESTORE, backup, queued_home.root)
    assert {path: path.read_bytes() for path in before} == before, "every result, at its place"
    with open_instance(queued_home) as instance:
        assert {run.run_id for run in instance.get_runs()} == {finished, running, waiting}
        assert get(instance, finished).status is DagsterRunStatus.SUCCESS
        with daemon(queued_home):
            assert status(instance, waiting) is DagsterRunStatus.SUCCESS
            wait_for(lambda: len(of_task(instance, running)) == 2, "another attempt of what ran")
            (again,) = {run.run_id for run in of_task(instance, running)} - {running}
            assert status(instance, again) is DagsterRunStatus.SUCCESS
        assert get(instance, running).status is DagsterRunStatus.FAILURE
        assert get(instance, running).tags["mloc/failure_cause"] == "worker_lost"
        assert len(of_task(instance, finished)) == len(of_task(instance, waiting)) == 1
        assert len(instance.get_runs()) == 4
    for run in (waiting, running):  # later attempts at a task have its id
        (result,) = queued_home.results.glob(f"{run}/*/responses.json")
        assert json.loads(result.read_text())["result"]["slept"] is True
    end_everything(queued_home)


def test_what_cannot_be_restored_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    home, copy = Home(tmp_path / "home"), tmp_path / "copy"
    assert "is no home" in script(BACKUP, tmp_path, tmp_path / "backups", code=2)
    with open_instance(home):
        pass
    (home.root / "token").write_text("secret")
    backup = Path(script(BACKUP, home.root, tmp_path / "backups"))
    assert [path.stat().st_mode & 0o077 for path in (backup, *backup.iterdir())] == [0] * 4, "nobody else reads it"
    assert "is not empty" in script(RESTORE, backup, home.root, code=2)
    monkeypatch.setenv("DATABASE_URL", "postgresql://nowhere/x")
    assert "unset it" in script(RESTORE, backup, copy, code=2)
    monkeypatch.delenv("DATABASE_URL")
    with (backup / "home.tar.gz").open("ab") as file:
        file.write(b"x")
    assert "is damaged" in script(RESTORE, backup, copy, code=2)
    assert not copy.exists() and list((tmp_path / "backups").iterdir()) == [backup]


@pytest.mark.skipif(bool(missing()), reason=missing() or "there is PostgreSQL")
@pytest.mark.postgres
def test_a_database_in_use_is_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home" / "dagster").mkdir(parents=True)
    with postgres_server() as server:
        url = server.database("mloc")
        monkeypatch.setenv("DATABASE_URL", url)
        subprocess.run(["psql", "-qc", "create table here (x int)", url.replace("+psycopg2", "")], check=True)
        backup = script(BACKUP, tmp_path / "home", tmp_path / "backups")
        assert "has 1 tables" in script(RESTORE, backup, tmp_path / "copy", code=2)
        monkeypatch.setenv("DATABASE_URL", server.database("other"))
        script(RESTORE, backup, tmp_path / "copy")
    assert (tmp_path / "copy" / "dagster").is_dir()
