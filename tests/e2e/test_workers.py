"""`mloc up` with workers elsewhere: each stage on another engine or cluster, files by S3 alone."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from mloc_dagster.definitions.instance import DAGSTER_YAML
from tests import postgres
from tests.cli.conftest import Mloc, mloc
from tests.delivery.test_http import unused_port
from tests.docker_engine import IMAGE, Engine, engine, mounts
from tests.kubernetes_api import IMAGE as POD_IMAGE
from tests.kubernetes_api import Cluster, kubernetes
from tests.tiny_model import make_tiny_llama
from tests.waiting import wait_for

__all__ = ["mloc"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PASSED = ["AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "PYTHONPATH"]
PIPELINE = """\
apiVersion: mloc/v1
metadata: {name: quick, owner: ann}
spec:
  model: {source: {type: local, identifier: MODEL}}
  inference: {max_tokens: 4, temperature: 0}
  stages:
    - name: data
      taskType: inference
      resources: {hardware: {cpu: 2, memory: 900Mi, gpu: {count: 0}}}
      data: {type: list, items: [a b, e f], items_metadata: [{answer: A B}, {answer: E F}]}
      postprocess: {jsonl_export: {path: rows.jsonl, fields: {prompt: prompt, response: metadata.answer}}}
    - name: tune
      taskType: lora_sft
      resources: {hardware: {cpu: 1, memory: 1500Mi, gpu: {count: 0}}}
      data: {jsonl: {path: "${data.result.jsonl_export.path}", prompt_field: prompt, response_field: response}}
      lora: {r: 4}
      training: {max_steps: 4, batch_size: 2, max_seq_length: 32}
    - name: answer
      taskType: inference
      resources: {hardware: {cpu: 2, memory: 800Mi, gpu: {count: 0}}}
      model: {adapters: [{type: lora, path: "${tune.result.final_lora_path}"}]}
      data: {type: list, items: [a b, e f]}
"""
WHERE = {"data": "one", "tune": "two", "answer": "one"}
"""No worker has both the cores and the memory that the three stages ask for together."""
ROOM = {"one": {"cpu": 2, "memory": "1Gi"}, "two": {"cpu": 1, "memory": "2Gi"}}
ASKED = {"data": (2.0, 900 << 20), "tune": (1.0, 1500 << 20), "answer": (2.0, 800 << 20)}
_LIMITS = """\
from pathlib import Path
def first(*paths):
    return next(Path(path).read_text() for path in paths if Path(path).exists())
