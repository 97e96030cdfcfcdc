"""The tables on SQLite and on PostgreSQL: runs entered again, spans of days, breakdowns; sums are those of entries."""

from __future__ import annotations

import random
from dataclasses import replace

import sqlalchemy as sa

from mloc_dagster.usage.entries import CPU, Ended, Moment, entries_of
from mloc_dagster.usage.held import Held
from mloc_dagster.usage.table import Chosen, UsageTable
from tests.placement.ledger.conftest import server, url
from tests.usage.conftest import NOON

__all__ = ["server", "url"]


def history(count: int) -> list[Ended]:
    draw = random.Random(3)
    found = []
    for number in range(count):
        begun = NOON + draw.random() * 90 * 86_400
        seconds = draw.expovariate(1 / 20_000)
        half = begun + seconds / 2
        moments = (
            Moment("s/a", "start", begun + 1), Moment("s/b", "start", begun + seconds / 3),
            Moment("s/a", "end", half), Moment("s/b", "tokens", half, 5, 7),
        )  # fmt: skip
        held = Held((("h100", draw.choice((500, 1000, 3000))), ("l4", 250)), 4000)
        owner, project = draw.choice(("ann", "bob")), draw.choice(("p", "q"))
        status = draw.choice(("SUCCESS", "FAILURE", "CANCELED"))
        times = (begun - 30, begun, begun + seconds)
        found.append(Ended(f"run-{number}", "t", owner, project, status, *times, held, moments, float(number), 9000.0))
    return found


def test_sums_are_those_of_the_entries_whatever_is_asked(url: str) -> None:
    table, runs = UsageTable(url), history(60)
    assert table.enter(runs) == 60 and table.enter(runs) == 0
    changed = replace(runs[0], owner="zoe", ended=(runs[0].started or 0) + 60)
    assert table.enter([changed]) == 1
    runs[0] = changed
    for owner, project in ((None, None), ("ann", None), (None, "q"), ("bob", "p"), ("nobody", None)):
        mine = [run for run in runs if run.owner == (owner or run.owner) and run.project == (project or run.project)]
        days = [entry for run in mine for entry in entries_of(run)]
        first = int(NOON // 86_400)
        for span in (
            (None, None),
            (first + 5, None),
            (first + 3, first + 70),
            (None, first + 40),
            (first + 9, first + 9),
        ):
            low, high = span[0] or 0, span[1] or 10**6
            wanted = [entry for entry in days if low <= entry.day <= high]
            chosen = Chosen(owner, project, span[0], span[1])
            found = table.totals(chosen)
            for gpu in ("h100", "l4"):
                total = sum(entry.device_us for entry in wanted if entry.gpu == gpu)
                assert (found.by_gpu[gpu].device_us if gpu in found.by_gpu else 0) == total
            assert sum(found.by_owner.values()) == sum(found.by_project.values()) == sum(e.device_us for e in wanted)
            assert sum(one.cpu_us for one in table.by_day(chosen).values()) == sum(entry.cpu_us for entry in wanted)
            by_step = table.by_name(chosen, "step")
            assert by_step.get(("s/b", CPU)) is None or by_step["s/b", CPU].completion_tokens == 7 * sum(
                entry.completion_tokens == 7 for entry in wanted
            )
    assert table.by_series(Chosen(), "owner").keys() >= {("ann", "h100"), ("zoe", CPU)}
    before = table.totals(Chosen())
    table.sum_up()
    assert table.totals(Chosen()) == before and table.count() == 60


def test_a_run_gives_away_exactly_what_it_held() -> None:
    for run in history(40):
        assert run.started is not None and run.ended is not None
        length = round(run.ended * 1000) - round(run.started * 1000)
        found = entries_of(run)
        for gpu, share in run.held.devices:
            assert sum(entry.device_us for entry in found if entry.gpu == gpu) == length * share
        assert sum(entry.cpu_us for entry in found) == length * 4000


def test_runs_by_how_long_they_took_and_those_that_missed_their_service_level(url: str) -> None:
    table, runs = UsageTable(url), history(60)
    table.enter(runs)
    bounds = (1.0, 30.0, 10_000.0, 1e9)
    waits, took = table.spread("queue_ms", bounds), table.spread("run_ms", bounds)
    assert waits == [0, 60, 60, 60]
    seconds = [run.ended - run.started for run in runs if run.started is not None and run.ended is not None]
    assert took == [sum(one <= bound + 0.0005 for one in seconds) for bound in bounds]
    late = [run for run in runs if run.status == "SUCCESS" and (run.ended or 0) - run.created > 9000.0]
    assert table.missed_slo(0.0) == len(late) > 0
    assert table.missed_slo(30.0) == sum(run.updated >= 30.0 for run in late)
    assert (
        sum(table.by_run([run.run_id])[run.run_id].succeeded for run in runs)
        == table.totals(Chosen()).by_gpu[CPU].succeeded
    )


def test_sums_of_an_earlier_version_go(url: str) -> None:
    table = UsageTable(url)
    table.enter(history(2))
    with table._database.writing() as connection:
        connection.execute(sa.text("CREATE TABLE mloc_usage_sums (day INTEGER)"))
    table.sum_up()
    with table._database.reading() as connection:
        assert "mloc_usage_sums" not in sa.inspect(connection).get_table_names()
