"""SQLite storage over connections that are kept: the files of stock Dagster, nothing lost by a kill, safe to fork."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy
from dagster import DagsterEvent, DagsterEventType, DagsterInstance, EventLogEntry
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.runs import SqliteRunStorage
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage

from mloc_dagster.store.sqlite import SqliteStorage
from mloc_dagster.store.sqlite.engines import Engines, _compiled
from tests.definitions.conftest import ROOT
from tests.waiting import wait_for

_YAML = """\
storage:
  custom: {module: mloc_dagster.store.sqlite, class: SqliteStorage, config: {synchronous: %s}}
telemetry: {enabled: false}
"""
_WRITER = """
import os, sys, time
from dagster import DagsterInstance
from tests.store.sqlite.test_storage import message
instance = DagsterInstance.get()
for number in range(100_000):
    instance.event_log_storage.store_event(message(sys.argv[1], number))
    os.write(1, f"{number}\\n".encode())
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DAGSTER_HOME that names our storage."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "dagster.yaml").write_text(_YAML % "normal")
    return tmp_path


@pytest.fixture
def instance(folder: Path) -> Iterator[DagsterInstance]:
    """An instance on our storage."""
    with DagsterInstance.get() as found:
        yield found


def message(run_id: str, number: int) -> EventLogEntry:
    """An event that can be told from others."""
    return EventLogEntry(
        error_info=None, level=20, user_message=f"message {number}", run_id=run_id, timestamp=time.time(),
        step_key=None, job_name="job", dagster_event=None,
    )  # fmt: skip


def started(run_id: str) -> EventLogEntry:
    """An event that stock mirrors into the index."""
    event = DagsterEvent(event_type_value=DagsterEventType.RUN_START.value, job_name="job")
    return EventLogEntry(
        error_info=None, level=20, user_message="", run_id=run_id, timestamp=time.time(),
        step_key=None, job_name="job", dagster_event=event,
    )  # fmt: skip


def messages(storage: SqliteEventLogStorage, run_id: str) -> list[str]:
    """What a log holds."""
    return [entry.user_message for entry in storage.get_logs_for_run(run_id)]


def stock(folder: Path) -> SqliteEventLogStorage:
    """Dagster's own storage over the same files."""
    return SqliteEventLogStorage(str(folder / "history" / "runs"))


def test_the_settings_name_our_storage(instance: DagsterInstance) -> None:
    assert isinstance(instance.event_log_storage, SqliteEventLogStorage)
    assert type(instance.event_log_storage).__module__.startswith("mloc_dagster.")
    assert type(instance.run_storage) is not SqliteRunStorage


def test_without_a_folder_it_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    with pytest.raises(Exception, match="set base_dir below storage"):
        SqliteStorage.from_config_value(None, {"synchronous": "normal"})  # pyright: ignore[reportArgumentType]


def test_a_run_database_from_the_template_has_the_stock_schema(instance: DagsterInstance, folder: Path) -> None:
    instance.event_log_storage.store_event(message("ours", 1))
    elsewhere = SqliteEventLogStorage(str(folder / "elsewhere"))
    elsewhere.store_event(message("theirs", 1))

    def schema(path: Path) -> list[tuple]:
        with sqlite3.connect(path) as database:
            version = database.execute("SELECT * FROM alembic_version").fetchall()
            tables = database.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name").fetchall()
            return [*version, *tables, *database.execute("PRAGMA journal_mode").fetchall()]

    ours = schema(folder / "history" / "runs" / "ours.db")
    assert ours == schema(folder / "elsewhere" / "theirs.db") and ("wal",) in ours


def test_stock_reads_and_writes_the_same_files_at_the_same_time(instance: DagsterInstance, folder: Path) -> None:
    ours = instance.event_log_storage
    ours.store_event(message("run", 0))
    theirs = stock(folder)
    theirs.store_event(message("run", 1))
    ours.store_event(message("run", 2))
    theirs.store_event(message("other", 3))
    assert messages(theirs, "run") == messages(ours, "run") == ["message 0", "message 1", "message 2"]
    assert messages(ours, "other") == ["message 3"]
    run = instance.create_run_for_job(_job(), run_id="11111111-1111-4111-8111-111111111111")
    assert DagsterSqliteStorage(str(folder)).run_storage.get_runs() == [run]


def test_the_template_is_no_run(instance: DagsterInstance) -> None:
    instance.event_log_storage.store_event(message("run", 0))
    assert instance.event_log_storage.get_all_run_ids() == ["run"]  # pyright: ignore[reportAttributeAccessIssue]


def test_a_database_that_was_only_begun_is_finished(instance: DagsterInstance, folder: Path) -> None:
    (folder / "history" / "runs" / "run.db").touch()
    instance.event_log_storage.store_event(message("run", 0))
    assert messages(stock(folder), "run") == ["message 0"]


