"""The storage that `dagster.yaml` names: runs, events and schedules below one folder, as stock lays them out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dagster import DagsterInvalidConfigError, Enum, EnumValue, Field, StringSource
from dagster._core.storage.runs import SqliteRunStorage
from dagster._core.storage.schedules import SqliteScheduleStorage
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._serdes import ConfigurableClassData
from sqlalchemy.engine import Connection

from mloc_dagster.store.remembered import RememberedRuns
from mloc_dagster.store.sqlite.engines import Engines, Synchronous
from mloc_dagster.store.sqlite.event_log import PooledEventLogStorage


class SqliteStorage(DagsterSqliteStorage):
    """`base_dir`: the folder (default: DAGSTER_HOME); `synchronous`: when an event is on the disk, see the package."""

    def __init__(
        self, base_dir: str, synchronous: Synchronous = "normal", inst_data: ConfigurableClassData | None = None
    ) -> None:
        super(DagsterSqliteStorage, self).__init__()  # the parent's own would open the stock storages
        self.base_dir, self._inst_data = base_dir, inst_data
        history = Path(base_dir) / "history"
        self._run_storage = _RunStorage.of_folder(history, synchronous)
        self._event_log_storage = PooledEventLogStorage(str(history / "runs"), Engines(synchronous))
        self._schedule_storage = _ScheduleStorage.of_folder(Path(base_dir) / "schedules", synchronous)

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """What `dagster.yaml` may set."""
        levels = Enum("Synchronous", [EnumValue("normal"), EnumValue("full")])
        return {
            "base_dir": Field(StringSource, is_required=False),
            "synchronous": Field(levels, is_required=False, default_value="normal"),
        }

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> SqliteStorage:
        """Make one from `dagster.yaml`."""
        folder = config_value.get("base_dir") or os.environ.get("DAGSTER_HOME")
        if not folder:
            hint = "set base_dir below storage in dagster.yaml, or set DAGSTER_HOME"
            raise DagsterInvalidConfigError(f"SqliteStorage has no folder; {hint}", [], config_value)
        return cls(folder, config_value["synchronous"], inst_data)


class _Pooled:
    """What both single databases have in common: connections that are kept."""

    def __init__(self, file: Path, engines: Engines) -> None:
        super().__init__(f"sqlite:///{file}")  # pyright: ignore[reportCallIssue]
        self._file, self._engines = file, engines

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        with self._engines.connect(self._file) as connection:
            yield connection

    def dispose(self) -> None:
        self._engines.close()


class _RunStorage(_Pooled, RememberedRuns, SqliteRunStorage):
    @classmethod
    def of_folder(cls, folder: Path, synchronous: Synchronous) -> _RunStorage:
        SqliteRunStorage.from_local(str(folder))  # makes the tables, or brings the older ones up to date
        return cls(folder.absolute() / "runs.db", Engines(synchronous))


class _ScheduleStorage(_Pooled, SqliteScheduleStorage):
    @classmethod
    def of_folder(cls, folder: Path, synchronous: Synchronous) -> _ScheduleStorage:
        SqliteScheduleStorage.from_local(str(folder))
        return cls(folder.absolute() / "schedules.db", Engines(synchronous))
