"""A Job is made once, followed to its last line, and its end is named, whatever breaks meanwhile."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mloc_dagster.placement.failures.cause import Cause
from mloc_dagster.placement.k8s import api as api_module
from mloc_dagster.placement.k8s import attempt as attempt_module
from mloc_dagster.placement.k8s import carrier as carrier_module
from mloc_dagster.placement.k8s.carrier import KubernetesCarrier
from mloc_dagster.placement.remote.carrier import CarrierError, Ending, Order, Unreachable
from mloc_dagster.placement.remote.follow import Follower
from mloc_dagster.placement.workers.cluster import Kubernetes
from mloc_dagster.placement.workers.room import Worker
from tests.kubernetes_api import IMAGE, ROOT, Cluster, Fault
from tests.waiting import wait_for

pytestmark = pytest.mark.timeout(60)

LINES = "import time\nfor n in range(150):\n    print('line', n, flush=n % 3 == 2)\n    time.sleep(0.01)\n"
SLEEP = """\
import signal, sys, time
def end(number, frame):
    print("asked to end", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
print("begun", flush=True)
time.sleep(60)
"""
Begin = Callable[..., "Attempt"]


class Attempt:
    """One attempt that is followed."""

    def __init__(self, cluster: Cluster, carrier: KubernetesCarrier, order: Order, log: Path) -> None:
        self.cluster, self.carrier, self.order, self.log = cluster, carrier, order, log
        self.carried = carrier.start(order)
        log.touch()
        self.follower = Follower(self.carried, log)
        self.notes: list[str] = []

    def begun(self) -> str:
        """Wait for its first line; returns the name of its pod."""
        wait_for(lambda: "begun" in self.text(), "the first line", 20)
        return self.cluster.started[-1]

    def text(self) -> str:
        self._take()
        return self.log.read_text()

    def ending(self, seconds: float = 30) -> Ending:
        """Wait for its end."""
        wait_for(lambda: self.follower.over(0.05), "the end", seconds)
        self._take()
        assert self.follower.ending is not None
        return self.follower.ending

    def _take(self) -> None:
        self.notes.extend(str(value) for kind, value in self.follower.take() if kind == "note")


@pytest.fixture
def begin(cluster: Cluster, tmp_path: Path) -> Begin:
    """Start a program in the place of the work; keywords change the worker's declaration."""
    config = cluster.kubeconfig(tmp_path / "kubeconfig")
    package = tmp_path / "program" / "executors"
    (package / "remote").mkdir(parents=True)
    shutil.copytree(ROOT / "executors" / "distributed", package / "distributed")
    for folder in (package, package / "remote"):
        (folder / "__init__.py").touch()

    def do(program: str, attempt: str = "a1", replicas: int = 1, **changes: object) -> Attempt:
        (package / "remote" / "__main__.py").write_text(program)
        section = {"image": IMAGE, "kubeconfig": str(config), "stop_seconds": 3, **changes}
        declared = Kubernetes.model_validate(section)
        order = Order(
            job="jobs/w/t", attempt=attempt, store="file:///store", key=f"jobs/w/t/{attempt}",
            environment={"PYTHONPATH": str(package.parent), "SECRET": "hunter2"}, cpu=None, share=500, memory=1 << 30,
            replicas=replicas,
            labels={"mloc.run": "run-1", "mloc.step": "task/stage", "mloc.worker": "pool"},
        )  # fmt: skip
        carrier = KubernetesCarrier(Worker("pool", 4000, 8 << 30), declared, order.store)
        return Attempt(cluster, carrier, order, tmp_path / f"{attempt}.log")

    return do


def test_every_line_once_over_broken_streams(begin: Begin, cluster: Cluster) -> None:
    attempt = begin(LINES.replace("0.01", "0.03"))
    for number in (3, 60, 110):
        wait_for(lambda line=f"line {number}\n": line in attempt.text(), "more lines", 20)
        cluster.cut()
    assert attempt.ending() == Ending(0)
    assert attempt.text() == "".join(f"line {n}\n" for n in range(150))


def test_a_server_that_is_away_is_waited_for(begin: Begin, cluster: Cluster) -> None:
    attempt = begin(LINES.replace("0.01", "0.03"))
    wait_for(lambda: "line 3" in attempt.text(), "lines", 20)
    cluster.down()
    wait_for(lambda: "does not answer" in attempt.follower.unreachable, "the server to be missed", 20)
    with pytest.raises(Unreachable, match="the API server of the cluster of the current context, namespace default"):
        attempt.carrier.find(attempt.order.job)
    time.sleep(2)  # the work ends meanwhile
    cluster.up()
    assert attempt.ending() == Ending(0)
    assert attempt.text() == "".join(f"line {n}\n" for n in range(150)) and len(cluster.started) == 1


def test_the_same_work_is_made_once(begin: Begin, cluster: Cluster) -> None:
    first = begin(SLEEP)
    first.begun()
    second = begin(SLEEP, "a2")
    assert second.carried.attempt == "a1" and len(cluster.created) == 1
    [found] = first.carrier.find(first.order.job)
    assert (found.attempt, found.worker, found.place) == ("a1", "pool", first.carried.place)
    wait_for(lambda: second.text() == first.text() != "", "the log from its beginning")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(status: int, begin: Begin, cluster: Cluster) -> None:
    cluster.faults.append(Fault("POST", "/jobs", status, times=2, headers={"Retry-After": "1"}))
    begun = time.monotonic()
    assert begin("print('begun')").ending() == Ending(0)
    assert time.monotonic() - begun > 2 and len(cluster.created) == 1


def test_an_answer_that_is_lost_makes_no_second_copy(begin: Begin, cluster: Cluster) -> None:
    cluster.faults.append(Fault("POST", "/jobs", 0, late=True))
    attempt = begin("print('begun')")
    assert attempt.carried.attempt == "a1" and attempt.ending() == Ending(0)
    assert len(cluster.created) == len(cluster.started) == 1


def test_what_is_refused_is_told(begin: Begin, cluster: Cluster) -> None:
    cluster.faults.append(Fault("POST", "/jobs", 403))
    with pytest.raises(CarrierError, match=r"the server says 403 \(403\)") as told:
        begin(SLEEP)
    assert told.value.lasting
    cluster.faults.append(Fault("POST", "/secrets", 403))
    with pytest.raises(CarrierError):
        begin(SLEEP)
    wait_for(lambda: not cluster.jobs() and not cluster.pods(), "the Job to be taken back")


def test_the_next_attempt_takes_the_place_of_one_that_failed(begin: Begin, cluster: Cluster) -> None:
    assert begin("raise SystemExit(3)").ending() == Ending(3)
    [kept] = cluster.jobs()
    again = begin("print('begun')", "a2")
    assert again.carried.attempt == "a2" and again.ending() == Ending(0)
    [job] = cluster.jobs()
    assert job["metadata"]["name"] == kept["metadata"]["name"] and job["metadata"]["uid"] != kept["metadata"]["uid"]


def test_secrets_are_in_a_secret_that_goes_with_its_job(begin: Begin, cluster: Cluster) -> None:
    attempt = begin("import os; print(os.environ['SECRET'])")
    assert attempt.ending() == Ending(0) and attempt.text() == "hunter2\n"
    assert "hunter2" not in str(cluster.jobs()) + str(cluster.pods())
    assert "hunter2" in str(cluster.secrets())
    attempt.carried.remove(failed=False)
    wait_for(lambda: not (cluster.jobs() or cluster.pods() or cluster.secrets()), "all to go")


def test_out_of_memory(begin: Begin, cluster: Cluster) -> None:
    attempt = begin(SLEEP)
    cluster.starve(attempt.begun())
    assert attempt.ending().out_of_memory


@pytest.mark.parametrize(
    ("reason", "message"),
    [("EvictionByEvictionAPI", "Eviction API: evicting"), ("PreemptionByScheduler", "preempting to accommodate x")],
)
def test_what_is_taken_away_is_lost_with_the_clusters_words(
    reason: str, message: str, begin: Begin, cluster: Cluster
) -> None:
    attempt = begin(SLEEP)
    cluster.evict(attempt.begun(), reason, message)
    ending = attempt.ending()
    assert ending.cause is Cause.WORKER_LOST and f"was taken away: {reason}: {message}" in ending.words
    assert attempt.text() == "begun\nasked to end\n", "its last line is read"


def test_a_job_that_somebody_deletes_is_lost(begin: Begin, cluster: Cluster) -> None:
    attempt = begin(SLEEP)
    attempt.begun()
    cluster.delete("jobs", cluster.jobs()[0]["metadata"]["name"], {"propagationPolicy": "Background"})
    ending = attempt.ending()
    assert ending.cause is Cause.WORKER_LOST and "deleted" in ending.words
    assert attempt.text() == "begun\nasked to end\n"


def test_a_lost_node(begin: Begin, cluster: Cluster) -> None:
    attempt = begin(SLEEP)
    pod = attempt.begun()
    cluster.lose(pod)
    wait_for(lambda: "i/o timeout" in attempt.follower.unreachable, "the node to be missed", 30)
    cluster.take_from_lost_node(pod)
    ending = attempt.ending()
    assert ending.cause is Cause.WORKER_LOST
    assert "was lost: DeletionByTaintManager: Taint manager: deleting due to NoExecute taint" in ending.words


def test_a_deadline(begin: Begin, cluster: Cluster) -> None:
    attempt = begin(SLEEP)
    attempt.begun()
    cluster.expire(cluster.jobs()[0]["metadata"]["name"])
    ending = attempt.ending()
    assert ending.cause is Cause.TIMED_OUT and "DeadlineExceeded" in ending.words


def test_an_image_that_cannot_be_pulled_is_told_in_the_kubelets_words(begin: Begin, cluster: Cluster) -> None:
    attempt = begin(SLEEP, image="registry.example/none:7", start_seconds=1)
    ending = attempt.ending()
    assert ending.cause is Cause.USER
    assert "did not start within 1 s (start_seconds): has no image: ErrImagePull: failed to pull" in ending.words
    assert any("registry.example/none:7: not found" in note for note in attempt.notes)
    wait_for(lambda: not cluster.jobs() and not cluster.pods(), "the Job to go")


def test_a_pod_without_a_node_is_told_in_the_schedulers_words(begin: Begin, cluster: Cluster) -> None:
    attempt = begin(SLEEP, node_selector={"disk": "fast"}, start_seconds=1)
    ending = attempt.ending()
    words = (
        "finds no node: Unschedulable: 0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
    )
    assert ending.code is None and words in ending.words and ending.cause is Cause.INTERNAL
    assert sum(words in note for note in attempt.notes) == 1, "it is told once, while it waits"


def test_a_queue_is_waited_for_as_long_as_it_takes(begin: Begin, cluster: Cluster) -> None:
    attempt = begin("print('begun')", queue="team-a", start_seconds=1)
    [job] = cluster.jobs()
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    time.sleep(2)
    assert not attempt.follower.over(0) and cluster.pods() == []
    cluster.resume(job["metadata"]["name"])
    assert attempt.ending() == Ending(0) and "waits in its queue" in attempt.notes[0]


@pytest.mark.parametrize("broken", ["slow", "gone"])
def test_watches_that_fail(broken: str, begin: Begin, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "_LATE_SECONDS", 1.0)
    cluster.images.clear()
    cluster.slow_watch = broken == "slow"
    attempt = begin("print('begun')")
    wait_for(lambda: any("ErrImagePull" in note for note in [*attempt.notes, attempt.text()]), "the wait", 20)
    if broken == "gone":
        cluster.forget()
        cluster.cut()
    cluster.allow(IMAGE)
    assert attempt.ending() == Ending(0)


def test_cancel_ends_it_softly_and_soon(begin: Begin, cluster: Cluster) -> None:
    attempt = begin(SLEEP)
    attempt.begun()
    begun = time.monotonic()
    attempt.carried.stop()
    attempt.ending(5)
    attempt.carried.remove(failed=False)
    assert time.monotonic() - begun < 8 and attempt.text() == "begun\nasked to end\n"
    wait_for(lambda: not (cluster.jobs() or cluster.pods() or cluster.secrets()), "all to go", 5)


def test_what_does_not_end_is_killed(begin: Begin, cluster: Cluster) -> None:
    attempt = begin(SLEEP.replace("sys.exit(143)", "time.sleep(60)"))
    attempt.begun()
    begun = time.monotonic()
    attempt.carried.stop()
    assert attempt.ending(5).cause is Cause.WORKER_LOST and time.monotonic() - begun < 10
    wait_for(lambda: cluster.pods() == [], "the pod to go", 2)


def test_a_place_that_stays_taken_is_told(begin: Begin, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrier_module, "_AWAY_SECONDS", 1.0)
    attempt = begin(SLEEP.replace("sys.exit(143)", "time.sleep(60)"), stop_seconds=20)
    attempt.begun()
    cluster.delete("jobs", cluster.jobs()[0]["metadata"]["name"], {"propagationPolicy": "Foreground"})
    with pytest.raises(CarrierError, match="does not go away"):
        attempt.carrier.start(replace(attempt.order, attempt="a2"))
    assert len(cluster.started) == 1


def test_a_pod_that_its_node_does_not_end_is_no_bar_to_the_next_attempt(
    begin: Begin, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_module, "_NODE_SECONDS", 0.5)
    attempt = begin(SLEEP)
    pod = attempt.begun()
    cluster.lose(pod)
    cluster.delete("pods", pod, {"gracePeriodSeconds": 1})
    ending = attempt.ending(40)
    assert ending.cause is Cause.WORKER_LOST and "does not end it" in ending.words
    attempt.carried.remove(failed=True)
    assert attempt.carrier.start(replace(attempt.order, attempt="a2")).attempt == "a2"


def test_an_interrupted_start_leaves_nothing(begin: Begin, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(KubernetesCarrier, "_give_environment", interrupted)
    with pytest.raises(KeyboardInterrupt):
        begin(SLEEP)
    assert len(cluster.created) == 1
    wait_for(lambda: not cluster.jobs() and not cluster.pods(), "the Job to be taken back")


def test_a_job_whose_maker_was_killed_gets_its_environment_or_goes(
    begin: Begin, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(KubernetesCarrier, "_give_environment", lambda *arguments: None)  # it was killed before that
        first = begin(SLEEP)
        second = begin(SLEEP, "a2")
    wait_for(lambda: (second.text(), any("CreateContainerConfigError" in one for one in second.notes))[1], "the wait")
    assert first.carrier.start(replace(first.order, attempt="a3")).attempt == "a1"
    first.begun()
    cluster.delete("jobs", cluster.jobs()[0]["metadata"]["name"], {"propagationPolicy": "Background"})
    wait_for(lambda: not (cluster.jobs() or cluster.pods() or cluster.secrets()), "all to go", 20)
    with monkeypatch.context() as patch:
        patch.setattr(KubernetesCarrier, "_give_environment", lambda *arguments: None)
        third = begin(SLEEP, "a4")
    wait_for(lambda: (third.text(), any("CreateContainerConfigError" in one for one in third.notes))[1], "the wait")
    assert third.carrier.find(third.order.job) == [], "nobody can give it what it waits for"
    wait_for(lambda: not cluster.jobs() and not cluster.pods(), "the Job to go")
