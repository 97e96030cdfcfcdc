"""From a job file to the context of its executor: references, secrets, typed spec."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from executors.base import Executor, ExecutorError
from executors.context import TaskContext
from executors.job import Job
from executors.progress import ProgressSink
from executors.secrets import Secrets
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.references import BadReference, resolve
from mloc_dagster.spec.stage import StageSpec

Model = TypeVar("Model", bound=BaseModel)


def resolved_context(job: Job, secrets: Secrets, stop: threading.Event) -> TaskContext:
    """Return the context of a job; raises ExecutorError naming the key that cannot be used."""
    envelopes = _reader(job.upstream)
    try:
        raw = resolve(job.raw, envelopes, secrets)
    except BadReference as error:
        raise ExecutorError(str(error)) from error
    return TaskContext(
        task_id=job.task_id,
        task_name=job.task_name,
        stage=job.stage,
        spec=_validated(StageSpec, raw, "spec", secrets),
        out=job.out,
        model_path=job.model_path,
        model_digest=job.model_digest,
        reward_model_path=job.reward_model_path,
        data_path=job.data_path,
        embedding_path=job.embedding_path,
        reranker_path=job.reranker_path,
        document_paths=job.document_paths,
        cache=job.cache,
        results=job.results,
        devices=() if job.on_cpu else job.devices,
        code_allowed=job.code_allowed,
        progress=ProgressSink(job.out / "logs" / "progress.jsonl"),
        stop=stop,
        envelopes=envelopes,
        redact=secrets.hide,
    )


def check_plugin_section(executor: type[Executor], ctx: TaskContext, secrets: Secrets) -> None:
    """Validate `spec.plugin` against the section that the executor declares; raises ExecutorError."""
    if executor.section is not None:
        _validated(executor.section, ctx.spec.plugin, "spec.plugin", secrets)


def _reader(upstream: Mapping[str, Path]) -> Callable[[str], Mapping[str, Json]]:
    @cache
    def read(stage: str) -> Mapping[str, Json]:
        if stage not in upstream:
            known = ", ".join(sorted(upstream)) or "none"
            raise BadReference(f"stage {stage!r} is no ancestor with a result; those that are: {known}")
        try:
            return json.loads(upstream[stage].read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadReference(f"the result of stage {stage!r} cannot be read: {error}") from error

    return read


def _validated(model: type[Model], raw: Json, at: str, secrets: Secrets) -> Model:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        faults = [
            f"{'.'.join([at, *map(str, fault['loc'])])}: {fault['msg']} (value: {fault['input']!r:.80})"
            for fault in error.errors()
        ]
        text = secrets.hide("\n".join(faults))
        raise ExecutorError(text, "The value after its references were resolved does not fit; mend it there.") from None
