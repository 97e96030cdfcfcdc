"""The `kubernetes` section of a worker in `workers.yaml`: its cluster, and what the pods of its stages get."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field

from mloc_dagster.placement.workers.products import MAKERS, maker_of, products_of
from mloc_dagster.spec.base import Bytes, NotNegative, Section
from mloc_dagster.spec.resources import GpuName

_NAME = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"
_LABEL = r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"
_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
_MOUNTS_OF_OUR_OWN = ("/tmp/mloc", "/var/cache/mloc")

ObjectName = Annotated[str, Field(pattern=_NAME)]
Label = Annotated[str, Field(pattern=_LABEL)]
LabelValue = Annotated[str, Field(pattern=_VALUE)]
Seconds = Annotated[float, Field(gt=0)]


class Toleration(Section):
    """A taint of nodes that pods bear."""

    key: Label | None = None
    """Key of the taint; left out with operator Exists, all taints are borne."""
    operator: Literal["Equal", "Exists"] = "Equal"
    """How key and value are held against the taint."""
    value: LabelValue | None = None
    """Value of the taint, for Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Left out, all effects."""


class Volume(Section):
    """What is mounted into pods; one of `claim`, `host_path` and `secret`."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
    """How it is called."""
    path: Annotated[str, Field(pattern="^/")]
    """Where it is mounted."""
    claim: ObjectName | None = None
    """A PersistentVolumeClaim."""
    host_path: Annotated[str, Field(pattern="^/")] | None = None
    """A folder of the node."""
    secret: ObjectName | None = None
    """A Secret, each key a file."""
    read_only: bool = False
    """Mounted to be read only."""

    @property
    def sources(self) -> list[str]:
        """Those of the three that are given."""
        return [name for name in ("claim", "host_path", "secret") if getattr(self, name) is not None]


class Kubernetes(Section):
    """One namespace of one cluster, and the kind of nodes that pods go to."""

    image: Annotated[str, Field(min_length=1)]
    """Image with MLOC and the libraries of its stages."""
    context: str | None = None
    """A context of the kubeconfig; left out, its current one, or the cluster that this process runs in."""
    kubeconfig: str | None = None
    """A file; left out, KUBECONFIG or ~/.kube/config."""
    namespace: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")] = "default"
    """Where Jobs are made."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When nodes pull the image."""
    image_pull_secrets: tuple[ObjectName, ...] = ()
    """Secrets for the image's registry."""
    service_account: ObjectName | None = None
    """Service account of the pods; its token is not mounted."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels that a node must have."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints that pods bear."""
    gpu_resource: Label = "nvidia.com/gpu"
    """The resource that GPUs are asked for by: nvidia.com/gpu, amd.com/gpu, gpu.intel.com/i915."""
    gpu_label: Label | None = "nvidia.com/gpu.product"
    """The node label that names the GPU; null: node_selector alone chooses nodes."""
    gpu_products: tuple[LabelValue, ...] = ()
    """Values of that label; left out, those known for the worker's GPU type."""
    resources: dict[str, NotNegative] = Field(default_factory=dict)
    """Further resources of each pod, such as rdma/hca: 1."""
    default_memory: Bytes = 8 << 30
    """Memory of a stage that asks for none."""
    volumes: tuple[Volume, ...] = ()
    """Volumes of each pod."""
    cache_claim: ObjectName | None = None
    """A PersistentVolumeClaim that keeps inputs between steps, writable from all nodes."""
    cache_host_path: Annotated[str, Field(pattern="^/")] | None = None
    """A folder of each node that keeps inputs between steps, in place of a claim."""
    shm_size: Bytes | None = None
    """Size of /dev/shm, out of the pod's memory."""
    env: tuple[Annotated[str, Field(pattern=_VARIABLE)], ...] = ()
    """Names of environment variables of the control plane that stages get, in a Secret of the Job."""
    env_from: tuple[ObjectName, ...] = ()
    """Secrets of the namespace whose keys are environment variables."""
    user: Annotated[int, Field(gt=0)] | None = None
    """Number of the user that the work runs as; left out, what the image says."""
    priority_class: ObjectName | None = None
    """Priority class of the pods."""
    queue: ObjectName | None = None
    """A LocalQueue of Kueue: Jobs are made suspended, and Kueue lets them go."""
    start_seconds: Seconds = 900.0
    """So long a pod may wait for a node and its image; the time in a queue of Kueue is not counted."""
    start_seconds_by_gpu: dict[GpuName, Seconds] = Field(default_factory=dict)
    """The same for stages with GPUs of a type: {h100: 7200}."""
    stop_seconds: Annotated[float, Field(ge=2, le=600)] = 8.0
    """From the request to end until the container is killed; work stores its state meanwhile."""
    ttl_seconds: NotNegative = 3600
    """So long a Job that failed is kept, to be looked at."""


