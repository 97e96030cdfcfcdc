"""GPU-hours of written histories are exact: retries, cancels, several devices, parts of one; waits do not count."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import date

import pytest
from dagster import DagsterEventType as Event
from dagster import DagsterRunStatus as Status

from mloc_dagster.placement.ledger.grant import LEASE
from mloc_dagster.placement.queue.asked import NEEDS
from mloc_dagster.spec.base import Json
from mloc_dagster.usage import fill, history
from mloc_dagster.usage.held import HELD, Held
from mloc_dagster.usage.settings import UsageSettings
from mloc_dagster.usage.stats import Asked, breakdown, stats
from mloc_dagster.usage.table import Chosen, Total
from tests.usage.conftest import NOON, Past

A100, L4 = "a100-80gb", "l4"


def told(past: Past, **asked: Json) -> dict[str, Json]:
    fill.refresh(past.instance, past.table)
    return stats(past.table, Asked(**asked), UsageSettings())


def rows(past: Past, by: str) -> dict[str, dict[str, Json]]:
    return {row[by]: row for row in breakdown(past.table, Asked(), UsageSettings(), by)}  # pyright: ignore


def test_devices_are_counted_from_start_to_end_and_the_queue_is_not(past: Past) -> None:
    past.run(gpus=[(A100, 1000), (A100, 1000), (L4, 500)], cpu=4000, seconds=1800, waited=7200)
    found = told(past)
    assert found["total_gpu_hours"] == 1.25 and found["breakdown_by_gpu"] == {A100: 1.0, L4: 0.25}
    assert (found["total_cpu_hours"], found["total_queue_hours"]) == (2.0, 2.0)
    assert found["by_user"] == {"ann": 1.25} and found["by_project"] == {"demo": 1.25}


def test_an_attempt_that_failed_and_the_wait_before_the_next_one_count(past: Past) -> None:
    steps = [
        (0, Event.STEP_START, "t__a"), (600, Event.STEP_UP_FOR_RETRY, "t__a"),
        (720, Event.STEP_RESTARTED, "t__a"), (1800, Event.STEP_SUCCESS, "t__a"),
    ]  # fmt: skip
    run_id = past.run(steps, gpus=[(A100, 1000)], seconds=1800)
    assert told(past)["total_gpu_hours"] == 0.5
    by_stage = rows(past, "stage")
    assert by_stage["t/a"]["gpu_hours"] == pytest.approx(1680 / 3600) and by_stage["-"]["gpu_hours"] == 120 / 3600
    from sqlalchemy import select

    from mloc_dagster.usage import tables

    chosen = (tables.entries.c.run_id == run_id) & (tables.entries.c.gpu == A100)
    with past.table._database.reading() as connection:
        found = connection.execute(select(tables.entries).where(chosen)).all()
    assert sorted((row.step, row.attempt, row.device_us) for row in found) == [
        ("", 0, 120_000_000), ("t/a", 1, 600_000_000), ("t/a", 2, 1_080_000_000),
    ]  # fmt: skip


def test_a_cancelled_run_counts_until_then_and_one_that_never_began_only_waited(past: Past) -> None:
    past.run([(0, Event.STEP_START, "a")], gpus=[(A100, 1000)] * 4, seconds=900, status=Status.CANCELED)
    past.run(began=None, seconds=0, waited=600, status=Status.CANCELED)
    found = told(past)
    assert (found["total_gpu_hours"], found["total_tasks_completed"], found["total_tasks_canceled"]) == (1.0, 0, 2)
    assert found["total_queue_hours"] == 600 / 3600 and rows(past, "stage")["a"]["gpu_hours"] == 1.0


def test_steps_side_by_side_share_what_their_run_holds(past: Past) -> None:
    steps = [
        (0, Event.STEP_START, "a"), (900, Event.STEP_START, "b"),
        (1800, Event.STEP_SUCCESS, "a"), (3600, Event.STEP_SUCCESS, "b"),
    ]  # fmt: skip
    past.run(steps, gpus=[(A100, 1000)], tokens=("b", 70, 30))
    assert told(past)["total_gpu_hours"] == 1.0
    by_stage = rows(past, "stage")
    assert (by_stage["a"]["gpu_hours"], by_stage["b"]["gpu_hours"]) == (0.375, 0.625)
    assert (by_stage["b"]["prompt_tokens"], by_stage["b"]["completion_tokens"]) == (70, 30)


def test_stages_with_workers_of_their_own_hold_what_each_took(past: Past) -> None:
    steps = [
        (0, Event.STEP_START, "t__a"), (900, Event.STEP_UP_FOR_RETRY, "t__a"), (1000, Event.STEP_RESTARTED, "t__a"),
        (1800, Event.STEP_SUCCESS, "t__a"), (0, Event.STEP_START, "t__b"), (3600, Event.STEP_SUCCESS, "t__b"),
    ]  # fmt: skip
    two: Json = {"devices": [[A100, 1000], [A100, 1000]], "cpu": 4000}
    half: Json = {"devices": [[L4, 500]], "cpu": 1000}
    seats: list[tuple[float, str, Json]] = [
        (300, "t__a", two), (850, "t__a", None), (1250, "t__a", two), (1800, "t__a", None),
        (1800, "t__b", half),  # was killed: nobody says that it gives this back
    ]  # fmt: skip
    past.run(steps, seats=seats, seconds=5400, gpus=[(A100, 1000)], split=True)
    past.run(steps, seats=seats, seconds=5400, gpus=[(A100, 1000)], split=True, status=Status.FAILURE, owner="bob")
    found = told(past)
    each = (
        (2 * (550 + 550) + 300) / 3600,
        0.5 * 1800 / 3600,
    )  # the run itself held one until the first stage had its own
    assert found["breakdown_by_gpu"] == pytest.approx({A100: 2 * each[0], L4: 2 * each[1]})
    assert found["total_cpu_hours"] == pytest.approx(2 * (4 * 1100 + 1800 + 300) / 3600)
    assert found["by_user"] == pytest.approx({"ann": sum(each), "bob": sum(each)})
    past.run(seats=seats[:2], seconds=5400, gpus=[(A100, 1000)], owner="cem")
    found = told(past)["by_user"]["cem"]
    assert found == pytest.approx(1.5 + 2 * 550 / 3600), "adopted work has a worker besides that of its run"


def test_days_are_cut_at_midnight(past: Past) -> None:
    past.run(gpus=[(A100, 1000)], began=NOON + 11 * 3600, seconds=3 * 3600)
    first, second = date.fromtimestamp(NOON), date.fromtimestamp(NOON + 86_400)
    assert told(past, start=first, end=first)["total_gpu_hours"] == 1.0
    assert told(past, start=second)["total_gpu_hours"] == 2.0
    assert told(past, start=first, end=second)["total_tasks_completed"] == 1
    assert {day: row["gpu_hours"] for day, row in rows(past, "day").items()} == {str(first): 1.0, str(second): 2.0}


def test_filling_again_changes_nothing_and_a_rebuild_mends_what_was_spoilt(past: Past) -> None:
    for owner in ("ann", "bob", "ann"):
        past.run(gpus=[(L4, 250)], owner=owner, status=Status.FAILURE)
    before = told(past)
    assert fill.refresh(past.instance, past.table) == fill.Filled(0, 0)
    past.instance.add_run_tags(past.instance.get_runs(limit=1)[0].run_id, {"note": "later"})
    assert fill.refresh(past.instance, past.table) == fill.Filled(1, 0)
    with past.table._database.writing() as connection:
        connection.exec_driver_sql("UPDATE mloc_usage_levels SET device_us = device_us + 5")
        connection.exec_driver_sql("UPDATE mloc_usage SET device_us = 1")
    assert told(past)["total_gpu_hours"] != before["total_gpu_hours"]
    assert fill.rebuild(past.instance, past.table) == fill.Filled(3, 3)
    assert told(past) | {"as_of": 0} == before | {"as_of": 0}


def test_a_run_that_is_deleted_keeps_its_usage(past: Past) -> None:
    run_id = past.run(gpus=[(L4, 1000)])
    assert told(past)["total_gpu_hours"] == 1.0
    past.instance.delete_run(run_id)
    assert fill.rebuild(past.instance, past.table).read == 0 and told(past)["total_gpu_hours"] == 1.0


@pytest.mark.parametrize(
    "tags",
    [
        {LEASE: "nonsense"},
        {LEASE: "[" * 100_000},
        {LEASE: '{"devices": [1]}'},
        {HELD: "{}", LEASE: "", NEEDS: '{"cpu": "many", "gpus": []}'},
        {LEASE: "", NEEDS: '{"cpu": 1.5, "gpus": []}'},
        {LEASE: "", NEEDS: json.dumps({"cpu": 2**70, "gpus": []})},
    ],
)
def test_a_run_with_tags_that_nobody_can_use_does_not_stop_the_others(past: Past, tags: dict[str, str]) -> None:
    past.run(tags=tags, owner="eve")
    past.run(gpus=[(A100, 1000)])
    found = told(past)
    assert found["total_gpu_hours"] == 1.0 and found["total_tasks_completed"] == 2
    assert fill.refresh(past.instance, past.table) == fill.Filled(0, 0)


def test_no_run_holds_more_than_a_worker_can_have(past: Past) -> None:
    run_id = past.run(tags={LEASE: ""})
    devices = [["x" * 300, 2**70], ["", 1000], ["l4\0", -5]]
    past.instance.add_run_tags(run_id, {HELD: json.dumps({"run_id": run_id, "devices": devices, "cpu": 10**30})})
    found = told(past)
    assert found["breakdown_by_gpu"] == {"unknown": 1.0, "x" * 200: 1.0}
    assert found["total_cpu_hours"] == 10_000


def test_a_run_that_no_table_can_hold_counts_as_ended(past: Past) -> None:
    runs = history.read(past.instance, [(past.run(), 1.0), (past.run(gpus=[(L4, 1000)]), 2.0)])
    runs.sort(key=lambda run: run.updated)
    runs = [replace(runs[0], held=Held((), 2**62)), runs[1]]
    assert fill._entered(past.table, runs) == 2
    whole = sum(past.table.totals(Chosen()).by_gpu.values(), Total())
    assert (whole.succeeded, whole.device_us) == (2, 3_600_000_000) and whole.cpu_us == 3_600_000_000


def test_tokens_count_for_the_run_whose_work_cost_them(past: Past) -> None:
    first = past.run([(0, Event.STEP_START, "b")], tokens=("b", 70, 30), status=Status.FAILURE)
    past.run([(0, Event.STEP_START, "b")], tokens=("b", 70, 30), told_by=first)  # a replay tells of what was finished
    assert told(past)["tokens"] == {"prompt": 70, "completion": 30}


def test_clocks_of_other_machines_hide_no_run(past: Past) -> None:
    now = time.time()
    ahead = past.run(gpus=[(L4, 1000)])
    past.changed(ahead, now + 86_400)
    assert told(past)["total_gpu_hours"] == 1.0
    past.changed(past.run(gpus=[(L4, 1000)]), now)
    assert told(past)["total_gpu_hours"] == 2.0
    behind = past.run(gpus=[(L4, 1000)])
    past.changed(behind, now - 86_400)
    with fill.kept_in_step(past.instance, past.table):
        until = time.monotonic() + 30
        while past.table.count() < 3 and time.monotonic() < until:
            time.sleep(0.1)
    assert stats(past.table, Asked(), UsageSettings())["total_gpu_hours"] == 3.0


def test_sums_of_an_earlier_version_are_made_anew(past: Past) -> None:
    past.run(gpus=[(L4, 1000)])
    before = told(past)
    with past.table._database.writing() as connection:
        connection.exec_driver_sql("DELETE FROM mloc_usage_levels")
    assert told(past) == before


def test_filters_and_states(past: Past) -> None:
    past.run(owner="ann", project="p", gpus=[(A100, 1000)])
    past.run(owner="bob", project="p", gpus=[(L4, 1000)], status=Status.FAILURE)
    past.run(owner="bob", project="q", tags={"mloc/slo_seconds": "3000"})
    assert told(past, user="bob")["breakdown_by_gpu"] == {L4: 1.0}
    assert told(past, user="bob", project="q")["total_tasks_completed"] == 1
    assert told(past, user="nobody")["total_gpu_hours"] == 0
    total = sum(past.table.totals(Chosen()).by_gpu.values(), Total())
    assert (total.succeeded, total.failed, total.slo_breached, total.slo_met) == (2, 1, 1, 0)
    assert rows(past, "task")["t"]["succeeded"] == 2
