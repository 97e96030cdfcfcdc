"""A cluster, an artifact store in a folder, and a home whose worker the cluster is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from mloc_dagster.store.home import Home
from tests.definitions.conftest import home, installed, instance, workspace
from tests.kubernetes_api import IMAGE, Cluster, kubernetes
from tests.placement.failures.conftest import fail

__all__ = ["fail", "home", "installed", "instance", "workspace"]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster with one large node."""
    with kubernetes(tmp_path / "cluster") as found:
        yield found


@pytest.fixture
def declare(home: Home, cluster: Cluster, tmp_path: Path) -> Callable[..., None]:
    """Write workers.yaml with the worker `pool`; keywords change `kubernetes`."""
    config = cluster.kubeconfig(tmp_path / "kubeconfig")

    def write(**changes: object) -> None:
        section = {"kubeconfig": str(config), "image": IMAGE, "env": ["PYTHONPATH"], "stop_seconds": 5, **changes}
        worker = {"name": "pool", "cpu": 4, "memory": "8Gi", "kubernetes": section}
        home.root.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump({"artifacts": f"file://{tmp_path / 'artifacts'}", "workers": [worker]}, sort_keys=False)
        (home.root / "workers.yaml").write_text(text)

    write()
    return write
