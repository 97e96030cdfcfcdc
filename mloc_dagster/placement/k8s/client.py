"""Talks to the API server of a cluster; what goes wrong is told in the server's words."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from mloc_dagster.placement.remote.carrier import CarrierError, Unreachable
from mloc_dagster.placement.workers.cluster import Kubernetes

if TYPE_CHECKING:
    from kubernetes.client import ApiClient, ApiException

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.25, 5.0
_MISSING = (
    "kubernetes workers need the package kubernetes, which is not installed; run: pip install 'mloc-dagster[k8s]'"
)
_Answer = TypeVar("_Answer")


class Missing(Exception):
    """There is no such object."""


class Conflict(Exception):
    """There is such an object already, or it has changed meanwhile."""


class Expired(Exception):
    """A watch goes on from a state that the server does not remember: list again."""


class Busy(Unreachable):
    """The server asks to come again, after so many seconds."""

    def __init__(self, message: str, after: float) -> None:
        super().__init__(message)
        self.after = after


def connect(declared: Kubernetes) -> ApiClient:
    """Return a client of a cluster; asks it nothing. Raises CarrierError."""
    try:
        from kubernetes import client, config
        from kubernetes.config.config_exception import ConfigException
        from urllib3 import Retry
    except ImportError:
        raise CarrierError(_MISSING, lasting=True) from None
    settings = client.Configuration()
    try:
        if not declared.context and not declared.kubeconfig and os.environ.get("KUBERNETES_SERVICE_HOST"):
            config.load_incluster_config(client_configuration=settings)
        else:
            file = os.path.expanduser(declared.kubeconfig) if declared.kubeconfig else None
            config.load_kube_config(file, declared.context, client_configuration=settings, persist_config=False)
    except (ConfigException, OSError, ValueError) as error:
        raise CarrierError(
            f"{where(declared)} cannot be set up: {error}\nCheck kubernetes.context and kubernetes.kubeconfig",
            lasting=True,
        ) from None
    settings.retries = Retry(0, respect_retry_after_header=False)  # pyright: ignore[reportAttributeAccessIssue]
    return client.ApiClient(settings)


def where(declared: Kubernetes) -> str:
    """Return the cluster's name for people."""
    return f"the cluster {declared.context or 'of the current context'}, namespace {declared.namespace}"


@contextmanager
def cluster_errors(name: str) -> Iterator[None]:
    """Raise what an API server answers as Missing, Conflict, Expired or CarrierError; Unreachable without an answer."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        raise _answer(name, error) from None
    except (HTTPError, OSError) as error:
        raise Unreachable(f"the API server of {name} does not answer: {str(error)[:300]}") from None
    except ValueError as error:
        raise Unreachable(f"what answers for {name} is no API server: {str(error)[:300]}") from None


def often(name: str, call: Callable[[], _Answer], seconds: float) -> _Answer:
    """Call until the server answers, for so many seconds, with the pauses it asks for. Raises as `cluster_errors`."""
    until, pause = time.monotonic() + seconds, _FIRST_PAUSE_SECONDS
    while True:
        try:
            with cluster_errors(name):
                return call()
        except Unreachable as error:
            wait = max(pause, error.after if isinstance(error, Busy) else 0.0)
            if time.monotonic() + wait > until:
                raise
        time.sleep(wait)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _answer(name: str, error: ApiException) -> Exception:
    status, words = error.status or 0, _words(error)
    if status == 404:
        return Missing(words)
    if status == 409:
        return Conflict(words)
    if status == 410:
        return Expired(words)
    if status == 429 or status >= 500 or status in (0, 401):
        what = "refuses our credentials" if status == 401 else f"answers {status}"
        return Busy(f"the API server of {name} {what}: {words}", _retry_after(error))
    return CarrierError(f"{name}: {words} ({status})", lasting=True)


def _words(error: ApiException) -> str:
    """The message of the Status object that servers answer with."""
    try:
        return str(json.loads(error.body or "")["message"])[:500]
    except (ValueError, KeyError, TypeError):
        return str(error.reason or "")[:300]


def _retry_after(error: ApiException) -> float:
    headers = error.headers or {}
    try:
        return min(60.0, float(headers.get("Retry-After") or 0))
    except ValueError:
        return 0.0
