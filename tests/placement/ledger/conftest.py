"""A ledger on SQLite, and on PostgreSQL where that is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mloc_dagster.placement.inventory import Device
from mloc_dagster.placement.ledger import Ledger
from mloc_dagster.placement.workers.need import WHOLE
from mloc_dagster.placement.workers.room import Worker
from tests import postgres

GIB = 1 << 30
GPUS = tuple(Device(index, "a100-80gb", 80 * GIB) for index in range(4))
WORKERS = (Worker("gpu-a", 8 * WHOLE, 64 * GIB, GPUS), Worker("cpu-b", 4 * WHOLE, 16 * GIB))


@pytest.fixture(scope="session")
def server() -> Iterator[postgres.Server]:
    """A PostgreSQL server of its own on loopback."""
    with postgres.postgres_server() as found:
        yield found


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param(
            "postgres",
            marks=[pytest.mark.postgres, pytest.mark.skipif(bool(postgres.missing()), reason=postgres.missing() or "")],
        ),
    ]
)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The place of an empty ledger."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return request.getfixturevalue("server").database(f"ledger_{tmp_path.name}".replace("-", "_"))


@pytest.fixture
def ledger(url: str) -> Ledger:
    """A ledger with a worker of four GPUs and one without."""
    found = Ledger(url)
    found.register("here", WORKERS, load=0.0)
    return found
