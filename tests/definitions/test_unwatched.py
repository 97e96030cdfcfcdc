"""Whether anybody will go on with what a run has begun elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from dagster import DagsterInstance, DagsterRunStatus, job
from dagster._core.storage.tags import ROOT_RUN_ID_TAG

from executors.remote import fence
from executors.remote.store import Store
from mloc_dagster.definitions import unwatched
from mloc_dagster.definitions.unwatched import end_unwatched
from mloc_dagster.placement.remote.holding import Elsewhere, hold
from mloc_dagster.store.home import Home

WORK = "jobs/w/t"


@job
def nothing() -> None: ...


def test_work_of_a_run_that_is_over_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, store = Home(tmp_path / "home"), Store(f"file://{tmp_path}/store")
    with DagsterInstance.ephemeral() as instance:
        run = instance.create_run_for_job(nothing, status=DagsterRunStatus.STARTED)
        hold(store, home.work / "w", Elsewhere(store=store.url, identity=WORK, run_id=run.run_id), "a1", "far")
        monkeypatch.setattr(unwatched, "_NEXT_SECONDS", 0.0)
        assert end_unwatched(instance, home) == 0, "it goes on"
        instance.report_run_failed(run)
        tags = {ROOT_RUN_ID_TAG: run.run_id}
        following = instance.create_run_for_job(nothing, status=DagsterRunStatus.STARTING, tags=tags)
        assert end_unwatched(instance, home) == 0, "the next attempt goes on with it"
        instance.report_run_canceled(following)
        monkeypatch.setattr(unwatched, "_NEXT_SECONDS", 60.0)
        assert end_unwatched(instance, home) == 0, "there may be a next one"
        monkeypatch.setattr(unwatched, "_NEXT_SECONDS", 0.0)
        assert end_unwatched(instance, home) == 1
    assert fence.holder(store, WORK) == fence.Holder(attempt="")
