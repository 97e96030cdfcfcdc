"""A job file: all that a step hands to the process that does its work."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from mloc_dagster.spec.base import Json


class Job(BaseModel):
    """One stage to execute. References in `raw` are still unresolved, so no secret is ever in this file."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    task_id: str
    task_name: str
    stage: str
    raw: dict[str, Json]
    out: Path
    upstream: dict[str, Path] = {}
    """Ancestor stage → its `responses.json`."""
    model_path: Path | None = None
    model_digest: str | None = None
    reward_model_path: Path | None = None
    data_path: Path | None = None
    embedding_path: Path | None = None
    reranker_path: Path | None = None
    document_paths: tuple[Path | None, ...] = ()
    cache: Path | None = None
    results: Path | None = None
    devices: tuple[str, ...] = ()
    on_cpu: bool = False
    fresh: bool = False
    """Start over: what an earlier attempt left in `out` is not continued."""
    code_allowed: bool = False

    @classmethod
    def read(cls, path: Path) -> Job:
        """Read a job file; raises pydantic's ValidationError or OSError."""
        return cls.model_validate_json(path.read_text(encoding="utf-8"))
