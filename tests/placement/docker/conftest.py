"""Two engines, an artifact store behind S3, and a home whose workers they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from mloc_dagster.store.home import Home
from tests.definitions.conftest import home, installed, instance, workspace
from tests.docker_engine import IMAGE, Engine, engine, mounts
from tests.placement.failures.conftest import fail

__all__ = ["fail", "home", "installed", "instance", "workspace"]

PASSED = ["AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "PYTHONPATH"]


@pytest.fixture(scope="session")
def engines() -> Iterator[tuple[Engine, Engine]]:
    """Two engines on this machine, which know nothing of each other."""
    with ExitStack() as stack:
        yield stack.enter_context(engine()), stack.enter_context(engine())


@pytest.fixture
def declare(home: Home, engines: tuple[Engine, Engine], s3: Any, tmp_path: Path) -> Callable[..., None]:
    """Write workers.yaml: `one` with 2 cores and 1 GiB, `two` with 4 cores and 2 GiB; keywords change `docker`."""
    s3.create_bucket(Bucket="artifacts")

    def write(**changes: object) -> None:
        extra = [
            f"{tmp_path / name}:{tmp_path / name}:ro" for name in ("site", "failing") if (tmp_path / name).exists()
        ]
        common = {"image": IMAGE, "network": "host", "env": PASSED, "volumes": [*mounts(), *extra], "stop_seconds": 5}
        workers = [
            {"name": name, "cpu": cpu, "memory": memory, "docker": {"host": one.host, **common, **changes}}
            for name, cpu, memory, one in zip(("one", "two"), (2, 4), ("1Gi", "2Gi"), engines, strict=True)
        ]
        home.root.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump({"artifacts": "s3://artifacts/mloc", "workers": workers}, sort_keys=False)
        (home.root / "workers.yaml").write_text(text)

    write()
    return write
