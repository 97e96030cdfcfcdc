"""Where the `dagster.yaml` of homes that were made before names the launcher."""

from mloc_dagster.placement.launcher import WORKER, LocalRunLauncher, worker_tag

__all__ = ["WORKER", "LocalRunLauncher", "worker_tag"]
