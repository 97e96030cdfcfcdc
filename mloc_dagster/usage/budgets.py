"""Budgets: what an owner or a project has used of what it may, and what follows for new work."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Literal

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter

from mloc_dagster.store.home import Home
from mloc_dagster.usage.entries import CPU
from mloc_dagster.usage.fill import refresh
from mloc_dagster.usage.held import held_by
from mloc_dagster.usage.periods import day_number
from mloc_dagster.usage.settings import Budget, UsageSettings, settings_file, settings_of
from mloc_dagster.usage.stats import cost, hours
from mloc_dagster.usage.table import Chosen, Total, UsageTable

_AT_ONCE_SECONDS = 5.0
_UNITS = {"gpu_hours": "GPU-hours", "cpu_hours": "core-hours"}


@dataclass(frozen=True)
class Exceeded:
    """A budget that is used up: the figures, what follows, and the way out."""

    action: Literal["warn", "refuse"]
    what: str
    way_out: str

    def __str__(self) -> str:
        return f"{self.what}; {self.way_out}"


class BudgetExceeded(Exception):
    """New work is refused."""

    def __init__(self, exceeded: Exceeded) -> None:
        super().__init__(exceeded.what)
        self.way_out = exceeded.way_out


def check(instance: DagsterInstance, table: UsageTable, home: Home, owner: str, project: str) -> list[Exceeded]:
    """Return the budgets of an owner's work in a project that warn; raises BudgetExceeded for one that refuses.

    Raises SpecError when `usage.yaml` has faults: what is bounded by it is not known then.
    """
    settings = settings_of(home)
    mine = [one for one in settings.budgets if one.owner in (None, owner) and one.project in (None, project)]
    if not mine:
        return []
    going = _going(instance)
    found = [told for one in mine for told in _exceeded(table, settings, one, going, settings_file(home).name)]
    for told in found:
        if told.action == "refuse":
            raise BudgetExceeded(told)
    return found


def refuse_beyond(instance: DagsterInstance, owner: str, project: str) -> None:
    """Raise BudgetExceeded where no new work is allowed, SpecError as `check` does; of warnings nobody is told."""
    home = Home.current()
    if settings_of(home).budgets:
        table = UsageTable.of_instance(instance)
        refresh(instance, table, _AT_ONCE_SECONDS)
        check(instance, table, home, owner, project)


def refuse_run(instance: DagsterInstance, run: DagsterRun) -> None:
    """Raise BudgetExceeded for a run of a task whose owner or project may do no new work."""
    if "mloc/task" in run.tags:
        refuse_beyond(instance, run.tags.get("mloc/owner") or "unknown", run.tags.get("mloc/project") or "default")


@dataclass(frozen=True)
class _Going:
    """A run that holds something now."""

    owner: str
    project: str
    since: float
    held: tuple[tuple[str, int], ...]
    cpu: int


def _going(instance: DagsterInstance) -> list[_Going]:
    """Runs that began and are not over; what they hold counts from their start, as it will when they are."""
    going = RunsFilter(statuses=[DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING])
    return [
        _Going(
            run.tags.get("mloc/owner") or "unknown", run.tags.get("mloc/project") or "default", record.start_time,
            (held := held_by(run)).devices, held.cpu,
        )
        for record in instance.get_run_records(going)
        if record.start_time is not None and (run := record.dagster_run)
    ]  # fmt: skip


def _exceeded(
    table: UsageTable, settings: UsageSettings, budget: Budget, going: Iterable[_Going], file: str
) -> Iterable[Exceeded]:
    first, until = _period(budget.period)
    chosen = Chosen(budget.owner, budget.project, None if first is None else day_number(first))
    parts = list(table.totals(chosen).by_gpu.items())
    now = [part for one in going for part in _held_now(one, budget, first)]
    for name in ("gpu_hours", "cpu_hours", "cost"):
        bound = getattr(budget, name)
        if bound is None:
            continue
        used, running = (_measured(name, some, settings) for some in ([*parts, *now], now))
        if used >= bound:
            unit = _UNITS.get(name, settings.currency)
            told = f"{_whose(budget)} has used {used:.4g} of {bound:g} {unit} {_when(budget.period, first)}"
            told += f", {running:.4g} of it by runs that go on" if running else ""
            wait = f"wait until {until}, or " if until else ""
            way_out = f"{wait}have the budget raised in {file}"
            yield Exceeded(budget.action, told, way_out)


def _held_now(one: _Going, budget: Budget, first: date | None) -> list[tuple[str, Total]]:
    if budget.owner not in (None, one.owner) or budget.project not in (None, one.project):
        return []
    begin = datetime(first.year, first.month, first.day, tzinfo=UTC).timestamp() if first else 0.0
    passed = max(0, round((time.time() - max(begin, one.since)) * 1000))
    return [*((gpu, Total(passed * share)) for gpu, share in one.held), (CPU, Total(0, passed * one.cpu))]


def _measured(name: str, parts: list[tuple[str, Total]], settings: UsageSettings) -> float:
    whole = sum((total for _, total in parts), Total())
    if name == "cost":
        return float(cost(parts, settings)["amount"])
    return hours(whole.device_us if name == "gpu_hours" else whole.cpu_us)


def _period(period: str) -> tuple[date | None, date | None]:
    """The first day of the period that goes on, and of the next one."""
    today = datetime.now(UTC).date()
    if period == "day":
        return today, today + timedelta(days=1)
    if period == "month":
        first = today.replace(day=1)
        return first, (first + timedelta(days=32)).replace(day=1)
    return None, None


def _whose(budget: Budget) -> str:
    owner = f"owner {budget.owner}" if budget.owner else ""
    project = f"project {budget.project}" if budget.project else ""
    return " in ".join(filter(None, (owner, project))) or "the whole deployment"


def _when(period: str, first: date | None) -> str:
    return {"day": f"today ({first})", "month": f"this month (since {first})"}.get(period, "in all")
