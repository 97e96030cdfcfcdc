"""What is sent to API servers, held against the official schemas of the versions that are supported."""

from __future__ import annotations

from typing import Any

import pytest

from mloc_dagster.placement.k8s.manifest import job_manifest, secret_manifest, service_manifest
from mloc_dagster.placement.remote.carrier import Order
from mloc_dagster.placement.workers.cluster import Kubernetes
from mloc_dagster.placement.workers.products import products_of
from mloc_dagster.spec.gpu import normalise

LEAST = {"image": "mloc:1"}
ALL = {
    "image": "registry.example/mloc:1", "namespace": "team", "image_pull_policy": "Always",
    "image_pull_secrets": ["registry"], "service_account": "stages", "node_selector": {"pool": "a"},
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}, {"key": "a", "value": "b"}],
    "resources": {"rdma/hca": 1}, "cache_claim": "inputs", "shm_size": "16Gi", "env_from": ["s3"], "user": 1000,
    "volumes": [
        {"name": "data", "path": "/data", "claim": "data", "read_only": True},
        {"name": "scratch", "path": "/scratch", "host_path": "/mnt/nvme"},
        {"name": "ca", "path": "/etc/ca", "secret": "ca"},
    ],
    "priority_class": "batch", "queue": "team-a", "ttl_seconds": 60, "stop_seconds": 30,
    "start_seconds_by_gpu": {"a100-80gb": 7200},
}  # fmt: skip
VERSIONS = [f"1.{minor}" for minor in range(29, 37)]


def order(**changes: Any) -> Order:
    parts = {
        "job": "jobs/w/t", "attempt": "ab12", "store": "s3://b/p", "key": "jobs/w/t/ab12",
        "environment": {"A": "secret"},
        "cpu": 2500, "share": 2500, "memory": 64 << 30, "devices": (0, 1), "timeout": 100.0,
        "labels": {"mloc.run": "0b3c", "mloc.step": "my task/train", "mloc.worker": "pool"},
    }  # fmt: skip
    return Order(**{**parts, **changes})


def job(section: dict[str, Any], gpu: str | None = "a100-80gb", **changes: Any) -> dict[str, Any]:
    return job_manifest(Kubernetes.model_validate(section), order(**changes), gpu)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("section", [LEAST, ALL], ids=["least", "all"])
def test_the_official_schemas(version: str, section: dict[str, Any]) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    validate.validate(job(section), version, strict=True)
    validate.validate(job(section, None, devices=(), cpu=None, timeout=None), version, strict=True)
    validate.validate(secret_manifest(Kubernetes.model_validate(section), order(), "uid-1"), version, strict=True)
    validate.validate(job(section, replicas=2), version, strict=True)
    service = service_manifest(Kubernetes.model_validate(section), order(replicas=2), "uid-1")
    validate.validate(service, version, strict=True)
    wrong = job(section)
    wrong["spec"]["template"]["spec"]["containers"][0]["nonsense"] = 1
    with pytest.raises(validate.ValidationError):
        validate.validate(wrong, version, strict=True)


def test_what_a_pod_gets() -> None:
    made = job(ALL)
    spec, pod = made["spec"], made["spec"]["template"]["spec"]
    [container] = pod["containers"]
    same = {"memory": str(64 << 30), "nvidia.com/gpu": "2", "rdma/hca": "1", "cpu": "2500m"}
    assert container["resources"] == {"requests": same, "limits": same}
    assert container["command"][-2:] == ["s3://b/p", "jobs/w/t/ab12"]
    assert spec["suspend"] and made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert (spec["backoffLimit"], spec["ttlSecondsAfterFinished"], pod["restartPolicy"]) == (0, 60, "Never")
    assert job({**ALL, "ttl_seconds": 0})["spec"]["ttlSecondsAfterFinished"] == 60, "its end must be seen"
    assert spec["activeDeadlineSeconds"] == 100 + 7200 + 30 + 600
    [term] = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    [expression] = term["matchExpressions"]
    assert expression["key"] == "nvidia.com/gpu.product"
    assert expression["values"] == ["NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-80GB-PCIe"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert made["metadata"]["labels"]["mloc.step"] == "my.task.train"
    assert made["metadata"]["annotations"]["mloc.step"] == "my task/train"
    assert "secret" not in str(made).replace("secretRef", "").replace("'secret': {'secretName'", "")


def test_cpu_work_names_no_gpu() -> None:
    made = job(LEAST, "l4", devices=(), cpu=None, timeout=None)
    pod = made["spec"]["template"]["spec"]
    resources = pod["containers"][0]["resources"]
    assert resources == {
        "requests": {"memory": str(64 << 30), "cpu": "2500m"},
        "limits": {"memory": str(64 << 30)},
    }
    assert "affinity" not in pod and "activeDeadlineSeconds" not in made["spec"] and "suspend" not in made["spec"]
    assert "runAsNonRoot" not in pod["securityContext"], "the image says who it runs as"


def test_other_devices() -> None:
    section = {**LEAST, "gpu_resource": "amd.com/gpu", "gpu_label": "amd.com/gpu.product-name"}
    pod = job(section, "mi300x")["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["amd.com/gpu"] == "2"
    assert "AMD_Instinct_MI300X_OAM" in str(pod["affinity"])
    assert "affinity" not in job({**LEAST, "gpu_label": None})["spec"]["template"]["spec"]
    assert "MY-CARD" in str(job({**LEAST, "gpu_products": ["MY-CARD"]}, "strange")["spec"])


def test_what_each_replica_gets() -> None:
    made = job(LEAST, replicas=2)
    pod = made["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1", "two devices are shared"
    assert container["resources"]["limits"]["memory"] == str(64 << 30), "memory is that of each"
    first = f"{made['metadata']['name']}-0.{pod['subdomain']}"
    told = {one["name"]: one["value"] for one in container["env"]}
    assert told["MLOC_NODES"] == "2" and told["MLOC_FIRST_NODE"].startswith(f"{first}:2")
    service = service_manifest(Kubernetes.model_validate(LEAST), order(replicas=2), "uid-1")
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"].items() <= made["spec"]["template"]["metadata"]["labels"].items()
    assert "subdomain" not in job(LEAST)["spec"]["template"]["spec"]


def test_the_name_is_that_of_the_work() -> None:
    def name(**changes: Any) -> str:
        return job(LEAST, **changes)["metadata"]["name"]

    assert name() == name(attempt="cd34", key="jobs/w/t/cd34") and len(name()) < 63
    assert name() != name(job="jobs/w/u") != name(store="s3://other")


def test_products() -> None:
    assert products_of("a100") == [
        "NVIDIA-A100-SXM4-40GB", "NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-PCIE-40GB", "NVIDIA-A100-80GB-PCIe"
    ]  # fmt: skip
    assert [normalise(name) for name in products_of("h100")] == ["h100", "h100"] and products_of("h1000") == []
