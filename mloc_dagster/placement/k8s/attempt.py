"""One attempt as a Job: followed to the last line, and ended.

The log is that of its pod; of several pods, which train as one, that of the first.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mloc_dagster.placement.failures.cause import Cause
from mloc_dagster.placement.k8s.api import Api
from mloc_dagster.placement.k8s.client import Conflict, Expired, Missing
from mloc_dagster.placement.k8s.log import PodLog
from mloc_dagster.placement.k8s.manifest import start_seconds
from mloc_dagster.placement.k8s.names import ATTEMPT, DEVICES, WORKER
from mloc_dagster.placement.k8s.objects import Job, Pod
from mloc_dagster.placement.k8s.states import Wait, ending_of_all, first_wait
from mloc_dagster.placement.remote.carrier import CarrierError, Ending, Sign, Unreachable
from mloc_dagster.placement.workers.cluster import Kubernetes

_AGAIN_SECONDS = 0.5
_NODE_SECONDS = 30.0
"""Beyond its grace, a node may take so long to end a pod."""


class KubernetesJob:
    """One attempt as a Job."""

    def __init__(self, api: Api, declared: Kubernetes, job: Job, gpu: str | None) -> None:
        told = job.metadata.annotations
        self.attempt, self.worker = job.metadata.labels.get(ATTEMPT, ""), told.get(WORKER, "")
        self.devices = tuple(filter(None, told.get(DEVICES, "").split(",")))
        self.place = f"job {job.metadata.name} on {self.worker}"
        self._api, self._declared, self._job, self._log = api, declared, job, PodLog(api)
        self._selector = f"{ATTEMPT}={self.attempt}"
        self._patience = start_seconds(declared, gpu if self.devices else None)
        self._over: Ending | None = None
        self._waiting_since: float | None = None
        self._going_since: float | None = None
        self._told = ""
        self._seen: list[Pod | None] = [None] * job.replicas

    def stream(self) -> Iterator[bytes | Sign]:
        """Yield what it waits for, then its log, to the last line; returns when it has ended and all is read."""
        yield from self._start()
        while self._over is None:
            cut: Unreachable | None = None
            try:
                yield from self._lines(follow=True)
            except Unreachable as error:
                cut = error
            ending = self.ending()
            if ending is not None:
                yield from self._lines(follow=False)
                self._over = ending
            elif cut is not None:
                raise cut
            else:
                time.sleep(_AGAIN_SECONDS)

    def ending(self) -> Ending | None:
        """How it ended; None while it waits or runs."""
        if self._over is not None:
            return self._over
        job, pods, _ = self._look()
        ending = ending_of_all(job, pods, self._seen)
        going = [pod for pod in pods if pod is not None and pod.metadata.deletion_timestamp is not None]
        return self._overdue(going[0]) if ending is None and going else ending

    def stop(self) -> None:
        """SIGTERM, and SIGKILL after the grace that its worker declares; waits for its end."""
        self._delete("Foreground", int(self._declared.stop_seconds))
        until = time.monotonic() + self._declared.stop_seconds + 1
        while time.monotonic() < until and self.ending() is None:
            time.sleep(_AGAIN_SECONDS / 2)

    def kill(self) -> None:
        """SIGKILL."""
        self._delete("Background", 0)

    def remove(self, *, failed: bool) -> None:
        """Delete it with its pod; one that failed stays for `ttl_seconds`."""
        if failed and self._declared.ttl_seconds:
            return
        with _told(), suppress(Missing, Conflict):
            self._api.delete_job(self._job, "Background")

    def _start(self) -> Iterator[Sign]:
        """Wait for its container; gives it up after the time that its worker declares."""
        for job, pods in self._watched():
            wait = first_wait(job, pods) if job is not None else None
            if wait is None:
                return
            if not wait.counts:
                self._waiting_since = None
            elif self._waiting_since is None:
                self._waiting_since = time.monotonic()
            waited = time.monotonic() - self._waiting_since if self._waiting_since else 0.0
            if wait.hopeless or waited > self._patience:
                return self._give_up(wait)
            yield Sign("" if wait.words == self._told else f"{self.place} {wait.words}")
            self._told = wait.words

    def _give_up(self, wait: Wait) -> None:
        late = "" if wait.hopeless else f"did not start within {self._patience:g} s (start_seconds): "
        self._delete("Background", 0)
        self._over = Ending(None, words=f"{late}{wait.words}", cause=wait.cause)

    def _watched(self) -> Iterator[tuple[Job | None, list[Pod | None]]]:
        """Job and pods at each change of a pod, and every few seconds."""
        while True:
            job, pods, version = self._look()
            yield job, pods
            try:
                for changed in self._api.watch_pods(self._selector, version):
                    pods = [changed if rank == changed.index else pod for rank, pod in enumerate(pods)]
                    yield job, pods
            except (Expired, Missing, Conflict, CarrierError, Unreachable):
                time.sleep(_AGAIN_SECONDS)  # a look says whether the server is there

    def _look(self) -> tuple[Job | None, list[Pod | None], str]:
        """The Job (None: deleted), the newest pod of each rank, and the state of the cluster that the pods are of."""
        with _told():
            try:
                job = self._api.job(self._job.metadata.name)
            except Missing:
                job = None
            pods = self._api.pods(self._selector)
        ranks = range(self._job.replicas)
        newest = [
            max((one for one in pods.items if one.index == rank), key=lambda one: one.metadata.creation_timestamp,
                default=None)
            for rank in ranks
        ]  # fmt: skip
        self._seen = [newest[rank] or self._seen[rank] for rank in ranks]
        there = job if job is not None and job.metadata.uid == self._job.metadata.uid else None
        return there, newest, pods.metadata.resource_version

    def _lines(self, *, follow: bool) -> Iterator[bytes]:
        """Lines of its log that are new; none when its pod is gone, or its node does not answer any more."""
        _, (pod, *_), _ = self._look()
        if pod is None:
            return
        try:
            with _told(), suppress(Missing):
                yield from self._log.read(pod.metadata.name, follow=follow)
        except Unreachable:
            if follow or pod.state.terminated is not None:
                raise

    def _overdue(self, pod: Pod) -> Ending | None:
        """A pod that is to be deleted and does not end: its node does not answer."""
        self._going_since = self._going_since or time.monotonic()
        grace = (pod.metadata.deletion_grace_period_seconds or 0) + _NODE_SECONDS
        if time.monotonic() - self._going_since < grace:
            return None
        self._delete("Background", 0)  # without its node: the next attempt needs the name
        words = f"was lost: its pod is to be deleted, and its node {pod.spec.node_name} does not end it"
        return Ending(None, words=words, cause=Cause.WORKER_LOST)

    def _delete(self, policy: str, grace: int) -> None:
        """Delete it, and its pod at once, not when the cluster's collector comes by."""
        with _told():
            with suppress(Missing, Conflict):
                self._api.delete_job(self._job, policy)
            for pod in self._api.pods(self._selector).items:
                with suppress(Missing, Conflict):
                    self._api.delete_pod(pod.metadata.name, grace)


@contextmanager
def _told() -> Iterator[None]:
    """What cannot be asked of a Job that is there counts as: not now."""
    try:
        yield
    except CarrierError as error:
        raise Unreachable(str(error)) from None
