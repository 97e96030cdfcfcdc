"""What holds now, by the rules: each with a key that stays the same while it holds, and words with the figures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

from dagster import DagsterInstance, DagsterRunStatus, RunsFilter

from mloc_dagster.alerts.settings import Backlog, FailureRate, MissedSlo, Rules
from mloc_dagster.placement.ledger import Ledger
from mloc_dagster.placement.ledger.rows import worker_rows
from mloc_dagster.placement.queue.asked import SLO
from mloc_dagster.usage.history import seconds_of
from mloc_dagster.usage.table import UsageTable

_GOING = [DagsterRunStatus.QUEUED, DagsterRunStatus.STARTING, DagsterRunStatus.STARTED]
_PAGE = 500


def holding(instance: DagsterInstance, table: UsageTable, rules: Rules) -> dict[str, str]:
    """Return what holds by its key; bring the usage table in step before."""
    found: dict[str, str] = {}
    if rules.failure_rate is not None:
        found.update(_failures(instance, rules.failure_rate))
    if rules.backlog is not None:
        found.update(_backlog(instance, rules.backlog))
    if rules.slo is not None:
        found.update(_missed(instance, table, rules.slo))
    if rules.lost_workers is not None:
        for row in worker_rows(*Ledger.of_instance(instance).snapshot()):
            if row["silent"]:
                found[f"lost_workers/{row['name']}"] = f"worker {row['name']} has fallen silent"
    return found


def _failures(instance: DagsterInstance, rule: FailureRate) -> Iterator[tuple[str, str]]:
    since = datetime.fromtimestamp(time.time() - 60 * rule.minutes, UTC)

    def ended(status: DagsterRunStatus) -> int:
        return instance.get_runs_count(RunsFilter(statuses=[status], updated_after=since))

    failed = ended(DagsterRunStatus.FAILURE)
    over = failed + ended(DagsterRunStatus.SUCCESS)
    if over >= rule.least_runs and failed / over > rule.above:
        told = f"{failed} of {over} runs failed in the last {rule.minutes} min ({100 * failed / over:.0f} %)"
        yield "failure_rate", f"{told}, more than {100 * rule.above:g} %"


def _backlog(instance: DagsterInstance, rule: Backlog) -> Iterator[tuple[str, str]]:
    queued = RunsFilter(statuses=[DagsterRunStatus.QUEUED])
    waiting = instance.get_runs_count(queued)
    if rule.runs is not None and waiting > rule.runs:
        yield "backlog/runs", f"{waiting} runs wait, more than {rule.runs}"
    first = instance.get_run_records(queued, limit=1, ascending=True)
    if rule.seconds is not None and first:
        waits = time.time() - first[0].create_timestamp.timestamp()
        if waits > rule.seconds:
            run = first[0].dagster_run.run_id[:8]
            yield "backlog/seconds", f"run {run} has waited for {waits:.0f} s, longer than {rule.seconds} s"


def _missed(instance: DagsterInstance, table: UsageTable, rule: MissedSlo) -> Iterator[tuple[str, str]]:
    now = time.time()
    missed = table.missed_slo(now - 60 * rule.minutes)
    cursor: str | None = None
    while page := instance.get_run_records(RunsFilter(statuses=_GOING), limit=_PAGE, cursor=cursor):
        cursor = page[-1].dagster_run.run_id
        for record in page:
            limit = seconds_of(record.dagster_run.tags.get(SLO))
            missed += limit is not None and now - record.create_timestamp.timestamp() > limit
    if missed >= rule.runs:
        yield "slo", f"{missed} runs missed their service level in the last {rule.minutes} min"
