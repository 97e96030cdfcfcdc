"""What a stage reads: the results of its ancestors, its model and data, and local files; each with a digest."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from mloc_dagster.plan.compiler import dataset_key, reads_source, waits_for
from mloc_dagster.plan.steps import Plan
from mloc_dagster.sources import Cache, Progress, Pulled, PullError, pull_dataset, pull_model
from mloc_dagster.spec.base import Json
from mloc_dagster.spec.data import Data
from mloc_dagster.spec.model import ModelSource, RewardModel
from mloc_dagster.spec.references import BadReference, find, has_reference, resolve
from mloc_dagster.spec.retrieval import Documents, Embedding, Rag, Reranker
from mloc_dagster.spec.stage import StageSpec
from mloc_dagster.spec.task_types import known
from mloc_dagster.spec.taskfile import Stage
from mloc_dagster.store.digests import Digests
from mloc_dagster.store.home import Home
from mloc_dagster.store.results import Envelope, find_result, read_envelope

_FILE_KEYS = (("data", "jsonl", "path"), ("checkpoint", "load", "path"), ("training", "resume_from_path"))


class InputError(Exception):
    """An input that is not there; the message says which, why, and what to do."""


@dataclass(frozen=True)
class Inputs:
    """Paths that the work gets, and the digest of everything that it reads."""

    upstream: dict[str, Path]
    model: Pulled | None = None
    reward_model: Pulled | None = None
    data: Pulled | None = None
    embedding: Pulled | None = None
    reranker: Pulled | None = None
    documents: tuple[Pulled | None, ...] = ()
    digests: dict[str, str] = field(default_factory=dict)


def mirror_of(spec: StageSpec) -> str | None:
    """The mirror that a stage pulls from: its own, else the deployment's (MLOC_MIRROR)."""
    return spec.mirror or os.environ.get("MLOC_MIRROR") or None


def gather(plan: Plan, stage: Stage, home: Home, task_id: str, progress: Progress | None = None) -> Inputs:
    """Find or pull all inputs of a stage; raises InputError or PullError."""
    upstream = {name: _upstream(plan, name, home, task_id) for name in sorted(given_by(plan, stage))}
    upstream.update({name: _required(name, home) for name in plan.task.requires})
    digests = {f"stage:{name}": _digest(_envelope(name, path)) for name, path in upstream.items()}
    spec = _resolved_sources(stage, upstream)
    cache, kind = Cache(home.cache), known()[spec.task_type]
    model = reward_model = data = None
    if spec.model.source is not None and reads_source(kind, "model"):
        model = pull_model(spec.model.source, cache=cache, mirror=mirror_of(spec), progress=progress)
        digests["model"] = model.digest
    reward_source = spec.reward_model.source() if spec.reward_model else None
    if reward_source is not None and reads_source(kind, "reward_model"):
        reward_model = pull_model(reward_source, cache=cache, mirror=mirror_of(spec), progress=progress)
        digests["reward_model"] = reward_model.digest
    if dataset_key(spec.data) is not None and reads_source(kind, "data"):
        data = pull_dataset(spec.data, cache=cache, mirror=mirror_of(spec), progress=progress)
        digests["data"] = data.digest
    embedding = None
    if spec.rag.embedding is not None and reads_source(kind, "embedding"):
        embedding = pull_model(spec.rag.embedding.source(), cache=cache, mirror=mirror_of(spec), progress=progress)
        digests["embedding"] = embedding.digest
    reranker = None
    if spec.rag.search.rerank_model is not None and reads_source(kind, "reranker"):
        source = spec.rag.search.rerank_model.source()
        reranker = pull_model(source, cache=cache, mirror=mirror_of(spec), progress=progress)
        digests["reranker"] = reranker.digest
    documents = _documents(spec, cache, progress) if kind.reads("rag.documents") else ()
    digests.update({f"documents.{index}": one.digest for index, one in enumerate(documents) if one})
    for name, path in local_files(kind.part(stage.raw)):
        digests[name] = Digests(home).of(path) if path.exists() else "absent"
    return Inputs(upstream, model, reward_model, data, embedding, reranker, documents, digests)


def given_by(plan: Plan, stage: Stage) -> Iterable[str]:
    """The stages whose results a stage is given: all before it, or (where it goes on after failures) those it reads."""
    if plan.task.workflow.failure_strategy == "continue":
        return waits_for(plan.task, stage)
    return plan.task.ancestors(stage.name)


def _documents(spec: StageSpec, cache: Cache, progress: Progress | None) -> tuple[Pulled | None, ...]:
    """What each source of documents gives; None for one that Python itself brings."""

    def pull(source: Data | None) -> Pulled | None:
        if source is None:
            return None
        return pull_dataset(source, cache=cache, mirror=mirror_of(spec), progress=progress)

    sources = spec.rag.documents.sources() if spec.rag.documents else []
    return tuple(pull(source.data()) for source in sources)


