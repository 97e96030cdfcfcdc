"""Delivers the result of a stage: whole, also when it was reused, and only with the gates' consent."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mloc_dagster.delivery import deliver
from mloc_dagster.files.atomic import half_folder
from mloc_dagster.files.links import link_or_copy
from mloc_dagster.placement.local import gate
from mloc_dagster.placement.local.inputs import InputError
from mloc_dagster.plan.compiler import destination_of
from mloc_dagster.plan.steps import Plan
from mloc_dagster.provenance import write_provenance
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.taskfile import Stage
from mloc_dagster.store.home import Home
from mloc_dagster.store.manifest import write_manifest
from mloc_dagster.store.results import RESPONSES, Envelope, read_envelope, write_envelope


def publish(plan: Plan, stage: Stage, home: Home, task_id: str) -> tuple[dict[str, Json], Envelope]:
    """Deliver a stage's result and return what was delivered where, and the result's envelope.

    Raises InputError when there is nothing to deliver, Refused for weights that a gate holds back, DeliveryError.
    """
    folder = home.run_folder(task_id, stage.name)
    if not (folder / RESPONSES).is_file():
        raise InputError(f"stage {stage.name} has no result to publish; run it first")
    destination = destination_of(plan.task.stages, stage)
    assert destination is not None
    envelope = read_envelope(folder / RESPONSES)
    with _with_artifacts(stage, home, folder, envelope) as whole:
        gate.require_passed(plan, stage, whole, envelope, home)
        write_provenance(plan.task, stage, envelope, whole, home)
        metadata = deliver(whole, destination, home, plan.task.name)
    gate.note_publication(plan, stage, envelope, home, str(metadata.get("delivered_to")))
    return metadata, envelope


@contextmanager
def _with_artifacts(stage: Stage, home: Home, folder: Path, envelope: Envelope) -> Iterator[Path]:
    """Yield the run folder; of a reused result a copy (links) of the folder that it came from, under its own name."""
    origin = envelope.metadata.get("reused_from")
    if not origin:
        yield folder
        return
    source = home.results / str(origin)
    if not source.is_dir():
        raise InputError(f"stage {stage.name} was reused from {origin}, which is gone; run it with --fresh")
    with half_folder(home.work, "publish") as aside:
        whole = aside / folder.parent.name / folder.name
        shutil.copytree(source, whole, copy_function=link_or_copy)
        write_envelope(whole, envelope)
        write_manifest(whole, envelope.task_id, list(stage.spec.output.artifacts))
        yield whole
