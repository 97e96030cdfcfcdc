"""`schedule` and `triggers` of a task file."""

from __future__ import annotations

from pathlib import Path

import pytest

from mloc_dagster.spec import SpecError, load_text
from mloc_dagster.spec.schedule import Schedule
from mloc_dagster.spec.schedule_checks import cron_fault

HEAD = "apiVersion: mloc/v1\nmetadata: {name: nightly}\nspec:\n  taskType: echo\n"


def faults(lines: str) -> str:
    with pytest.raises(SpecError) as told:
        load_text(HEAD + lines, file="nightly.yaml")
    return str(told.value)


def test_both_spellings_of_a_schedule() -> None:
    told = load_text(HEAD + "  schedule: 0 3 * * *\n").schedule
    assert told == Schedule(cron="0 3 * * *", timezone="UTC", fresh=False)
    written = "  schedule: {cron: 0 3 * * mon-fri, time_zone: Europe/Berlin, fresh: true}\n"
    assert load_text(HEAD + written).schedule == Schedule(cron="0 3 * * mon-fri", timezone="Europe/Berlin", fresh=True)
    assert load_text("taskType: echo\nschedule: 0 3 * * *\n").schedule == told
    assert load_text(HEAD).schedule is None


def test_the_folder_of_a_trigger_starts_from_that_of_the_file(tmp_path: Path) -> None:
    triggers = load_text(HEAD + "  triggers: {inbox: ./in, every_seconds: 2}\n", base=tmp_path).triggers
    assert triggers is not None and (triggers.inbox, triggers.every_seconds) == (str(tmp_path / "in"), 2)


def test_a_file_says_that_it_is_to_be_added() -> None:
    (warning,) = load_text(HEAD + "  schedule: 0 3 * * *\n").warnings
    assert (warning.line, warning.path, warning.way_out) == (5, "spec.schedule", "mloc schedule add FILE")


@pytest.mark.parametrize("cron", ["* * * * *", "*/5 0-6 1,15 jan-mar MON", "59 23 31 12 7", "0 0 * * sun,sat"])
def test_times_that_come(cron: str) -> None:
    from dagster._utils.schedules import is_valid_cron_schedule

    assert cron_fault(cron) is None and is_valid_cron_schedule(cron)


@pytest.mark.parametrize(
    ("cron", "told"),
    [
        ("0 3 * *", "has 4 parts instead of 5"),
        ("60 * * * *", "has '60' as minute"),
        ("0 24 * * *", "has '24' as hour"),
        ("0 0 0 * *", "as day of the month"),
        ("0 0 * foo *", "as month"),
        ("0 0 * * 8", "as day of the week"),
        ("*/0 * * * *", "as minute"),
        ("30-10 * * * *", "as minute"),
        ("- * * * *", "as minute"),
    ],
)
def test_times_that_never_come(cron: str, told: str) -> None:
    assert told in faults(f'  schedule: "{cron}"\n')


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("  schedule: {cron: 0 3 * * *, timezone: Europe/Berlim}\n", "spec.schedule.timezone: is not a time zone"),
        ("  schedule: {timezone: UTC}\n", "spec.schedule.cron"),
        ("  schedule: {cron: 0 3 * * *, timezon: UTC}\n", "did you mean timezone?"),
        ("  schedule: 3\n", "must be a map"),
        ("  schedule: ${WHEN}\n", "cannot hold a reference"),
        ("  triggers: {}\n", "names nothing that could start the task"),
        ("  triggers: {inbox: '${DIR}/in'}\n", "cannot hold a reference"),
        ("  triggers: {s3_prefix: models/in}\n", "spec.triggers.s3_prefix"),
        ("  triggers: {asset_updated: [nightly/echo]}\n", "is an asset of this very task"),
        ("  triggers: {asset_updated: [other]}\n", "is not the key of an asset"),
        ("  triggers: {inbox: in, every_seconds: 0}\n", "every_seconds"),
        ("  triggers: {asset_udated: [a/b]}\n", "did you mean asset_updated?"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(lines: str, told: str) -> None:
    assert told in faults(lines)
