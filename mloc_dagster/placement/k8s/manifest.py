"""How the Job of an attempt is made, the Secret with its environment, and the Service by which replicas meet."""

from __future__ import annotations

import math
from collections.abc import Sequence

from executors.distributed.nodes import COUNT, FIRST
from mloc_dagster.placement.k8s.names import (
    ATTEMPT,
    CONTAINER,
    annotations_of,
    job_name,
    labels_of,
    secret_name,
    service_name,
)
from mloc_dagster.placement.remote.carrier import Order
from mloc_dagster.placement.remote.ship import REMOTE_ROOT
from mloc_dagster.placement.workers.cluster import Kubernetes, Toleration, Volume
from mloc_dagster.placement.workers.products import products_of
from mloc_dagster.spec.base import Json

QUEUE = "kueue.x-k8s.io/queue-name"
"""Label of Kueue (kueue.sigs.k8s.io, Run a Kubernetes Job)."""
_CACHE = "/var/cache/mloc"
_BEYOND_TIMEOUT_SECONDS = 600
"""For inputs and results: `timeoutSeconds` counts the work alone, the deadline of a Job everything."""
_LEAST_KEPT_SECONDS = 60
"""An end must be seen before the cluster removes it; what is not to be kept is removed from here."""


def job_manifest(declared: Kubernetes, order: Order, gpu: str | None) -> dict[str, Json]:
    """Return the Job (batch/v1); `gpu` is the type of the worker's GPUs.

    It has one pod at most for each replica: what fails is tried again from here. A pod that fails or is taken away
    fails its Job at once, and with it all other pods.
    """
    spec: dict[str, Json] = {
        "parallelism": order.replicas,
        "completions": order.replicas,
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [{"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
        },
        "ttlSecondsAfterFinished": max(_LEAST_KEPT_SECONDS, declared.ttl_seconds),
        "template": _template(declared, order, gpu),
    }
    if order.replicas > 1:
        spec["completionMode"] = "Indexed"
    if order.timeout:
        waits = start_seconds(declared, gpu if order.devices else None)
        spec["activeDeadlineSeconds"] = math.ceil(
            order.timeout + waits + declared.stop_seconds + _BEYOND_TIMEOUT_SECONDS
        )
    labels = labels_of(order)
    if declared.queue:
        labels[QUEUE] = declared.queue
        spec["suspend"] = True
    metadata = {
        "name": job_name(order.store, order.job), "namespace": declared.namespace, "labels": labels,
        "annotations": annotations_of(order),
    }  # fmt: skip
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def secret_manifest(declared: Kubernetes, order: Order, owner: str) -> dict[str, Json]:
    """Return the Secret with the environment of an attempt; it goes with its Job, whose uid is `owner`."""
    metadata = _of_job(declared, order, secret_name(order.attempt), owner)
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": dict(order.environment)}


def service_manifest(declared: Kubernetes, order: Order, owner: str) -> dict[str, Json]:
    """Return the headless Service that gives each pod of an attempt a name; it goes with its Job."""
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {ATTEMPT: order.attempt}}
    metadata = _of_job(declared, order, service_name(order.attempt), owner)
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def start_seconds(declared: Kubernetes, gpu: str | None) -> float:
    """Return how long a pod with such GPUs may wait for a node and its image."""
    return declared.start_seconds_by_gpu.get(gpu or "", declared.start_seconds)


def _of_job(declared: Kubernetes, order: Order, name: str, owner: str) -> dict[str, Json]:
    """Metadata of an object that goes with the Job of an attempt."""
    reference = {"apiVersion": "batch/v1", "kind": "Job", "name": job_name(order.store, order.job), "uid": owner}
    return {
        "name": name, "namespace": declared.namespace, "labels": labels_of(order), "ownerReferences": [reference],
    }  # fmt: skip


def _template(declared: Kubernetes, order: Order, gpu: str | None) -> dict[str, Json]:
    spec: dict[str, Json] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": math.ceil(declared.stop_seconds),
        "securityContext": _pod_security(declared),
        "containers": [_container(declared, order)],
        "volumes": [*_own_volumes(declared), *map(_volume, declared.volumes)],
    }
    affinity = _affinity(declared, gpu) if order.devices and gpu else None
    optional: dict[str, Json] = {
        "serviceAccountName": declared.service_account,
        "imagePullSecrets": [{"name": name} for name in declared.image_pull_secrets],
        "nodeSelector": dict(declared.node_selector),
        "tolerations": [_toleration(one) for one in declared.tolerations],
        "affinity": affinity,
        "priorityClassName": declared.priority_class,
        "subdomain": service_name(order.attempt) if order.replicas > 1 else None,
    }
    spec |= {name: value for name, value in optional.items() if value}
    return {"metadata": {"labels": labels_of(order), "annotations": annotations_of(order)}, "spec": spec}


