"""What usage comes to: totals and breakdowns as the service and the command tell them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime

from mloc_dagster.spec.base import Json
from mloc_dagster.usage.entries import CPU
from mloc_dagster.usage.periods import date_of, day_number
from mloc_dagster.usage.settings import UsageSettings
from mloc_dagster.usage.table import By, Chosen, Total, UsageTable

_HOUR_US = 3_600_000_000
_HOUR_MS = 3_600_000
_TOLD = (
    "device_us", "cpu_us", "prompt_tokens", "completion_tokens", "queue_ms", "succeeded", "failed", "canceled",
)  # fmt: skip
"""Sums that the answer of `stats` holds."""


@dataclass(frozen=True)
class Asked:
    """Who and when; dates are days of UTC, the last one included."""

    user: str | None = None
    project: str | None = None
    start: date | None = None
    end: date | None = None

    def chosen(self) -> Chosen:
        """Return it in numbers of days."""
        first, last = (None if one is None else day_number(one) for one in (self.start, self.end))
        return Chosen(self.user, self.project, first, last)

    def as_dict(self) -> dict[str, Json]:
        """Return what was given."""
        given = {"user": self.user, "project": self.project, "start_date": self.start, "end_date": self.end}
        return {name: str(value) for name, value in given.items() if value is not None}


def stats(table: UsageTable, asked: Asked, settings: UsageSettings) -> dict[str, Json]:
    """Return the answer of `/api/v1/stats`; hours of whole devices and cores, of runs that are over."""
    found = table.totals(asked.chosen(), _TOLD)
    whole = sum(found.by_gpu.values(), Total())
    return {
        "query_parameters": asked.as_dict(),
        "total_gpu_hours": hours(whole.device_us),
        "total_tasks_completed": whole.succeeded,
        "breakdown_by_gpu": {gpu: hours(found.by_gpu[gpu].device_us) for gpu in sorted(found.by_gpu) if gpu != CPU},
        "by_user": _hours(found.by_owner),
        "by_project": _hours(found.by_project),
        "total_cpu_hours": hours(whole.cpu_us),
        "total_queue_hours": whole.queue_ms / _HOUR_MS,
        "total_tasks_failed": whole.failed,
        "total_tasks_canceled": whole.canceled,
        "tokens": {"prompt": whole.prompt_tokens, "completion": whole.completion_tokens},
        "cost": cost(found.by_gpu.items(), settings),
        "as_of": datetime.fromtimestamp(latest, UTC).isoformat() if (latest := table.latest()) else None,
    }


def breakdown(table: UsageTable, asked: Asked, settings: UsageSettings, by: By) -> list[dict[str, Json]]:
    """Return one row for each owner, project, GPU, day, task or stage, sorted by name."""
    grouped: dict[str, dict[str, Total]] = defaultdict(lambda: defaultdict(Total))
    for (name, gpu), total in _rows(table, asked.chosen(), by):
        grouped[name][gpu] += total
    return [_row(by, name, grouped[name], settings) for name in sorted(grouped)]


def hours(microseconds: int) -> float:
    """Return µs as hours."""
    return microseconds / _HOUR_US


def cost(parts: Iterable[tuple[str, Total]], settings: UsageSettings) -> dict[str, Json]:
    """Return what devices and cores cost by the prices of now, and the devices that have no price."""
    amount, unpriced = 0.0, set()
    for gpu, total in parts:
        price = settings.prices.of_gpu(gpu) if gpu != CPU else 0.0
        if price is None and total.device_us:
            unpriced.add(gpu)
        amount += hours(total.device_us) * (price or 0.0) + hours(total.cpu_us) * settings.prices.cpu_hour
    return {"amount": round(amount, 6), "currency": settings.currency, "unpriced": sorted(unpriced)}


def _rows(table: UsageTable, chosen: Chosen, by: By) -> Iterable[tuple[tuple[str, str], Total]]:
    if by == "day":
        found = table.by_day(chosen)
        return [((str(date_of(int(day))), gpu), total) for (day, gpu), total in found.items()]
    if by in ("task", "stage"):
        return table.by_name(chosen, "task" if by == "task" else "step").items()
    return table.by_series(chosen, by).items()


def _row(by: By, name: str, parts: Mapping[str, Total], settings: UsageSettings) -> dict[str, Json]:
    total = sum(parts.values(), Total())
    told: dict[str, Json] = {
        by: name or ("cpu" if by == "gpu" else "-"),
        "gpu_hours": hours(total.device_us),
        "cpu_hours": hours(total.cpu_us),
        "prompt_tokens": total.prompt_tokens,
        "completion_tokens": total.completion_tokens,
        "cost": cost(parts.items(), settings)["amount"],
    }
    if by == "stage":
        return told
    states = {"succeeded": total.succeeded, "failed": total.failed, "canceled": total.canceled}
    return {**told, "queue_hours": total.queue_ms / _HOUR_MS, **states}


def _hours(microseconds: Mapping[str, int]) -> dict[str, Json]:
    return {name: hours(microseconds[name]) for name in sorted(microseconds)}
