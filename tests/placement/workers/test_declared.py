"""workers.yaml: what it gives, and every fault at its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from mloc_dagster.placement.inventory import Device
from mloc_dagster.placement.workers.cluster import Kubernetes
from mloc_dagster.placement.workers.declared import load_fleet, load_workers, workers_of
from mloc_dagster.placement.workers.detect import this_machine
from mloc_dagster.placement.workers.engine import Docker
from mloc_dagster.placement.workers.room import Worker
from mloc_dagster.spec import SpecError
from mloc_dagster.store.home import Home

GIB = 1 << 30
TWO = """\
workers:
  - name: gpu-a
    cpu: 16
    memory: 64Gi
    gpus:
      - {type: NVIDIA A100-SXM4-80GB, indexes: [1, 0]}
      - {type: l4, indexes: [2], memory: 20Gi}
  - {name: cpu-b, cpu: 500m, memory: 2GiB}
"""


def faults(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "workers.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as error:
        load_workers(path)
    return [str(fault).removeprefix(f"{tmp_path}/") for fault in error.value.faults]


def test_what_is_declared(tmp_path: Path) -> None:
    (tmp_path / "workers.yaml").write_text(TWO)
    a100, l4 = [Device(i, "a100-80gb", 80 * GIB) for i in (0, 1)], Device(2, "l4", 20 * GIB)
    expected = (Worker("gpu-a", 16_000, 64 * GIB, (*a100, l4)), Worker("cpu-b", 500, 2 * GIB))
    assert workers_of(Home(tmp_path)) == expected


def test_all_faults_at_once_with_their_places(tmp_path: Path) -> None:
    text = "workers:\n  - {name: a b, cpu: many, memory: 1Gi}\n  - name: c\n    cpu: 1\n    memroy: 1Gi\n"
    found = faults(tmp_path, text)
    assert len(found) == 3
    assert found[0].startswith("workers.yaml:2:12 workers[0].name: is not of the right form (found 'a b')")
    assert found[1].startswith("workers.yaml:2:22 workers[0].cpu: is not a quantity (found 'many'); write")
    assert found[2].startswith("workers.yaml:5:5 workers[1].memroy: ") and found[2].endswith("did you mean memory?")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("workers: []", "workers.yaml:1:10 workers: "),
        ("- a", "workers.yaml:1:1 must be a map"),
        ("workers:\n- {name: a, cpu: 0, memory: 1Gi}", "workers.yaml:2:18 workers[0].cpu: is nothing"),
        (
            "workers:\n- {name: a, cpu: 1, memory: 1Gi}\n- {name: a, cpu: 1, memory: 1Gi}",
            "workers.yaml:3:10 workers[1].name: is the name of another worker, too",
        ),
        (TWO.replace("[2]", "[1]"), "workers.yaml:7:29 workers[0].gpus[1].indexes: GPU 1 belongs to gpu-a already"),
        ("workers:\n- {name: a, cpu: 1, memory: '${x.result.y}'}", "workers.yaml:"),
    ],
)
def test_what_cannot_be(text: str, told: str, tmp_path: Path) -> None:
    found = faults(tmp_path, text)
    assert any(one.startswith(told) for one in found), found


def test_without_a_file_it_is_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert workers_of(Home(tmp_path)) == (this_machine(),)
    monkeypatch.setenv("MLOC_WORKERS", str(tmp_path / "none.yaml"))
    with pytest.raises(SpecError, match="MLOC_WORKERS names no file"):
        workers_of(Home(tmp_path))


ENGINE = """\
artifacts: s3://artifacts
workers:
  - {name: a, cpu: 1, memory: 1Gi, gpus: [{type: l4, indexes: [0]}], docker: {host: "unix:///a.sock", image: m}}
  - {name: b, cpu: 1, memory: 1Gi, gpus: [{type: l4, indexes: [0]}], docker: {host: "ssh://me@b", image: m}}
