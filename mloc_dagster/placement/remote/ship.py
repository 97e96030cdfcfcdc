"""From a job on this machine to one that runs anywhere: inputs go to the artifact store, results come from there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from executors.job import Job
from executors.remote.cache import pull_file
from executors.remote.document import Input, RemoteJob, RemoteResult
from executors.remote.store import Store, files_below
from mloc_dagster import __version__
from mloc_dagster.files.atomic import write_json
from mloc_dagster.files.paths import moved
from mloc_dagster.placement.local.inputs import local_files
from mloc_dagster.plan.digest import libraries_of
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.references import BadReference, find, parse, resolve
from mloc_dagster.spec.task_types import known
from mloc_dagster.spec.taskfile import Stage
from mloc_dagster.store.home import Home
from mloc_dagster.store.results import find_result, read_envelope

REMOTE_ROOT = "/tmp/mloc"
"""Where a step works over there; the same for all attempts, since some files name their own place."""


def remote_job(
    store: Store, stage: Stage, job: Job, work: str, home: Home, *, timeout: float | None, grace: float, sync: float
) -> RemoteJob:
    """Send what a job reads to the store and return its document; raises StoreError."""
    inputs = [_input(store, path) for path in sorted(set(_paths(stage, job, home)))]
    return RemoteJob(
        version=__version__, work=work, job=job, inputs=tuple(inputs), timeout=timeout, grace=grace, sync=sync,
        libraries=libraries_of(stage.spec.task_type),
    )  # fmt: skip


def collect(store: Store, result: RemoteResult, folder: Path) -> None:
    """Lay an attempt's outputs into the work folder, with the paths of this machine in its result.

    The result comes last: where it is, all of it is. Raises StoreError.
    """
    if result.out is None:
        return
    tree = store.tree(result.out)
    (folder / "result.json").unlink(missing_ok=True)
    for entry in sorted(tree.files, key=lambda one: one.path == "result.json"):
        pull_file(store, entry, folder, again=True)
    path = folder / "result.json"
    if path.is_file():
        write_json(path, moved(json.loads(path.read_text("utf-8")), result.at, str(folder)))


def environment_names(raw: Json) -> set[str]:
    """Names of the environment variables and secrets that a stage refers to."""
    found = set()
    for _, body in find(raw):
        try:
            reference = parse(body)
        except BadReference:
            continue
        if reference.is_environment:
            found.add(reference.head)
    return found


def _paths(stage: Stage, job: Job, home: Home) -> Iterator[Path]:
    """Files and folders of this machine that the job reads."""
    yield from job.upstream.values()
    own = (job.model_path, job.reward_model_path, job.data_path, job.embedding_path, job.reranker_path)
    yield from (path for path in (*own, *job.document_paths) if path is not None)
    yield from (path for _, path in local_files(known()[stage.spec.task_type].part(stage.raw)) if path.exists())
    yield from _named(_resolved(job), home)


def _input(store: Store, path: Path) -> Input:
    if path.is_file():
        return Input(at=str(path), tree=store.push({path.name: path}), file=path.name)
    return Input(at=str(path), tree=store.push(files_below(path)))


def _resolved(job: Job) -> Json:
    """The sections of the stage with what earlier stages gave; what cannot be found is the stage's to tell."""

    def envelope(name: str) -> Mapping[str, Json]:
        if name not in job.upstream:
            raise BadReference(f"there is no result of {name}")
        return read_envelope(job.upstream[name]).model_dump(mode="json")

    found = {}
    for key, value in job.raw.items():
        try:
            found[key] = resolve(value, envelope, _Unset())
        except BadReference:
            found[key] = value
    return found


def _named(value: Json, home: Home, key: str = "") -> Iterator[Path]:
    """Files and folders of the results folder that a value names, by path or by task id."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _named(item, home, str(name))
    elif isinstance(value, list):
        for item in value:
            yield from _named(item, home, key)
    elif isinstance(value, str) and value:
        path = Path(value.removeprefix("file://"))
        if path.is_absolute() and path.is_relative_to(home.root) and path != home.root and path.exists():
            yield path
        elif key == "task_id" and (folder := find_result(home, value)) is not None:
            yield folder


class _Unset(Mapping[str, str]):
    """An environment in which each name is there, and empty: no secret is looked at."""

    def __getitem__(self, name: str) -> str:
        return ""

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0
