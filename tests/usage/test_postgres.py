"""Usage where the instance has its storage in PostgreSQL: the tables are there too, and one history gives one sum."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from dagster import DagsterEventType as Event
from dagster import DagsterInstance
from dagster import DagsterRunStatus as Status

from benchmarks.stats import measure
from mloc_dagster.store.home import Home
from mloc_dagster.usage import fill
from mloc_dagster.usage.settings import UsageSettings
from mloc_dagster.usage.stats import Asked, stats
from mloc_dagster.usage.table import UsageTable
from tests import postgres
from tests.usage.conftest import NOON, Past

pytestmark = [pytest.mark.postgres, pytest.mark.skipif(bool(postgres.missing()), reason=postgres.missing() or "")]
_STORAGE = """\
storage:
  custom:
    module: mloc_dagster.store.postgres
    class: PostgresStorage
    config: {{postgres_url: '{url}'}}
telemetry: {{enabled: false}}
"""


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Past]:
    """An empty history in a PostgreSQL of its own."""
    with postgres.postgres_server() as server:
        url = server.database("usage")
        with sa.create_engine(url, isolation_level="AUTOCOMMIT").connect() as connection:
            connection.exec_driver_sql("ALTER DATABASE usage SET timezone = 'America/St_Johns'")
        (tmp_path / "dagster.yaml").write_text(_STORAGE.format(url=url))
        with DagsterInstance.from_config(str(tmp_path)) as instance:
            yield Past(instance, UsageTable.of_instance(instance), Home(tmp_path))


def test_a_history_in_postgres(far: Past, tmp_path: Path) -> None:
    steps = [(0, Event.STEP_START, "t__a"), (60, Event.STEP_UP_FOR_RETRY, "t__a"), (90, Event.STEP_RESTARTED, "t__a")]
    far.run(steps, gpus=[("h100", 1000)] * 2, seconds=1800, waited=900)
    far.run(gpus=[("l4", 500)], seconds=3600, status=Status.FAILURE, owner="bob")
    assert fill.refresh(far.instance, far.table) == fill.Filled(2, 2)
    assert fill.refresh(far.instance, far.table) == fill.Filled(0, 0)
    assert far.table.latest() == NOON + 3600  # in UTC, whatever the zone of the server
    told = stats(far.table, Asked(), UsageSettings())
    assert told["breakdown_by_gpu"] == {"h100": 1.0, "l4": 0.5} and told["by_user"] == {"ann": 1.0, "bob": 0.5}
    assert (told["total_queue_hours"], told["total_tasks_completed"]) == (0.25, 1)
    assert fill.rebuild(far.instance, far.table) == fill.Filled(2, 0)
    assert stats(far.table, Asked(), UsageSettings()) == told
    assert not list(tmp_path.glob("*usage.db"))


def test_stats_agree_with_a_recount_there_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark of stats, on a small history: what SQLite answers is what PostgreSQL answers."""
    with postgres.postgres_server() as server:
        (tmp_path / "dagster").mkdir()
        (tmp_path / "dagster" / "dagster.yaml").write_text(_STORAGE.format(url=server.database("stats")))
        monkeypatch.setenv("MLOC_HOME", str(tmp_path))
        monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
        found = measure(1500)
    assert len(found) == 5 and all(one.agrees for one in found), found
    assert not list(tmp_path.rglob("*usage.db"))