def _container(declared: Kubernetes, order: Order) -> dict[str, Json]:
    environment = {"MLOC_REMOTE_CACHE": _CACHE} if _has_cache(declared) else {}
    if order.replicas > 1:  # which of them a pod is, is told by the cluster
        first = f"{job_name(order.store, order.job)}-0.{service_name(order.attempt)}"
        environment |= {COUNT: str(order.replicas), FIRST: f"{first}:{order.port}"}
    sources = [*declared.env_from, secret_name(order.attempt)]
    return {
        "name": CONTAINER,
        "image": declared.image,
        "imagePullPolicy": declared.image_pull_policy,
        "command": ["python", "-u", "-m", "executors.remote", order.store, order.key],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "envFrom": [{"secretRef": {"name": name}} for name in sources],
        "resources": _resources(declared, order),
        "volumeMounts": [*_own_mounts(declared), *map(_mount, declared.volumes)],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _resources(declared: Kubernetes, order: Order) -> dict[str, Json]:
    """Memory and devices as much as they are limited to; cores as a limit only where the stage asks for them."""
    same = {"memory": str(order.memory), **{name: str(count) for name, count in declared.resources.items()}}
    if order.devices:
        same[declared.gpu_resource] = str(len(order.devices_of(0)))
    limits = {**same, "cpu": f"{order.cpu}m"} if order.cpu is not None else same
    return {"requests": {**same, "cpu": f"{order.cpu or order.share}m"}, "limits": limits}


def _pod_security(declared: Kubernetes) -> dict[str, Json]:
    security: dict[str, Json] = {"seccompProfile": {"type": "RuntimeDefault"}}
    if declared.user is not None:
        security |= {"runAsNonRoot": True, "runAsUser": declared.user, "runAsGroup": declared.user}
        security |= {"fsGroup": declared.user, "fsGroupChangePolicy": "OnRootMismatch"}
    return security


def _affinity(declared: Kubernetes, gpu: str) -> dict[str, Json] | None:
    """Nodes whose label names the worker's GPU."""
    if not declared.gpu_label:
        return None
    values: Sequence[str] = declared.gpu_products or products_of(gpu)
    wanted = {"key": declared.gpu_label, "operator": "In", "values": list(values)}
    terms = {"nodeSelectorTerms": [{"matchExpressions": [wanted]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}


def _toleration(one: Toleration) -> dict[str, Json]:
    return one.model_dump(exclude_none=True)


def _has_cache(declared: Kubernetes) -> bool:
    return bool(declared.cache_claim or declared.cache_host_path)


def _own_volumes(declared: Kubernetes) -> list[dict[str, Json]]:
    volumes: list[dict[str, Json]] = [{"name": "work", "emptyDir": {}}]
    if declared.cache_claim:
        volumes.append({"name": "cache", "persistentVolumeClaim": {"claimName": declared.cache_claim}})
    if declared.cache_host_path:
        path = {"path": declared.cache_host_path, "type": "DirectoryOrCreate"}
        volumes.append({"name": "cache", "hostPath": path})
    if declared.shm_size:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": str(declared.shm_size)}})
    return volumes


def _own_mounts(declared: Kubernetes) -> list[dict[str, Json]]:
    paths = {"work": REMOTE_ROOT, "cache": _CACHE, "shm": "/dev/shm"}
    return [{"name": one["name"], "mountPath": paths[one["name"]]} for one in _own_volumes(declared)]


def _volume(volume: Volume) -> dict[str, Json]:
    if volume.claim:
        return {
            "name": volume.name,
            "persistentVolumeClaim": {"claimName": volume.claim, "readOnly": volume.read_only},
        }
    if volume.secret:
        return {"name": volume.name, "secret": {"secretName": volume.secret}}
    return {"name": volume.name, "hostPath": {"path": volume.host_path}}


def _mount(volume: Volume) -> dict[str, Json]:
    return {"name": volume.name, "mountPath": volume.path, "readOnly": volume.read_only}
