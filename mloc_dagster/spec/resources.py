"""`spec.resources`, `spec.parallel`, `spec.retry`: what a stage needs to run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from mloc_dagster.spec import gpu as gpu_names
from mloc_dagster.spec.base import Bytes, Cpu, NotNegative, Positive, Section, also

GpuName = Annotated[str, AfterValidator(gpu_names.normalise)]


class Gpu(Section):
    """GPUs of one stage; `count: 0` is CPU work."""

    type: GpuName = gpu_names.ANY
    """Device name such as a100-80gb, or any."""
    count: NotNegative = 1
    """Number of GPUs; 0 is CPU work."""
    memory: Bytes | None = None
    """Memory each must have, such as 40Gi."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Part of each device that the stage uses; other runs may have the rest."""


class Hardware(Section):
    """Hardware of one replica."""

    cpu: Cpu | None = None
    """Cores: 8, 0.5 or 500m."""
    memory: Bytes | None = None
    """Memory: 64Gi, 32GiB; 1024-based. A stage without an engine is held to it, where control groups can be made."""
    gpu: Gpu | None = None
    """GPUs."""


class Resources(Section):
    """Replicas and the hardware of each."""

    replicas: Positive = 1
    """Number of workers; for a stage in shards the least number of them."""
    hardware: Hardware = Hardware()
    """Hardware of each."""


class Parallel(Section):
    """Fan-out of inference, rag and agent stages over row ranges."""

    enabled: bool = False
    """Split the rows into shards."""
    max_shards: Annotated[Positive, also("maxShards")] = 8
    """So many shards at most."""
    strategy: Literal["auto", "rows", "even", "contiguous"] = "auto"
    """How rows are split."""


class Retry(Section):
    """Linear backoff in seconds between attempts, at most 120."""

    max_retries: Annotated[int, Field(ge=0, le=3), also("maxRetries")] = 3
    """Further attempts after a failure."""
    backoff: Annotated[float, Field(ge=0, le=120)] = 5.0
    """Seconds to wait, times the number of the attempt."""
