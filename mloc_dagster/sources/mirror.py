"""A mirror: local copies of hub repositories, `<mirror>/models/<org>/<name>` and `<mirror>/datasets/<org>/<name>`."""

from __future__ import annotations

import os
from typing import Literal

from mloc_dagster.sources import buckets
from mloc_dagster.sources.pulled import PullError, local_path

Kind = Literal["models", "datasets"]


def find(mirror: str | None, kind: Kind, name: str) -> str | None:
    """Return the address where a mirror keeps a hub id, or None when it doesn't have it.

    `mirror` is a folder, or an address such as file:///… or s3://…. Raises PullError when the mirror lacks the name and
    MLOC_MIRROR_ONLY=1 forbids to ask the hub.
    """
    address = place(mirror, kind, name)
    if address and exists(address):
        return address
    if os.environ.get("MLOC_MIRROR_ONLY", "") not in ("", "0"):
        where = f"is not at {address}" if address else "has no mirror to come from"
        raise PullError(f"{name} {where}, and MLOC_MIRROR_ONLY is set; copy it there, or unset MLOC_MIRROR_ONLY")
    return None


def place(mirror: str | None, kind: Kind, name: str) -> str | None:
    """Return the address that a hub id would have on a mirror; None without a mirror."""
    if not mirror:
        return None
    root = mirror if "://" in mirror else local_path(mirror).as_uri()
    return f"{root.rstrip('/')}/{kind}/{name}"


def is_local(address: str) -> bool:
    """Whether an address is on this machine's file system."""
    return "://" not in address or address.startswith("file://")


def exists(address: str) -> bool:
    """Whether there is anything at an address."""
    return local_path(address).exists() if is_local(address) else buckets.exists(address)