"""


def test_engines_are_machines_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "workers.yaml").write_text(ENGINE)
    fleet = load_fleet(tmp_path / "workers.yaml")
    assert [worker.name for worker in fleet.workers] == ["a", "b"] and fleet.artifacts == "s3://artifacts"
    assert [engine.image for engine in fleet.engines.values()] == ["m", "m"]
    b = fleet.engines["b"]
    assert isinstance(b, Docker) and (b.host, b.pull) == ("ssh://me@b", "missing")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("unix:///a.sock", "http://a", "docker.host: is no address of an engine (found 'http://a')"),
        ("unix:///a.sock", "unix://a.sock", "docker.host: names no socket (found 'unix://a.sock')"),
        ("unix:///a.sock", "tcp://a:2375", "docker.host: is an engine without TLS: whoever reaches it is root there"),
        ("unix:///a.sock", "ssh://me:pw@a", "docker.host: holds a password (found '***')"),
        ("image: m}}", "image: m, tls: {ca: a, cert: b, key: c}}}", "docker.tls: means nothing for unix://"),
        ("image: m}}", "image: m, volumes: [data]}}", "docker.volumes[0]: is no volume (found 'data')"),
        ("image: m}}", "image: m, env: [A=b]}}", "docker.env[0]: "),
        ("image: m}}", "image: m, cpuset: all}}", "docker.cpuset: "),
        ("image: m}}", "image: m, restart: always}}", "docker.restart: "),
        ("ssh://me@b", "unix:///a.sock", "gpus[0].indexes: GPU 0 belongs to a already"),
        ("artifacts: s3://artifacts\n", "", "docker: needs an artifact store"),
        ("s3://artifacts", "/folder", "artifacts: is no address (found '/folder')"),
        ("s3://artifacts", "sftp://me:hunter2@box/x", "1:12 artifacts: holds a password (found '***')"),
    ],
)
def test_what_an_engine_cannot_be(old: str, new: str, told: str, tmp_path: Path) -> None:
    found = faults(tmp_path, ENGINE.replace(old, new, 1))
    assert any(told in one for one in found), found


@pytest.mark.parametrize("address", ["sftp://me:hunter2@box/x", "/folder"])
def test_the_store_of_the_environment_is_looked_at_as_well(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOC_ARTIFACTS", address)
    [fault] = faults(tmp_path, ENGINE.replace("artifacts: s3://artifacts\n", ""))
    assert "MLOC_ARTIFACTS" in fault and "hunter2" not in fault


CLUSTER = """\
artifacts: s3://artifacts
workers:
  - name: pool
    cpu: 64
    memory: 512Gi
    gpus: [{type: a100-80gb, count: 4}]
    kubernetes: {image: m, namespace: team, tolerations: [{key: gpu, operator: Exists}]}
"""


def test_a_cluster(tmp_path: Path) -> None:
    (tmp_path / "workers.yaml").write_text(CLUSTER)
    fleet = load_fleet(tmp_path / "workers.yaml")
    [worker] = fleet.workers
    text = CLUSTER.replace("image: m,", "image: m, start_seconds_by_gpu: {NVIDIA A100-SXM4-80GB: 7200},")
    (tmp_path / "workers.yaml").write_text(text)
    [engine] = load_fleet(tmp_path / "workers.yaml").engines.values()
    assert isinstance(engine, Kubernetes) and engine.start_seconds_by_gpu == {"a100-80gb": 7200}
    assert worker.devices == tuple(Device(index, "a100-80gb", 80 * GIB) for index in range(4))
    pool = fleet.engines["pool"]
    assert isinstance(pool, Kubernetes) and (pool.namespace, pool.gpu_resource) == ("team", "nvidia.com/gpu")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("count: 4", "indexes: [0]", "workers.yaml:6:39 workers[0].gpus[0].indexes: mean nothing in a cluster"),
        (", count: 4", "", "6:12 workers[0].gpus[0]: has no count"),
        ("count: 4}", "count: 4}, {type: l4, count: 1}", "gpus[1].type: is a second kind (found 'l4')"),
        ("a100-80gb", "x9000", "7:17 workers[0].kubernetes: knows no node label of x9000"),
        ("image: m,", "image: m, kubeconfig: /none,", "7:40 workers[0].kubernetes.kubeconfig: names no file"),
        ("image: m,", "imgae: m,", "did you mean image?"),
        (
            "image: m,",
            "image: m, start_seconds_by_gpu: {h10: 7200},",
            "start_seconds_by_gpu: names h10, and the worker",
        ),
        ("a100-80gb", "mi300x", "has the gpu_resource of another maker than mi300x (found 'nvidia.com/gpu')"),
        ("a100-80gb", "mi300x", "has the gpu_label of another maker than mi300x"),
        ("image: m,", "image: m, cache_claim: a, cache_host_path: /b,", "cache_host_path: is a second cache"),
        ("image: m,", "image: m, volumes: [{name: a, path: /a}],", "kubernetes.volumes[0]: needs one source"),
        ("image: m,", "image: m, volumes: [{name: a, path: /tmp/mloc, claim: c}],", "path: is a folder that MLOC uses"),
        ("operator: Exists", "operator: Exists, value: a", "tolerations[0].value: means nothing with Exists"),
        ("key: gpu, operator: Exists", "value: a", "kubernetes.tolerations[0]: has no key"),
        ("namespace: team", "namespace: Team", "kubernetes.namespace: "),
        ("    kubernetes:", "    docker: {host: 'ssh://a', image: m}\n    kubernetes:", "is a second place"),
        ("artifacts: s3://artifacts\n", "", "kubernetes: needs an artifact store"),
    ],
)
def test_what_a_cluster_cannot_be(old: str, new: str, told: str, tmp_path: Path) -> None:
    found = faults(tmp_path, CLUSTER.replace(old, new, 1))
    assert any(told in one for one in found), found
