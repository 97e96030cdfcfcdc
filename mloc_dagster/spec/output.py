"""`spec.output`: where results go."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mloc_dagster.spec.base import NotNegative, Section, also


class Destination(Section):
    """Where one stage's results are delivered."""

    type: Literal["local", "http", "s3", "huggingface"] = "local"
    path: str | None = None
    url: str | None = None
    method: Literal["POST", "PUT", "post", "put"] = "POST"
    headers: dict[str, str] = {}
    timeout_sec: Annotated[float, Field(gt=0), also("timeoutSec")] = 60.0
    retries: NotNegative = 2
    retry_backoff_sec: Annotated[float, Field(ge=0), also("retryBackoffSec")] = 0.8
    bucket: str | None = None
    prefix: str | None = None
    repo_id: str | None = None
    private: bool = True


class Output(Section):
    """Destination and the artifacts that must be there."""

    destination: Destination | None = None
    artifacts: list[str] = []
