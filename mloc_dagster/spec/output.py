"""`spec.output`: where results go."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mloc_dagster.spec.base import NotNegative, Section, also

OWN_HEADERS = ("idempotency-key", "x-mloc-timestamp", "x-mloc-signature")
"""Headers of a delivery to a URL that nobody else sets."""


class Destination(Section):
    """Where one stage's results are delivered."""

    type: Literal["local", "http", "s3", "huggingface"] = "local"
    """Where results are delivered."""
    path: str | None = None
    """Folder inside the results, or below the bucket."""
    url: str | None = None
    """Address that results are sent to."""
    method: Literal["POST", "PUT", "post", "put"] = "POST"
    """HTTP method."""
    headers: dict[str, str] = {}
    """HTTP headers."""
    signing_secret: Annotated[str | None, also("signingSecret")] = None
    """Name of the environment variable, as ${NAME}, whose value signs what is sent (HMAC-SHA256)."""
    timeout_sec: Annotated[float, Field(gt=0), also("timeoutSec")] = 60.0
    """Seconds that the other side may be silent within one request."""
    retries: NotNegative = 2
    """Further attempts after a failure."""
    retry_backoff_sec: Annotated[float, Field(ge=0), also("retryBackoffSec")] = 0.8
    """Seconds to wait, times the number of the attempt."""
    bucket: str | None = None
    """Bucket."""
    prefix: str | None = None
    """Key prefix in the bucket."""
    repo_id: str | None = None
    """Repository on the hub."""
    private: bool = True
    """Whether a new repository is private."""
    requires_evaluation: bool = False
    """Deliver only weights that have passed the gate of an evaluation, in this run or an earlier one."""


class Output(Section):
    """Destination and the artifacts that must be there."""

    destination: Destination | None = None
    """Where results are delivered."""
    artifacts: list[str] = []
    """Artifacts that must be there at the end."""
