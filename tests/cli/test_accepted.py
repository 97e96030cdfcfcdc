"""`mloc list` also tells of tasks that the service has accepted and that are no runs yet."""

from __future__ import annotations

import json
from pathlib import Path

from dagster._core.utils import make_new_run_id

from mloc_dagster.service.intake import Accepted, Intake
from tests.cli.conftest import ECHO, Mloc


def test_accepted_tasks_come_first(mloc: Mloc, tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(ECHO.format(name="ran"))
    assert mloc("run", "t.yaml").code == 0
    number = make_new_run_id()
    intake = Intake(f"sqlite:///{mloc.home.dagster / 'intake.db'}")
    intake.add([Accepted(number, "waits", "bob", "p", "job", "text", "t", tmp_path)])
    intake.close()
    rows = json.loads(mloc.here("list", "--json").out)
    assert [(row["task"], row["status"]) for row in rows] == [("waits", "ACCEPTED"), ("ran", "SUCCESS")]
    assert [row["task_id"] for row in json.loads(mloc.here("list", "--json", "--status", "accepted").out)] == [number]
    assert len(json.loads(mloc.here("list", "--json", "-n", "1").out)) == 1
