"""Create and start runs of task files, without a reload of the code location."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from dagster import DagsterInstance, DagsterRun
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.remote_origin import ManagedGrpcPythonEnvCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from mloc_dagster.definitions.assets import build_job, run_tags
from mloc_dagster.definitions.execution import FRESH, ON, TASK_ID
from mloc_dagster.files.atomic import write_text
from mloc_dagster.placement import inventory
from mloc_dagster.plan import Plan
from mloc_dagster.spec.load import with_base
from mloc_dagster.spec.taskfile import TaskFile
from mloc_dagster.store.home import Home

LOCATION = "mloc"
_MODULE, _REPOSITORY = "mloc_dagster.definitions", "mloc"


def store_spec(home: Home, task: TaskFile, base: Path | None = None) -> str:
    """Keep a copy of a task file among the submitted ones and return its job name; the same file gives the same job.

    Relative paths in it start from `base`, by default the file's own folder.
    """
    name = submitted_job(task)
    path = home.specs / f"{name}.yaml"
    if not path.exists():
        folder = base or (task.path.resolve().parent if task.path else Path.cwd())
        write_text(path, with_base(task.text, folder))
    return name


def submitted_job(task: TaskFile) -> str:
    """Return the job name of a submitted task file."""
    return f"{re.sub(r'[^A-Za-z0-9_]', '_', task.name)}__{task.digest[:8]}"


def submit_file(
    instance: DagsterInstance, home: Home, plan: Plan, *, fresh: bool = False, tags: dict[str, str] | None = None
) -> str:
    """Store a plan's task file, create a run of its job and start it; returns the run's id."""
    return submit(instance, plan, store_spec(home, plan.task), fresh=fresh, tags=tags)


def submit(
    instance: DagsterInstance, plan: Plan, job_name: str, *, fresh: bool = False, tags: dict[str, str] | None = None
) -> str:
    """Create a run of a job that the repository finds by name, and hand it to the run coordinator."""
    run = create_run(instance, plan, job_name, fresh=fresh, tags=tags)
    instance.submit_run(run.run_id, None)  # pyright: ignore[reportArgumentType] - our launcher needs no workspace
    return run.run_id


def create_run(
    instance: DagsterInstance,
    plan: Plan,
    job_name: str,
    *,
    fresh: bool,
    tags: dict[str, str] | None,
    run_id: str | None = None,
) -> DagsterRun:
    """Create a run with all that the UI shows of it: snapshots, origin, tags; under a new id, unless one is given."""
    from dagster._core.utils import make_new_run_id

    run_id = run_id or make_new_run_id()
    given = {**run_tags(plan), TASK_ID: run_id, **({FRESH: "true"} if fresh else {}), **(tags or {})}
    if inventory.cpu_forced():
        given[ON] = "cpu"
    job = build_job(plan, job_name).job
    return instance.create_run_for_job(
        job_def=job,
        run_id=run_id,
        tags=given,
        remote_job_origin=job_origin(job_name),
        job_code_origin=_code_origin(job_name),
        asset_selection=None,
    )


def job_origin(job_name: str) -> RemoteJobOrigin:
    """Return where the web UI finds the job: our module in the location `mloc`."""
    target = LoadableTargetOrigin(executable_path=sys.executable, module_name=_MODULE, working_directory=os.getcwd())
    location = ManagedGrpcPythonEnvCodeLocationOrigin(loadable_target_origin=target, location_name=LOCATION)
    return RemoteJobOrigin(RemoteRepositoryOrigin(location, _REPOSITORY), job_name)


def _code_origin(job_name: str) -> JobPythonOrigin:
    """Return how any Python process of this environment loads the job; Dagster's coordinators ask for it."""
    pointer = ModuleCodePointer(_MODULE, _REPOSITORY, os.getcwd())
    return JobPythonOrigin(job_name, RepositoryPythonOrigin(executable_path=sys.executable, code_pointer=pointer))


__all__ = ["create_run", "job_origin", "store_spec", "submit", "submit_file", "submitted_job"]
