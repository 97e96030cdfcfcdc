"""Steps as Jobs of one cluster: how they are made, and found again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from mloc_dagster.placement.k8s.api import Api
from mloc_dagster.placement.k8s.attempt import KubernetesJob
from mloc_dagster.placement.k8s.client import Conflict, Missing
from mloc_dagster.placement.k8s.manifest import job_manifest, secret_manifest, service_manifest
from mloc_dagster.placement.k8s.names import ATTEMPT, JOB, digest, identity, job_name, secret_name
from mloc_dagster.placement.k8s.objects import Job
from mloc_dagster.placement.k8s.states import lacks
from mloc_dagster.placement.remote.carrier import CarrierError, Order, Unreachable
from mloc_dagster.placement.workers.cluster import Kubernetes
from mloc_dagster.placement.workers.room import Worker

_AWAY_SECONDS = 90.0
"""So long the making of a Job waits for an API server, and for an earlier Job to go."""
_AGAIN_SECONDS = 0.5


class KubernetesCarrier:
    """The namespace of one worker."""

    def __init__(self, worker: Worker, declared: Kubernetes, store: str) -> None:
        self._declared, self._store = declared, store
        self._gpu = worker.devices[0].name if worker.devices else None
        self.grace = declared.stop_seconds

    def find(self, job: str) -> Sequence[KubernetesJob]:
        """Jobs of a piece of work, of any worker of the namespace; raises Unreachable."""
        try:
            api = Api(self._declared)
            found = api.jobs(f"{JOB}={digest(self._store, job)}")
            there = [one for one in found if one.metadata.deletion_timestamp is None]
            return [self._attempt(api, one) for one in there if not self._is_without_environment(api, one)]
        except (CarrierError, Missing) as error:
            raise Unreachable(str(error)) from None

    def start(self, order: Order) -> KubernetesJob:
        """Make a Job, or adopt the one that is there for the same work; raises CarrierError or Unreachable."""
        api = Api(self._declared)
        try:
            job = self._made(api, order)
            self._give_environment(api, replace(order, attempt=job.metadata.labels[ATTEMPT]), job)
            return self._attempt(api, job)
        except BaseException:
            self._take_back(api, order)
            raise

    def _made(self, api: Api, order: Order) -> Job:
        """The Job of that name, which a namespace has once: an answer that was lost costs nothing but another look."""
        manifest, until = job_manifest(self._declared, order, self._gpu), time.monotonic() + _AWAY_SECONDS
        while time.monotonic() < until:
            try:
                return api.create_job(manifest, _AWAY_SECONDS)
            except Missing as error:
                raise CarrierError(f"{api.name}: {error}", lasting=True) from None
            except Conflict:
                there = self._there(api, order)
            if there is not None:
                return there
            time.sleep(_AGAIN_SECONDS)
        name = job_name(order.store, order.job)
        raise CarrierError(f"{api.name}: an earlier Job {name} does not go away; delete it", lasting=False)

    def _there(self, api: Api, order: Order) -> Job | None:
        """The Job of that name when it is ours or is to be adopted; one that has finished is deleted."""
        name = job_name(order.store, order.job)
        try:
            there = api.job(name)
        except Missing:
            return None
        if there.metadata.annotations.get(JOB) != identity(order.store, order.job):
            raise CarrierError(f"{api.name}: the Job {name} is not ours; rename or delete it", lasting=True)
        if there.metadata.deletion_timestamp is not None:
            return None
        if there.metadata.labels.get(ATTEMPT) == order.attempt:
            return there
        if there.over:
            with suppress(Missing, Conflict):
                api.delete_job(there, "Foreground")
            return None
        attempt = self._attempt(api, there)
        if attempt.ending() is not None:  # its pod has ended, and the Job does not know it yet
            attempt.kill()
            return None
        return there

    def _give_environment(self, api: Api, order: Order, job: Job) -> None:
        """Make the Secret that pods wait for, after the Service of replicas; what is there already stays."""
        try:
            if order.replicas > 1:
                with suppress(Conflict):
                    service = service_manifest(self._declared, order, job.metadata.uid)
                    api.create_service(service, _AWAY_SECONDS)
            with suppress(Conflict):
                api.create_secret(secret_manifest(self._declared, order, job.metadata.uid), _AWAY_SECONDS)
        except (CarrierError, Unreachable, Missing) as error:
            raise CarrierError(str(error), lasting=isinstance(error, CarrierError)) from None

    def _take_back(self, api: Api, order: Order) -> None:
        """Delete the Job that was made for an order, if it was."""
        with suppress(Missing, Conflict, CarrierError, Unreachable):
            job = api.job(job_name(order.store, order.job))
            if job.metadata.labels.get(ATTEMPT) == order.attempt:
                self._attempt(api, job).kill()

    def _is_without_environment(self, api: Api, job: Job) -> bool:
        """Whether a Job waits for a Secret that nobody makes any more, since who was to was killed; it is deleted."""
        attempt = job.metadata.labels.get(ATTEMPT, "")
        if not any(lacks(pod, secret_name(attempt)) for pod in api.pods(f"{ATTEMPT}={attempt}").items):
            return False
        self._attempt(api, job).kill()
        return True

    def _attempt(self, api: Api, job: Job) -> KubernetesJob:
        return KubernetesJob(api, self._declared, job, self._gpu)
