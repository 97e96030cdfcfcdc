"""Stats over a long history: `python benchmarks/stats.py [--runs 100000]`.

Writes so many runs that are over into the storage of a fresh home, as Dagster stores them (owners, projects, kinds of
GPU, states, waits and lengths drawn at random over a year; no events), then measures: how long it takes to enter all
of them, and how long `/api/v1/stats` computes for all, for one user, for one project in one month, for months with
broken ends, and after a day's further runs. Each answer is compared with a recount of the storage that shares no code
with usage: GPU-hours, by GPU and by user, must agree to the second, tasks exactly. Exit code 1 when they do not, or
when an answer takes more than 100 ms (`--most-ms`, the median of 30).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import sqlalchemy as sa
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.storage.runs.schema import RunsTable, RunTagsTable
from dagster._core.utils import make_new_run_id
from dagster_shared.serdes import serialize_value

_ROOT = Path(__file__).resolve().parents[1]
_PAGE = 2000
_YEAR = 365 * 86_400
_GPUS = ("a100-80gb", "h100", "l4", "l40s")
_STATES = (DagsterRunStatus.SUCCESS,) * 8 + (DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED)
_CALLS = 30


@dataclass(frozen=True)
class Query:
    """What is asked; days included."""

    user: str | None = None
    project: str | None = None
    start: date | None = None
    end: date | None = None

    def __str__(self) -> str:
        given = {name: str(value) for name, value in vars(self).items() if value is not None}
        return ", ".join(f"{name} {value}" for name, value in given.items()) or "all"


@dataclass(frozen=True)
class Measured:
    """One query: its time (median and the slowest of many, in ms), and whether it agrees with the recount."""

    query: Query
    median_ms: float
    slowest_ms: float
    agrees: bool


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--most-ms", type=float, default=100.0)
    given = parser.parse_args()
    sys.path.insert(0, str(_ROOT))
    with tempfile.TemporaryDirectory(prefix="mloc-stats-", ignore_cleanup_errors=True) as folder:
        os.environ.update({"MLOC_HOME": folder, "DAGSTER_HOME": f"{folder}/dagster"})
        found = measure(given.runs)
    for one in found:
        state = "agrees with the recount" if one.agrees else "DIFFERS from the recount"
        print(f"stats for {one.query}: median {one.median_ms:.1f} ms, slowest {one.slowest_ms:.1f} ms; {state}")
    slow = [one for one in found if one.median_ms > given.most_ms]
    return 1 if slow or not all(one.agrees for one in found) else 0


def measure(count: int) -> list[Measured]:
    """Write a history into the home that the environment names, enter it, and ask."""
    from mloc_dagster.definitions.instance import open_instance
    from mloc_dagster.store.home import Home
    from mloc_dagster.usage import fill
    from mloc_dagster.usage.table import UsageTable

    draw = random.Random(7)
    with open_instance(Home.current()) as instance:
        table = UsageTable.of_instance(instance)
        write(instance, count, draw, 0.0)
        begun = time.perf_counter()
        filled = fill.refresh(instance, table)
        took = time.perf_counter() - begun
        print(f"{filled.read} runs entered in {took:.1f} s, {filled.read / took:.0f} a second", flush=True)
        first = date.fromtimestamp(time.time() - _YEAR / 2)
        queries = [Query(), Query(user="owner-3"), Query(project="project-1", start=first, end=first.replace(day=28))]
        queries.append(
            Query(start=date.fromtimestamp(time.time() - _YEAR * 0.8), end=date.fromtimestamp(time.time() - 1e6))
        )
        found = [_asked(instance, table, query) for query in queries]
        write(instance, max(1, count // 365), draw, 364 * 86_400.0)
        fill.refresh(instance, table)
        return [*found, _asked(instance, table, Query())]


def write(instance: DagsterInstance, count: int, draw: random.Random, after: float) -> None:
    """Write runs that are over, begun `after` seconds into the year that ends now, or later."""
    from mloc_dagster.placement.inventory import Device
    from mloc_dagster.placement.ledger.grant import Grant

    since = time.time() - _YEAR
    for start in range(0, count, _PAGE):
        runs, tags = [], []
        for _ in range(min(_PAGE, count - start)):
            run_id = make_new_run_id()
            created = since + after + draw.random() * (_YEAR - after - 90_000)
            begun, seconds = created + draw.random() * 600, draw.expovariate(1 / 3600)
            gpu, number = draw.choice(_GPUS), draw.choice((0, 1, 1, 2, 8))
            devices = tuple(Device(index, gpu, 80 << 30) for index in range(number))
            grant = Grant(1, run_id, "w", devices, 60.0, (draw.choice((1000, 1000, 500)),) * number, 4000)
            status = draw.choice(_STATES)
            named = {
                "mloc/task": "t", "mloc/owner": f"owner-{draw.randrange(50)}",
                "mloc/project": f"project-{draw.randrange(20)}", **grant.as_tag(),
            }  # fmt: skip
            run = DagsterRun(job_name="job", run_id=run_id, tags=named, status=status)
            moment = datetime.fromtimestamp(created, UTC).replace(tzinfo=None)
            runs.append(
                {
                    "run_id": run_id, "pipeline_name": "job", "status": status.value, "run_body": serialize_value(run),
                    "create_timestamp": moment, "update_timestamp": moment,
                    "start_time": begun, "end_time": begun + seconds,
                }
            )  # fmt: skip
            tags += [{"run_id": run_id, "key": key, "value": value} for key, value in named.items()]
        with instance.run_storage.connect() as connection:  # pyright: ignore[reportAttributeAccessIssue]
            connection.execute(sa.insert(RunsTable), runs)
            connection.execute(sa.insert(RunTagsTable), tags)


def _asked(instance: DagsterInstance, table, query: Query) -> Measured:
    from mloc_dagster.usage.settings import UsageSettings
    from mloc_dagster.usage.stats import Asked, stats

    asked, settings, times, told = Asked(query.user, query.project, query.start, query.end), UsageSettings(), [], {}
    for _ in range(_CALLS):
        begun = time.perf_counter()
        told = stats(table, asked, settings)
        times.append((time.perf_counter() - begun) * 1000)
    return Measured(query, statistics.median(times), max(times), _agrees(instance, query, told))


def _agrees(instance: DagsterInstance, query: Query, told: dict) -> bool:
    by_gpu, by_user, tasks = _recount(instance, query)
    pairs = [(told["total_gpu_hours"] * 3600, sum(by_gpu.values())), (told["total_tasks_completed"], tasks)]
    pairs += [(told["breakdown_by_gpu"].get(gpu, 0) * 3600, seconds) for gpu, seconds in by_gpu.items()]
    pairs += [(told["by_user"].get(user, 0) * 3600, seconds) for user, seconds in by_user.items()]
    return all(abs(one - other) < 1 for one, other in pairs)


def _recount(instance: DagsterInstance, query: Query) -> tuple[dict[str, float], dict[str, float], int]:
    """Device-seconds by GPU and by user, and tasks done, straight from the rows of Dagster's storage."""
    first = datetime.combine(query.start, datetime.min.time(), UTC).timestamp() if query.start else 0.0
    last = datetime.combine(query.end, datetime.min.time(), UTC).timestamp() + 86_400 if query.end else float("inf")
    by_gpu: dict[str, float] = defaultdict(float)
    by_user: dict[str, float] = defaultdict(float)
    tasks = 0
    for tags, status, begun, ended in _stored(instance):
        owner, project = tags["mloc/owner"], tags["mloc/project"]
        if query.user not in (None, owner) or query.project not in (None, project):
            continue
        tasks += status == "SUCCESS" and first <= ended < last
        seconds = max(0.0, min(ended, last) - max(begun, first))
        grant = json.loads(tags["mloc/lease"])
        for device, share in zip(grant["devices"], grant["shares"], strict=True):
            by_gpu[device["name"]] += seconds * share / 1000
            by_user[owner] += seconds * share / 1000
    return by_gpu, by_user, tasks


def _stored(instance: DagsterInstance) -> Iterator[tuple[dict[str, str], str, float, float]]:
    of = RunsTable.c
    with instance.run_storage.connect() as connection:  # pyright: ignore[reportAttributeAccessIssue]
        rows = connection.execute(sa.select(of.run_body, of.status, of.start_time, of.end_time)).all()
    for body, status, begun, ended in rows:
        yield json.loads(body)["tags"], status, begun, ended


if __name__ == "__main__":
    sys.exit(main())
