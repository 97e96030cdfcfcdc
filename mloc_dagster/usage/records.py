"""Runs as rows, with what they held and what came of them; and tasks, which are all runs of the same work."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

from dagster import DagsterInstance, RunsFilter
from dagster._core.storage.dagster_run import RunRecord

from mloc_dagster.files.atomic import half_file
from mloc_dagster.placement.failures.letters import TASK, cause_of
from mloc_dagster.usage.stats import hours
from mloc_dagster.usage.table import Total, UsageTable

_PAGE = 500
_TYPE = "mloc/type."
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Row:
    """One run, or one task; times in seconds since the epoch, spans in seconds, None where there is none yet."""

    task_id: str
    run_id: str
    task: str
    owner: str
    project: str
    task_types: str
    status: str
    cause: str | None
    runs: int
    created: float
    started: float | None
    ended: float | None
    queue_seconds: float | None
    run_seconds: float | None
    gpu_hours: float
    cpu_hours: float
    prompt_tokens: int
    completion_tokens: int
    retries: int
    slo_met: bool | None


@dataclass(frozen=True)
class Wanted:
    """Which runs: of an owner, of a project, created in a span of time (seconds since the epoch, the end excluded)."""

    owner: str | None = None
    project: str | None = None
    since: float | None = None
    until: float | None = None


def runs(instance: DagsterInstance, table: UsageTable, wanted: Wanted) -> Iterator[Row]:
    """Yield runs, newest first; bring the table in step before (`fill.refresh`), for what runs held comes from it."""
    tags = {"mloc/owner": wanted.owner, "mloc/project": wanted.project}
    chosen = RunsFilter(
        tags={key: value for key, value in tags.items() if value is not None},
        created_after=_moment(wanted.since),
        created_before=_moment(wanted.until),
    )
    cursor: str | None = None
    while page := instance.get_run_records(chosen, limit=_PAGE, cursor=cursor):
        cursor = page[-1].dagster_run.run_id
        sums = table.by_run([record.dagster_run.run_id for record in page])
        for record in page:
            yield _row(record, sums.get(record.dagster_run.run_id, Total()))


def tasks(rows: Iterable[Row]) -> Iterator[Row]:
    """Join runs (newest first) of the same task: the state of the last one, the sums and the times of all."""
    found: dict[str, Row] = {}
    for row in rows:
        last = found.get(row.task_id)
        found[row.task_id] = row if last is None else _joined(last, row)
    yield from found.values()


def write(rows: Iterable[Row], form: str, to: Path) -> int:
    """Write rows as csv, json or parquet, in place of what is there once all are written; returns their number.

    Raises ImportError where parquet has no pyarrow, OSError.
    """
    handle, half = half_file(to)
    try:
        with open(handle, "wb") as file:
            count = {"csv": _csv, "json": _json, "parquet": _parquet}[form](rows, file)
        os.chmod(half, 0o644)
        Path(half).replace(to)
        return count
    except BaseException:
        Path(half).unlink(missing_ok=True)
        raise


def _row(record: RunRecord, total: Total) -> Row:
    run = record.dagster_run
    began, ended = record.start_time, record.end_time if run.is_finished else None
    created = record.create_timestamp.timestamp()
    until = began if began is not None else ended
    met = True if total.slo_met else False if total.slo_breached else None
    return Row(
        task_id=run.root_run_id or run.run_id,
        run_id=run.run_id,
        task=run.tags.get(TASK) or run.job_name,
        owner=run.tags.get("mloc/owner") or "unknown",
        project=run.tags.get("mloc/project") or "default",
        task_types=" ".join(sorted(key.removeprefix(_TYPE) for key in run.tags if key.startswith(_TYPE))),
        status=run.status.value,
        cause=cause_of(run),
        runs=1,
        created=created,
        started=began,
        ended=ended,
        queue_seconds=max(0.0, until - created) if until is not None else None,
        run_seconds=max(0.0, ended - began) if began is not None and ended is not None else None,
        gpu_hours=hours(total.device_us),
        cpu_hours=hours(total.cpu_us),
        prompt_tokens=total.prompt_tokens,
        completion_tokens=total.completion_tokens,
        retries=total.retries,
        slo_met=met,
    )


def _joined(last: Row, before: Row) -> Row:
    return replace(
        last,
        runs=last.runs + before.runs,
        created=min(last.created, before.created),
        started=before.started if before.started is not None else last.started,
        queue_seconds=_sum(last.queue_seconds, before.queue_seconds),
        run_seconds=_sum(last.run_seconds, before.run_seconds),
        gpu_hours=last.gpu_hours + before.gpu_hours,
        cpu_hours=last.cpu_hours + before.cpu_hours,
        prompt_tokens=last.prompt_tokens + before.prompt_tokens,
        completion_tokens=last.completion_tokens + before.completion_tokens,
        retries=last.retries + before.retries,
    )


def _sum(one: float | None, other: float | None) -> float | None:
    return one if other is None else other if one is None else one + other


def _moment(seconds: float | None) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds is not None else None


def _names() -> list[str]:
    return [one.name for one in fields(Row)]


def _csv(rows: Iterable[Row], file: io.BufferedWriter) -> int:
    text, count = io.TextIOWrapper(file, "utf-8", newline="", write_through=True), 0
    writer = csv.writer(text)
    writer.writerow(_names())
    for row in rows:
        writer.writerow([_cell(value) for value in asdict(row).values()])
        count += 1
    text.detach()
    return count


def _cell(value: object) -> object:
    """A text that a spreadsheet would take for a formula begins with an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _json(rows: Iterable[Row], file: io.BufferedWriter) -> int:
    count = 0
    file.write(b"[")
    for count, row in enumerate(rows, start=1):
        file.write((",\n" if count > 1 else "\n").encode() + json.dumps(asdict(row), ensure_ascii=False).encode())
    file.write(b"\n]\n")
    return count


def _parquet(rows: Iterable[Row], file: io.BufferedWriter) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {str: pa.string(), float: pa.float64(), int: pa.int64(), bool: pa.bool_()}
    schema = pa.schema([(one.name, kinds[_kind(str(one.type))]) for one in fields(Row)])
    count = 0
    with pq.ParquetWriter(file, schema) as writer:
        for block in _blocks(rows):
            writer.write_table(pa.Table.from_pylist([asdict(row) for row in block], schema))
            count += len(block)
    return count


def _kind(text: str) -> type:
    return {"str": str, "float": float, "int": int, "bool": bool}[text.split(" ")[0]]


def _blocks(rows: Iterable[Row]) -> Iterator[Sequence[Row]]:
    block: list[Row] = []
    for row in rows:
        block.append(row)
        if len(block) == _PAGE:
            yield block
            block = []
    if block:
        yield block


__all__ = ["Row", "Wanted", "runs", "tasks", "write"]
