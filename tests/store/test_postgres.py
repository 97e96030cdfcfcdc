"""The storage on PostgreSQL: connections that are kept, through forks and restarts of the server."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from dagster import DagsterInstance, DagsterInvalidConfigError, RunsFilter
from dagster._core.test_utils import create_run_for_test

from mloc_dagster.placement.inventory import Device
from mloc_dagster.placement.ledger import Ledger
from mloc_dagster.placement.workers.room import Worker
from mloc_dagster.store import connections
from tests import postgres

pytest.importorskip("dagster_postgres", reason="dagster-postgres is not installed")
pytestmark = [
    pytest.mark.postgres,
    pytest.mark.skipif(bool(postgres.missing()), reason=postgres.missing() or "there is PostgreSQL"),
]
_STORAGE = """\
storage:
  custom:
    module: mloc_dagster.store.postgres
    class: PostgresStorage
    config:
      postgres_url: {env: DATABASE_URL_OF_TEST}
telemetry: {enabled: false}
"""
_STOCK = "storage: {{postgres: {{postgres_url: '{url}'}}}}\ntelemetry: {{enabled: false}}\n"


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    with postgres.postgres_server() as found:
        yield found


@pytest.fixture
def url(server: postgres.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a new database, without a driver, as users write it."""
    found = server.database(f"db_{abs(hash(tmp_path))}")
    monkeypatch.setenv("DATABASE_URL_OF_TEST", found.replace("postgresql+psycopg2", "postgresql"))
    return found


def _instance(folder: Path, storage: str = _STORAGE) -> DagsterInstance:
    folder.mkdir(exist_ok=True)
    (folder / "dagster.yaml").write_text(storage)
    return DagsterInstance.from_config(str(folder))


def _backends(url: str) -> set[int]:
    """Process ids of the server's processes for this database, without the one that is asked."""
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        return set(connection.scalars(sa.text(query)))


def test_all_that_a_process_does_goes_over_one_or_two_connections(url: str, tmp_path: Path) -> None:
    with _instance(tmp_path / "home") as instance:
        first = _used(instance, url)
        assert 1 <= len(first) <= 2
        assert _used(instance, url) == first


def _used(instance: DagsterInstance, url: str) -> set[int]:
    run = create_run_for_test(instance)
    instance.add_run_tags(run.run_id, {"a": "b"})
    instance.report_engine_event("told", run)
    ledger = Ledger.of_instance(instance)
    ledger.register("here", [Worker("w", 1000, 0, (Device(0, "a100-80gb", 80),))], 0.0)
    assert [seen.worker.name for seen in ledger.snapshot()[0]] == ["w"]
    assert instance.get_run_records(RunsFilter(run_ids=[run.run_id]))[0].dagster_run.tags["a"] == "b"
    assert len(instance.all_logs(run.run_id)) == 1
    return _backends(url)


def test_stock_opens_the_same_database(url: str, tmp_path: Path) -> None:
    with _instance(tmp_path / "ours") as ours:
        run = create_run_for_test(ours, tags={"who": "ours"})
    with _instance(tmp_path / "stock", _STOCK.format(url=url)) as stock:
        found = stock.get_run_by_id(run.run_id)
        assert found and found.tags["who"] == "ours"
        stock.add_run_tags(run.run_id, {"who": "stock"})
    with _instance(tmp_path / "ours") as ours:
        found = ours.get_run_by_id(run.run_id)
        assert found and found.tags["who"] == "stock"


def test_a_child_has_connections_of_its_own(url: str, tmp_path: Path) -> None:
    with _instance(tmp_path / "home") as instance:
        run = create_run_for_test(instance)
        before = _backends(url)
        pid = os.fork()
        if pid == 0:
            instance.add_run_tags(run.run_id, {"child": str(_pid_of(url))})
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        found = instance.get_run_by_id(run.run_id)
        assert found and int(found.tags["child"]) not in before
        assert _backends(url) == before  # nobody has closed the parent's


def _pid_of(url: str) -> int:
    with connections.postgres(url).connect() as connection:
        return connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()


def test_a_connection_that_the_server_closed_meanwhile_is_replaced(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _instance(tmp_path / "home") as instance:
        run = create_run_for_test(instance)
        kept = _backends(url)
        with sa.create_engine(url, poolclass=sa.pool.NullPool).connect() as connection:
            for pid in kept:
                connection.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        monkeypatch.setattr(connections, "_ASK_AFTER_SECONDS", 0.0)
        assert instance.get_run_by_id(run.run_id) is not None


def test_threads_do_not_wait_for_each_other(url: str, tmp_path: Path) -> None:
    with _instance(tmp_path / "home"):
        barrier = threading.Barrier(8)

        def ask() -> None:
            with connections.postgres(url).connect() as connection:
                connection.exec_driver_sql("SELECT 1")
                barrier.wait(20)  # passes only when all eight have a connection at the same time

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not barrier.broken


def test_the_webserver_s_time_limit_of_statements_is_kept(url: str, tmp_path: Path) -> None:
    with _instance(tmp_path / "home") as instance:
        instance.optimize_for_webserver(statement_timeout=5000, pool_recycle=60, max_overflow=2)
        with instance.run_storage.connect() as connection:  # pyright: ignore[reportAttributeAccessIssue]
            assert connection.exec_driver_sql("SHOW statement_timeout").scalar_one() == "5s"
        assert Ledger.of_instance(instance).saved("nothing") is None


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    script = f"""
import sys
sys.modules["dagster_postgres"] = None
from dagster import DagsterInstance
try:
    DagsterInstance.from_config({str(tmp_path)!r})
except Exception as error:
    print(type(error).__name__, error)
"""
    (tmp_path / "dagster.yaml").write_text(_STORAGE)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert DagsterInvalidConfigError.__name__ in done.stdout, done.stderr
    assert "pip install 'mloc-dagster[postgres]'" in done.stdout
