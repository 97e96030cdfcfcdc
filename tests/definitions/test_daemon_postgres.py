"""The queue and the ledger in the PostgreSQL of the instance."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
import yaml
from dagster import DagsterInstance, DagsterRunStatus

from mloc_dagster.definitions.instance import open_instance
from mloc_dagster.store.home import Home
from tests import postgres
from tests.definitions.conftest import get, status
from tests.definitions.test_daemon import Submit, begun, daemon, queued_home, submit, waiting
from tests.waiting import wait_for

__all__ = ["queued_home", "submit"]

pytest.importorskip("dagster_postgres", reason="dagster-postgres is not installed")
pytestmark = [
    pytest.mark.postgres,
    pytest.mark.skipif(bool(postgres.missing()), reason=postgres.missing() or "there is PostgreSQL"),
]


@pytest.fixture
def url() -> Iterator[str]:
    """An empty database."""
    with postgres.postgres_server() as server:
        yield server.database("mloc")


@pytest.fixture
def queue(queued_home: Home, url: str) -> Iterator[DagsterInstance]:
    """The home's instance on that database; runs that a test leaves are ended."""
    settings = yaml.safe_load((queued_home.dagster / "dagster.yaml").read_text())
    settings["storage"] = {"postgres": {"postgres_url": url}}
    (queued_home.dagster / "dagster.yaml").write_text(yaml.safe_dump(settings))
    with open_instance(queued_home) as instance:
        yield instance
        for run in instance.get_runs():
            if not run.is_finished:
                instance.run_coordinator.cancel_run(run.run_id)
                status(instance, run.run_id)


def test_runs_wait_begin_in_order_and_give_back(
    queue: DagsterInstance, queued_home: Home, submit: Submit, url: str
) -> None:
    first = submit("first", seconds=6)
    with daemon(queued_home):
        wait_for(lambda: get(queue, first).status is DagsterRunStatus.STARTED, "the first run")
        low, high = submit("low"), submit("high", priority=3)
        reason = "needs 2 × a100-80gb GPU: 0 free on gpu-a"
        wait_for(lambda: waiting(queue, low) == waiting(queue, high) == reason, "the reasons")
        with sa.create_engine(url).connect() as connection:
            held = connection.execute(sa.text("SELECT run_id, worker FROM mloc_leases")).all()
        assert held == [(first, "gpu-a")]
        assert [status(queue, run) for run in (first, high, low)] == [DagsterRunStatus.SUCCESS] * 3
        assert begun(queue, first) < begun(queue, high) < begun(queue, low)
    assert not (queued_home.dagster / "ledger.db").exists()
