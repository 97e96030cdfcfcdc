"""The `docker` section of a worker in `workers.yaml`: its engine, and what its containers get."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field

from mloc_dagster.spec.base import Bytes, NotNegative, Section

_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
_VOLUME = re.compile(r"[^:]+:/[^:]+(:(ro|rw))?")
_USER = r"^[a-z0-9_][a-z0-9_.-]*(:[a-z0-9_][a-z0-9_.-]*)?$"


class Tls(Section):
    """Files for an engine that is reached by tcp."""

    ca: str
    """Certificate of the authority that signed the engine's."""
    cert: str
    """Our certificate."""
    key: str
    """Its key."""


class Docker(Section):
    """One Docker Engine."""

    host: str
    """unix:///var/run/docker.sock, tcp://host:2376 (with tls) or ssh://user@host."""
    image: Annotated[str, Field(min_length=1)]
    """Image with MLOC and the libraries of its stages."""
    tls: Tls | None = None
    """For tcp."""
    volumes: tuple[str, ...] = ()
    """name:/path or /host/path:/path, with :ro or :rw at the end."""
    cache_volume: str | None = "mloc-inputs"
    """Volume that keeps inputs on this machine between steps; null keeps none."""
    network: str | None = None
    """A network of the engine, such as bridge or host; left out, the engine's default."""
    env: tuple[Annotated[str, Field(pattern=_NAME)], ...] = ()
    """Names of environment variables of the control plane that containers get, such as AWS_ACCESS_KEY_ID."""
    runtime: str | None = None
    """A runtime of the engine, such as nvidia."""
    shm_size: Bytes | None = None
    """Size of /dev/shm."""
    user: Annotated[str, Field(pattern=_USER)] | None = None
    """User, or user:group, that the work runs as."""
    cpuset: Annotated[str, Field(pattern=r"^\d+(-\d+)?(,\d+(-\d+)?)*$")] | None = None
    """Cores of the machine that containers may use: 0-3,8."""
    pull: Literal["missing", "always", "never"] = "missing"
    """When the image is pulled."""
    pull_seconds: Annotated[float, Field(gt=0)] = 1800.0
    """So long a pull may take."""
    stop_seconds: Annotated[float, Field(ge=2, le=600)] = 8.0
    """From the request to end until the container is killed; work stores its state meanwhile."""
    keep_failed_seconds: NotNegative = 3600
    """So long a container that failed is kept, to be looked at."""


def faults_of(docker: Docker) -> Iterator[tuple[tuple[str | int, ...], str, object, str]]:
    """Yield what cannot work: where in the section, what is wrong, the value, the way out."""
    parts = urlsplit(docker.host)
    if parts.scheme not in ("unix", "tcp", "ssh"):
        yield ("host",), "is no address of an engine", docker.host, "write unix:///path, tcp://host:port or ssh://host"
    elif parts.scheme == "unix" and (parts.netloc or not parts.path):
        yield ("host",), "names no socket", docker.host, "write unix:///var/run/docker.sock, with three slashes"
    elif parts.scheme in ("tcp", "ssh") and not parts.hostname:
        yield ("host",), "names no host", docker.host, f"write {parts.scheme}://host"
    elif parts.password:
        yield ("host",), "holds a password", "***", "use keys (ssh) or certificates (tls)"
    elif parts.scheme == "tcp" and docker.tls is None and not _is_loopback(parts.hostname or ""):
        way_out = "add tls: {ca, cert, key}, or use ssh://"
        yield ("host",), "is an engine without TLS: whoever reaches it is root there", docker.host, way_out
    if docker.tls is not None and parts.scheme != "tcp":
        yield ("tls",), f"means nothing for {parts.scheme}://", docker.host, "remove it, or write tcp://"
    for number, volume in enumerate(docker.volumes):
        if not _VOLUME.fullmatch(volume):
            yield ("volumes", number), "is no volume", volume, "write name:/path or /host/path:/path, :ro at the end"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
