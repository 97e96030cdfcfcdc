"""Training in several pods of one Job: they meet, one result is published, and they end together."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from dagster import DagsterInstance, DagsterRunStatus

from mloc_dagster.definitions.submit import submit_file
from mloc_dagster.placement.failures.cause import Cause
from mloc_dagster.placement.ledger import Ledger
from mloc_dagster.placement.remote.carrier import Ending
from mloc_dagster.plan import compile_plan
from mloc_dagster.spec import load_text
from mloc_dagster.store.home import Home
from tests.definitions.conftest import get, status
from tests.kubernetes_api import Cluster
from tests.placement.k8s.test_attempt import SLEEP, Begin, begin
from tests.tiny_model import make_tiny_llama
from tests.waiting import wait_for

__all__ = ["begin"]
pytestmark = pytest.mark.timeout(60)

MEET = """\
import os, socket
from executors.distributed.nodes import this_node
node = this_node()
if node.rank == 0:
    server = socket.create_server(("127.0.0.1", node.first_port))
    for _ in range(node.count - 1):
        print(server.accept()[0].makefile().readline(), end="")
else:
    import time
    while True:
        try:
            other = socket.create_connection((node.first_host, node.first_port))
            break
        except ConnectionRefusedError:
            time.sleep(0.1)
    other.sendall(f"{node.rank} of {node.count} came to {node.first_host}\\n".encode())
"""
TRAIN = """\
apiVersion: mloc/v1
metadata: {name: both, owner: ann}
spec:
  taskType: lora_sft
  resources: {replicas: 2, hardware: {cpu: 1, memory: 1Gi, gpu: {count: 0}}}
  model: {source: {type: local, identifier: MODEL}}
  data: {prompts: [{prompt: "a b", response: "c d"}, {prompt: "e f", response: "g h"}]}
  lora: {r: 4, dropout: 0.0}
  training: {max_steps: STEPS, batch_size: 1, logging_steps: 2, save_steps: 10, max_seq_length: 32}
