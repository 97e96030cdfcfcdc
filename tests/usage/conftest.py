"""A real instance with a history that is written, not run: each run with its tags, its events and their times."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from dagster import AssetKey, AssetMaterialization, DagsterEvent, DagsterEventType, DagsterInstance, DagsterRun
from dagster import DagsterRunStatus as Status
from dagster._core.events import StepMaterializationData
from dagster._core.execution.plan.objects import StepFailureData, StepRetryData, StepSuccessData
from dagster._core.storage.runs.schema import RunsTable
from dagster._core.utils import make_new_run_id
from dagster_shared.error import SerializableErrorInfo

from mloc_dagster.definitions.instance import open_instance
from mloc_dagster.placement.inventory import Device
from mloc_dagster.placement.ledger.grant import LEASE, Grant
from mloc_dagster.placement.workers.need import WHOLE
from mloc_dagster.spec.base import Json
from mloc_dagster.store.home import Home
from mloc_dagster.usage.held import seat_data
from mloc_dagster.usage.table import UsageTable

NOON = 1_790_000_000 // 86_400 * 86_400 + 43_200.0
"""A noon of UTC, in seconds since the epoch."""
_DATA = {
    DagsterEventType.STEP_SUCCESS: StepSuccessData(1.0),
    DagsterEventType.STEP_UP_FOR_RETRY: StepRetryData(SerializableErrorInfo("no", [], None), None),
    DagsterEventType.STEP_FAILURE: StepFailureData(SerializableErrorInfo("no", [], None), None),
}
_ENDS = {
    Status.SUCCESS: DagsterEventType.RUN_SUCCESS,
    Status.FAILURE: DagsterEventType.RUN_FAILURE,
    Status.CANCELED: DagsterEventType.RUN_CANCELED,
}


@dataclass(frozen=True)
class Past:
    """Writes runs into an instance's storage."""

    instance: DagsterInstance
    table: UsageTable
    home: Home

    def run(
        self,
        steps: Sequence[tuple[float, DagsterEventType, str]] = (),
        *,
        began: float | None = NOON,
        seconds: float = 3600.0,
        waited: float = 0.0,
        status: Status = Status.SUCCESS,
        gpus: Sequence[tuple[str, int]] = (),
        cpu: int = WHOLE,
        owner: str = "ann",
        project: str = "demo",
        task: str = "t",
        tokens: tuple[str, int, int] | None = None,
        told_by: str = "",
        tags: dict[str, str] | None = None,
        seats: Sequence[tuple[float, str, Json]] = (),
        split: bool = False,
    ) -> str:
        """Write a run that is over, or with status STARTED goes on.

        `steps`: seconds after its start, what happened, the step; `gpus`: name, share; `told_by`: the run whose
        work cost the tokens; `seats`: seconds after its start, the step, what it takes of a worker of its own, or None.
        """
        run_id = make_new_run_id()
        devices = tuple(Device(index, name, 80 << 30) for index, (name, _) in enumerate(gpus))
        grant = Grant(1, run_id, "w", devices, 60.0, tuple(share for _, share in gpus), cpu, split)
        named = {"mloc/task": task, "mloc/owner": owner, "mloc/project": project, **(tags or {})}
        if began is not None and LEASE not in named:
            named[LEASE] = json.dumps(asdict(grant))
        run = DagsterRun(job_name="job", run_id=run_id, tags=named)
        self.instance.run_storage.add_run(run)
        created = (began if began is not None else NOON) - waited
        self._created(run_id, created)
        if began is not None:
            self._event(run, DagsterEventType.RUN_START, began)
            told = [(after, step, kind, _DATA.get(kind)) for after, kind, step in steps]
            told += [(after, step, DagsterEventType.ENGINE_EVENT, seat_data(seat)) for after, step, seat in seats]
            for after, step, kind, data in sorted(told, key=lambda one: one[0]):
                self._event(run, kind, began + after, step, data)
            if tokens:
                self._tokens(run, began + seconds / 2, *tokens, told_by or run_id)
        if status in _ENDS:
            self._event(run, _ENDS[status], (began if began is not None else NOON) + seconds)
        return run_id

    def changed(self, run_id: str, at: float) -> None:
        """Have a run's last change bear another time, as of a machine with a clock of its own."""
        moment = datetime.fromtimestamp(at, UTC).replace(tzinfo=None)
        with self.instance.run_storage.connect() as connection:  # pyright: ignore
            change = sa.update(RunsTable).where(RunsTable.c.run_id == run_id)
            connection.execute(change.values(update_timestamp=moment))

    def _event(self, run: DagsterRun, kind: DagsterEventType, at: float, step: str | None = None, data=None) -> None:
        event = DagsterEvent(kind.value, run.job_name, step_key=step, event_specific_data=data)
        self.instance.report_dagster_event(event, run.run_id, timestamp=at)

    def _tokens(self, run: DagsterRun, at: float, step: str, prompt: int, completion: int, told_by: str) -> None:
        told = {"usage/prompt_tokens": prompt, "usage/completion_tokens": completion}
        metadata = {"run_id": told_by, **told}
        made = AssetMaterialization(AssetKey(step.split("__")), metadata=metadata)
        self._event(run, DagsterEventType.ASSET_MATERIALIZATION, at, step, StepMaterializationData(made))

    def _created(self, run_id: str, at: float) -> None:
        moment = datetime.fromtimestamp(at, UTC).replace(tzinfo=None)
        with self.instance.run_storage.connect() as connection:
            change = sa.update(RunsTable).where(RunsTable.c.run_id == run_id)
            connection.execute(change.values(create_timestamp=moment))


@pytest.fixture
def past(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Past]:
    """An empty history in a home of its own."""
    for name in ("MLOC_USAGE", "DAGSTER_HOME", "MLOC_ON"):
        monkeypatch.delenv(name, raising=False)
    home = Home(tmp_path / "home")
    monkeypatch.setenv("MLOC_HOME", str(home.root))
    monkeypatch.setenv("DAGSTER_HOME", str(home.dagster))
    with open_instance(home) as instance:
        yield Past(instance, UsageTable.of_instance(instance), home)
