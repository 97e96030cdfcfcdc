"""What Dagster's SQL storages ask their database again and again, although it never changes back: which tables and
columns there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy
from sqlalchemy.engine import Connection

if TYPE_CHECKING:
    from dagster._core.storage.event_log import SqlEventLogStorage as _Events
    from dagster._core.storage.runs import SqlRunStorage as _Runs
else:
    _Events = _Runs = object


class RememberedRuns(_Runs):
    """Put before a storage of runs."""

    _has_times = _has_backfills = False

    def has_run_stats_index_cols(self) -> bool:
        """Whether runs have the columns of times, which once there stay there."""
        self._has_times = self._has_times or super().has_run_stats_index_cols()
        return self._has_times

    def has_backfill_id_column(self) -> bool:
        """Whether runs have the column of backfills, which once there stays there."""
        self._has_backfills = self._has_backfills or super().has_backfill_id_column()
        return self._has_backfills


class RememberedEvents(_Events):
    """Put before a storage of events."""

    _tables: frozenset[str] = frozenset()
    _asset_columns: frozenset[str] = frozenset()

    def has_table(self, table_name: str) -> bool:
        """Whether there is this table, which once there stays there."""
        if table_name not in self._tables:
            with self.index_connection() as connection:
                if not sqlalchemy.inspect(connection).has_table(table_name):
                    return False
            self._tables |= {table_name}
        return True

    def _has_asset_key_col_on_connection(self, conn: Connection, column_name: str) -> bool:
        if column_name not in self._asset_columns:
            if not super()._has_asset_key_col_on_connection(conn, column_name):
                return False
            self._asset_columns |= {column_name}
        return True
