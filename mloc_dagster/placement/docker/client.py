"""Talks to a Docker Engine; what goes wrong is told in the engine's words."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mloc_dagster.placement.remote.carrier import CarrierError, Unreachable
from mloc_dagster.placement.workers.engine import Docker

if TYPE_CHECKING:
    from docker import DockerClient

_TIMEOUT_SECONDS = 20
"""To connect, and to wait for the next byte; also for that of a log: work says more often that it lives."""
_MISSING = "docker workers need the package docker, which is not installed; run: pip install 'mloc-dagster[docker]'"


def connect(declared: Docker) -> DockerClient:
    """Return a client of an engine; raises CarrierError, or Unreachable when it does not answer."""
    try:
        import docker.errors
        import docker.tls
    except ImportError:
        raise CarrierError(_MISSING, lasting=True) from None
    tls = None
    if declared.tls is not None:
        certificate = (declared.tls.cert, declared.tls.key)
        try:
            tls = docker.tls.TLSConfig(client_cert=certificate, ca_cert=declared.tls.ca, verify=True)
        except docker.errors.DockerException as error:
            raise CarrierError(f"tls of {declared.host}: {error}; check the paths", lasting=True) from None
    ssh = declared.host.startswith("ssh://")
    with engine_errors(declared.host):
        return _client(declared.host, tls=tls or False, timeout=_TIMEOUT_SECONDS, use_ssh_client=ssh)


def _client(host: str, **settings: Any) -> DockerClient:
    """Return a client that trusts the authority which `workers.yaml` names, whatever REQUESTS_CA_BUNDLE says."""
    from docker import APIClient, DockerClient

    class Api(APIClient):
        def merge_environment_settings(self, url, proxies, stream, verify, cert):
            own = self.verify if verify is None else verify
            return super().merge_environment_settings(url, proxies, stream, own, cert)

        def _disable_socket_timeout(self, socket):
            """Keep it: a stream whose other side has vanished would never end."""

    class Client(DockerClient):
        def __init__(self) -> None:
            self.api = Api(host, **settings)

    return Client()


@contextmanager
def engine_errors(host: str) -> Iterator[None]:
    """Raise CarrierError for what an engine refuses, and Unreachable when it does not answer."""
    import requests
    from docker.errors import APIError, DockerException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except APIError as error:
        words = str(error.explanation or error).strip()
        if error.status_code is not None and error.status_code < 500:
            raise CarrierError(words, lasting=True) from None
        raise CarrierError(words, lasting=_lasting(words)) from None
    except (DockerException, requests.RequestException, HTTPError, OSError, ValueError, struct.error) as error:
        if isinstance(error, requests.exceptions.SSLError) or isinstance(error.__cause__, requests.exceptions.SSLError):
            way_out = "check docker.tls in workers.yaml, and that the engine's certificate names its host"
            raise CarrierError(f"tls of {host}: {str(error)[:300]}\n{way_out}", lasting=True) from None
        reason = str(error).removeprefix("Error while fetching server API version: ")
        raise Unreachable(f"the Docker Engine {host} does not answer: {reason[:300]}") from None


def _lasting(words: str) -> bool:
    """Whether an engine's own failure comes from how it is set up."""
    return "could not select device driver" in words or "executable file not found" in words
