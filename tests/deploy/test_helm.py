"""The chart: renders, passes the official schemas and our policy, and what it renders is read by our own code."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster import DagsterInstance
from dagster_postgres.run_storage import PostgresRunStorage

import mloc_dagster
from mloc_dagster.definitions.instance import DAGSTER_YAML
from mloc_dagster.placement.k8s import api
from mloc_dagster.placement.queue.coordinator import QueueCoordinator
from mloc_dagster.placement.workers.cluster import Kubernetes
from mloc_dagster.placement.workers.declared import load_fleet
from tests.helm import CHART, run_helm
from tests.postgres import missing, postgres_server

VERSIONS = [f"1.{minor}" for minor in range(29, 37)]
NAMES = ["default", "minimal", "gpu", "airgapped"]
CLUSTER_SCOPED = {"ClusterRole", "ClusterRoleBinding", "Namespace", "CustomResourceDefinition", "PriorityClass"}


@lru_cache
def rendered(name: str, *more: str, version: str = "1.33") -> list[dict[str, Any]]:
    files = [] if name == "default" else ["-f", str(CHART / f"values-{name}.yaml")]
    done = run_helm("template", "my", str(CHART), "-n", "team", "--kube-version", version, *files, *more)
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def of_kind(documents: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [one for one in documents if one["kind"] == kind]


def pod(documents: list[dict[str, Any]]) -> dict[str, Any]:
    (deployment,) = of_kind(documents, "Deployment")
    return deployment["spec"]["template"]["spec"]


def containers(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [*pod(documents)["initContainers"], *pod(documents)["containers"]]


def settings(documents: list[dict[str, Any]], folder: Path) -> Path:
    (config,) = of_kind(documents, "ConfigMap")
    for name, text in config["data"].items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_lint(name: str) -> None:
    files = [] if name == "default" else ["-f", str(CHART / f"values-{name}.yaml")]
    done = run_helm("lint", "--strict", str(CHART), *files)
    assert done.returncode == 0 and "0 chart(s) failed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", NAMES)
def test_the_official_schemas(name: str, version: str) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    documents = rendered(name, version=version)
    assert {"Deployment", "Service", "ConfigMap", "NetworkPolicy", "ServiceAccount"} <= {d["kind"] for d in documents}
    for document in documents:
        validate.validate(document, version, strict=True)
    wrong = json.loads(json.dumps(of_kind(documents, "Deployment")[0]))
    wrong["spec"]["template"]["spec"]["nonsense"] = 1
    with pytest.raises(validate.ValidationError):
        validate.validate(wrong, version, strict=True)


@pytest.mark.parametrize("name", NAMES)
def test_pods_keep_to_the_restricted_profile(name: str) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards, Restricted."""
    spec = pod(rendered(name))
    security = spec["securityContext"]
    assert security["runAsNonRoot"] is True and security["runAsUser"] > 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "secret", "projected", "downwardAPI", "csi"}
    assert all(set(volume) - {"name"} <= allowed for volume in spec["volumes"])
    for one in containers(rendered(name)):
        security = one["securityContext"]
        assert security["allowPrivilegeEscalation"] is False and security["capabilities"] == {"drop": ["ALL"]}
        assert security["readOnlyRootFilesystem"] is True and "privileged" not in security


