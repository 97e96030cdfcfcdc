"""What came out of a run, for people and for programs."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from mloc_dagster.cli.screen import table
from mloc_dagster.spec.base import Json
from mloc_dagster.store.home import Home
from mloc_dagster.store.results import Envelope, read_envelope

if TYPE_CHECKING:
    from dagster import DagsterInstance, DagsterRun

    from mloc_dagster.placement.failures.faults import StepFault

_FINE = {"SUCCESS": "green", "FAILURE": "red"}


@dataclass(frozen=True)
class StageSummary:
    """One finished stage."""

    name: str
    folder: Path
    envelope: Envelope


@dataclass(frozen=True)
class Summary:
    """A run's state, its stages' results, and the errors of its failed steps."""

    run_id: str
    task_id: str
    task: str
    status: str
    stages: tuple[StageSummary, ...]
    steps: tuple[tuple[str, str, float | None], ...]
    errors: tuple[StepFault, ...]
    folder: Path
    cause: str | None

    def as_dict(self) -> dict[str, Json]:
        """Return the values for JSON."""
        return {
            "run_id": self.run_id,
            "task_id": self.task_id,
            "task": self.task,
            "status": self.status,
            "results": str(self.folder),
            "steps": [{"step": step, "status": status, "seconds": seconds} for step, status, seconds in self.steps],
            "stages": {s.name: {"folder": str(s.folder), **s.envelope.model_dump(mode="json")} for s in self.stages},
            "cause": self.cause,
            "errors": [asdict(error) for error in self.errors],
        }

    def show(self, console: Console) -> None:
        """Print it."""
        steps = table("", "step", "state", "seconds", "from")
        reused = {stage.name: stage.envelope.metadata.get("reused_from") for stage in self.stages}
        for step, status, seconds in self.steps:
            origin = next(
                (f"reused from {where}" for name, where in reused.items() if where and step.endswith(f"/{name}")), ""
            )
            steps.add_row(
                step,
                f"[{_FINE.get(status, 'yellow')}]{status.lower()}[/]",
                f"{seconds:.1f}" if seconds is not None else "-",
                origin,
            )
        console.print(steps)
        for stage in self.stages:
            _show_stage(console, stage)
        for error in self.errors:
            console.print(Text(f"{error.step}: {error.message}", style="red"), soft_wrap=True)
        why = f" ({self.cause}; again: mloc replay {self.run_id[:8]})" if self.cause else ""
        ended = Text(f"{self.status.lower()}: {self.task} {self.task_id}{why}", style=_FINE.get(self.status, "yellow"))
        console.print(ended, soft_wrap=True)
        for label, path in (
            ("results", self.folder),
            *(("manifest", stage.folder / "manifest.json") for stage in self.stages[-1:]),
        ):
            console.print(Text(f"{label}: {path}"), soft_wrap=True)
        console.print(Text(f"UI: mloc up, then http://127.0.0.1:3000/runs/{self.run_id}"), soft_wrap=True)


def summary(instance: DagsterInstance, home: Home, run_id: str) -> Summary:
    """Collect what is known of a run."""
    from mloc_dagster.placement.failures.faults import faults_of
    from mloc_dagster.placement.failures.letters import cause_of

    found = instance.get_run_by_id(run_id)
    assert found is not None
    task_id = found.tags.get("mloc/task_id") or found.root_run_id or run_id
    folder = home.results / task_id
    stages, damaged = _stages(folder)
    stats = instance.get_run_step_stats(run_id)
    steps = tuple(
        (
            _asset_of(found, stat.step_key),
            stat.status.value if stat.status else "waiting",
            stat.end_time - stat.start_time if stat.end_time and stat.start_time else None,
        )
        for stat in sorted(stats, key=lambda stat: stat.start_time or 0)
    )
    if found.is_finished:
        started = {stat.step_key for stat in stats}
        steps = (*steps, *((_asset_of(found, key), "not run", None) for key in _planned(instance, found, started)))
    task = found.tags.get("mloc/task") or found.job_name
    errors = (*faults_of(instance, found), *damaged)
    return Summary(run_id, task_id, task, found.status.value, stages, steps, errors, folder, cause_of(found))


def _planned(instance: DagsterInstance, run: DagsterRun, started: set[str]) -> list[str]:
    """Steps that the run was to carry out and never came to, such as those that waited for a failed one."""
    if run.execution_plan_snapshot_id is None:
        return []
    snapshot = instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id)
    return [key for key in snapshot.step_keys_to_execute if key not in started]


def _stages(folder: Path) -> tuple[tuple[StageSummary, ...], list[StepFault]]:
    """The results in a task's folder, oldest first, and what is wrong with those that cannot be read."""
    from mloc_dagster.placement.failures.faults import StepFault

    found: list[StageSummary] = []
    damaged: list[StepFault] = []
    for path in sorted(folder.glob("[!.]*/responses.json"), key=lambda path: path.stat().st_mtime_ns):
        try:
            found.append(StageSummary(path.parent.name, path.parent, read_envelope(path)))
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            message = f"{path} cannot be read: {reason}; run the file again with --fresh"
            damaged.append(StepFault(path.parent.name, message, None, 1))
    return tuple(found), damaged


def _asset_of(found: object, step_key: str) -> str:
    return step_key.replace("__", "/")


def _show_stage(console: Console, stage: StageSummary) -> None:
    result = stage.envelope.result
    console.print(Text(f"{stage.name} ({stage.envelope.metadata.get('task_type', '')})", style="bold"))
    usage = result.get("usage")
    if isinstance(usage, dict):
        console.print(Text("  " + ", ".join(f"{key} {_short(value)}" for key, value in usage.items())), soft_wrap=True)
    for item in (result.get("items") or [])[:3]:
        console.print(Text(f"  {_short(item.get('prompt'), 60)} → {_short(item.get('output'), 100)}"), soft_wrap=True)
    if isinstance(result.get("metrics"), dict):
        for name, value in result["metrics"].items():
            console.print(Text(f"  {name}: {_short(value, 200)}"), soft_wrap=True)
    gate = stage.envelope.metadata.get("gate")
    if isinstance(gate, dict):
        said = "passed" if gate.get("passed") else "failed"
        style = _FINE["SUCCESS" if gate.get("passed") else "FAILURE"]
        console.print(Text(f"  gate {said}: {_short(gate.get('reason'), 200)}", style=style), soft_wrap=True)
    if "echo" in result:
        console.print(Text(f"  echo: {_short(result['echo'], 200)}"), soft_wrap=True)
    for key in ("final_model_path", "final_lora_path", "final_model_archive_path", "final_lora_archive_path"):
        if result.get(key):
            console.print(Text(f"  {key}: {os.path.relpath(str(result[key]))}"), soft_wrap=True)
    export = result.get("jsonl_export")
    if isinstance(export, dict):
        console.print(Text(f"  jsonl_export: {export.get('path')} ({export.get('record_count')} rows)"), soft_wrap=True)


def _short(value: Json, limit: int = 40) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(inner)}" for key, inner in value.items())
    text = " ".join(str(value).split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