"""


def test_they_find_the_first_one_by_its_name(begin: Begin, cluster: Cluster) -> None:
    attempt = begin(MEET, replicas=3)
    assert attempt.ending() == Ending(0) and len(cluster.started) == 3
    [job] = cluster.jobs()
    name = f"{job['metadata']['name']}-0.mloc-a1"
    assert sorted(attempt.text().splitlines()) == [f"{rank} of 3 came to {name}" for rank in (1, 2)]
    assert (job["spec"]["completionMode"], job["spec"]["completions"], job["spec"]["parallelism"]) == ("Indexed", 3, 3)
    attempt.carried.remove(failed=False)
    left = (cluster.jobs, cluster.pods, cluster.secrets, cluster.services)
    wait_for(lambda: not any(kind() for kind in left), "all to go")


def test_a_pod_that_fails_ends_the_others(begin: Begin, cluster: Cluster) -> None:
    attempt = begin(SLEEP, replicas=3)
    attempt.begun()
    wait_for(lambda: len(cluster.started) == 3, "all pods")
    third = next(pod for pod in cluster.started if "-2-" in pod)
    process = cluster.process(third)
    assert process is not None
    process.signal(signal.SIGKILL)
    ending = attempt.ending()
    assert ending.code == 137, "it is told of the one that failed, not of those that were ended for it"
    assert attempt.text() == "begun\nasked to end\n", "the log is that of the first"


def test_a_pod_that_is_taken_away_is_named(begin: Begin, cluster: Cluster) -> None:
    attempt = begin(SLEEP, replicas=2)
    attempt.begun()
    wait_for(lambda: len(cluster.started) == 2, "all pods")
    cluster.evict(next(pod for pod in cluster.started if "-1-" in pod))
    ending = attempt.ending()
    assert ending.cause is Cause.WORKER_LOST
    assert "(replica 1) was taken away: EvictionByEvictionAPI: Eviction API: evicting" in ending.words


def test_cancel_ends_all_of_them(begin: Begin, cluster: Cluster) -> None:
    attempt = begin(SLEEP, replicas=2)
    attempt.begun()
    attempt.carried.stop()
    attempt.ending(10)
    attempt.carried.remove(failed=False)
    wait_for(lambda: not (cluster.jobs() or cluster.pods() or cluster.services()), "all to go", 5)


def test_a_pod_without_a_node_is_told_while_the_others_have_theirs(begin: Begin, cluster: Cluster) -> None:
    cluster.nodes[0].allocatable = {"cpu": "1", "memory": "512Gi"}
    attempt = begin(SLEEP, replicas=3, start_seconds=3)  # half a core each
    ending = attempt.ending()
    assert "did not start within 3 s (start_seconds): finds no node: Unschedulable: 0/1 nodes are" in ending.words
    wait_for(lambda: not (cluster.jobs() or cluster.pods()), "the Job to go")


Submitted = Callable[[int], str]


@pytest.fixture
def train(instance: DagsterInstance, home: Home, declare: Callable, tmp_path: Path) -> Submitted:
    """Submit a training of so many steps in two pods."""
    declare()
    make_tiny_llama(tmp_path / "model", steps=0)

    def do(steps: int) -> str:
        text = TRAIN.replace("MODEL", str(tmp_path / "model")).replace("STEPS", str(steps))
        return submit_file(instance, home, compile_plan(load_text(text, base=tmp_path)))

    return do


def trained(home: Home, run_id: str) -> dict:
    return json.loads((home.run_folder(run_id, "lora_sft") / "responses.json").read_text("utf-8"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_pods_train_as_one(instance: DagsterInstance, home: Home, train: Submitted, cluster: Cluster) -> None:
    run_id = train(4)
    wait_for(lambda: bool(cluster.jobs()) or get(instance, run_id).is_finished, "the Job", 120)
    [lease] = [one for one in Ledger.of_instance(instance).snapshot()[1] if one.run_id != one.run]
    assert (lease.need.cpu, lease.need.memory) == (2000, 2 << 30), "all that both need is claimed at once"
    resources = [pod["spec"]["containers"][0]["resources"]["limits"] for pod in cluster.pods()]
    assert resources == [{"memory": str(1 << 30), "cpu": "1000m"}] * 2
    wait_for(lambda: get(instance, run_id).is_finished, "the training", 600)
    assert get(instance, run_id).is_success, "\n".join(one.user_message for one in instance.all_logs(run_id))
    result = trained(home, run_id)["result"]
    assert result["world_size"] == 2 and result["metrics"]["steps"] == 4
    assert (Path(result["final_lora_path"]) / "adapter_model.safetensors").is_file()
    assert len(cluster.created) == 1 and len(cluster.started) == 2 and cluster.jobs() == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_pod_costs_no_more_than_the_steps_since_the_last_checkpoint(
    instance: DagsterInstance, home: Home, train: Submitted, cluster: Cluster, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("MLOC_SYNC_SECONDS", "1")
    run_id = train(150)

    def stored() -> bool:
        listings = (path.read_bytes() for path in (tmp_path / "artifacts" / "blobs").glob("*/*"))
        return any(b"checkpoints/checkpoint-" in data and b"complete.json" in data for data in listings)

    wait_for(lambda: stored() or get(instance, run_id).is_finished, "a checkpoint in the store", 400)
    process = cluster.process(next(pod for pod in cluster.started if "-1-" in pod))
    assert process is not None
    process.signal(signal.SIGKILL)
    wait_for(lambda: get(instance, run_id).is_finished, "the training", 400)
    told = "\n".join(one.user_message for one in instance.all_logs(run_id))
    assert get(instance, run_id).status is DagsterRunStatus.SUCCESS, told
    assert "was killed from outside (exit code 137" in told
    result = trained(home, run_id)["result"]
    assert result["world_size"] == 2 and result["metrics"]["steps"] == 150
    assert int(result["resume_from_path"].rpartition("-")[2]) >= 10
    assert len(cluster.created) == 2 and len(cluster.started) == 4
    assert status(instance, run_id) is DagsterRunStatus.SUCCESS
