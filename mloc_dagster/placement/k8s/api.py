"""The calls that are made to one namespace of a cluster, and no others: a role needs just these.

create, get, list and delete of Jobs; list, watch and delete of Pods, and their logs; create of Secrets and Services.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from mloc_dagster.placement.k8s.client import Expired, cluster_errors, connect, often, where
from mloc_dagster.placement.k8s.objects import Job, Jobs, Pod, Pods, Read
from mloc_dagster.placement.workers.cluster import Kubernetes
from mloc_dagster.spec.base import Json

if TYPE_CHECKING:
    from urllib3 import HTTPResponse

ASK_SECONDS = 5.0
"""So long a question is asked again while the server is busy or away."""
_TIMES = (5.0, 15.0)
"""Seconds to connect, and to wait for the next byte."""
_WATCH_SECONDS, _LATE_SECONDS = 5, 10.0
_SILENT_SECONDS = 20.0
_BLOCK = 1 << 16
_Object = TypeVar("_Object", bound=Read)


class Api:
    """One namespace. All methods raise as `cluster_errors` does: Missing, Conflict, Unreachable or CarrierError."""

    def __init__(self, declared: Kubernetes) -> None:
        self._client = connect(declared)
        from kubernetes.client import BatchV1Api, CoreV1Api

        self._batch, self._core = BatchV1Api(self._client), CoreV1Api(self._client)
        self._space, self.name = declared.namespace, where(declared)

    def create_job(self, manifest: Mapping[str, Json], seconds: float) -> Job:
        """Make a Job, for so many seconds."""
        return self._ask(Job, self._batch.create_namespaced_job, self._space, manifest, seconds=seconds)

    def create_secret(self, manifest: Mapping[str, Json], seconds: float) -> None:
        """Make a Secret, for so many seconds."""
        self._ask(Read, self._core.create_namespaced_secret, self._space, manifest, seconds=seconds)

    def create_service(self, manifest: Mapping[str, Json], seconds: float) -> None:
        """Make a Service, for so many seconds."""
        self._ask(Read, self._core.create_namespaced_service, self._space, manifest, seconds=seconds)

    def job(self, name: str) -> Job:
        """Return a Job."""
        return self._ask(Job, self._batch.read_namespaced_job, name, self._space)

    def jobs(self, selector: str) -> list[Job]:
        """Return the Jobs with certain labels."""
        return self._ask(Jobs, self._batch.list_namespaced_job, self._space, label_selector=selector).items

    def pods(self, selector: str) -> Pods:
        """Return the pods with certain labels."""
        return self._ask(Pods, self._core.list_namespaced_pod, self._space, label_selector=selector)

    def delete_job(self, job: Job, policy: str) -> None:
        """Delete this Job, and no later one of its name."""
        options = {"propagationPolicy": policy, "preconditions": {"uid": job.metadata.uid}}
        self._ask(Read, self._batch.delete_namespaced_job, job.metadata.name, self._space, body=options)

    def delete_pod(self, name: str, grace: int) -> None:
        """Delete a pod: SIGTERM, and SIGKILL after so many seconds."""
        options = {"gracePeriodSeconds": grace}
        self._ask(Read, self._core.delete_namespaced_pod, name, self._space, body=options)

    def watch_pods(self, selector: str, version: str) -> Iterator[Pod]:
        """Yield pods as they change, for a few seconds; ends when one is deleted. Raises Expired, too."""
        with cluster_errors(self.name):
            response = self._core.list_namespaced_pod(
                self._space, label_selector=selector, resource_version=version, watch=True,
                timeout_seconds=_WATCH_SECONDS, _preload_content=False, _request_timeout=(_TIMES[0], _LATE_SECONDS),
            )  # fmt: skip
        rest = b""
        for block in self._blocks(response):  # pyright: ignore[reportArgumentType] (the client's types are guessed)
            *lines, rest = (rest + block).split(b"\n")
            for event in map(json.loads, filter(None, lines)):
                if event["type"] == "ERROR":
                    raise Expired(str(event["object"].get("message")))
                if event["type"] == "DELETED":
                    return
                yield Pod.model_validate(event["object"])

    def log(self, pod: str, container: str, *, follow: bool, since: str) -> Iterator[bytes]:
        """Yield blocks of a log with the time of each line; ends when it is silent for long.

        `since` is a time (RFC 3339), or empty. The client's own method does not know `sinceTime`.
        """
        query = [("container", container), ("timestamps", "true"), ("follow", str(follow).lower())]
        with cluster_errors(self.name):
            response = self._client.call_api(
                f"/api/v1/namespaces/{self._space}/pods/{pod}/log", "GET",
                query_params=[*query, *([("sinceTime", since)] if since else [])],
                auth_settings=["BearerToken"], header_params={"Accept": "*/*"}, _preload_content=False,
                _return_http_data_only=True, _request_timeout=(_TIMES[0], _SILENT_SECONDS),
            )  # fmt: skip
        yield from self._blocks(response)  # pyright: ignore[reportArgumentType]

    def _blocks(self, response: HTTPResponse) -> Iterator[bytes]:
        """The answer as it comes."""
        from urllib3.exceptions import ReadTimeoutError

        try:
            with cluster_errors(self.name), suppress(ReadTimeoutError):
                yield from response.stream(_BLOCK, decode_content=False)
        finally:
            response.close()
            response.release_conn()

    def _ask(self, kind: type[_Object], method, *arguments, seconds: float = ASK_SECONDS, **options) -> _Object:
        def call() -> _Object:
            answer = method(*arguments, _preload_content=False, _request_timeout=_TIMES, **options)
            try:
                return kind.model_validate_json(answer.read())
            finally:
                answer.release_conn()

        return often(self.name, call, seconds)
