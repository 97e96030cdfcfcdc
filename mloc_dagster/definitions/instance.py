"""The Dagster instance of a home: made on first use, opened from anywhere."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from mloc_dagster.files.atomic import write_text
from mloc_dagster.store.home import Home

if TYPE_CHECKING:
    from dagster import DagsterInstance

DAGSTER_YAML = """\
# Runs of task files, on this machine. Yours to change.

# Dagster's SQLite files in DAGSTER_HOME, over connections that are kept; `synchronous: full` waits for the disk.
# On PostgreSQL: module mloc_dagster.store.postgres, class PostgresStorage, config {postgres_url: {env: DATABASE_URL}}.
storage:
  custom:
    module: mloc_dagster.store.sqlite
    class: SqliteStorage
    config:
      synchronous: normal

compute_logs:
  module: mloc_dagster.store.compute_logs
  class: ComputeLogs

# Runs in processes forked from one that has all code loaded; `warm: false` starts Python anew for each.
run_launcher:
  module: mloc_dagster.placement.launcher
  class: LocalRunLauncher
  config:
    warm: true
    terminate_grace_seconds: 60

# Runs wait in order for the daemon of `mloc up` or `mloc daemon`; where there is none, they start at once.
run_coordinator:
  module: mloc_dagster.placement.queue.coordinator
  class: QueueCoordinator
  config:
    without_daemon: launch

run_monitoring:
  enabled: true
  poll_interval_seconds: 10

code_servers:
  local_startup_timeout: 600

telemetry:
  enabled: false

nux:
  enabled: false
"""


def prepare(home: Home) -> None:
    """Make the home's Dagster folder and point this process at it, unless DAGSTER_HOME is set already."""
    if not os.environ.get("DAGSTER_HOME"):
        os.environ["DAGSTER_HOME"] = str(home.dagster)
    os.environ["MLOC_HOME"] = str(home.root)
    if not (home.dagster / "dagster.yaml").exists():
        home.dagster.mkdir(parents=True, exist_ok=True)
        write_text(home.dagster / "dagster.yaml", DAGSTER_YAML)


def open_instance(home: Home) -> DagsterInstance:
    """Open the instance; the first to come sets its databases up while others wait."""
    prepare(home)
    from dagster import DagsterInstance

    home.dagster.mkdir(parents=True, exist_ok=True)
    with (home.dagster / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        instance = DagsterInstance.get()
        instance.get_runs(limit=1)
    return instance


def hold_connections(instance: DagsterInstance) -> None:
    """Have a PostgreSQL storage keep its connection, as Dagster's web server does; others are as they are."""
    instance.optimize_for_webserver(statement_timeout=0, pool_recycle=3600, max_overflow=20)