memory = first("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
cpu = first("/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
print(int(cpu.split()[0]) / 100_000, int(memory))
"""


@pytest.fixture
def stored(request: pytest.FixtureRequest, mloc: Mloc) -> Iterator[Mloc]:
    """The command with a home whose runs Dagster keeps in SQLite, or in PostgreSQL."""
    if request.param == "sqlite":
        yield mloc
        return
    pytest.importorskip("dagster_postgres", reason="dagster-postgres is not installed")
    if postgres.missing():
        pytest.skip(postgres.missing())
    with postgres.postgres_server() as server:
        settings = yaml.safe_load(DAGSTER_YAML)
        settings["storage"] = {"postgres": {"postgres_url": server.database("mloc")}}
        mloc.home.dagster.mkdir(parents=True)
        (mloc.home.dagster / "dagster.yaml").write_text(yaml.safe_dump(settings))
        yield mloc


def declare(mloc: Mloc, sections: dict[str, dict[str, Any]]) -> None:
    """Write workers.yaml: two workers with a `docker` or `kubernetes` section each."""
    workers = [{"name": name, **ROOM[name], **section} for name, section in sections.items()]
    mloc.home.root.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump({"artifacts": "s3://artifacts/mloc", "workers": workers}, sort_keys=False)
    (mloc.home.root / "workers.yaml").write_text(text)


@contextmanager
def up(mloc: Mloc) -> Iterator[None]:
    """Run `mloc up`, the service and its daemon."""
    process = mloc.start("up", "--port", str(unused_port()))
    lines: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True)
    reader.start()
    try:
        wait_for(lambda: any("UI http" in line for line in lines) or process.poll() is not None, "the service", 120)
        assert process.poll() is None, "".join(lines)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def carried_out(mloc: Mloc) -> dict[str, dict[str, Any]]:
    """Submit the pipeline and wait for its success; returns the result of each stage."""
    make_tiny_llama(mloc.folder / "model", steps=0)
    (mloc.folder / "quick.yaml").write_text(PIPELINE.replace("MODEL", str(mloc.folder / "model")))
    submitted = mloc("submit", "quick.yaml")
    assert submitted.code == 0, submitted.errors
    following = mloc.start("logs", "-f", submitted.out.split()[0])
    told, _ = following.communicate(timeout=600)
    assert "answer | " in told, told
    [folder] = mloc.home.results.glob("*/answer")
    return {name: json.loads((folder.parent / name / "responses.json").read_text()) for name in WHERE}


def check(results: dict[str, dict[str, Any]], mloc: Mloc) -> None:
    assert {name: one["worker"] for name, one in results.items()} == WHERE
    adapter = Path(results["tune"]["result"]["final_lora_path"])
    assert adapter.is_relative_to(mloc.home.results) and (adapter / "adapter_model.safetensors").is_file()
    assert results["tune"]["result"]["dataset_size"] == len(results["answer"]["result"]["items"]) == 2
    assert results["tune"]["metadata"]["libraries"]["torch"] == version("torch"), "the pod or container tells its own"
    assert len(list(mloc.home.results.glob("*/*/responses.json"))) == len(WHERE), "each is published once"


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[Engine, Engine]]:
    """Two engines that know nothing of each other."""
    with ExitStack() as stack:
        yield stack.enter_context(engine()), stack.enter_context(engine())


@pytest.mark.docker
@pytest.mark.parametrize("stored", ["sqlite", pytest.param("postgres", marks=pytest.mark.exhaustive)], indirect=True)
def test_each_stage_on_another_docker_engine(stored: Mloc, engines: tuple[Engine, Engine], s3: Any) -> None:
    s3.create_bucket(Bucket="artifacts")
    common = {"image": IMAGE, "network": "host", "env": PASSED, "volumes": mounts(), "keep_failed_seconds": 0}
    declare(stored, {n: {"docker": {"host": one.host, **common}} for n, one in zip(ROOM, engines, strict=True)})
    with up(stored), limits_inside(engines) as seen:
        check(carried_out(stored), stored)
    assert seen == ASKED
    assert [one.client().containers.list(all=True) for one in engines] == [[], []]


@contextmanager
def limits_inside(engines: Sequence[Engine]) -> Iterator[dict[str, tuple[float, int]]]:
    """Look into each container while it runs: cores and bytes of memory by stage."""
    from docker.errors import APIError

    seen: dict[str, tuple[float, int]] = {}
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.3):
            for container in [one for each in engines for one in each.client().containers.list()]:
                name = container.labels["mloc.step"].rpartition("/")[2]
                try:
                    told = container.exec_run(["python", "-c", _LIMITS])
                    cpu, memory = bytes(told.output).split()  # pyright: ignore[reportArgumentType] (it is no stream)
                    seen[name] = (float(cpu), int(memory))
                except (APIError, ValueError):  # it has just ended
                    continue

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


@pytest.fixture
def clusters(tmp_path: Path) -> Iterator[tuple[Cluster, Cluster]]:
    """Two clusters, each with an API server of its own."""
    with kubernetes(tmp_path / "cluster-one") as one, kubernetes(tmp_path / "cluster-two") as two:
        yield one, two


@pytest.mark.parametrize("stored", ["postgres", pytest.param("sqlite", marks=pytest.mark.exhaustive)], indirect=True)
def test_each_stage_on_another_cluster(stored: Mloc, clusters: tuple[Cluster, Cluster], s3: Any) -> None:
    s3.create_bucket(Bucket="artifacts")
    sections = {}
    for name, cluster in zip(ROOM, clusters, strict=True):
        config = cluster.kubeconfig(stored.folder / f"kubeconfig-{name}")
        hidden = {"name": "hidden", "path": str(stored.home.root), "claim": "nothing"}  # pods see nothing of the home
        sections[name] = {
            "kubernetes": {"image": POD_IMAGE, "kubeconfig": str(config), "env": PASSED, "volumes": [hidden]}
        }
    declare(stored, sections)
    with up(stored):
        check(carried_out(stored), stored)
    assert [len(cluster.created) for cluster in clusters] == [2, 1]
    assert [cluster.jobs() for cluster in clusters] == [[], []]
