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
    count: NotNegative = 1
    memory: Bytes | None = None


class Hardware(Section):
    """Hardware of one replica."""

    cpu: Cpu | None = None
    memory: Bytes | None = None
    gpu: Gpu | None = None


class Resources(Section):
    """Replicas and the hardware of each."""

    replicas: Positive = 1
    hardware: Hardware = Hardware()


class Parallel(Section):
    """Fan-out of inference, rag and agent stages over row ranges."""

    enabled: bool = False
    max_shards: Annotated[Positive, also("maxShards")] = 8
    strategy: Literal["auto", "rows", "even", "contiguous"] = "auto"


class Retry(Section):
    """Linear backoff in seconds between attempts, at most 120."""

    max_retries: Annotated[int, Field(ge=0, le=3), also("maxRetries")] = 3
    backoff: Annotated[float, Field(ge=0, le=120)] = 5.0