def _upstream(plan: Plan, stage: str, home: Home, task_id: str) -> Path:
    own = home.run_folder(task_id, stage) / "responses.json"
    if own.is_file():
        return own
    found = find_result(home, plan.task.name, stage)
    if found is None:
        raise InputError(f"stage {stage} has no result yet; run it first, or run the whole task")
    return found / "responses.json"


def _required(name: str, home: Home) -> Path:
    found = find_result(home, name)
    if found is None:
        raise InputError(f"spec.dependsOn names {name}, which has no successful result here; run {name} first")
    return found / "responses.json"


def _envelope(name: str, path: Path) -> Envelope:
    try:
        return read_envelope(path)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the result of {name} in {path} cannot be read: {reason}; run {name} with --fresh") from None


def _digest(envelope: Envelope) -> str:
    return str(envelope.metadata.get("digest") or envelope.task_id)


def _resolved_sources(stage: Stage, upstream: dict[str, Path]) -> StageSpec:
    """The stage with references in its models, data and documents resolved, so that they can be pulled."""
    if not names_later(stage):
        return stage.spec

    def envelope(name: str) -> dict[str, Json]:
        if name not in upstream:
            raise BadReference(f"there is no result of {name}")
        return _envelope(name, upstream[name]).model_dump(mode="json")

    try:
        values = resolve(_sources(stage), envelope, os.environ)
    except BadReference as error:
        raise InputError(f"stage {stage.name}: {error}") from None
    try:
        return _with_sources(stage.spec, values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(
            f"stage {stage.name}: a reference gives no usable {key}: {first['msg']}; see what the stage before it wrote"
        ) from None


def names_later(stage: Stage) -> bool:
    """Whether a reference names something that is pulled for the stage, so that it is known only when it runs."""
    return any(find(_sources(stage)))


def _sources(stage: Stage) -> dict[str, Json]:
    """The parts of a stage that name what is pulled for it, as they were written; only those that its type reads."""
    raw = known()[stage.spec.task_type].part(stage.raw)
    data, rag = raw.get("data") or {}, raw.get("rag") or {}
    return {
        "source": (raw.get("model") or {}).get("source"),
        "reward": raw.get("reward_model"),
        "data": {key: value for key, value in data.items() if key in {"url", "dataset_name"}},
        "embedding": rag.get("embedding"),
        "reranker": (rag.get("search") or {}).get("rerank_model"),
        "documents": rag.get("documents"),
    }


def _with_sources(spec: StageSpec, values: dict[str, Json]) -> StageSpec:
    if values["source"]:
        model = spec.model.model_copy(update={"source": ModelSource.model_validate(values["source"])})
        spec = spec.model_copy(update={"model": model})
    if values["reward"]:
        spec = spec.model_copy(update={"reward_model": RewardModel.model_validate(values["reward"])})
    if values["data"]:
        data = Data.model_validate({**spec.data.model_dump(exclude_unset=True), **values["data"]})
        spec = spec.model_copy(update={"data": data})
    return spec.model_copy(update={"rag": _with_rag_sources(spec.rag, values)})


def _with_rag_sources(rag: Rag, values: dict[str, Json]) -> Rag:
    if values["embedding"]:
        rag = rag.model_copy(update={"embedding": Embedding.model_validate(values["embedding"])})
    if values["reranker"]:
        search = rag.search.model_copy(update={"rerank_model": Reranker.model_validate(values["reranker"])})
        rag = rag.model_copy(update={"search": search})
    if values["documents"]:
        rag = rag.model_copy(update={"documents": Documents.model_validate(values["documents"])})
    return rag


def local_files(raw: dict[str, Json]) -> list[tuple[str, Path]]:
    """Return the files and folders of this machine that a stage names, each with its dotted key."""
    found = []
    for keys in _FILE_KEYS:
        value: Json = raw
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, str) and not has_reference(value) and "://" not in value:
            found.append((".".join(keys), Path(value)))
    for index, adapter in enumerate((raw.get("model") or {}).get("adapters") or []):
        path = adapter.get("path") if isinstance(adapter, dict) else None
        if isinstance(path, str) and not has_reference(path) and "://" not in path:
            found.append((f"model.adapters.{index}.path", Path(path)))
    profile = (raw.get("agent") or {}).get("config_name")
    if isinstance(profile, str) and profile.startswith("/"):
        found.append(("agent.config_name", Path(profile)))
    rag = raw.get("rag") or {}
    index = (rag.get("vector_store") or {}).get("path")
    if isinstance(index, str) and not rag.get("documents") and not has_reference(index):
        found.append(("rag.vector_store.path", Path(index)))
    reward = (raw.get("reward_model") or {}).get("identifier")
    if isinstance(reward, str) and reward.startswith(("/", ".", "~")):
        found.append(("reward_model.identifier", Path(reward).expanduser()))
    return found


__all__ = ["InputError", "Inputs", "PullError", "gather", "given_by", "local_files", "mirror_of", "names_later"]