@pytest.mark.parametrize("name", NAMES)
def test_every_container_has_bounds_a_fixed_image_and_probes(name: str) -> None:
    documents = rendered(name)
    for one in containers(documents):
        assert {"cpu", "memory"} <= one["resources"]["limits"].keys() & one["resources"]["requests"].keys(), one["name"]
        assert re.fullmatch(r".+(:[\w.-]+|@sha256:[0-9a-f]{64})", one["image"]) and not one["image"].endswith(":latest")
    for one in pod(documents)["containers"]:
        assert {"startupProbe", "livenessProbe"} <= one.keys(), one["name"]
    web = next(one for one in pod(documents)["containers"] if one["name"] == "web")
    assert web["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert web["readinessProbe"]["httpGet"]["path"] == "/readyz"


@pytest.mark.parametrize("name", NAMES)
def test_writable_places_are_mounted(name: str) -> None:
    """The root file system is not written to: the home, temporary files and HOME lie in volumes."""
    for one in pod(rendered(name))["containers"]:
        mounts = {mount["mountPath"] for mount in one["volumeMounts"] if not mount.get("readOnly")}
        told = {each["name"]: each.get("value") for each in one["env"]}
        assert {told["MLOC_HOME"], told["HOME"], "/tmp"} <= mounts
        assert told["DAGSTER_HOME"] == f"{told['MLOC_HOME']}/dagster"


@pytest.mark.parametrize("name", NAMES)
def test_one_pod_whose_containers_see_each_others_processes(name: str) -> None:
    (deployment,) = of_kind(rendered(name), "Deployment")
    assert deployment["spec"]["replicas"] == 1 and deployment["spec"]["strategy"] == {"type": "Recreate"}
    spec = deployment["spec"]["template"]["spec"]
    assert spec["shareProcessNamespace"] is True and spec["hostname"] == "my-mloc"
    assert spec["terminationGracePeriodSeconds"] > 60, "more than runs have to store their state"


@pytest.mark.parametrize("name", NAMES)
def test_secrets_are_named_never_written(name: str) -> None:
    documents = rendered(name)
    assert of_kind(documents, "Secret") == []
    for one in containers(documents):
        for variable in one["env"]:
            assert "value" not in variable or not re.search("PASSWORD|SECRET|TOKEN|DATABASE", variable["name"])


@pytest.mark.parametrize("name", NAMES)
def test_a_token_of_the_cluster_only_with_pools(name: str) -> None:
    documents = rendered(name)
    pools = name in ("gpu", "airgapped")
    assert pod(documents)["automountServiceAccountToken"] is pools
    assert all(one["automountServiceAccountToken"] is False for one in of_kind(documents, "ServiceAccount"))
    assert bool(of_kind(documents, "Role")) is pools
    assert CLUSTER_SCOPED.isdisjoint(one["kind"] for one in documents)


def test_the_role_is_what_the_code_calls() -> None:
    (role,) = of_kind(rendered("gpu"), "Role")
    granted = {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    assert granted == _called(Path(api.__file__).read_text("utf-8"))
    groups = {resource: rule["apiGroups"] for rule in role["rules"] for resource in rule["resources"]}
    assert groups == {"jobs": ["batch"], "pods": [""], "pods/log": [""], "secrets": [""], "services": [""]}


def _called(source: str) -> set[tuple[str, str]]:
    """(resource, verb) of each method of the client that a module names, and of the paths that it calls itself."""
    verbs = {"read": "get", "replace": "update"}
    found = {
        (f"{kind}s", verbs.get(verb) or verb)
        for verb, kind in re.findall(r"self\._(?:batch|core|\w+)\.([a-z]+)_namespaced_(\w+)", source)
    }
    if "watch=True" in source:
        found.add(("pods", "watch"))
    paths = re.findall(r'/namespaces/\{[^}]+\}/(\w+)/\{[^}]+\}/(\w+)", "(GET)"', source)
    return found | {(f"{resource}/{sub}", "get") for resource, sub, _ in paths}


def test_what_is_bound_is_the_service_account_of_the_pod() -> None:
    for documents in (rendered("gpu"), rendered("gpu", "--set", "stageNamespace=jobs,serviceAccount.name=me")):
        (binding,), (role,) = of_kind(documents, "RoleBinding"), of_kind(documents, "Role")
        (subject,) = binding["subjects"]
        assert subject["name"] == pod(documents)["serviceAccountName"] and subject["namespace"] == "team"
        assert binding["roleRef"]["name"] == role["metadata"]["name"]
        assert binding["metadata"]["namespace"] == role["metadata"]["namespace"]
    assert role["metadata"]["namespace"] == "jobs"


@pytest.mark.parametrize("name", ["gpu", "airgapped"])
def test_our_loader_reads_the_workers(name: str, tmp_path: Path) -> None:
    fleet = load_fleet(settings(rendered(name), tmp_path) / "workers.yaml")
    accounts = {one["metadata"]["name"] for one in of_kind(rendered(name), "ServiceAccount")}
    for engine in fleet.engines.values():
        assert isinstance(engine, Kubernetes)
        assert engine.namespace == "team" and engine.user == 1000 and engine.service_account in accounts
    names = {worker.name: [device.name for device in worker.devices] for worker in fleet.workers}
    if name == "gpu":
        assert fleet.artifacts == "s3://mloc/artifacts"
        assert names == {"pool-cpu": [], "pool-a100": ["a100-80gb"] * 8, "pool-h100": ["h100"] * 8}
        cpu, a100, h100 = (fleet.engines[one] for one in names)
        assert isinstance(cpu, Kubernetes) and isinstance(a100, Kubernetes) and isinstance(h100, Kubernetes)
        assert (cpu.tolerations, cpu.image) == ((), "mloc/worker-cpu:0.1.0")
        assert a100.queue == "mloc" and a100.priority_class == "mloc-training" and a100.tolerations
        assert a100.env_from == ("mloc-hub", "mloc-s3") and "AWS_ENDPOINT_URL" in a100.env
        assert h100.cache_claim == "mloc-inputs" and h100.resources == {"rdma/hca": 1}
    else:
        (engine,) = fleet.engines.values()
        assert isinstance(engine, Kubernetes)
        assert fleet.artifacts == "file:///artifacts/store" and engine.image.startswith("registry.internal:5000/")
        assert engine.image_pull_secrets == ("registry",) and [one.claim for one in engine.volumes] == [
            "mloc-artifacts"
        ]
        assert {"MLOC_MIRROR", "MLOC_MIRROR_ONLY"} <= set(engine.env)


def test_dagster_reads_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with DagsterInstance.from_config(str(settings(rendered("default"), tmp_path)), "dagster.yaml") as instance:
        assert isinstance(instance.run_coordinator, QueueCoordinator)
        assert instance.get_runs(limit=1) == []
        assert instance.run_monitoring_enabled
    mine, theirs = yaml.safe_load((tmp_path / "dagster.yaml").read_text()), yaml.safe_load(DAGSTER_YAML)
    assert mine.keys() == theirs.keys(), "the same settings as a home on a laptop"
    assert mine["run_launcher"] == theirs["run_launcher"]


@pytest.mark.postgres
@pytest.mark.skipif(bool(missing()), reason=missing())
def test_with_a_database_dagster_uses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings(rendered("gpu"), tmp_path)
    with postgres_server() as server:
        monkeypatch.setenv("DATABASE_URL", server.database("mloc"))
        with DagsterInstance.from_config(str(tmp_path), "dagster.yaml") as instance:
            assert isinstance(instance.run_storage, PostgresRunStorage) and instance.get_runs(limit=1) == []


def test_an_air_gapped_cluster_reaches_nothing_outside() -> None:
    documents = rendered("airgapped")
    images = [one["image"] for one in containers(documents)]
    assert all(image.startswith("registry.internal:5000/") for image in images)
    assert pod(documents)["imagePullSecrets"] == [{"name": "registry"}]
    blocks = [
        peer["ipBlock"]["cidr"]
        for policy in of_kind(documents, "NetworkPolicy")
        for rule in policy["spec"]["egress"]
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    assert set(blocks) == {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"}
    assert "0.0.0.0/0" in str(of_kind(rendered("gpu"), "NetworkPolicy"))


def test_policies_cover_both_kinds_of_pods() -> None:
    documents = rendered("gpu")
    control, stages = of_kind(documents, "NetworkPolicy")
    (deployment,) = of_kind(documents, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert control["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    assert stages["spec"]["podSelector"]["matchExpressions"] == [{"key": "mloc.job", "operator": "Exists"}]
    for policy in (control, stages):
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    (service,) = of_kind(documents, "Service")
    assert service["spec"]["selector"].items() <= labels.items()
    (budget,) = of_kind(documents, "PodDisruptionBudget")
    assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_two_releases_and_the_official_dagster_chart_do_not_clash() -> None:
    """Names carry the release's, as those of the official chart do (`<release>-dagster…`), and ours end otherwise."""
    for document in rendered("gpu"):
        assert document["metadata"]["name"].startswith("my-mloc"), document["kind"]


BAD = {
    "an unknown key": (["web.replicas=3"], "additional properties 'replicas' not allowed"),
    "a password in values": (["database.password=x"], "additional properties 'password' not allowed"),
    "a secret as a variable": (["env.HF_TOKEN=x"], "HF_TOKEN"),
    "latest": (["image.tag=latest"], "/image/tag"),
    "a size without a unit": (["home.size=50"], "/home/size"),
    "an ingress without TLS": (["ingress.enabled=true", "ingress.host=a.example"], "/ingress/tlsSecret"),
    "pools without a store": (["pools[0].name=a", "pools[0].cpu=1", "pools[0].memory=1Gi"], "set artifacts.s3.url"),
    "two stores": (["artifacts.s3.url=s3://abc/x", "artifacts.claim.name=y"], "are two stores; keep one"),
    "a claim elsewhere": (["artifacts.claim.name=y", "stageNamespace=b"], "a claim belongs to one namespace"),
    "a pool with a misspelt key": (["poolDefaults.node_selectr.a=b"], "node_selectr"),
    "a pool of the latest image": (["poolDefaults.image=mloc/worker:latest"], "/poolDefaults/image"),
    "no address inside": (
        ["networkPolicy.inside=null", "artifacts.s3.url=s3://abc/x", "pools[0].name=a", "pools[0].cpu=1",
         "pools[0].memory=1Gi"], "networkPolicy.inside is empty",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_values_are_refused_with_a_message(case: str) -> None:
    values, message = BAD[case]
    done = run_helm("template", "my", str(CHART), *(word for value in values for word in ("--set", value)))
    assert done.returncode != 0 and message in done.stderr, done.stderr


def test_an_older_cluster_is_refused() -> None:
    done = run_helm("template", "my", str(CHART), "--kube-version", "1.28.0")
    assert done.returncode != 0 and "1.28" in done.stderr


def test_the_schema_knows_the_keys_of_workers_yaml() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))["properties"]
    set_by_the_chart = {"namespace", "context", "kubeconfig"}
    ours = set(Kubernetes.model_fields) - set_by_the_chart
    assert set(schema["poolDefaults"]["properties"]) == ours
    assert set(schema["pools"]["items"]["properties"]["kubernetes"]["properties"]) == ours


def test_every_value_is_in_the_schema_and_the_other_way_round() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))["properties"]
    assert set(schema) - {"global"} == set(yaml.safe_load((CHART / "values.yaml").read_text("utf-8")))


def test_the_charts_version_is_that_of_mloc() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    assert chart["appVersion"] == chart["version"] == mloc_dagster.__version__