def faults_of_cluster(
    cluster: Kubernetes, gpus: Sequence[GpuName]
) -> Iterator[tuple[tuple[str | int, ...], str, object, str]]:
    """Yield what cannot work: where in the section, what is wrong, the value, the way out.

    `gpus` are the types of the worker's GPUs.
    """
    if cluster.kubeconfig and not os.path.isfile(os.path.expanduser(cluster.kubeconfig)):
        yield ("kubeconfig",), "names no file", cluster.kubeconfig, "check the path, or leave it out for ~/.kube/config"
    yield from _gpu_faults(cluster, gpus)
    yield from _volume_faults(cluster)
    if cluster.cache_claim and cluster.cache_host_path:
        yield ("cache_host_path",), "is a second cache", cluster.cache_host_path, "keep it or cache_claim"
    for number, toleration in enumerate(cluster.tolerations):
        place = ("tolerations", number)
        if toleration.operator == "Exists" and toleration.value:
            yield (*place, "value"), "means nothing with Exists", toleration.value, "remove it, or write Equal"
        if toleration.operator == "Equal" and not toleration.key:
            yield place, "has no key", "", "write key, or operator: Exists for all taints"


def _gpu_faults(
    cluster: Kubernetes, gpus: Sequence[GpuName]
) -> Iterator[tuple[tuple[str | int, ...], str, object, str]]:
    for name in sorted(cluster.start_seconds_by_gpu.keys() - set(gpus)):
        found = ", ".join(sorted(set(gpus))) or "no GPU"
        yield ("start_seconds_by_gpu",), f"names {name}, and the worker has {found}", name, "write a type of its gpus"
    for name in sorted(set(gpus)):
        for key, value in (("gpu_resource", cluster.gpu_resource), ("gpu_label", cluster.gpu_label or "")):
            maker, wanted = value.partition("/")[0], maker_of(name)
            if maker in MAKERS and wanted and maker != wanted:
                yield (
                    (key,),
                    f"has the {key} of another maker than {name}",
                    value,
                    f"write {key}: {MAKERS[wanted][key]}",
                )
    if not cluster.gpu_label or cluster.gpu_products:
        return
    for name in sorted(set(gpus)):
        if not products_of(name):
            way_out = f"write gpu_products: [NVIDIA-…], as `kubectl get nodes -L {cluster.gpu_label}` shows them"
            yield ("gpu_label",), f"knows no node label of {name}", name, f"{way_out}, or gpu_label: null"


def _volume_faults(cluster: Kubernetes) -> Iterator[tuple[tuple[str | int, ...], str, object, str]]:
    names: set[str] = {"work", "cache", "shm"}
    for number, volume in enumerate(cluster.volumes):
        place = ("volumes", number)
        if len(volume.sources) != 1:
            found = ", ".join(volume.sources) or "none"
            yield place, "needs one source", found, "write one of claim, host_path and secret"
        if volume.name in names:
            yield (*place, "name"), "is the name of another volume, too", volume.name, "give each a name of its own"
        names.add(volume.name)
        if volume.path.rstrip("/") in _MOUNTS_OF_OUR_OWN:
            yield (*place, "path"), "is a folder that MLOC uses", volume.path, "mount it elsewhere"
