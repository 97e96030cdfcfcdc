"""The sensor that looks at the rules of `alerts.yaml` and tells; what was told to whom is its cursor."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

from dagster import DefaultSensorStatus, SensorEvaluationContext, SkipReason, sensor

from mloc_dagster.alerts.channels import Notice, NotTold, tell
from mloc_dagster.alerts.rules import holding
from mloc_dagster.alerts.settings import AlertSettings, Channel, settings_file, settings_of
from mloc_dagster.spec import SpecError
from mloc_dagster.store.home import Home
from mloc_dagster.usage.fill import refresh
from mloc_dagster.usage.table import UsageTable

_AT_ONCE_SECONDS = 5.0
_Told = dict[str, dict[str, tuple[float, str]]]
"""By channel: what it knows to hold, when it was told, and in which words."""


@sensor(
    name="alerts",
    minimum_interval_seconds=15,
    default_status=DefaultSensorStatus.RUNNING,
    description="Tells of failures, backlog, missed service levels and lost workers, by alerts.yaml.",
)
def alerts_sensor(context: SensorEvaluationContext) -> SkipReason:
    """Look, tell what is new, and what is over."""
    home = Home.current()
    try:
        settings = settings_of(home)
    except SpecError as error:
        return SkipReason(str(error))
    if not settings.channels:
        return SkipReason(f"nobody is told: there are no channels in {settings_file(home)}")
    table = UsageTable.of_instance(context.instance)
    refresh(context.instance, table, _AT_ONCE_SECONDS)
    told, lines = after(json.loads(context.cursor or "{}"), holding(context.instance, table, settings.rules), settings)
    context.update_cursor(json.dumps(told))
    for line in lines:
        context.log.info(line)
    return SkipReason("; ".join(lines) or "nothing new")


def after(told: _Told, holds: Mapping[str, str], settings: AlertSettings) -> tuple[_Told, list[str]]:
    """Tell each channel what it does not know yet; returns what each knows then, and a line on each message.

    A channel that cannot be reached knows no more than before, and is told at the next look.
    """
    known: _Told = {}
    lines: list[str] = []
    for number, channel in enumerate(settings.channels):
        name = f"{number} {channel.name}"
        before = told.get(name, {})
        try:
            known[name], count = _tell(channel, before, holds, settings.repeat_minutes * 60.0)
        except NotTold as error:
            known[name] = before
            lines.append(f"could not tell {error}")
            continue
        if count:
            lines.append(f"told {channel.name} of {count}")
    return known, lines


def _tell(
    channel: Channel, before: Mapping[str, tuple[float, str]], holds: Mapping[str, str], repeat: float
) -> tuple[dict[str, tuple[float, str]], int]:
    now = time.time()
    due = [key for key in holds if key not in before or now - before[key][0] >= repeat]
    notices = [Notice(key, "firing", holds[key], now) for key in due]
    notices += [Notice(key, "resolved", f"no more: {before[key][1]}", now) for key in before if key not in holds]
    if notices:
        tell(channel, notices)
    return {key: (now, text) if key in due else before[key] for key, text in holds.items()}, len(notices)
