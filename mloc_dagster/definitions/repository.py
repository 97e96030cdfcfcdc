"""The lazy repository: a job is compiled when it is asked for, from its own file and no other."""

from __future__ import annotations

import logging
import os
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from dagster import AssetKey, AssetsDefinition, JobDefinition, ScheduleDefinition, SensorDefinition
from dagster._core.definitions.asset_checks.asset_checks_definition import AssetChecksDefinition
from dagster._core.definitions.asset_key import AssetCheckKey
from dagster._core.definitions.repository_definition import RepositoryData
from dagster._core.definitions.source_asset import SourceAsset
from dagster._core.errors import DagsterInvalidDefinitionError
from dagster_shared.error import DagsterError

from mloc_dagster.definitions import names
from mloc_dagster.definitions.assets import TaskJob, build_job
from mloc_dagster.plan import Plan, compile_plan
from mloc_dagster.spec import SpecError, load_file
from mloc_dagster.store.home import Home

_log = logging.getLogger("mloc")
_MOST_RECENT = 128
"""So many jobs that were asked for by name are kept; a service that runs for months must not keep them all."""


class _Seen(NamedTuple):
    stamp: tuple[int, int]
    built: TaskJob


class TaskFiles(RepositoryData):
    """Jobs of the task files below `workspace` and of those submitted to `home`.

    What is listed as a whole is read once, so that all parts of one loaded location agree; a single job is always that
    of its file as it is now, also of a file that came later.
    """

    def __init__(self, workspace: Path | None, home: Home) -> None:
        self._workspace, self._home = workspace, home
        self._recent: OrderedDict[Path, _Seen] = OrderedDict()

    @classmethod
    def of_environment(cls) -> TaskFiles:
        """Return the repository over MLOC_TASK_SPECS (default `./task_specs`) and the specs of MLOC_HOME."""
        named = os.environ.get("MLOC_TASK_SPECS")
        workspace = Path(named) if named else Path.cwd() / "task_specs"
        return cls(workspace if workspace.is_dir() else None, Home.current())

    def has_job(self, job_name: str) -> bool:
        """Whether there is a task file of this name."""
        return self._file(job_name) is not None

    def get_job(self, job_name: str) -> JobDefinition:
        """Return the job of one task file; raises DagsterInvalidDefinitionError with the file's faults."""
        path = self._file(job_name)
        if path is None:
            hint = f"write one below {self._workspace or 'task_specs'}, or submit one; `mloc list` shows what ran"
            raise DagsterInvalidDefinitionError(f"there is no task file for job {job_name}; {hint}")
        try:
            return self._built(path, job_name).job
        except SpecError as error:
            raise DagsterInvalidDefinitionError(f"the task file of job {job_name} has faults:\n{error}") from None

    def plan(self, job_name: str) -> Plan:
        """Return the plan behind a job; raises SpecError, or KeyError when there is no such job."""
        path = self._file(job_name)
        if path is None:
            raise KeyError(job_name)
        return self._built(path, job_name).plan

    def get_job_names(self) -> Sequence[str]:
        """Names of all jobs, sorted; no file is read."""
        return sorted(self._files())

    def get_all_jobs(self) -> Sequence[JobDefinition]:
        """All jobs whose files are valid; a bad file is left out with a warning."""
        return [task.job for task in self._all]

    def get_all_sensors(self) -> Sequence[SensorDefinition]:
        """The sensors of alerts and of the inbox, and those of the task files that were added."""
        from mloc_dagster.definitions.alerts import alerts_sensor
        from mloc_dagster.definitions.inbox import inbox_sensor
        from mloc_dagster.definitions.schedules import sensors_of

        return [alerts_sensor, inbox_sensor, *sensors_of(self._home)]

    def get_all_schedules(self) -> Sequence[ScheduleDefinition]:
        """The schedules of the task files that were added."""
        from mloc_dagster.definitions.schedules import schedules_of

        return list(schedules_of(self._home))

    def get_assets_defs_by_key(self) -> Mapping[AssetKey, AssetsDefinition]:
        """The assets of all jobs; of a key that several files share, the first one's.

        That cannot make a cycle: the assets of a job depend only on assets of the same job or of one before it.
        """
        found: dict[AssetKey, AssetsDefinition] = {}
        for task in self._all:
            for definition in task.assets:
                found.setdefault(definition.key, definition)
        return found

    def get_source_assets_by_key(self) -> Mapping[AssetKey, SourceAsset]:
        """None."""
        return {}

    def get_asset_checks_defs_by_key(self) -> Mapping[AssetCheckKey, AssetChecksDefinition]:
        """None of their own; checks belong to their assets."""
        return {}

    def get_top_level_resources(self) -> Mapping:
        """None."""
        return {}

    def get_env_vars_by_top_level_resource(self) -> Mapping:
        """None."""
        return {}

    @cached_property
    def _all(self) -> tuple[TaskJob, ...]:
        """Every valid task: the workspace's by path, then the submitted ones, newest first, since that one is shown."""
        found = []
        for name, path in self._files().items():
            try:
                found.append(build_job(compile_plan(load_file(path)), name))
            except SpecError as error:
                first, *more = str(error).splitlines()
                _log.warning("left out job %s: %s%s", name, first, f" (and {len(more)} more)" if more else "")
            except DagsterError as error:
                _log.warning("left out job %s of %s: %s", name, path, error)
        return tuple(found)

    def _built(self, path: Path, name: str) -> TaskJob:
        stat = path.stat()
        stamp = (stat.st_mtime_ns, stat.st_size)
        seen = self._recent.pop(path, None)
        if seen is None or seen.stamp != stamp:
            seen = _Seen(stamp, build_job(compile_plan(load_file(path)), name))
        self._recent[path] = seen
        while len(self._recent) > _MOST_RECENT:
            self._recent.popitem(last=False)
        return seen.built

    def _file(self, name: str) -> Path | None:
        if not re.fullmatch("[A-Za-z0-9_]+", name):
            return None
        submitted = self._home.specs / f"{name}.yaml"
        if submitted.is_file():
            return submitted
        return names.find_file(self._workspace, name) if self._workspace else None

    def _files(self) -> dict[str, Path]:
        submitted = {path.stem: path for path in sorted(self._home.specs.glob("*.yaml"), key=_newest_first)}
        found: dict[str, Path] = {}
        for path in names.task_files(self._workspace) if self._workspace else ():
            name = names.job_name(path.relative_to(self._workspace))  # pyright: ignore[reportArgumentType]
            if name in found:
                _log.warning("left out %s: %s has the same job name, %s; rename one of them", path, found[name], name)
            elif name not in submitted:
                found[name] = path
        return found | submitted


def _newest_first(path: Path) -> tuple[int, str]:
    return -path.stat().st_mtime_ns, path.name