def test_a_database_that_was_removed_is_made_anew(instance: DagsterInstance, folder: Path) -> None:
    storage = instance.event_log_storage
    storage.store_event(message("run", 0))
    storage.wipe()
    storage.store_event(message("run", 1))
    assert messages(stock(folder), "run") == ["message 1"]


def test_many_threads_write_one_log(instance: DagsterInstance, folder: Path) -> None:
    def write(first: int) -> None:
        for number in range(first, first + 25):
            instance.event_log_storage.store_event(message("run", number))

    threads = [threading.Thread(target=write, args=(first,)) for first in (0, 25, 50, 75)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(messages(stock(folder), "run")) == sorted(f"message {number}" for number in range(100))


def test_few_databases_are_held_open(instance: DagsterInstance) -> None:
    for number in range(60):
        instance.event_log_storage.store_event(message(f"run{number}", 0))
    held = {os.readlink(handle.path) for handle in os.scandir("/proc/self/fd") if os.path.exists(handle.path)}
    assert 0 < len([path for path in held if re.search(r"/runs/run\d+\.db$", path)]) <= 32


def test_watchers_of_stock_see_events_as_they_come(instance: DagsterInstance, folder: Path) -> None:
    instance.event_log_storage.store_event(message("run", 0))
    theirs, seen = stock(folder), []
    theirs.watch("run", None, lambda entry, cursor: seen.append(entry.user_message))
    try:
        for number in (1, 2):
            instance.event_log_storage.store_event(message("run", number))
            wait_for(lambda number=number: f"message {number}" in seen, "the watcher to see it", 10)
    finally:
        theirs.dispose()


def test_a_fork_uses_connections_of_its_own_and_leaves_the_parents_alone(
    instance: DagsterInstance, folder: Path
) -> None:
    storage = instance.event_log_storage
    storage.store_event(message("run", 0))
    child = os.fork()
    if child == 0:
        try:
            storage.store_event(message("run", 1))
            storage.dispose()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    storage.store_event(message("run", 2))
    assert messages(stock(folder), "run") == ["message 0", "message 1", "message 2"]
    with sqlite3.connect(folder / "history" / "runs" / "run.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize("synchronous", ["normal", "full"])
def test_after_kill_9_every_event_that_was_acknowledged_is_there(folder: Path, synchronous: str) -> None:
    (folder / "dagster.yaml").write_text(_YAML % synchronous)
    for run_id, least in (("a", 1), ("b", 40), ("c", 300)):
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, run_id], stdout=subprocess.PIPE, cwd=ROOT, text=True)
        assert writer.stdout
        acknowledged = [writer.stdout.readline().strip() for _ in range(least)]
        writer.send_signal(signal.SIGKILL)
        acknowledged += writer.stdout.read().split()
        writer.wait()
        kept = messages(stock(folder), run_id)
        assert kept[: len(acknowledged)] == [f"message {number}" for number in acknowledged]
        assert len(kept) - len(acknowledged) <= 1  # one may have been stored whose number was not printed


def test_what_was_closed_lies_in_the_database_file_alone(folder: Path, tmp_path: Path) -> None:
    with DagsterInstance.get() as instance:
        instance.event_log_storage.store_event(started("run"))
        instance.event_log_storage.store_event(message("run", 1))
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("run.db", "index.db"):
        shutil.copy(folder / "history" / "runs" / name, copy / name)
    assert messages(SqliteEventLogStorage(str(copy)), "run") == ["", "message 1"]


def _job():
    from dagster import job

    @job
    def nothing() -> None:
        return None

    return nothing


def test_a_child_loses_nothing_when_its_parent_closes_first(tmp_path: Path) -> None:
    path = tmp_path / "rows.db"
    with sqlite3.connect(path) as made:
        made.execute("pragma journal_mode=wal")
        made.execute("create table rows (number integer primary key)")
    made.close()
    engines = Engines("normal")
    with engines.connect(path) as connection:
        connection.exec_driver_sql("insert into rows values (0)")
    pid = os.fork()
    if pid == 0:
        for number in range(1, 200):
            with engines.connect(path) as connection:
                connection.exec_driver_sql(f"insert into rows values ({number})")
            time.sleep(0.002)
        os._exit(0)
    time.sleep(0.1)
    engines.close()
    reader = sqlite3.connect(path)
    reader.execute("select count(*) from rows").fetchone()
    reader.close()
    assert os.waitpid(pid, 0)[1] == 0
    assert sqlite3.connect(path).execute("select count(*) from rows").fetchone() == (200,)


def test_statements_of_many_databases_take_the_room_of_one(tmp_path: Path) -> None:
    engines = Engines("normal")
    before = len(_compiled)
    for number in range(20):
        with engines.connect(tmp_path / f"{number}.db") as connection:
            connection.execute(sqlalchemy.select(sqlalchemy.literal(1).label("one")))
    assert len(_compiled) - before <= 1
