"""The same launcher on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import DagsterInstance, DagsterRunStatus

from mloc_dagster.definitions.instance import DAGSTER_YAML, hold_connections, open_instance
from mloc_dagster.definitions.submit import submit_file
from mloc_dagster.plan import compile_plan
from mloc_dagster.spec import load_file
from mloc_dagster.store.home import Home
from tests import postgres
from tests.definitions.conftest import status, write
from tests.placement.launcher.conftest import pools
from tests.placement.launcher.test_launcher import cold_starts

PostgresEventLogStorage = pytest.importorskip(
    "dagster_postgres", reason="dagster-postgres is not installed"
).PostgresEventLogStorage
pytestmark = [
    pytest.mark.postgres,
    pytest.mark.skipif(bool(postgres.missing()), reason=postgres.missing() or "there is PostgreSQL"),
]
_TWO = """\
apiVersion: mloc/v1
metadata: {{name: {name}, owner: alice}}
spec:
  taskType: echo
  stages:
    - {{name: a, spec: {{echo: 1}}}}
    - {{name: b, dependsOn: [], spec: {{echo: 2}}}}
    - {{name: c, dependsOn: [a, b], spec: {{echo: 3}}}}
"""


_STOCK = "storage:\n  postgres:\n    postgres_url: {env: DATABASE_URL_OF_TEST}\n"
_KEPT = """\
storage:
  custom:
    module: mloc_dagster.store.postgres
    class: PostgresStorage
    config:
      postgres_url: {env: DATABASE_URL_OF_TEST}
"""


@pytest.fixture(params=[_STOCK, _KEPT], ids=["stock", "kept"])
def on_postgres(
    home: Home, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[DagsterInstance]:
    """An instance on a server of its own; its password comes from the environment, as a secret does."""
    monkeypatch.setenv("MLOC_STEPS_AT_ONCE", "2")
    with postgres.postgres_server() as server:
        monkeypatch.setenv("DATABASE_URL_OF_TEST", server.database("mloc"))
        home.dagster.mkdir(parents=True)
        before, _, after = DAGSTER_YAML.partition("storage:\n")
        (home.dagster / "dagster.yaml").write_text(before + request.param + after.partition("\n\n")[2])
        with open_instance(home) as found:
            hold_connections(found)
            yield found


def test_runs_are_forked_and_their_steps_too(on_postgres: DagsterInstance, home: Home, tmp_path: Path) -> None:
    plans = [compile_plan(load_file(write(tmp_path / f"{name}.yaml", _TWO))) for name in ("one", "two")]
    runs = [submit_file(on_postgres, home, plan) for plan in plans]
    assert [status(on_postgres, run_id) for run_id in runs] == [DagsterRunStatus.SUCCESS] * 2
    assert not any(cold_starts(on_postgres, run_id) for run_id in runs) and len(pools(home)) == 1
    assert isinstance(on_postgres.event_log_storage, PostgresEventLogStorage)
    assert not (home.dagster / "history").exists()
    url = on_postgres.run_storage.postgres_url  # pyright: ignore[reportAttributeAccessIssue]
    assert [path for path in home.root.rglob("*") if path.is_file() and url.encode() in path.read_bytes()] == []
