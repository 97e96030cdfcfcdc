"""Steps on one Docker Engine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING

from mloc_dagster.placement.docker.client import connect, engine_errors
from mloc_dagster.placement.docker.image import ensure_image
from mloc_dagster.placement.docker.settings import (
    ATTEMPT,
    DEVICES,
    JOB,
    REPLICA,
    REPLICAS,
    container_settings,
    identity,
)
from mloc_dagster.placement.remote.carrier import Carried, CarrierError, Ending, Order, Unreachable
from mloc_dagster.placement.remote.group import Group
from mloc_dagster.placement.workers.engine import Docker

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

_GRACE_FOR_DOCKER = 5
"""Seconds that the engine itself may take to end a container, beyond the container's."""
_LEAST_KEPT_SECONDS = 60
"""Whoever follows another step must see how it ended, and start what it has made."""


class DockerCarrier:
    """The engine of one worker; connections are made when they are needed, each use on its own."""

    def __init__(self, worker: str, declared: Docker, store: str) -> None:
        self._worker, self._declared, self._store = worker, declared, store
        self.grace = declared.stop_seconds

    def find(self, job: str) -> Sequence[Carried]:
        """Attempts at a piece of work; raises Unreachable."""
        try:
            client = connect(self._declared)
            with engine_errors(self._declared.host):
                label = f"{JOB}={identity(self._store, job)}"
                found = client.containers.list(all=True, filters={"label": label}, ignore_removed=True)
        except CarrierError as error:
            raise Unreachable(str(error)) from None
        attempts = groupby(sorted(found, key=_place_in_attempt), key=lambda one: one.labels[ATTEMPT])
        return [self._attempt([(str(one.id), one.labels) for one in ones]) for _, ones in attempts]

    def start(self, order: Order) -> Carried:
        """Make and start a container, or one for each replica; raises CarrierError or Unreachable."""
        client = connect(self._declared)
        self._sweep(client)
        ensure_image(client, self._declared)
        made: list[Container] = []
        try:
            for replica in range(order.replicas):
                first = str(made[0].id) if made else ""
                settings = container_settings(self._declared, order, replica, first)
                with engine_errors(self._declared.host):
                    made.append(client.containers.create(**settings))
                    made[-1].start()
        except BaseException:
            for container in reversed(made):
                with suppress(CarrierError, Unreachable), engine_errors(self._declared.host):
                    container.remove(force=True)
            raise
        return self._attempt([(str(one.id), one.labels) for one in made])

    def _attempt(self, containers: Sequence[tuple[str, Mapping[str, str]]]) -> Carried:
        """One attempt, by the ids and labels of its containers."""
        made = [DockerContainer(self._worker, self._declared, *container) for container in containers]
        count = int(containers[0][1].get(REPLICAS) or 1)
        return made[0] if count == 1 else Group(made, count)

    def _sweep(self, client: DockerClient) -> None:
        """Remove containers of earlier steps that have ended, or were never started, and were kept long enough."""
        kept = max(_LEAST_KEPT_SECONDS, self._declared.keep_failed_seconds)
        with suppress(CarrierError, Unreachable), engine_errors(self._declared.host):
            filters: dict[str, str | list[str] | bool] = {
                "label": [JOB, f"mloc.worker={self._worker}"],
                "status": ["created", "exited", "dead"],
            }
            for container in client.containers.list(all=True, filters=filters, ignore_removed=True):
                if _ended_seconds_ago(container) > kept:
                    with suppress(CarrierError, Unreachable), engine_errors(self._declared.host):
                        container.remove(v=True, force=True)


class DockerContainer:
    """One attempt in its container, or one replica of it."""

    def __init__(self, worker: str, declared: Docker, container_id: str, labels: Mapping[str, str]) -> None:
        self.attempt = attempt = labels[ATTEMPT]
        self.worker, self.devices = worker, tuple(filter(None, labels.get(DEVICES, "").split(",")))
        replica = f"-{labels[REPLICA]}" if REPLICA in labels else ""
        self.place = f"container mloc-{attempt}{replica} on {worker}"
        self._declared, self._id = declared, container_id
        self._read = 0

    def stream(self) -> Iterator[bytes]:
        """Yield its log, which is read from its beginning, past what is known of it; ends when it is long silent."""
        from urllib3.exceptions import ReadTimeoutError

        client = self._connect()
        known = self._read
        try:
            with self._errors(), suppress(ReadTimeoutError):
                for block in client.api.logs(self._id, stream=True, follow=True, stdout=True, stderr=True):
                    new = block[known:]
                    known -= len(block) - len(new)
                    self._read += len(new)
                    yield new
        except _Gone:
            return
        finally:
            client.close()

    def ending(self) -> Ending | None:
        """How it ended; None while it runs."""
        try:
            container = self._container()
        except _Gone:
            return Ending(None, words="its engine does not know it any more")
        state = container.attrs["State"]
        if state["Status"] == "created":  # whoever made it was killed before it could start it
            return Ending(None, words="it was never started")
        if state["Status"] in ("running", "paused", "restarting", "removing"):
            return None
        return Ending(int(state["ExitCode"]), bool(state.get("OOMKilled")), str(state.get("Error") or ""))

    def stop(self) -> None:
        """SIGTERM, and SIGKILL after the grace that its worker declares."""
        with suppress(_Gone):
            container = self._container(timeout=int(self._declared.stop_seconds) + _GRACE_FOR_DOCKER)
            with self._errors():
                container.stop(timeout=int(self._declared.stop_seconds))

    def kill(self) -> None:
        """SIGKILL."""
        with suppress(_Gone):
            container = self._container()
            with self._errors():
                container.kill()

    def remove(self, *, failed: bool) -> None:
        """Remove it with its unnamed volumes; one that failed stays for `keep_failed_seconds`."""
        if failed and self._declared.keep_failed_seconds:
            return
        with suppress(_Gone):
            container = self._container()
            with self._errors():
                container.remove(v=True, force=True)

    def _container(self, timeout: int | None = None) -> Container:
        client = self._connect()
        if timeout is not None:
            client.api.timeout = timeout
        with self._errors():
            return client.containers.get(self._id)

    def _connect(self) -> DockerClient:
        try:
            return connect(self._declared)
        except CarrierError as error:
            raise Unreachable(str(error)) from None

    def _errors(self) -> _Errors:
        return _Errors(self._declared.host)


class _Gone(Exception):
    """There is no such container any more."""


class _Errors:
    """What an engine answers for one container: that there is none, or that it cannot tell now."""

    def __init__(self, host: str) -> None:
        self._host = host

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        from docker.errors import APIError, NotFound

        if isinstance(error, NotFound):
            raise _Gone from None
        if isinstance(error, APIError) and error.status_code == 409:  # it is being removed, or has ended meanwhile
            raise _Gone from None
        if isinstance(error, Exception) and not isinstance(error, GeneratorExit):
            try:
                with engine_errors(self._host):
                    raise error
            except CarrierError as told:
                raise Unreachable(str(told)) from None


def _place_in_attempt(container: Container) -> tuple[str, int]:
    return container.labels[ATTEMPT], int(container.labels.get(REPLICA) or 0)


def _ended_seconds_ago(container: Container) -> float:
    state = container.attrs["State"]
    text = str(container.attrs["Created"] if state["Status"] == "created" else state.get("FinishedAt") or "")
    try:
        moment = datetime.fromisoformat(text[:19]).replace(tzinfo=UTC)
    except ValueError:
        return 0.0
    return time.time() - moment.timestamp()
