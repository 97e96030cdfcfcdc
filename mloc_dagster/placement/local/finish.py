"""Run folders: a work folder becomes one when its work is done, or tells whose work was reused."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from mloc_dagster.files import archives
from mloc_dagster.files.atomic import sweep
from mloc_dagster.files.paths import moved
from mloc_dagster.placement import inventory
from mloc_dagster.placement.failures.cause import Cause
from mloc_dagster.placement.local import inputs
from mloc_dagster.placement.local.outcome import RunInfo, StepFailed
from mloc_dagster.spec.taskfile import Stage
from mloc_dagster.store.manifest import write_manifest
from mloc_dagster.store.results import RESPONSES, Envelope, read_envelope, write_envelope
from mloc_dagster.store.reuse import Entry, ReuseIndex

Judge = Callable[[Envelope], Envelope]
"""Adds the verdict of the stage's gate to a result."""
_ARCHIVED = ("final_model", "final_lora")


def finish(
    stage: Stage, run: RunInfo, work: Path, final: Path, digest: str, placed: inventory.Placement, given: inputs.Inputs,
    judge: Judge,
) -> Envelope:  # fmt: skip
    """Turn a work folder into a run folder: archives, envelope, manifest, entry for reuse, then one rename."""
    result = json.loads((work / "result.json").read_text("utf-8"))
    payload = moved(result["payload"], str(work), str(final))
    for name in _ARCHIVED:
        if (work / name).is_dir():
            archive = _archive(work / name, work / "artifacts")
            payload[f"{name}_archive_path"] = str(final / "artifacts" / archive.name)
            payload[f"{name}_archive_bytes"] = archive.stat().st_size
    metadata = {
        **moved(result.get("metadata", {}), str(work), str(final)),
        "metrics": result.get("metrics", {}),
        "digest": digest,
        "inputs": given.digests,
        "run_id": run.run_id,
        "task_type": stage.spec.task_type,
        "devices": list(placed.devices) or ["cpu"],
    }
    if placed.note:
        metadata["placement_note"] = placed.note
    if given.model:
        metadata["model_digest"] = given.model.digest
    envelope = Envelope(
        task_id=f"{run.task_id}/{stage.name}",
        stage=stage.name,
        worker=placed.worker or socket.gethostname(),
        metadata=metadata,
        received_at=datetime.now(UTC).isoformat(),
        result=payload,
    )
    envelope = judge(envelope)
    for leftover in ("result.json", "error.json", "job.json", ".cache"):
        path = work / leftover
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    sweep(work, least_age=0)  # of attempts that were killed
    write_envelope(work, envelope)
    write_manifest(work, f"{run.task_id}/{stage.name}", list(stage.spec.output.artifacts))
    # Before the rename: an entry whose folder is not there counts for nothing, a folder without entry would be lost.
    entry = Entry(
        task_id=run.task_id,
        stage=stage.name,
        folder=final,
        artifact_digest=hashlib.sha256((work / RESPONSES).read_bytes()).hexdigest(),
        finished_at=envelope.received_at,
    )
    ReuseIndex(run.home).record(digest, entry)
    _publish_folder(work, final)
    return envelope


def _archive(folder: Path, out: Path) -> Path:
    try:
        return archives.make_archive(folder, out)
    except archives.ArchiveError as error:
        raise StepFailed(f"{folder.name} cannot be archived: {error}", Cause.INTERNAL) from None


def _publish_folder(work: Path, final: Path) -> None:
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        old = final.with_name(f".{final.name}.replaced")
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
        work.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    else:
        work.rename(final)


def reuse(stage: Stage, run: RunInfo, entry: Entry, digest: str, final: Path, judge: Judge) -> Envelope:
    """Write the envelope of an earlier result into this task's folder; its artifacts stay where they are."""
    source = read_envelope(entry.folder / RESPONSES)
    envelope = source.model_copy(
        update={
            "task_id": f"{run.task_id}/{stage.name}",
            "stage": stage.name,
            "received_at": datetime.now(UTC).isoformat(),
            "metadata": {**source.metadata, "reused_from": origin_of(entry), "run_id": run.run_id, "digest": digest},
        }
    )
    envelope = judge(envelope)
    write_envelope(final, envelope)
    write_manifest(final, envelope.task_id, [])
    return envelope


def origin_of(entry: Entry) -> str:
    """The task and stage that did the work."""
    return f"{entry.task_id}/{entry.stage}"


def finished(final: Path, digest: str) -> Envelope | None:
    """Return the result of a run folder when it is of this digest."""
    try:
        envelope = read_envelope(final / RESPONSES)
    except (OSError, ValueError):
        return None
    return envelope if envelope.metadata.get("digest") == digest else None
