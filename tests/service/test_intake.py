"""The intake: what it takes in is taken out once, by its own feeder, or cancelled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mloc_dagster.service.intake import LANES, Accepted, Intake
from tests.postgres import missing, postgres_server


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'intake.db'}"
        return
    if missing():
        pytest.skip(missing())
    with postgres_server() as server:
        yield server.database("intake")


def accepted(number: int, **values: str) -> Accepted:
    task = {"task": f"t{number}", "owner": "al", "project": "p", "job": "j", "text": "x: 'ü'", "name": "n", **values}
    return Accepted(f"run-{number}", **task, base=Path("/b"), tags={"a": "b"})


def test_each_task_goes_to_one_feeder_in_order(url: str) -> None:
    intake, other = Intake(url), Intake(url)
    tasks = [accepted(number) for number in range(9)]
    intake.add(tasks)
    lanes = [[task.run_id for task in other.claim(lane, 100)] for lane in range(LANES)]
    assert sorted([*lanes[0], *lanes[1]]) == [task.run_id for task in tasks]
    assert all(lane == sorted(lane) for lane in lanes)
    again = other.claim(0, 2)
    assert [task.run_id for task in again] == lanes[0][:2] and {task.state for task in again} == {"feeding"}
    other.done(lanes[0])
    assert other.claim(0, 100) == [] and intake.get(lanes[0][0]) is None
    kept = intake.get(lanes[1][0])
    assert kept and (kept.text, kept.base, kept.tags) == ("x: 'ü'", Path("/b"), {"a": "b"})
    for one in (intake, other):
        one.close()


def test_what_is_cancelled_is_not_fed(url: str) -> None:
    intake = Intake(url)
    intake.add([accepted(number, owner="ann" if number % 2 else "bo") for number in range(6)])
    assert intake.cancel("run-3") and not intake.cancel("run-3") and not intake.cancel("no-such")
    fed = [task.run_id for lane in range(LANES) for task in intake.claim(lane, 100)]
    assert sorted(fed) == ["run-0", "run-1", "run-2", "run-4", "run-5"]
    assert not intake.cancel("run-1"), "it is on its way"
    intake.refuse("run-1", "no " * 5000)
    told = intake.list(["refused", "canceled"], "ann", "p", 10)
    assert [(task.run_id, task.state) for task in told] == [("run-3", "canceled"), ("run-1", "refused")]
    assert intake.list(["refused", "canceled"], "bo", None, 10) == []
    assert [task.run_id for task in intake.list(["refused", "canceled"], None, None, 1, before=told[0].position)] == [
        "run-1"
    ]
    intake.close()


def test_all_of_a_bulk_or_none(url: str) -> None:
    intake = Intake(url)
    intake.add([accepted(1)])
    with pytest.raises(Exception, match=r"(?i)unique"):
        intake.add([accepted(2), accepted(1)])
    assert intake.get("run-2") is None
    intake.close()
