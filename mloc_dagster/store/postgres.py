"""The storage that `dagster.yaml` names to have runs, events and schedules in PostgreSQL, in stock tables.

Stock connects anew for each statement, or keeps a connection for each of its three storages, and looks the tables'
columns up again and again. Here all that a process has to do with the database, the ledger too, goes over one or two
connections that are kept. Durability is the server's own: what was acknowledged is committed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dagster import DagsterInvalidConfigError
from dagster._serdes import ConfigurableClassData

from mloc_dagster.store.connections import postgres
from mloc_dagster.store.remembered import RememberedEvents, RememberedRuns

try:
    from dagster_postgres.event_log import PostgresEventLogStorage
    from dagster_postgres.run_storage import PostgresRunStorage
    from dagster_postgres.schedule_storage import PostgresScheduleStorage
    from dagster_postgres.storage import DagsterPostgresStorage
    from dagster_postgres.utils import get_token_provider_from_config, pg_url_from_config
except ModuleNotFoundError as error:
    _HINT = "storage in dagster.yaml names PostgreSQL, which is not installed; pip install 'mloc-dagster[postgres]'"
    raise DagsterInvalidConfigError(_HINT, [], None) from error

if TYPE_CHECKING:
    from dagster_postgres.auth import PgTokenProvider


class PostgresStorage(DagsterPostgresStorage):
    """Takes the settings of Dagster's own: `postgres_url` or `postgres_db`, `auth_provider`."""

    def __init__(
        self,
        postgres_url: str,
        should_autocreate_tables: bool = True,
        inst_data: ConfigurableClassData | None = None,
        token_provider: PgTokenProvider | None = None,
    ) -> None:
        super(DagsterPostgresStorage, self).__init__()  # the parent's own would open the stock storages
        engine = postgres(postgres_url)
        if token_provider is not None:
            from dagster_postgres.auth import register_do_connect_hook

            register_do_connect_hook(engine, token_provider)
        self.postgres_url = engine.url.render_as_string(hide_password=False)
        self.should_autocreate_tables, self._inst_data = should_autocreate_tables, inst_data
        given = (self.postgres_url, should_autocreate_tables)
        self._run_storage = _RunStorage(*given, token_provider=token_provider)
        self._event_log_storage = _EventLogStorage(*given, token_provider=token_provider)
        self._schedule_storage = _ScheduleStorage(*given, token_provider=token_provider)

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> PostgresStorage:
        """Make one from `dagster.yaml`."""
        return cls(
            inst_data=inst_data,
            postgres_url=pg_url_from_config(config_value),
            should_autocreate_tables=config_value.get("should_autocreate_tables", True),
            token_provider=get_token_provider_from_config(config_value),
        )


class _Kept:
    """What the three have in common: the process's connections."""

    def __init__(self, postgres_url: str, *others: Any, **named: Any) -> None:
        super().__init__(postgres_url, *others, **named)  # pyright: ignore[reportCallIssue]
        self._engine = postgres(postgres_url)

    def optimize_for_webserver(self, statement_timeout: int, pool_recycle: int, max_overflow: int) -> None:
        """Keep connections, as is done anyway; `statement_timeout` in milliseconds wants some of its own."""
        if statement_timeout:
            super().optimize_for_webserver(statement_timeout, pool_recycle, max_overflow)  # pyright: ignore


class _RunStorage(_Kept, RememberedRuns, PostgresRunStorage): ...


class _EventLogStorage(_Kept, RememberedEvents, PostgresEventLogStorage): ...


class _ScheduleStorage(_Kept, PostgresScheduleStorage): ...
